//! A parameter: a named tensor that outlives the tapes it is used on.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use limpid_autograd::{ParamId, Tape, Var};
use limpid_tensor::{DType, Meta, Tensor};

/// What a parameter is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Learned: gradients are wanted for it.
    Weight,
    /// Kept with the model, and never learned: a running statistic.
    Buffer,
}

/// A tensor that belongs to a model, with the name it has in printed tapes, checkpoints and reports.
///
/// A parameter carries its whole path (`layers.3.weight`), given once, when it is made. The alternative, a local name
/// joined with wherever the module happens to hang, would need the path at every use: a tape would print another name
/// when a module is used alone, and a weight shared by two modules would have two. It also makes visiting a model's
/// parameters a plain walk.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::{Parameter, Role};
/// use limpid_tensor::Tensor;
///
/// let w = Parameter::new("layers.0.weight", Tensor::scalar(3.0f64), Role::Weight);
/// let tape = Tape::new();
/// let y = w.on(&tape) * w.on(&tape); // one node, used twice: its gradients add up
/// let gradients = tape.backward(y)?;
/// assert_eq!(gradients.of_parameter(w.id()).unwrap().item()?, 6.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Parameter {
    id: ParamId,
    path: String,
    value: Tensor,
    copy: Rounded,
    role: Role,
    frozen: bool,
    decays: bool,
}

/// A parameter's value in a narrower dtype, made when it is first read so and kept for as long as it is the value's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounded {
    tensor: OnceLock<Tensor>,
    /// A graph changes the value, and does not know of a copy that is made after it was captured.
    is_graphs: bool,
}

impl Rounded {
    /// Takes the copy out, if there is one in bf16, to be written beside the value. One in another dtype is dropped.
    pub fn take_bf16(&mut self) -> Option<Tensor> {
        self.tensor.take().filter(|copy| copy.dtype() == DType::BF16)
    }

    /// Keeps what is the value, rounded.
    pub fn keep(&mut self, copy: Option<Tensor>) {
        self.tensor = copy.map(OnceLock::from).unwrap_or_default();
    }
}

impl Parameter {
    /// A parameter under its full path, with an id no other parameter of this process has.
    ///
    /// # Panics
    /// If it is to be learned and its dtype carries no gradient.
    #[track_caller]
    pub fn new(path: impl Into<String>, value: Tensor, role: Role) -> Parameter {
        let path = path.into();
        assert!(
            role == Role::Buffer || value.dtype().is_float(),
            "parameter {path}: {} carries no gradient",
            value.dtype()
        );
        Parameter { id: next_id(), path, value, copy: Rounded::default(), role, frozen: false, decays: true }
    }

    /// The same, left alone by the weight decay of an optimiser unless one of its [`Groups`](crate::optim::Groups) names it:
    /// for coefficients, of which 0 is no neutral value.
    pub fn without_decay(self) -> Parameter {
        Parameter { decays: false, ..self }
    }

    /// Whether an optimiser's weight decay, where it has one for all, is meant for it too.
    pub fn decays(&self) -> bool {
        self.decays
    }

    /// Identifies it on a tape and in [`Gradients`](limpid_autograd::Gradients).
    pub fn id(&self) -> ParamId {
        self.id
    }

    /// Its full name, such as `layers.3.weight`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its value now.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Shape and dtype.
    pub fn meta(&self) -> Meta {
        self.value.meta()
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether it stays as it is although it is a weight.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Whether an optimiser should change it: a weight that is not frozen.
    pub fn is_trainable(&self) -> bool {
        self.role == Role::Weight && !self.frozen
    }

    /// Makes it a constant on tapes to come, or lets it learn again.
    pub fn set_frozen(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    /// Gives it another value; tapes that it is on keep the one they have.
    ///
    /// # Panics
    /// If shape or dtype differ from the present value's.
    #[track_caller]
    pub fn set_value(&mut self, value: Tensor) {
        assert_eq!(
            value.meta(),
            self.meta(),
            "parameter {}: a new value must keep shape and dtype",
            self.path
        );
        self.value = value;
        self.copy.keep(None);
    }

    /// Its value for an update in place; see [`Tensor::as_mut_slice`].
    pub fn value_mut(&mut self) -> &mut Tensor {
        self.copy.keep(None);
        &mut self.value
    }

    /// A step of it has been captured, to be run again and again.
    pub(crate) fn is_stepped_by_graph(&mut self) {
        self.copy.is_graphs = true;
    }

    /// Value and copy for an update of both.
    pub(crate) fn value_and_copy_mut(&mut self) -> (&mut Tensor, &mut Rounded) {
        (&mut self.value, &mut self.copy)
    }

    /// Places it on a tape. Every use on one tape is the same node, so gradients add up. Buffers and frozen weights
    /// are constants there.
    ///
    /// Where the tape [is to compute in another precision](Tape::in_precision), a weight is read as its value in that dtype,
    /// and its gradient is in its own. The rounded value is made at the first use and kept; an optimiser's step writes it
    /// beside the weight, and any other change of the value drops it.
    #[track_caller]
    pub fn on<'t>(&self, tape: &'t Tape) -> Var<'t> {
        let frozen = !self.is_trainable();
        match tape.precision().filter(|_| self.role == Role::Weight) {
            None => tape.parameter(self.id, &self.path, &self.value, frozen),
            Some(dtype) => {
                tape.parameter_in(dtype, self.id, &self.path, &self.value, frozen, || self.rounded(dtype))
            }
        }
    }

