//! After its first step an optimiser allocates nothing at all: every allocation of this test program is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use limpid_nn::optim::{Adam, Group, Groups, Optimizer, Sgd};
use limpid_tensor::DType;
use limpid_tensor::rng::Key;

use crate::mlp::{Mlp, random};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every request is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are the ones `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

#[test]
fn a_step_allocates_nothing_after_the_first() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1, "the counter counts");
    let optimizers: [fn() -> Box<dyn Optimizer>; 3] = [
        || Box::new(Sgd::new()),
        || Box::new(Sgd::new().with_momentum(0.9)),
        || Box::new(Adam::adamw().with_groups(Groups::default().with("*.bias", Group::default()))),
    ];
    for (i, optimizer) in optimizers.into_iter().enumerate() {
        for dtype in [DType::F32, DType::F64] {
            let (mut model, mut optimizer) = (Mlp::new(dtype, 1), optimizer());
            let mut gradients = model.gradients(&random([5, 2], dtype, Key::new(2)));
            // A gradient may be a view, which has to be copied; what a kernel returns is contiguous.
            for p in &model.0 {
                if let Some(gradient) = gradients.of_parameter(p.id()).cloned() {
                    gradients.set_parameter(p.id(), gradient.contiguous().unwrap());
                }
            }
            let mut step = || optimizer.step(&mut model, &gradients, 0.1).unwrap();
            assert!(allocations(&mut step) > 0, "the first step makes the memory");
            for _ in 0..3 {
                assert_eq!(allocations(&mut step), 0, "optimiser {i}, {dtype}");
            }
        }
    }
}
