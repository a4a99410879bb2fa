//! A stand-in for the CUDA driver and its run-time compiler, so that a program that uses them runs without a card.
//!
//! [`install`] puts two libraries in the way of whoever looks for `libcuda.so` and `libnvrtc.so` in this process.
//! Kernels are compiled by g++ and run by the emulator. The rest is what a driver does with them: contexts, memory,
//! streams, events, graphs. It keeps the rules of a card and is stricter where a card is lucky:
//!
//! - Work is queued and done as late as the rules allow, when somebody waits; streams go on in an order that a seed
//!   decides. What only happens to work shows.
//! - Two operations that use one allocation, one of which writes, must be ordered: by their stream, by events, or by the
//!   host waiting. If not, that is a [`Mistake::Race`], whatever order they ran in this time. Operations of the host
//!   count their exact bytes. A kernel built with checks counts the whole of each allocation that it used; one built
//!   without counts as reading what its arguments point to.
//! - After a kernel's illegal access, every call fails until the context is gone.
//!
//! There are only the functions that a framework needs; the others are missing from the libraries.

mod block;
mod calls;
mod capture;
mod clock;
mod compiler;
mod device;
mod driver;
mod event;
mod execute;
mod history;
mod image;
mod launch;
mod mistake;
mod pointer;
mod queue;
mod random;
mod status;
mod trampoline;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::mem;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};

use driver::Driver;
pub use launch::Launched;
pub use mistake::Mistake;

use crate::{CompileError, Warp};

/// What is stood in for, and how strictly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// How many devices there are.
    pub devices: usize,
    /// The bytes of memory of each.
    pub memory: usize,
    /// Whether kernels are compiled with checks.
    pub check: bool,
    /// What decides the order of streams, blocks and threads; 0: they go in their order.
    pub seed: u64,
    /// The driver's version: 1000·major + 10·minor.
    pub driver_version: i32,
    /// The folder that compiled kernels are kept in.
    pub cache: PathBuf,
}

impl Default for Config {
    /// One device with 1 GiB, no checks, seed 1, version 13.0, kernels kept in the user's folder for caches.
    fn default() -> Config {
        Config {
            devices: 1,
            memory: 1 << 30,
            check: false,
            seed: 1,
            driver_version: 13_000,
            cache: cache_folder().join("limpid-emulator"),
        }
    }
}

/// The user's folder for caches. Libraries are loaded from it, so it must not be one that others write to.
fn cache_folder() -> PathBuf {
    let folder = |name| env::var_os(name).filter(|folder: &OsString| !folder.is_empty()).map(PathBuf::from);
    let home = || folder("HOME").map(|home| home.join(".cache"));
    folder("XDG_CACHE_HOME").or_else(home).unwrap_or_else(env::temp_dir)
}

/// Why there is no stand-in.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is one already, with another configuration.
    #[error("a stand-in with another configuration is installed; there can be one in a process")]
    Installed,
    /// The libraries could not be built.
    #[error("the stand-in's libraries: {0}")]
    Build(#[from] CompileError),
    /// A library could not be opened.
    #[error("{path}: expected a library that can be opened, found: {reason}", path = path.display())]
    Open {
        /// The library.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A program that looks for the library finds another one, which was opened before.
    #[error(
        "{name} is open in this process already: the stand-in must be installed before anything looks for it"
    )]
    AnotherLibrary {
        /// The library's name.
        name: String,
    },
}

/// The stand-in of this process.
pub struct StandIn {
    config: Config,
    driver: Mutex<Driver>,
}

static INSTALLED: OnceLock<StandIn> = OnceLock::new();

/// The stand-in, once there is one.
fn installed() -> Option<&'static StandIn> {
    INSTALLED.get()
}

/// Makes this process find the stand-in when it looks for the driver and its compiler. Must come before anything does. There
/// is one stand-in in a process: a second call with the same configuration returns it.
///
/// # Errors
/// There is one with another configuration, or no g++, or the real driver is open already.
pub fn install(config: Config) -> Result<&'static StandIn, InstallError> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(stand_in) = installed() {
        return if stand_in.config == config { Ok(stand_in) } else { Err(InstallError::Installed) };
    }
    trampoline::open(trampoline::DRIVER, &calls::all(), &config.cache)?;
    trampoline::open(trampoline::COMPILER, &compiler::all(), &config.cache)?;
    let driver = Mutex::new(Driver::new(config.clone()));
    Ok(INSTALLED.get_or_init(|| StandIn { config, driver }))
}

impl StandIn {
    fn lock(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// All mistakes so far, each once, in the order of discovery. Kernels tell of theirs if they are compiled with checks.
    /// Work that is queued has not shown its own yet.
    pub fn findings(&self) -> Vec<Mistake> {
        self.lock().mistakes.clone()
    }

    /// The same, and forgets them.
    pub fn take_findings(&self) -> Vec<Mistake> {
        mem::take(&mut self.lock().mistakes)
    }

    /// How often each function was called.
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.lock().calls.clone()
    }

    /// Counts calls from 0 again.
    pub fn reset_calls(&self) {
        self.lock().calls.clear();
    }

    /// Begins the order of streams, blocks and threads anew; 0: they go in their order.
    pub fn set_seed(&self, seed: u64) {
        self.lock().random = random::Random::new(seed);
    }

    /// Whether kernels that are compiled from now on are compiled with checks.
    pub fn set_check(&self, check: bool) {
        self.lock().config.check = check;
    }

    /// Changes the bytes of memory of each device. What is allocated stays, even if it is more.
    pub fn set_memory(&self, bytes: usize) {
        self.lock().devices.iter_mut().for_each(|device| device.limit = bytes);
    }

    /// Makes the next call of a function do nothing and answer an error, by its number in the driver's or the compiler's
    /// list.
    ///
    /// # Panics
    /// If there is no function of that name.
    pub fn fail_next(&self, name: &str, code: i32) {
        let functions = calls::all().into_iter().chain(compiler::all());
        assert!({ functions }.any(|function| function.name == name), "the stand-in has no function {name}");
        self.lock().failures.insert(name.to_string(), code);
    }

    /// Whether launches of kernels that were compiled with checks count their memory traffic, for
    /// [`observe`](StandIn::observe) to see.
    pub fn count_traffic(&self, count: bool) {
        self.lock().counts_traffic = count;
    }

    /// Which warp of each launch writes down its steps, for [`observe`](StandIn::observe) to see.
    pub fn watch(&self, warp: Option<Warp>) {
        self.lock().watched = warp;
    }

    /// Has a function told of every launch, after it is done. The function must not call the driver or the stand-in,
    /// which are waiting for it.
    pub fn observe(&self, observer: impl Fn(&Launched) + Send + 'static) {
        self.lock().observers.push(Box::new(observer));
    }

    /// Tells no function of launches any more.
    pub fn stop_observing(&self) {
        self.lock().observers.clear();
    }

    /// Every allocation that nobody has freed, in words.
    pub fn allocations(&self) -> Vec<String> {
        self.lock().blocks.names()
    }
}
