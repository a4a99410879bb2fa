//! Operations that are not functions of their operands: each is caught where it comes back, with its name and its line.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use limpid_autograd::plan::{Plan, Policy, Verify};
use limpid_autograd::{Cotangents, Error, Needs, Op, Pullback, Tape, Var};
use limpid_nn::optim::{Optimizer, Sgd};
use limpid_nn::{Activation, Init, Linear, Module};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Inferred, Map, Meta, Reduce, Result, Tensor};

use crate::bits::{self, Bits};

type Forward = Rc<dyn Fn(&Tensor, usize) -> Result<Tensor>>;
type Rule = for<'t> fn(Var<'t>, Var<'t>) -> Var<'t>;

/// What an operation computes of its operand when it is asked for the n-th time, and its rule: a function of the cotangent
/// and the operand.
#[derive(Clone)]
struct Fault {
    forward: Forward,
    rule: Rule,
}

struct Fickle {
    fault: Fault,
    calls: Cell<usize>,
}

impl fmt::Debug for Fickle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fickle")
    }
}

impl Op for Fickle {
    fn name(&self) -> &'static str {
        "fickle"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let blank = Tensor::full([], 0.0, x[0].dtype).expand(x[0].shape.clone());
        (self.fault.forward)(&blank, 0).map(|y| y.meta()).map_err(|e| e.to_string())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        (self.fault.forward)(x[0], self.calls.replace(self.calls.get() + 1))
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| (self.fault.rule)(at.g(), at.x(0)))
    }
}

impl Fault {
    fn new(forward: impl Fn(&Tensor, usize) -> Result<Tensor> + 'static, rule: Rule) -> Fault {
        Fault { forward: Rc::new(forward), rule }
    }

    fn operand(shape: &[usize], dtype: DType) -> Tensor {
        let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
        Tensor::random(normal, shape, dtype, Key::new(5)).unwrap()
    }

    /// The loss, and the line that recorded the operation.
    fn program<'t>(&self, tape: &'t Tape, x: Var<'t>) -> (Var<'t>, u32) {
        let x = x.sin();
        let op = Fickle { fault: self.clone(), calls: Cell::new(0) };
        let (record, line) = (|| tape.record(op, &[x]), line!());
        let y = tape.scope("layer", || tape.scope("inner", record));
        ((y * y).sum(&[]), line)
    }

    fn plan(&self, x: &Tensor) -> Plan {
        let tape = Tape::dry();
        let (loss, _) = self.program(&tape, tape.variable(x));
        tape.plan(loss, &Policy::nothing()).unwrap()
    }

    /// Runs under a plan that drops everything; `between` happens between the passes.
    fn run(&self, x: &Tensor, verify: Verify, between: impl Fn()) -> (Result<Bits, Error>, u32) {
        let plan = self.plan(x);
        let tape = Tape::new().with_plan(&plan).with_verification(verify);
        let x = tape.variable(x);
        let (loss, line) = self.program(&tape, x);
        between();
        let gradient = tape.backward(loss).map(|gradients| Bits::of(gradients.of(x).unwrap()));
        if let Err(error) = &gradient {
            assert_eq!(tape.failure().unwrap().to_string(), error.to_string(), "the tape stays failed");
            assert!(tape.receipt().is_none(), "there is no receipt of a run that failed");
        }
        (gradient, line)
    }

    /// Asserts what is said of it under each kind of verification, and that without any it is not noticed.
    fn caught(&self, x: &Tensor, by_hash: &str, in_full: &str, between: impl Fn()) {
        for (verify, what) in [(Verify::Hash, by_hash), (Verify::Full, in_full)] {
            let (gradient, line) = self.run(x, verify, &between);
            let expected = format!(
                "fickle in layer/inner at {}:{line}: computed again, it is not what was dropped: {what}",
                file!()
            );
            assert_eq!(gradient.expect_err("it is caught").to_string(), expected);
        }
        let (unseen, _) = self.run(x, Verify::Off, &between);
        let tape = Tape::new();
        let x = tape.variable(x);
        let (loss, _) = self.program(&tape, x);
        let true_gradient = Bits::of(tape.backward(loss).unwrap().of(x).unwrap());
        assert_ne!(unseen.expect("nobody looks"), true_gradient, "the gradient is wrong in silence");
    }
}

