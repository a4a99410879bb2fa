//! Every primitive as the plainest loop over indices there is, in f64 (i64, bool).

use limpid_tensor::{Activation, DType, Map, Reduce};

use crate::array::{Array, broadcast, with};
use crate::judge::{Near, accumulator, largest, round, stored, unit};

/// The error function. A series of positive terms (Abramowitz & Stegun 7.1.6) for small arguments, and for large ones
/// the continued fraction of its complement (7.1.14).
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() {
        return a;
    }
    let square = a * a;
    let value = if a < 1.5 {
        // From the last term inwards: a·(1 + 2a²/3·(1 + 2a²/5·(…))).
        let nested = (1..60).rev().fold(1.0, |inner, n| 1.0 + 2.0 * square / f64::from(2 * n + 1) * inner);
        a * nested * (-square).exp() * std::f64::consts::FRAC_2_SQRT_PI
    } else if a < 6.5 {
        let fraction = (1..400).rev().fold(a, |below, n| a + f64::from(n) / 2.0 / below);
        1.0 - (-square).exp() / (fraction * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    value.copysign(x)
}

/// 1/(1 + e⁻ˣ).
pub fn sigmoid(x: f64) -> f64 {
    if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) }
}

/// ln(1 + eˣ).
pub fn softplus(x: f64) -> f64 {
    if x > 40.0 { x } else { x.exp().ln_1p() }
}

fn nan_or(x: &[f64], value: f64) -> f64 {
    if x.iter().any(|v| v.is_nan()) { f64::NAN } else { value }
}

/// A function of floats. NaN in gives NaN out.
///
/// # Panics
/// If the result is not a float, or the function is not defined for floats.
pub fn float_map(f: Map, x: &[f64]) -> f64 {
    let v = x[0];
    nan_or(
        x,
        match f {
            Map::Neg => -v,
            Map::Abs => v.abs(),
            Map::Sign if v == 0.0 => 0.0,
            Map::Sign => v.signum(),
            Map::Exp => v.exp(),
            Map::Expm1 => v.exp_m1(),
            Map::Log => v.ln(),
            Map::Log1p => v.ln_1p(),
            Map::Sqrt => v.sqrt(),
            Map::Rsqrt => 1.0 / v.sqrt(),
            Map::Recip => 1.0 / v,
            Map::Sin => v.sin(),
            Map::Cos => v.cos(),
            Map::Tanh => v.tanh(),
            Map::Sigmoid => sigmoid(v),
            Map::Erf => erf(v),
            Map::Softplus => softplus(v),
            Map::Relu => v.max(0.0),
            Map::LeakyRelu(slope) => {
                if v > 0.0 {
                    v
                } else {
                    slope * v
                }
            }
            Map::Elu(alpha) => {
                if v > 0.0 {
                    v
                } else {
                    alpha * v.exp_m1()
                }
            }
            Map::Affine { mul, add } => v * mul + add,
            Map::Powf(p) => v.powf(p),
            Map::Clamp { low, high } => v.max(low).min(high),
            Map::Add => v + x[1],
            Map::Sub => v - x[1],
            Map::Mul => v * x[1],
            Map::Div => v / x[1],
            Map::Pow => v.powf(x[1]),
            Map::Max => v.max(x[1]),
            Map::Min => v.min(x[1]),
            other => panic!("{} does not make a float of floats", other.name()),
        },
    )
}

/// A function of i64, modulo 2⁶⁴.
pub fn int_map(f: Map, x: &[i64]) -> i64 {
    let wide: Vec<i128> = x.iter().map(|&v| i128::from(v)).collect();
    let v = wide[0];
    (match f {
        Map::Neg => -v,
        Map::Abs => v.abs(),
        Map::Sign => v.signum(),
        Map::Affine { mul, add } => v * mul as i128 + add as i128,
        Map::Add => v + wide[1],
        Map::Sub => v - wide[1],
        Map::Mul => v * wide[1],
        Map::Max => v.max(wide[1]),
        Map::Min => v.min(wide[1]),
        other => panic!("{} is not defined for i64", other.name()),
    }) as i64
}

/// A comparison.
pub fn compare<T: PartialOrd>(f: Map, a: T, b: T) -> bool {
    match f {
        Map::Eq => a == b,
        Map::Ne => a != b,
        Map::Lt => a < b,
        Map::Le => a <= b,
        Map::Gt => a > b,
        Map::Ge => a >= b,
        other => panic!("{} is not a comparison", other.name()),
    }
}

