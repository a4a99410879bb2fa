//! What a step of training allocates once it has been made a few times: every allocation of this test program is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use limpid_autograd::{ParamId, Tape};
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::optim::{Adam, Group, Groups, Optimizer, Sgd};
use limpid_nn::residual::{Variant, VariantConfig};
use limpid_nn::{Init, MlpConfig, Module, Parameters};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

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

#[test]
fn a_training_step_of_the_two_moons_network_allocates_nothing_after_the_first() {
    let rows = 128;
    let samples = random([rows, 2], DType::F32, Key::new(3));
    let labels = Tensor::from_vec((0..rows as i64).map(|i| i % 2).collect(), [rows]);
    for (depth, branch_dtype) in [(3, None), (20, None), (20, Some(DType::BF16))] {
        let config = MlpConfig { depth, branch_dtype, ..MlpConfig::default() };
        let settings = VariantConfig::default();
        let mut model =
            limpid_nn::Mlp::of_variant(&Init::new(0), config, Variant::Residual, &settings).unwrap();
        let mut optimizer = Sgd::new().with_momentum(0.9);
        let mut tape = Tape::new();
        let mut step = |i: u64| {
            allocations(|| {
                tape.clear(i);
                let logits = model.forward(tape.constant(&samples));
                let loss =
                    tape.scope("loss", || cross_entropy(logits, tape.constant(&labels), Reduction::Mean));
                assert!(loss.item().unwrap().is_finite());
                let gradients = tape.backward(loss).unwrap();
                tape.clear(i);
                optimizer.step(&mut model, &gradients, 0.01).unwrap();
            })
        };
        let counts: Vec<usize> = (0..6).map(&mut step).collect();
        assert!(counts[0] > 0, "the first step makes the memory");
        assert_eq!(counts[3..], [0; 3], "{depth} layers, branches in {branch_dtype:?}");
    }
}

#[test]
fn nor_does_one_that_is_replayed() {
    let rows = 128;
    let samples = random([rows, 2], DType::F32, Key::new(3));
    let labels = Tensor::from_vec((0..rows as i64).map(|i| i % 2).collect(), [rows]);
    let config = MlpConfig::default();
    let mut model =
        limpid_nn::Mlp::of_variant(&Init::new(0), config, Variant::Residual, &VariantConfig::default())
            .unwrap();
    let mut optimizer = Sgd::new().with_momentum(0.9);
    let tape = Tape::new();
    let (x, y) = (tape.constant(&samples), tape.constant(&labels));
    let loss = cross_entropy(model.forward(x), y, Reduction::Mean);
    let mut replay = tape.replay(&[x, y], loss, &[]).unwrap();
    drop(tape);
    let mut step = |_| {
        allocations(|| {
            let give = |give: &mut dyn FnMut(ParamId, &Tensor)| model.visit(&mut |p| give(p.id(), p.value()));
            let step = replay.run(&[&samples, &labels], give).unwrap();
            assert!(step.loss.item().unwrap().is_finite());
            optimizer.step(&mut model, &step.gradients, 0.01).unwrap();
        })
    };
    let counts: Vec<usize> = (0..6).map(&mut step).collect();
    assert!(counts[0] > 0, "the first step makes the memory");
    assert_eq!(counts[3..], [0; 3]);
}
