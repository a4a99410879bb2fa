//! Graphs: work that is recorded once and done many times.
//!
//! A capture begins in one stream, its origin. A stream that waits for an event of the capture takes part from then on,
//! and its work must be waited for by the origin before the capture ends. Each stream is a lane of the graph; a node
//! comes after the one before it in its lane, and after the nodes that its lane has waited for.

use std::collections::BTreeSet;
use std::mem;
use std::thread::{self, ThreadId};

use super::clock::{Clock, Handle, Mark};
use super::driver::Driver;
use super::queue::{Action, Stream};
use super::status::{Answer, Status};

/// Which calls end a capture that is under way, since they would wait for it: those of every thread, those of the
/// thread that began it, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Strictness {
    Global,
    ThreadLocal,
    Relaxed,
}

/// A graph in the making.
pub(super) struct Capture {
    thread: ThreadId,
    strictness: Strictness,
    /// The first is the origin's.
    lanes: Vec<Lane>,
    nodes: Vec<Node>,
    /// After a forbidden call nothing can be captured; only the end remains.
    pub is_broken: bool,
}

struct Lane {
    stream: Handle,
    /// Nodes that the next one comes after.
    after: BTreeSet<usize>,
}

/// One operation of a graph.
#[derive(Clone)]
struct Node {
    lane: usize,
    name: String,
    action: Action,
    /// Nodes before it, of its own lane and of others.
    after: BTreeSet<usize>,
}

/// A captured graph.
#[derive(Clone)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    lanes: usize,
}

impl Graph {
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }
}

/// A graph with streams for all lanes but the first, which is the stream that it is launched in.
pub(super) struct Executable {
    graph: Graph,
    pub device: usize,
    streams: Vec<Handle>,
    /// The end of the last launch: one launch waits for the one before.
    last: Option<(Mark, Clock)>,
}

impl Driver {
    pub(super) fn begin_capture(&mut self, stream: Handle, strictness: Strictness) -> Answer {
        let stream = self.stream(stream)?;
        if self.devices.iter().any(|device| device.default_stream == stream) {
            return Err(Status::STREAM_CAPTURE_UNSUPPORTED);
        }
        if self.streams[&stream].capture.is_some() {
            return Err(Status::ILLEGAL_STATE);
        }
        let handle = self.handle();
        let lanes = vec![Lane { stream, after: BTreeSet::new() }];
        let thread = thread::current().id();
        self.captures
            .insert(handle, Capture { thread, strictness, lanes, nodes: Vec::new(), is_broken: false });
        self.set_capture(stream, Some(handle));
        Ok(())
    }

    /// Ends the capture of a stream, its origin: the graph.
    pub(super) fn end_capture(&mut self, stream: Handle) -> Answer<Handle> {
        let stream = self.stream(stream)?;
        let handle = self.streams[&stream].capture.ok_or(Status::ILLEGAL_STATE)?;
        let capture = &self.captures[&handle];
        if capture.origin() != stream {
            return Err(self.break_capture(handle, Status::STREAM_CAPTURE_UNMATCHED));
        }
        if capture.strictness != Strictness::Relaxed && capture.thread != thread::current().id() {
            return Err(Status::STREAM_CAPTURE_WRONG_THREAD);
        }
        let Some(capture) = self.captures.remove(&handle) else { return Err(Status::ILLEGAL_STATE) };
        capture.lanes.iter().for_each(|lane| self.set_capture(lane.stream, None));
        if capture.is_broken {
            return Err(Status::STREAM_CAPTURE_INVALIDATED);
        }
        if !capture.is_joined() {
            return Err(Status::STREAM_CAPTURE_UNJOINED);
        }
        let graph = self.handle();
        self.graphs.insert(graph, Graph { nodes: capture.nodes, lanes: capture.lanes.len() });
        Ok(graph)
    }

