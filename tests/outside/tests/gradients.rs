//! The derivatives of a user's own operations, checked by what limpid offers: right ones in a line each, and what a user
//! reads who got one wrong.

use limpid::check::{Check, Report, Verdict};
use limpid::{Tensor, check};
use limpid_outside::{mish, pseudo_huber};

fn prediction() -> Tensor {
    Tensor::from_vec(vec![0.5f64, -1.0, 2.0, 0.25, -0.75, 1.5], [2, 3])
}

fn target() -> Tensor {
    Tensor::from_vec(vec![0.1f64, 0.2, -0.3], [3])
}

#[test]
fn mish_is_differentiated_rightly() {
    check(|x| mish(x[0]), &[prediction()]).expect_pass();
}

#[test]
fn pseudo_huber_is_differentiated_rightly() {
    check(|x| pseudo_huber(x[0], x[1]), &[prediction(), target()]).expect_pass();
}

/// The same names, with rules that are wrong.
mod wrong {
    use limpid::autograd::{Cotangents, Needs, Pullback, Pushforward};
    use limpid::tensor::{Inferred, Meta, Result};
    use limpid::{Op, Tensor, Var};

    /// With the factor x of its second term forgotten.
    #[derive(Debug)]
    pub struct Mish;

    impl Op for Mish {
        fn name(&self) -> &'static str {
            "mish"
        }

        fn infer(&self, x: &[&Meta]) -> Inferred {
            limpid_outside::Mish.infer(x)
        }

        fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
            limpid_outside::Mish.forward(x)
        }

        fn needs(&self, tracked: &[bool]) -> Needs {
            limpid_outside::Mish.needs(tracked)
        }

        fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
            at.each(|i| {
                let x = at.x(i);
                let t = x.softplus().tanh();
                at.g() * (t + (1.0 - t * t) * x.sigmoid())
            })
        }

        fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
            limpid_outside::Mish.jvp(at)
        }
    }

    /// With a mean where broadcasting asks for a sum.
    #[derive(Debug)]
    pub struct PseudoHuber;

    impl Op for PseudoHuber {
        fn name(&self) -> &'static str {
            "pseudo_huber"
        }

        fn infer(&self, x: &[&Meta]) -> Inferred {
            limpid_outside::PseudoHuber.infer(x)
        }

        fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
            limpid_outside::PseudoHuber.forward(x)
        }

        fn needs(&self, tracked: &[bool]) -> Needs {
            limpid_outside::PseudoHuber.needs(tracked)
        }

        fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
            let right = limpid_outside::PseudoHuber.vjp(at);
            let mean = |(i, x̄): (usize, Option<Var<'t>>)| x̄.map(|x̄| if i == 1 { x̄ / 2.0 } else { x̄ });
            right.into_iter().enumerate().map(mean).collect()
        }

        fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
            limpid_outside::PseudoHuber.jvp(at)
        }
    }
}

#[track_caller]
fn message(report: &Report) -> String {
    assert!(matches!(report.verdict, Verdict::Fail(_)), "{report}");
    report.to_string()
}

#[track_caller]
fn assert_says(message: &str, expected: &[&str]) {
    for expected in expected {
        assert!(message.contains(expected), "expected {expected:?} in:\n{message}");
    }
}

#[test]
fn a_user_who_got_mish_wrong_reads_why() {
    let x = Tensor::from_vec(vec![0.5f64, -1.0, 2.0], [3]);
    let line = line!() + 1;
    let message = message(&check(|x| x[0].tape().record(wrong::Mish, x), &[x]));
    println!("{message}");
    let blamed = format!("FAIL mish at tests/outside/tests/gradients.rs:{line}\n");
    assert_says(
        &message,
        &[
            &blamed,                              // the operation and its source line
            "  x0: f64[3], contiguous\n",         // the operand and how it lies in memory
            "jvp and vjp differ",                 // forward mode knows better
            "slope 1.0",                          // and so do differences
            "(right: 3)",                         //
            "worst: ∂y[1]/∂x0[1]: by rule 0.547", // where, and what the rule says
            ", by differences 0.0592",            // what is right
            " ± ",                                // how well that is known
            "3 of 9 entries are wrong",           // how many
            "the rule, as recorded (ȳ is the cotangent of the result y)",
            "softplus(x0)",
            "∂mish  tests/gradients.rs:", // a line of the rule
            "x̄0 = %",
        ],
    );
}

#[test]
fn a_user_who_forgot_a_sum_reads_so() {
    let message =
        message(&check(|x| x[0].tape().record(wrong::PseudoHuber, x).tanh(), &[prediction(), target()]));
    assert_says(
        &message,
        &[
            "FAIL pseudo_huber at ",
            "taylor: x1: ",
            "pseudo_huber by itself, y = pseudo_huber(x0, x1), where",
            "x1 = x1 of the program: f64[3], contiguous",
            "looks like: every wrong entry is 1/2 of the right one: a mean where a sum over the broadcast axis [0] belongs",
        ],
    );
    assert!(!message.contains("taylor: x0"), "{message}");
}

/// What the messages of the wrong rules offer to paste, pasted where the right ones are.
mod pasted {
    use limpid_outside::{Mish, PseudoHuber};

    #[test]
    fn gradient_of_pseudo_huber() {
        use limpid::{Tensor, check::Check};
        let x0 = Tensor::from_vec(vec![0.5, -1.0, 2.0, 0.25, -0.75, 1.5], [3, 2]).permute(&[1, 0]);
        let x1 = Tensor::from_vec(vec![0.1, 0.2, -0.3], [3]);
        Check::new().seed(7).run(|x| x[0].tape().record(PseudoHuber, x), &[x0, x1]).expect_pass();
    }

    #[test]
    fn gradient_of_mish() {
        use limpid::{Tensor, check::Check};
        let x0 = Tensor::from_vec(vec![0.5, -1.0, 2.0], [3]);
        Check::new().seed(0).run(|x| x[0].tape().record(Mish, x), &[x0]).expect_pass();
    }
}

/// That the test which a message offers stands in `pasted`, where it is compiled and passes.
#[track_caller]
fn assert_pasted(message: &str) {
    let (_, offered) = message.split_once("to see it again:\n").expect("the message ends with a test");
    let lines: Vec<&str> = offered.lines().map(str::trim).collect();
    let here: Vec<&str> = include_str!("gradients.rs").lines().map(str::trim).collect();
    assert!(here.windows(lines.len()).any(|window| window == lines), "not in this file:\n{offered}");
}

#[test]
fn the_test_to_paste_is_one_that_is_compiled_here() {
    let x = Tensor::from_vec(vec![0.5f64, -1.0, 2.0], [3]);
    assert_pasted(&message(&Check::new().run(|x| x[0].tape().record(wrong::Mish, x), &[x])));
}

#[test]
fn the_test_to_paste_has_the_layout_too() {
    let x = Tensor::from_vec(vec![0.5f64, -1.0, 2.0, 0.25, -0.75, 1.5], [3, 2]).permute(&[1, 0]);
    let program = Check::new().seed(7).run(|x| x[0].tape().record(wrong::PseudoHuber, x), &[x, target()]);
    let message = message(&program);
    assert_says(&message, &["x0: f64[2, 3], strides [1, 2], offset 0"]);
    assert_pasted(&message);
}
