//! Streams: work is queued, and done when somebody waits.
//!
//! Waiting for one stream lets all of them go on, one operation at a time, in an order that the seed decides. So two
//! streams that nothing orders do run in either order, and work that nobody waits for is not done.

use std::collections::VecDeque;
use std::sync::Arc;

use super::clock::{Clock, Handle, Mark};
use super::driver::Driver;
use super::launch::Launch;
use super::pointer::HostBytes;
use super::status::{Answer, Status};

/// The stream without a handle, and its other name.
const DEFAULT_STREAMS: [Handle; 2] = [0, 1];

/// A stream of a device.
pub(super) struct Stream {
    pub device: usize,
    /// How a message names it.
    pub name: String,
    /// Whether it and the default stream wait for each other.
    pub is_blocking: bool,
    pub priority: i32,
    pub queue: VecDeque<Operation>,
    /// Operations that were ever queued.
    queued: u64,
    /// Operations that were done.
    done: u64,
    /// What is over when the last queued operation is.
    pub clock: Clock,
    /// The capture that it takes part in.
    pub capture: Option<Handle>,
    /// Destroyed by the host; goes away when its queue is empty.
    pub is_destroyed: bool,
}

impl Stream {
    pub(super) fn new(device: usize, name: String, is_blocking: bool) -> Stream {
        Stream {
            device,
            name,
            is_blocking,
            priority: 0,
            queue: VecDeque::new(),
            queued: 0,
            done: 0,
            clock: Clock::default(),
            capture: None,
            is_destroyed: false,
        }
    }
}

/// A piece of queued work.
pub(super) struct Operation {
    /// How a message names it.
    pub name: String,
    pub action: Action,
    pub mark: Mark,
    /// What is over when it starts, and itself.
    pub clock: Clock,
    /// Operations of other streams that it waits for.
    after: Vec<Mark>,
}

/// What an operation does. Memory is given by the addresses of its bytes.
#[derive(Clone)]
pub(super) enum Action {
    /// Waits for what it is after.
    Nothing,
    Write {
        to: u64,
        bytes: Arc<[u8]>,
    },
    /// Copies from page-locked memory.
    Upload {
        to: u64,
        from: HostBytes,
    },
    Download {
        to: HostBytes,
        from: u64,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Fill {
        to: u64,
        value: u8,
        bytes: usize,
    },
    Launch(Arc<Launch>),
    /// Notes the time of an event's recording of that number.
    Record {
        event: Handle,
        recording: u64,
    },
    /// An allocation becomes usable.
    Claim {
        start: u64,
        bytes: usize,
    },
    Free {
        start: u64,
        bytes: usize,
    },
}

impl Driver {
    /// The stream of a handle, if its device is in order.
    pub(super) fn stream(&self, handle: Handle) -> Answer<Handle> {
        let handle = match DEFAULT_STREAMS.contains(&handle) {
            true => self.devices[self.current()?].default_stream,
            false => handle,
        };
        let stream =
            self.streams.get(&handle).filter(|stream| !stream.is_destroyed).ok_or(Status::INVALID_HANDLE)?;
        self.devices[stream.device].check()?;
        Ok(handle)
    }

    /// Adds an operation to a stream, or to the graph that is captured from it.
    pub(super) fn submit(&mut self, stream: Handle, name: &str, action: Action) -> Answer {
        let stream = self.stream(stream)?;
        if let Some(capture) = self.streams[&stream].capture {
            return self.capture_operation(capture, stream, name, action);
        }
        self.forbid_default_stream_in_capture(stream)?;
        self.queue(stream, name, action, Vec::new());
        Ok(())
    }

