//! Streams.

use std::ffi::{c_int, c_uint};

use super::functions;
use crate::standin::clock::Handle;
use crate::standin::driver::Driver;
use crate::standin::pointer::Out;
use crate::standin::queue::Stream;
use crate::standin::status::{Answer, Status};

/// The flag of a stream that does not wait for the default stream.
const NON_BLOCKING: c_uint = 1;
/// Priorities, from the least to the greatest. They are kept, and decide nothing: order is the seed's.
const PRIORITIES: [c_int; 2] = [0, -5];

functions! {
    fn cuCtxGetStreamPriorityRange(driver, least: Out<c_int>, greatest: Out<c_int>) {
        driver.current()?;
        // Either may be left out.
        for (place, value) in [least, greatest].into_iter().zip(PRIORITIES) {
            if !place.is_null() {
                place.set(value)?;
            }
        }
        Ok(())
    }

    fn cuStreamCreate(driver, stream: Out<Handle>, flags: c_uint) {
        stream.set(driver.add_stream(flags, 0)?)
    }

    fn cuStreamCreateWithPriority(driver, stream: Out<Handle>, flags: c_uint, priority: c_int) {
        stream.set(driver.add_stream(flags, priority)?)
    }

    fn cuStreamGetPriority(driver, stream: Handle, priority: Out<c_int>) {
        let stream = driver.stream(stream)?;
        priority.set(driver.streams[&stream].priority)
    }

    fn cuStreamDestroy_v2(driver, stream: Handle) {
        let stream = driver.stream(stream)?;
        if driver.devices.iter().any(|device| device.default_stream == stream) {
            return Err(Status::INVALID_HANDLE);
        }
        driver.forbid_in_capture_of(stream)?;
        driver.destroy_stream(stream);
        Ok(())
    }

    fn cuStreamSynchronize(driver, stream: Handle) {
        let stream = driver.stream(stream)?;
        driver.forbid_in_capture_of(stream)?;
        driver.wait_for_stream(stream)
    }

    // While there is work, asking lets the streams go on a little, so that a loop ends.
    fn cuStreamQuery(driver, stream: Handle) {
        let stream = driver.stream(stream)?;
        driver.forbid_in_capture_of(stream)?;
        if driver.streams[&stream].queue.is_empty() {
            return driver.wait_for_stream(stream);
        }
        driver.step();
        driver.stream(stream)?;
        Err(Status::NOT_READY)
    }

    fn cuStreamWaitEvent(driver, stream: Handle, event: Handle, _flags: c_uint) {
        driver.wait_for_event(stream, event)
    }
}

impl Driver {
    fn add_stream(&mut self, flags: c_uint, priority: c_int) -> Answer<Handle> {
        let device = self.current()?;
        if flags > NON_BLOCKING {
            return Err(Status::INVALID_VALUE);
        }
        self.streams_made += 1;
        let name = format!("stream {}", self.streams_made);
        let mut stream = Stream::new(device, name, flags != NON_BLOCKING);
        stream.priority = priority.clamp(PRIORITIES[1], PRIORITIES[0]);
        let handle = self.handle();
        self.streams.insert(handle, stream);
        Ok(handle)
    }
}
