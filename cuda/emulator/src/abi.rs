//! What the two sides of the emulator share: the structs of `shim/emulate.h` and `shim/runtime.cpp`, as Rust sees them.

use std::ffi::{c_char, c_int, c_void};

/// The version of these structs, in every library.
pub(crate) const VERSION: u32 = 2;

/// The symbol that a library is known by.
pub(crate) const LIBRARY_SYMBOL: &[u8] = b"limpid_emulator_library\0";

#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Index {
    pub x: u32,
    pub y: u32,
    pub z: u32,
}

impl From<[u32; 3]> for Index {
    fn from([x, y, z]: [u32; 3]) -> Index {
        Index { x, y, z }
    }
}

impl std::fmt::Display for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "({}, {}, {})", self.x, self.y, self.z)
    }
}

/// What a thread knows of itself.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Context {
    pub thread: Index,
    pub block: Index,
    pub block_size: Index,
    pub grid_size: Index,
    pub lane: u32,
    pub number: u32,
    pub ticket: u64,
    pub execution: *mut c_void,
    pub yielder: *const c_void,
    pub stack: usize,
    pub stack_size: usize,
}

/// A shared array of a kernel, in the library's static memory.
#[repr(C)]
pub(crate) struct SharedArray {
    pub name: *const c_char,
    pub size: usize,
    pub ticket: u64,
    pub address: *mut c_void,
}

/// Done by the last of the threads that meet, for all of them.
pub(crate) type Collective = unsafe extern "C" fn(operands: *mut *mut c_void, place: *const c_void);
/// An asynchronous instruction, done when it is waited for.
pub(crate) type Deferred = unsafe extern "C" fn(operands: *mut c_void);

/// How an access uses memory; `Access` of the shim, where 0 is a read.
pub(crate) const WRITE: c_int = 1;
pub(crate) const ATOMIC: c_int = 2;
pub(crate) const READ_UNALIGNED: c_int = 3;
pub(crate) const WRITE_UNALIGNED: c_int = 4;
/// By a product of four warps.
pub(crate) const READ_OPERAND: c_int = 5;

/// What a product of a group of four warps uses while it is under way.
#[repr(C)]
pub(crate) struct Uses {
    pub sums: *const *const f32,
    pub sum_bytes: usize,
    pub chunks: *const u32,
    pub chunk_count: usize,
}

/// Fences of the shim: for other blocks, for products that read what was written, and before the products of matrices.
pub(crate) const FENCE_DEVICE: u32 = 1;
pub(crate) const FENCE_PROXY: u32 = 2;
pub(crate) const FENCE_PRODUCT: u32 = 3;
/// `Issue` of the shim: products are under way; a fence came before.
pub(crate) const IN_FLIGHT: c_int = 1;
pub(crate) const FENCED: c_int = 2;

/// The table of what a library needs.
#[repr(C)]
pub(crate) struct Runtime {
    pub barrier: unsafe extern "C" fn(*mut Context, vote: c_int, place: usize) -> c_int,
    pub meet:
        unsafe extern "C" fn(*mut Context, group: u32, mask: u32, *mut c_void, Collective, place: usize),
    pub sync_warp: unsafe extern "C" fn(*mut Context, mask: u32, place: usize),
    pub missing_lane: unsafe extern "C" fn(*mut Context, reader: u32, lane: u32, place: usize),
    pub shared: unsafe extern "C" fn(*mut Context, *mut SharedArray, place: usize) -> *mut c_void,
    pub dynamic_shared: unsafe extern "C" fn(*mut Context) -> *mut c_void,
    pub shared_offset: unsafe extern "C" fn(*mut Context, address: usize) -> u32,
    pub shared_pointer: unsafe extern "C" fn(*mut Context, offset: u32) -> *mut c_void,
    pub access: unsafe extern "C" fn(*mut Context, address: usize, size: usize, access: c_int, place: usize),
    pub copy: unsafe extern "C" fn(
        *mut Context,
        Deferred,
        *const c_void,
        size: usize,
        to: usize,
        bytes: usize,
        place: usize,
    ),
    pub product:
        unsafe extern "C" fn(*mut Context, Deferred, *const c_void, size: usize, *const Uses, place: usize),
    pub commit: unsafe extern "C" fn(*mut Context, group: u32),
    pub wait: unsafe extern "C" fn(*mut Context, group: u32, pending: u32),
    pub fence: unsafe extern "C" fn(*mut Context, fence: u32),
    pub issue: unsafe extern "C" fn(*mut Context) -> c_int,
    pub unordered: unsafe extern "C" fn(*mut Context, message: *const c_char, place: usize),
}

/// A kernel in the list of all kernels of a library.
#[repr(C)]
pub(crate) struct Entry {
    pub name: *const c_char,
    pub threads: u32,
    pub parameters: u32,
    pub sizes: *const usize,
    pub call: unsafe extern "C" fn(arguments: *mut *mut c_void),
    pub next: *const Entry,
}

/// What a library tells of itself.
#[repr(C)]
pub(crate) struct Library {
    pub version: u32,
    pub checked: u32,
    pub current: *mut *mut Context,
    pub runtime: *mut *const Runtime,
    pub entries: *const *const Entry,
    pub start: *const c_char,
    pub end: *const c_char,
}
