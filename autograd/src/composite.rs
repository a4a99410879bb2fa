//! What does a stream hand on from one layer to a later one without crossing a branch?
//!
//! The composite map of a residual network is the product `A_{m−1}·…·A_l` of its mixing matrices. It is found here not from
//! matrices but from paths, as the degree-0 coefficient of the [path spectrum](Tape::spectrum), so that it exists for
//! every connection: those whose mix acts on channels, those that normalise the stream, those that keep a list.

use limpid_tensor::rng::Key;

use crate::backward::Paths;
use crate::cotangent::Cotangent;
use crate::error::Result;
use crate::matrix::Matrix;
use crate::part::Part;
use crate::tape::Tape;
use crate::var::Var;

/// The composite map between streams: from [`Tape::stream_map`].
#[derive(Clone, PartialEq, Debug)]
pub struct StreamMap {
    /// By sample, the n×n matrix that multiplies the streams from the left, as the mean over channels.
    pub samples: Vec<Matrix>,
    /// The largest deviation of a channel's matrix from that mean. It is rounding where the map acts on streams alone, as a
    /// mixing matrix does; if it is more, the map differs between channels (a gate per channel) or mixes channels or
    /// samples (a norm on the stream), and [`Tape::sample_jacobians`] with [`Paths::Direct`] has the whole of it.
    pub spread: f64,
}

impl Tape {
    /// The map that takes the streams of the state `x` to those of a later state `y` without crossing a branch or a
    /// control edge: for each sample the n×n matrix P with `y[i, c] = Σⱼ P[i, j]·x[j, c]`.
    ///
    /// States are `[.., n, C]`; with one stream `[.., C]`. It takes n backward passes, each with a random sign for every
    /// sample and channel: what mixes channels or samples then differs from channel to channel and shows in the
    /// [spread](StreamMap::spread).
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])); // two streams, C = 3
    /// let mix = tape.variable(&Tensor::from_vec(vec![0.75f64, 0.25, 0.5, 0.5], [2, 2]));
    /// let y = (0..2).fold(x, |x, _| mix.control().matmul(x.skip()) + x.tanh().branch());
    /// let map = tape.stream_map(y, x, 2)?;
    /// assert_eq!(map.samples[0].values(), [0.6875, 0.3125, 0.625, 0.375]); // mix²
    /// assert_eq!(map.spread, 0.0);
    /// # Ok::<(), limpid_autograd::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If the two differ in shape, or do not have that many streams.
    #[track_caller]
    pub fn stream_map<'t>(&'t self, y: Var<'t>, x: Var<'t>, streams: usize) -> Result<StreamMap> {
        let (shape, of_x) = (self.meta(y).shape, self.meta(x).shape);
        assert!(shape == of_x, "stream_map: states must have one shape, found {shape} and {of_x}");
        let axes = shape.len();
        let fits = axes >= 1 && (streams == 1 || axes >= 2 && shape[axes - 2] == streams);
        assert!(fits, "stream_map: {shape} is no state [.., {streams}, C] of {streams} streams");
        let channels = shape[axes - 1];
        let state = streams * channels;
        let count = shape.elements().checked_div(state).unwrap_or(0);
        let key = Key::new(0).fold_str("stream map");
        let sign = |sample: usize, c: usize| {
            if key.bits((sample * channels + c) as u64) & 1 == 1 { 1.0 } else { -1.0 }
        };
        // [sample][i, j, c]
        let mut by_channel: Vec<Vec<f64>> = vec![Vec::with_capacity(streams * state); count];
        for i in 0..streams {
            let into_i = |at: usize| {
                if at / channels % streams == i { sign(at / state, at % channels) } else { 0.0 }
            };
            let back = self.pull_numbers(y, x, Paths::Direct, into_i)?;
            for (sample, back) in back.chunks(state.max(1)).enumerate() {
                by_channel[sample]
                    .extend(back.iter().enumerate().map(|(at, v)| v * sign(sample, at % channels)));
            }
        }
        let mut spread: f64 = 0.0;
        let mut mean = |channel_values: &[f64]| {
            // Around the first, so that equal channels have their value as the mean, without rounding.
            let first = channel_values[0];
            let mean = first + channel_values.iter().map(|v| v - first).sum::<f64>() / channels as f64;
            for v in channel_values {
                spread = if v.is_nan() { f64::NAN } else { spread.max((v - mean).abs()) };
            }
            mean
        };
        let samples = by_channel
            .iter()
            .map(|values| Matrix::new(streams, streams, values.chunks(channels).map(&mut mean).collect()))
            .collect();
        Ok(StreamMap { samples, spread })
    }
}

/// How alike streams are.
impl Tape {
    /// For each sample of a state `[.., n, C]`, the mean cosine between two of its streams: 1 where they have become one,
    /// which no [gain](Matrix::row_gain) shows. `None` with a single stream, or if one is 0.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.constant(&Tensor::from_vec(vec![3.0f64, 4.0, 4.0, 3.0, 0.0, 0.0, 1.0, 2.0], [2, 2, 2]));
    /// assert_eq!(tape.stream_cosines(x)?, [Some(0.96), None]);
    /// # Ok::<(), limpid_autograd::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the tape is dry or something failed before the state was computed.
    ///
    /// # Panics
    /// If the state has fewer than two axes.
    #[track_caller]
    pub fn stream_cosines(&self, state: Var<'_>) -> Result<Vec<Option<f64>>> {
        let shape = self.meta(state).shape;
        assert!(shape.len() >= 2, "stream_cosines: {shape} is no state [.., n, C]");
        let (streams, channels) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let values = self.numbers(state.id, &Cotangent::Node(state))?;
        let of_sample = |sample: &[f64]| {
            let streams: Vec<&[f64]> = sample.chunks(channels.max(1)).collect();
            let pairs = (0..streams.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
            let cosines = pairs.map(|(i, j)| Part::of(streams[i], streams[j]).cosine);
            let cosines: Vec<f64> = cosines.collect::<Option<_>>()?;
            (!cosines.is_empty()).then(|| cosines.iter().sum::<f64>() / cosines.len() as f64)
        };
        Ok(values.chunks((streams * channels).max(1)).map(of_sample).collect())
    }
}
