//! Modules and their functions.

use std::ffi::c_int;

use super::functions;
use crate::Program;
use crate::standin::clock::Handle;
use crate::standin::device::{
    BLOCKS_MULTIPROCESSOR, SHARED, SHARED_ASKED, SHARED_MULTIPROCESSOR, SHARED_RESERVED,
    THREADS_MULTIPROCESSOR,
};
use crate::standin::image::Image;
use crate::standin::launch::Function;
use crate::standin::pointer::{Out, Text};
use crate::standin::status::Status;

/// Numbers of attributes of a function.
const MAX_THREADS_PER_BLOCK: c_int = 0;
const NUM_REGS: c_int = 4;
const PTX_VERSION: c_int = 5;
const BINARY_VERSION: c_int = 6;
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
const PREFERRED_SHARED_MEMORY_CARVEOUT: c_int = 9;
/// Attributes from 0 on.
const ATTRIBUTES: c_int = 16;

functions! {
    fn cuModuleLoadData(driver, module: Out<Handle>, image: Text) {
        let device = driver.current()?;
        driver.forbid_in_capture()?;
        let image = Image::parse(&image.read().ok_or(Status::INVALID_VALUE)?).ok_or(Status::INVALID_IMAGE)?;
        if !image.library.exists() {
            return Err(Status::FILE_NOT_FOUND);
        }
        if !image.is_unchanged() {
            return Err(Status::INVALID_IMAGE);
        }
        let program = Program::open(&image.library).map_err(|_| Status::INVALID_IMAGE)?;
        let handle = driver.handle();
        driver.modules.insert(handle, (device, program));
        module.set(handle)
    }

    // Launches that are queued keep what they need.
    fn cuModuleUnload(driver, module: Handle) {
        driver.current()?;
        driver.modules.remove(&module).ok_or(Status::INVALID_HANDLE)?;
        driver.functions.retain(|_, function| function.module != module);
        Ok(())
    }

    fn cuModuleGetFunction(driver, function: Out<Handle>, module: Handle, name: Text) {
        driver.current()?;
        let name = name.read().ok_or(Status::INVALID_VALUE)?;
        let (_, program) = driver.modules.get(&module).ok_or(Status::INVALID_HANDLE)?;
        let kernel = program.kernel(&name).ok_or(Status::NOT_FOUND)?;
        let is_checked = program.is_checked();
        let known = driver.functions.iter().find(|(_, f)| f.module == module && f.kernel.name() == name);
        if let Some((&handle, _)) = known {
            return function.set(handle);
        }
        let handle = driver.handle();
        driver.functions.insert(handle, Function { module, kernel, is_checked, most_shared: SHARED });
        function.set(handle)
    }

    fn cuFuncGetParamInfo(driver, function: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        let sizes = driver.function(function)?.kernel.parameter_sizes();
        let bytes = *sizes.get(index).ok_or(Status::INVALID_VALUE)?;
        // Each lies behind the one before at a multiple of its alignment, which is not known beyond 8.
        let place = |end: usize, bytes: usize| end.next_multiple_of(bytes.next_power_of_two().clamp(1, 8));
        let end = sizes[..index].iter().fold(0, |end, &bytes| place(end, bytes) + bytes);
        offset.set(place(end, bytes))?;
        if size.is_null() { Ok(()) } else { size.set(bytes) }
    }

    fn cuFuncGetAttribute(driver, value: Out<c_int>, attribute: c_int, function: Handle) {
        let function = driver.function(function)?;
        value.set(match attribute {
            MAX_THREADS_PER_BLOCK => function.kernel.most_threads() as c_int,
            NUM_REGS => 32,
            PTX_VERSION | BINARY_VERSION => 90,
            MAX_DYNAMIC_SHARED_SIZE_BYTES => function.most_shared as c_int,
            other if (0..ATTRIBUTES).contains(&other) => 0,
            _ => return Err(Status::INVALID_VALUE),
        })
    }

    fn cuFuncSetAttribute(driver, function: Handle, attribute: c_int, value: c_int) {
        driver.current()?;
        let function = driver.function(function)?;
        match attribute {
            MAX_DYNAMIC_SHARED_SIZE_BYTES if (0..=SHARED_ASKED as c_int).contains(&value) => {
                function.most_shared = value as usize;
                Ok(())
            }
            PREFERRED_SHARED_MEMORY_CARVEOUT => Ok(()),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        driver,
        blocks: Out<c_int>,
        function: Handle,
        threads: c_int,
        shared: usize,
    ) {
        let function = driver.function(function)?;
        let threads = u32::try_from(threads).ok().filter(|&threads| threads > 0).ok_or(Status::INVALID_VALUE)?;
        if threads > function.kernel.most_threads() || shared > function.most_shared.max(SHARED) {
            return blocks.set(0);
        }
        let by_shared = SHARED_MULTIPROCESSOR / (shared + SHARED_RESERVED);
        let most = BLOCKS_MULTIPROCESSOR.min(THREADS_MULTIPROCESSOR / threads.next_multiple_of(32));
        blocks.set(most.min(by_shared as u32) as c_int)
    }
}
