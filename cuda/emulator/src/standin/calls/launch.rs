//! Launching kernels.

use std::ffi::{c_uint, c_void};

use super::functions;
use crate::Shape;
use crate::standin::clock::Handle;
use crate::standin::pointer::{Argument, Many};
use crate::standin::status::Status;

functions! {
    fn cuLaunchKernel(
        driver,
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: Handle,
        arguments: Many<Argument>,
        extra: Many<*const c_void>,
    ) {
        let stream = driver.stream(stream)?;
        // Another way to pass arguments, as one packed buffer.
        if !extra.is_null() {
            return Err(Status::NOT_SUPPORTED);
        }
        let sizes = driver.function(function)?.kernel.parameter_sizes();
        if arguments.is_null() && !sizes.is_empty() {
            return Err(Status::INVALID_VALUE);
        }
        let arguments = arguments.take(sizes.len());
        let arguments = arguments.iter().zip(sizes).map(|(argument, &size)| argument.take(size)).collect();
        let shape = Shape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared: shared as usize,
        };
        driver.launch(function, shape, stream, arguments)
    }
}
