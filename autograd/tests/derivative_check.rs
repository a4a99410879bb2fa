//! The derivative check itself: it passes a right rule and finds every kind of wrong one.

mod check;

use check::{check, layouts, normal};
use limpid_autograd::ops::movement::concat;
use limpid_autograd::{Cotangents, Needs, Op, Pullback, Pushforward};
use limpid_tensor::{Inferred, Map, Meta, Result, Tensor};

/// y = x³, right or wrong in one way.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Cube {
    Right,
    VjpOffByAMillionth,
    VjpOfOneElement,
    JvpOffByABillionth,
    NoSecondOrder,
    DeclaresTooLittle,
    DeclaresTooMuch,
}

impl Op for Cube {
    fn name(&self) -> &'static str {
        "cube"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Map::Mul.infer(&[x[0], x[0]])
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Tensor::map(Map::Mul, &[x[0], &Tensor::map(Map::Mul, &[x[0], x[0]])?])
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        match self {
            Cube::DeclaresTooLittle => Needs::NOTHING,
            Cube::DeclaresTooMuch => Needs::inputs(&[0]).or(Needs::OUTPUT),
            _ => Needs::inputs(&[0]),
        }
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| {
            let x = if *self == Cube::NoSecondOrder { at.x(0).detach() } else { at.x(0) };
            let right = at.g() * x * x * 3.0;
            match self {
                Cube::VjpOffByAMillionth => right * 1.000_001,
                Cube::VjpOfOneElement => {
                    let n = x.shape()[0];
                    concat(&[right.slice(0, 0, 1, 1) * 1.01, right.slice(0, 1, n, 1)], 0)
                }
                _ => right,
            }
        })
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<limpid_autograd::Var<'t>> {
        let factor = if *self == Cube::JvpOffByABillionth { 3.0 * 1.000_000_001 } else { 3.0 };
        at.sum(|_, dx| dx * at.x(0) * at.x(0) * factor)
    }
}

fn verdict(cube: Cube) {
    check("cube", |x| x[0].tape().record(cube, &[x[0]]), &[normal(&[7], 1)]);
}

#[test]
fn a_right_rule_passes() {
    verdict(Cube::Right);
}

#[test]
#[should_panic(expected = "cube: vjp by element")]
fn a_wrong_factor_is_found() {
    verdict(Cube::VjpOffByAMillionth);
}

#[test]
#[should_panic(expected = "cube: vjp by element 0 of input 0")]
fn one_wrong_element_is_found() {
    verdict(Cube::VjpOfOneElement);
}

#[test]
#[should_panic(expected = "cube: jvp against vjp")]
fn a_wrong_tangent_is_found() {
    verdict(Cube::JvpOffByABillionth);
}

#[test]
#[should_panic(expected = "cube: second order by element")]
fn a_missing_second_order_is_found() {
    verdict(Cube::NoSecondOrder);
}

#[test]
#[should_panic(expected = "rules declare other reads")]
fn an_undeclared_read_is_found() {
    verdict(Cube::DeclaresTooLittle);
}

#[test]
#[should_panic(expected = "rules declare other reads")]
fn a_declaration_without_a_read_is_found() {
    verdict(Cube::DeclaresTooMuch);
}

#[test]
fn layouts_hold_the_same_values_in_different_places() {
    let x = normal(&[2, 3, 4], 1);
    let views = layouts(&x);
    for (i, view) in views.iter().enumerate() {
        assert_eq!(view.to_vec::<f64>().unwrap(), x.to_vec::<f64>().unwrap());
        assert!(views[..i].iter().all(|other| other.layout() != view.layout()));
    }
}
