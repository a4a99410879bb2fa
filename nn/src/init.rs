//! Initial values: where a parameter starts, as a function of its shape, its path and a seed.

use std::f64::consts::SQRT_2;
use std::fmt;

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Shape, Tensor};

use crate::parameter::{Parameter, Role};

/// Where a model's parameters are made: their path, their dtype, and the seed their values are drawn from.
///
/// The key of a draw is folded from the parameter's path, so that adding, removing or reordering layers changes no
/// other layer's values.
///
/// ```
/// use limpid_nn::{Init, Initializer};
/// let init = Init::new(7);
/// let weight = init.enter("layers").enter(3).weight("weight", [64, 64], Initializer::LINEAR);
/// assert_eq!(weight.path(), "layers.3.weight");
/// ```
#[derive(Clone, Debug)]
pub struct Init {
    path: String,
    dtype: DType,
    seed: u64,
}

impl Init {
    /// The root of a model of f32 parameters.
    pub fn new(seed: u64) -> Init {
        Init { path: String::new(), dtype: DType::F32, seed }
    }

    /// The same place for parameters of another float dtype. Values are drawn in f64 and rounded, so that a model in
    /// f32 is the model in f64, rounded.
    ///
    /// # Panics
    /// If `dtype` is not a float.
    #[track_caller]
    pub fn with_dtype(mut self, dtype: DType) -> Init {
        assert!(dtype.is_float(), "parameters are floats, asked for {dtype}");
        self.dtype = dtype;
        self
    }

    /// The place called `name` inside this one: a field's name, or a position in a list.
    pub fn enter(&self, name: impl fmt::Display) -> Init {
        Init { path: self.join(name), ..*self }
    }

    /// The path so far; empty at the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The dtype of parameters made here.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// A parameter to be learned.
    ///
    /// # Panics
    /// If the initializer is not defined for the shape.
    #[track_caller]
    pub fn weight(&self, name: &str, shape: impl Into<Shape>, initial: Initializer) -> Parameter {
        let path = self.join(name);
        let key = Key::new(self.seed).fold_str("init").fold_str(&path);
        Parameter::new(path, initial.draw(shape, self.dtype, key), Role::Weight)
    }

    /// A buffer with a given value.
    pub fn buffer(&self, name: &str, value: Tensor) -> Parameter {
        Parameter::new(self.join(name), value, Role::Buffer)
    }

    fn join(&self, name: impl fmt::Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}

/// Which number of connections a variance is scaled by, for a weight `[out, in, …]`, where the axes from the third
/// on (a receptive field) count into both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fan {
    /// `in·field`: keeps the variance of activations on the way forward.
    In,
    /// `out·field`: keeps the variance of gradients on the way back.
    Out,
}

impl Fan {
    #[track_caller]
    fn of(self, shape: &Shape) -> f64 {
        assert!(shape.len() >= 2, "shape {shape} has no fan: a weight is [out, in, …]");
        let field: usize = shape[2..].iter().product();
        (field * if self == Fan::In { shape[1] } else { shape[0] }) as f64
    }
}

/// A distribution of initial values. The gain of a nonlinearity is
/// [`Activation::gain`](crate::Activation::gain).
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Initializer {
    /// The same number everywhere.
    Constant(f64),
    /// Uniform in ±bound.
    Uniform {
        /// The bound.
        bound: f64,
    },
    /// Normal about 0.
    Normal {
        /// Its standard deviation.
        std: f64,
    },
    /// Normal about 0, confined to ±bound.
    TruncatedNormal {
        /// The standard deviation before truncation.
        std: f64,
        /// The bound.
        bound: f64,
    },
    /// Uniform of standard deviation gain/√fan (He et al., arXiv 1502.01852).
    KaimingUniform {
        /// Which fan.
        fan: Fan,
        /// The gain.
        gain: f64,
    },
    /// Normal of standard deviation gain/√fan (He et al., arXiv 1502.01852).
    KaimingNormal {
        /// Which fan.
        fan: Fan,
        /// The gain.
        gain: f64,
    },
    /// Uniform of standard deviation gain·√(2/(fan_in + fan_out)) (Glorot and Bengio, 2010).
    XavierUniform {
        /// The gain.
        gain: f64,
    },
    /// Normal of standard deviation gain·√(2/(fan_in + fan_out)) (Glorot and Bengio, 2010).
    XavierNormal {
        /// The gain.
        gain: f64,
    },
    /// gain times a matrix with orthonormal rows or columns, whichever are fewer, evenly distributed over all of them
    /// (Saxe et al., arXiv 1312.6120); axes from the second on count as one.
    Orthogonal {
        /// The gain.
        gain: f64,
    },
}