/// `f` of the elements of several arrays, broadcast.
pub fn broadcast_map<T: Copy, R: Copy>(x: &[&Array<T>], f: impl Fn(&[T]) -> R) -> Array<R> {
    let shapes: Vec<&[usize]> = x.iter().map(|x| &x.shape[..]).collect();
    let shape = broadcast(&shapes);
    let stretched: Vec<Array<T>> = x.iter().map(|x| x.expand(&shape)).collect();
    Array::from_fn(&shape, |index| f(&stretched.iter().map(|x| x.at(index)).collect::<Vec<T>>()))
}

/// The second where the first is true, else the third.
pub fn where_<T: Copy>(condition: &Array<bool>, a: &Array<T>, b: &Array<T>) -> Array<T> {
    let shape = broadcast(&[&condition.shape, &a.shape, &b.shape]);
    let (condition, a, b) = (condition.expand(&shape), a.expand(&shape), b.expand(&shape));
    Array::from_fn(&shape, |i| if condition.at(i) { a.at(i) } else { b.at(i) })
}

/// What `f` makes of the elements along some axes, which stay with size 1; they come in row-major order.
pub fn along<T: Copy, R: Copy>(x: &Array<T>, axes: &[usize], f: impl Fn(&[T]) -> R) -> Array<R> {
    let keep = |axis: usize, n: usize| if axes.contains(&axis) { 1 } else { n };
    let kept: Vec<usize> = x.shape.iter().enumerate().map(|(axis, &n)| keep(axis, n)).collect();
    let summed: Vec<usize> = axes.iter().map(|&axis| x.shape[axis]).collect();
    Array::from_fn(&kept, |index| {
        let mut at = index.to_vec();
        let group = Array::from_fn(&summed, |inner| {
            axes.iter().zip(inner).for_each(|(&axis, &i)| at[axis] = i);
            x.at(&at)
        });
        f(&group.data)
    })
}

/// The sum, with the error of any order of additions.
pub fn sum(x: &[f64], dtype: DType) -> Near {
    Near::sum(x, dtype)
}

/// The product, with the error of any order of multiplications.
pub fn product(x: &[f64], dtype: DType) -> Near {
    let value: f64 = x.iter().product();
    let sizes: Vec<f64> = x.iter().map(|v| v.abs()).filter(|v| v.is_finite()).collect();
    let most: f64 = sizes.iter().map(|v| v.max(1.0)).product();
    let least: f64 = sizes.iter().filter(|&&v| v > 0.0).map(|v| v.min(1.0)).product();
    let accumulator = accumulator(dtype);
    // A partial product may overflow in one order and not in another, or lose bits as a subnormal.
    let order_decides = most >= largest(accumulator) * 0.999 || least <= 1.001 / largest(accumulator);
    let relative = x.len() as f64 * (unit(accumulator) + unit(DType::F64));
    let error = if order_decides { f64::INFINITY } else { relative * value.abs() };
    Near { value, error: if value.is_finite() || order_decides { error } else { 0.0 } }
}

/// The largest or smallest; NaN if there is one.
pub fn extreme(f: Reduce, x: &[f64]) -> f64 {
    let pick = if f == Reduce::Max { f64::max } else { f64::min };
    nan_or(x, x.iter().copied().reduce(pick).expect("there are elements"))
}

/// The position of the first largest; a NaN counts as largest.
pub fn argmax<T: Copy + PartialOrd>(x: &[T]) -> i64 {
    let is_nan = |v: T| v.partial_cmp(&v).is_none();
    let mut best = 0;
    for i in 1..x.len() {
        if !is_nan(x[best]) && (is_nan(x[i]) || x[i] > x[best]) {
            best = i;
        }
    }
    best as i64
}

/// The positions that sort; equal elements keep their order and NaN comes last.
pub fn argsort<T: Copy + PartialOrd>(x: &[T], descending: bool) -> Vec<i64> {
    let is_nan = |v: T| v.partial_cmp(&v).is_none();
    let before = |a: T, b: T| match (is_nan(a), is_nan(b)) {
        (false, false) => {
            if descending {
                a > b
            } else {
                a < b
            }
        }
        (a, b) => !a && b,
    };
    // Insertion: an element moves left past those it must come before, never past its equals.
    let mut order: Vec<usize> = Vec::new();
    for i in 0..x.len() {
        let mut place = order.len();
        while place > 0 && before(x[i], x[order[place - 1]]) {
            place -= 1;
        }
        order.insert(place, i);
    }
    order.into_iter().map(|i| i as i64).collect()
}

