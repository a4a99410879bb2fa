//! What a program takes to run, found by running it on a device that computes nothing.

use std::panic::Location;
use std::rc::Rc;

use limpid_tensor::{Device, Fused, Meta, Tensor};
use smallvec::SmallVec;

use crate::error::{Error, Site};
use crate::op::Purity;
use crate::plan::PlanError;
use crate::shared::{Shared, SharedTensor};
use crate::tape::{Node, Operand, Tape, tensors};
use crate::var::Var;

/// A program, and what each of its steps costs.
pub(crate) struct Costs {
    pub entries: Vec<Entry>,
    /// The node that is differentiated.
    pub result: u32,
    /// What the first cotangent takes.
    pub seed_bytes: usize,
    /// The rules that run, in that order, the last node first.
    pub rules: Vec<RuleCost>,
}

/// One node of a program.
pub(crate) struct Entry {
    /// `None` for a leaf.
    pub op: Option<&'static str>,
    pub name: Option<Rc<str>>,
    pub scope: Rc<str>,
    pub location: &'static Location<'static>,
    pub inputs: SmallVec<[Operand; 3]>,
    pub meta: Meta,
    pub purity: Purity,
    pub tracked: bool,
    /// Counts the passes of differentiation begun or ended before it.
    pub pass: u32,
    /// The node that allocated the storage it lies in: itself, or what it is a view of.
    pub root: u32,
    /// The operand whose storage it shares, if it is a view.
    pub shows: Option<u32>,
    /// What it allocates; 0 for views and leaves.
    pub bytes: usize,
    /// What computing it takes for a moment, on top of its operands and its result.
    pub transient: usize,
    pub flops: u64,
    /// The kernel that computes several such operations in a [chain](crate::Op::chain).
    pub chain: Option<Fused>,
    /// The nodes whose values its derivative rule reads.
    pub reads: SmallVec<[u32; 4]>,
}

impl Entry {
    /// Whether a policy has to decide of it: not of leaves, nor of views.
    pub fn is_decided_of(&self) -> bool {
        self.op.is_some() && (self.shows.is_none() || self.purity == Purity::Effect)
    }

    pub fn site(&self) -> Site {
        let op = self.op.or(self.name.as_deref()).unwrap_or("leaf").to_string();
        Site { op, scope: self.scope.to_string(), location: self.location }
    }
}

/// What it takes to hand the cotangent of one node on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RuleCost {
    pub node: u32,
    /// The most that cotangents and what the rule computes take, over what cotangents took before.
    pub peak: usize,
    /// What cotangents take afterwards, less what they took before.
    pub change: isize,
    /// What of that is a gradient that has arrived where it was wanted.
    pub gradient: usize,
}

impl Tape {
    /// The program up to `loss` and its backward pass, run on a phantom of this tape's device.
    pub(crate) fn costs(&self, loss: Var<'_>) -> Result<Costs, PlanError> {
        drop(self.meta(loss));
        let phantom = Device::phantom(self.device());
        let backend = phantom.backend();
        let usage = || backend.usage().expect("a phantom counts");
        let tape = self.rehearsal(phantom.clone());
        *tape.rehearsed.borrow_mut() = Some(Rehearsed::default());
        let mut entries: Vec<Entry> = Vec::with_capacity(loss.id as usize + 1);
        for id in 0..=loss.id {
            let node = self.nodes.borrow()[id as usize].clone();
            let before = usage().live;
            backend.set_peak(before);
            let value = tape.phantom_value(&phantom, &node);
            let after = usage();
            let shows = node.inputs.iter().map(|operand| operand.id).find(|&operand| {
                let nodes = tape.nodes.borrow();
                let shown = nodes[operand as usize].value.as_ref().expect("computed before");
                shown.storage().id() == value.storage().id()
            });
            let op = node.op.as_deref();
            let owns = op.is_some() && shows.is_none();
            let bytes = if owns { value.storage().bytes() } else { 0 };
            let operands: SmallVec<[Meta; 3]> =
                node.inputs.iter().map(|operand| entries[operand.id as usize].meta.clone()).collect();
            let operands: SmallVec<[&Meta; 3]> = operands.iter().collect();
            entries.push(Entry {
                op: op.map(|op| op.name()),
                name: node.name.clone(),
                scope: self.scopes.borrow().shared_path(node.scope),
                location: node.location,
                purity: op.map_or(Purity::Pure, |op| op.purity()),
                tracked: node.tracked,
                pass: node.pass,
                root: shows.map_or(id, |shown| entries[shown as usize].root),
                shows,
                bytes,
                transient: if op.is_some() { (after.peak - after.live) as usize } else { 0 },
                flops: op.map_or(0, |op| op.flops(&operands, &node.meta)),
                chain: op.and_then(|op| op.chain()),
                reads: SmallVec::new(),
                inputs: node.inputs.clone(),
                meta: node.meta.clone(),
            });
            tape.nodes.borrow_mut().push(Node { value: Some(Shared::holding(value)), ..node });
        }
        for id in 0..=loss.id {
            entries[id as usize].reads = tape.declared_reads(id);
        }
        tape.backward(tape.var(loss.id)).map_err(|error| match error {
            Error::Backend { site, message } => PlanError::DependsOnValues { site, message },
            other => PlanError::Tape(other),
        })?;
        let rehearsed = tape.rehearsed.take().expect("put there above");
        let Rehearsed { seed_bytes, rules, .. } = rehearsed;
        Ok(Costs { entries, result: loss.id, seed_bytes, rules })
    }

