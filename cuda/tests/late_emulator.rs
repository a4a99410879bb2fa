//! An emulator that comes after the system's driver was opened: alone in its process, whose driver is a library with
//! nothing in it.

use std::process::Command;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use limpid_cuda::Cuda;
use limpid_cuda::emulated::{self, Config};

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn nothing_takes_the_place_of_a_driver_that_is_open() {
    let folder = std::env::temp_dir().join(format!("limpid-late-emulator-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("driver.so");
    let mut compiler = Command::new("g++");
    compiler.args(["-shared", "-x", "c++", "/dev/null", "-Wl,-soname,libcuda.so.1", "-o"]).arg(&path);
    assert!(compiler.status().unwrap().success());
    // SAFETY: the library is empty, and stays open.
    std::mem::forget(unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.unwrap());
    std::fs::remove_dir_all(&folder).unwrap();

    if Cuda::count().is_ok() {
        println!("the system has a driver, which was found before this one");
    } else {
        let error = Cuda::new(0).unwrap_err().to_string();
        assert_eq!(error, "cuda: the CUDA driver has no function cuDriverGetVersion");
    }
    let Err(error) = emulated::install(Config::default()) else {
        panic!("an emulator that nobody finds was installed")
    };
    assert_eq!(
        error.to_string(),
        "emulator: the system's driver or compiler is open in this process already, and an emulator must come first"
    );
    assert!(!emulated::is_installed());
}