    fn set_capture(&mut self, stream: Handle, capture: Option<Handle>) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.capture = capture;
        }
    }

    fn capture(&mut self, handle: Handle) -> Answer<&mut Capture> {
        let capture = self.captures.get_mut(&handle).ok_or(Status::ILLEGAL_STATE)?;
        if capture.is_broken { Err(Status::STREAM_CAPTURE_INVALIDATED) } else { Ok(capture) }
    }

    /// Spoils a capture; `status` is why, and is passed on.
    pub(super) fn break_capture(&mut self, handle: Handle, status: Status) -> Status {
        if let Some(capture) = self.captures.get_mut(&handle) {
            capture.is_broken = true;
        }
        status
    }

    /// Adds an operation of a stream that takes part.
    pub(super) fn capture_operation(
        &mut self,
        handle: Handle,
        stream: Handle,
        name: &str,
        action: Action,
    ) -> Answer {
        let capture = self.capture(handle)?;
        let node = capture.nodes.len();
        let (lane, after) = capture.lane(stream)?;
        let after = mem::replace(after, BTreeSet::from([node]));
        capture.nodes.push(Node { lane, name: name.to_string(), action, after });
        Ok(())
    }

    /// The nodes that whatever a stream does next comes after.
    pub(super) fn captured_so_far(&mut self, handle: Handle, stream: Handle) -> Answer<Vec<usize>> {
        let (_, after) = self.capture(handle)?.lane(stream)?;
        Ok(after.iter().copied().collect())
    }

    /// Makes a stream, which may already take part in a capture, wait for nodes of one.
    pub(super) fn join_capture(
        &mut self,
        handle: Handle,
        nodes: Vec<usize>,
        stream: Handle,
        own: Option<Handle>,
    ) -> Answer {
        if !self.captures.contains_key(&handle) {
            // The capture is over; the event says nothing any more.
            return Err(
                own.map_or(Status::CAPTURED_EVENT, |own| self.break_capture(own, Status::CAPTURED_EVENT))
            );
        }
        match own {
            Some(own) if own != handle => {
                self.break_capture(handle, Status::STREAM_CAPTURE_MERGE);
                Err(self.break_capture(own, Status::STREAM_CAPTURE_MERGE))
            }
            Some(_) => {
                self.capture(handle)?.lane(stream)?.1.extend(nodes);
                Ok(())
            }
            None if self.devices.iter().any(|device| device.default_stream == stream) => {
                Err(self.break_capture(handle, Status::STREAM_CAPTURE_IMPLICIT))
            }
            None => {
                self.capture(handle)?.lanes.push(Lane { stream, after: nodes.into_iter().collect() });
                self.set_capture(stream, Some(handle));
                Ok(())
            }
        }
    }

    /// Refuses a call about a stream that cannot be captured, and spoils the capture that the stream takes part in.
    pub(super) fn forbid_in_capture_of(&mut self, stream: Handle) -> Answer {
        match self.streams.get(&stream).and_then(|stream| stream.capture) {
            Some(capture) => Err(self.break_capture(capture, Status::STREAM_CAPTURE_UNSUPPORTED)),
            None => Ok(()),
        }
    }

    /// Refuses a call that may wait for the device, while a capture forbids such calls.
    pub(super) fn forbid_in_capture(&mut self) -> Answer {
        let here = thread::current().id();
        let forbids = |capture: &Capture| match capture.strictness {
            Strictness::Global => true,
            Strictness::ThreadLocal => capture.thread == here,
            Strictness::Relaxed => false,
        };
        self.break_captures(forbids, Status::STREAM_CAPTURE_UNSUPPORTED)
    }

    /// Refuses work of the default stream while a stream that must wait for it is capturing.
    pub(super) fn forbid_default_stream_in_capture(&mut self, stream: Handle) -> Answer {
        let device = self.streams[&stream].device;
        if self.devices[device].default_stream != stream {
            return Ok(());
        }
        let waits = |s: &Stream| s.is_blocking && s.device == device && s.capture.is_some();
        let waiting: Vec<Handle> =
            self.streams.values().filter(|s| waits(s)).filter_map(|s| s.capture).collect();
        let refused = waiting.first().map(|_| Status::STREAM_CAPTURE_IMPLICIT);
        waiting.into_iter().for_each(|capture| {
            self.break_capture(capture, Status::STREAM_CAPTURE_IMPLICIT);
        });
        refused.map_or(Ok(()), Err)
    }

    /// Spoils the captures that match, and refuses if there are any.
    fn break_captures(&mut self, matches: impl Fn(&Capture) -> bool, status: Status) -> Answer {
        let mut answer = Ok(());
        for capture in self.captures.values_mut().filter(|capture| matches(capture)) {
            capture.is_broken = true;
            answer = Err(status);
        }
        answer
    }

    /// Makes a graph ready to launch on the current device.
    pub(super) fn instantiate(&mut self, graph: Handle) -> Answer<Handle> {
        let device = self.current()?;
        let graph = self.graphs.get(&graph).ok_or(Status::INVALID_HANDLE)?.clone();
        let handle = self.handle();
        let mut streams = Vec::new();
        for lane in 1..graph.lanes {
            let stream = self.handle();
            self.streams.insert(stream, Stream::new(device, format!("branch {lane} of a graph"), false));
            streams.push(stream);
        }
        self.executables.insert(handle, Executable { graph, device, streams, last: None });
        Ok(handle)
    }

    /// Queues all operations of a graph: between what is queued in the stream now and what comes later.
    pub(super) fn launch_graph(&mut self, executable: Handle, stream: Handle) -> Answer {
        let stream = self.stream(stream)?;
        self.forbid_in_capture_of(stream)?;
        self.forbid_default_stream_in_capture(stream)?;
        let Executable { graph, device, streams, last } =
            self.executables.get(&executable).ok_or(Status::INVALID_HANDLE)?;
        if *device != self.streams[&stream].device {
            return Err(Status::INVALID_VALUE);
        }
        let (nodes, lanes, last) =
            (graph.nodes.clone(), [&[stream], streams.as_slice()].concat(), last.clone());
        if let Some((mark, clock)) = last {
            self.queue_wait(stream, vec![mark], &clock);
        }
        self.fork(stream, &lanes[1..]);
        let mut done: Vec<(Mark, Clock)> = Vec::with_capacity(nodes.len());
        for node in nodes {
            let lane = lanes[node.lane];
            let others: Vec<&(Mark, Clock)> = node
                .after
                .iter()
                .map(|&before| &done[before])
                .filter(|(mark, _)| mark.stream != lane)
                .collect();
            let after = others.iter().map(|(mark, _)| *mark).collect();
            for (_, clock) in others {
                self.join_clock(lane, clock);
            }
            let mark = self.queue(lane, &node.name, node.action, after);
            done.push((mark, self.streams[&lane].clock.clone()));
        }
        self.join(stream, &lanes[1..]);
        let end = self.last(stream).map(|mark| (mark, self.streams[&stream].clock.clone()));
        if let Some(executable) = self.executables.get_mut(&executable) {
            executable.last = end;
        }
        Ok(())
    }

    fn join_clock(&mut self, stream: Handle, clock: &Clock) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.clock.join(clock);
        }
    }

    /// Makes the branches wait for all that is queued in a stream.
    fn fork(&mut self, stream: Handle, branches: &[Handle]) {
        let (last, clock) = (self.last(stream), self.streams[&stream].clock.clone());
        for &branch in branches {
            self.queue_wait(branch, last.into_iter().collect(), &clock);
        }
    }

    /// Makes a stream wait for all that is queued in the branches.
    fn join(&mut self, stream: Handle, branches: &[Handle]) {
        for &branch in branches {
            let (last, clock) = (self.last(branch), self.streams[&branch].clock.clone());
            self.queue_wait(stream, last.into_iter().collect(), &clock);
        }
    }

    /// Gives an executable back. What was launched of it is done nevertheless.
    pub(super) fn destroy_executable(&mut self, handle: Handle) -> Answer {
        let executable = self.executables.remove(&handle).ok_or(Status::INVALID_HANDLE)?;
        executable.streams.into_iter().for_each(|stream| self.destroy_stream(stream));
        Ok(())
    }

    /// Destroys a stream, once its queue is empty.
    pub(super) fn destroy_stream(&mut self, handle: Handle) {
        let Some(stream) = self.streams.get_mut(&handle) else { return };
        stream.is_destroyed = true;
        if stream.queue.is_empty() {
            self.streams.remove(&handle);
        }
    }
}

impl Capture {
    /// The stream that it began in.
    pub(super) fn origin(&self) -> Handle {
        self.lanes[0].stream
    }

    /// The number of a stream's lane, and the nodes that its next comes after.
    fn lane(&mut self, stream: Handle) -> Answer<(usize, &mut BTreeSet<usize>)> {
        let lanes = self.lanes.iter_mut().enumerate();
        let mut found = lanes.filter(|(_, lane)| lane.stream == stream).map(|(i, lane)| (i, &mut lane.after));
        found.next().ok_or(Status::ILLEGAL_STATE)
    }

    /// Whether the origin has waited for all nodes that others end with.
    fn is_joined(&self) -> bool {
        let mut known = self.lanes[0].after.clone();
        let mut open: Vec<usize> = known.iter().copied().collect();
        while let Some(node) = open.pop() {
            open.extend(self.nodes[node].after.iter().copied().filter(|&before| known.insert(before)));
        }
        self.lanes.iter().all(|lane| lane.after.is_subset(&known))
    }
}