/// What `f` makes of each row along an axis: another row of the same length.
pub fn rows<T: Copy, R: Copy>(x: &Array<T>, axis: usize, f: impl Fn(&[T]) -> Vec<R>) -> Array<R> {
    Array::from_fn(&x.shape, |index| {
        let row: Vec<T> = (0..x.shape[axis]).map(|i| x.at(&with(index, axis, i))).collect();
        f(&row)[index[axis]]
    })
}

/// Running sums of a row.
pub fn running_sums(row: &[f64], dtype: DType) -> Vec<Near> {
    (1..=row.len()).map(|k| sum(&row[..k], dtype)).collect()
}

/// The matrix product over the last two axes.
pub fn matmul(a: &Array<f64>, b: &Array<f64>, dtype: DType) -> Array<Near> {
    let (ra, rb) = (a.shape.len(), b.shape.len());
    let (m, k, n) = (a.shape[ra - 2], a.shape[ra - 1], b.shape[rb - 1]);
    let lead = broadcast(&[&a.shape[..ra - 2], &b.shape[..rb - 2]]);
    let a = a.expand(&[&lead[..], &[m, k]].concat());
    let b = b.expand(&[&lead[..], &[k, n]].concat());
    Array::from_fn(&[&lead[..], &[m, n]].concat(), |index| {
        let (lead, matrix) = index.split_at(lead.len());
        let factors =
            |l: usize| (a.at(&[lead, &[matrix[0], l]].concat()), b.at(&[lead, &[l, matrix[1]]].concat()));
        Near::sum_of_products(&(0..k).map(factors).collect::<Vec<_>>(), dtype)
    })
}

/// Elements chosen along an axis.
pub fn gather<T: Copy>(x: &Array<T>, axis: usize, index: &Array<i64>) -> Array<T> {
    Array::from_fn(&index.shape, |i| x.at(&with(i, axis, index.at(i) as usize)))
}

/// For each element of `base`: it, and what is added to it, in order.
pub fn scatter_terms<T: Copy>(
    base: &Array<T>,
    axis: usize,
    index: &Array<i64>,
    src: &Array<T>,
) -> Vec<Vec<T>> {
    let mut terms = Vec::new();
    let _ = Array::from_fn(&base.shape, |i| {
        let here = (0..index.shape[axis]).map(|k| with(i, axis, k));
        let hits = here.filter(|at| index.at(at) as usize == i[axis]).map(|at| src.at(&at));
        terms.push(std::iter::once(base.at(i)).chain(hits).collect());
    });
    terms
}

/// Additions one after the other, each rounded to the accumulating dtype.
pub fn sequential_sum(terms: &[f64], dtype: DType) -> f64 {
    terms[1..].iter().fold(terms[0], |sum, v| stored(sum + v, accumulator(dtype)))
}

/// A row's softmax: each element's relative error is that of the exponent's argument.
pub fn softmax(row: &[f64], dtype: DType) -> Vec<Near> {
    let (largest, total) = largest_and_total(row);
    let near = |v: f64| {
        let value = (v - largest).exp() / total;
        let relative = (6.0 + (v - largest).abs()) * unit(accumulator(dtype)) + 4.0 * unit(DType::F64);
        Near { value, error: finite_or_zero(relative * value) }
    };
    row.iter().map(|&v| near(v)).collect()
}

/// A row's log-softmax.
pub fn log_softmax(row: &[f64], dtype: DType) -> Vec<Near> {
    let (largest, total) = largest_and_total(row);
    let near = |v: f64| {
        let value = v - largest - total.ln();
        let size = (v - largest).abs() + total.ln().abs() + 4.0;
        Near { value, error: finite_or_zero(size * 2.0 * unit(accumulator(dtype))) }
    };
    row.iter().map(|&v| near(v)).collect()
}

