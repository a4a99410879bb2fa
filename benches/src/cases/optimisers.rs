//! Steps of optimisers.

use limpid_autograd::Gradients;
use limpid_nn::optim::{Adam, Optimizer, Sgd};
use limpid_nn::{Activation, Init, Linear};
use limpid_tensor::{DType, Result};

use super::{LARGE, SMALL};
use crate::case::{Queue, normal};
use crate::{Case, Work};

/// An optimiser, and how many tensors it remembers of every weight.
type Kind = (&'static str, fn() -> Box<dyn Optimizer>, usize);

const KINDS: [Kind; 4] = [
    ("sgd", || Box::new(Sgd::new()), 0),
    ("momentum", || Box::new(Sgd::new().with_momentum(0.9)), 1),
    ("momentum, norm limited", || Box::new(Sgd::new().with_momentum(0.9).with_max_norm(1.0)), 1),
    ("adamw", || Box::new(Adam::adamw()), 2),
];

pub(super) fn cases() -> Vec<Case> {
    let of_size = |n: usize| KINDS.map(|kind| step(kind, n));
    [SMALL, LARGE].into_iter().flat_map(of_size).collect()
}

/// The step of one weight of n elements: what it reads and writes again is the weight and what is remembered of it.
fn step((name, optimizer, remembered): Kind, n: usize) -> Case {
    let tensor = (n * DType::F32.size()) as f64;
    let limits_norm = name.contains("norm");
    let work = Work {
        read: tensor * (2 + remembered + usize::from(limits_norm)) as f64,
        written: tensor * (1 + remembered) as f64,
        ..Work::default()
    };
    Case::of_work("optimizer", format!("{name} f32 {n}"), work, move || prepare(optimizer(), n))
}

fn prepare(mut optimizer: Box<dyn Optimizer>, n: usize) -> Result<Queue> {
    let mut model = Linear::new(&Init::new(0), n, 1, Activation::Identity).without_bias();
    let gradient = normal(&[1, n], DType::F32, 1)?;
    Ok(Box::new(move || {
        // Not kept from step to step: the squares of a gradient are found once.
        let mut gradients = Gradients::default();
        gradients.set_parameter(model.weight.id(), gradient.clone());
        optimizer.step(&mut model, &gradients, 1e-6).expect("the gradients are finite");
        Ok(Vec::new())
    }))
}
