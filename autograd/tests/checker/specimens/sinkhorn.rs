//! Sinkhorn iterations: exp, then columns and rows divided by their sums, three times.

use super::*;

/// `Y = X/s` with `s = ΣX` over a row, with the given rule for X̄.
fn normalise(
    rule: for<'a, 't> fn(&Pullback<'a, 't>) -> Cotangents<'t>,
    needs: fn(&[bool]) -> Needs,
) -> Specimen {
    Specimen { name: "normalise", function: |x| rows(x[0]), needs, vjp: rule }
}

fn rows(x: Var<'_>) -> Var<'_> {
    x / x.sum(&[1]).unsqueeze(1)
}

/// Columns first, so that rows are exact.
fn iterate<'t>(logits: Var<'t>, steps: usize, rows: impl Fn(Var<'t>) -> Var<'t>) -> Var<'t> {
    (0..steps).fold(logits.exp(), |m, _| rows(rows(m.transpose(0, 1)).transpose(0, 1)))
}

#[track_caller]
fn with<'t>(x: &[Var<'t>], rule: impl Fn() -> Specimen) -> Var<'t> {
    iterate(x[0], 3, |m| m.tape().record(rule(), &[m]))
}

/// The gradient at the fixed point P of the iteration, from P alone: `P∘(G − a1ᵀ − 1bᵀ)`, with a and b such that rows and
/// columns sum to 0. (For two rows and columns, where the system for a and b, with b₁ = 0, has one unknown left.)
fn implicit(steps_taken: Function) -> Specimen {
    Specimen {
        name: "sinkhorn",
        function: steps_taken,
        needs: |_| Needs::OUTPUT,
        vjp: |at| {
            at.each(|_| {
                let (p, g) = (at.y(), at.g());
                let (row_sums, column_sums) = ((p * g).sum(&[1]), (p * g).sum(&[0]));
                let first = p.select(1, 0);
                let off = column_sums.select(0, 0) - (first * row_sums).sum(&[]);
                let b = off / (1.0 - (first * first).sum(&[]));
                let a = row_sums - first * b;
                let left = g.tape().constant(&Tensor::from_vec(vec![1.0, 0.0], [2]));
                p * (g - a.unsqueeze(1) - left * b)
            })
        },
    }
}

fn sharp() -> Tensor {
    Tensor::from_vec(vec![3.1, -1.2, 2.4, 0.6], [2, 2])
}

pub fn exhibits() -> Vec<Exhibit> {
    vec![
        Exhibit {
            name: "sinkhorn-undivided",
            inputs: vec![short(&[3, 3], 1)],
            program: |x| {
                with(x, || {
                    normalise(
                        |at| at.each(|_| at.g() - at.y() * (at.g() * at.y()).sum(&[1]).unsqueeze(1)),
                        |_| Needs::OUTPUT,
                    )
                })
            },
            verdict: "FAIL normalise at ",
            says: &["slope 1.0", "normalise by itself", "strides [1, 3]"],
        },
        Exhibit {
            name: "sinkhorn-factor",
            inputs: vec![short(&[3, 3], 1)],
            program: |x| {
                with(x, || {
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
                })
            },
            verdict: "FAIL normalise at ",
            says: &["slope 1.0", "normalise by itself"],
        },
        Exhibit {
            name: "sinkhorn-transposed",
            inputs: vec![short(&[3, 3], 1)],
            program: |x| {
                let sinkhorn = Specimen {
                    name: "sinkhorn",
                    function: |x| iterate(x[0], 3, rows).transpose(0, 1),
                    needs: |_| Needs::inputs(&[0]),
                    vjp: |at| at.through(iterate(at.x(0), 3, rows)),
                };
                alone(x, sinkhorn)
            },
            verdict: "FAIL sinkhorn at ",
            says: &[
                "the cotangent of the result is taken transposed, or the result is computed so",
                "⋮ 61 lines more",
            ],
        },
        Exhibit {
            name: "sinkhorn-implicit",
            inputs: vec![sharp()],
            program: |x| alone(x, implicit(|x| iterate(x[0], 3, rows))),
            verdict: "FAIL sinkhorn at ",
            says: &["jvp and vjp differ", "slope 1.0", "16 of 16 entries are wrong"],
        },
    ]
}

#[test]
fn the_right_rule_passes() {
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
    check(|x| with(x, right), &[short(&[3, 3], 1)]).expect_pass();
    // The sum of a doubly stochastic matrix is a constant.
    assert!(findings(&check(|x| with(x, right).sum(&[]), &[short(&[3, 3], 1)])).contains("no power"));
}

#[test]
fn the_fixed_point_rule_is_right_at_the_fixed_point() {
    check(|x| alone(x, implicit(|x| iterate(x[0], 300, rows))), &[sharp()]).expect_pass();
}

#[test]
fn transposing_both_is_another_function_with_a_right_derivative() {
    // What no check of a derivative can see; a comparison of values does.
    check(|x| iterate(x[0], 3, rows).transpose(0, 1), &[short(&[3, 3], 1)]).expect_pass();
}
