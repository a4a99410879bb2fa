//! Memory, and copies to and from it.

use std::ffi::c_uint;
use std::sync::Arc;

use super::functions;
use crate::standin::block::{Home, PageLocked};
use crate::standin::clock::Handle;
use crate::standin::driver::Driver;
use crate::standin::mistake::Mistake;
use crate::standin::pointer::{HostBytes, Out};
use crate::standin::queue::Action;
use crate::standin::status::{Answer, Status};

functions! {
    fn cuMemGetInfo_v2(driver, free: Out<usize>, total: Out<usize>) {
        let device = driver.current()?;
        let (limit, used) = (driver.devices[device].limit, driver.devices[device].memory.used());
        free.set(limit.saturating_sub(used))?;
        total.set(limit)
    }

    fn cuMemAlloc_v2(driver, address: Out<u64>, bytes: usize) {
        let device = driver.current()?;
        driver.forbid_in_capture()?;
        address.set(driver.allocate(device, bytes)?)
    }

    fn cuMemAllocAsync(driver, address: Out<u64>, bytes: usize, stream: Handle) {
        let stream = driver.stream(stream)?;
        driver.forbid_in_capture_of(stream)?;
        let start = driver.allocate(driver.streams[&stream].device, bytes)?;
        driver.submit(stream, "an allocation", Action::Claim { start, bytes })?;
        address.set(start)
    }

    // Whatever may still use the memory is waited for, on a card too.
    fn cuMemFree_v2(driver, address: u64) {
        let current = driver.current()?;
        if address == 0 {
            return Ok(());
        }
        driver.forbid_in_capture()?;
        driver.wait_for_device(current)?;
        let (device, _) = driver.freeable(address)?;
        driver.wait_for_device(device)?;
        driver.blocks.remove(address);
        driver.devices[device].memory.free(address);
        Ok(())
    }

    fn cuMemFreeAsync(driver, address: u64, stream: Handle) {
        let stream = driver.stream(stream)?;
        if address == 0 {
            return Ok(());
        }
        driver.forbid_in_capture_of(stream)?;
        let (_, bytes) = driver.freeable(address)?;
        driver.submit(stream, "a free", Action::Free { start: address, bytes })?;
        if let Some(block) = driver.blocks.at(address) {
            block.freed = true;
        }
        Ok(())
    }

    fn cuMemHostAlloc(driver, address: Out<u64>, bytes: usize, _flags: c_uint) {
        driver.current()?;
        driver.forbid_in_capture()?;
        let memory = PageLocked::new(bytes)?;
        let start = memory.address();
        driver.blocks.insert(Home::Host { _memory: memory }, start, bytes);
        address.set(start)
    }

    // Copies that are under way are waited for.
    fn cuMemFreeHost(driver, address: u64) {
        driver.current()?;
        driver.forbid_in_capture()?;
        match driver.blocks.at(address) {
            Some(block) if block.start == address && matches!(block.home, Home::Host { .. }) => {}
            _ => return Err(driver.not_freeable(address)),
        }
        for device in 0..driver.devices.len() {
            // A device with a fault copies nothing any more.
            let _ = driver.wait_for_device(device);
        }
        driver.blocks.remove(address);
        Ok(())
    }

    fn cuMemcpyHtoDAsync_v2(driver, to: u64, from: u64, bytes: usize, stream: Handle) {
        let stream = driver.stream(stream)?;
        driver.usable("a copy to the device", to, bytes)?;
        let from = driver.host_bytes(from, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        if from.is_page_locked {
            return driver.submit(stream, "a copy to the device", Action::Upload { to, from });
        }
        driver.forbid_in_capture_of(stream)?;
        driver.submit(stream, "a copy to the device", Action::Write { to, bytes: from.read().into() })
    }

    fn cuMemcpyDtoHAsync_v2(driver, to: u64, from: u64, bytes: usize, stream: Handle) {
        let stream = driver.stream(stream)?;
        driver.usable("a copy to the host", from, bytes)?;
        let to = driver.host_bytes(to, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        if to.is_page_locked {
            return driver.submit(stream, "a copy to the host", Action::Download { to, from });
        }
        driver.forbid_in_capture_of(stream)?;
        driver.submit(stream, "a copy to the host", Action::Download { to, from })?;
        driver.wait_for_stream(stream)
    }

    fn cuMemcpyDtoDAsync_v2(driver, to: u64, from: u64, bytes: usize, stream: Handle) {
        driver.copy_on_devices(to, from, bytes, stream)
    }

    fn cuMemcpyPeerAsync(
        driver,
        to: u64,
        to_context: Handle,
        from: u64,
        from_context: Handle,
        bytes: usize,
        stream: Handle,
    ) {
        let devices = [driver.device_of_context(to_context)?, driver.device_of_context(from_context)?];
        let found = [driver.blocks.device_of(to, bytes)?, driver.blocks.device_of(from, bytes)?];
        if devices != found {
            return Err(Status::INVALID_VALUE);
        }
        driver.copy_on_devices(to, from, bytes, stream)
    }

    fn cuMemsetD8Async(driver, to: u64, value: u8, bytes: usize, stream: Handle) {
        let stream = driver.stream(stream)?;
        driver.usable("a fill", to, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        driver.submit(stream, "a fill", Action::Fill { to, value, bytes })
    }

    fn cuMemsetD32Async(driver, to: u64, value: c_uint, count: usize, stream: Handle) {
        let stream = driver.stream(stream)?;
        let bytes = count.checked_mul(4).ok_or(Status::INVALID_VALUE)?;
        driver.usable("a fill", to, bytes)?;
        if !to.is_multiple_of(4) {
            return Err(Status::INVALID_VALUE);
        }
        if count == 0 {
            return Ok(());
        }
        let bytes: Arc<[u8]> = value.to_ne_bytes().repeat(count).into();
        driver.submit(stream, "a fill", Action::Write { to, bytes })
    }
}

impl Driver {
    fn allocate(&mut self, device: usize, bytes: usize) -> Answer<u64> {
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        let start = self.devices[device].allocate(bytes).or_else(|_| {
            // Memory that was freed in a stream is there once the stream has come to it.
            while self.step() {}
            self.devices[device].check()?;
            self.devices[device].allocate(bytes)
        })?;
        self.blocks.insert(Home::Device(device), start, bytes);
        Ok(start)
    }

    /// The device and the size of an allocation of device memory that starts at an address and is not freed.
    fn freeable(&mut self, address: u64) -> Answer<(usize, usize)> {
        match self.blocks.at(address) {
            Some(block) if block.start == address && !block.freed => match block.home {
                Home::Device(device) => Ok((device, block.bytes)),
                Home::Host { .. } => Err(Status::INVALID_VALUE),
            },
            _ => Err(self.not_freeable(address)),
        }
    }

    fn not_freeable(&mut self, address: u64) -> Status {
        if let Some(memory) = self.blocks.freed_at(address) {
            self.report(Mistake::DoubleFree { memory });
        }
        Status::INVALID_VALUE
    }

    /// Whether bytes of a device may be used by what is queued now.
    fn usable(&mut self, operation: &str, address: u64, bytes: usize) -> Answer {
        if bytes == 0 || self.blocks.device_of(address, bytes).is_ok() {
            return Ok(());
        }
        if let Some(memory) = self.blocks.freed_at(address) {
            self.report(Mistake::UseAfterFree { operation: operation.to_string(), memory });
        }
        Err(Status::INVALID_VALUE)
    }

    fn host_bytes(&mut self, address: u64, bytes: usize) -> Answer<HostBytes> {
        if address == 0 && bytes > 0 {
            return Err(Status::INVALID_VALUE);
        }
        let is_page_locked = match self.blocks.holding(address, bytes).map(|block| &block.home) {
            Some(Home::Host { .. }) => true,
            Some(Home::Device(_)) => return Err(Status::INVALID_VALUE),
            None => false,
        };
        Ok(HostBytes { address, bytes, is_page_locked })
    }

    fn copy_on_devices(&mut self, to: u64, from: u64, bytes: usize, stream: Handle) -> Answer {
        let stream = self.stream(stream)?;
        self.usable("a copy on the device", to, bytes)?;
        self.usable("a copy on the device", from, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.submit(stream, "a copy on the device", Action::Copy { to, from, bytes })
    }
}
