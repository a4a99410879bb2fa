//! Finding the driver and the compiler: libraries of the system, opened when they are first asked for.
//!
//! `cudarc` panics where a library or one of its functions is missing. So nothing here or elsewhere calls it before
//! [`driver`] (or [`compiler`]) has answered that all of them are there.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use cudarc::{driver, nvrtc};

/// Every function of the driver that this crate calls.
const DRIVER_FUNCTIONS: [&str; 45] = [
    "cuCtxEnablePeerAccess",
    "cuCtxSetCurrent",
    "cuDeviceCanAccessPeer",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphGetNodes",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyPeerAsync",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// Every function of the compiler that this crate calls.
const COMPILER_FUNCTIONS: [&str; 8] = [
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcVersion",
];

/// The driver understands what CUDA 13 compilers write.
const OLDEST_DRIVER: i32 = 13000;

/// What has been opened. What was not found is looked for again the next time: an emulator may have taken its place.
pub(crate) struct Opened {
    /// The driver's version, once it is initialised.
    driver: Option<i32>,
    /// The compiler's version.
    compiler: Option<(i32, i32)>,
    /// Whether `cudarc` has opened either. It keeps what it found, so nothing can take its place any more.
    is_settled: bool,
}

impl Opened {
    /// What there is, held still until this is dropped.
    pub(crate) fn lock() -> MutexGuard<'static, Opened> {
        static OPENED: Mutex<Opened> = Mutex::new(Opened { driver: None, compiler: None, is_settled: false });
        OPENED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether an emulator would come too late.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled
    }

    fn open_driver(&mut self) -> Result<i32, String> {
        // SAFETY: opening the driver runs its initialisers, which do nothing but set it up.
        if !unsafe { driver::sys::is_culib_present() } {
            return Err(
                "no CUDA driver was found (libcuda.so.1 is not where the system looks for libraries)".into(),
            );
        }
        self.is_settled = true;
        // SAFETY: the library is there.
        let library = unsafe { driver::sys::culib() };
        let version = driver_version(library)?;
        if version < OLDEST_DRIVER {
            return Err(format!(
                "the CUDA driver is for CUDA {}, expected {} or later",
                Version::of(version),
                Version::of(OLDEST_DRIVER)
            ));
        }
        if let Some(name) = missing(library, &DRIVER_FUNCTIONS) {
            return Err(format!(
                "the CUDA driver, for CUDA {}, has no function {name}",
                Version::of(version)
            ));
        }
        driver::result::init().map_err(|error| match error.0 {
            driver::sys::CUresult::CUDA_ERROR_STUB_LIBRARY => STUB.into(),
            _ => format!("the CUDA driver does not start: {}", describe(error)),
        })?;
        Ok(version)
    }

    fn open_compiler(&mut self) -> Result<(i32, i32), String> {
        // SAFETY: opening the compiler runs its initialisers, which do nothing but set it up.
        let present = || unsafe { nvrtc::sys::is_culib_present() };
        if !crate::emulated::is_installed()
            && let Some(folder) = variable("LIMPID_NVRTC")
            && !preload(&folder)
        {
            return Err(format!(
                "LIMPID_NVRTC: expected a folder with libnvrtc.so.13 and libnvrtc-builtins.so.13 that can be opened, \
                 found {}",
                folder.display()
            ));
        }
        let is_present = present() || compiler_folders().iter().any(|folder| preload(folder)) && present();
        if !is_present {
            return Err("no NVRTC was found (libnvrtc.so.13): a CUDA 13 toolkit has it, and so has the Python package \
                        nvidia-cuda-nvrtc; the variable LIMPID_NVRTC may name the folder it is in"
                .into());
        }
        self.is_settled = true;
        // SAFETY: the library is there.
        let library = unsafe { nvrtc::sys::culib() };
        if let Some(name) = missing(library, &COMPILER_FUNCTIONS) {
            return Err(format!("NVRTC has no function {name}"));
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to i32s.
        let status = unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
        if status != nvrtc::sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(format!("NVRTC does not say its version: error {}", status as u32));
        }
        if major != 13 {
            return Err(format!("NVRTC is of CUDA {major}.{minor}, expected 13"));
        }
        Ok((major, minor))
    }
}

/// The driver's version (13000 is 13.0), once it is open and initialised; else the sentence that says what is missing.
pub(crate) fn driver() -> Result<i32, String> {
    let mut opened = Opened::lock();
    let version = opened.driver.map_or_else(|| opened.open_driver(), Ok)?;
    opened.driver = Some(version);
    Ok(version)
}

