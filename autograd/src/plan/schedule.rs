//! In which order things are computed, computed again and dropped, and what is held meanwhile.
//!
//! A schedule is data: a list of steps that knows nothing of tensors. It is found in three passes over the program. The
//! first lists what is computed, and before each step what must be computed again for it; the second, from the end,
//! finds the last reader of everything; the third adds up bytes.

use smallvec::SmallVec;

use crate::error::Site;
use crate::op::Purity;
use crate::plan::costs::Costs;
use crate::plan::{Choice, PlanError};

/// One thing that happens in a run. Nodes are positions on the tape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A value is computed in the forward pass.
    Compute(u32),
    /// A value that had been dropped is computed again.
    Recompute(u32),
    /// The cotangent of a node is handed on by its derivative rule, or, of a leaf, delivered.
    Rule(u32),
    /// A value is dropped.
    Drop(u32),
}

impl Step {
    /// The node that it is about.
    pub fn node(self) -> usize {
        match self {
            Step::Compute(id) | Step::Recompute(id) | Step::Rule(id) | Step::Drop(id) => id as usize,
        }
    }
}

/// A step, and the bytes that are held. Inputs and parameters do not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// What happens.
    pub step: Step,
    /// The most that is held while it does.
    pub peak: usize,
    /// What is held afterwards.
    pub held: usize,
    /// What of `held` are gradients that have been delivered.
    pub gradients: usize,
}

/// What is computed, in order, and what is read for it.
struct Listing<'a> {
    costs: &'a Costs,
    decided: &'a [Choice],
    /// Whether the value is there.
    present: Vec<bool>,
    steps: Vec<Step>,
}

impl Listing<'_> {
    fn is_leaf(&self, id: u32) -> bool {
        self.costs.entries[id as usize].op.is_none()
    }

    /// Makes sure that a value is there, computing it again with what it takes. Returns the first node computed again.
    fn demand(&mut self, id: u32) -> Result<Option<u32>, Site> {
        let mut first = None;
        let mut stack: SmallVec<[u32; 16]> = SmallVec::from_slice(&[id]);
        while let Some(&next) = stack.last() {
            if self.present[next as usize] {
                stack.pop();
                continue;
            }
            let entry = &self.costs.entries[next as usize];
            let missing = entry.inputs.iter().map(|o| o.id).filter(|&id| !self.present[id as usize]);
            let before = stack.len();
            let missing: SmallVec<[u32; 4]> = missing.collect();
            stack.extend(missing);
            if stack.len() > before {
                continue;
            }
            if entry.purity == Purity::Effect {
                return Err(entry.site());
            }
            self.steps.push(Step::Recompute(next));
            self.present[next as usize] = true;
            first = Some(first.map_or(next, |first: u32| first.min(next)));
            stack.pop();
        }
        Ok(first)
    }

    /// Forgets what is to be computed again.
    fn forget(&mut self) {
        for (id, present) in self.present.iter_mut().enumerate() {
            let kept = self.decided[id] == Choice::Save || self.costs.entries[id].op.is_none();
            *present &= kept || id == self.costs.result as usize;
        }
    }
}

/// The steps of a run without its drops.
fn listed(costs: &Costs, decided: &[Choice], together: bool) -> Result<Vec<Step>, Site> {
    let count = costs.entries.len();
    let mut listing = Listing { costs, decided, present: vec![false; count], steps: Vec::new() };
    let mut pass = 0;
    for (id, entry) in (0..).zip(&costs.entries) {
        if entry.pass != pass {
            pass = entry.pass;
            listing.forget();
        }
        if !listing.is_leaf(id) {
            for operand in &entry.inputs {
                listing.demand(operand.id)?;
            }
            listing.steps.push(Step::Compute(id));
        }
        listing.present[id as usize] = true;
    }
    listing.forget();
    let mut read_by_rule = vec![false; count];
    for rule in &costs.rules {
        for &read in &costs.entries[rule.node as usize].reads {
            read_by_rule[read as usize] = true;
        }
    }
    for rule in &costs.rules {
        for &read in &costs.entries[rule.node as usize].reads {
            let first = listing.demand(read)?;
            // What any rule from here back to the first of them reads comes back with it.
            for id in first.filter(|_| together).map_or(0..0, |first| first..rule.node) {
                if read_by_rule[id as usize] {
                    listing.demand(id)?;
                }
            }
        }
        listing.steps.push(Step::Rule(rule.node));
    }
    Ok(listing.steps)
}

