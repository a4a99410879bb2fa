//! What a library calls: the table [`RUNTIME`].
//!
//! One invariant makes all of it sound. A callback is called by a kernel that runs on a coroutine of `launch`, in the
//! thread that made the launch. While a kernel runs, `launch` holds no reference to the [`Execution`], but the pointer
//! in the context; so a callback may make one, if it drops it before the kernel goes on, before another thread of the
//! block runs, and before it calls into the library.

use std::ffi::{CStr, c_char, c_int, c_void};

use corosensei::Yielder;

use crate::abi::{self, Collective, Context, Deferred, Runtime, SharedArray};
use crate::check::{Access, name_of_thread};
use crate::deferred::{Instruction, Uses};
use crate::execution::{Execution, THREAD, WARP, WARPGROUP};
use crate::meeting::Arrival;
use crate::report::Kind;

/// The table of what a library needs.
pub(crate) static RUNTIME: Runtime = Runtime {
    barrier,
    meet,
    sync_warp,
    missing_lane,
    shared,
    dynamic_shared,
    shared_offset,
    shared_pointer,
    access,
    copy,
    product,
    commit,
    wait,
    fence,
    issue,
    unordered,
};

/// The launch that a thread belongs to.
///
/// # Safety
/// The module's invariant: the caller drops the reference before anything else can make one.
unsafe fn execution<'e>(context: *mut Context) -> &'e mut Execution<'e> {
    // SAFETY: `launch` keeps the execution alive while a kernel runs.
    unsafe { &mut *(*context).execution.cast() }
}

/// Lets other threads of the block run.
///
/// # Safety
/// `context` is that of the thread that runs, and nobody holds a reference to the execution.
unsafe fn suspend(context: *mut Context) {
    // SAFETY: a thread's yielder lives on its own stack until the thread ends.
    unsafe { (*(*context).yielder.cast::<Yielder<(), ()>>()).suspend(()) };
}

/// Leaves the thread where it is, for ever: the launch has stopped.
///
/// # Safety
/// As for [`suspend`].
unsafe fn halt(context: *mut Context) {
    loop {
        // SAFETY: as the caller says.
        unsafe { suspend(context) };
    }
}

unsafe extern "C" fn barrier(context: *mut Context, vote: c_int, place: usize) -> c_int {
    // SAFETY: the module's invariant.
    unsafe {
        let number = (*context).number;
        if execution(context).arrive_at_barrier(number, vote, place) {
            suspend(context);
        }
        execution(context).barrier_votes()
    }
}

unsafe extern "C" fn meet(
    context: *mut Context,
    group: u32,
    mask: u32,
    operand: *mut c_void,
    function: Collective,
    place: usize,
) {
    // A group of warps meets as a whole.
    let mask = if group == WARP { u128::from(mask) } else { u128::MAX };
    // SAFETY: the module's invariant.
    unsafe { come_together(context, group, mask, operand, Some(function), place) }
}

unsafe extern "C" fn sync_warp(context: *mut Context, mask: u32, place: usize) {
    // SAFETY: the module's invariant.
    unsafe { come_together(context, WARP, u128::from(mask), context.cast(), None, place) }
}

/// # Safety
/// The module's invariant.
unsafe fn come_together(
    context: *mut Context,
    group: u32,
    mask: u128,
    operand: *mut c_void,
    function: Option<Collective>,
    place: usize,
) {
    // SAFETY: the module's invariant; the reference ends with the call of `arrive`.
    let (number, position, complete) = unsafe {
        let number = (*context).number;
        let arrival = Arrival { lane: (number % group) as usize, mask, operand, function, place };
        let (position, complete) = execution(context).arrive(number, group, arrival);
        (number, position, complete)
    };
    // SAFETY: as above.
    unsafe {
        if complete {
            hold_meeting(context, number, group, position);
        } else {
            suspend(context);
        }
    }
}

/// Does what a complete meeting is for, and lets its threads go on.
///
/// # Safety
/// The module's invariant; `context` is that of the thread `number`, whose group has a complete meeting there.
pub(crate) unsafe fn hold_meeting(context: *mut Context, number: u32, group: u32, position: usize) {
    // SAFETY: the operands are on the stacks of threads that wait, or of this one; the function is the library's, and
    // takes operands of these threads' type unless they came to different operations.
    unsafe {
        let (function, place) = {
            let meeting = execution(context).meetings(number, group).at(position);
            (meeting.function, meeting.place)
        };
        if let Some(function) = function {
            let operands = execution(context).meetings(number, group).operands(position);
            function(operands, place as *const c_void);
        }
        execution(context).close_meeting(number, group, position);
    }
}

unsafe extern "C" fn missing_lane(context: *mut Context, reader: u32, lane: u32, place: usize) {
    // SAFETY: the module's invariant.
    unsafe {
        let block = (*context).block;
        let warp = (*context).number / WARP;
        execution(context).findings.add(Kind::MissingLane, place, None, || {
            format!(
                "lane {reader} of warp {warp} of block {block} reads from lane {lane}, which takes no part"
            )
        });
    }
}

