//! Losses: how far predictions are from targets.
//!
//! Each takes a [`Reduction`]: what becomes of the loss of each sample or element. Targets may carry gradients where
//! they are floats (distillation); use [`detach`](limpid_autograd::Var::detach) where they must not.

use limpid_autograd::Var;
use limpid_tensor::DType;

/// What becomes of the losses of the samples or elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reduction {
    /// Their mean, a scalar.
    #[default]
    Mean,
    /// Their sum, a scalar.
    Sum,
    /// They are returned as they are.
    None,
}

impl Reduction {
    #[track_caller]
    fn apply(self, losses: Var<'_>) -> Var<'_> {
        match self {
            Reduction::Mean => losses.mean(&[]),
            Reduction::Sum => losses.sum(&[]),
            Reduction::None => losses,
        }
    }
}

/// `−ln softmax(logits)[label]` per row: logits `[N, C]`, labels i64 `[N]`; losses `[N]`.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::losses::{Reduction, cross_entropy};
/// use limpid_tensor::{DType, Tensor};
/// let tape = Tape::new();
/// let logits = tape.variable(&Tensor::zeros([3, 2], DType::F64));
/// let labels = tape.constant(&Tensor::from_vec(vec![0i64, 1, 1], [3]));
/// let loss = cross_entropy(logits, labels, Reduction::Mean);
/// assert!((loss.item()? - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), limpid_autograd::Error>(())
/// ```
///
/// # Panics
/// If the shapes or dtypes are not these.
#[track_caller]
pub fn cross_entropy<'t>(logits: Var<'t>, labels: Var<'t>, reduction: Reduction) -> Var<'t> {
    reduction.apply(logits.cross_entropy(labels))
}

/// Cross-entropy against labels mixed with the uniform distribution over the C classes,
/// `−Σ_k q_k·ln softmax(logits)_k` with `q = (1 − ε)·onehot(label) + ε/C`. Shapes as in [`cross_entropy`].
///
/// C. Szegedy et al., arXiv 1512.00567, §7.
///
/// # Panics
/// If the shapes or dtypes are not these, or ε is not in `0..=1`.
#[track_caller]
pub fn cross_entropy_smoothed<'t>(
    logits: Var<'t>,
    labels: Var<'t>,
    epsilon: f64,
    reduction: Reduction,
) -> Var<'t> {
    assert!((0.0..=1.0).contains(&epsilon), "cross_entropy_smoothed: ε must be in 0..=1, found {epsilon}");
    let hard = logits.cross_entropy(labels);
    // −(1/C)·Σ_k ln softmax_k
    let uniform = logits.logsumexp(&[1]) - logits.mean(&[1]);
    reduction.apply(hard * (1.0 - epsilon) + uniform * epsilon)
}

/// The negative log-likelihood `−log_probabilities[label]` per row: log-probabilities `[N, C]`, labels i64 `[N]`;
/// losses `[N]`.
///
/// # Panics
/// If the shapes or dtypes are not these.
#[track_caller]
pub fn nll<'t>(log_probabilities: Var<'t>, labels: Var<'t>, reduction: Reduction) -> Var<'t> {
    let (shape, n) = (log_probabilities.shape(), labels.shape());
    assert!(
        shape.len() == 2 && n[..] == shape[..1] && labels.dtype() == DType::I64,
        "nll: expected log-probabilities [N, C] and i64 labels [N], found {shape} and {}",
        labels.meta()
    );
    let of_label = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1);
    reduction.apply(-of_label)
}

/// `(x − t)²` per element; x and t of one shape.
///
/// # Panics
/// If the shapes or dtypes differ.
#[track_caller]
pub fn mse<'t>(x: Var<'t>, target: Var<'t>, reduction: Reduction) -> Var<'t> {
    let d = difference("mse", x, target);
    reduction.apply(d * d)
}

/// `|x − t|` per element; x and t of one shape. Its derivative where they are equal is 0.
///
/// # Panics
/// If the shapes or dtypes differ.
#[track_caller]
pub fn l1<'t>(x: Var<'t>, target: Var<'t>, reduction: Reduction) -> Var<'t> {
    reduction.apply(difference("l1", x, target).abs())
}

/// `½d²` where `|d| ≤ δ`, else `δ·(|d| − ½δ)`, for `d = x − t` per element; x and t of one shape.
///
/// P. J. Huber, *Robust estimation of a location parameter*, Ann. Math. Stat. 35 (1964).
///
/// # Panics
/// If the shapes or dtypes differ, or δ is not positive.
#[track_caller]
pub fn huber<'t>(x: Var<'t>, target: Var<'t>, delta: f64, reduction: Reduction) -> Var<'t> {
    assert!(delta > 0.0, "huber: δ must be positive, found {delta}");
    let d = difference("huber", x, target);
    // With c = clamp(d, ±δ) both pieces are c·(d − ½c), and its derivative is c: it has no kink.
    let c = d.clamp(-delta, delta);
    reduction.apply(c * (d - c * 0.5))
}

/// Binary cross-entropy of logits, `−t·ln σ(x) − (1 − t)·ln(1 − σ(x))` per element; x and t of one shape, t in 0..=1.
///
/// Computed as `t·softplus(−x) + (1 − t)·softplus(x)`: no overflow, and no cancellation at either end.
///
/// # Panics
/// If the shapes or dtypes differ.
#[track_caller]
pub fn bce_with_logits<'t>(x: Var<'t>, target: Var<'t>, reduction: Reduction) -> Var<'t> {
    same_shape("bce_with_logits", x, target);
    reduction.apply(target * (-x).softplus() + (1.0 - target) * x.softplus())
}

