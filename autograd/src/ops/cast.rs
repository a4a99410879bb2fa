//! Changing the dtype, and stopping a gradient.

use limpid_tensor::{DType, Inferred, Meta, Result, Tensor};
use smallvec::smallvec;

use crate::op::{Cotangents, Derivative, Needs, Op, Pullback, Pushforward};
use crate::replay;
use crate::var::Var;

/// The same values in another dtype: `x̄ = cast(ȳ)` back.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Cast(pub DType);

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn attributes(&self) -> String {
        format!("to {}", self.0)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(Meta { shape: x[0].shape.clone(), dtype: self.0 })
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        x[0].cast(self.0)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    /// A cast to integers or bool is constant between its jumps.
    fn branches(&self, _x: &[&Tensor], y: &Tensor) -> Result<Option<Tensor>> {
        Ok((!self.0.is_float()).then(|| y.clone()))
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| at.g().cast(at.x(i).dtype()))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| dx.cast(self.0))
    }

    fn flops(&self, _x: &[&Meta], _y: &Meta) -> u64 {
        0
    }
}

/// A [`Cast`] whose result is at hand: its operands are a value and, as a constant, that value in the other dtype. Nothing
/// is computed, and the gradient is that of the cast: all of it is the first operand's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct CastKept(pub DType);

impl Op for CastKept {
    fn name(&self) -> &'static str {
        Cast(self.0).name()
    }

    fn attributes(&self) -> String {
        Cast(self.0).attributes()
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Cast(self.0).infer(x)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        // A replay gives other values than those that were rounded.
        if replay::is_running() { x[0].cast(self.0) } else { Ok(x[1].clone()) }
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        smallvec![at.wants(0).then(|| at.g().cast(at.x(0).dtype())), None]
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.dx(0).map(|dx| dx.cast(self.0))
    }

    fn flops(&self, _x: &[&Meta], _y: &Meta) -> u64 {
        0
    }
}

/// The same value as a constant: no gradient passes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Detach;

impl Op for Detach {
    fn name(&self) -> &'static str {
        "detach"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Ok(x[0].clone())
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn derivative(&self) -> Derivative {
        Derivative::Stops
    }

    fn flops(&self, _x: &[&Meta], _y: &Meta) -> u64 {
        0
    }
}

impl<'t> Var<'t> {
    /// The same values in another dtype; itself if it already has it.
    #[track_caller]
    pub fn cast(self, dtype: DType) -> Var<'t> {
        if self.dtype() == dtype { self } else { self.tape().record(Cast(dtype), &[self]) }
    }

    /// The same value as a constant: no gradient passes.
    #[track_caller]
    pub fn detach(self) -> Var<'t> {
        self.tape().record(Detach, &[self])
    }
}