/// What a full comparison says of two tensors.
fn difference(before: &Tensor, after: &Tensor) -> String {
    let (before, after) = (before.to_vec::<f32>().unwrap(), after.to_vec::<f32>().unwrap());
    let differing: Vec<usize> =
        (0..before.len()).filter(|&i| before[i].to_bits() != after[i].to_bits()).collect();
    let first = differing[0];
    let show = |v: f32| format!("0x{:08x} ({:?})", v.to_bits(), f64::from(v));
    format!(
        "{} of {} elements differ, the first is element {first} (block {}), which was {} and is {}",
        differing.len(),
        before.len(),
        first * 4 / 4096,
        show(before[first]),
        show(after[first])
    )
}

fn same_shape<'t>(g: Var<'t>, _: Var<'t>) -> Var<'t> {
    g
}

#[test]
fn a_mask_drawn_anew() {
    let masked = |x: &Tensor, call: usize| {
        let key = Key::new(1).fold(call as u64);
        let mask = Tensor::random(Distribution::Bernoulli { p: 0.5 }, x.shape().clone(), x.dtype(), key)?;
        Tensor::map(Map::Mul, &[x, &mask.to(x.device())?])
    };
    let x = Fault::operand(&[3000], DType::F32);
    let operand = Tensor::map(Map::Sin, &[&x]).unwrap();
    let in_full = difference(&masked(&operand, 0).unwrap(), &masked(&operand, 1).unwrap());
    let by_hash = "3 of 3 blocks of 4 KiB differ, the first is block 0, elements 0..1024";
    Fault::new(masked, same_shape).caught(&x, by_hash, &in_full, || {});
}

#[test]
fn an_operation_that_changes_between_the_passes() {
    let changed = Rc::new(Cell::new(false));
    let seen = changed.clone();
    let fault =
        Fault::new(move |x, _| Tensor::map(if seen.get() { Map::Cos } else { Map::Sin }, &[x]), same_shape);
    let x = Tensor::from_vec(vec![0.5f32, 1.0], [2]);
    let operand = Tensor::map(Map::Sin, &[&x]).unwrap();
    let [before, after] = [Map::Sin, Map::Cos].map(|map| Tensor::map(map, &[&operand]).unwrap());
    for (verify, what) in [
        (Verify::Hash, "1 of 1 blocks of 4 KiB differ, the first is block 0, elements 0..2".to_string()),
        (Verify::Full, difference(&before, &after)),
    ] {
        changed.set(false);
        let (gradient, _) = fault.run(&x, verify, || changed.set(true));
        let error = gradient.expect_err("it is caught").to_string();
        assert!(error.ends_with(&what), "{error}");
        changed.set(false);
        assert!(fault.run(&x, verify, || {}).0.is_ok(), "what does not change is no mistake");
    }
    changed.set(false);
    assert!(fault.run(&x, Verify::Off, || changed.set(true)).0.is_ok());
}

#[test]
fn a_sum_in_another_order() {
    let sum = |x: &Tensor, call: usize| match call {
        0 => x.reduce(Reduce::Sum, &[0]),
        _ => {
            let size = x.shape()[0];
            let part = |i| x.slice(0, i, i + 1, 1);
            (0..size - 1).rev().try_fold(part(size - 1), |sum, i| Tensor::map(Map::Add, &[&sum, &part(i)]))
        }
    };
    let x = Fault::operand(&[50, 2000], DType::F32);
    let operand = Tensor::map(Map::Sin, &[&x]).unwrap();
    let (before, after) = (sum(&operand, 0).unwrap(), sum(&operand, 1).unwrap());
    let pairs = before.to_vec::<f32>().unwrap().into_iter().zip(after.to_vec::<f32>().unwrap());
    let apart = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart > 0.0 && apart < 1e-5, "only rounding differs: {apart}");
    fn expanded<'t>(g: Var<'t>, x: Var<'t>) -> Var<'t> {
        g.expand(x.shape())
    }
    let by_hash = "2 of 2 blocks of 4 KiB differ, the first is block 0, elements 0..1024";
    Fault::new(sum, expanded).caught(&x, by_hash, &difference(&before, &after), || {});
}

