//! Derivatives that shipped elsewhere, but for Sinkhorn's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

pub fn exhibits() -> Vec<Exhibit> {
    let positions = || ints(&[2, 0, 1, 2], &[2, 2]);
    vec![
        Exhibit {
            name: "scatter-add-mask",
            inputs: vec![short(&[2, 3], 1), positions(), short(&[2, 2], 2)],
            program: |x| {
                let add_at = Specimen {
                    name: "add_at",
                    function: |x| x[0].scatter_add(1, x[1], x[2]),
                    needs: |_| Needs::inputs(&[1]),
                    vjp: |at| without_written(at, true),
                };
                alone(x, add_at)
            },
            verdict: "FAIL add_at at ",
            says: &["x0:", "the wrong entries are all 0", "4 of 36 entries", "vec![2i64, 0, 1, 2]"],
        },
        Exhibit {
            name: "scatter-mask",
            inputs: vec![short(&[2, 3], 1), positions(), short(&[2, 2], 2)],
            program: |x| {
                let put_at = Specimen {
                    name: "put_at",
                    function: |x| x[0].scatter_add(1, x[1], x[2] - x[0].gather(1, x[1])),
                    needs: |tracked| Needs::inputs(&[1]).when(tracked[2]),
                    vjp: |at| without_written(at, false),
                };
                alone(x, put_at)
            },
            verdict: "FAIL put_at at ",
            says: &["x0:", "4 of 36 entries", "every wrong entry should be 0"],
        },
        Exhibit {
            name: "overwritten",
            inputs: vec![short(&[2, 3], 1)],
            program: |x| {
                let residual = Specimen {
                    name: "residual",
                    function: |x| x[0] + x[0].sin(),
                    needs: |_| Needs::inputs(&[0]),
                    vjp: |at| {
                        let mut gradients = HashMap::new();
                        gradients.insert("x", at.g());
                        gradients.insert("x", at.g() * at.x(0).cos());
                        [gradients.remove("x")].into_iter().collect()
                    },
                };
                alone(x, residual)
            },
            verdict: "FAIL residual at ",
            says: &["every diagonal entry is off by the same number, -1", "a skip connection"],
        },
        Exhibit {
            name: "gelu-six-digits",
            inputs: vec![short(&[3], 1)],
            program: |x| {
                let gelu = Specimen {
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
                };
                alone(x, gelu)
            },
            verdict: "FAIL rough_gelu at ",
            says: &["slope 1.0", "jvp and vjp differ"],
        },
        Exhibit {
            name: "silent-layer-norm",
            inputs: vec![short(&[2, 3], 1), short(&[3], 2), short(&[3], 3)],
            program: |x| {
                let layer_norm = Specimen {
                    name: "fast_layer_norm",
                    function: |x| x[0].layer_norm(x[1], x[2], 1e-5),
                    needs: |_| Needs::NOTHING,
                    vjp: |at| (0..at.arity()).map(|_| None).collect(),
                };
                alone(x, layer_norm)
            },
            verdict: "FAIL fast_layer_norm at ",
            says: &["x0:", "no gradient arrives at all"],
        },
        Exhibit {
            name: "single-pass-variance",
            inputs: vec![far_from_zero(1e5)],
            program: |x| x[0].tape().record(SinglePass, x),
            verdict: "INCONCLUSIVE taylor: rounding hides errors of input 0's gradient",
            says: &[],
        },
        Exhibit {
            name: "single-pass-layer-norm",
            inputs: vec![far_from_zero(1e7)],
            program: |x| {
                let normalised = Specimen {
                    name: "normalised",
                    function: |x| (x[0] - row_mean(x[0])) * (x[0].var(&[1], 0) + 1e-5).rsqrt().unsqueeze(1),
                    needs: |_| Needs::inputs(&[0]).or(Needs::OUTPUT),
                    vjp: |at| {
                        at.each(|i| {
                            let (y, g) = (at.y(), at.g());
                            let deviation = (single_pass(at.x(i)) + 1e-5).rsqrt().unsqueeze(1);
                            (g - row_mean(g) - y * row_mean(g * y)) * deviation
                        })
                    },
                };
                alone(x, normalised)
            },
            verdict: "FAIL normalised at ",
            says: &["jvp and vjp differ", "slope 1.0"],
        },
        Exhibit {
            name: "dropout-other-mask",
            inputs: vec![short(&[3, 3], 1)],
            program: |x| {
                let drop = Specimen {
                    name: "drop",
                    function: |x| dropped(x[0], 3),
                    needs: |_| Needs::NOTHING,
                    vjp: |at| at.each(|_| dropped(at.g(), 4)),
                };
                alone(x, drop)
            },
            verdict: "FAIL drop at ",
            says: &["jvp and vjp differ", "slope 1.0", "another mask"],
        },
        Exhibit {
            name: "dropout-redrawn",
            inputs: vec![short(&[2, 3], 1)],
            program: |x| {
                let drop = Specimen {
                    name: "drop",
                    function: |x| dropped(x[0], 3),
                    needs: |_| Needs::NOTHING,
                    vjp: |at| {
                        static DRAWS: AtomicU64 = AtomicU64::new(2);
                        at.each(|_| dropped(at.g(), DRAWS.fetch_add(1, Ordering::Relaxed)))
                    },
                };
                alone(x, drop)
            },
            verdict: "FAIL drop at ",
            says: &["computed twice, the gradient differs"],
        },
    ]
}

