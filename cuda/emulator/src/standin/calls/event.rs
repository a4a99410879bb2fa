//! Events.

use std::ffi::c_uint;

use super::functions;
use crate::standin::clock::Handle;
use crate::standin::pointer::Out;
use crate::standin::status::Status;

/// The flag of an event that takes no time.
const DISABLE_TIMING: c_uint = 2;

functions! {
    fn cuEventCreate(driver, event: Out<Handle>, flags: c_uint) {
        let device = driver.current()?;
        event.set(driver.add_event(device, flags & DISABLE_TIMING == 0))
    }

    // Streams that wait for it have taken what they need.
    fn cuEventDestroy_v2(driver, event: Handle) {
        driver.event(event)?;
        driver.events.remove(&event).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }

    fn cuEventRecord(driver, event: Handle, stream: Handle) {
        driver.record(event, stream)
    }

    fn cuEventSynchronize(driver, event: Handle) {
        driver.synchronize_event(event)
    }

    fn cuEventQuery(driver, event: Handle) {
        driver.query_event(event)
    }

    fn cuEventElapsedTime(driver, milliseconds: Out<f32>, from: Handle, to: Handle) {
        milliseconds.set(driver.elapsed(from, to)?)
    }

    fn cuEventElapsedTime_v2(driver, milliseconds: Out<f32>, from: Handle, to: Handle) {
        milliseconds.set(driver.elapsed(from, to)?)
    }
}
