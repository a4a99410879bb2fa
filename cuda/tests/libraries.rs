//! Drivers and compilers that are missing, too old or incomplete, and the folder that keeps what was compiled: with small
//! libraries in their place, each in a process of its own, since a process opens them once.

#![cfg(has_gxx)]

use std::path::{Path, PathBuf};
use std::process::Command;

use limpid_cuda::Cuda;
use limpid_tensor::{DType, Map, Tensor};

/// Where a process looks for libraries, and what else it is told.
struct Process {
    folder: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl Process {
    /// With an empty folder of this name.
    fn new(name: &str) -> Process {
        let folder = std::env::temp_dir().join(format!("limpid-libraries-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Process { folder, variables: Vec::new() }
    }

    /// Compiles a library of `tests/stubs` into the folder; what `without` names has another name in it.
    fn with_library(self, text: &str, library: &str, without: Option<&str>) -> Process {
        let mut compiler = Command::new("g++");
        let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stubs").join(text);
        compiler.args(["-shared", "-fPIC", "-o"]).arg(self.folder.join(library)).arg(text);
        compiler.arg(format!("-Wl,-soname,{library}")).args(without.map(|name| format!("-D{name}=renamed")));
        assert!(compiler.status().unwrap().success());
        self
    }

    fn with_driver(self) -> Process {
        self.with_library("driver.cpp", "libcuda.so.1", None)
    }

    fn with_compiler(self) -> Process {
        let process = self.with_library("compiler.cpp", "libnvrtc.so.13", None);
        process.with_library("compiler.cpp", "libnvrtc-builtins.so.13", None)
    }

    fn with(mut self, variable: &'static str, value: impl Into<String>) -> Process {
        self.variables.push((variable, value.into()));
        self
    }

    /// What it says: its own lines, and those of the libraries.
    fn says(&self) -> Vec<String> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "in_a_process_of_its_own", "--nocapture"]);
        command.env("LD_LIBRARY_PATH", &self.folder).env("LIMPID_NVRTC", &self.folder);
        command.env("LIMPID_CUDA_CACHE", self.folder.join("kept")).env(ASKED, "");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let lines = said
            .lines()
            .filter(|line| ["! ", "loaded", "compiled"].iter().any(|word| line.starts_with(word)));
        lines.map(str::to_string).collect()
    }

    /// The files that are kept, in order.
    fn kept(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.folder.join("kept")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Set for the process of its own.
const ASKED: &str = "LIMPID_TEST_OF_LIBRARIES";

/// What the driver says of every kernel, at last.
const NO_KERNEL: &str =
    "! cuda:0: looking for the kernel neg_f32 of map.cu: named symbol not found (CUDA_ERROR_NOT_FOUND)";

/// Run by the others, each with libraries of its own; by itself it has nothing to do.
#[test]
fn in_a_process_of_its_own() {
    if std::env::var_os(ASKED).is_none() {
        return;
    }
    let x = Tensor::ones([3], DType::F32);
    let on_a_device = || {
        let x = x.to(&Cuda::new(0)?.device())?;
        Tensor::map(Map::Neg, &[&x]).map(drop)
    };
    // Behind the words of the test runner, on a line of its own; and the same the second time.
    println!();
    for _ in 0..2 {
        println!("! {}", on_a_device().expect_err("there is no kernel"));
    }
    assert_eq!(Tensor::map(Map::Neg, &[&x]).unwrap().to_vec::<f32>().unwrap(), [-1.0; 3], "the CPU goes on");
}

#[test]
fn a_driver_that_lacks_a_function_is_told_its_name() {
    for name in ["cuCtxSetCurrent", "cuGraphLaunch", "cuStreamSynchronize"] {
        let process = Process::new(name).with_library("driver.cpp", "libcuda.so.1", Some(name));
        let sentence = format!("! cuda: the CUDA driver, for CUDA 13.0, has no function {name}");
        assert_eq!(process.says(), [&*sentence; 2]);
    }
    let process =
        Process::new("version").with_library("driver.cpp", "libcuda.so.1", Some("cuDriverGetVersion"));
    assert_eq!(process.says(), ["! cuda: the CUDA driver has no function cuDriverGetVersion"; 2]);
}

#[test]
fn a_compiler_that_is_missing_or_of_no_use_is_told() {
    // Only where the system has none.
    let process = Process::new("none").with_driver().with("LIMPID_NVRTC", "");
    let said = process.says();
    let missing = "! cuda:0: no NVRTC was found (libnvrtc.so.13): a CUDA 13 toolkit has it, and so has the Python package \
                   nvidia-cuda-nvrtc; the variable LIMPID_NVRTC may name the folder it is in";
    assert!(said == [missing; 2] || said.last().is_some_and(|last| last == NO_KERNEL), "{said:?}");

    let process = Process::new("empty").with_driver();
    let folder = process.folder.display();
    let empty = format!(
        "! cuda:0: LIMPID_NVRTC: expected a folder with libnvrtc.so.13 and libnvrtc-builtins.so.13 that can be opened, \
         found {folder}"
    );
    assert_eq!(process.says(), [&*empty; 2]);

    let process = Process::new("old").with_driver().with_compiler().with("STUB_NVRTC", "12.9");
    assert_eq!(process.says(), ["! cuda:0: NVRTC is of CUDA 12.9, expected 13"; 2]);

    let process = Process::new("lacking").with_driver().with_compiler();
    let process = process.with_library("compiler.cpp", "libnvrtc.so.13", Some("nvrtcGetCUBIN"));
    assert_eq!(process.says(), ["! cuda:0: NVRTC has no function nvrtcGetCUBIN"; 2]);
}

#[test]
fn what_was_compiled_is_kept_for_its_architecture_while_it_is_whole() {
    let mut process = Process::new("kept").with_driver().with_compiler().with("STUB_IMAGE", "first");
    let compiled = |architecture: &str| format!("compiled with --gpu-architecture={architecture}");
    assert_eq!(process.says(), [&*compiled("sm_90a"), "loaded first", NO_KERNEL, NO_KERNEL]);
    let kept = process.kept();
    assert_eq!(kept.len(), 1);
    let whole = std::fs::read(&kept[0]).unwrap();

    process = process.with("STUB_IMAGE", "second");
    assert_eq!(process.says(), ["loaded first", NO_KERNEL, NO_KERNEL], "nothing is compiled again");

    let mut wrong = whole.clone();
    wrong[2] ^= 1;
    std::fs::write(&kept[0], wrong).unwrap();
    assert_eq!(process.says(), [&*compiled("sm_90a"), "loaded second", NO_KERNEL, NO_KERNEL]);
    assert_eq!(process.kept(), kept, "it took the other's place");
    assert_ne!(std::fs::read(&kept[0]).unwrap(), whole);
    assert_eq!(process.says(), ["loaded second", NO_KERNEL, NO_KERNEL]);

    process = process.with("STUB_CAPABILITY", "80").with("STUB_IMAGE", "third");
    assert_eq!(process.says(), [&*compiled("sm_80"), "loaded third", NO_KERNEL, NO_KERNEL]);
    assert_eq!(process.kept().len(), 2);
}
