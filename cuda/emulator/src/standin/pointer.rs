//! Pointers that the host passes to functions of the driver.
//!
//! Values of these types come into being in one way: as arguments of a call through the C interface. Its caller
//! promises that a pointer is null, or good for what the function's documentation says is done with it. That promise
//! is what every `unsafe` here rests on.

use std::ffi::{CStr, c_char};
use std::slice;

use super::status::{Answer, Status};

/// Where a result goes.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    pub(super) fn set(self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the caller of the interface gives room for one value, not necessarily initialised.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Writes as many values as there are. The caller of the interface gives room for them.
    pub(super) fn set_all(self, values: &[T]) -> Answer
    where
        T: Copy,
    {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the caller of the interface gives room for all values, in memory of its own.
        unsafe { self.0.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Ok(())
    }
}

/// Where a value is, and where another goes.
#[repr(transparent)]
pub(super) struct InOut<T>(*mut T);

impl<T: Copy> InOut<T> {
    /// `None` for null.
    pub(super) fn get(&self) -> Option<T> {
        // SAFETY: the caller of the interface passes a value, or null.
        unsafe { self.0.as_ref() }.copied()
    }

    pub(super) fn out(self) -> Out<T> {
        Out(self.0)
    }
}

/// A text that ends in NUL, or null.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Text(*const c_char);

impl Text {
    /// Its bytes as text, a replacement character for each that is not UTF-8. `None` for null.
    pub(super) fn read(self) -> Option<String> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the caller of the interface passes a string that ends in NUL.
        Some(unsafe { CStr::from_ptr(self.0) }.to_string_lossy().into_owned())
    }
}

/// The first of several values, or null.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Many<T>(*const T);

impl<T: Copy> Many<T> {
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The first `count` of them. None for null.
    pub(super) fn take(self, count: usize) -> Vec<T> {
        if self.0.is_null() {
            return Vec::new();
        }
        // SAFETY: the caller of the interface passes as many values as it says.
        unsafe { slice::from_raw_parts(self.0, count) }.to_vec()
    }
}

/// The address of an argument of a kernel.
pub(super) type Argument = Many<u8>;

/// Bytes of the host's, by their address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HostBytes {
    pub address: u64,
    pub bytes: usize,
    /// Whether the device copies them on its own, at any time until the copy is waited for.
    pub is_page_locked: bool,
}

impl HostBytes {
    pub(super) fn read(self) -> Vec<u8> {
        // SAFETY: the bytes are the host's to read until the copy is over: memory that may be swapped out is read
        // before the call returns, and page-locked memory is freed after all queued work.
        unsafe { slice::from_raw_parts(self.address as *const u8, self.bytes) }.to_vec()
    }

    pub(super) fn write(self, from: &[u8]) {
        assert_eq!(from.len(), self.bytes, "a copy to the host has the size of its target");
        // SAFETY: as in `read`, and the source is the emulator's own.
        unsafe { (self.address as *mut u8).copy_from_nonoverlapping(from.as_ptr(), self.bytes) };
    }
}
