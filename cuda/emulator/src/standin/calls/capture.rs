//! Capturing streams, and graphs.

use std::ffi::{c_int, c_uint};

use super::functions;
use crate::standin::capture::Strictness;
use crate::standin::clock::Handle;
use crate::standin::pointer::Out;
use crate::standin::status::Status;

/// What a stream is doing about capture, as the driver counts it.
const NOT_CAPTURING: c_uint = 0;
const CAPTURING: c_uint = 1;
const BROKEN: c_uint = 2;

functions! {
    fn cuStreamBeginCapture_v2(driver, stream: Handle, mode: c_int) {
        let strictness = match mode {
            0 => Strictness::Global,
            1 => Strictness::ThreadLocal,
            2 => Strictness::Relaxed,
            _ => return Err(Status::INVALID_VALUE),
        };
        driver.begin_capture(stream, strictness)
    }

    fn cuStreamEndCapture(driver, stream: Handle, graph: Out<Handle>) {
        match driver.end_capture(stream) {
            Ok(handle) => graph.set(handle),
            Err(status) => {
                graph.set(0)?;
                Err(status)
            }
        }
    }

    fn cuStreamIsCapturing(driver, stream: Handle, status: Out<c_uint>) {
        let stream = driver.stream(stream)?;
        let capture = driver.streams[&stream].capture.and_then(|capture| driver.captures.get(&capture));
        status.set(match capture {
            None => NOT_CAPTURING,
            Some(capture) if capture.is_broken => BROKEN,
            Some(_) => CAPTURING,
        })
    }

    fn cuGraphInstantiateWithFlags(driver, executable: Out<Handle>, graph: Handle, _flags: u64) {
        executable.set(driver.instantiate(graph)?)
    }

    // There is nowhere to send it ahead of time.
    fn cuGraphUpload(driver, executable: Handle, stream: Handle) {
        driver.stream(stream)?;
        driver.executables.get(&executable).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }

    fn cuGraphLaunch(driver, executable: Handle, stream: Handle) {
        driver.launch_graph(executable, stream)
    }

    // Counts the nodes; it gives no handles for them, since nothing here takes one.
    fn cuGraphGetNodes(driver, graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let graph = driver.graphs.get(&graph).ok_or(Status::INVALID_HANDLE)?;
        if !nodes.is_null() {
            return Err(Status::NOT_SUPPORTED);
        }
        count.set(graph.nodes())
    }

    fn cuGraphDestroy(driver, graph: Handle) {
        driver.graphs.remove(&graph).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }

    fn cuGraphExecDestroy(driver, executable: Handle) {
        driver.destroy_executable(executable)
    }
}
