//! Mistakes that everybody makes once.

use super::*;

pub fn exhibits() -> Vec<Exhibit> {
    vec![
        Exhibit {
            name: "factor",
            inputs: vec![short(&[2, 3], 1)],
            program: |x| {
                let sine = Specimen {
                    name: "sine",
                    function: |x| x[0].sin(),
                    needs: |_| Needs::inputs(&[0]),
                    vjp: |at| at.each(|i| at.g() * at.x(i).cos() * 1.001),
                };
                x[0].tape().scope("block", || alone(x, sine)) * 1.5
            },
            verdict: "FAIL sine in block at ",
            says: &[
                "everyday.rs:",
                "x0: f64[2, 3], contiguous",
                "jvp and vjp differ",
                "slope 1.0",
                "sine by itself, y = sine(x0), where",
                "x0 = x0 of the program: f64[2, 3], contiguous",
                "off by 0.10 %; 6 of 36 entries are wrong",
                "1.001000000 times the right one",
                "cos(x0)",
                "x̄0 = %",
                "#[test]",
                "use limpid::{Tensor, check::Check};",
                "record(sine(), x)",
                "Tensor::from_vec(vec![",
            ],
        },
        Exhibit {
            name: "sign",
            inputs: vec![short(&[3], 1)],
            program: |x| {
                let cosine = Specimen {
                    name: "cosine",
                    function: |x| x[0].cos(),
                    needs: |_| Needs::inputs(&[0]),
                    vjp: |at| at.each(|i| at.g() * at.x(i).sin()),
                };
                alone(x, cosine)
            },
            verdict: "FAIL cosine at ",
            says: &["the sign is wrong", "3 of 9 entries"],
        },
        Exhibit {
            name: "dropped-term",
            inputs: vec![short(&[3], 1)],
            program: |x| {
                let swish = Specimen {
                    name: "swish",
                    function: |x| x[0].silu(),
                    needs: |_| Needs::inputs(&[0]),
                    vjp: |at| at.each(|i| at.g() * at.x(i).sigmoid()),
                };
                alone(x, swish)
            },
            verdict: "FAIL swish at ",
            says: &["worst: ∂y[", "by rule", "by differences", "±"],
        },
        Exhibit {
            name: "missing-sum",
            inputs: vec![short(&[2, 3], 1), short(&[3], 2)],
            program: |x| {
                let scale = Specimen {
                    name: "scale",
                    function: |x| x[0] * x[1],
                    needs: |tracked| {
                        Needs::inputs(&[1]).when(tracked[0]).or(Needs::inputs(&[0]).when(tracked[1]))
                    },
                    vjp: |at| {
                        at.each(|i| match i {
                            0 => at.g() * at.x(1),
                            _ => (at.g() * at.x(0)).select(0, 0),
                        })
                    },
                };
                alone(x, scale)
            },
            verdict: "FAIL scale at ",
            says: &["x1: ", "a missing sum", "axis [0] of the result, over which x1 is broadcast"],
        },
        Exhibit {
            name: "mean-for-sum",
            inputs: vec![short(&[2, 3], 1), short(&[3], 2)],
            program: |x| {
                let shift = Specimen {
                    name: "shift",
                    function: |x| x[0] + x[1],
                    needs: |_| Needs::NOTHING,
                    vjp: |at| at.each(|i| if i == 0 { at.g() } else { at.g().mean(&[0]) }),
                };
                alone(x, shift)
            },
            verdict: "FAIL shift at ",
            says: &["1/2 of the right one: a mean where a sum"],
        },
        Exhibit {
            name: "transposed-operand",
            inputs: vec![short(&[3, 3], 1), short(&[3, 3], 2)],
            program: |x| {
                let product = Specimen {
                    name: "product",
                    function: |x| x[0].matmul(x[1]),
                    needs: |tracked| {
                        Needs::inputs(&[1]).when(tracked[0]).or(Needs::inputs(&[0]).when(tracked[1]))
                    },
                    vjp: |at| {
                        at.each(|i| match i {
                            0 => at.g().matmul(at.x(1)),
                            _ => at.x(0).transpose(0, 1).matmul(at.g()),
                        })
                    },
                };
                alone(x, product)
            },
            verdict: "FAIL product at ",
            says: &["x0:", "the right numbers in the wrong places"],
        },
        Exhibit {
            name: "transposed-gradient",
            inputs: vec![short(&[3, 3], 1)],
            program: |x| {
                let cube = Specimen {
                    name: "cube",
                    function: |x| x[0] * x[0] * x[0],
                    needs: |_| Needs::inputs(&[0]),
                    vjp: |at| at.each(|i| (at.g() * at.x(i) * at.x(i) * 3.0).transpose(0, 1)),
                };
                alone(x, cube)
            },
            verdict: "FAIL cube at ",
            says: &["the gradient of x0 is transposed"],
        },
        Exhibit {
            name: "swapped-operands",
            inputs: vec![short(&[3], 1), short(&[3], 2)],
            program: |x| {
                let times = Specimen {
                    name: "times",
                    function: |x| x[0] * x[1],
                    needs: |tracked| {
                        Needs::inputs(&[0]).when(tracked[0]).or(Needs::inputs(&[1]).when(tracked[1]))
                    },
                    vjp: |at| at.each(|i| at.g() * at.x(i)),
                };
                alone(x, times)
            },
            verdict: "FAIL times at ",
            says: &["operands are swapped: what x1 gets is the gradient of x0"],
        },
        Exhibit {
            name: "undeclared-read",
            inputs: vec![short(&[3], 1)],
            program: |x| {
                let square = Specimen {
                    name: "square",
                    function: |x| x[0] * x[0],
                    needs: |_| Needs::OUTPUT,
                    vjp: |at| at.each(|i| at.g() * at.x(i) * 2.0),
                };
                alone(x, square)
            },
            verdict: "FAIL square at ",
            says: &["the vjp reads operand 0 without declaring it", "needs() declares its result"],
        },
        Exhibit {
            name: "detached",
            inputs: vec![short(&[3], 1)],
            program: |x| x[0].detach().sin(),
            verdict: "FAIL\n",
            says: &["no operation fails by itself", "no gradient arrives at all"],
        },
        Exhibit {
            name: "first-order-only",
            inputs: vec![short(&[3], 1)],
            program: |x| {
                let fourth = Specimen {
                    name: "fourth",
                    function: |x| x[0].powf(4.0),
                    needs: |_| Needs::inputs(&[0]),
                    vjp: |at| at.each(|i| at.g() * at.x(i).detach().powf(3.0) * 4.0),
                };
                alone(x, fourth)
            },
            verdict: "FAIL fourth at ",
            says: &["second order: "],
        },
        Exhibit {
            name: "no-forward-rule",
            inputs: vec![short(&[3], 1)],
            program: |x| x[0].tape().record(Backward, x),
            verdict: "FAIL backward_only at ",
            says: &["adjoint: backward_only at ", "has neither jvp nor expand", "error below"],
        },
        Exhibit {
            name: "layout",
            inputs: vec![transposed_in_memory(&short(&[2, 3], 1))],
            program: |x| x[0].tape().record(Blind, x),
            verdict: "FAIL blind at ",
            says: &["only with this layout", "strides [1, 2]", ".permute(&[1, 0])"],
        },
        Exhibit {
            name: "layout-with-gaps",
            inputs: vec![short(&[2, 4], 1).slice(1, 0, 4, 2).flip(0)],
            program: |x| x[0].tape().record(Blind, x),
            verdict: "FAIL blind at ",
            says: &["only with this layout", "[7]).as_strided([2, 2], &[-4, 2], 4)"],
        },
    ]
}

