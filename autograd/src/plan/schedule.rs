//! In which order things are computed, computed again and dropped, and what is held meanwhile.
//!
//! A schedule is data: a list of steps that knows nothing of tensors. It is found in three passes over the program. The
//! first lists what is computed, and before each step what must be computed again for it; the second, from the end,
//! finds the last reader of everything; the third adds up bytes.

use limpid_tensor::Fused;
use smallvec::SmallVec;

use crate::error::Site;
use crate::op::Purity;
use crate::plan::costs::{Costs, RuleCost};
use crate::plan::{Choice, PlanError};

/// One thing that happens in a run. Nodes are positions on the tape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A value is computed in the forward pass.
    Compute(u32),
    /// A value that had been dropped is computed again. With the first of a [chain](crate::Op::chain) all of it comes back.
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

/// The nodes of a program from `first` to `last`; to a schedule of these all others are leaves.
#[derive(Clone, Copy)]
pub(crate) struct Window<'a> {
    pub costs: &'a Costs,
    pub first: u32,
    pub last: u32,
}

impl<'a> Window<'a> {
    pub fn all(costs: &'a Costs) -> Window<'a> {
        Window { costs, first: 0, last: costs.result }
    }

    fn is_leaf(&self, id: u32) -> bool {
        id < self.first || id > self.last || self.costs.entries[id as usize].op.is_none()
    }

    fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        self.first..=self.last
    }

    /// A node's place in lists of the window's nodes.
    fn place(&self, id: u32) -> usize {
        (id - self.first) as usize
    }

    fn len(&self) -> usize {
        self.place(self.last) + 1
    }

    /// The rules that run before its own, and those: in a part of a program the first node's belongs to the part before.
    fn rules(&self) -> (&'a [RuleCost], &'a [RuleCost]) {
        let rules = &self.costs.rules;
        let start = rules.partition_point(|rule| rule.node > self.last);
        let end = match self.first {
            0 => rules.len(),
            first => rules.partition_point(|rule| rule.node > first),
        };
        (&rules[..start], &rules[start..end])
    }

    /// Values that are never dropped here.
    fn stays(&self, id: u32) -> bool {
        let entry = &self.costs.entries[id as usize];
        let for_later = self.first > 0 && id == self.first && entry.reads.contains(&id);
        self.is_leaf(id) || entry.purity == Purity::Effect || id == self.costs.result || for_later
    }
}

/// What is computed, in order, and what is read for it.
struct Listing<'a> {
    window: Window<'a>,
    decided: &'a [Choice],
    /// Whether the value is there.
    present: Vec<bool>,
    steps: Vec<Step>,
}

impl Listing<'_> {
    fn is_present(&self, id: u32) -> bool {
        self.window.is_leaf(id) || self.present[self.window.place(id)]
    }

    /// Makes sure that a value is there, computing it again with what it takes. Returns the first node computed again.
    fn demand(&mut self, id: u32) -> Result<Option<u32>, Site> {
        let mut first = None;
        let mut stack: SmallVec<[u32; 16]> = SmallVec::from_slice(&[id]);
        while let Some(&next) = stack.last() {
            if self.is_present(next) {
                stack.pop();
                continue;
            }
            let entry = &self.window.costs.entries[next as usize];
            let missing: SmallVec<[u32; 4]> =
                entry.inputs.iter().map(|operand| operand.id).filter(|&id| !self.is_present(id)).collect();
            if !missing.is_empty() {
                stack.extend(missing);
                continue;
            }
            if entry.purity == Purity::Effect {
                return Err(entry.site());
            }
            self.steps.push(Step::Recompute(next));
            self.present[self.window.place(next)] = true;
            first = Some(first.map_or(next, |first: u32| first.min(next)));
            stack.pop();
        }
        Ok(first)
    }

    /// Forgets what is to be computed again.
    fn forget(&mut self) {
        for id in self.window.ids() {
            let kept = self.decided[id as usize] == Choice::Save || id == self.window.costs.result;
            self.present[self.window.place(id)] &= kept;
        }
    }
}

/// Steps, and how many of them belong to the forward pass.
struct Steps {
    steps: Vec<Step>,
    forward: usize,
}

