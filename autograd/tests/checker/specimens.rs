//! Wrong derivatives, most of which shipped in public code, as operations of their own: each is caught, and the message
//! says what is wrong with it.

use std::fmt;

use limpid_autograd::{Cotangents, Needs, Op, Pullback, Pushforward, Tape, Var};
use limpid_tensor::{Inferred, Meta, Result, Tensor};

use super::*;

/// A function, with a rule that somebody wrote for it.
struct Specimen {
    name: &'static str,
    function: Function,
    needs: fn(&[bool]) -> Needs,
    vjp: for<'a, 't> fn(&Pullback<'a, 't>) -> Cotangents<'t>,
}

impl fmt::Debug for Specimen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}()", self.name)
    }
}

impl Op for Specimen {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let tape = Tape::dry();
        let x: Vec<Var> = x.iter().map(|m| tape.constant(&Tensor::zeros(&m.shape, m.dtype))).collect();
        Ok((self.function)(&x).meta())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        let tape = Tape::inference();
        let x: Vec<Var> = x.iter().map(|x| tape.constant(x)).collect();
        Ok((self.function)(&x).value().expect("the specimens compute"))
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        (self.needs)(tracked)
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        (self.vjp)(at)
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        let x: Vec<Var> = (0..at.arity()).map(|i| at.x(i)).collect();
        at.through((self.function)(&x))
    }
}

/// The message with which a specimen fails, inside a larger function, so that it has to be found.
#[track_caller]
fn caught(inputs: &[Tensor], specimen: fn() -> Specimen, expected: &[&str]) -> String {
    let report = check(|x| around(x, specimen()), inputs);
    let message = findings(&report);
    assert!(message.starts_with(&format!("FAIL {}", specimen().name)), "{message}");
    for expected in expected {
        assert!(message.contains(expected), "expected {expected:?} in:\n{message}");
    }
    message
}

fn around<'t>(x: &[Var<'t>], specimen: Specimen) -> Var<'t> {
    let tape = x[0].tape();
    tape.scope("block", || tape.record(specimen, x)) * 1.5
}

#[test]
fn a_factor() {
    let message = caught(
        &[normal(&[2, 3], 1)],
        || Specimen {
            name: "sine",
            function: |x| x[0].sin(),
            needs: |_| Needs::inputs(&[0]),
            vjp: |at| at.each(|i| at.g() * at.x(i).cos() * 1.001),
        },
        &[
            "sine in block at ",
            "specimens.rs:",
            "x0: f64[2, 3], contiguous",
            "jvp and vjp differ",
            "slope 1.0",
            "6 of 36 entries are wrong",
            "1.001000000 times the right one",
            "cos(x0)",
            "x̄0 = %",
            "#[test]",
            "record(sine(), x)",
            "Tensor::from_vec(vec![",
        ],
    );
    println!("{message}");
}

#[test]
fn a_sign() {
    caught(
        &[normal(&[4], 1)],
        || Specimen {
            name: "cosine",
            function: |x| x[0].cos(),
            needs: |_| Needs::inputs(&[0]),
            vjp: |at| at.each(|i| at.g() * at.x(i).sin()),
        },
        &["the sign is wrong", "4 of 16 entries"],
    );
}

#[test]
fn a_dropped_term() {
    caught(
        &[normal(&[4], 1)],
        || Specimen {
            name: "swish",
            function: |x| x[0].silu(),
            needs: |_| Needs::inputs(&[0]),
            vjp: |at| at.each(|i| at.g() * at.x(i).sigmoid()),
        },
        &["worst: ∂y[", "by rule", "by differences", "±"],
    );
}

#[test]
fn a_missing_sum_over_a_broadcast_axis() {
    caught(
        &[normal(&[2, 3], 1), normal(&[3], 2)],
        || Specimen {
            name: "scale",
            function: |x| x[0] * x[1],
            needs: |_| Needs::inputs(&[0, 1]),
            vjp: |at| {
                at.each(|i| match i {
                    0 => at.g() * at.x(1),
                    _ => (at.g() * at.x(0)).select(0, 0),
                })
            },
        },
        &["x1: ", "a missing sum", "axis [0] of the result, over which x1 is broadcast"],
    );
}

#[test]
fn a_mean_instead_of_a_sum() {
    caught(
        &[normal(&[2, 3], 1), normal(&[3], 2)],
        || Specimen {
            name: "shift",
            function: |x| x[0] + x[1],
            needs: |_| Needs::NOTHING,
            vjp: |at| at.each(|i| if i == 0 { at.g() } else { at.g().mean(&[0]) }),
        },
        &["1/2 of the right one: a mean where a sum"],
    );
}