/// The cotangent of a softmax's operand, `y∘(g − Σ g∘y)`, from a row of its result and one of the cotangent of that.
pub fn softmax_backward(y: &[f64], g: &[f64], dtype: DType) -> Vec<Near> {
    let factors: Vec<(f64, f64)> = g.iter().copied().zip(y.iter().copied()).collect();
    let along = Near::sum_of_products(&factors, dtype);
    let near = |(&y, &g): (&f64, &f64)| Near {
        value: y * (g - along.value),
        error: y.abs() * (along.error + 3.0 * unit(accumulator(dtype)) * (g.abs() + along.value.abs())),
    };
    y.iter().zip(g).map(near).collect()
}

/// The cotangent of a log-softmax's operand, `g − exp(y)·Σ g`, from a row of its result and one of the cotangent of that.
pub fn log_softmax_backward(y: &[f64], g: &[f64], dtype: DType) -> Vec<Near> {
    let total = Near::sum(g, dtype);
    let near = |(&y, &g): (&f64, &f64)| Near {
        value: g - y.exp() * total.value,
        error: y.exp() * (total.error + 5.0 * unit(accumulator(dtype)) * total.value.abs())
            + unit(accumulator(dtype)) * g.abs(),
    };
    y.iter().zip(g).map(near).collect()
}

/// The cotangent of a row of logits, `g·(softmax(x) − onehot(label))`.
pub fn cross_entropy_backward(row: &[f64], label: usize, g: f64, dtype: DType) -> Vec<Near> {
    let mut cotangents = softmax(row, dtype);
    for (i, p) in cotangents.iter_mut().enumerate() {
        let value = p.value - f64::from(u8::from(i == label));
        *p = Near {
            value: g * value,
            error: g.abs() * (p.error + 2.0 * unit(accumulator(dtype)) * value.abs()),
        };
    }
    cotangents
}

fn finite_or_zero(error: f64) -> f64 {
    if error.is_finite() { error } else { 0.0 }
}

/// The largest logit and the sum of exponentials below it. A row that holds a NaN or +∞ is undefined: NaN.
fn largest_and_total(row: &[f64]) -> (f64, f64) {
    let largest = extreme(Reduce::Max, row);
    (largest, row.iter().map(|v| (v - largest).exp()).sum())
}

/// `act(x·wᵀ + b)`.
pub fn linear(
    x: &Array<f64>,
    w: &Array<f64>,
    b: Option<&Array<f64>>,
    activation: Activation,
    dtype: DType,
) -> Array<Near> {
    let (out, inner) = (w.shape[0], w.shape[1]);
    let last = x.shape.len() - 1;
    Array::from_fn(&with(&x.shape, last, out), |index| {
        let o = index[last];
        let mut factors: Vec<(f64, f64)> =
            (0..inner).map(|k| (x.at(&with(index, last, k)), w.at(&[o, k]))).collect();
        factors.extend(b.map(|b| (b.at(&[o]), 1.0)));
        let z = Near::sum_of_products(&factors, dtype);
        // No activation moves two numbers further apart.
        Near { value: activation.map().map_or(z.value, |f| float_map(f, &[z.value])), ..z }
    })
}

/// `r + y`, y being off by what it may be off, and rounded before it is added.
pub fn added(r: &Array<f64>, y: &Array<Near>, dtype: DType) -> Array<Near> {
    Array::from_fn(&y.shape, |index| {
        let y = y.at(index);
        let (value, rounding) = (r.at(index) + y.value, unit(accumulator(dtype)) * y.value.abs());
        Near { value, error: if value.is_finite() { y.error + rounding } else { y.error } }
    })
}

/// From the result y of [`linear`] and its cotangent g: `g∘act′(y)`, and its sum over rows.
pub fn linear_backward(
    y: &Array<f64>,
    g: &Array<f64>,
    activation: Activation,
    dtype: DType,
) -> [Array<Near>; 2] {
    let wide = accumulator(dtype);
    let pull = |(&y, &g): (&f64, &f64)| {
        // As computed: each step may overflow or be subnormal, and 1 − y² cancels.
        let r = |v: f64| round(v, wide);
        r(g * match activation {
            Activation::Relu => float_map(Map::Sign, &[y]),
            Activation::Tanh => r(1.0 - r(y * y)),
            Activation::Sigmoid => r(y * r(1.0 - y)),
            _ => 1.0,
        })
    };
    let dz: Vec<f64> = y.data.iter().zip(&g.data).map(pull).collect();
    let columns = y.shape[y.shape.len() - 1];
    let column = |c: usize| dz.iter().skip(c).step_by(columns).copied().collect::<Vec<f64>>();
    let sums = (0..columns).map(|c| Near::sum(&column(c), dtype)).collect();
    let near = dz.iter().map(|&value| Near { value, error: 0.0 }).collect();
    [Array::new(&y.shape, near), Array::new(&[columns], sums)]
}

