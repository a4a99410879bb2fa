//! Cotangents on their way, and how those of one value add up.

use std::collections::BTreeMap;

use limpid_tensor::{DType, Tensor};
use smallvec::SmallVec;

use crate::backward::Flow;
use crate::error::{Error, Result, Site};
use crate::tape::{Operand, Tape};
use crate::var::Var;

/// What a backward sweep carries from node to node.
pub(crate) trait Load<'t>: Clone {
    /// Both, at a value where both arrive. `self` arrived first.
    fn plus(self, other: Self, tape: &'t Tape) -> Result<Self>;

    /// What is handed on from node `id`, now that everything has arrived there.
    fn arrived(self, tape: &'t Tape, id: u32) -> Result<Self>;

    /// What the rule of node `id` makes of it, by operand.
    fn pulled(self, tape: &'t Tape, id: u32, flow: &Flow) -> Result<SmallVec<[(u32, Self); 3]>>;
}

/// A cotangent on its way: a node of the tape, if the pass is kept, else a bare value.
#[derive(Clone)]
pub(crate) enum Cotangent<'t> {
    Node(Var<'t>),
    Value(Tensor),
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

    fn arrived(self, tape: &'t Tape, id: u32) -> Result<Self> {
        let cotangent = tape.narrowed(self, id)?;
        tape.show_cotangent(id, &cotangent)?;
        Ok(cotangent)
    }

    fn pulled(self, tape: &'t Tape, id: u32, flow: &Flow) -> Result<SmallVec<[(u32, Self); 3]>> {
        Ok(tape.pull(id, self, flow)?.into_iter().map(|p| (p.operand.id, p.cotangent)).collect())
    }
}

/// What a sweep has computed so far and not yet handed on, by node.
pub(crate) struct Pending<L> {
    low: u32,
    inside: Vec<Option<L>>,
    /// Of sources before the range that is swept.
    below: BTreeMap<u32, Option<L>>,
}

impl<L: Clone> Pending<L> {
    /// None yet, for a sweep from node `y` back to node `low`.
    pub fn new(low: u32, y: u32) -> Pending<L> {
        let inside = vec![None; (y + 1).saturating_sub(low) as usize];
        Pending { low, inside, below: BTreeMap::new() }
    }

    pub fn slot(&mut self, id: u32) -> &mut Option<L> {
        match id.checked_sub(self.low) {
            Some(i) => &mut self.inside[i as usize],
            None => self.below.entry(id).or_default(),
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

impl Tape {
    /// Adds two cotangents of one value. Those of bf16 values add up in f32, and are rounded once on delivery.
    pub(crate) fn add<'t>(&self, a: Cotangent<'t>, b: Cotangent<'t>) -> Result<Cotangent<'t>> {
        match (a, b) {
            (Cotangent::Node(a), Cotangent::Node(b)) => {
                let wide = wider(a.dtype(), b.dtype());
                Ok(Cotangent::Node(a.cast(wide) + b.cast(wide)))
            }
            (Cotangent::Value(a), Cotangent::Value(b)) => {
                let wide = wider(a.dtype(), b.dtype());
                // A sum that is nobody else's takes the next addend in its place.
                let a = if a.dtype() == wide { Ok(a) } else { a.cast(wide) };
                let sum = a.and_then(|a| a.plus(&b.cast(wide)?));
                let sum = sum.map_err(|e| {
                    self.fail(Error::Backend { site: self.addition(), message: e.to_string() })
                })?;
                self.check_sum(&sum)?;
                Ok(Cotangent::Value(sum))
            }
            _ => unreachable!("one sweep carries one kind of cotangent"),
        }
    }

    /// A cotangent in the dtype of node `id`, to which it belongs.
    pub(crate) fn narrowed<'t>(&self, cotangent: Cotangent<'t>, id: u32) -> Result<Cotangent<'t>> {
        let dtype = self.nodes.borrow()[id as usize].meta.dtype;
        match cotangent {
            Cotangent::Node(var) => Ok(Cotangent::Node(var.cast(dtype))),
            Cotangent::Value(value) => match value.cast(dtype) {
                Ok(value) => Ok(Cotangent::Value(value)),
                Err(e) => Err(self.fail(self.backend_error(self.var(id), e))),
            },
        }
    }

    /// The elements of a cotangent of node `id`.
    pub(crate) fn numbers(&self, id: u32, cotangent: &Cotangent<'_>) -> Result<Vec<f64>> {
        let value = match cotangent {
            Cotangent::Node(var) => self.value(*var)?,
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
