//! Cotangents on their way, and how those of one value add up.

use std::collections::BTreeMap;

use limpid_tensor::{DType, Map, Tensor};

use crate::error::{Error, Result, Site};
use crate::tape::Tape;
use crate::var::Var;

/// A cotangent on its way: a node of the tape, if the pass is kept, else a bare value.
#[derive(Clone)]
pub(crate) enum Cotangent<'t> {
    Node(Var<'t>),
    Value(Tensor),
}

/// The cotangents that a sweep has computed so far and not yet handed on, by node.
pub(crate) struct Pending<'t> {
    low: u32,
    inside: Vec<Option<Cotangent<'t>>>,
    /// Of sources before the range that is swept.
    below: BTreeMap<u32, Option<Cotangent<'t>>>,
}

impl<'t> Pending<'t> {
    /// None yet, for a sweep from node `y` back to node `low`.
    pub fn new(low: u32, y: u32) -> Pending<'t> {
        let inside = vec![None; (y + 1).saturating_sub(low) as usize];
        Pending { low, inside, below: BTreeMap::new() }
    }

    pub fn slot(&mut self, id: u32) -> &mut Option<Cotangent<'t>> {
        match id.checked_sub(self.low) {
            Some(i) => &mut self.inside[i as usize],
            None => self.below.entry(id).or_default(),
        }
    }

    /// What has arrived before the range.
    pub fn below(self) -> impl Iterator<Item = (u32, Cotangent<'t>)> {
        self.below.into_iter().filter_map(|(id, cotangent)| Some((id, cotangent?)))
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
                let sum = a.cast(wide).and_then(|a| Tensor::map(Map::Add, &[&a, &b.cast(wide)?]));
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