#[test]
fn a_transposed_operand() {
    caught(
        &[normal(&[3, 3], 1), normal(&[3, 3], 2)],
        || Specimen {
            name: "product",
            function: |x| x[0].matmul(x[1]),
            needs: |_| Needs::inputs(&[0, 1]),
            vjp: |at| {
                at.each(|i| match i {
                    0 => at.g().matmul(at.x(1)),
                    _ => at.x(0).transpose(0, 1).matmul(at.g()),
                })
            },
        },
        &["x0:", "the right numbers in the wrong places"],
    );
}

#[test]
fn a_transposed_gradient() {
    caught(
        &[normal(&[3, 3], 1)],
        || Specimen {
            name: "cube",
            function: |x| x[0] * x[0] * x[0],
            needs: |_| Needs::inputs(&[0]),
            vjp: |at| at.each(|i| (at.g() * at.x(i) * at.x(i) * 3.0).transpose(0, 1)),
        },
        &["the gradient of x0 is transposed"],
    );
}

#[test]
fn swapped_operands() {
    caught(
        &[normal(&[4], 1), normal(&[4], 2)],
        || Specimen {
            name: "times",
            function: |x| x[0] * x[1],
            needs: |_| Needs::inputs(&[0, 1]),
            vjp: |at| at.each(|i| at.g() * at.x(i)),
        },
        &["operands are swapped: what x1 gets is the gradient of x0"],
    );
}

#[test]
fn a_value_that_is_not_saved() {
    caught(
        &[normal(&[4], 1)],
        || Specimen {
            name: "square",
            function: |x| x[0] * x[0],
            needs: |_| Needs::OUTPUT,
            vjp: |at| at.each(|i| at.g() * at.x(i) * 2.0),
        },
        &["the vjp reads operand 0 without declaring it", "needs() declares its result"],
    );
}

#[test]
fn a_detached_path() {
    let report = check(|x| x[0].detach().sin(), &[normal(&[4], 1)]);
    let message = findings(&report);
    assert!(message.contains("no gradient arrives at all"), "{message}");
}

#[test]
fn a_rule_that_stops_at_first_order() {
    let message = findings(&check(
        |x| {
            let specimen = Specimen {
                name: "fourth",
                function: |x| x[0].powf(4.0),
                needs: |_| Needs::inputs(&[0]),
                vjp: |at| at.each(|i| at.g() * at.x(i).detach().powf(3.0) * 4.0),
            };
            x[0].tape().record(specimen, x)
        },
        &[normal(&[4], 1)],
    ));
    assert!(message.contains("second order"), "{message}");
    assert!(!message.contains("taylor:"), "{message}");
}

#[test]
fn a_linear_rule_that_stops_at_first_order() {
    // Its second derivative is 0, right or wrong, until something curved follows.
    let message = findings(&check(
        |x| {
            let specimen = Specimen {
                name: "triple",
                function: |x| x[0] * 3.0,
                needs: |_| Needs::NOTHING,
                vjp: |at| at.each(|_| at.g().detach() * 3.0),
            };
            x[0].tape().record(specimen, x)
        },
        &[normal(&[4], 1)],
    ));
    assert!(message.contains("second order"), "{message}");
}

/// The normalisation of a Sinkhorn iteration, `Y = X/s` with `s = ΣX` over a row, with the given rule for X̄.
fn normalise(
    rule: for<'a, 't> fn(&Pullback<'a, 't>) -> Cotangents<'t>,
    needs: fn(&[bool]) -> Needs,
) -> Specimen {
    Specimen { name: "normalise", function: |x| x[0] / x[0].sum(&[1]).unsqueeze(1), needs, vjp: rule }
}

/// Three iterations, columns first.
fn sinkhorn<'t>(logits: Var<'t>, normalise: fn() -> Specimen) -> Var<'t> {
    let tape = logits.tape();
    let rows = |m: Var<'t>| tape.record(normalise(), &[m]);
    (0..3).fold(logits.exp(), |m, _| rows(rows(m.transpose(0, 1)).transpose(0, 1)))
}

#[test]
fn sinkhorn_without_the_division() {
    fn specimen() -> Specimen {
        normalise(
            |at| at.each(|_| at.g() - at.y() * (at.g() * at.y()).sum(&[1]).unsqueeze(1)),
            |_| Needs::OUTPUT,
        )
    }
    let message = findings(&check(|x| sinkhorn(x[0], specimen), &[normal(&[4, 4], 1)]));
    assert!(message.starts_with("FAIL normalise"), "{message}");
}

#[test]
fn sinkhorn_with_a_factor_too_many() {
    fn specimen() -> Specimen {
        normalise(
            |at| {
                at.each(|i| {
                    let (x, g) = (at.x(i), at.g());
                    let s = x.sum(&[1]).unsqueeze(1);
                    (g - x * (g * x).sum(&[1]).unsqueeze(1) / s) / s
                })
            },
            |_| Needs::inputs(&[0]),
        )
    }
    let message = findings(&check(|x| sinkhorn(x[0], specimen), &[normal(&[4, 4], 1)]));
    assert!(message.starts_with("FAIL normalise"), "{message}");
}

