//! Streams: reading, writing, projecting, and their cotangents, which are summed where all of them have arrived.

use limpid_autograd::ops::movement::concat;
use limpid_autograd::{Tape, Var};
use limpid_tensor::{DType, Tensor};

use crate::agrees;
use crate::check::{check, normal};

/// Leading axes, n and C.
const SIZES: [(&[usize], usize, usize); 5] =
    [(&[], 2, 3), (&[3], 1, 4), (&[2, 2], 3, 5), (&[2], 4, 17), (&[1], 2, 1)];

fn shape(lead: &[usize], own: &[usize]) -> Vec<usize> {
    lead.iter().chain(own).copied().collect()
}

/// Coefficients are f32 where streams are bf16.
fn wide(v: Var<'_>) -> Var<'_> {
    if v.dtype() == DType::BF16 { v.cast(DType::F32) } else { v }
}

/// X, F, A, b and a.
fn operands(lead: &[usize], n: usize, c: usize) -> [Tensor; 5] {
    let own: [&[usize]; 5] = [&[n, c], &[c], &[n, n], &[n], &[n]];
    std::array::from_fn(|i| normal(&shape(lead, own[i]), 1 + i as u64))
}

/// Side by side.
fn projected<'t>(x: &[Var<'t>]) -> Var<'t> {
    let phi: Vec<Var<'t>> = x[1..].iter().map(|&phi| wide(phi)).collect();
    let parts = x[0].stream_project(&phi, 0.1);
    concat(&parts, -1).cast(x[0].dtype())
}

#[test]
fn derivatives() {
    for (lead, n, c) in SIZES {
        let [x, f, mix, b, a] = operands(lead, n, c);
        let of = |what: &str| format!("{what} {lead:?} {n} streams of {c}");
        check(&of("read"), |x| x[0].stream_read(x[1]), &[x.clone(), a]);
        check(&of("write"), |x| x[0].stream_write(x[1], x[2], x[3]), &[x.clone(), f, mix, b]);
        let phi = [normal(&[n * c, 2], 7), normal(&[n * c, 3], 8)];
        check(&of("project"), projected, &[x.clone(), phi[0].clone()]);
        check(&of("project on two"), projected, &[x, phi[0].clone(), phi[1].clone()]);
    }
}

#[test]
fn fused_is_expanded() {
    for (lead, n, c) in SIZES {
        let [x, f, mix, b, a] = operands(lead, n, c);
        let of = |what: &str| format!("{what} {lead:?} {n} streams of {c}");
        agrees(&of("read"), |x| x[0].stream_read(wide(x[1])), &[x.clone(), a]);
        agrees(&of("write"), |x| x[0].stream_write(x[1], wide(x[2]), wide(x[3])), &[x.clone(), f, mix, b]);
        agrees(&of("project"), projected, &[x, normal(&[n * c, 2], 7), normal(&[n * c, 3], 8)]);
    }
}

/// A coefficient for all tokens is one for each.
#[test]
fn coefficients_may_be_the_same_for_all_tokens() {
    let [x, f, mix, b, a] = operands(&[3], 2, 4);
    let one = |x: &Tensor| x.slice(0, 0, 1, 1).reshape(&x.shape()[1..]).unwrap();
    let [mix, b, a] = [one(&mix), one(&b), one(&a)];
    check("read", |x| x[0].stream_read(x[1]), &[x.clone(), a]);
    check("write", |x| x[0].stream_write(x[1], x[2], x[3]), &[x, f, mix, b]);
}

/// A state that is read twice, written twice, projected, and used otherwise.
fn block<'t>(x: &[Var<'t>]) -> Var<'t> {
    let &[start, f, mix, b, a, phi] = x else { unreachable!() };
    let state = start * 1.5;
    let by = state.stream_project(&[wide(phi)], 0.1)[0];
    let read = state.stream_read(wide(a) * by.slice(-1, 0, 1, 1).sigmoid());
    let once =
        state.stream_write(f * read, wide(mix) * by.slice(-1, 1, 2, 1).unsqueeze(1).sigmoid(), wide(b));
    let twice = state.stream_write(read, wide(mix), wide(b));
    let other = state.stream_read(wide(b));
    once + twice.tanh() + state * other.unsqueeze(1)
}

