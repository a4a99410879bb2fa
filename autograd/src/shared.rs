//! Operations, what they share, and values, in memory that is used again.
//!
//! A step of training records thousands of operations of a few bytes each, and forgets them. A tensor is a reference to
//! memory and a layout, more than a hundred bytes, and a cotangent is handed on many times between a rule that computes it
//! and a rule that reads it. [`Shared`] is to a value what `Rc` is, but its memory comes from free blocks that the thread
//! keeps, and goes back to them.

use std::alloc::{self, Layout};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{self, NonNull};

use limpid_tensor::Tensor;

use crate::op::Op;

/// A counted reference.
pub(crate) struct Shared<T: ?Sized>(NonNull<Counted<T>>);

/// A counted reference to an operation.
pub(crate) type SharedOp = Shared<dyn Op>;

/// A counted reference to a value, or to a cotangent.
pub(crate) type SharedTensor = Shared<Tensor>;

struct Counted<T: ?Sized> {
    references: Cell<usize>,
    value: T,
}

impl<T> Shared<T> {
    /// The first reference to a value.
    pub fn holding(value: T) -> Shared<T> {
        let memory = take(Layout::new::<Counted<T>>()).cast::<Counted<T>>();
        // SAFETY: the memory has this layout, and nobody else has it.
        unsafe { memory.write(Counted { references: Cell::new(1), value }) };
        Shared(memory)
    }
}

impl<T: Clone> Shared<T> {
    /// The value, to be changed: a copy of it, if there are other references.
    pub fn to_mut(&mut self) -> &mut T {
        if self.counted().references.get() > 1 {
            *self = Shared::holding(T::clone(self));
        }
        // SAFETY: this is the only reference, and it is borrowed mutably.
        unsafe { &mut self.0.as_mut().value }
    }

    /// The value itself: a copy of it, if there are other references.
    pub fn into_inner(self) -> T {
        if self.counted().references.get() > 1 {
            return T::clone(&self);
        }
        let memory = ManuallyDrop::new(self).0;
        // SAFETY: this was the only reference, and nobody uses what it referred to again. The memory was taken for this
        // layout.
        let Counted { value, .. } = unsafe { memory.read() };
        give(memory.cast(), Layout::new::<Counted<T>>());
        value
    }
}

impl SharedOp {
    pub fn new<T: Op>(op: T) -> SharedOp {
        let typed = ManuallyDrop::new(Shared::holding(op));
        Shared(typed.0 as NonNull<Counted<dyn Op>>)
    }
}

