//! A compiled file of kernels, loaded.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::{Arc, LazyLock, Mutex, Weak};

use crate::abi;
use crate::report::Place;

/// Why a library cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The system cannot load it, or it is not one of the emulator's.
    #[error("{path}: expected a library made by this emulator, found: {reason}", path = path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What the system said, or what is wrong with it.
        reason: String,
    },
}

/// A loaded library of kernels.
pub struct Program {
    pub(crate) path: PathBuf,
    kernels: Vec<Entry>,
    /// The library's struct. Valid as long as `_library`; its targets are touched under `running` alone.
    pub(crate) descriptor: *const abi::Library,
    /// Held during a launch: a library has one current thread.
    pub(crate) running: Mutex<()>,
    /// Places that were looked up before.
    pub(crate) places: Mutex<HashMap<usize, Place>>,
    _library: libloading::Library,
}

// SAFETY: what the pointers lead to is constant once the library is loaded, but for the two variables that `descriptor`
// names, which are touched by the thread that holds `running`.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

/// The programs that are loaded, by the address of their descriptor.
static OPEN: LazyLock<Mutex<HashMap<usize, Weak<Program>>>> = LazyLock::new(Mutex::default);

/// A kernel as the library lists it.
struct Entry {
    name: String,
    threads: u32,
    sizes: Vec<usize>,
    call: unsafe extern "C" fn(*mut *mut std::ffi::c_void),
}

/// One kernel of a program.
#[derive(Clone)]
pub struct Kernel {
    pub(crate) program: Arc<Program>,
    index: usize,
}

impl Program {
    /// Loads a library that [`compile`](crate::compile) made.
    ///
    /// # Errors
    /// The system cannot load it, or it was made by something else.
    pub fn open(library: &Path) -> Result<Arc<Program>, LoadError> {
        let error = |reason: String| LoadError::Library { path: library.to_path_buf(), reason };
        // SAFETY: the library's initialisation only links its list of kernels.
        let loaded = unsafe { libloading::Library::new(library) }.map_err(|e| error(e.to_string()))?;
        // SAFETY: a library with this symbol was made from runtime.cpp, which gives it this type; the version, its
        // first field, says whether from this one.
        let descriptor: *const abi::Library =
            *unsafe { loaded.get(abi::LIBRARY_SYMBOL) }.map_err(|e| error(e.to_string()))?;
        // SAFETY: the symbol's address is that of the struct.
        let version = unsafe { (*descriptor).version };
        if version != abi::VERSION {
            return Err(error(format!("version {version} of the library's table, not {}", abi::VERSION)));
        }
        // The system loads a file once, however often it is opened: so there is one program, with one lock.
        let mut open = OPEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(program) = open.get(&(descriptor as usize)).and_then(Weak::upgrade) {
            return Ok(program);
        }
        // SAFETY: the version is this one, so the list is as abi.rs says.
        let mut kernels = unsafe { read_entries(descriptor) };
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        let program = Arc::new(Program {
            path: library.to_path_buf(),
            kernels,
            descriptor,
            running: Mutex::new(()),
            places: Mutex::default(),
            _library: loaded,
        });
        open.insert(descriptor as usize, Arc::downgrade(&program));
        Ok(program)
    }

    /// The kernel of that name.
    pub fn kernel(self: &Arc<Self>, name: &str) -> Option<Kernel> {
        let index = self.kernels.binary_search_by(|kernel| kernel.name.as_str().cmp(name)).ok()?;
        Some(Kernel { program: self.clone(), index })
    }

    /// The names of all kernels, in alphabetical order.
    pub fn kernel_names(&self) -> Vec<String> {
        self.kernels.iter().map(|kernel| kernel.name.clone()).collect()
    }

    /// Whether the library tells of its loads and stores.
    pub fn is_checked(&self) -> bool {
        // SAFETY: `descriptor` is valid as long as the library is loaded.
        unsafe { (*self.descriptor).checked != 0 }
    }

    /// The addresses that the library itself takes up.
    pub(crate) fn image(&self) -> Range<usize> {
        // SAFETY: as in `is_checked`.
        unsafe { (*self.descriptor).start as usize..(*self.descriptor).end as usize }
    }
}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.entry().name
    }

    /// The size of each parameter in bytes.
    pub fn parameter_sizes(&self) -> &[usize] {
        &self.entry().sizes
    }

    /// The most threads that a block may have.
    pub fn most_threads(&self) -> u32 {
        self.entry().threads
    }

    pub(crate) fn call(&self) -> unsafe extern "C" fn(*mut *mut std::ffi::c_void) {
        self.entry().call
    }

    fn entry(&self) -> &Entry {
        &self.program.kernels[self.index]
    }
}

/// # Safety
/// `descriptor` is that of a loaded library of this version.
unsafe fn read_entries(descriptor: *const abi::Library) -> Vec<Entry> {
    let mut kernels = Vec::new();
    // SAFETY: the list is made of static structs, ends in null, and its strings and sizes are static too.
    unsafe {
        let mut next = *(*descriptor).entries;
        while let Some(entry) = next.as_ref() {
            kernels.push(Entry {
                name: CStr::from_ptr(entry.name).to_string_lossy().into_owned(),
                threads: entry.threads,
                sizes: slice::from_raw_parts(entry.sizes, entry.parameters as usize).to_vec(),
                call: entry.call,
            });
            next = entry.next;
        }
    }
    kernels
}
