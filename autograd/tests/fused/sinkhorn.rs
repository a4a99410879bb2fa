//! Sinkhorn–Knopp.

use limpid_autograd::ops::sinkhorn::{Gradient, Order, Sinkhorn};
use limpid_tensor::Stop;

use crate::agrees;
use crate::check::{layouts, normal};

#[test]
fn fused_is_expanded() {
    for stop in [Stop::Steps(1), Stop::Steps(20), Stop::Tolerance { error: 1e-2, at_most: 30 }] {
        for shape in [&[1, 1][..], &[3, 3], &[2, 3, 4, 4]] {
            for order in [Order::ColumnsFirst, Order::RowsFirst] {
                let how = Sinkhorn { stop, order, temperature: 1.25, ..Sinkhorn::default() };
                agrees(&format!("{how:?} {shape:?}"), |x| x[0].sinkhorn(&how), &[normal(shape, 2)]);
            }
        }
    }
    for x in layouts(&normal(&[2, 3, 3], 3)) {
        let implicit =
            Sinkhorn { gradient: Gradient::Implicit, stop: Stop::Steps(40), ..Sinkhorn::default() };
        agrees("implicit", |x| x[0].sinkhorn(&implicit), std::slice::from_ref(&x));
        agrees("unrolled", |x| x[0].sinkhorn(&Sinkhorn::default()), &[x]);
    }
}
