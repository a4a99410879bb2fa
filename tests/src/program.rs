//! The programs that a person runs, and what they leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Builds an example in the profile and target folder of the test that asks for it, and returns its binary.
///
/// It is built as one of the whole workspace, whose packages' features are those of `cargo test --workspace`: there nothing is
/// left to build.
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
        .args(["build", "--workspace", "--example", name, "--profile", profile])
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

/// A folder of one test's own, gone when the test is.
pub struct Folder(PathBuf);

impl Folder {
    /// # Panics
    /// If it cannot be made.
    pub fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("limpid-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file, and says where it is.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file(&self, name: &str, content: &str) -> String {
        std::fs::write(self.join(name), content).unwrap();
        self.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs to the end, which has to be a good one; what it printed.
///
/// # Panics
/// If it ends otherwise.
#[track_caller]
pub fn succeed(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Runs to an end that has to have this exit code and one line on the error stream; the line.
///
/// # Panics
/// If it ends otherwise.
#[track_caller]
pub fn fail(mut command: Command, code: i32) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let message = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{command:?}: {message}");
    assert_eq!(message.matches('\n').count(), 1, "{command:?}: {message}");
    message.trim_end().to_string()
}

/// Every file below a folder, by its path from there.
///
/// # Panics
/// If one cannot be read.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}
