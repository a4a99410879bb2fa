//! All that the driver knows, and how a call enters it.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::block::Blocks;
use super::capture::{Capture, Executable, Graph};
use super::clock::{Clock, Handle};
use super::device::Device;
use super::event::Event;
use super::launch::{Function, Observer};
use super::mistake::Mistake;
use super::queue::Stream;
use super::random::Random;
use super::status::{Answer, Status};
use super::{Config, installed};
use crate::{Program, Warp};

/// Handles below are not handed out: some have a meaning of their own.
const FIRST_HANDLE: Handle = 0x1000;
/// The context of device d is this plus d.
const CONTEXTS: Handle = 0x100;

thread_local! {
    /// The context that calls of this thread are about; 0 for none.
    static CURRENT: Cell<Handle> = const { Cell::new(0) };
}

/// The driver.
pub(super) struct Driver {
    pub config: Config,
    pub is_initialised: bool,
    pub devices: Vec<Device>,
    pub blocks: Blocks,
    pub streams: BTreeMap<Handle, Stream>,
    pub events: BTreeMap<Handle, Event>,
    /// With the device whose context they were loaded in.
    pub modules: BTreeMap<Handle, (usize, Arc<Program>)>,
    pub functions: BTreeMap<Handle, Function>,
    pub captures: BTreeMap<Handle, Capture>,
    pub graphs: BTreeMap<Handle, Graph>,
    pub executables: BTreeMap<Handle, Executable>,
    /// What the host has waited for.
    pub host: Clock,
    pub random: Random,
    pub mistakes: Vec<Mistake>,
    pub calls: BTreeMap<&'static str, u64>,
    /// What the next call of a function is to answer.
    pub failures: BTreeMap<String, i32>,
    pub observers: Vec<Observer>,
    pub counts_traffic: bool,
    pub watched: Option<Warp>,
    /// How many streams the host has made.
    pub streams_made: u64,
    next_handle: Handle,
}

impl Driver {
    pub(super) fn new(config: Config) -> Driver {
        let mut driver = Driver {
            is_initialised: false,
            devices: Vec::new(),
            blocks: Blocks::default(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            captures: BTreeMap::new(),
            graphs: BTreeMap::new(),
            executables: BTreeMap::new(),
            host: Clock::default(),
            random: Random::new(config.seed),
            mistakes: Vec::new(),
            calls: BTreeMap::new(),
            failures: BTreeMap::new(),
            observers: Vec::new(),
            counts_traffic: false,
            watched: None,
            streams_made: 0,
            next_handle: FIRST_HANDLE,
            config,
        };
        for device in 0..driver.config.devices {
            let default_stream = driver.add_default_stream(device);
            driver.devices.push(Device::new(driver.config.memory, default_stream));
        }
        driver
    }

    fn add_default_stream(&mut self, device: usize) -> Handle {
        let handle = self.handle();
        let name = match self.config.devices {
            1 => "the default stream".to_string(),
            _ => format!("the default stream of device {device}"),
        };
        self.streams.insert(handle, Stream::new(device, name, true));
        handle
    }

    /// A handle that nothing else has.
    pub(super) fn handle(&mut self) -> Handle {
        self.next_handle += 0x10;
        self.next_handle
    }

    /// Says what is wrong, once.
    pub(super) fn report(&mut self, mistake: Mistake) {
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// The device of an ordinal.
    pub(super) fn device(&mut self, ordinal: c_int) -> Answer<usize> {
        if !self.is_initialised {
            return Err(Status::NOT_INITIALIZED);
        }
        usize::try_from(ordinal)
            .ok()
            .filter(|&device| device < self.devices.len())
            .ok_or(Status::INVALID_DEVICE)
    }

    /// The device whose context is current, if that is in order.
    pub(super) fn current(&self) -> Answer<usize> {
        if !self.is_initialised {
            return Err(Status::NOT_INITIALIZED);
        }
        let device = self.device_of_context(CURRENT.get())?;
        self.devices[device].check()?;
        Ok(device)
    }

    /// The device that a context is of.
    pub(super) fn device_of_context(&self, context: Handle) -> Answer<usize> {
        let device = context.checked_sub(CONTEXTS).filter(|&device| device < self.devices.len());
        device.filter(|&device| self.devices[device].retained > 0).ok_or(Status::INVALID_CONTEXT)
    }

    /// The device's context.
    pub(super) fn context(device: usize) -> Handle {
        CONTEXTS + device
    }

    /// The context that is current in this thread; 0 for none.
    pub(super) fn current_context() -> Handle {
        CURRENT.get()
    }

    /// Makes a context current in this thread; 0 for none.
    pub(super) fn set_current_context(&self, context: Handle) -> Answer {
        if context != 0 {
            self.device_of_context(context)?;
        }
        CURRENT.set(context);
        Ok(())
    }

    /// Destroys a context, and with it all that was made in it: the only way out of a fault.
    pub(super) fn destroy_context(&mut self, device: usize) {
        self.streams.retain(|_, stream| stream.device != device);
        self.events.retain(|_, event| event.device != device);
        self.modules.retain(|_, (home, _)| *home != device);
        self.functions.retain(|_, function| self.modules.contains_key(&function.module));
        self.captures.retain(|_, capture| self.streams.contains_key(&capture.origin()));
        self.executables.retain(|_, executable| executable.device != device);
        self.blocks.remove_device(device);
        let (retained, default_stream) = (self.devices[device].retained, self.add_default_stream(device));
        let limit = self.devices[device].limit;
        self.devices[device] = Device { retained, ..Device::new(limit, default_stream) };
    }
}

/// Answers a call: counts it, fails it if it is to fail, and keeps panics out of the caller, who may not be Rust.
pub(super) fn enter(name: &'static str, body: impl FnOnce(&mut Driver) -> Answer) -> c_int {
    let Some(stand_in) = installed() else { return Status::NOT_INITIALIZED.0 };
    let mut driver = stand_in.lock();
    *driver.calls.entry(name).or_default() += 1;
    if let Some(code) = driver.failures.remove(name) {
        return code;
    }
    match catch_unwind(AssertUnwindSafe(|| body(&mut driver))) {
        Ok(answer) => answer.map_or_else(|status| status.0, |()| 0),
        Err(panic) => {
            let broken = Mistake::Broken { function: name.to_string(), message: words(&*panic) };
            driver.report(broken);
            // What is queued may name memory of the caller's, who takes it back now: it must not be done.
            driver.devices.iter_mut().for_each(|device| device.fault = Some(Status::UNKNOWN));
            Status::UNKNOWN.0
        }
    }
}

/// What a panic says.
pub(super) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_string()
}
