//! Cotangents on their way, and how those of one value add up.

use std::collections::BTreeMap;

use limpid_tensor::{DType, Handed, Layout, Tensor};
use smallvec::SmallVec;

use crate::backward::Flow;
use crate::error::{Error, Result, Site};
use crate::ops::streams::Term;
use crate::recycled::Recycled;
use crate::shared::{Shared, SharedTensor};
use crate::tape::{Operand, Tape};
use crate::var::Var;

/// What a backward sweep carries from node to node.
pub(crate) trait Load<'t>: Clone {
    /// Both, at a value where both arrive. `self` arrived first.
    fn plus(self, other: Self, tape: &'t Tape) -> Result<Self>;

    /// Whether rules may leave shares of it to be computed later.
    fn joins(&self) -> bool {
        false
    }

    /// What has arrived at node `id`, and what rules have left there, computed.
    fn joined(arrived: Option<Self>, tape: &'t Tape, id: u32) -> Result<Option<Self>> {
        let _ = (tape, id);
        Ok(arrived)
    }

    /// What is handed on from node `id`, now that everything has arrived there.
    fn arrived(self, tape: &'t Tape, id: u32) -> Result<Self>;

    /// Adds to `out` what the rule of node `id` makes of it, by operand.
    fn pulled(
        self,
        tape: &'t Tape,
        id: u32,
        flow: &Flow,
        pending: &Pending<Self>,
        out: &mut Loads<Self>,
    ) -> Result<()>;
}

/// Loads and the nodes that they are for.
pub(crate) type Loads<L> = SmallVec<[(u32, L); 3]>;

/// A cotangent on its way: a node of the tape, if the pass is kept, else a bare value.
#[derive(Clone)]
pub(crate) enum Cotangent<'t> {
    Node(Var<'t>),
    Value(SharedTensor),
}

impl<'t> Cotangent<'t> {
    /// A bare value.
    pub fn of(value: Tensor) -> Cotangent<'t> {
        Cotangent::Value(Shared::holding(value))
    }

    /// The value, if it is a bare one.
    pub fn into_value(self) -> Option<Tensor> {
        match self {
            Cotangent::Value(value) => Some(value.into_inner()),
            Cotangent::Node(_) => None,
        }
    }
}

/// The cotangent that a rule computed for one operand.
pub(crate) struct Pulled<'t> {
    /// Which operand of its operation.
    pub position: usize,
    pub operand: Operand,
    pub cotangent: Cotangent<'t>,
}

/// The ordinary load: cotangents that add up.
impl<'t> Load<'t> for Cotangent<'t> {
    fn plus(self, other: Self, tape: &'t Tape) -> Result<Self> {
        tape.add(self, other)
    }

    /// One that is kept can be differentiated, so that every share has to be there.
    fn joins(&self) -> bool {
        matches!(self, Cotangent::Value(_))
    }

    fn joined(arrived: Option<Self>, tape: &'t Tape, id: u32) -> Result<Option<Self>> {
        let Some(terms) = tape.terms.borrow_mut().as_mut().and_then(|terms| terms.remove(&id)) else {
            return Ok(arrived);
        };
        let _timed = tape.time_sum(id);
        let sum = terms.sum().map_err(|e| tape.fail(tape.backend_error(tape.var(id), e)))?;
        debug_assert!(arrived.is_none(), "nothing is left where a sum has been begun");
        Ok(sum.map(Cotangent::of))
    }

    fn arrived(self, tape: &'t Tape, id: u32) -> Result<Self> {
        let cotangent = tape.narrowed(self, id)?;
        tape.show_cotangent(id, &cotangent)?;
        Ok(cotangent)
    }

    fn pulled(
        self,
        tape: &'t Tape,
        id: u32,
        flow: &Flow,
        pending: &Pending<Self>,
        out: &mut Loads<Self>,
    ) -> Result<()> {
        let begun = |id: u32| pending.has(id);
        let mut give = |pulled: Pulled<'t>| out.push((pulled.operand.id, pulled.cotangent));
        tape.pull(id, self, flow, Some(&begun), &mut give)
    }
}

/// What a sweep has computed so far and not yet handed on, by node.
pub(crate) struct Pending<L> {
    low: u32,
    inside: Recycled<Option<L>>,
    /// Of sources before the range that is swept.
    below: BTreeMap<u32, Option<L>>,
}

impl<L: Clone> Pending<L> {
    /// None yet, for a sweep from node `y` back to node `low`.
    pub fn new(low: u32, y: u32) -> Pending<L> {
        let inside = Recycled::filled((y + 1).saturating_sub(low) as usize, None);
        Pending { low, inside, below: BTreeMap::new() }
    }

    pub fn slot(&mut self, id: u32) -> &mut Option<L> {
        match id.checked_sub(self.low) {
            Some(i) => &mut self.inside[i as usize],
            None => self.below.entry(id).or_default(),
        }
    }

    pub fn has(&self, id: u32) -> bool {
        match id.checked_sub(self.low) {
            Some(i) => self.inside[i as usize].is_some(),
            None => self.below.get(&id).is_some_and(Option::is_some),
        }
    }

    /// What has arrived before the range.
    pub fn below(self) -> impl Iterator<Item = (u32, L)> {
        self.below.into_iter().filter_map(|(id, load)| Some((id, load?)))
    }
}

/// The dtype in which cotangents add up: bf16 keeps 8 bits, and 256 + 1 would be 256.
fn wider(a: DType, b: DType) -> DType {
    if a == DType::BF16 || b == DType::BF16 { DType::F32 } else { a }
}

