//! From the text of a kernel to a function of the driver: compiled when first asked for, and kept on disk.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, c_char};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};
use cudarc::nvrtc::{result as compiler, sys as nvrtc};
use limpid_tensor::Result;
use smallvec::SmallVec;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::device::Cuda;
use crate::library::{self, variable};

/// The kernels of one file.
#[derive(Debug)]
pub struct Family {
    /// The file's name, `map.cu`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// What kernels include: name and text.
pub const HEADERS: [(&str, &str); 5] = [
    ("prelude.cuh", include_str!("../kernels/prelude.cuh")),
    ("columns.cuh", include_str!("../kernels/columns.cuh")),
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

    /// Compiles the file into a folder, unless it has been. Where `LIMPID_CUDA_CACHE` names that folder, devices of the architecture find the
    /// code there and need no compiler.
    ///
    /// # Errors
    /// As [`compile`](Family::compile), or the system's, about the folder.
    pub fn keep(&self, folder: &Path, architecture: &str) -> std::result::Result<(), String> {
        let path = folder.join(self.cache_name(architecture));
        if read_kept(&path).is_some() {
            return Ok(());
        }
        let cubin = self.compile(architecture, &[])?;
        keep(&path, &cubin.image).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn refused(&self, error: compiler::NvrtcError, log: &str) -> String {
        format!("{} does not compile ({:?}):\n{log}", self.name, error.0)
    }

    /// The name of the file that keeps the code: the same for the same text, headers, options and architecture.
    fn cache_name(&self, architecture: &str) -> String {
        let headers = HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
        let hash = fingerprint(headers.chain(OPTIONS).chain([self.text]));
        let stem = self.name.trim_end_matches(".cu");
        format!("{stem}-{architecture}-{hash:016x}.cubin")
    }
}

/// A hash of texts that also depends on where each ends.
fn fingerprint<'a>(texts: impl Iterator<Item = &'a str>) -> u64 {
    let mut hash = Xxh3::new();
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest()
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

/// The modules of a device that are loaded, by the name of their family.
pub(crate) type Modules = HashMap<&'static str, Module>;

/// A file of kernels that is loaded.
pub(crate) struct Module {
    handle: sys::CUmodule,
    /// Those that have been launched, by name.
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
    /// The function of this name, compiled and loaded if it has not been. The thread must have bound.
    pub(crate) fn function(&self, family: &'static Family, name: &str) -> Result<Function> {
        let mut modules = self.modules.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let module = match modules.entry(family.name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                entry.insert(Module { handle: self.load(family)?, functions: HashMap::new() })
            }
        };
        if let Some(function) = module.functions.get(name) {
            return Ok(function.clone());
        }
        let handle = self.check(
            format_args!("looking for the kernel {name} of {}", family.name),
            // SAFETY: modules are never unloaded.
            unsafe { result::module::get_function(module.handle, c_string(name)) },
        )?;
        let parameters =
            self.check(format_args!("asking for the parameters of {name}"), parameters(handle))?;
        self.check(format_args!("asking for shared memory for {name}"), self.allow_shared(handle))?;
        let function = Function { handle, parameters };
        module.functions.insert(name.to_string(), function.clone());
        Ok(function)
    }

    /// Lets launches of a function ask for all the shared memory that its arrays of fixed size leave of a block's. Unasked, a
    /// block has 48 KiB for both.
    fn allow_shared(&self, function: sys::CUfunction) -> std::result::Result<(), DriverError> {
        let fixed = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded.
        unsafe {
            let fixed = result::function::get_function_attribute(function, fixed)?;
            let left = self.properties().shared_per_block as i32 - fixed;
            result::function::set_function_attribute(function, most, left)
        }
    }

    fn load(&self, family: &Family) -> Result<sys::CUmodule> {
        let _in_use = self.bind()?;
        let architecture = self.architecture();
        let kept = cache_folder().map(|folder| folder.join(family.cache_name(&architecture)));
        if let Some(image) = kept.as_deref().and_then(read_kept)
            && let Ok(module) = load_image(&image)
        {
            return Ok(module);
        }
        let cubin = family.compile(&architecture, &[]).map_err(|message| self.error(message))?;
        let module = self.check(format_args!("loading {}", family.name), load_image(&cubin.image))?;
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
fn parameters(function: sys::CUfunction) -> std::result::Result<SmallVec<[usize; 16]>, DriverError> {
    let size_of = |index| {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded; an index beyond the last is answered with an error.
        match unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut size) } {
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => None,
            status => Some(status.result().map(|()| size)),
        }
    };
    (0..).map_while(size_of).collect()
}

/// Where compiled kernels are kept: `LIMPID_CUDA_CACHE`, else the user's cache. `None` if there is none, and for emulated
/// devices, whose compiler keeps what it makes itself.
fn cache_folder() -> Option<PathBuf> {
    if crate::emulated::is_installed() {
        return None;
    }
    variable("LIMPID_CUDA_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("limpid")))
        .or_else(|| Some(variable("HOME")?.join(".cache/limpid")))
}

/// Bytes behind an image that is kept: its length and its hash. The driver is given no length, and trusts what it reads.
const SEAL: usize = 16;

fn seal(image: &[u8]) -> [u8; SEAL] {
    let words = [image.len() as u64, xxh3_64(image)].map(u64::to_le_bytes);
    bytemuck::cast(words)
}

/// Writes beside the path and renames, so that nobody ever reads half a file.
fn keep(path: &Path, image: &[u8]) -> io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    // Other processes and other threads may write the same.
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_extension(format!("{}.{number}.tmp", std::process::id()));
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(image)?;
        file.write_all(&seal(image))?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside)))
}