#[test]
fn sinkhorn_with_the_right_rule_passes() {
    fn right() -> Specimen {
        normalise(
            |at| {
                at.each(|i| {
                    let (x, g) = (at.x(i), at.g());
                    let s = x.sum(&[1]).unsqueeze(1);
                    (g - (g * x).sum(&[1]).unsqueeze(1) / s) / s
                })
            },
            |_| Needs::inputs(&[0]),
        )
    }
    let report = check(|x| sinkhorn(x[0], right), &[normal(&[4, 4], 1)]);
    report.expect_pass();
    // The sum of a doubly stochastic matrix is a constant.
    assert!(findings(&check(|x| sinkhorn(x[0], right).sum(&[]), &[normal(&[4, 4], 1)])).contains("no power"));
}

#[test]
fn the_masks_of_scatter_and_scatter_add_exchanged() {
    caught(
        &[normal(&[2, 5], 1), ints(&[4, 0, 3, 1], &[2, 2]), normal(&[2, 2], 2)],
        || Specimen {
            name: "add_at",
            function: |x| x[0].scatter_add(1, x[1], x[2]),
            needs: |_| Needs::inputs(&[1]),
            vjp: |at| {
                let base = at.wants(0).then(|| at.g().scatter_add(1, at.x(1), -at.g().gather(1, at.x(1))));
                [base, None, at.wants(2).then(|| at.g().gather(1, at.x(1)))].into_iter().collect()
            },
        },
        &["x0:", "the wrong entries are all 0", "4 of 100 entries"],
    );
}

#[test]
fn gelu_with_constants_of_six_digits() {
    caught(
        &[normal(&[5], 1)],
        || Specimen {
            name: "rough_gelu",
            function: |x| x[0].gelu(),
            needs: |_| Needs::inputs(&[0]),
            vjp: |at| {
                at.each(|i| {
                    let x = at.x(i);
                    let density = (x * x * -0.5).exp() * 0.398942;
                    at.g() * (((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5 + x * density)
                })
            },
        },
        &["slope 1.0", "jvp and vjp differ"],
    );
}

#[test]
fn a_layer_norm_that_drops_the_gradient() {
    caught(
        &[normal(&[2, 4], 1), positive(&[4], 2), normal(&[4], 3)],
        || Specimen {
            name: "fast_layer_norm",
            function: |x| x[0].layer_norm(x[1], x[2], 1e-5),
            needs: |_| Needs::NOTHING,
            vjp: |at| (0..at.arity()).map(|i| (i == 2 && at.wants(2)).then(|| at.g().sum(&[0]))).collect(),
        },
        &["x0:", "no gradient arrives at all"],
    );
}

fn mask<'t>(x: Var<'t>, seed: u64) -> Var<'t> {
    x.tape().constant(
        &Tensor::random(Distribution::Bernoulli { p: 0.5 }, x.shape(), DType::Bool, Key::new(seed)).unwrap(),
    )
}

#[test]
fn a_dropout_mask_drawn_anew() {
    caught(
        &[normal(&[12], 1)],
        || Specimen {
            name: "drop",
            function: |x| where_(mask(x[0], 1), x[0] * 2.0, x[0].fill(0.0)),
            needs: |_| Needs::NOTHING,
            vjp: |at| at.each(|_| where_(mask(at.g(), 2), at.g() * 2.0, at.g().fill(0.0))),
        },
        &["jvp and vjp differ", "slope 1.0"],
    );
}

#[test]
fn a_rule_that_forgets_the_layout() {
    // It reads its operand's memory in row-major order, whatever its strides.
    #[derive(Debug)]
    struct Blind;

    impl Op for Blind {
        fn name(&self) -> &'static str {
            "blind"
        }
        fn infer(&self, x: &[&Meta]) -> Inferred {
            Ok(x[0].clone())
        }
        fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
            Tensor::map(limpid_tensor::Map::Mul, &[x[0], x[0]])
        }
        fn needs(&self, _tracked: &[bool]) -> Needs {
            Needs::inputs(&[0])
        }
        fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
            at.each(|i| {
                let x = at.x(i).value().unwrap();
                let memory = limpid_tensor::Layout::contiguous(x.shape());
                let raw = Tensor::from_storage(x.storage().clone(), memory, x.dtype());
                at.g() * at.x(i).tape().constant(&raw) * 2.0
            })
        }
        fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
            at.sum(|i, dx| dx * at.x(i) * 2.0)
        }
    }

    let x = transposed_in_memory(&normal(&[2, 3], 1));
    let first_order = Check::new().second_order(false);
    let message = findings(&first_order.run(|x| x[0].tape().record(Blind, x), std::slice::from_ref(&x)));
    assert!(message.contains("only with this layout"), "{message}");
    assert!(message.contains("strides [1, 2]"), "{message}");
    assert!(message.contains(".permute(&[1, 0])"), "{message}");
}
