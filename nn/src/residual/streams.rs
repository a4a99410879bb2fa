//! Streams `[.., n, C]`: how they are made, how a block reads, mixes and writes them, and how they become one value again.

use limpid_autograd::Var;
use limpid_tensor::{DType, Meta};

use super::projection::{Projection, logits};
use crate::init::{Init, Initializer};
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// `a·X`: a `[.., n]`, X `[.., n, C]` → `[.., C]`, in X's dtype.
#[track_caller]
pub(super) fn read<'t>(a: Var<'t>, x: Var<'t>) -> Var<'t> {
    let a = widened(a);
    fitting(x, a.dtype()).stream_read(a.control()).cast(x.dtype())
}

/// Streams as coefficients of this dtype go with: as they are if theirs is as wide, and bf16 with f32; else cast.
fn fitting(x: Var<'_>, coefficients: DType) -> Var<'_> {
    let narrow = x.dtype() == DType::BF16 && coefficients == DType::F32;
    if narrow { x } else { x.cast(coefficients) }
}

/// `A·X + bᵀ ⊗ output`: A `[.., n, n]`, X `[.., n, C]`, output `[.., C]`, b `[.., n]` → `[.., n, C]`, as [`mix`] and then
/// [`write`], in one operation.
#[track_caller]
pub(super) fn mix_and_write<'t>(x: Var<'t>, a: Var<'t>, output: Var<'t>, b: Var<'t>) -> Var<'t> {
    expect_kept_by(x, output);
    let (a, dtype) = (widened(a), output.dtype());
    let (b, x, output) =
        (b.cast(a.dtype()), fitting(x.skip(), a.dtype()), fitting(output.branch(), a.dtype()));
    x.stream_write(output, a.control(), b.control()).cast(dtype)
}

#[track_caller]
fn expect_kept_by(streams: Var<'_>, output: Var<'_>) {
    let (shape, branch) = (streams.shape(), output.meta());
    let one = Meta { shape: shape.without(&shape.axes(&[-2])), dtype: branch.dtype };
    super::expect_kept(one, branch);
}

/// `A·X`: A `[.., n, n]`, X `[.., n, C]` → `[.., n, C]`, in A's dtype.
#[track_caller]
pub(super) fn mix<'t>(mix: Var<'t>, x: Var<'t>) -> Var<'t> {
    mix.control().matmul(x.cast(mix.dtype()))
}

/// `mixed + bᵀ ⊗ output`: b `[.., n]`, output `[.., C]` → `[.., n, C]`, in the output's dtype.
#[track_caller]
pub(super) fn write<'t>(mixed: Option<Var<'t>>, output: Var<'t>, b: Var<'t>) -> Var<'t> {
    let (axis, branch) = (output.shape().len() - 1, output.meta());
    if let Some(mixed) = mixed {
        expect_kept_by(mixed, output);
    }
    let column = b.unsqueeze(b.shape().len()).control();
    let written = column * output.branch().cast(b.dtype()).unsqueeze(axis);
    let sum = mixed.map_or(written, |mixed| mixed.cast(b.dtype()) + written);
    sum.cast(branch.dtype)
}