impl Initializer {
    /// 0.
    pub const ZEROS: Initializer = Initializer::Constant(0.0);

    /// 1.
    pub const ONES: Initializer = Initializer::Constant(1.0);

    /// What PyTorch gives the weight of a linear layer: uniform in ±1/√fan_in. There it is written as a Kaiming draw
    /// for a leaky ReLU of slope √5, whose gain is 1/√3; a ReLU network of such layers passes on a factor of only
    /// 1/√3·1/√2 ≈ 0.41 a layer.
    pub const LINEAR: Initializer =
        Initializer::KaimingUniform { fan: Fan::In, gain: 0.577_350_269_189_625_8 };

    /// Kaiming's normal draw for layers followed by a ReLU: standard deviation √(2/fan_in).
    pub const HE: Initializer = Initializer::KaimingNormal { fan: Fan::In, gain: SQRT_2 };

    /// The same values times `factor`, which is not negative.
    pub fn times(self, factor: f64) -> Initializer {
        match self {
            Initializer::Constant(value) => Initializer::Constant(value * factor),
            Initializer::Uniform { bound } => Initializer::Uniform { bound: bound * factor },
            Initializer::Normal { std } => Initializer::Normal { std: std * factor },
            Initializer::TruncatedNormal { std, bound } => {
                Initializer::TruncatedNormal { std: std * factor, bound: bound * factor }
            }
            Initializer::KaimingUniform { fan, gain } => {
                Initializer::KaimingUniform { fan, gain: gain * factor }
            }
            Initializer::KaimingNormal { fan, gain } => {
                Initializer::KaimingNormal { fan, gain: gain * factor }
            }
            Initializer::XavierUniform { gain } => Initializer::XavierUniform { gain: gain * factor },
            Initializer::XavierNormal { gain } => Initializer::XavierNormal { gain: gain * factor },
            Initializer::Orthogonal { gain } => Initializer::Orthogonal { gain: gain * factor },
        }
    }

    /// A tensor of such values, in the CPU's memory: a function of the arguments alone.
    ///
    /// # Panics
    /// If the shape has fewer axes than the distribution needs, or a parameter makes no sense (a negative deviation).
    #[track_caller]
    pub fn draw(self, shape: impl Into<Shape>, dtype: DType, key: Key) -> Tensor {
        let shape = shape.into();
        let xavier = || (2.0 / (Fan::In.of(&shape) + Fan::Out.of(&shape))).sqrt();
        let distribution = match self {
            Initializer::Constant(value) => return Tensor::full(shape, value, dtype),
            Initializer::Orthogonal { gain } => return orthogonal(&shape, gain, dtype, key),
            Initializer::Uniform { bound } => uniform(bound),
            Initializer::Normal { std } => normal(std),
            Initializer::TruncatedNormal { std, bound } => {
                Distribution::TruncatedNormal { mean: 0.0, std, low: -bound, high: bound }
            }
            // A uniform distribution in ±b has standard deviation b/√3.
            Initializer::KaimingUniform { fan, gain } => uniform(gain * (3.0 / fan.of(&shape)).sqrt()),
            Initializer::KaimingNormal { fan, gain } => normal(gain / fan.of(&shape).sqrt()),
            Initializer::XavierUniform { gain } => uniform(gain * 3f64.sqrt() * xavier()),
            Initializer::XavierNormal { gain } => normal(gain * xavier()),
        };
        Tensor::random(distribution, shape, dtype, key).expect("the CPU draws every distribution")
    }
}

