//! Norms, clipping and accumulation of a model's gradients.

use limpid_autograd::Gradients;
use limpid_nn::{
    Accumulator, Error, Parameter, Parameters, Role, clip_norm, clip_value, global_norm, gradient_norms,
};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use crate::mlp::{Mlp, random};

/// A model with these gradients: `b [2] = (3, 4)`, `a [1] = (12)` and a frozen weight that has one too.
fn example(dtype: DType) -> (Mlp, Gradients) {
    let weight = |path: &str, n: usize| Parameter::new(path, Tensor::zeros([n], dtype), Role::Weight);
    let mut model = Mlp(vec![weight("b", 2), weight("a", 1), weight("frozen", 1), weight("unreached", 1)]);
    model.set_frozen("frozen", true).unwrap();
    let mut gradients = Gradients::default();
    for (p, gradient) in model.0.iter().zip([vec![3.0, 4.0], vec![12.0], vec![1000.0]]) {
        gradients.set_parameter(p.id(), Tensor::from_f64(&gradient, [gradient.len()], dtype));
    }
    (model, gradients)
}

fn values(model: &Mlp, gradients: &Gradients) -> Vec<Vec<f64>> {
    let found = model.0.iter().filter_map(|p| gradients.of_parameter(p.id()));
    found.map(|gradient| gradient.to_f64_vec().unwrap()).collect()
}

#[test]
fn norms_are_reported_in_the_order_of_the_model() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let (model, gradients) = example(dtype);
        let norms = gradient_norms(&model, &gradients).unwrap();
        assert_eq!(norms, [("b", 5.0), ("a", 12.0)]);
        assert_eq!(global_norm(&model, &gradients).unwrap(), 13.0);
    }
}

#[test]
fn the_norm_is_that_of_all_elements_in_f64() {
    let model = Mlp::new(DType::F32, 1);
    let gradients = model.gradients(&random([33, 2], DType::F32, Key::new(1)));
    let all: Vec<f64> = values(&model, &gradients).concat();
    let expected = all.iter().map(|v| v * v).sum::<f64>().sqrt();
    let found = global_norm(&model, &gradients).unwrap();
    assert!((found - expected).abs() <= 1e-14 * expected, "{found} against {expected}");
    // Added to the large square in f32, the small ones would be lost.
    let mut long = vec![1e-4f32; 1 << 16];
    long[0] = 64.0;
    let model = Mlp(vec![Parameter::new("w", Tensor::zeros([long.len()], DType::F32), Role::Weight)]);
    let mut gradients = Gradients::default();
    let small = f64::from(long[1]).powi(2) * (long.len() - 1) as f64;
    gradients.set_parameter(model.0[0].id(), Tensor::from_slice(&long, [long.len()]));
    let square = global_norm(&model, &gradients).unwrap().powi(2);
    assert!((square - 64f64.powi(2) - small).abs() < 1e-8, "{square}");
}

#[test]
fn the_norm_does_not_depend_on_the_order_of_the_model() {
    let mut model = Mlp::new(DType::F64, 4);
    let gradients = model.gradients(&random([33, 2], DType::F64, Key::new(1)));
    let norm = global_norm(&model, &gradients).unwrap();
    model.0.reverse();
    assert_eq!(global_norm(&model, &gradients).unwrap().to_bits(), norm.to_bits());
}

#[test]
fn a_square_is_summed_once_for_each_gradient() {
    let (model, mut gradients) = example(DType::F64);
    let (b, a) = (model.0[0].id(), model.0[1].id());
    let sum = |found: f64| move |x: &[&Tensor]| Ok::<_, Error>(vec![found; x.len()]);
    let never = |_: &[&Tensor]| -> Result<Vec<f64>, Error> { panic!("nothing has changed") };
    assert_eq!(gradients.squares(&[b], sum(1.0)).unwrap(), [Some(1.0)]);
    assert_eq!(gradients.squares(&[a, b], sum(2.0)).unwrap(), [Some(2.0); 2], "one of them was not known");
    assert_eq!(gradients.squares(&[b, a], never).unwrap(), [Some(2.0); 2]);
    let gradient = gradients.of_parameter(a).unwrap().clone();
    gradients.set_parameter(a, gradient);
    assert_eq!(gradients.squares(&[b], never).unwrap(), [Some(2.0)]);
    assert_eq!(
        gradients.squares(&[a], sum(3.0)).unwrap(),
        [Some(3.0)],
        "another gradient has taken its place"
    );
}