/// A row normalised to mean 0 and variance 1, scaled and moved.
pub fn layer_norm(row: &[f64], gain: &[f64], bias: &[f64], eps: f64, dtype: DType) -> Vec<Near> {
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let r = 1.0 / (variance + eps).sqrt();
    // The mean is known up to n roundings of an f64 sum.
    let mean_error = (n + 2.0) * unit(DType::F64) * row.iter().map(|v| v.abs()).sum::<f64>() / n;
    let near = |i: usize| {
        let normalised = (row[i] - mean) * r;
        let value = normalised * gain[i] + bias[i];
        let relative = (n + 8.0) * 2.0 * unit(DType::F64) + 4.0 * unit(accumulator(dtype));
        let size = (normalised * gain[i]).abs() + bias[i].abs();
        Near {
            value,
            error: relative * size + 2.0 * mean_error * r * gain[i].abs() * (1.0 + normalised.abs()),
        }
    };
    (0..row.len()).map(near).collect()
}

/// A row scaled to a mean square of 1, and by a gain.
pub fn rms_norm(row: &[f64], gain: &[f64], eps: f64, dtype: DType) -> Vec<Near> {
    let n = row.len() as f64;
    let r = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / n + eps).sqrt();
    let relative = (n + 8.0) * unit(DType::F64) + 4.0 * unit(accumulator(dtype));
    let near = |(v, g): (&f64, &f64)| Near { value: v * r * g, error: relative * (v * r * g).abs() };
    row.iter().zip(gain).map(near).collect()
}

/// The cotangents of x, gain and bias of a layer norm (`centred`) or an RMS norm: rows x and g, which is that of the result.
pub fn norm_backward(
    centred: bool,
    x: &Array<f64>,
    gain: &[f64],
    g: &Array<f64>,
    eps: f64,
    dtype: DType,
) -> [Array<Near>; 3] {
    let columns = gain.len();
    let n = columns as f64;
    // Of the kernel, and of the sums in f64 here and there.
    let rounding = 16.0 * unit(accumulator(dtype)) + 4.0 * (n + 8.0) * unit(DType::F64);
    let mean = |v: &dyn Fn(usize) -> f64| (0..columns).map(v).sum::<f64>() / n;
    let mut dx = Vec::new();
    let mut sums = vec![[Near { value: 0.0, error: 0.0 }; 2]; columns];
    for (x, g) in x.data.chunks(columns).zip(g.data.chunks(columns)) {
        let center = if centred { mean(&|i| x[i]) } else { 0.0 };
        let scale = 1.0 / (mean(&|i| (x[i] - center).powi(2)) + eps).sqrt();
        let normalised = |i: usize| (x[i] - center) * scale;
        // The mean is known up to n roundings of an f64 sum.
        let off =
            if centred { 2.0 * (n + 2.0) * unit(DType::F64) * mean(&|i| x[i].abs()) * scale } else { 0.0 };
        let weighed = |i: usize| g[i] * gain[i];
        let level = if centred { mean(&weighed) } else { 0.0 };
        let along = mean(&|i| weighed(i) * normalised(i));
        let size = mean(&|i| weighed(i).abs());
        for i in 0..columns {
            let at = normalised(i);
            let value = scale * (weighed(i) - level - at * along);
            // x̂ is at most √n, and so a mean with it is no larger than √n times the mean of sizes.
            let terms = weighed(i).abs() + size * (1.0 + at.abs() * n.sqrt());
            dx.push(Near { value, error: scale * terms * (rounding + 4.0 * off) });
            for (sum, term) in sums[i].iter_mut().zip([g[i] * at, g[i]]) {
                sum.value += term;
                sum.error += rounding * term.abs() + off * g[i].abs();
            }
        }
    }
    // The sums over rows are in f64, here and there.
    let rows = x.data.len() as f64 / n;
    let of = |k: usize| {
        let near = |sum: &[Near; 2]| Near { error: sum[k].error * (1.0 + rows * unit(DType::F64)), ..sum[k] };
        Array::new(&[columns], sums.iter().map(near).collect())
    };
    [Array::new(&x.shape, dx), of(0), of(1)]
}

