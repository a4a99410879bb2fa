//! Many elements made one, and running sums.

use limpid_tensor::{DType, Reduce};

use super::LARGE;
use crate::Case;
use crate::case::normal;

const GROUP: &str = "reduce";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for [rows, columns] in [[128, 64], [LARGE / 64, 64], [LARGE / 1024, 1024]] {
        for (f, axes, over) in [
            (Reduce::Sum, &[1][..], "rows"),
            (Reduce::Sum, &[0], "columns"),
            (Reduce::Sum, &[], "all"),
            (Reduce::Max, &[1], "rows"),
            (Reduce::ArgMax, &[1], "rows"),
        ] {
            cases.push(Case::new(
                GROUP,
                format!("{} of {over} f32 [{rows}, {columns}]", f.name()),
                move || Ok(vec![normal(&[rows, columns], DType::F32, 0)?]),
                move |x| x[0].reduce(f, axes),
            ));
        }
    }
    let [rows, columns] = [1024, 4096];
    for (axis, along) in [(1, "rows"), (0, "columns")] {
        cases.push(Case::new(
            GROUP,
            format!("cumsum along {along} f32 [{rows}, {columns}]"),
            move || Ok(vec![normal(&[rows, columns], DType::F32, 0)?]),
            move |x| x[0].cumsum(axis),
        ));
    }
    cases
}