#[track_caller]
fn difference<'t>(name: &str, x: Var<'t>, target: Var<'t>) -> Var<'t> {
    same_shape(name, x, target);
    x - target
}

/// Broadcasting a target against predictions (`[N]` against `[N, 1]`) is nearly always a mistake.
#[track_caller]
fn same_shape(name: &str, x: Var<'_>, target: Var<'_>) {
    assert_eq!(x.meta(), target.meta(), "{name}: predictions and targets must have one shape and dtype");
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpid_autograd::Tape;
    use limpid_tensor::Tensor;

    fn vector<'t>(tape: &'t Tape, values: &[f64]) -> Var<'t> {
        tape.variable(&Tensor::from_slice(values, [values.len()]))
    }

    fn values(v: Var<'_>) -> Vec<f64> {
        v.value().unwrap().to_vec().unwrap()
    }

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-14 * b.abs().max(1.0), "{found:?} is not {expected:?}");
        }
    }

    /// A loss, its value for each element and its gradient by the predictions.
    fn both(
        x: &[f64],
        t: &[f64],
        loss: impl for<'t> Fn(Var<'t>, Var<'t>, Reduction) -> Var<'t>,
    ) -> (Vec<f64>, Vec<f64>) {
        let tape = Tape::new();
        let (x, t) = (vector(&tape, x), vector(&tape, t).detach());
        let each = values(loss(x, t, Reduction::None));
        let (sum, mean) = (loss(x, t, Reduction::Sum), loss(x, t, Reduction::Mean));
        close(&[sum.item().unwrap()], &[each.iter().sum()]);
        close(&[mean.item().unwrap() * each.len() as f64], &[each.iter().sum()]);
        let gradient = tape.backward(sum).unwrap().of(x).unwrap().to_vec().unwrap();
        (each, gradient)
    }

    #[test]
    fn regression_losses_by_hand() {
        let (x, t) = ([1.0, -2.0, 3.0, 0.5], [1.5, 1.0, 1.0, 0.5]);
        assert_eq!(both(&x, &t, mse), (vec![0.25, 9.0, 4.0, 0.0], vec![-1.0, -6.0, 4.0, 0.0]));
        assert_eq!(both(&x, &t, l1), (vec![0.5, 3.0, 2.0, 0.0], vec![-1.0, -1.0, 1.0, 0.0]));
        let (losses, gradient) = both(&x, &t, |x, t, r| huber(x, t, 2.0, r));
        assert_eq!((losses, gradient), (vec![0.125, 4.0, 2.0, 0.0], vec![-0.5, -2.0, 2.0, 0.0]));
    }

    #[test]
    fn binary_cross_entropy_is_exact_at_both_ends() {
        let (x, t) = ([0.0, 2.0, -2.0, 50.0, -50.0, 800.0, -800.0], [0.5, 1.0, 0.25, 1.0, 0.0, 0.0, 1.0]);
        let (losses, gradient) = both(&x, &t, bce_with_logits);
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        let expected = [2f64.ln(), softplus(-2.0), softplus(-2.0) + 0.5, (-50f64).exp(), (-50f64).exp()];
        for (a, b) in losses.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-14 * b, "{a} is not {b}");
        }
        assert_eq!(losses[5..], [800.0, 800.0]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let slopes: Vec<f64> = x.iter().zip(t).map(|(&x, t)| sigmoid(x) - t).collect();
        close(&gradient, &slopes);
    }

    #[test]
    fn classification_losses_by_hand() {
        // Rows with softmax (1/4, 1/4, 1/2) and (1/2, 1/3, 1/6).
        let logits: Vec<f64> = [1.0f64, 1.0, 2.0, 3.0, 2.0, 1.0].iter().map(|v| v.ln()).collect();
        let tape = Tape::new();
        let logits = tape.variable(&Tensor::from_vec(logits, [2, 3]));
        let labels = tape.constant(&Tensor::from_vec(vec![2i64, 0], [2]));
        let (two, expected) = (2f64.ln(), [2f64.ln(), 2f64.ln()]);
        close(&values(cross_entropy(logits, labels, Reduction::None)), &expected);
        close(&values(cross_entropy(logits, labels, Reduction::Sum)), &[2.0 * two]);
        close(&values(cross_entropy(logits, labels, Reduction::Mean)), &[two]);
        close(&values(nll(logits.log_softmax(1), labels, Reduction::None)), &expected);

        // −0.7·ln q_label − 0.1·Σ ln q.
        let smooth = cross_entropy_smoothed(logits, labels, 0.3, Reduction::None);
        close(&values(smooth), &[0.7 * two + 0.1 * 32f64.ln(), 0.7 * two + 0.1 * 36f64.ln()]);
        let gradient = tape.backward(smooth.sum(&[])).unwrap().of(logits).unwrap().to_vec::<f64>().unwrap();
        // softmax − target distribution
        close(&gradient, &[0.15, 0.15, -0.3, -0.3, 1.0 / 3.0 - 0.1, 1.0 / 6.0 - 0.1]);
    }

    #[test]
    #[should_panic(expected = "mse: predictions and targets must have one shape and dtype")]
    fn targets_do_not_broadcast() {
        let tape = Tape::new();
        mse(vector(&tape, &[1.0, 2.0]).unsqueeze(1), vector(&tape, &[1.0, 2.0]), Reduction::Mean);
    }

    #[test]
    #[should_panic(
        expected = "nll: expected log-probabilities [N, C] and i64 labels [N], found [2, 3] and i64[3]"
    )]
    fn labels_are_one_per_row() {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::zeros([2, 3], DType::F64));
        nll(x, tape.constant(&Tensor::zeros([3], DType::I64)), Reduction::Mean);
    }
}
