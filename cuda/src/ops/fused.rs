//! Which fused kernels there are: f32, f64 and bf16 have all of them, but that Sinkhorn's logits in bf16 are cast to f32 first.

use limpid_tensor::{DType, Fused, Result, Results, Tensor};
use smallvec::smallvec;

use super::{connection, linear, matmul, norm, sinkhorn, softmax};
use crate::device::Cuda;

/// Whether there is a kernel for a first operand of this dtype.
pub(crate) fn has(_: Fused, dtype: DType) -> bool {
    dtype.is_float()
}

/// The kernel's result, if there is a kernel.
///
/// # Panics
/// If the operands are not those that [`Fused`] states.
pub(crate) fn fused(cuda: &'static Cuda, f: Fused, x: &[&Tensor]) -> Option<Result<Results>> {
    has(f, x[0].dtype()).then(|| launched(cuda, f, x))
}

fn launched(cuda: &'static Cuda, f: Fused, x: &[&Tensor]) -> Result<Results> {
    let only = match (f, x) {
        (Fused::Linear(act), &[x, w, ref b @ ..]) if b.len() < 2 => {
            matmul::linear(cuda, act, x, w, b.first().copied(), None)
        }
        (Fused::LinearAdd(act), &[r, x, w, ref b @ ..]) if b.len() < 2 => {
            matmul::linear(cuda, act, x, w, b.first().copied(), Some(r))
        }
        (Fused::LinearBackward(act), &[y, g]) => return linear::backward(cuda, act, y, g),
        (Fused::Softmax, &[x]) => softmax::softmax(cuda, x),
        (Fused::SoftmaxBackward, &[y, g]) => softmax::softmax_backward(cuda, y, g),
        (Fused::LogSoftmax, &[x]) => softmax::log_softmax(cuda, x),
        (Fused::LogSoftmaxBackward, &[y, g]) => softmax::log_softmax_backward(cuda, y, g),
        (Fused::CrossEntropy, &[logits, labels]) => softmax::cross_entropy(cuda, logits, labels),
        (Fused::CrossEntropyBackward, &[logits, labels, g]) => {
            softmax::cross_entropy_backward(cuda, logits, labels, g)
        }
        (Fused::LayerNorm { eps }, &[x, gain, bias]) => norm::layer_norm(cuda, x, gain, bias, eps),
        (Fused::LayerNormBackward { eps }, &[x, gain, g]) => {
            return norm::layer_norm_backward(cuda, x, gain, g, eps);
        }
        (Fused::RmsNorm { eps }, &[x, gain]) => norm::rms_norm(cuda, x, gain, eps),
        (Fused::RmsNormBackward { eps }, &[x, gain, g]) => {
            return norm::rms_norm_backward(cuda, x, gain, g, eps);
        }
        (Fused::Sinkhorn(stop), &[x]) => sinkhorn::sinkhorn(cuda, x, stop),
        (Fused::SinkhornBackward(stop), &[x, g]) => sinkhorn::backward(cuda, x, g, stop),
        (Fused::SinkhornSteps(stop), &[x]) => sinkhorn::steps(cuda, x, stop),
        (Fused::StreamProject { eps }, &[x, ref phi @ ..]) => connection::project(cuda, x, phi, eps),
        (Fused::StreamProjectBackward(handed), x) => return connection::project_backward(cuda, x, handed),
        (Fused::StreamRead, &[x, a]) => connection::read(cuda, x, a),
        (Fused::StreamReadBackward, &[x, h]) => connection::read_backward(cuda, x, h),
        (Fused::StreamWrite, &[x, branch, mix, b]) => connection::write(cuda, x, branch, mix, b),
        (Fused::StreamWrites, &[x, ref left @ ..]) => return connection::writes(cuda, x, left),
        (Fused::StreamWriteBackward, &[x, branch, b, g]) => {
            return connection::write_backward(cuda, x, branch, b, g);
        }
        (Fused::StreamCotangent(handed), x) => connection::cotangent(cuda, x, handed),
        (f, x) => panic!("{f:?} does not take {} operands", x.len()),
    };
    Ok(smallvec![only?])
}
