//! Jacobians and Hessians: whole, and as products with a vector.
//!
//! All of it is recorded on the tape by the rules of the operations, so that what comes out can be differentiated again.

use limpid_tensor::{Shape, Tensor};

use crate::error::Result;
use crate::ops::movement::stack;
use crate::tape::Tape;
use crate::var::Var;

impl Tape {
    /// The Hessian of a scalar `y` times a vector, `Σⱼ ∂²y/∂xᵢ∂xⱼ·vⱼ` for the pairs `(xⱼ, vⱼ)`: one result for each
    /// xᵢ, of its shape. The gradient is recorded, and one sweep carries the tangents v forward over it, so the cost is
    /// that of a few gradients however many elements there are.
    ///
    /// B. A. Pearlmutter, "Fast exact multiplication by the Hessian" (Neural Computation 6, 1994).
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0], [2]));
    /// let v = tape.constant(&Tensor::from_vec(vec![1.0f64, 10.0], [2]));
    /// let y = (x * x * x).sum(&[]);
    /// assert_eq!(tape.hvp(y, &[(x, v)])?[0].value()?.to_vec::<f64>()?, [6.0, 120.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If `y` does not have exactly one element, or a vector not its value's shape and dtype.
    #[track_caller]
    pub fn hvp<'t>(&'t self, y: Var<'t>, pairs: &[(Var<'t>, Var<'t>)]) -> Result<Vec<Var<'t>>> {
        for &(x, v) in pairs {
            assert_eq!(
                self.meta(x),
                self.meta(v),
                "hvp: a vector must have the shape and dtype of its value"
            );
        }
        let xs: Vec<Var<'t>> = pairs.iter().map(|(x, _)| *x).collect();
        let gradients = self.grad(y, &xs)?;
        self.tangents(&gradients, pairs)
    }

    /// The Jacobian `∂y/∂x`, of shape `[..y, ..x]`: element `[i, j]` is the derivative of element i of y by element j of
    /// x. Row by row by [`vjp`](Tape::vjp), or column by column by [`jvp`](Tape::jvp) if there are fewer columns.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0, 3.0], [3]));
    /// let j = tape.jacobian(x.cumsum(0) * x, x)?;
    /// assert_eq!(j.shape().to_string(), "[3, 3]");
    /// assert_eq!(j.value()?.to_vec::<f64>()?, [2.0, 0.0, 0.0, 2.0, 5.0, 0.0, 3.0, 3.0, 9.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    #[track_caller]
    pub fn jacobian<'t>(&'t self, y: Var<'t>, x: Var<'t>) -> Result<Var<'t>> {
        let (ym, xm) = (self.meta(y), self.meta(x));
        let shape: Shape = ym.shape.iter().chain(xm.shape.iter()).copied().collect();
        let (rows, columns) = (ym.shape.elements(), xm.shape.elements());
        if rows * columns == 0 {
            return Ok(self.constant_here(&Tensor::zeros(shape, ym.dtype)));
        }
        let unit = |i: usize, of: &limpid_tensor::Meta| {
            let mut values = vec![0.0; of.shape.elements()];
            values[i] = 1.0;
            self.constant_here(&Tensor::from_f64(&values, &of.shape, of.dtype))
        };
        if rows <= columns {
            let row = |i| match self.vjp(y, unit(i, &ym), &[x])?[0] {
                Some(row) => Ok(row),
                None => Ok(self.constant(&self.value_like(x, 0.0)?)),
            };
            let rows: Vec<Var<'t>> = (0..rows).map(row).collect::<Result<_>>()?;
            return Ok(stack(&rows, 0).reshape(shape));
        }
        let column = |j| self.jvp(y, &[(x, unit(j, &xm))]);
        let columns: Vec<Var<'t>> = (0..columns).map(column).collect::<Result<_>>()?;
        Ok(stack(&columns, 0).reshape([columns.len(), rows]).transpose(0, 1).reshape(shape))
    }

    /// The Hessian of a scalar `y`, of shape `[..x, ..x]`: the [Jacobian](Tape::jacobian) of its gradient.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![2.0f64, 3.0], [2]));
    /// let y = x.prod(&[]);
    /// assert_eq!(tape.hessian(y * y, x)?.value()?.to_vec::<f64>()?, [18.0, 24.0, 24.0, 8.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If `y` does not have exactly one element.
    #[track_caller]
    pub fn hessian<'t>(&'t self, y: Var<'t>, x: Var<'t>) -> Result<Var<'t>> {
        let gradient = self.grad(y, &[x])?[0];
        self.jacobian(gradient, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(x: Var<'_>) -> Vec<f64> {
        x.value().unwrap().to_vec().unwrap()
    }

    #[test]
    fn rows_and_columns_make_the_same_jacobian() {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::from_vec(vec![0.5f64, -1.0, 2.0, 0.3, 1.5, -0.7], [2, 3]));
        let tall =
            x.sin().matmul(tape.constant(
                &Tensor::arange(0.0, 15.0, 1.0, limpid_tensor::DType::F64).reshape([3, 5]).unwrap(),
            ));
        let wide = tall.slice(1, 0, 2, 1);
        let (by_columns, by_rows) = (tape.jacobian(tall, x).unwrap(), tape.jacobian(wide, x).unwrap());
        assert_eq!(by_columns.shape().to_string(), "[2, 5, 2, 3]");
        assert_eq!(values(by_columns.slice(1, 0, 2, 1)), values(by_rows));
    }

    #[test]
    fn a_jacobian_can_be_differentiated_again() {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0], [2]));
        let trace_of_squares = (tape.jacobian(x * x, x).unwrap() * tape.jacobian(x * x, x).unwrap()).sum(&[]);
        assert_eq!(values(tape.grad(trace_of_squares, &[x]).unwrap()[0]), [8.0, 16.0]);
    }

    #[test]
    fn a_hessian_of_two_values_has_mixed_blocks() {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::scalar(2.0f64));
        let z = tape.variable(&Tensor::from_vec(vec![3.0f64, 5.0], [2]));
        let (v, w) = (tape.scalar(1.0, z.dtype()), tape.constant(&Tensor::from_vec(vec![1.0f64, 0.0], [2])));
        // x²·(z₀ + z₁): ∂²/∂x² = 2Σz, ∂²/∂x∂zᵢ = 2x.
        let products = tape.hvp((x * x * z).sum(&[]), &[(x, v), (z, w)]).unwrap();
        assert_eq!((values(products[0]), values(products[1])), (vec![20.0], vec![4.0, 4.0]));
    }

    #[test]
    fn what_does_not_depend_is_zero() {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0], [2]));
        let y = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0, 3.0], [3]));
        assert_eq!(values(tape.jacobian(y * y, x).unwrap()), [0.0; 6]);
        assert_eq!(values(tape.hessian(x.sum(&[]), x).unwrap()), [0.0; 4]);
        let empty = tape.jacobian(y.slice(0, 0, 0, 1), x).unwrap();
        assert_eq!(empty.shape().to_string(), "[0, 2]");
    }
}
