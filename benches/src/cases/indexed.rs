//! Elements chosen, added and sorted by number.

use limpid_tensor::DType;

use crate::Case;
use crate::case::{indices, normal};

const GROUP: &str = "index";

pub(super) fn cases() -> Vec<Case> {
    let [rows, columns] = [4096, 1024];
    let words = rows / 8;
    let chosen =
        move |below| Ok::<_, limpid_tensor::Error>(indices(&[rows, 1], below, 1)?.expand([rows, columns]));
    let mut cases = vec![
        Case::new(
            GROUP,
            format!("gather of whole rows f32 [{rows}, {columns}]"),
            move || Ok(vec![normal(&[rows, columns], DType::F32, 0)?, chosen(rows)?]),
            |x| x[0].gather(0, &x[1]),
        ),
        Case::new(
            GROUP,
            format!("gather within rows f32 [{rows}, {columns}]"),
            move || {
                Ok(vec![normal(&[rows, columns], DType::F32, 0)?, indices(&[rows, columns], columns, 1)?])
            },
            |x| x[0].gather(1, &x[1]),
        ),
        // The gradient of an embedding.
        Case::new(
            GROUP,
            format!("scatter_add f32 [{rows}, {columns}] to {words} rows"),
            move || {
                let base = normal(&[words, columns], DType::F32, 0)?;
                Ok(vec![base, chosen(words)?, normal(&[rows, columns], DType::F32, 2)?])
            },
            |x| x[0].scatter_add(0, &x[1], &x[2]),
        ),
    ];
    for (rows, columns) in [(1024, 1024), (1, 1 << 20)] {
        cases.push(Case::new(
            GROUP,
            format!("argsort of rows f32 [{rows}, {columns}]"),
            move || Ok(vec![normal(&[rows, columns], DType::F32, 0)?]),
            |x| x[0].argsort(1, false),
        ));
    }
    cases
}