/// For each element of a shape, the sum of the products that `factors` lists.
fn sums(shape: &[usize], dtype: DType, factors: impl Fn(&[usize]) -> Vec<(f64, f64)>) -> Array<Near> {
    Array::from_fn(shape, |index| Near::sum_of_products(&factors(index), dtype))
}

/// `a·X` of streams: X `[.., n, C]`, a `[.., n]` → `[.., C]`.
pub fn stream_read(x: &Array<f64>, a: &Array<f64>, dtype: DType) -> Array<Near> {
    let (lead, n, c) = streams(&x.shape);
    sums(&[lead, &[c]].concat(), dtype, |index| {
        let (token, k) = index.split_at(lead.len());
        let at = |i: usize| (a.at(&[token, &[i]].concat()), x.at(&[token, &[i], k].concat()));
        (0..n).map(at).collect()
    })
}

/// `A·X + bᵀ ⊗ F` of streams: X `[.., n, C]`, F `[.., C]`, A `[.., n, n]`, b `[.., n]` → `[.., n, C]`. With `turned` it is `Aᵀ·X`.
/// Without A and X, or b and F, that share is missing.
pub fn stream_write(
    shape: &[usize],
    mixed: Option<(&Array<f64>, &Array<f64>)>,
    turned: bool,
    written: Option<(&Array<f64>, &Array<f64>)>,
    dtype: DType,
) -> Array<Near> {
    let (lead, n, _) = streams(shape);
    sums(shape, dtype, |index| {
        let (token, own) = index.split_at(lead.len());
        let (i, k) = (own[0], own[1]);
        let of_mix = mixed.iter().flat_map(|(mix, x)| {
            (0..n).map(move |j| {
                let place = if turned { [j, i] } else { [i, j] };
                (mix.at(&[token, &place].concat()), x.at(&[token, &[j, k]].concat()))
            })
        });
        let of_write =
            written.iter().map(|(b, f)| (b.at(&[token, &[i]].concat()), f.at(&[token, &[k]].concat())));
        of_mix.chain(of_write).collect()
    })
}

/// `X·H` over the channels of streams: X `[.., n, C]`, H `[.., C]` → `[.., n]`; of `[.., m, C]` for H, `[.., n, m]`.
pub fn stream_products(x: &Array<f64>, h: &Array<f64>, dtype: DType) -> Array<Near> {
    let (lead, n, c) = streams(&x.shape);
    let others = &h.shape[lead.len()..h.shape.len() - 1];
    sums(&[lead, &[n], others].concat(), dtype, |index| {
        let (token, own) = index.split_at(lead.len());
        let at = |k: usize| (x.at(&[token, &[own[0], k]].concat()), h.at(&[token, &own[1..], &[k]].concat()));
        (0..c).map(at).collect()
    })
}

/// The axes before n and C, and those.
fn streams(shape: &[usize]) -> (&[usize], usize, usize) {
    let (lead, own) = shape.split_at(shape.len() - 2);
    (lead, own[0], own[1])
}

/// `v·φ₁/r`, `v·φ₂/r`, … and r side by side, with v all numbers of a token and r = √(mean(v²) + ε): X `[.., n, C]`, φ `[nC, mᵢ]`
/// → `[.., Σmᵢ + 1]`.
pub fn stream_project(x: &Array<f64>, phi: &[&Array<f64>], eps: f64, dtype: DType) -> Array<Near> {
    let (lead, n, c) = streams(&x.shape);
    let (k, columns) = (n * c, side_by_side(phi));
    let v = x.reshape(&[lead, &[k]].concat());
    // Squares do not cancel.
    let relative = (k as f64 + 8.0) * (unit(accumulator(dtype)) + unit(DType::F64));
    Array::from_fn(&[lead, &[columns.len() + 1]].concat(), |index| {
        let (token, column) = index.split_at(lead.len());
        let v: Vec<f64> = (0..k).map(|s| v.at(&[token, &[s]].concat())).collect();
        let r = (v.iter().map(|v| v * v).sum::<f64>() / k as f64 + eps).sqrt();
        let Some(column) = columns.get(column[0]) else { return Near { value: r, error: relative * r } };
        let factors: Vec<(f64, f64)> = v.iter().copied().zip(column.iter().copied()).collect();
        let Near { value, error } = Near::sum_of_products(&factors, dtype);
        Near { value: value / r, error: (error + relative * value.abs()) / r }
    })
}