/// `sum + x` in place of `sum`.
fn add_to(sum: &mut Tensor, x: &Tensor) -> limpid_tensor::Result<()> {
    let wide = wider(sum.dtype(), x.dtype());
    if sum.dtype() != wide {
        *sum = sum.cast(wide)?;
    }
    if x.dtype() == wide { sum.add_in_place(x) } else { sum.add_in_place(&x.cast(wide)?) }
}

/// Shares that are computed later.
impl Tape {
    /// From here on rules may leave shares, until what is returned is dropped.
    pub(crate) fn gather_terms(&self) -> impl Drop + '_ {
        struct Gathering<'a>(&'a Tape);
        impl Drop for Gathering<'_> {
            fn drop(&mut self) {
                self.0.terms.take();
            }
        }
        *self.terms.borrow_mut() = Some(BTreeMap::new());
        Gathering(self)
    }

    pub(crate) fn gathers_terms(&self) -> bool {
        self.terms.borrow().is_some()
    }

    pub(crate) fn has_terms(&self, id: u32) -> bool {
        self.terms.borrow().as_ref().is_some_and(|terms| terms.contains_key(&id))
    }

    /// Leaves a share in the cotangent of node `id`.
    pub(crate) fn leave_term(&self, id: u32, term: Term<'_>) {
        let (left, [cotangent, coefficient]) = term.parts();
        let values = self.value(cotangent).and_then(|cotangent| Ok([cotangent, self.own(coefficient)?]));
        match values {
            Ok(values) => {
                let mut terms = self.terms.borrow_mut();
                let terms = terms.as_mut().expect("a rule leaves shares only where they are gathered");
                terms.entry(id).or_default().push(left, values);
            }
            Err(error) => {
                self.fail(error);
            }
        }
    }

    /// A coefficient's value. Where a plan drops values at their last reader, a copy, so that what is held is as planned.
    fn own(&self, coefficient: Var<'_>) -> Result<Tensor> {
        let value = self.value(coefficient)?;
        if !self.follows_plan() && self.rehearsed.borrow().is_none() {
            return Ok(value);
        }
        let layout = Layout::contiguous(value.shape().clone());
        Tensor::assemble(value.device(), value.shape(), value.dtype(), &[(layout, &value)])
            .map_err(|e| self.fail(self.backend_error(coefficient, e)))
    }

    /// Takes what was left at node `id`, if one kernel can take all of it up.
    pub(crate) fn take_terms(&self, id: u32) -> (Handed, SmallVec<[Var<'_>; 4]>) {
        let mut terms = self.terms.borrow_mut();
        let taken = terms.as_mut().and_then(|terms| {
            let operands = terms.get(&id)?.operands()?;
            terms.remove(&id);
            Some(operands)
        });
        drop(terms);
        let (handed, values) = taken.unwrap_or_default();
        (handed, values.iter().map(|value| self.constant(value)).collect())
    }
}

impl Tape {
    /// Adds two cotangents of one value. Those of bf16 values add up in f32, and are rounded once on delivery.
    pub(crate) fn add<'t>(&self, a: Cotangent<'t>, b: Cotangent<'t>) -> Result<Cotangent<'t>> {
        match (a, b) {
            (Cotangent::Node(a), Cotangent::Node(b)) => {
                let wide = wider(a.dtype(), b.dtype());
                Ok(Cotangent::Node(a.cast(wide) + b.cast(wide)))
            }
            (Cotangent::Value(mut a), Cotangent::Value(b)) => {
                // A sum that is nobody else's takes the next addend in its place.
                add_to(a.to_mut(), &b).map_err(|e| {
                    self.fail(Error::Backend { site: self.addition(), message: e.to_string() })
                })?;
                self.check_sum(&a)?;
                Ok(Cotangent::Value(a))
            }
            _ => unreachable!("one sweep carries one kind of cotangent"),
        }
    }

    /// A cotangent in the dtype of node `id`, to which it belongs.
    pub(crate) fn narrowed<'t>(&self, cotangent: Cotangent<'t>, id: u32) -> Result<Cotangent<'t>> {
        let dtype = self.nodes.borrow()[id as usize].meta.dtype;
        match cotangent {
            Cotangent::Node(var) => Ok(Cotangent::Node(var.cast(dtype))),
            Cotangent::Value(value) if value.dtype() == dtype => Ok(Cotangent::Value(value)),
            Cotangent::Value(value) => match value.cast(dtype) {
                Ok(value) => Ok(Cotangent::of(value)),
                Err(e) => Err(self.fail(self.backend_error(self.var(id), e))),
            },
        }
    }

    /// The elements of a cotangent of node `id`.
    pub(crate) fn numbers(&self, id: u32, cotangent: &Cotangent<'_>) -> Result<Vec<f64>> {
        let value = match cotangent {
            Cotangent::Node(var) => self.shared_value(*var)?,
            Cotangent::Value(value) => value.clone(),
        };
        value.to_f64_vec().map_err(|e| self.fail(self.backend_error(self.var(id), e)))
    }

    /// In anomaly mode, an error if a sum of cotangents is not finite.
    fn check_sum(&self, sum: &Tensor) -> Result<()> {
        if !self.detects_anomalies() {
            return Ok(());
        }
        let values =
            sum.to_f64_vec().map_err(|e| Error::Backend { site: self.addition(), message: e.to_string() })?;
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(element) => Err(self.fail(Error::NonFinite {
                site: self.addition(),
                found: values[element],
                element,
                operands: "two cotangents of one value".into(),
            })),
        }
    }

    /// Where cotangents are added, for messages.
    fn addition(&self) -> Site {
        Site {
            op: "sum of cotangents".into(),
            scope: self.scopes.borrow().path().into(),
            location: std::panic::Location::caller(),
        }
    }
}
