//! From the text of a kernel to a function of the driver: compiled when first asked for, and kept on disk.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use cudarc::nvrtc::{result as compiler, sys as nvrtc};
use limpid_tensor::Result;
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

use crate::device::Cuda;
use crate::library;

/// The kernels of one file.
#[derive(Debug)]
pub struct Family {
    /// The file's name, `map.cu`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// What kernels include: name and text.
pub const HEADERS: [(&str, &str); 4] = [
    ("prelude.cuh", include_str!("../kernels/prelude.cuh")),
    ("ptx.cuh", include_str!("../kernels/ptx.cuh")),
    ("matmul.cuh", include_str!("../kernels/matmul.cuh")),
    ("matmul_stage.cuh", include_str!("../kernels/matmul_stage.cuh")),
];

/// The options that every kernel is compiled with, but for the architecture.
///
/// Multiplications and additions are not contracted, so that both are the same bits as everywhere else; `fma` is written
/// where it is meant.
pub const OPTIONS: [&str; 3] = ["--std=c++17", "--fmad=false", "-default-device"];

/// A device's code, for an architecture like `sm_90a`.
pub struct Cubin {
    /// What the driver loads.
    pub image: Vec<u8>,
    /// What the compiler said.
    pub log: String,
}

impl Family {
    /// Compiles the file, with further options.
    ///
    /// # Errors
    /// The compiler's message, or why there is no compiler.
    pub fn compile(&self, architecture: &str, options: &[&str]) -> std::result::Result<Cubin, String> {
        library::compiler()?;
        let text = c_string(self.text);
        let name = c_string(self.name);
        let headers = HEADERS.map(|(_, text)| c_string(text));
        let header_names = HEADERS.map(|(name, _)| c_string(name));
        let architecture = format!("--gpu-architecture={architecture}");
        let options: Vec<&str> = OPTIONS.iter().chain(options).copied().chain([&*architecture]).collect();
        let program = Program::create(&text, &name, &headers, &header_names)?;
        // SAFETY: the program is alive.
        let compiled = unsafe { compiler::compile_program(program.0, &options) };
        let log = program.log();
        match compiled {
            Ok(()) => Ok(Cubin { image: program.image().map_err(|error| self.refused(error, &log))?, log }),
            Err(error) => Err(self.refused(error, &log)),
        }
    }

    fn refused(&self, error: compiler::NvrtcError, log: &str) -> String {
        format!("{} does not compile ({:?}):\n{log}", self.name, error.0)
    }

    /// The name of the file that keeps the code: the same for the same text, headers, options and architecture.
    fn cache_name(&self, architecture: &str) -> String {
        let mut hash = Xxh3::new();
        let headers = HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
        for part in headers.chain(OPTIONS).chain([self.text]) {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let stem = self.name.trim_end_matches(".cu");
        format!("{stem}-{architecture}-{:016x}.cubin", hash.digest())
    }
}

/// A program of the compiler.
struct Program(nvrtc::nvrtcProgram);

impl Program {
    fn create(
        text: &CStr,
        name: &CStr,
        headers: &[CString],
        header_names: &[CString],
    ) -> std::result::Result<Program, String> {
        let pointers =
            |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<*const c_char>>();
        let (headers, header_names) = (pointers(headers), pointers(header_names));
        let mut program = ptr::null_mut();
        // SAFETY: all texts end in a zero byte and outlive the call, which copies them.
        let status = unsafe {
            nvrtc::nvrtcCreateProgram(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as i32,
                headers.as_ptr(),
                header_names.as_ptr(),
            )
        };
        status.result().map_err(|error| format!("NVRTC does not take a program: {:?}", error.0))?;
        Ok(Program(program))
    }