/// The columns of φ₁, φ₂, ….
fn side_by_side(phi: &[&Array<f64>]) -> Vec<Vec<f64>> {
    let columns = |phi: &&Array<f64>| {
        let [rows, columns] = phi.shape[..] else { panic!("φ has two axes, found {:?}", phi.shape) };
        let column = |j: usize| (0..rows).map(|s| phi.at(&[s, j])).collect();
        (0..columns).map(column).collect::<Vec<Vec<f64>>>()
    };
    phi.iter().flat_map(columns).collect()
}

/// The cotangents of X and φ, from y, what [`stream_project`] gave, and its cotangent ȳ; that of X with the shares that it has
/// from elsewhere: X̄, φ̄₁, φ̄₂, ….
pub fn stream_project_backward(
    x: &Array<f64>,
    phi: &[&Array<f64>],
    [y, dy]: [&Array<f64>; 2],
    shares: Array<Near>,
    dtype: DType,
) -> Vec<Array<Near>> {
    let (lead, n, c) = streams(&x.shape);
    let (k, columns) = (n * c, side_by_side(phi));
    let (m, tokens) = (columns.len(), lead.iter().product::<usize>());
    let rounding = 8.0 * (unit(accumulator(dtype)) + unit(DType::F64));
    let q = |t: usize, j: usize| dy.data[t * (m + 1) + j] / y.data[t * (m + 1) + m];
    let scale = |t: usize| {
        let (y, dy) = (&y.data[t * (m + 1)..][..m + 1], &dy.data[t * (m + 1)..][..m + 1]);
        let factors: Vec<(f64, f64)> = (0..m).map(|j| (dy[j], y[j])).collect();
        let (along, r) = (Near::sum_of_products(&factors, dtype), y[m]);
        let size = dy[m].abs() + along.value.abs() / r;
        let by = 1.0 / (k as f64 * r);
        Near { value: (dy[m] - along.value / r) * by, error: (along.error / r + rounding * size) * by }
    };
    let scales: Vec<Near> = (0..tokens).map(scale).collect();
    let dx = |at: usize| {
        let (t, s) = (at / k, at % k);
        let mut factors: Vec<(f64, f64)> = (0..m).map(|j| (columns[j][s], q(t, j))).collect();
        factors.push((x.data[at], scales[t].value));
        factors.push((shares.data[at].value, 1.0));
        let Near { value, error } = Near::sum_of_products(&factors, dtype);
        let size: f64 = factors.iter().map(|(a, b)| (a * b).abs()).sum();
        Near {
            value,
            error: error + rounding * size + x.data[at].abs() * scales[t].error + shares.data[at].error,
        }
    };
    let mut results = vec![Array::new(&x.shape, (0..tokens * k).map(dx).collect())];
    let mut from = 0;
    for phi in phi {
        results.push(Array::from_fn(&phi.shape, |index| {
            let factors: Vec<(f64, f64)> =
                (0..tokens).map(|t| (x.data[t * k + index[0]], q(t, from + index[1]))).collect();
            let Near { value, error } = Near::sum_of_products(&factors, dtype);
            let size: f64 = factors.iter().map(|(a, b)| (a * b).abs()).sum();
            Near { value, error: error + rounding * size }
        }));
        from += phi.shape[1];
    }
    results
}

/// The value of a number of a float dtype as an i64: towards zero, NaN as 0, beyond the range the nearest.
pub fn truncate(v: f64) -> i64 {
    if v.is_nan() { 0 } else { (v.trunc() as i128).clamp(i64::MIN.into(), i64::MAX.into()) as i64 }
}

/// The nearest number of a float dtype to an integer, ties to even.
pub fn nearest(v: i64, dtype: DType) -> f64 {
    let size = i128::from(v).unsigned_abs();
    let bits = (128 - size.leading_zeros()) as i32;
    let digits = (1.0 / unit(dtype)).log2() as i32;
    let drop = (bits - digits).max(0);
    let (kept, rest) = (size >> drop, size & ((1 << drop) - 1));
    let half = (1u128 << drop) / 2;
    let up = drop > 0 && (rest > half || rest == half && kept & 1 == 1);
    ((kept + u128::from(up)) << drop) as f64 * if v < 0 { -1.0 } else { 1.0 }
}