/// An image that was kept, if it is whole.
fn read_kept(path: &Path) -> Option<Vec<u8>> {
    let mut image = fs::read(path).ok()?;
    let found = image.split_off(image.len().checked_sub(SEAL)?);
    (found == seal(&image)).then_some(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_known_by_text_options_and_architecture() {
        let name = |name, text, architecture| Family { name, text }.cache_name(architecture);
        let first = name("map.cu", "text", "sm_90a");
        assert_eq!(first, name("map.cu", "text", "sm_90a"));
        for other in [
            name("map.cu", "texts", "sm_90a"),
            name("map.cu", "text", "sm_90"),
            name("copy.cu", "text", "sm_90a"),
        ] {
            assert_ne!(other, first);
        }
        let of = |texts: &[&'static str]| fingerprint(texts.iter().copied());
        let [standard, contraction, device] = OPTIONS;
        assert_ne!(of(&OPTIONS), of(&[standard, "--fmad=true", device]), "an option that is another");
        assert_ne!(of(&OPTIONS), of(&[standard, contraction]), "an option that is gone");
        assert_ne!(of(&["--fmad=false", "x"]), of(&["--fmad=falsex", ""]), "where one ends is part of it");
    }

    #[test]
    fn an_image_that_is_not_whole_is_not_read() {
        let folder = std::env::temp_dir().join(format!("limpid-kept-{}", std::process::id()));
        let path = folder.join("map-sm_90a-0123.cubin");
        let image: Vec<u8> = (0..200u8).collect();
        assert_eq!(read_kept(&path), None, "nothing was kept yet");
        keep(&path, &image).unwrap();
        assert_eq!(read_kept(&path).as_ref(), Some(&image));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");

        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(read_kept(&path), None, "cut after {length} bytes");
            let mut flipped = whole.clone();
            flipped[length] ^= 1 << (length % 8);
            fs::write(&path, flipped).unwrap();
            assert_eq!(read_kept(&path), None, "a bit of byte {length} is another");
        }

        keep(&path, &image).unwrap();
        assert_eq!(read_kept(&path), Some(image), "what is compiled again takes its place");
        fs::remove_dir_all(&folder).unwrap();
    }
}
