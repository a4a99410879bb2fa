//! Whether there is a compiler for kernels that run on this processor.

use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_gxx)");
    println!("cargo::rerun-if-env-changed=PATH");
    let answer = Command::new("g++").arg("--version").output();
    if answer.is_ok_and(|answer| answer.status.success()) {
        println!("cargo::rustc-cfg=has_gxx");
    }
}