#[test]
fn shares_of_a_cotangent_are_summed_whatever_there_are() {
    let [x, f, mix, b, a] = operands(&[3], 2, 5);
    let phi = normal(&[10, 2], 7);
    let inputs = [x, f, mix, b, a, phi];
    // One variable alone, all but one, and all: others are constants, and shares are missing.
    let mut choices = vec![(1u32 << inputs.len()) - 1];
    choices.extend((0..inputs.len()).flat_map(|i| [1 << i, ((1 << inputs.len()) - 1) & !(1 << i)]));
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5), (DType::BF16, 5e-2)] {
        for &wanted in &choices {
            let gradients = |tape: Tape| -> Vec<Vec<f64>> {
                let x: Vec<Var> = inputs
                    .iter()
                    .enumerate()
                    .map(|(i, x)| match wanted >> i & 1 {
                        1 => tape.variable(&x.cast(dtype).unwrap()),
                        _ => tape.constant(&x.cast(dtype).unwrap()),
                    })
                    .collect();
                let loss = (block(&x).cast(DType::F64) * tape.constant(&normal(&[3, 2, 5], 9))).sum(&[]);
                let gradients = tape.backward(loss).unwrap();
                let of = |x: &Var| gradients.of(*x).map(|g| g.to_f64_vec().unwrap());
                x.iter().filter_map(of).collect()
            };
            let (found, expected) =
                (gradients(Tape::new()), gradients(Tape::new().with_fused_expanded(true)));
            assert_eq!(found.len(), wanted.count_ones() as usize);
            for (found, expected) in found.iter().zip(&expected) {
                let scale = expected.iter().fold(1.0f64, |scale, v| scale.max(v.abs()));
                for (a, b) in found.iter().zip(expected) {
                    assert!((a - b).abs() <= tolerance * scale, "{dtype}, wanted {wanted:b}: {a}, not {b}");
                }
            }
        }
    }
}

/// A pass that is kept, and can be differentiated, computes every share by itself; one that is not sums three in one kernel.
#[test]
fn kept_or_not_a_gradient_is_the_same() {
    let [x, f, mix, b, a] = operands(&[3], 2, 5);
    let tape = Tape::new();
    let x = [x, f, mix, b, a, normal(&[10, 2], 7)].map(|x| tape.variable(&x));
    let loss = (block(&x) * tape.constant(&normal(&[3, 2, 5], 9))).sum(&[]);
    let kept = tape.grad(loss, &x).unwrap();
    let gradients = tape.backward(loss).unwrap();
    for (x, kept) in x.iter().zip(kept) {
        let (kept, found) = (kept.value().unwrap().to_f64_vec().unwrap(), gradients.of(*x).unwrap());
        for (a, b) in found.to_f64_vec().unwrap().iter().zip(&kept) {
            assert!((a - b).abs() <= 1e-13 * b.abs().max(1.0), "{a}, not {b}");
        }
    }
}

/// Numbers on paper: one token, two streams of one channel.
#[test]
fn values_on_paper() {
    let tape = Tape::new();
    let of = |v: &[f64], shape: &[usize]| tape.variable(&Tensor::from_slice(v, shape));
    let x = of(&[3.0, 4.0], &[2, 1]);
    let (a, b, f) = (of(&[2.0, 10.0], &[2]), of(&[1.0, -1.0], &[2]), of(&[7.0], &[1]));
    let mix = of(&[1.0, 2.0, 0.0, 3.0], &[2, 2]);
    let value = |v: Var<'_>| v.value().unwrap().to_f64_vec().unwrap();
    assert_eq!(value(x.stream_read(a)), [46.0]);
    assert_eq!(value(x.stream_write(f, mix, b)), [3.0 + 8.0 + 7.0, 12.0 - 7.0]);
    // r = √((9 + 16)/2 + 0) and v·φ = 3 − 4.
    let y = x.stream_project(&[of(&[1.0, -1.0], &[2, 1])], 0.0)[0];
    assert_eq!(value(y), [-1.0 / 12.5f64.sqrt()]);
    // X̄ = Aᵀ·G + aᵀ·H for G = (1, 1) and H = 1.
    let loss = x.stream_write(f, mix, b).sum(&[]) + x.stream_read(a).sum(&[]);
    assert_eq!(tape.backward(loss).unwrap().of(x).unwrap().to_f64_vec().unwrap(), [1.0 + 2.0, 5.0 + 10.0]);
}

#[test]
#[should_panic(expected = "stream_write: F must be f64[3, 5], found f64[3, 4]")]
fn a_branch_of_another_size_is_refused() {
    let [x, f, mix, b, _] = operands(&[3], 2, 5);
    let tape = Tape::new();
    let [x, f, mix, b] = [x, f.slice(1, 0, 4, 1), mix, b].map(|x| tape.variable(&x));
    x.stream_write(f, mix, b);
}

#[test]
#[should_panic(expected = "stream_project: φ for streams f64[3, 2, 5] must be f64[10, m], found f64[9, 2]")]
fn a_projection_of_another_size_is_refused() {
    let tape = Tape::new();
    let x = tape.variable(&normal(&[3, 2, 5], 1));
    x.stream_project(&[tape.variable(&normal(&[9, 2], 2))], 0.0);
}