    /// The value of a node as a phantom.
    fn phantom_value(&self, phantom: &Device, node: &Node) -> Tensor {
        match (&node.op, &node.value) {
            (None, Some(value)) if !value.layout().is_contiguous() => {
                let elements = value.storage().bytes() / value.dtype().size();
                let all = blank(phantom, Meta::new([elements], value.dtype()));
                Tensor::from_storage(all.storage().clone(), value.layout().clone(), value.dtype())
            }
            (None, _) => blank(phantom, node.meta.clone()),
            // It holds its device, which is not the phantom.
            (Some(_), _) if node.inputs.is_empty() => blank(phantom, node.meta.clone()),
            (Some(op), _) => {
                let nodes = self.nodes.borrow();
                let operand = |operand: &Operand| nodes[operand.id as usize].value.clone();
                let operands: SmallVec<[SharedTensor; 3]> = node.inputs.iter().filter_map(operand).collect();
                drop(nodes);
                op.forward(&tensors(&operands)).unwrap_or_else(|_| blank(phantom, node.meta.clone()))
            }
        }
    }

    /// In a rehearsal, what stands in for the result of an operation that looks at elements itself: it is taken to make a
    /// tensor and nothing else. Elsewhere the error.
    pub(crate) fn rehearsed_result(
        &self,
        id: u32,
        error: limpid_tensor::Error,
    ) -> limpid_tensor::Result<Tensor> {
        if self.rehearsed.borrow().is_none() {
            return Err(error);
        }
        Ok(blank(self.device(), self.nodes.borrow()[id as usize].meta.clone()))
    }
}

fn blank(phantom: &Device, meta: Meta) -> Tensor {
    Tensor::assemble(phantom, meta.shape, meta.dtype, &[]).expect("a phantom has room for everything")
}

/// What a rehearsal writes down.
#[derive(Default)]
pub(crate) struct Rehearsed {
    live_at_start: isize,
    seed_bytes: usize,
    rules: Vec<RuleCost>,
}

/// How a sweep is watched.
impl Tape {
    /// The backward pass is about to make its first cotangent.
    pub(crate) fn rehearse_start(&self) {
        if let Some(rehearsed) = &mut *self.rehearsed.borrow_mut() {
            rehearsed.live_at_start = self.device().backend().usage().map_or(0, |usage| usage.live);
        }
    }

    /// The cotangent of a node is about to be handed on: the bytes live now.
    pub(crate) fn rehearse_rule(&self) -> Option<isize> {
        let mut rehearsed = self.rehearsed.borrow_mut();
        let rehearsed = rehearsed.as_mut()?;
        let backend = self.device().backend();
        let live = backend.usage()?.live;
        if rehearsed.rules.is_empty() {
            rehearsed.seed_bytes = (live - rehearsed.live_at_start) as usize;
        }
        backend.set_peak(live);
        Some(live)
    }

    /// It has been, and `gradient` bytes have arrived.
    pub(crate) fn rehearsed_rule(&self, node: u32, before: Option<isize>, gradient: usize) {
        if let (Some(rehearsed), Some(before)) = (&mut *self.rehearsed.borrow_mut(), before)
            && let Some(after) = self.device().backend().usage()
        {
            let (peak, change) = ((after.peak - before) as usize, after.live - before);
            rehearsed.rules.push(RuleCost { node, peak, change, gradient });
        }
    }
}