#[test]
fn clipping_changes_no_gradient_that_somebody_else_holds() {
    let (model, mut gradients) = example(DType::F32);
    let held: Vec<Tensor> = model.0.iter().filter_map(|p| gradients.of_parameter(p.id()).cloned()).collect();
    let before: Vec<Vec<f64>> = held.iter().map(|g| g.to_f64_vec().unwrap()).collect();
    for most in [6.5, 3.25] {
        // The first time they are held, the second time they are nobody else's.
        clip_norm(&model, &mut gradients, most).unwrap();
    }
    assert_eq!(values(&model, &gradients), [vec![0.75, 1.0], vec![3.0], vec![1000.0]]);
    assert_eq!(held.iter().map(|g| g.to_f64_vec().unwrap()).collect::<Vec<_>>(), before);
}

#[test]
fn clipping_scales_only_what_is_too_large() {
    let (model, mut gradients) = example(DType::F64);
    assert_eq!(clip_norm(&model, &mut gradients, 13.0).unwrap(), 13.0);
    assert_eq!(values(&model, &gradients), [vec![3.0, 4.0], vec![12.0], vec![1000.0]], "at the limit");
    assert_eq!(clip_norm(&model, &mut gradients, 6.5).unwrap(), 13.0);
    assert_eq!(
        values(&model, &gradients),
        [vec![1.5, 2.0], vec![6.0], vec![1000.0]],
        "the frozen one is left alone"
    );
    assert_eq!(clip_norm(&model, &mut gradients, f64::INFINITY).unwrap(), 6.5);
    clip_value(&model, &mut gradients, 1.75).unwrap();
    assert_eq!(values(&model, &gradients), [vec![1.5, 1.75], vec![1.75], vec![1000.0]]);
}

#[test]
fn zero_gradients_stay_zero() {
    let (model, mut gradients) = example(DType::F32);
    for (p, n) in model.0.iter().zip([2, 1, 1]) {
        gradients.set_parameter(p.id(), Tensor::zeros([n], DType::F32));
    }
    assert_eq!(clip_norm(&model, &mut gradients, 1.0).unwrap(), 0.0);
    assert_eq!(values(&model, &gradients).concat(), [0.0; 4]);
}

#[test]
fn a_gradient_that_is_not_finite_is_named_and_left_as_it_is() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e200] {
        let (model, mut gradients) = example(DType::F64);
        gradients.set_parameter(model.0[0].id(), Tensor::from_vec(vec![1.0, bad], [2]));
        let error = clip_norm(&model, &mut gradients, 1.0).unwrap_err().to_string();
        let found = if bad.is_nan() { "NaN" } else { "inf" };
        assert_eq!(error, format!("gradient of b: expected a finite norm, found {found}"));
        assert_eq!(values(&model, &gradients)[1], [12.0]);
    }
    for bad in [0.0, -1.0, f64::NAN] {
        let (model, mut gradients) = example(DType::F64);
        let error = clip_norm(&model, &mut gradients, bad).unwrap_err().to_string();
        assert_eq!(error, format!("maximal norm: expected a number above 0, found {bad}"));
        let error = clip_value(&model, &mut gradients, bad).unwrap_err().to_string();
        assert_eq!(error, format!("bound of a gradient: expected a number above 0, found {bad}"));
    }
}