    /// Queues an operation in a stream that is not capturing. It starts after `after`, whose clocks the stream's has.
    pub(super) fn queue(&mut self, handle: Handle, name: &str, action: Action, mut after: Vec<Mark>) -> Mark {
        let mut clock = self.host.clone();
        for other in self.implicitly_before(handle) {
            after.extend(self.last(other));
            clock.join(&self.streams[&other].clock);
        }
        let Some(stream) = self.streams.get_mut(&handle) else {
            unreachable!("the caller has looked the stream up")
        };
        stream.queued += 1;
        let mark = Mark { stream: handle, number: stream.queued };
        stream.clock.join(&clock);
        stream.clock.advance(mark);
        let name = format!("{name} in {}", stream.name);
        stream.queue.push_back(Operation { name, action, mark, clock: stream.clock.clone(), after });
        mark
    }

    /// Makes whatever is queued next in a stream wait for operations of others; `clock` is what is over after them.
    pub(super) fn queue_wait(&mut self, stream: Handle, after: Vec<Mark>, clock: &Clock) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.clock.join(clock);
        }
        self.queue(stream, "a wait", Action::Nothing, after);
    }

    /// The last operation that was queued in a stream.
    pub(super) fn last(&self, stream: Handle) -> Option<Mark> {
        let number = self.streams.get(&stream)?.queued;
        (number > 0).then_some(Mark { stream, number })
    }

    /// The streams whose work comes before what is queued next: the default stream and blocking streams of a device wait
    /// for each other.
    fn implicitly_before(&self, handle: Handle) -> Vec<Handle> {
        let stream = &self.streams[&handle];
        let default_stream = self.devices[stream.device].default_stream;
        if handle != default_stream {
            return if stream.is_blocking { vec![default_stream] } else { Vec::new() };
        }
        let blocking = self.streams.iter().filter(|&(&other, s)| {
            other != handle && s.is_blocking && s.device == stream.device && s.capture.is_none()
        });
        blocking.map(|(&other, _)| other).collect()
    }

    /// Whether an operation has been done.
    pub(super) fn is_over(&self, mark: Mark) -> bool {
        self.streams.get(&mark.stream).is_none_or(|stream| stream.done >= mark.number)
    }

    /// Waits, as the host, for all that is queued in a stream.
    pub(super) fn wait_for_stream(&mut self, stream: Handle) -> Answer {
        if let Some(last) = self.last(stream) {
            self.run_until_over(last);
        }
        let Some(stream) = self.streams.get(&stream) else { return Ok(()) };
        self.host.join(&stream.clock);
        self.devices[stream.device].check()
    }

    /// Waits, as the host, for all that is queued on a device.
    pub(super) fn wait_for_device(&mut self, device: usize) -> Answer {
        let of_device = |(&handle, stream): (&Handle, &Stream)| (stream.device == device).then_some(handle);
        let streams: Vec<Handle> = self.streams.iter().filter_map(of_device).collect();
        streams.into_iter().try_for_each(|stream| self.wait_for_stream(stream))
    }

    /// Lets all streams go on until an operation is done.
    pub(super) fn run_until_over(&mut self, mark: Mark) {
        while !self.is_over(mark) {
            assert!(self.step(), "an operation waits for one that was queued after it");
        }
    }

    /// Does one operation of a stream that can go on. `false`: there is none.
    pub(super) fn step(&mut self) -> bool {
        let can_go_on = |stream: &Stream| {
            stream.queue.front().is_some_and(|next| next.after.iter().all(|&mark| self.is_over(mark)))
        };
        let able: Vec<Handle> =
            self.streams.iter().filter(|(_, stream)| can_go_on(stream)).map(|(&handle, _)| handle).collect();
        if able.is_empty() {
            return false;
        }
        let chosen = able[self.random.below(able.len())];
        let operation = self.streams.get_mut(&chosen).and_then(|stream| stream.queue.pop_front());
        if let Some(operation) = operation {
            self.execute(chosen, &operation);
        }
        if let Some(stream) = self.streams.get_mut(&chosen) {
            stream.done += 1;
            if stream.is_destroyed && stream.queue.is_empty() {
                self.streams.remove(&chosen);
            }
        }
        true
    }
}
