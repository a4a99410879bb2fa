//! Lists whose memory is used again.
//!
//! A pass of differentiation makes a few lists as long as the tape, and every training step makes them anew. A
//! [`Recycled`] list leaves its memory to the next one with elements of the same size on its thread.

use std::alloc::{self, Layout};
use std::cell::RefCell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A `Vec` whose memory outlives it.
pub(crate) struct Recycled<T>(ManuallyDrop<Vec<T>>);

/// Larger memory goes back to the allocator, which then is no cost worth mentioning.
const LARGEST: usize = 4 << 20;
/// The most that a thread keeps at a time.
const MOST: usize = 32;

/// Memory of a list without elements.
struct Spare {
    start: NonNull<u8>,
    element: Layout,
    capacity: usize,
}

thread_local! {
    static SPARES: RefCell<Vec<Spare>> = const { RefCell::new(Vec::new()) };
}

impl<T> Recycled<T> {
    /// An empty list.
    pub fn new() -> Recycled<T> {
        let element = Layout::new::<T>();
        let find = |spares: &RefCell<Vec<Spare>>| {
            let mut spares = spares.borrow_mut();
            let at = spares.iter().rposition(|spare| spare.element == element)?;
            Some(ManuallyDrop::new(spares.swap_remove(at)))
        };
        Recycled(ManuallyDrop::new(match SPARES.try_with(find).ok().flatten() {
            // SAFETY: allocated by a `Vec` with this capacity, of elements of this size and alignment, and taken out of the
            // store without being freed.
            Some(spare) => unsafe { Vec::from_raw_parts(spare.start.cast().as_ptr(), 0, spare.capacity) },
            None => Vec::new(),
        }))
    }

    /// A list of n times the same.
    pub fn filled(n: usize, element: T) -> Recycled<T>
    where
        T: Clone,
    {
        let mut list = Recycled::new();
        list.resize(n, element);
        list
    }
}

impl<T> Drop for Recycled<T> {
    fn drop(&mut self) {
        self.0.clear();
        let (element, capacity) = (Layout::new::<T>(), self.0.capacity());
        let bytes = element.size() * capacity;
        // SAFETY: the field is not used again; this is the only place that takes it out.
        let mut list = ManuallyDrop::new(unsafe { ManuallyDrop::take(&mut self.0) });
        let start = NonNull::new(list.as_mut_ptr()).expect("a Vec's pointer is not null").cast();
        let keep = |spares: &RefCell<Vec<Spare>>| {
            let mut spares = spares.borrow_mut();
            let has_room = spares.len() < MOST;
            if has_room {
                spares.push(Spare { start, element, capacity });
            }
            has_room
        };
        let kept = bytes > 0 && bytes <= LARGEST && SPARES.try_with(keep).unwrap_or(false);
        if !kept {
            drop(ManuallyDrop::into_inner(list));
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let bytes = self.element.size() * self.capacity;
        let layout = Layout::from_size_align(bytes, self.element.align()).expect("a Vec had this layout");
        // SAFETY: allocated by a `Vec` with this layout, which is not empty, and used by nobody.
        unsafe { alloc::dealloc(self.start.as_ptr(), layout) }
    }
}

impl<T> Deref for Recycled<T> {
    type Target = Vec<T>;
    #[inline]
    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T> DerefMut for Recycled<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

impl<T> Default for Recycled<T> {
    fn default() -> Self {
        Recycled::new()
    }
}

impl<T: Clone> Clone for Recycled<T> {
    fn clone(&self) -> Self {
        self.iter().cloned().collect()
    }
}

impl<T: fmt::Debug> fmt::Debug for Recycled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> FromIterator<T> for Recycled<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let mut list = Recycled::new();
        list.extend(elements);
        list
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn the_next_list_of_such_elements_has_the_memory_of_the_last() {
        let list: Recycled<u64> = (0..100).collect();
        let (start, capacity) = (list.as_ptr(), list.capacity());
        drop(list);
        assert_ne!(Recycled::<u32>::filled(3, 1).as_ptr().cast(), start, "elements of another size");
        let next: Recycled<i64> = [7, 8].into_iter().collect();
        assert_eq!((next.as_ptr().cast(), next.capacity()), (start, capacity));
        assert_eq!(next[..], [7, 8], "what was there is gone");
        let beside = Recycled::<u64>::filled(100, 5);
        assert_ne!(beside.as_ptr(), start, "one list has it");
    }

    #[test]
    fn elements_are_dropped_with_their_list() {
        let owned = Rc::new(());
        let list: Recycled<Rc<()>> = (0..5).map(|_| owned.clone()).collect();
        assert_eq!(Rc::strong_count(&list.clone()[0]), 6 + 5);
        drop(list);
        assert_eq!(Rc::strong_count(&owned), 1);
        drop(Recycled::<Rc<()>>::new());
    }

    #[test]
    fn lists_of_nothing_and_large_ones_leave_nothing() {
        drop(Recycled::<()>::filled(10, ()));
        let large = Recycled::<u8>::filled(LARGEST + 1, 0);
        let start = large.as_ptr();
        drop(large);
        let kept = SPARES
            .with(|spares| spares.borrow().iter().any(|spare| spare.start.as_ptr().cast_const() == start));
        assert!(!kept);
    }
}