    fn log(&self) -> String {
        // SAFETY: the program is alive.
        let bytes = unsafe { compiler::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = bytes.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
        String::from_utf8_lossy(&bytes).trim_end().to_string()
    }

    fn image(&self) -> std::result::Result<Vec<u8>, compiler::NvrtcError> {
        let mut bytes = 0;
        // SAFETY: the program is alive and compiled.
        unsafe { nvrtc::nvrtcGetCUBINSize(self.0, &mut bytes) }.result()?;
        let mut image = vec![0u8; bytes];
        // SAFETY: the image has as many bytes as were announced.
        unsafe { nvrtc::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()) }.result()?;
        Ok(image)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is alive and not used again. There is nothing to do if it cannot be destroyed.
        let _ = unsafe { compiler::destroy_program(self.0) };
    }
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("kernels are text without zero bytes")
}

/// The modules of a device that are loaded, and their functions.
#[derive(Default)]
pub(crate) struct Modules {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<String, Function>,
}

/// A kernel that can be launched.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) handle: sys::CUfunction,
    /// The bytes of each parameter.
    pub(crate) parameters: SmallVec<[usize; 16]>,
}

impl Cuda {
    /// The function of this name, compiled and loaded if it has not been.
    pub(crate) fn function(&self, family: &'static Family, name: &str) -> Result<Function> {
        let mut modules = self.modules.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(function) = modules.functions.get(name) {
            return Ok(function.clone());
        }
        let module = match modules.modules.entry(family.name) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => *entry.insert(self.load(family)?),
        };
        let handle = self.check(
            &format!("looking for the kernel {name} of {}", family.name),
            // SAFETY: modules are never unloaded.
            unsafe { result::module::get_function(module, c_string(name)) },
        )?;
        let function = Function { handle, parameters: parameters(handle) };
        modules.functions.insert(name.to_string(), function.clone());
        Ok(function)
    }

    fn load(&self, family: &Family) -> Result<sys::CUmodule> {
        self.bind()?;
        let architecture = self.architecture();
        let kept = cache_folder().map(|folder| folder.join(family.cache_name(&architecture)));
        if let Some(image) = kept.as_ref().and_then(|path| std::fs::read(path).ok())
            && let Ok(module) = load_image(&image)
        {
            return Ok(module);
        }
        let cubin = family.compile(&architecture, &[]).map_err(|message| self.error(message))?;
        let module = self.check(&format!("loading {}", family.name), load_image(&cubin.image))?;
        if let Some(path) = kept {
            // A cache that cannot be written costs time, nothing else.
            let _ = keep(&path, &cubin.image);
        }
        Ok(module)
    }

    /// What the compiler calls this device: `sm_90a`. The architectures whose own instructions are used have an `a`.
    fn architecture(&self) -> String {
        let (major, minor) = self.properties().capability;
        let own = if (major, minor) == (9, 0) { "a" } else { "" };
        format!("sm_{major}{minor}{own}")
    }
}

fn load_image(image: &[u8]) -> std::result::Result<sys::CUmodule, DriverError> {
    // SAFETY: the image is a whole one, made by the compiler; the driver checks its header and copies it.
    unsafe { result::module::load_data(image.as_ptr().cast()) }
}

/// The sizes of a function's parameters, as the driver knows them.
fn parameters(function: sys::CUfunction) -> SmallVec<[usize; 16]> {
    let size_of = |index| {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded; an index beyond the last is answered with an error.
        let status = unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut size) };
        (status == sys::CUresult::CUDA_SUCCESS).then_some(size)
    };
    (0..).map_while(size_of).collect()
}

/// Where compiled kernels are kept: `LIMPID_CUDA_CACHE`, else the user's cache. `None` if there is none, and for emulated
/// devices, whose compiler keeps what it makes itself.
fn cache_folder() -> Option<PathBuf> {
    if crate::emulated::is_installed() {
        return None;
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("LIMPID_CUDA_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("limpid")))
        .or_else(|| Some(variable("HOME")?.join(".cache/limpid")))
}

/// Writes beside the path and renames, so that nobody ever reads half a file.
fn keep(path: &Path, image: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&beside, image)?;
    std::fs::rename(&beside, path)
}