#[test]
fn one_wrong_element_in_the_last_block() {
    let wrong = |x: &Tensor, call: usize| {
        if call == 0 {
            return Tensor::map(Map::Exp, &[x]);
        }
        let mut values = Tensor::map(Map::Exp, &[x])?.to_vec::<f32>()?;
        let last = values.len() - 1;
        values[last] = f32::from_bits(values[last].to_bits() ^ 1);
        Ok(Tensor::from_vec(values, x.shape().clone()))
    };
    let x = Fault::operand(&[5, 1000], DType::F32);
    let operand = Tensor::map(Map::Sin, &[&x]).unwrap();
    let in_full = difference(&wrong(&operand, 0).unwrap(), &wrong(&operand, 1).unwrap());
    assert!(
        in_full.starts_with("1 of 5000 elements differ, the first is element 4999 (block 4)"),
        "{in_full}"
    );
    let by_hash = "1 of 5 blocks of 4 KiB differ, the first is block 4, elements 4096..5000";
    Fault::new(wrong, same_shape).caught(&x, by_hash, &in_full, || {});
}

#[test]
fn a_view_of_other_elements() {
    let window = |x: &Tensor, call: usize| Ok(x.slice(0, call.min(1), call.min(1) + 4, 1));
    fn padded<'t>(g: Var<'t>, _: Var<'t>) -> Var<'t> {
        g.pad(0, 0, 1, 0.0)
    }
    let what = "it is a view of other elements of what it is computed from";
    Fault::new(window, padded).caught(&Fault::operand(&[5, 3], DType::F32), what, what, || {});
}

#[test]
fn a_view_that_becomes_a_copy_of_something_else() {
    let first_a_view = |x: &Tensor, call: usize| match call {
        0 => Ok(x.clone()),
        _ => Tensor::map(Map::Neg, &[&Tensor::map(Map::Exp, &[x])?]),
    };
    let what = "it is no longer a view of what it is computed from";
    Fault::new(first_a_view, same_shape).caught(&Fault::operand(&[5, 3], DType::F32), what, what, || {});
}

#[test]
fn nan_is_itself_and_zero_is_not_minus_zero() {
    let x = Tensor::from_vec(vec![0.0f32, f32::NAN, f32::INFINITY, 1.0], [4]);
    let steady = Fault::new(|x, _| Tensor::map(Map::Mul, &[x, x]), same_shape);
    for verify in [Verify::Hash, Verify::Full] {
        assert!(steady.run(&x, verify, || {}).0.is_ok());
    }
    let signed = Fault::new(
        |x, call| if call == 0 { Tensor::map(Map::Abs, &[x]) } else { Tensor::map(Map::Neg, &[x]) },
        same_shape,
    );
    let (gradient, _) = signed.run(&Tensor::zeros([2], DType::F32), Verify::Full, || {});
    let error = gradient.expect_err("the signs differ").to_string();
    assert!(error.ends_with("2 of 2 elements differ, the first is element 0 (block 0), which was 0x00000000 (0.0) and is 0x80000000 (-0.0)"), "{error}");
}

#[test]
fn weights_updated_between_the_passes_change_no_gradient() {
    let init = || Init::new(3).with_dtype(DType::F64);
    let layers = || [1, 2, 3].map(|i| Linear::new(&init().enter(i), 4, 4, Activation::Tanh));
    let x = Fault::operand(&[3, 4], DType::F64);
    let loss = |layers: &[Linear; 3], tape: &Tape| {
        let y = layers.iter().fold(tape.variable(&x), |x, layer| layer.forward(x));
        (y * y).sum(&[]).index()
    };
    let expected: Vec<_> = {
        let (layers, tape) = (layers(), Tape::new());
        let gradients = tape.backward(tape.at(loss(&layers, &tape))).unwrap();
        layers.iter().map(|layer| bits::gradients(layer, &gradients)).collect()
    };
    let mut layers = layers();
    let dry = Tape::dry();
    let plan = dry.plan(dry.at(loss(&layers, &dry)), &Policy::nothing()).unwrap();
    let tape = Tape::new().with_plan(&plan);
    let loss = tape.at(loss(&layers, &tape));
    // Another tape's gradients move the weights while this one is between its passes.
    for layer in &mut layers {
        let other = Tape::new();
        let gradients = other.backward(layer.forward(other.variable(&x)).sum(&[])).unwrap();
        let before = Bits::of(layer.weight.value());
        assert!(layer.weight.value_mut().as_mut_slice::<f64>().is_none(), "a tape refers to it");
        Sgd::new().step(layer, &gradients, 1.0).unwrap();
        assert_ne!(before, Bits::of(layer.weight.value()), "the weight has moved");
    }
    let gradients = tape.backward(loss).unwrap();
    assert!(plan.totals().recomputed > 0 && tape.receipt().unwrap().differences(&plan).is_empty());
    for (layer, expected) in layers.iter().zip(&expected) {
        bits::compare("gradient", expected, &bits::gradients(layer, &gradients)).unwrap();
    }
}