impl<T: ?Sized> Shared<T> {
    #[inline]
    fn counted(&self) -> &Counted<T> {
        // SAFETY: it was written in `holding` and is there until the last reference has gone; only `drop` changes it, then.
        unsafe { self.0.as_ref() }
    }
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T: ?Sized> Clone for Shared<T> {
    #[inline]
    fn clone(&self) -> Shared<T> {
        let references = &self.counted().references;
        references.set(references.get() + 1);
        Shared(self.0)
    }
}

impl<T: ?Sized> Drop for Shared<T> {
    #[inline]
    fn drop(&mut self) {
        let references = &self.counted().references;
        references.set(references.get() - 1);
        if references.get() == 0 {
            let layout = Layout::for_value(self.counted());
            // SAFETY: this was the last reference, and its value is not used again.
            unsafe { ptr::drop_in_place(self.0.as_ptr()) };
            give(self.0.cast(), layout);
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Sizes of blocks are multiples of this, up to [`SIZES`] times.
const STEP: usize = 32;
const SIZES: usize = 16;
const ALIGN: usize = 16;

/// Which list the blocks for a layout are in, if it is small enough for one.
fn list_for(layout: Layout) -> Option<usize> {
    let list = layout.size().div_ceil(STEP).max(1) - 1;
    (list < SIZES && layout.align() <= ALIGN).then_some(list)
}

/// What is allocated for a layout: the whole block, where blocks of its size are kept.
fn allocated(layout: Layout) -> Layout {
    match list_for(layout) {
        Some(list) => Layout::from_size_align((list + 1) * STEP, ALIGN).expect("a small power of two"),
        None => layout,
    }
}

/// Blocks that nobody uses, by size.
#[derive(Default)]
struct Free([Vec<NonNull<u8>>; SIZES]);

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

fn take(layout: Layout) -> NonNull<u8> {
    let free =
        list_for(layout).and_then(|list| FREE.try_with(|free| free.borrow_mut().0[list].pop()).ok()?);
    free.unwrap_or_else(|| {
        let layout = allocated(layout);
        // SAFETY: it has a size, that of the count at least.
        let memory = unsafe { alloc::alloc(layout) };
        NonNull::new(memory).unwrap_or_else(|| alloc::handle_alloc_error(layout))
    })
}

fn give(memory: NonNull<u8>, layout: Layout) {
    let kept = list_for(layout)
        .is_some_and(|list| FREE.try_with(|free| free.borrow_mut().0[list].push(memory)).is_ok());
    if !kept {
        // SAFETY: allocated in `take` for the same layout.
        unsafe { alloc::dealloc(memory.as_ptr(), allocated(layout)) };
    }
}

impl Drop for Free {
    fn drop(&mut self) {
        for (list, blocks) in self.0.iter().enumerate() {
            let layout = Layout::from_size_align((list + 1) * STEP, ALIGN).expect("a small power of two");
            // SAFETY: allocated in `take` for this list, and used by nobody.
            blocks.iter().for_each(|block| unsafe { alloc::dealloc(block.as_ptr(), layout) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use limpid_tensor::{Inferred, Meta, Tensor};

    use super::*;
    use crate::op::Needs;

    /// An operation that owns something, of a size of one's choice.
    #[derive(Debug)]
    struct Holds<const N: usize>(Rc<()>, [u8; N]);

    impl<const N: usize> Op for Holds<N> {
        fn name(&self) -> &'static str {
            "holds"
        }
        fn infer(&self, x: &[&Meta]) -> Inferred {
            Ok(x[0].clone())
        }
        fn forward(&self, x: &[&Tensor]) -> limpid_tensor::Result<Tensor> {
            Ok(x[0].clone())
        }
        fn needs(&self, _tracked: &[bool]) -> Needs {
            Needs::NOTHING
        }
        fn flops(&self, _x: &[&Meta], _y: &Meta) -> u64 {
            Rc::strong_count(&self.0) as u64 + self.1.iter().map(|&byte| u64::from(byte)).sum::<u64>()
        }
    }

    fn lives_as_long_as_its_references<const N: usize>() {
        let owned = Rc::new(());
        let op = SharedOp::new(Holds(owned.clone(), [3; N]));
        let other = op.clone();
        drop(op);
        assert_eq!(Rc::strong_count(&owned), 2, "{N} bytes");
        let meta = Meta::new([], limpid_tensor::DType::F32);
        assert_eq!(other.flops(&[], &meta), 2 + 3 * N as u64);
        drop(other);
        assert_eq!(Rc::strong_count(&owned), 1, "{N} bytes");
    }

    #[test]
    fn an_operation_of_any_size_lives_as_long_as_its_references() {
        for _ in 0..3 {
            lives_as_long_as_its_references::<0>();
            lives_as_long_as_its_references::<17>();
            lives_as_long_as_its_references::<112>();
            lives_as_long_as_its_references::<113>();
            lives_as_long_as_its_references::<5000>();
        }
    }

    #[test]
    fn one_reference_of_several_is_changed_or_taken_as_a_copy() {
        let mut list = Shared::holding(vec![1, 2]);
        let (other, elements) = (list.clone(), list.as_ptr());
        list.to_mut().push(3);
        assert_eq!((&list[..], &other[..]), (&[1, 2, 3][..], &[1, 2][..]));
        assert_eq!(other.clone().into_inner(), [1, 2]);
        let last = other.into_inner();
        assert_eq!(last.as_ptr(), elements, "the last reference gives the value itself");
        let elements = list.as_ptr();
        list.to_mut()[0] = 7;
        assert_eq!(
            (&list[..], list.as_ptr()),
            (&[7, 2, 3][..], elements),
            "the only reference has it changed in place"
        );
    }

    #[test]
    fn a_block_is_used_again() {
        let place = |op: &SharedOp| op.0.cast::<u8>();
        let first = SharedOp::new(Holds(Rc::default(), [0; 40]));
        let block = place(&first);
        let beside = SharedOp::new(Holds(Rc::default(), [0; 40]));
        assert_ne!(place(&beside), block);
        drop(first);
        assert_ne!(place(&SharedOp::new(Holds(Rc::default(), [0; 80]))), block, "another size");
        assert_eq!(place(&SharedOp::new(Holds(Rc::default(), [0; 41]))), block);
    }
}
