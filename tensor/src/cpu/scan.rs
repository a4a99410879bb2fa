//! Running sums.

use half::bf16;

use super::reduce::Number;
use super::stored::Stored;
use super::walk::{BLOCK, Reader};
use crate::{DType, HostBuffer, Result, Tensor};

/// Running sums along an axis, each rounded once from an accumulator (f32 for bf16). i64 wraps around.
pub(super) fn cumsum(x: &Tensor, axis: usize) -> Result<Tensor> {
    Ok(match x.dtype() {
        DType::F32 => of_number::<f32>(x, axis),
        DType::F64 => of_number::<f64>(x, axis),
        DType::BF16 => of_number::<bf16>(x, axis),
        DType::I64 => of_number::<i64>(x, axis),
        DType::Bool => unreachable!("cumsum is not defined for bool"),
    })
}

fn of_number<S: Stored<Wide: Number>>(x: &Tensor, axis: usize) -> Tensor {
    let n = x.shape()[axis];
    let columns: usize = x.shape()[axis + 1..].iter().product();
    let mut buffer = HostBuffer::new(x.elements() * size_of::<S>());
    if x.elements() > 0 {
        let mut reader = Reader::<S>::of(x, 0);
        for (i, out) in buffer.as_mut::<S>().chunks_mut(n * columns).enumerate() {
            if columns == 1 {
                along_row(&mut reader, out)
            } else {
                down_columns(&mut reader, i, columns, out)
            }
        }
    }
    buffer.into_tensor(x.shape(), x.dtype())
}

fn along_row<S: Stored<Wide: Number>>(reader: &mut Reader<S>, out: &mut [S]) {
    let mut sum = S::Wide::ZERO;
    for out in out.chunks_mut(BLOCK) {
        let x = reader.next(out.len());
        for (out, v) in out.iter_mut().zip(x) {
            sum = sum.add(v.load());
            *out = S::store(sum);
        }
    }
}

/// Adds row after row of the `matrix`-th `[n, columns]`, a block of columns at a time.
fn down_columns<S: Stored<Wide: Number>>(
    reader: &mut Reader<S>,
    matrix: usize,
    columns: usize,
    out: &mut [S],
) {
    let first = matrix * out.len();
    for start in (0..columns).step_by(BLOCK) {
        let width = BLOCK.min(columns - start);
        let mut sums = [S::Wide::ZERO; BLOCK];
        for (k, out) in out.chunks_mut(columns).enumerate() {
            reader.seek(first + k * columns + start);
            let x = reader.next(width);
            for ((out, sum), v) in out[start..start + width].iter_mut().zip(&mut sums).zip(x) {
                *sum = sum.add(v.load());
                *out = S::store(*sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_close, naive, views};
    use super::*;

    #[test]
    fn cumsum_agrees_with_its_definition() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::I64] {
            for sizes in [&[5][..], &[3, 4], &[2, 3, 4], &[3, 300], &[300, 2], &[0, 3], &[3, 0]] {
                for x in views(sizes, dtype) {
                    for axis in 0..sizes.len() {
                        let (n, columns) = (sizes[axis], sizes[axis + 1..].iter().product::<usize>());
                        let mut expected = naive(&x);
                        for i in 0..expected.len() {
                            if i / columns % n > 0 {
                                expected[i] += expected[i - columns];
                            }
                        }
                        assert_close("cumsum", &cumsum(&x, axis).unwrap(), &expected, 0.5);
                    }
                }
            }
        }
    }
}