/// The values that a step reads.
pub(crate) fn reads(costs: &Costs, step: Step) -> SmallVec<[u32; 4]> {
    let entry = &costs.entries[step.node()];
    match step {
        Step::Compute(_) | Step::Recompute(_) => entry.inputs.iter().map(|operand| operand.id).collect(),
        Step::Rule(_) => entry.reads.clone(),
        Step::Drop(_) => SmallVec::new(),
    }
}

/// The steps with each value dropped after its last reader.
fn with_drops(costs: &Costs, steps: Vec<Step>) -> Vec<Step> {
    let stays = |id: u32| {
        let entry = &costs.entries[id as usize];
        entry.op.is_none() || entry.purity == Purity::Effect || id == costs.result
    };
    // From the end: whether something later reads the value as it is then.
    let mut read_later = vec![false; costs.entries.len()];
    let mut backwards: Vec<Step> = Vec::with_capacity(steps.len() * 2);
    for &step in steps.iter().rev() {
        let mut last_read = reads(costs, step);
        if let Step::Compute(id) | Step::Recompute(id) = step {
            if !read_later[id as usize] && !stays(id) {
                backwards.push(Step::Drop(id));
            }
            read_later[id as usize] = false;
        }
        last_read.retain(|id| !stays(*id) && !std::mem::replace(&mut read_later[*id as usize], true));
        backwards.extend(last_read.into_iter().map(Step::Drop));
        backwards.push(step);
    }
    backwards.reverse();
    backwards
}

/// Storage shared by views.
struct Stored {
    bytes: usize,
    holders: usize,
}

/// The steps with what is held. The second result is where the backward pass begins.
fn weighed(costs: &Costs, steps: Vec<Step>) -> (Vec<Moment>, usize) {
    let mut rules = costs.rules.iter();
    let mut storages: Vec<Stored> = Vec::new();
    // The storage that a node's value lies in, while it is there and does not lie in a leaf's.
    let mut lies_in: Vec<Option<usize>> = vec![None; costs.entries.len()];
    let (mut held, mut gradients) = (0, 0);
    let mut begun = None;
    let mut moments = Vec::with_capacity(steps.len());
    for step in steps {
        let id = step.node();
        let entry = &costs.entries[id];
        let mut peak = held;
        match step {
            Step::Compute(_) | Step::Recompute(_) => {
                lies_in[id] = match entry.shows {
                    Some(shown) => lies_in[shown as usize],
                    None => {
                        storages.push(Stored { bytes: entry.bytes, holders: 0 });
                        Some(storages.len() - 1)
                    }
                };
                if let Some(storage) = lies_in[id] {
                    storages[storage].holders += 1;
                }
                held += entry.bytes;
                peak = held + entry.transient;
            }
            Step::Drop(_) => {
                if let Some(storage) = lies_in[id].take() {
                    storages[storage].holders -= 1;
                    if storages[storage].holders == 0 {
                        held -= storages[storage].bytes;
                    }
                }
            }
            Step::Rule(_) => {
                if begun.is_none() {
                    held += costs.seed_bytes;
                }
                let rule = rules.next().expect("a rule for each step");
                peak = held + rule.peak;
                held = held.checked_add_signed(rule.change).expect("cotangents are freed once");
                gradients += rule.gradient;
            }
        }
        if matches!(step, Step::Rule(_)) {
            begun.get_or_insert(moments.len());
        }
        moments.push(Moment { step, peak, held, gradients });
    }
    let begun = begun.unwrap_or(moments.len());
    (moments, begun)
}

/// What happens in a run, step by step, and where its backward pass begins.
pub(crate) fn scheduled(
    costs: &Costs,
    decided: &[Choice],
    together: bool,
) -> Result<(Vec<Moment>, usize), PlanError> {
    let refused = |site| PlanError::Effect { site, rule: "what it is needed for".into() };
    let steps = listed(costs, decided, together).map_err(refused)?;
    Ok(weighed(costs, with_drops(costs, steps)))
}

/// The bytes that come back in a run.
pub(crate) fn returning(costs: &Costs, decided: &[Choice]) -> Result<usize, PlanError> {
    let (moments, _) = scheduled(costs, decided, false)?;
    let bytes = |moment: &Moment| match moment.step {
        Step::Recompute(id) => costs.entries[id as usize].bytes,
        _ => 0,
    };
    Ok(moments.iter().map(bytes).sum())
}