fn uniform(bound: f64) -> Distribution {
    Distribution::Uniform { low: -bound, high: bound }
}

fn normal(std: f64) -> Distribution {
    Distribution::Normal { mean: 0.0, std }
}

/// The Q of QR, with R's diagonal positive, of a tall matrix of normal draws. That makes Q evenly distributed (Mezzadri,
/// arXiv math-ph/0609050), and is what Gram–Schmidt computes; done twice, it is orthogonal to rounding.
#[track_caller]
fn orthogonal(shape: &Shape, gain: f64, dtype: DType, key: Key) -> Tensor {
    assert!(shape.len() >= 2, "orthogonal: shape {shape} has fewer than two axes");
    let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
    let (count, length) = (rows.min(columns), rows.max(columns));
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(count);
    for j in 0..count {
        let mut v: Vec<f64> = (0..length).map(|i| key.normal((j * length + i) as u64)).collect();
        for _pass in 0..2 {
            for q in &basis {
                let along = dot(q, &v);
                v.iter_mut().zip(q).for_each(|(v, q)| *v -= along * q);
            }
            let norm = dot(&v, &v).sqrt();
            v.iter_mut().for_each(|v| *v /= norm);
        }
        basis.push(v);
    }
    let element = |i: usize, j: usize| gain * if rows >= columns { basis[j][i] } else { basis[i][j] };
    let values: Vec<f64> = (0..rows * columns).map(|k| element(k / columns, k % columns)).collect();
    Tensor::from_f64(&values, shape, dtype)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Initializer::*;

    fn values(initial: Initializer, shape: [usize; 2]) -> Vec<f64> {
        initial.draw(shape, DType::F64, Key::new(3)).to_vec().unwrap()
    }

    #[test]
    fn deviations_and_bounds_are_the_formulas() {
        // (initializer, deviation, largest magnitude) for a weight of 300 outputs and 200 inputs.
        let xavier = (2.0f64 / 500.0).sqrt();
        for (initial, std, bound) in [
            (Uniform { bound: 0.3 }, 0.3 / 3f64.sqrt(), 0.3),
            (Normal { std: 0.02 }, 0.02, f64::INFINITY),
            (Initializer::LINEAR, (1.0f64 / 600.0).sqrt(), (1.0f64 / 200.0).sqrt()),
            (Initializer::HE, 0.1, f64::INFINITY),
            (KaimingUniform { fan: Fan::Out, gain: 2.0 }, 2.0 / 300f64.sqrt(), 2.0 / 10.0),
            (XavierUniform { gain: 1.0 }, xavier, 3f64.sqrt() * xavier),
            (XavierNormal { gain: 5.0 / 3.0 }, 5.0 / 3.0 * xavier, f64::INFINITY),
            // A standard normal cut at ±2 has deviation 0.8796 (its variance is 1 − 4φ(2)/(2Φ(2) − 1)).
            (TruncatedNormal { std: 0.5, bound: 1.0 }, 0.5 * 0.879_626, 1.0),
        ] {
            let draw = values(initial, [300, 200]);
            let n = draw.len() as f64;
            let mean = draw.iter().sum::<f64>() / n;
            let found = (draw.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            // Five standard errors: of a mean, and of a deviation (at most that of a normal's).
            assert!(mean.abs() < 5.0 * std / n.sqrt(), "{initial:?}: mean {mean}");
            assert!((found / std - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{initial:?}: {found} for {std}");
            let largest = draw.iter().fold(0f64, |m, v| m.max(v.abs()));
            assert!(largest <= bound * (1.0 + 1e-12), "{initial:?}: {largest} beyond {bound}");
            assert!(!bound.is_finite() || largest > 0.99 * bound, "{initial:?}: {largest} of {bound}");
        }
    }

    #[test]
    fn times_a_factor_is_the_same_draw_scaled() {
        let truncated = TruncatedNormal { std: 0.5, bound: 1.0 };
        let kaiming = KaimingUniform { fan: Fan::Out, gain: 2.0 };
        let xavier = [XavierUniform { gain: 1.0 }, XavierNormal { gain: 1.0 }];
        let others = [Constant(3.0), Uniform { bound: 0.3 }, Normal { std: 2.0 }, Orthogonal { gain: 1.0 }];
        for initial in others.into_iter().chain(xavier).chain([truncated, kaiming, Initializer::HE]) {
            for (scaled, plain) in values(initial.times(0.25), [5, 3]).iter().zip(values(initial, [5, 3])) {
                let expected = 0.25 * plain;
                assert!((scaled - expected).abs() <= 1e-15 * expected.abs(), "{initial:?}");
            }
        }
    }

    #[test]
    fn receptive_fields_count_into_both_fans() {
        let shape = Shape::from([6, 4, 3, 5]);
        assert_eq!((Fan::In.of(&shape), Fan::Out.of(&shape)), (60.0, 90.0));
    }

    #[test]
    fn orthogonal_matrices_are() {
        for (rows, columns) in [(5, 5), (7, 4), (4, 7), (1, 3), (64, 64)] {
            let w = values(Orthogonal { gain: 1.5 }, [rows, columns]);
            let (count, length) = (rows.min(columns), rows.max(columns));
            let at =
                |k: usize, i: usize| if rows >= columns { w[i * columns + k] } else { w[k * columns + i] };
            for a in 0..count {
                for b in 0..count {
                    let product: f64 = (0..length).map(|i| at(a, i) * at(b, i)).sum();
                    let expected = if a == b { 2.25 } else { 0.0 };
                    assert!(
                        (product - expected).abs() < 1e-14 * length as f64,
                        "{rows}×{columns}: {product}"
                    );
                }
            }
        }
    }

    #[test]
    fn orthogonal_is_the_q_of_a_decomposition_with_positive_diagonal() {
        // QᵀG must be upper triangular with a positive diagonal.
        let (rows, columns, key) = (6usize, 4usize, Key::new(3));
        let q = values(Orthogonal { gain: 1.0 }, [rows, columns]);
        for k in 0..columns {
            for j in 0..columns {
                let r: f64 = (0..rows).map(|i| q[i * columns + k] * key.normal((j * rows + i) as u64)).sum();
                assert!(if k == j { r > 0.1 } else { k < j || r.abs() < 1e-14 }, "r[{k}, {j}] = {r}");
            }
        }
    }

    #[test]
    fn a_draw_depends_on_seed_and_path_alone() {
        let draw = |seed, place: &str, dtype| {
            let init = Init::new(seed).with_dtype(dtype).enter("layers").enter(place);
            init.weight("weight", [3, 4], Initializer::HE).value().to_f64_vec().unwrap()
        };
        let w = draw(1, "0", DType::F64);
        assert_eq!(w, draw(1, "0", DType::F64));
        assert_ne!(w, draw(2, "0", DType::F64));
        assert_ne!(w, draw(1, "1", DType::F64));
        let rounded: Vec<f64> = w.iter().map(|&v| f64::from(v as f32)).collect();
        assert_eq!(rounded, draw(1, "0", DType::F32));
    }

    #[test]
    #[should_panic(expected = "shape [4] has no fan: a weight is [out, in, …]")]
    fn a_vector_has_no_fan() {
        Initializer::HE.draw([4], DType::F32, Key::new(0));
    }
}