#[test]
fn a_first_order_rule_is_blamed_for_second_order_alone() {
    let message = message("first-order-only");
    assert!(!message.contains("taylor:") && !message.contains("adjoint:"), "{message}");
}

#[test]
fn a_linear_rule_that_stops_at_first_order() {
    // Its second derivative is 0, right or wrong, until something curved follows.
    let message = findings(&check(
        |x| {
            let triple = Specimen {
                name: "triple",
                function: |x| x[0] * 3.0,
                needs: |_| Needs::NOTHING,
                vjp: |at| at.each(|_| at.g().detach() * 3.0),
            };
            alone(x, triple)
        },
        &[normal(&[4], 1)],
    ));
    assert!(message.contains("second order"), "{message}");
}

/// x², whose author wrote no forward rule.
#[derive(Debug)]
struct Backward;

impl Op for Backward {
    fn name(&self) -> &'static str {
        "backward_only"
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
        at.each(|i| at.g() * at.x(i) * 2.0)
    }
}

#[test]
fn without_a_forward_rule_the_tape_says_so() {
    let tape = Tape::new();
    let x = tape.variable(&normal(&[3], 1));
    let y = tape.record(Backward, &[x]);
    let error = tape.jvp(y, &[(x, tape.constant(&normal(&[3], 2)))]).unwrap_err();
    assert!(matches!(error, limpid_autograd::Error::NoJvp { .. }), "{error}");
    assert!(error.to_string().starts_with("backward_only at "), "{error}");
}

/// x², whose rule reads its operand's memory in row-major order, whatever its strides.
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
