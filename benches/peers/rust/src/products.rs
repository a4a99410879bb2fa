//! Matrix products alone: the crates gemm and faer.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::Workload;
use crate::numbers::{number, spread};

/// Two factors as they lie in memory and where to put their product, all row-major.
struct Product {
    size: [usize; 3],
    turned: [bool; 2],
    a: Vec<f32>,
    b: Vec<f32>,
    y: Vec<f32>,
}

impl Product {
    fn new(parts: &[&str]) -> Option<Product> {
        let &["matmul", m, k, n, turned] = parts else { return None };
        let size @ [m, k, n] = [m, k, n].map(number);
        let turned = [0, 1].map(|i| turned.as_bytes()[i] == b't');
        let (a, b) = (spread(m * k, -1.0, 1.0, 0), spread(k * n, -1.0, 1.0, 1));
        Some(Product { size, turned, a, b, y: vec![0.0; m * n] })
    }

    fn result(&self, wanted: bool) -> Vec<Vec<f32>> {
        if wanted { vec![self.y.clone()] } else { Vec::new() }
    }
}

pub fn gemm(parts: &[&str]) -> Option<Workload> {
    let mut p = Product::new(parts)?;
    Some(Box::new(move |wanted| {
        let [m, k, n] = p.size;
        // Steps from column to column and from row to row.
        let steps = |rows: usize, columns: usize, turned| match turned {
            true => (rows as isize, 1),
            false => (1, columns as isize),
        };
        let ((a_column, a_row), (b_column, b_row)) = (steps(m, k, p.turned[0]), steps(k, n, p.turned[1]));
        // SAFETY: the slices are as long as sizes and steps say.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                p.y.as_mut_ptr(),
                1,
                n as isize,
                false,
                p.a.as_ptr(),
                a_column,
                a_row,
                p.b.as_ptr(),
                b_column,
                b_row,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        p.result(wanted)
    }))
}

pub fn faer(parts: &[&str]) -> Option<Workload> {
    let mut p = Product::new(parts)?;
    Some(Box::new(move |wanted| {
        let [m, k, n] = p.size;
        let matrix = |values, rows, columns, turned| match turned {
            true => MatRef::from_column_major_slice(values, rows, columns),
            false => MatRef::from_row_major_slice(values, rows, columns).as_dyn_stride(),
        };
        let (a, b) = (matrix(&p.a[..], m, k, p.turned[0]), matrix(&p.b[..], k, n, p.turned[1]));
        matmul(MatMut::from_row_major_slice_mut(&mut p.y, m, n), Accum::Replace, a, b, 1.0, Par::Seq);
        p.result(wanted)
    }))
}