/// The run-time compiler, NVRTC: from the folder that `LIMPID_NVRTC` names, else from where the system looks for libraries,
/// else from the places where a toolkit or a Python package puts it. Its version as (major, minor).
pub(crate) fn compiler() -> Result<(i32, i32), String> {
    let mut opened = Opened::lock();
    let version = opened.compiler.map_or_else(|| opened.open_compiler(), Ok)?;
    opened.compiler = Some(version);
    Ok(version)
}

/// The first of these functions that a library does not have.
fn missing<'a>(library: &libloading::Library, functions: &[&'a str]) -> Option<&'a str> {
    // SAFETY: the symbol is looked for, not used.
    let is_missing = |name: &&str| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err();
    functions.iter().copied().find(is_missing)
}

/// What every function of a toolkit's library without a driver answers, in a sentence.
const STUB: &str = "the libcuda.so.1 that the system finds is a toolkit's stub, for linking only; its folder must not come \
                    before the driver's where the system looks for libraries (LD_LIBRARY_PATH)";

/// Asked first of all: a driver that is too old lacks functions, and its age says more than their names.
fn driver_version(library: &libloading::Library) -> Result<i32, String> {
    if let Some(name) = missing(library, &["cuDriverGetVersion"]) {
        return Err(format!("the CUDA driver has no function {name}"));
    }
    let mut version = 0;
    // SAFETY: the pointer is to an i32, and the function may be used before cuInit.
    let status = unsafe { driver::sys::cuDriverGetVersion(&mut version) };
    match status {
        driver::sys::CUresult::CUDA_SUCCESS => Ok(version),
        driver::sys::CUresult::CUDA_ERROR_STUB_LIBRARY => Err(STUB.into()),
        _ => Err(format!("the CUDA driver does not say its version: error {}", status as u32)),
    }
}

/// A version as the driver counts: 1000·major + 10·minor.
pub(crate) struct Version {
    major: i32,
    minor: i32,
}

impl Version {
    pub(crate) fn of(number: i32) -> Version {
        Version { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// An error of the driver, which must be open, in its own words: `out of memory (CUDA_ERROR_OUT_OF_MEMORY)`.
pub(crate) fn describe(error: driver::result::DriverError) -> String {
    let words = |text: Result<&std::ffi::CStr, _>| text.ok().map(|text| text.to_string_lossy().into_owned());
    match (words(error.error_string()), words(error.error_name())) {
        (Some(text), Some(name)) => format!("{text} ({name})"),
        _ => format!("error {}", error.0 as u32),
    }
}

/// Opens the compiler of a folder by its path, after which it is found by its name too. It needs its second library.
fn preload(folder: &Path) -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: as in [`Opened::open_compiler`]; the handles are forgotten, so the libraries stay open.
    let open =
        |path: PathBuf| unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map(std::mem::forget);
    let Ok(files) = std::fs::read_dir(folder) else { return false };
    let names: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    let with_prefix = |prefix: &str| {
        let fits =
            |path: &&PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
        names.iter().find(fits).cloned()
    };
    let (Some(compiler), Some(builtins)) =
        (with_prefix("libnvrtc.so.13"), with_prefix("libnvrtc-builtins.so.13"))
    else {
        return false;
    };
    open(compiler).is_ok() && open(builtins).is_ok()
}

/// The path that a variable of the environment names.
pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where the compiler may be: toolkits, and Python environments.
fn compiler_folders() -> Vec<PathBuf> {
    let toolkits = [variable("CUDA_PATH"), variable("CUDA_HOME"), Some("/usr/local/cuda".into())];
    let mut folders: Vec<PathBuf> =
        toolkits.into_iter().flatten().map(|toolkit| toolkit.join("lib64")).collect();
    let pythons =
        [variable("VIRTUAL_ENV"), variable("CONDA_PREFIX"), Some("/usr/local".into()), Some("/usr".into())];
    for library in pythons.into_iter().flatten().map(|python| python.join("lib")) {
        let Ok(versions) = std::fs::read_dir(&library) else { continue };
        for version in versions.filter_map(Result::ok) {
            if !version.file_name().to_string_lossy().starts_with("python3") {
                continue;
            }
            for packages in ["site-packages", "dist-packages"] {
                folders.push(version.path().join(packages).join("nvidia/cu13/lib"));
            }
        }
    }
    folders
}