/// Coefficients are computed in f32 where the stream is narrower: an A kept in bf16 has rows that sum to 1 ± 0.002.
#[track_caller]
pub(super) fn widened(v: Var<'_>) -> Var<'_> {
    if v.dtype() == DType::BF16 { v.cast(DType::F32) } else { v }
}

/// `x [.., C]` → n streams `[.., n, C]`: copies of x, as they are or each scaled.
///
/// Streams that begin as copies are told apart only by what later happens to them. As long as nothing does (equal reads
/// and writes, coefficients that do not depend on the stream), they stay copies for ever; and while they are copies, no
/// gradient reaches the logits of a mix whose rows sum to 1, nor those of a read in front of a norm. Copies scaled per
/// channel end that everywhere; copies scaled by one number each leave the first read in front of a norm without a
/// gradient, because they differ only in size.
#[derive(Clone, Debug)]
pub struct Expand {
    streams: usize,
    /// s, `{path}.scale`: `[n, C]` or `[n, 1]`; stream i is `x∘(1 + sᵢ)`.
    pub scale: Option<Parameter>,
}

impl Expand {
    /// n copies.
    ///
    /// # Panics
    /// If there are none.
    #[track_caller]
    pub fn copies(streams: usize) -> Expand {
        assert!(streams > 0, "expand: expected at least one stream");
        Expand { streams, scale: None }
    }

    /// Copies scaled by a number for each stream: 1 and a normal draw of this standard deviation.
    ///
    /// # Panics
    /// If there are none.
    #[track_caller]
    pub fn scaled_per_stream(init: &Init, streams: usize, std: f64) -> Expand {
        Expand::scaled(init, streams, 1, std)
    }

    /// Copies scaled by a number for each stream and channel: 1 and a normal draw of this standard deviation. (Stream
    /// collapse: arXiv 2606.03483.)
    ///
    /// # Panics
    /// If there are none.
    #[track_caller]
    pub fn scaled_per_channel(init: &Init, streams: usize, channels: usize, std: f64) -> Expand {
        Expand::scaled(init, streams, channels, std)
    }

    #[track_caller]
    fn scaled(init: &Init, streams: usize, numbers: usize, std: f64) -> Expand {
        let scale = init.weight("scale", [streams, numbers], Initializer::Normal { std });
        Expand { scale: Some(scale), ..Expand::copies(streams) }
    }

    /// n.
    pub fn streams(&self) -> usize {
        self.streams
    }
}

impl Parameters for Expand {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.scale.iter().for_each(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.scale.iter_mut().for_each(f);
    }
}

impl Module for Expand {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let one = x.unsqueeze(x.shape().len() - 1);
        match &self.scale {
            Some(scale) => one * (scale.on(x.tape()) + 1.0),
            None => one.expand(one.shape().with(one.shape().len() - 2, self.streams)),
        }
    }
}

/// Streams `[.., n, C]` → `[.., C]`, without parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reduce {
    /// Their sum: n times as large as one of n copies, which a norm behind it takes away.
    Sum,
    /// Their mean.
    Mean,
}

impl Parameters for Reduce {
    fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
    fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
}

impl Module for Reduce {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        match self {
            Reduce::Sum => x.sum(&[-2]),
            Reduce::Mean => x.mean(&[-2]),
        }
    }
}

/// `σ(α·(v·φ)/r + b)·X`, with v and r as in [`Projection`]: streams `[.., n, C]` → `[.., C]`, read as a block of
/// [`Mhc`](super::Mhc) reads them.
#[derive(Clone, Debug)]
pub struct SigmoidRead {
    /// `{path}.read.phi`, `{path}.read.alpha` and `{path}.read.bias`.
    pub read: Projection,
    /// ε in r; 10⁻⁶ unless changed.
    pub eps: f64,
}

impl SigmoidRead {
    /// A read that begins as the mean, φ = 0 and σ(b) = 1/n. (One stream alone is read as its half.)
    ///
    /// # Panics
    /// If there are no streams.
    #[track_caller]
    pub fn new(init: &Init, channels: usize, streams: usize) -> SigmoidRead {
        assert!(streams > 0, "sigmoid_read: expected at least one stream");
        // σ(b) = 1/n where e⁻ᵇ = n − 1.
        let logit = -((streams.max(2) - 1) as f64).ln();
        let alpha = 0.01;
        let read = Projection::new(
            &init.enter("read"),
            channels * streams,
            Initializer::ZEROS,
            alpha,
            &[streams],
            |_| logit,
        );
        SigmoidRead { read, eps: 1e-6 }
    }
}

impl Parameters for SigmoidRead {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.read.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.read.visit_mut(f);
    }
}

impl Module for SigmoidRead {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let [logits] = logits(x, [&self.read], self.eps);
        read(logits.sigmoid(), x)
    }
}