/// A linear model and whole-numbered data, for which every sum is exact in any order.
fn whole_numbers() -> (Mlp, Tensor) {
    let mut model = Mlp::new(DType::F64, 0);
    model.0.truncate(1);
    model.0[0].set_value(Tensor::from_f64(
        &(0..16).map(|v| f64::from(v % 5 - 2)).collect::<Vec<_>>(),
        [2, 8],
        DType::F64,
    ));
    let x = (0..24).map(|v| f64::from(v * 7 % 11 - 5)).collect::<Vec<_>>();
    (model, Tensor::from_f64(&x, [12, 2], DType::F64))
}

fn squared_sum(model: &Mlp, x: &Tensor, mean_of: Option<usize>) -> Gradients {
    let tape = limpid_autograd::Tape::new();
    let y = tape.constant(x).matmul(model.0[0].on(&tape));
    let sum = (y * y).sum(&[]);
    tape.backward(mean_of.map_or(sum, |n| sum * (1.0 / n as f64))).unwrap()
}

#[test]
fn micro_batches_sum_to_the_large_batch_exactly() {
    let (model, x) = whole_numbers();
    let whole = squared_sum(&model, &x, None);
    let mut parts = Accumulator::new();
    for (start, end) in [(0, 1), (1, 5), (5, 12)] {
        parts.add(&model, &squared_sum(&model, &x.slice(0, start, end, 1), None), 1.0).unwrap();
    }
    assert_eq!(values(&model, parts.sum()), values(&model, &whole));
}

#[test]
fn unequal_micro_batches_average_to_the_large_batch() {
    let (model, x) = whole_numbers();
    let whole = values(&model, &squared_sum(&model, &x, Some(12))).concat();
    let mut parts = Accumulator::new();
    for (start, end) in [(0, 4), (4, 6), (6, 12)] {
        let part = squared_sum(&model, &x.slice(0, start, end, 1), Some(end - start));
        parts.add(&model, &part, (end - start) as f64).unwrap();
    }
    let mean = values(&model, &parts.mean(&model).unwrap()).concat();
    for (mean, whole) in mean.iter().zip(&whole) {
        assert!((mean - whole).abs() <= 1e-13 * whole.abs().max(1.0), "{mean} against {whole}");
    }
}

#[test]
fn a_network_accumulates_to_rounding() {
    let model = Mlp::new(DType::F64, 1);
    let x = random([32, 2], DType::F64, Key::new(3));
    let whole = values(&model, &model.gradients(&x)).concat();
    let mut parts = Accumulator::new();
    for start in (0..32).step_by(8) {
        parts.add(&model, &model.gradients(&x.slice(0, start, start + 8, 1)), 1.0).unwrap();
    }
    for (sum, whole) in values(&model, parts.sum()).concat().iter().zip(&whole) {
        assert!((sum - whole).abs() <= 1e-12 * whole.abs().max(1.0), "{sum} against {whole}");
    }
}

#[test]
fn a_weight_that_only_some_parts_reach_counts_as_zero_in_the_others() {
    let (model, gradients) = example(DType::F64);
    let mut parts = Accumulator::new();
    parts.add(&model, &gradients, 1.0).unwrap();
    let mut other = Gradients::default();
    other.set_parameter(model.0[1].id(), Tensor::from_vec(vec![4.0f64], [1]));
    parts.add(&model, &other, 3.0).unwrap();
    assert_eq!(values(&model, parts.sum()), [vec![3.0, 4.0], vec![24.0]]);
    assert_eq!(values(&model, &parts.mean(&model).unwrap()), [vec![0.75, 1.0], vec![6.0]]);
}

#[test]
fn accumulating_nothing_is_an_error() {
    let (model, gradients) = example(DType::F64);
    let error = Accumulator::new().mean(&model).err().unwrap().to_string();
    assert_eq!(error, "micro-batches: expected at least one, found 0");
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = Accumulator::new().add(&model, &gradients, bad).unwrap_err().to_string();
        assert_eq!(error, format!("weight of a micro-batch: expected a finite number above 0, found {bad}"));
    }
}
