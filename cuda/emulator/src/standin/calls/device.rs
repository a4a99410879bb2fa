//! Devices and their contexts.

use std::ffi::{c_char, c_int, c_uint};

use super::functions;
use crate::standin::clock::Handle;
use crate::standin::device::Device;
use crate::standin::driver::Driver;
use crate::standin::pointer::Out;
use crate::standin::status::Status;

/// What a device is called.
const NAME: &[u8] = b"emulator\0";

functions! {
    fn cuDeviceGetCount(driver, count: Out<c_int>) {
        if !driver.is_initialised {
            return Err(Status::NOT_INITIALIZED);
        }
        count.set(driver.devices.len() as c_int)
    }

    fn cuDeviceGet(driver, device: Out<c_int>, ordinal: c_int) {
        driver.device(ordinal)?;
        device.set(ordinal)
    }

    fn cuDeviceGetName(driver, name: Out<c_char>, room: c_int, device: c_int) {
        driver.device(device)?;
        if room < 1 {
            return Err(Status::INVALID_VALUE);
        }
        let mut bytes: Vec<c_char> = NAME.iter().take(room as usize).map(|&byte| byte as c_char).collect();
        if let Some(last) = bytes.last_mut() {
            *last = 0;
        }
        name.set_all(&bytes)
    }

    fn cuDeviceGetUuid_v2(driver, identity: Out<[u8; 16]>, device: c_int) {
        let device = driver.device(device)?;
        let mut bytes = *b"limpid emulator\0";
        bytes[15] = device as u8;
        identity.set(bytes)
    }

    fn cuDeviceGetAttribute(driver, value: Out<c_int>, attribute: c_int, device: c_int) {
        driver.device(device)?;
        value.set(Device::attribute(attribute)?)
    }

    fn cuDeviceTotalMem_v2(driver, bytes: Out<usize>, device: c_int) {
        let device = driver.device(device)?;
        bytes.set(driver.devices[device].limit)
    }

    // Copies between devices work, but a kernel reaches only its own device's memory.
    fn cuDeviceCanAccessPeer(driver, can: Out<c_int>, device: c_int, peer: c_int) {
        driver.device(device)?;
        driver.device(peer)?;
        can.set(0)
    }

    fn cuCtxEnablePeerAccess(driver, peer: Handle, _flags: c_uint) {
        driver.current()?;
        driver.device_of_context(peer)?;
        Err(Status::PEER_ACCESS_UNSUPPORTED)
    }

    fn cuDeviceGetDefaultMemPool(driver, pool: Out<Handle>, device: c_int) {
        let device = driver.device(device)?;
        pool.set(Driver::context(device))
    }

    // The pool keeps no freed memory, so there is nothing to set.
    fn cuMemPoolSetAttribute(driver, pool: Handle, _attribute: c_int, value: Out<u64>) {
        driver.device_of_context(pool)?;
        if value.is_null() { Err(Status::INVALID_VALUE) } else { Ok(()) }
    }

    fn cuDevicePrimaryCtxRetain(driver, context: Out<Handle>, device: c_int) {
        let device = driver.device(device)?;
        driver.devices[device].retained += 1;
        context.set(Driver::context(device))
    }

    fn cuDevicePrimaryCtxRelease_v2(driver, device: c_int) {
        let device = driver.device(device)?;
        let retained = driver.devices[device].retained;
        driver.devices[device].retained = retained.checked_sub(1).ok_or(Status::INVALID_CONTEXT)?;
        if retained == 1 {
            driver.destroy_context(device);
        }
        Ok(())
    }

    fn cuCtxSetCurrent(driver, context: Handle) {
        driver.set_current_context(context)
    }

    fn cuCtxGetCurrent(driver, context: Out<Handle>) {
        if !driver.is_initialised {
            return Err(Status::NOT_INITIALIZED);
        }
        context.set(Driver::current_context())
    }

    fn cuCtxGetDevice(driver, device: Out<c_int>) {
        let current = driver.device_of_context(Driver::current_context())?;
        device.set(current as c_int)
    }

    // The flags say how a thread waits, which makes no difference here.
    fn cuCtxSetFlags(driver, _flags: c_uint) {
        driver.current().map(|_| ())
    }

    fn cuCtxSynchronize(driver) {
        let device = driver.current()?;
        driver.forbid_in_capture()?;
        driver.wait_for_device(device)
    }
}
