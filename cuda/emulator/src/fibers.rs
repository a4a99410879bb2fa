//! The coroutines of a block, and the stacks that they run on.

use std::sync::Mutex;

use corosensei::stack::{DefaultStack, Stack, StackPointer};
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::abi::Context;

/// Enough for a kernel's local arrays and for the emulator's own functions.
const STACK_BYTES: usize = 128 << 10;
/// Stacks start at addresses that differ modulo the size of a cache's way, lest all compete for one set of lines.
const STAGGER: usize = 1088;
const STAGGERS: usize = 16;

/// A stack that begins a little below its top.
pub(crate) struct Staggered {
    stack: DefaultStack,
    unused: usize,
}

// SAFETY: base and limit are those of a stack, but for some multiple of 16 bytes at the top, which is far smaller than
// the stack.
unsafe impl Stack for Staggered {
    fn base(&self) -> StackPointer {
        StackPointer::new(self.stack.base().get() - self.unused).expect("the top of a stack is far from null")
    }

    fn limit(&self) -> StackPointer {
        self.stack.limit()
    }
}

/// Stacks that no thread runs on now, for all launches of the process.
static FREE: Mutex<Vec<Staggered>> = Mutex::new(Vec::new());
/// More than a block needs are given back to the system.
const MOST_KEPT: usize = 1024;

/// The thread has more to do, or it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Suspended,
    Ended,
}

pub(crate) type Body = unsafe extern "C" fn(*mut *mut std::ffi::c_void);

/// The threads of a block as coroutines. A thread takes a stack when it first runs and returns it when it ends, so that
/// threads that never wait all use one.
pub(crate) struct Fibers {
    running: Vec<Option<Coroutine<(), (), (), Staggered>>>,
    free: Vec<Staggered>,
    made: usize,
}

impl Fibers {
    pub fn new(threads: usize) -> Fibers {
        let free = std::mem::take(&mut *FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let made = free.len();
        Fibers { running: (0..threads).map(|_| None).collect(), free, made }
    }

    /// Runs a thread until it waits or ends.
    ///
    /// # Safety
    /// `body` may be called with `arguments`; `context` is the thread's, and both stay where they are until the thread
    /// has ended or [`Fibers::abandon`] was called.
    pub unsafe fn step(
        &mut self,
        thread: usize,
        context: *mut Context,
        body: Body,
        arguments: *mut *mut std::ffi::c_void,
    ) -> std::io::Result<Step> {
        if self.running[thread].is_none() {
            let stack = self.stack()?;
            // SAFETY: the caller vouches for the context.
            let context = unsafe { &mut *context };
            context.stack = stack.limit().get();
            context.stack_size = stack.base().get() - context.stack;
            // Raw pointers as numbers: a coroutine's function must not borrow.
            let (context, arguments) = (context as *mut Context as usize, arguments as usize);
            self.running[thread] =
                Some(Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
                    // SAFETY: the caller of `step` vouches for both.
                    unsafe {
                        (*(context as *mut Context)).yielder = std::ptr::from_ref(yielder).cast();
                        body(arguments as *mut *mut std::ffi::c_void);
                    }
                }));
        }
        let Some(fiber) = &mut self.running[thread] else { return Ok(Step::Ended) };
        if let CoroutineResult::Yield(()) = fiber.resume(()) {
            return Ok(Step::Suspended);
        }
        self.free.extend(self.running[thread].take().map(Coroutine::into_stack));
        Ok(Step::Ended)
    }

    fn stack(&mut self) -> std::io::Result<Staggered> {
        if let Some(stack) = self.free.pop() {
            return Ok(stack);
        }
        self.made += 1;
        Ok(Staggered { stack: DefaultStack::new(STACK_BYTES)?, unused: self.made % STAGGERS * STAGGER })
    }

    /// Leaves all threads where they are, for ever.
    pub fn abandon(&mut self) {
        for fiber in self.running.iter_mut().filter_map(Option::take) {
            let mut fiber = fiber;
            // SAFETY: a suspended thread is in a kernel, which owns nothing, and in a function of this crate that the
            // kernel called, which holds nothing that must be dropped.
            unsafe { fiber.force_reset() };
            self.free.push(fiber.into_stack());
        }
    }
}

impl Drop for Fibers {
    fn drop(&mut self) {
        self.abandon();
        let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        free.append(&mut self.free);
        free.truncate(MOST_KEPT);
    }
}
