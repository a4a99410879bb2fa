//! Copies, casts and parts put together.

use limpid_tensor::{DType, Layout, Tensor};

use super::{LARGE, SMALL};
use crate::Case;
use crate::case::normal;

const GROUP: &str = "copy";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in [SMALL, LARGE] {
        cases.push(Case::new(
            GROUP,
            format!("copy f32 {n}"),
            move || Ok(vec![normal(&[n], DType::F32, 0)?]),
            // Not the tensor's method, which has nothing to do for what is contiguous.
            |x| x[0].device().backend().contiguous(&x[0]),
        ));
    }
    for side in [128, 4096] {
        cases.push(Case::new(
            GROUP,
            format!("transpose f32 [{side}, {side}]"),
            move || Ok(vec![normal(&[side, side], DType::F32, 0)?.transpose(0, 1)]),
            |x| x[0].contiguous(),
        ));
    }
    let side = 4096;
    cases.push(Case::new(
        GROUP,
        format!("left half of rows f32 [{side}, {side}]"),
        move || Ok(vec![normal(&[side, side], DType::F32, 0)?.slice(1, 0, side / 2, 1)]),
        |x| x[0].contiguous(),
    ));
    for (from, to) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32), (DType::F32, DType::F64)] {
        cases.push(Case::new(
            GROUP,
            format!("cast {from} to {to} {LARGE}"),
            move || Ok(vec![normal(&[LARGE], from, 0)?]),
            move |x| x[0].cast(to),
        ));
    }
    cases.push(Case::new(
        GROUP,
        format!("two halves side by side f32 [{side}, {side}]"),
        move || (0..2).map(|label| normal(&[side, side / 2], DType::F32, label)).collect(),
        move |x| {
            let whole = Layout::contiguous([side, side]);
            let half = |i: usize| whole.slice(1, i * side / 2, (i + 1) * side / 2, 1);
            let parts = [(half(0), &x[0]), (half(1), &x[1])];
            Tensor::assemble(x[0].device(), [side, side], DType::F32, &parts)
        },
    ));
    cases
}
