//! Finds out whether g++ is installed: tests that compile kernels are marked as ignored without it.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rustc-check-cfg=cfg(has_gxx)");
    let version = Command::new("g++").arg("--version").output();
    if version.is_ok_and(|output| output.status.success()) {
        println!("cargo::rustc-cfg=has_gxx");
    }
}
