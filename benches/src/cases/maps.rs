//! Functions of elements.

use limpid_tensor::{DType, Map, Tensor};

use super::{LARGE, SMALL};
use crate::Case;
use crate::case::{normal, positive};

const GROUP: &str = "map";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in [SMALL, LARGE] {
        // With the arithmetic instructions for each vector: those of the loop that the compiler makes for AVX-512, which are neither
        // loads nor stores. A division counts as one, though it takes as long as ten.
        for (f, instructions) in [
            (Map::Relu, 2),
            (Map::Sqrt, 1),
            (Map::Exp, 21),
            (Map::Log, 35),
            (Map::Tanh, 30),
            (Map::Sigmoid, 27),
            (Map::Erf, 31),
            (Map::Softplus, 45),
            (Map::Sin, 0),
            (Map::Affine { mul: 0.5, add: 1.0 }, 2),
        ] {
            let case = Case::new(
                GROUP,
                format!("{} f32 {n}", f.name()),
                move || Ok(vec![positive(&[n], DType::F32, 0)?]),
                move |x| Tensor::map(f, &[&x[0]]),
            );
            cases.push(case.with_instructions(instructions));
        }
        for f in [Map::Add, Map::Mul, Map::Div, Map::Max, Map::Gt, Map::Pow] {
            let two = move || Ok(vec![positive(&[n], DType::F32, 0)?, positive(&[n], DType::F32, 1)?]);
            cases.push(Case::new(GROUP, format!("{} f32 {n}", f.name()), two, move |x| {
                Tensor::map(f, &[&x[0], &x[1]])
            }));
        }
    }
    for (f, dtype) in [(Map::Exp, DType::F64), (Map::Tanh, DType::F64), (Map::Exp, DType::BF16)] {
        let case = Case::new(
            GROUP,
            format!("{} {dtype} {SMALL}", f.name()),
            move || Ok(vec![positive(&[SMALL], dtype, 0)?]),
            move |x| Tensor::map(f, &[&x[0]]),
        );
        cases.push(case.in_dtype(dtype));
    }
    let side = 4096;
    for (how, shape) in [("a row", [1, side]), ("a column", [side, 1])] {
        cases.push(Case::new(
            GROUP,
            format!("add f32 [{side}, {side}] and {how}"),
            move || Ok(vec![normal(&[side, side], DType::F32, 0)?, normal(&shape, DType::F32, 1)?]),
            |x| Tensor::map(Map::Add, &[&x[0], &x[1]]),
        ));
    }
    cases.push(Case::new(
        GROUP,
        format!("add f32 [{side}, {side}], one transposed"),
        move || Ok(vec![normal(&[side, side], DType::F32, 0)?, normal(&[side, side], DType::F32, 1)?]),
        |x| Tensor::map(Map::Add, &[&x[0], &x[1].transpose(0, 1)]),
    ));
    cases
}
