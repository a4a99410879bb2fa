//! Starting, and the words for errors.

use std::ffi::{c_char, c_int, c_uint};

use super::functions;
use crate::standin::pointer::Out;
use crate::standin::status::Status;

functions! {
    fn cuInit(driver, flags: c_uint) {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        driver.is_initialised = true;
        Ok(())
    }

    fn cuDriverGetVersion(driver, version: Out<c_int>) {
        version.set(driver.config.driver_version)
    }

    fn cuGetErrorName(_driver, number: c_int, name: Out<*const c_char>) {
        name.set(Status::name(number).ok_or(Status::INVALID_VALUE)?.as_ptr())
    }

    fn cuGetErrorString(_driver, number: c_int, words: Out<*const c_char>) {
        words.set(Status::words(number).ok_or(Status::INVALID_VALUE)?.as_ptr())
    }
}