/// The steps of a run without its drops.
fn listed(window: Window<'_>, decided: &[Choice], together: bool) -> Result<Steps, Site> {
    let entries = &window.costs.entries;
    let mut listing = Listing { window, decided, present: vec![false; window.len()], steps: Vec::new() };
    let mut pass = entries[window.first as usize].pass;
    for id in window.ids() {
        let entry = &entries[id as usize];
        if entry.pass != pass {
            pass = entry.pass;
            listing.forget();
        }
        if window.is_leaf(id) {
            continue;
        }
        for operand in &entry.inputs {
            listing.demand(operand.id)?;
        }
        listing.steps.push(Step::Compute(id));
        listing.present[window.place(id)] = true;
    }
    listing.forget();
    let forward = listing.steps.len();
    let (_, rules) = window.rules();
    let mut read_by_rule = vec![false; if together { entries.len() } else { 0 }];
    for rule in rules.iter().filter(|_| together) {
        for &read in &entries[rule.node as usize].reads {
            read_by_rule[read as usize] = true;
        }
    }
    for rule in rules {
        for &read in &entries[rule.node as usize].reads {
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
    Ok(Steps { steps: listing.steps, forward })
}

/// The values that a step reads.
fn reads(costs: &Costs, step: Step) -> SmallVec<[u32; 4]> {
    let entry = &costs.entries[step.node()];
    match step {
        Step::Compute(_) | Step::Recompute(_) => entry.inputs.iter().map(|operand| operand.id).collect(),
        Step::Rule(_) => entry.reads.clone(),
        Step::Drop(_) => SmallVec::new(),
    }
}

/// The steps with each value dropped after its last reader.
fn with_drops(window: Window<'_>, Steps { steps, forward }: Steps) -> Steps {
    // From the end: whether something later reads the value as it is then.
    let mut read_later = vec![false; window.len()];
    let mut backwards: Vec<Step> = Vec::with_capacity(steps.len() * 2);
    let mut after_forward = 0;
    for (at, &step) in steps.iter().enumerate().rev() {
        let mut last_read = reads(window.costs, step);
        if let Step::Compute(id) | Step::Recompute(id) = step {
            let read_later = &mut read_later[window.place(id)];
            if !*read_later && !window.stays(id) {
                backwards.push(Step::Drop(id));
            }
            *read_later = false;
        }
        last_read
            .retain(|id| !window.stays(*id) && !std::mem::replace(&mut read_later[window.place(*id)], true));
        backwards.extend(last_read.into_iter().map(Step::Drop));
        backwards.push(step);
        if at == forward {
            after_forward = backwards.len();
        }
    }
    backwards.reverse();
    Steps { forward: backwards.len() - after_forward, steps: backwards }
}

/// What comes back in one call.
pub(crate) struct Chain {
    /// The nodes, in order. At least two.
    pub nodes: SmallVec<[u32; 8]>,
    /// The kernel.
    pub kernel: Fused,
}

/// The chain that begins with the first of these steps, if one does: values that come back one after the other, each computed
/// from the one before. All else that it takes is there before the first, or the steps would bring it back in between.
///
/// Whether a device has the kernel does not matter: all values of a chain are there after its first step.
pub(crate) fn chain(costs: &Costs, mut steps: impl Iterator<Item = Step>) -> Option<Chain> {
    let Some(Step::Recompute(first)) = steps.next() else { return None };
    let kernel = costs.entries[first as usize].chain?;
    let mut nodes: SmallVec<[u32; 8]> = SmallVec::from_slice(&[first]);
    while let Some(Step::Recompute(id)) = steps.next() {
        let entry = &costs.entries[id as usize];
        let mut operands = entry.inputs.iter().map(|operand| operand.id);
        let follows = entry.chain == Some(kernel) && operands.next() == nodes.last().copied();
        if !follows || operands.any(|operand| nodes.contains(&operand)) {
            break;
        }
        nodes.push(id);
    }
    let takes_no_more = nodes.iter().all(|&id| costs.entries[id as usize].transient == 0);
    (nodes.len() > 1 && takes_no_more).then_some(Chain { nodes, kernel })
}

/// What happens in a run, step by step.
pub(crate) struct Schedule {
    pub moments: Vec<Moment>,
    /// Where in it the backward pass begins.
    pub begun: usize,
    /// What is held there.
    pub held: usize,
    /// What of that is the last node's.
    pub last_held: usize,
}

/// Storage shared by views.
struct Stored {
    bytes: usize,
    holders: usize,
}

/// The steps with what is held.
fn weighed(window: Window<'_>, Steps { steps, forward }: Steps) -> Schedule {
    let costs = window.costs;
    let (later, rules) = window.rules();
    let mut rules = rules.iter();
    let later: isize = later.iter().map(|rule| rule.change).sum();
    let mut from_later = costs.seed_bytes.checked_add_signed(later).expect("cotangents are freed once");
    if window.last < costs.result {
        // The result stays, whoever computed it.
        from_later += costs.entries[costs.entries[costs.result as usize].root as usize].bytes;
    }
    let mut storages: Vec<Stored> = Vec::new();
    // The storage that a node's value lies in, while it is there and does not lie in a leaf's.
    let mut lies_in: Vec<Option<usize>> = vec![None; window.len()];
    let (mut held, mut gradients) = (0, 0);
    let mut at_begin = (0, 0);
    let mut moments = Vec::with_capacity(steps.len());
    // Up to where values have come back with one before them.
    let mut back = 0;
    for (at, &step) in steps.iter().enumerate() {
        if at == forward {
            let last = lies_in[window.place(window.last)].map_or(0, |storage| storages[storage].bytes);
            at_begin = (held, last);
            held += from_later;
        }
        let entry = &costs.entries[step.node()];
        let place = window.place(step.node() as u32);
        let mut peak = held;
        match step {
            Step::Compute(_) | Step::Recompute(_) if at < back => {}
            Step::Compute(id) | Step::Recompute(id) => {
                let chain = chain(costs, steps[at..].iter().copied());
                let made = chain.map_or(SmallVec::from_slice(&[id]), |chain| chain.nodes);
                back = at + made.len();
                for id in made {
                    let (entry, place) = (&costs.entries[id as usize], window.place(id));
                    lies_in[place] = match entry.shows {
                        Some(shown) if shown < window.first => None,
                        Some(shown) => lies_in[window.place(shown)],
                        None => {
                            storages.push(Stored { bytes: entry.bytes, holders: 0 });
                            Some(storages.len() - 1)
                        }
                    };
                    if let Some(storage) = lies_in[place] {
                        storages[storage].holders += 1;
                    }
                    held += entry.bytes;
                }
                peak = held + entry.transient;
            }
            Step::Drop(_) => {
                if let Some(storage) = lies_in[place].take() {
                    storages[storage].holders -= 1;
                    if storages[storage].holders == 0 {
                        held -= storages[storage].bytes;
                    }
                }
            }
            Step::Rule(_) => {
                let rule = rules.next().expect("a rule for each step");
                peak = held + rule.peak;
                held = held.checked_add_signed(rule.change).expect("cotangents are freed once");
                gradients += rule.gradient;
            }
        }
        moments.push(Moment { step, peak, held, gradients });
    }
    let (held, last_held) = if forward < moments.len() { at_begin } else { (held, 0) };
    Schedule { moments, begun: forward, held, last_held }
}

/// What happens in a run of a part of a program, if the nodes are saved and computed again as decided.
pub(crate) fn scheduled(
    window: Window<'_>,
    decided: &[Choice],
    together: bool,
) -> Result<Schedule, PlanError> {
    let refused = |site| PlanError::Effect { site, rule: "something else needs it".into() };
    let steps = listed(window, decided, together).map_err(refused)?;
    Ok(weighed(window, with_drops(window, steps)))
}

/// The bytes that come back in a run.
pub(crate) fn returning(costs: &Costs, decided: &[Choice]) -> Result<usize, PlanError> {
    let bytes = |moment: &Moment| match moment.step {
        Step::Recompute(id) => costs.entries[id as usize].bytes,
        _ => 0,
    };
    Ok(scheduled(Window::all(costs), decided, false)?.moments.iter().map(bytes).sum())
}
