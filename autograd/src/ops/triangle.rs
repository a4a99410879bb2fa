//! The parts of matrices below and above a diagonal.

use limpid_tensor::Tensor;

use crate::ops::elementwise::where_;
use crate::var::Var;

/// Which side of the diagonal `column − row = diagonal` stays; the diagonal itself does on both.
#[derive(Clone, Copy)]
enum Triangle {
    Lower,
    Upper,
}

impl<'t> Var<'t> {
    /// The lower triangle of the matrices in the last two axes: 0 (or `false`) wherever `column − row > diagonal`,
    /// whatever was there before, NaN included.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::ones([2, 3], DType::F64));
    /// assert_eq!(x.tril(0).value()?.to_vec::<f64>()?, [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If there are fewer than two axes.
    #[track_caller]
    pub fn tril(self, diagonal: isize) -> Var<'t> {
        self.triangle("tril", Triangle::Lower, diagonal)
    }

    /// The upper triangle of the matrices in the last two axes: 0 (or `false`) wherever `column − row < diagonal`,
    /// whatever was there before, NaN included.
    ///
    /// # Panics
    /// If there are fewer than two axes.
    #[track_caller]
    pub fn triu(self, diagonal: isize) -> Var<'t> {
        self.triangle("triu", Triangle::Upper, diagonal)
    }

    #[track_caller]
    fn triangle(self, name: &str, side: Triangle, diagonal: isize) -> Var<'t> {
        let shape = self.shape();
        let rank = shape.len();
        assert!(rank >= 2, "{name}: a triangle needs two axes, found {shape}");
        let (rows, columns) = (shape[rank - 2], shape[rank - 1]);
        let stays = |i: usize| {
            let offset = (i % columns) as isize - (i / columns) as isize;
            match side {
                Triangle::Lower => offset <= diagonal,
                Triangle::Upper => offset >= diagonal,
            }
        };
        let mask: Vec<bool> = (0..rows * columns).map(stays).collect();
        let mask = self.tape().constant_here(&Tensor::from_vec(mask, [rows, columns]));
        where_(mask, self, self.fill(0.0))
    }
}
