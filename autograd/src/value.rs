//! Values on demand: what a scope dropped is computed again from its operands.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use limpid_tensor::Tensor;
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::op::Purity;
use crate::profile::Lane;
use crate::shared::{Shared, SharedTensor};
use crate::tape::{Tape, tensors};
use crate::var::Var;

/// What has been dropped, and what that cost.
#[derive(Default)]
pub(crate) struct Drops {
    dropped: Cell<usize>,
    recomputed: Cell<usize>,
    asked: Cell<usize>,
    /// Nodes whose value is back for a backward pass that is under way, the last on the tape on top.
    returned: RefCell<BinaryHeap<u32>>,
    sweeping: Cell<bool>,
}

impl Drops {
    /// Starts counting anew.
    pub fn restart(&mut self) {
        *self = Drops { returned: std::mem::take(&mut self.returned), ..Drops::default() };
        self.returned.get_mut().clear();
    }

    pub fn count_dropped(&self) {
        self.dropped.set(self.dropped.get() + 1);
    }

    /// Values computed again by passes that follow no plan, or because somebody asked.
    pub fn unplanned(&self) -> usize {
        self.recomputed.get() + self.asked.get()
    }

    /// Values dropped; values computed again by backward passes; values computed again because somebody asked.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.dropped.get(), self.recomputed.get(), self.asked.get())
    }
}

/// Which values derivative rules really read, for comparison with what they declare.
#[derive(Default)]
pub(crate) struct ReadLog {
    /// Nodes before this one belong to the program being differentiated.
    pub boundary: u32,
    /// The nodes whose rules have run.
    pub rules: BTreeSet<u32>,
    /// (the node whose rule ran, the node it read)
    pub pairs: BTreeSet<(u32, u32)>,
    pub running: Option<u32>,
}

/// How long a value that is computed again stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// With everything computed on the way, until the backward pass has gone by.
    WhileSweeping,
    /// Only the value itself: a new operation uses it.
    Target,
    /// Not at all: it was only looked at.
    Nothing,
}

impl Tape {
    #[track_caller]
    pub(crate) fn value(&self, var: Var<'_>) -> Result<Tensor> {
        Ok(self.shared_value(var)?.into_inner())
    }

    #[track_caller]
    pub(crate) fn shared_value(&self, var: Var<'_>) -> Result<SharedTensor> {
        if let Some(value) = self.with_node(var, |node| node.value.clone()) {
            self.log_read(var.id);
            return Ok(value);
        }
        self.fetch(var.id, Keep::Nothing)
    }

    /// The values of a node's operands, made again where they are not kept.
    pub(crate) fn operands(&self, id: u32) -> Result<SmallVec<[SharedTensor; 3]>> {
        let inputs = self.nodes.borrow()[id as usize].inputs.clone();
        let keep = if self.drops.sweeping.get() { Keep::WhileSweeping } else { Keep::Target };
        inputs.iter().map(|operand| self.fetch(operand.id, keep)).collect()
    }

    fn log_read(&self, id: u32) {
        if let Some(log) = &mut *self.reads.borrow_mut()
            && let Some(rule) = log.running
            && id < log.boundary
        {
            log.pairs.insert((rule, id));
        }
    }

    fn fetch(&self, id: u32, keep: Keep) -> Result<SharedTensor> {
        self.log_read(id);
        if let Some(value) = &self.nodes.borrow()[id as usize].value {
            return Ok(value.clone());
        }
        let computed = self.recompute(id)?;
        let counter = if keep == Keep::WhileSweeping { &self.drops.recomputed } else { &self.drops.asked };
        counter.set(counter.get() + computed.len());
        let value = computed[&id].clone();
        match keep {
            Keep::WhileSweeping => {
                let mut nodes = self.nodes.borrow_mut();
                for (id, value) in computed {
                    nodes[id as usize].value = Some(value);
                    self.drops.returned.borrow_mut().push(id);
                }
            }
            Keep::Target => self.nodes.borrow_mut()[id as usize].value = Some(value.clone()),
            Keep::Nothing => {}
        }
        Ok(value)
    }

    /// Computes a dropped value, and those it needs, without recursion: chains may be a million nodes long.
    fn recompute(&self, id: u32) -> Result<HashMap<u32, SharedTensor>> {
        let mut computed: HashMap<u32, SharedTensor> = HashMap::new();
        let mut stack = vec![id];
        while let Some(&next) = stack.last() {
            if computed.contains_key(&next) {
                stack.pop();
                continue;
            }
            let nodes = self.nodes.borrow();
            let node = &nodes[next as usize];
            let op = match &node.op {
                _ if self.is_dry() => return Err(Error::Dry { site: self.site(next) }),
                _ if let Some(failure) = self.failure_at(next) => return Err(failure),
                Some(op) if op.purity() != Purity::Effect => op.clone(),
                _ => return Err(Error::Dropped { site: self.site(next) }),
            };
            let kept = |id: u32| nodes[id as usize].value.as_ref().or_else(|| computed.get(&id));
            let missing: SmallVec<[u32; 3]> =
                node.inputs.iter().map(|o| o.id).filter(|&id| kept(id).is_none()).collect();
            if !missing.is_empty() {
                stack.extend(missing);
                continue;
            }
            let operands: SmallVec<[SharedTensor; 3]> =
                node.inputs.iter().filter_map(|o| kept(o.id).cloned()).collect();
            drop(nodes);
            let timed = self.time_operation(next, Some(Lane::Recompute));
            let value = op.forward(&tensors(&operands)).map_err(|e| self.backend_error(self.var(next), e))?;
            drop(timed);
            computed.insert(next, Shared::holding(value));
            stack.pop();
        }
        Ok(computed)
    }

    /// Notes that the rule of node `id` runs (an expansion's rules count as their operation's); returns what ran before.
    pub(crate) fn enter_rule(&self, id: u32) -> Option<u32> {
        let mut log = self.reads.borrow_mut();
        let log = log.as_mut()?;
        if log.running.is_none() {
            log.running = Some(id);
            log.rules.insert(id);
            return None;
        }
        log.running
    }

    /// Undoes [`enter_rule`](Tape::enter_rule).
    pub(crate) fn leave_rule(&self, outer: Option<u32>) {
        if let Some(log) = &mut *self.reads.borrow_mut() {
            log.running = outer;
        }
    }

    /// Starts a backward pass: values that come back stay until it has gone by. It ends when the result is dropped.
    pub(crate) fn begin_sweep(&self) -> Sweep<'_> {
        let outermost = !self.drops.sweeping.replace(true);
        if outermost {
            self.count_pass();
        }
        Sweep { tape: self, outermost }
    }

    /// The pass has reached node `id`: values from there on have had their last reader.
    pub(crate) fn swept_to(&self, id: u32) {
        let mut returned = self.drops.returned.borrow_mut();
        while returned.peek().is_some_and(|&back| back >= id) {
            let back = returned.pop().expect("just looked at");
            if let Some(node) = self.nodes.borrow_mut().get_mut(back as usize) {
                node.value = None;
            }
        }
    }
}

/// A backward pass under way.
pub(crate) struct Sweep<'a> {
    tape: &'a Tape,
    /// Not inside another.
    pub outermost: bool,
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        if self.outermost {
            self.tape.drops.sweeping.set(false);
            self.tape.count_pass();
            self.tape.swept_to(0);
        }
    }
}