/// The cotangents of a scatter: with the base's set to 0 where it was written to, or as they are.
fn without_written<'t>(at: &Pullback<'_, 't>, masked: bool) -> Cotangents<'t> {
    let base = |g: Var<'t>| match masked {
        true => g.scatter_add(1, at.x(1), -g.gather(1, at.x(1))),
        false => g,
    };
    let source = at.wants(2).then(|| at.g().gather(1, at.x(1)));
    [at.wants(0).then(|| base(at.g())), None, source].into_iter().collect()
}

fn dropped(x: Var<'_>, seed: u64) -> Var<'_> {
    let kept = Tensor::random(Distribution::Bernoulli { p: 0.5 }, x.shape(), DType::Bool, Key::new(seed));
    where_(x.tape().constant(&kept.unwrap()), x * 2.0, x.fill(0.0))
}

/// A mean that is large, and a little, for which its square has few digits left.
fn far_from_zero(mean: f64) -> Tensor {
    let little = short(&[2, 3], 1).to_f64_vec().unwrap();
    Tensor::from_vec(little.iter().map(|x| mean + x).collect::<Vec<f64>>(), [2, 3])
}

fn row_mean(x: Var<'_>) -> Var<'_> {
    x.mean(&[1]).unsqueeze(1)
}

/// The variance of every row as E[x²] − m².
fn single_pass(x: Var<'_>) -> Var<'_> {
    let m = x.mean(&[1]);
    (x * x).mean(&[1]) - m * m
}

/// The variance of every row as E[x²] − m², with the right derivative, 2(x − m)/n, whose differences do not cancel.
#[derive(Debug)]
struct SinglePass;

impl Op for SinglePass {
    fn name(&self) -> &'static str {
        "single_pass_variance"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(Meta { shape: x[0].shape.without(&[1]), dtype: x[0].dtype })
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        let tape = Tape::inference();
        Ok(single_pass(tape.constant(x[0])).value().expect("the specimens compute"))
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| at.g().unsqueeze(1) * slope(at.x(i)))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|i, dx| (dx * slope(at.x(i))).sum(&[1]))
    }
}

fn slope(x: Var<'_>) -> Var<'_> {
    (x - row_mean(x)) * (2.0 / x.shape()[1] as f64)
}

/// The variance of one row around 10ᵏ, in one pass and in two.
pub fn variances() -> String {
    let mut text = "  mean   E[x²] − m²            Σ(x − m)²/n\n".to_string();
    for k in [0, 2, 4, 6, 7, 8] {
        let little = short(&[1, 3], 1).to_f64_vec().unwrap();
        let x = Tensor::from_vec(little.iter().map(|x| 10f64.powi(k) + x).collect::<Vec<f64>>(), [1, 3]);
        let tape = Tape::inference();
        let x = tape.constant(&x);
        let (one, two) = (single_pass(x).item().unwrap(), x.var(&[1], 0).item().unwrap());
        text += &format!("  1e{k}    {one:<20.12}  {two:.12}\n");
    }
    text
}

#[test]
fn in_two_passes_the_same_variance_is_checked() {
    check(|x| x[0].var(&[1], 0), &[far_from_zero(1e5)]).expect_pass();
    check(|x| x[0].tape().record(SinglePass, x), &[short(&[2, 3], 1)]).expect_pass();
}

#[test]
fn of_mere_rounding_it_is_not_said_that_it_does_not_move() {
    let x = Tensor::from_vec(vec![1e8 + 0.25, 1e8 + 1.5, 1e8 - 0.75], [1, 3]);
    let report = check(|x| x[0].tape().record(SinglePass, x), &[x]);
    assert!(matches!(&report.verdict, Verdict::Inconclusive(why) if why.contains("rounding")), "{report}");
}
