//! How often a wrong derivative is missed: over seeds, and over sizes.

use limpid_autograd::check::Check;
use limpid_autograd::{Cotangents, Needs, Op, Pullback, Pushforward, Var};
use limpid_tensor::{Inferred, Meta, Result, Tensor, infer_matmul};

use super::*;

/// `A·x` for a matrix A, whose rule has one entry of A wrong by a factor. Both rules share the error.
#[derive(Debug)]
struct OneWrongEntry {
    factor: f64,
}

/// The matrix with one entry changed.
fn changed<'t>(a: Var<'t>, factor: f64) -> Var<'t> {
    let shape = a.shape();
    let mut mask = vec![1.0; shape.elements()];
    mask[shape.elements() / 3] = factor;
    a * a.tape().constant(&Tensor::from_vec(mask, shape))
}

impl Op for OneWrongEntry {
    fn name(&self) -> &'static str {
        "one_wrong_entry"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_matmul(x[0], x[1])
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        x[0].matmul(x[1])
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let by_x = changed(at.x(0), self.factor).transpose(0, 1).matmul(at.g());
        [None, Some(by_x)].into_iter().collect()
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.dx(1).map(|dx| changed(at.x(0), self.factor).matmul(dx))
    }
}

/// One probe through a smooth function, so that truncation is there to hide in.
fn one_entry(factor: f64, seed: u64, a: &Tensor, x: &Tensor) -> limpid_autograd::check::Report {
    Check::new().probes(1).seed(seed).second_order(false).explain(false).run(
        |x| {
            let tape = x[0].tape();
            tape.record(OneWrongEntry { factor }, &[tape.constant(a), x[0]]).tanh()
        },
        std::slice::from_ref(x),
    )
}

#[test]
fn one_entry_of_ten_thousand_off_by_a_thousandth_is_caught_whatever_the_seed() {
    let mut missed = 0;
    for seed in 0..1000 {
        let a = uniform(&[100, 100], 0.0, 0.02, seed);
        let x = normal(&[100, 1], seed + 5000);
        missed += usize::from(one_entry(1.001, seed, &a, &x).passed());
        if seed % 50 == 0 {
            let right = one_entry(1.0, seed, &a, &x);
            assert!(right.passed(), "{right}");
        }
    }
    assert_eq!(missed, 0, "of 1000");
}

/// y = sin x, with something wrong about its derivative.
#[derive(Debug)]
struct WrongSine {
    wrong: for<'t> fn(Var<'t>) -> Var<'t>,
    /// In forward mode too.
    both: bool,
}

impl Op for WrongSine {
    fn name(&self) -> &'static str {
        "wrong_sine"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Tensor::map(limpid_tensor::Map::Sin, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| (self.wrong)(at.g() * at.x(i).cos()))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|i, dx| {
            let right = dx * at.x(i).cos();
            if self.both { (self.wrong)(right) } else { right }
        })
    }
}

#[test]
fn a_factor_of_two_is_caught_at_every_size() {
    let twice = || WrongSine { wrong: |slope| slope * 2.0, both: true };
    for n in [10, 1_000, 1_000_000] {
        let x = uniform(&[n], 0.1, 1.2, 3);
        let check = Check::new().probes(1).second_order(false).explain(n < 1_000_000);
        let message = findings(&check.run(|x| x[0].tape().record(twice(), x), std::slice::from_ref(&x)));
        assert!(message.contains("slope 1.00 (right: 3)"), "{n}: {message}");
        assert!(n == 1_000_000 || message.contains("2.000000000 times the right one"), "{n}: {message}");
        check.run(|x| x[0].sin(), &[x]).expect_pass();
    }
}

#[test]
fn what_is_allowed_for_rounding_does_not_grow_with_the_number_of_elements() {
    let one_off = || WrongSine { wrong: |slope| changed(slope, 1.0 + 1e-7), both: false };
    for n in [10, 1_000, 1_000_000] {
        let x = uniform(&[n], 0.1, 1.2, 3);
        let check = Check::new().probes(1).second_order(false).explain(false);
        let message = findings(&check.run(|x| x[0].tape().record(one_off(), x), &[x]));
        assert!(message.contains("jvp and vjp differ"), "{n}: {message}");
    }
}

#[test]
fn one_wrong_entry_among_many_is_found_by_halving() {
    let (a, x) = (uniform(&[100, 100], 0.0, 0.02, 1), normal(&[100, 1], 2));
    let check = Check::new().second_order(false);
    let f =
        |factor: f64| check.run(|x| x[0].tape().record(OneWrongEntry { factor }, x), &[a.clone(), x.clone()]);
    // Its rule has nothing for the matrix, which is the first thing to be said.
    assert!(findings(&f(1.0)).contains("x0: symmetric Taylor"));
    let report = check.run(
        |x| x[0].tape().record(OneWrongEntry { factor: 1.001 }, &[x[0].tape().constant(&a), x[0]]),
        std::slice::from_ref(&x),
    );
    let message = findings(&report);
    // Element 3333 of the matrix is in row 33 and column 33.
    assert!(message.contains("∂⟨u, y⟩/∂x1[33, 0]"), "{message}");
    assert!(message.contains("1 of 100 entries are wrong"), "{message}");
}
