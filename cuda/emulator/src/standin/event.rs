//! Events: points in streams that others wait for.

use std::time::Instant;

use super::clock::{Clock, Handle, Mark};
use super::driver::Driver;
use super::queue::Action;
use super::status::{Answer, Status};

/// An event of a device.
pub(super) struct Event {
    pub device: usize,
    pub is_timed: bool,
    /// How many times it was recorded.
    pub recordings: u64,
    /// The last of them.
    pub last: Recording,
    /// When the last was come to.
    pub at: Option<Instant>,
}

/// Where an event was recorded.
#[derive(Clone)]
pub(super) enum Recording {
    Never,
    /// Behind an operation; `clock` is what is over with it.
    Queued {
        mark: Mark,
        clock: Clock,
    },
    /// In a graph that is captured, behind the nodes of these numbers.
    Captured {
        capture: Handle,
        nodes: Vec<usize>,
    },
}

impl Driver {
    pub(super) fn add_event(&mut self, device: usize, is_timed: bool) -> Handle {
        let handle = self.handle();
        self.events
            .insert(handle, Event { device, is_timed, recordings: 0, last: Recording::Never, at: None });
        handle
    }

    /// The event of a handle, if its device is in order.
    pub(super) fn event(&mut self, handle: Handle) -> Answer<&mut Event> {
        let event = self.events.get_mut(&handle).ok_or(Status::INVALID_HANDLE)?;
        self.devices[event.device].check()?;
        Ok(event)
    }

    /// Records an event behind all that is queued in a stream.
    pub(super) fn record(&mut self, event: Handle, stream: Handle) -> Answer {
        let device = self.event(event)?.device;
        let stream = self.stream(stream)?;
        if self.streams[&stream].device != device {
            return Err(Status::INVALID_HANDLE);
        }
        let last = match self.streams[&stream].capture {
            Some(capture) => Recording::Captured { capture, nodes: self.captured_so_far(capture, stream)? },
            None => {
                self.forbid_default_stream_in_capture(stream)?;
                let recording = self.event(event)?.recordings + 1;
                let mark = self.queue(stream, "a record", Action::Record { event, recording }, Vec::new());
                Recording::Queued { mark, clock: self.streams[&stream].clock.clone() }
            }
        };
        let event = self.event(event)?;
        event.recordings += 1;
        event.at = None;
        event.last = last;
        Ok(())
    }

    /// Makes a stream wait for an event. One that was never recorded has nothing to wait for.
    pub(super) fn wait_for_event(&mut self, stream: Handle, event: Handle) -> Answer {
        let last = self.event(event)?.last.clone();
        let stream = self.stream(stream)?;
        match (last, self.streams[&stream].capture) {
            (Recording::Captured { capture, nodes }, own) => self.join_capture(capture, nodes, stream, own),
            (Recording::Queued { .. }, Some(own)) => {
                Err(self.break_capture(own, Status::STREAM_CAPTURE_ISOLATION))
            }
            (Recording::Queued { mark, clock }, None) => {
                self.forbid_default_stream_in_capture(stream)?;
                self.queue_wait(stream, vec![mark], &clock);
                Ok(())
            }
            (Recording::Never, _) => Ok(()),
        }
    }

    /// Waits, as the host, for an event.
    pub(super) fn synchronize_event(&mut self, event: Handle) -> Answer {
        let device = self.event(event)?.device;
        match self.event(event)?.last.clone() {
            Recording::Never => Ok(()),
            Recording::Captured { .. } => Err(Status::CAPTURED_EVENT),
            Recording::Queued { mark, clock } => {
                self.run_until_over(mark);
                self.host.join(&clock);
                self.devices[device].check()
            }
        }
    }

    /// Asks whether an event was come to. While not, asking lets the streams go on a little, so that a loop ends.
    pub(super) fn query_event(&mut self, event: Handle) -> Answer {
        let device = self.event(event)?.device;
        match self.event(event)?.last.clone() {
            Recording::Never => Ok(()),
            Recording::Captured { .. } => Err(Status::CAPTURED_EVENT),
            Recording::Queued { mark, clock } if self.is_over(mark) => {
                self.host.join(&clock);
                Ok(())
            }
            Recording::Queued { .. } => {
                self.step();
                self.devices[device].check()?;
                Err(Status::NOT_READY)
            }
        }
    }

    /// Milliseconds from one event to another.
    pub(super) fn elapsed(&mut self, from: Handle, to: Handle) -> Answer<f32> {
        let mut times = [None; 2];
        for (event, time) in [from, to].into_iter().zip(&mut times) {
            let event = self.event(event)?;
            match event.last {
                Recording::Queued { .. } if event.is_timed => *time = event.at,
                _ => return Err(Status::INVALID_HANDLE),
            }
        }
        let [Some(from), Some(to)] = times else { return Err(Status::NOT_READY) };
        let sign = if to >= from { 1.0 } else { -1.0 };
        Ok(sign * to.max(from).duration_since(to.min(from)).as_secs_f32() * 1e3)
    }
}
