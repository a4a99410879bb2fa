//! The programs that a person runs.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// Builds an example in the profile and target folder of the test that asks for it, and returns its binary.
///
/// # Panics
/// If it does not build.
pub fn example(name: &str) -> PathBuf {
    // …/target/PROFILE/deps/TEST-HASH
    let this = std::env::current_exe().expect("a test has a path");
    let profile_folder = this.ancestors().nth(2).expect("cargo's folders");
    let profile = match profile_folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        name => name.expect("a profile"),
    };
    let build = Command::new(env!("CARGO"))
        .args(["build", "--package", "limpid", "--example", name, "--profile", profile])
        .args(["--message-format", "json-render-diagnostics", "--target-dir"])
        .arg(profile_folder.parent().expect("cargo's folders"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let messages = String::from_utf8_lossy(&build.stdout);
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).expect("cargo writes JSON");
        message["executable"].as_str().map(PathBuf::from)
    };
    messages.lines().filter_map(executable).next_back().expect("cargo names the executable it built")
}