    /// The value in another dtype.
    fn rounded(&self, dtype: DType) -> limpid_tensor::Result<Tensor> {
        if let Some(copy) = self.copy.tensor.get().filter(|copy| copy.dtype() == dtype) {
            return Ok(copy.clone());
        }
        let rounded = self.value.cast(dtype)?;
        // What is captured has not been computed when the capture ends.
        if !self.copy.is_graphs && !self.value.device().backend().is_capturing() {
            // If it is kept in another dtype, or another thread was faster, that stays.
            let _ = self.copy.tensor.set(rounded.clone());
        }
        Ok(rounded)
    }
}

/// A clone is another parameter: it has the same path and value, and an id of its own, so that a model and its copy
/// can be used on one tape.
impl Clone for Parameter {
    fn clone(&self) -> Parameter {
        let Parameter { path, value, copy, .. } = self;
        Parameter { id: next_id(), path: path.clone(), value: value.clone(), copy: copy.clone(), ..*self }
    }
}

impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.meta())
    }
}

fn next_id() -> ParamId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    ParamId(NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpid_tensor::DType;

    fn weight(value: f64) -> Parameter {
        Parameter::new("w", Tensor::scalar(value), Role::Weight)
    }

    #[test]
    fn a_clone_has_an_id_of_its_own() {
        let w = weight(2.0);
        let mut copy = w.clone();
        assert_eq!((copy.path(), copy.value().item().unwrap()), ("w", 2.0));
        assert_ne!(copy.id(), w.id());
        copy.set_value(Tensor::scalar(5.0f64));
        let tape = Tape::new();
        let gradients = tape.backward(w.on(&tape) * copy.on(&tape)).unwrap();
        assert_eq!(gradients.of_parameter(w.id()).unwrap().item().unwrap(), 5.0);
        assert_eq!(gradients.of_parameter(copy.id()).unwrap().item().unwrap(), 2.0);
    }

    #[test]
    fn buffers_and_frozen_weights_are_constants() {
        let mut w = weight(2.0);
        let buffer = Parameter::new("running", Tensor::scalar(3.0f64), Role::Buffer);
        let tape = Tape::new();
        assert!(w.on(&tape).is_tracked() && !buffer.on(&tape).is_tracked());
        w.set_frozen(true);
        assert!(w.on(&Tape::new()).is_tracked().eq(&false));
        assert!(!w.is_trainable() && !buffer.is_trainable());
    }

    /// Its copy, if it has one.
    fn copy(p: &Parameter) -> Option<f64> {
        p.copy.tensor.get().map(|copy| copy.item().unwrap())
    }

    #[test]
    fn a_copy_is_made_once_written_by_steps_and_dropped_by_other_changes() {
        use crate::optim::{Adam, Optimizer, Sgd};
        use crate::{Activation, Init, Linear};
        let mut layer = Linear::new(&Init::new(0), 1, 1, Activation::Identity).without_bias();
        let use_in = |layer: &Linear, dtype: DType| {
            let tape = Tape::new();
            let w = tape.in_precision(dtype, || layer.weight.on(&tape)).cast(DType::F32).sum(&[]);
            tape.backward(w).unwrap()
        };
        assert_eq!(copy(&layer.weight), None, "nobody has asked");
        let gradients = use_in(&layer, DType::BF16);
        let made = copy(&layer.weight).unwrap();
        for optimizer in [&mut Sgd::new() as &mut dyn Optimizer, &mut Adam::adamw()] {
            optimizer.step(&mut layer, &gradients, 0.1).unwrap();
            let expected = layer.weight.value().cast(DType::BF16).unwrap().item().unwrap();
            assert_eq!(copy(&layer.weight), Some(expected), "it is written, not dropped");
            assert_ne!(expected, made);
        }
        let value = layer.weight.value().clone();
        let changes: [&dyn Fn(&mut Parameter); 2] = [&|p| p.set_value(value.clone()), &|p| {
            p.value_mut();
        }];
        for change in changes {
            use_in(&layer, DType::BF16);
            assert!(copy(&layer.weight).is_some());
            change(&mut layer.weight);
            assert_eq!(copy(&layer.weight), None);
        }
        // One dtype is kept, and only bf16 is written by steps.
        layer.weight = Parameter::new("w", Tensor::full([1, 1], 0.3, DType::F64), Role::Weight);
        let gradients = use_in(&layer, DType::F32);
        assert_eq!(copy(&layer.weight), Some(f64::from(0.3f32)));
        use_in(&layer, DType::BF16);
        assert_eq!(copy(&layer.weight), Some(f64::from(0.3f32)));
        Sgd::new().step(&mut layer, &gradients, 0.1).unwrap();
        assert_eq!(copy(&layer.weight), None);
    }

    #[test]
    #[should_panic(expected = "parameter w: a new value must keep shape and dtype")]
    fn a_value_of_another_shape_is_refused() {
        weight(1.0).set_value(Tensor::zeros([2], DType::F64));
    }

    #[test]
    #[should_panic(expected = "parameter index: i64 carries no gradient")]
    fn a_weight_must_carry_gradients() {
        Parameter::new("index", Tensor::scalar(1i64), Role::Weight);
    }
}