unsafe extern "C" fn shared(context: *mut Context, array: *mut SharedArray, place: usize) -> *mut c_void {
    // SAFETY: the module's invariant; `array` is the library's, which one launch uses at a time.
    unsafe {
        if (*array).ticket != (*context).ticket {
            let execution = execution(context);
            if let Err(limit) = execution.shared.enter(&mut *array, (*context).ticket) {
                execution.findings.add(Kind::Limit, place, None, || limit);
                execution.stopped = true;
            }
        }
        if execution(context).stopped {
            halt(context);
        }
        (*array).address
    }
}

unsafe extern "C" fn dynamic_shared(context: *mut Context) -> *mut c_void {
    // SAFETY: the module's invariant.
    unsafe { execution(context) }.shared.dynamic() as *mut c_void
}

unsafe extern "C" fn shared_offset(context: *mut Context, address: usize) -> u32 {
    // SAFETY: the module's invariant.
    unsafe { execution(context) }.shared.offset(address)
}

unsafe extern "C" fn shared_pointer(context: *mut Context, offset: u32) -> *mut c_void {
    // SAFETY: the module's invariant.
    unsafe { execution(context) }.shared.pointer(offset) as *mut c_void
}

unsafe extern "C" fn access(context: *mut Context, address: usize, size: usize, kind: c_int, place: usize) {
    // SAFETY: the module's invariant.
    unsafe {
        let thread = &*context;
        let is_local = address.wrapping_sub(thread.stack) < thread.stack_size;
        let number = thread.number;
        if is_local {
            if execution(context).has_products() {
                execution(context).use_sum(number, Access::new(address, size, kind, place));
            }
            return;
        }
        if execution(context).is_own(address) {
            return;
        }
        if execution(context).gives_way(number) {
            suspend(context);
        }
        if execution(context).access(number, Access::new(address, size, kind, place)) {
            halt(context);
        }
    }
}

unsafe extern "C" fn copy(
    context: *mut Context,
    run: Deferred,
    operands: *const c_void,
    size: usize,
    to: usize,
    bytes: usize,
    place: usize,
) {
    // SAFETY: the module's invariant; the library gives operands of that size, made for `run`.
    unsafe {
        let number = (*context).number;
        let instruction = Instruction::new(run, operands.cast(), size, None);
        // It is made when it is waited for, but may be from now on.
        execution(context).overwrite(number, Access::new(to, bytes, abi::WRITE, place));
        execution(context).queue(number, THREAD).issue(instruction);
    }
}

unsafe extern "C" fn product(
    context: *mut Context,
    run: Deferred,
    operands: *const c_void,
    size: usize,
    uses: *const abi::Uses,
    place: usize,
) {
    // SAFETY: the module's invariant; the library gives operands of that size, made for `run`, and the sums of all threads
    // of a whole group.
    unsafe {
        let number = (*context).number;
        let uses = Uses::new(&*uses, place);
        execution(context).issue_product(number, Instruction::new(run, operands.cast(), size, Some(uses)));
    }
}

unsafe extern "C" fn commit(context: *mut Context, group: u32) {
    // SAFETY: the module's invariant.
    unsafe {
        let number = (*context).number;
        execution(context).queue(number, group).commit();
    }
}

unsafe extern "C" fn wait(context: *mut Context, group: u32, pending: u32) {
    // SAFETY: the module's invariant; no reference is held while an instruction runs. The threads that issued it are
    // alive: one of them waits for it.
    unsafe {
        let number = (*context).number;
        while let Some(due) = execution(context).next_due(number, group, pending) {
            for instruction in due {
                instruction.run();
            }
        }
    }
}

unsafe extern "C" fn fence(context: *mut Context, fence: u32) {
    // SAFETY: the module's invariant.
    unsafe {
        let number = (*context).number;
        match fence {
            abi::FENCE_DEVICE => execution(context).fence(number),
            abi::FENCE_PROXY => execution(context).fence_for_products(number),
            abi::FENCE_PRODUCT => execution(context).queue(number, WARPGROUP).fenced = true,
            // Within a block, stores are seen in the order of the program.
            _ => {}
        }
    }
}

unsafe extern "C" fn issue(context: *mut Context) -> c_int {
    // SAFETY: the module's invariant.
    let queue = unsafe { execution(context).queue((*context).number, WARPGROUP) };
    let in_flight = if queue.is_empty() { 0 } else { abi::IN_FLIGHT };
    in_flight | if queue.fenced { abi::FENCED } else { 0 }
}

unsafe extern "C" fn unordered(context: *mut Context, message: *const c_char, place: usize) {
    // SAFETY: the module's invariant; the message is a string literal of the library.
    unsafe {
        let name = name_of_thread(&*context);
        let message = CStr::from_ptr(message).to_string_lossy();
        execution(context).findings.add(Kind::Unordered, place, None, || format!("{name} {message}"));
    }
}
