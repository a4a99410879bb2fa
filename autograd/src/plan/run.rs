//! A run that follows a plan, and measures itself.

use std::collections::HashMap;
use std::fmt;

use limpid_tensor::{Results, Tensor, Usage};
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::plan::schedule::{Chain, chain};
use crate::plan::verify::Print;
use crate::plan::{Plan, Step, Totals, Verified, Verify};
use crate::print::format_bytes;
use crate::profile::Lane;
use crate::shared::{Shared, SharedTensor};
use crate::tape::{Tape, tensors};

/// What a run that followed a plan really took: made by [`Tape::receipt`].
#[derive(Clone, PartialEq, Debug)]
pub struct Receipt {
    /// What was counted, and the bytes as the device's allocator has them. (On a device that does not count, bytes are 0.)
    pub measured: Totals,
    /// The first step after which another number of bytes was held than planned.
    pub first_difference: Option<Difference>,
    /// Values computed again that the plan does not have: somebody asked for one that was dropped.
    pub unplanned: usize,
    /// The most that a kernel took for itself while it ran, on top of what is measured.
    pub scratch: usize,
    /// What comparing values that came back took.
    pub verified: Verified,
}

/// A step after which a run held another number of bytes than planned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Its place in [`Plan::moments`].
    pub at: usize,
    /// The step.
    pub step: Step,
    /// The bytes that should have been held.
    pub planned: usize,
    /// The bytes that were.
    pub measured: isize,
}

impl Receipt {
    /// What is not as planned, as sentences; none if everything is.
    pub fn differences(&self, plan: &Plan) -> Vec<String> {
        let (p, m) = (plan.totals(), &self.measured);
        let mut differences = Vec::new();
        let mut compare = |what: &str, planned: u64, measured: u64| {
            if planned != measured {
                differences.push(format!("{what}: planned {planned}, measured {measured}"));
            }
        };
        compare("values computed", p.computed as u64, m.computed as u64);
        compare("values computed again", p.recomputed as u64, m.recomputed as u64);
        compare("operations", p.flops, m.flops);
        compare("operations repeated", p.extra_flops, m.extra_flops);
        compare("bytes held when the backward pass begins", p.held as u64, m.held as u64);
        compare("peak bytes", p.peak as u64, m.peak as u64);
        compare("peak bytes besides gradients", p.peak_activations as u64, m.peak_activations as u64);
        compare("values computed again outside the plan", 0, self.unplanned as u64);
        if let Some(first) = self.first_difference {
            differences.push(format!(
                "after step {} ({:?}: {}) {} bytes were held, planned {}",
                first.at,
                first.step,
                plan.site(first.step.node()),
                first.measured,
                first.planned
            ));
        }
        differences
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.measured;
        writeln!(f, "held {}, peak {}", format_bytes(m.held), format_bytes(m.peak))?;
        write!(f, "{} values computed again, {} compared", m.recomputed, self.verified.values)
    }
}

/// A plan that is being followed.
pub(crate) struct Run {
    plan: Plan,
    verify: Verify,
    stage: Stage,
    /// The next step.
    cursor: usize,
    /// The bytes live on the device that are not this run's.
    others: isize,
    /// The bytes live when the run last had a say.
    live: isize,
    /// The most that was live on the device since it has had its say now.
    high: isize,
    gradients: usize,
    prints: HashMap<u32, Print>,
    receipt: Receipt,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Forward,
    Backward,
    /// The backward pass has been, or the program is not the planned one.
    Over,
}

impl Run {
    fn new(plan: &Plan, verify: Verify) -> Run {
        Run {
            plan: plan.clone(),
            verify,
            stage: Stage::Forward,
            cursor: 0,
            others: 0,
            live: 0,
            high: 0,
            gradients: 0,
            prints: HashMap::new(),
            receipt: Receipt {
                measured: Totals::default(),
                first_difference: None,
                unplanned: 0,
                scratch: 0,
                verified: Verified::default(),
            },
        }
    }

    /// What happens next.
    fn next(&self) -> Option<Step> {
        self.plan.moments().get(self.cursor).map(|moment| moment.step)
    }

    /// Compares what is held with the plan, and goes on to the next step.
    fn done(&mut self, usage: Option<Usage>, gradient: usize) {
        let planned = self.plan.moments()[self.cursor];
        let measured = &mut self.receipt.measured;
        let flops = self.plan.0.costs.entries[planned.step.node()].flops;
        match planned.step {
            Step::Compute(_) => {
                (measured.computed, measured.flops) = (measured.computed + 1, measured.flops + flops)
            }
            Step::Recompute(_) => {
                (measured.recomputed, measured.extra_flops) =
                    (measured.recomputed + 1, measured.extra_flops + flops);
            }
            Step::Rule(_) | Step::Drop(_) => {}
        }
        if let Some(usage) = usage {
            let (held, peak) = (usage.live - self.others, (usage.peak - self.others).max(0) as usize);
            measured.peak = measured.peak.max(peak);
            measured.peak_activations = measured.peak_activations.max(peak.saturating_sub(self.gradients));
            if self.cursor + 1 == self.plan.backward_begins() {
                measured.held = held.max(0) as usize;
            }
            self.high = self.high.max(usage.peak);
            self.receipt.scratch = self.receipt.scratch.max(usage.scratch);
            if held != planned.held as isize && self.receipt.first_difference.is_none() {
                self.receipt.first_difference = Some(Difference {
                    at: self.cursor,
                    step: planned.step,
                    planned: planned.held,
                    measured: held,
                });
            }
        }
        self.gradients += gradient;
        self.cursor += 1;
    }
}

/// Following a plan.
impl Tape {
    /// Follows a plan: values are dropped and computed again as it says, in every step of training that begins with
    /// [`clear`](Tape::clear). The program must be the planned one; if it is not, the tape fails where they part.
    ///
    /// The plan covers the forward pass and one [`backward`](Tape::backward), with books or without. Whatever else asks for
    /// a value that was dropped ([`grad`](Tape::grad), [`jvp`](Tape::jvp), a spectrum, [`Var::value`](crate::Var::value)) gets it, computed again; while such a pass goes
    /// on, what came back stays. After the planned backward pass the tape holds its leaves and the result.
    ///
    /// Values that come back are [verified](Verify) by their hashes.
    ///
    /// # Panics
    /// If this is an inference tape, or something has been recorded on it.
    #[track_caller]
    pub fn with_plan(self, plan: &Plan) -> Tape {
        self.expect_differentiable("with_plan");
        assert!(
            self.is_empty(),
            "with_plan: the tape has {} nodes that the plan does not begin with",
            self.len()
        );
        *self.followed.borrow_mut() = Some(Run::new(plan, Verify::default()));
        self
    }

    /// How values that come back are compared with what was dropped.
    ///
    /// # Panics
    /// If the tape follows no plan.
    #[track_caller]
    pub fn with_verification(self, how: Verify) -> Tape {
        self.followed.borrow_mut().as_mut().expect("with_verification: the tape follows no plan").verify =
            how;
        self
    }

    /// What the last backward pass that followed the plan took, if there was one.
    pub fn receipt(&self) -> Option<Receipt> {
        let followed = self.followed.borrow();
        let run = followed.as_ref().filter(|run| run.cursor == run.plan.moments().len())?;
        Some(Receipt { unplanned: self.drops.unplanned(), ..run.receipt.clone() })
    }

    /// A plan is followed anew.
    pub(crate) fn restart_run(&mut self) {
        if let Some(run) = self.followed.get_mut() {
            *run = Run::new(&run.plan, run.verify);
        }
    }

    /// Whether what is dropped is a plan's business.
    pub(crate) fn follows_plan(&self) -> bool {
        self.followed.borrow().as_ref().is_some_and(|run| run.stage != Stage::Over)
    }

    /// Makes sure that a node just recorded is the planned one.
    pub(crate) fn expect_planned(&self, id: u32) {
        let planned = {
            let followed = self.followed.borrow();
            let forward = |run: &&Run| run.stage == Stage::Forward && !self.aside.get();
            let Some(run) = followed.as_ref().filter(forward) else { return };
            let Some(entry) = run.plan.0.costs.entries.get(id as usize) else { return };
            let nodes = self.nodes.borrow();
            let node = &nodes[id as usize];
            let operands = |inputs: &[crate::tape::Operand]| -> SmallVec<[u32; 4]> {
                inputs.iter().map(|operand| operand.id).collect()
            };
            let same = entry.tracked == node.tracked
                && entry.op == node.op.as_deref().map(|op| op.name())
                && entry.meta == node.meta
                && operands(&entry.inputs) == operands(&node.inputs);
            if same {
                return;
            }
            let operands: Vec<String> =
                entry.inputs.iter().map(|operand| format!("%{}", operand.id)).collect();
            let tracked = if entry.tracked { "" } else { " without a gradient" };
            format!(
                "{}({}) of {}{tracked}, {}",
                entry.site().op,
                operands.join(", "),
                entry.meta,
                entry.site()
            )
        };
        if let Some(run) = &mut *self.followed.borrow_mut() {
            run.stage = Stage::Over;
        }
        self.fail(Error::OffPlan { site: self.site(id), node: id as usize, planned });
    }

    /// Runs what the plan has around the computation of node `id`, with `compute` in its place.
    pub(crate) fn compute_planned(&self, id: u32, compute: impl FnOnce()) {
        let planned = self
            .followed
            .borrow()
            .as_ref()
            .is_some_and(|run| run.stage == Stage::Forward && (id as usize) < run.plan.len());
        if !planned || self.aside.get() {
            return compute();
        }
        let outside = self.enter_run();
        let result = self.take_steps_until(Step::Compute(id)).and_then(|()| {
            compute();
            self.step_done(0);
            self.take_drops()
        });
        self.leave_run(outside);
        if let Err(error) = result {
            self.fail(error);
        }
    }

    /// The planned backward pass from node `id` begins, if this is it.
    pub(crate) fn begin_planned_backward(&self, id: u32) -> Option<PlannedBackward<'_>> {
        {
            let mut followed = self.followed.borrow_mut();
            let run = followed.as_mut()?;
            let ready = run.stage == Stage::Forward
                && run.cursor == run.plan.backward_begins()
                && run.plan.0.costs.result == id;
            if !ready {
                return None;
            }
            run.stage = Stage::Backward;
        }
        Some(PlannedBackward { tape: self, outside: self.enter_run() })
    }

    fn in_planned_backward(&self) -> bool {
        self.followed.borrow().as_ref().is_some_and(|run| run.stage == Stage::Backward)
    }

    /// Runs what the plan has before the rule of node `id`.
    pub(crate) fn before_planned_rule(&self, id: u32) -> Result<()> {
        if self.in_planned_backward() { self.take_steps_until(Step::Rule(id)) } else { Ok(()) }
    }

    /// Runs what the plan has after it.
    pub(crate) fn after_planned_rule(&self, gradient: usize) -> Result<()> {
        if !self.in_planned_backward() {
            return Ok(());
        }
        self.step_done(gradient);
        self.take_drops()
    }
}

/// A planned backward pass under way; when it is dropped, it is over.
pub(crate) struct PlannedBackward<'a> {
    tape: &'a Tape,
    outside: Option<isize>,
}

impl Drop for PlannedBackward<'_> {
    fn drop(&mut self) {
        self.tape.leave_run(self.outside);
        if let Some(run) = &mut *self.tape.followed.borrow_mut() {
            run.stage = Stage::Over;
        }
    }
}

/// Steps and what is measured of them.
impl Tape {
    fn usage(&self) -> Option<Usage> {
        self.device().backend().usage()
    }

    /// What happens from here on is the run's; returns the peak of whoever measures around it.
    fn enter_run(&self) -> Option<isize> {
        let usage = self.usage()?;
        if let Some(run) = &mut *self.followed.borrow_mut() {
            run.others += usage.live - run.live;
            run.high = usage.live;
        }
        self.device().backend().set_peak(usage.live);
        Some(usage.peak)
    }

    fn leave_run(&self, outside: Option<isize>) {
        let (Some(outside), Some(usage)) = (outside, self.usage()) else { return };
        if let Some(run) = &mut *self.followed.borrow_mut() {
            run.live = usage.live;
            self.device().backend().set_peak(outside.max(usage.peak).max(run.high));
        }
    }

    /// Goes through the plan up to `step`, which is about to happen.
    fn take_steps_until(&self, step: Step) -> Result<()> {
        loop {
            let next = self.next_step();
            match next {
                Some(Step::Recompute(id)) => self.recompute_planned(id)?,
                Some(Step::Drop(id)) => self.drop_planned(id)?,
                next if next == Some(step) => return Ok(()),
                next => return Err(self.other_step(step, next)),
            }
        }
    }

    /// A program that looks like the planned one has other derivatives.
    fn other_step(&self, step: Step, next: Option<Step>) -> Error {
        let id = step.node() as u32;
        let planned = match next {
            Some(next) => format!("preceded by {next:?} ({})", self.site(next.node() as u32)),
            None => "behind the last step".into(),
        };
        Error::OffPlan { site: self.site(id), node: id as usize, planned }
    }

    fn next_step(&self) -> Option<Step> {
        self.followed.borrow().as_ref().and_then(Run::next)
    }

    fn take_drops(&self) -> Result<()> {
        while let Some(Step::Drop(id)) = self.next_step() {
            self.drop_planned(id)?;
        }
        Ok(())
    }

    fn step_done(&self, gradient: usize) {
        let usage = self.usage();
        if let Some(run) = &mut *self.followed.borrow_mut() {
            run.done(usage, gradient);
        }
        if let Some(usage) = usage {
            self.device().backend().set_peak(usage.live);
        }
    }

    /// To look at a value that is not in row-major order takes a copy, which is not the program's.
    fn forget_peak_since(&self, before: Option<Usage>) {
        let Some(before) = before else { return };
        if let Some(run) = &mut *self.followed.borrow_mut() {
            run.receipt.scratch = run.receipt.scratch.max(before.scratch);
        }
        self.device().backend().set_peak(before.peak);
    }

    /// Computes a value again, and with it those that come back in the same call, and compares them with what was dropped.
    fn recompute_planned(&self, id: u32) -> Result<()> {
        if self.is_gone(id) {
            let chain = self.next_chain().filter(|chain| chain.nodes.iter().all(|&id| self.is_gone(id)));
            let values = chain.as_ref().and_then(|chain| self.chain_again(chain)).transpose()?;
            let nodes = chain.map_or(SmallVec::from_slice(&[id]), |chain| chain.nodes);
            let mut values = values.unwrap_or_default().into_iter();
            for id in nodes {
                let value = values.next().map_or_else(|| self.forward_again(id), Ok)?;
                self.expect_unchanged(id, &value)?;
                self.nodes.borrow_mut()[id as usize].value = Some(Shared::holding(value));
            }
        }
        self.step_done(0);
        Ok(())
    }

    fn is_gone(&self, id: u32) -> bool {
        self.nodes.borrow()[id as usize].value.is_none()
    }

    /// The chain that begins with the next step.
    fn next_chain(&self) -> Option<Chain> {
        let followed = self.followed.borrow();
        let run = followed.as_ref()?;
        chain(&run.plan.0.costs, run.plan.moments()[run.cursor..].iter().map(|moment| moment.step))
    }

    /// The values of a chain by one call, if the device has the kernel.
    fn chain_again(&self, Chain { nodes: ids, kernel }: &Chain) -> Option<Result<Results>> {
        let operands = {
            let nodes = self.nodes.borrow();
            let first = nodes[ids[0] as usize].inputs.first();
            let others = ids.iter().flat_map(|&id| &nodes[id as usize].inputs[1..]);
            let operands: Option<SmallVec<[SharedTensor; 16]>> = first
                .into_iter()
                .chain(others)
                .map(|operand| nodes[operand.id as usize].value.clone())
                .collect();
            operands
        };
        let Some(operands) = operands else { return Some(Err(Error::Dropped { site: self.site(ids[0]) })) };
        if !operands[0].device().backend().has_fused(*kernel, operands[0].dtype()) {
            return None;
        }
        let timed = self.time_operation(ids[0], Some(Lane::Recompute));
        let values =
            Tensor::fused_all(*kernel, &operands.iter().map(|x| &**x).collect::<SmallVec<[&Tensor; 16]>>())?;
        drop(timed);
        // The others are calls too; their time is the first's.
        ids[1..].iter().for_each(|&id| drop(self.time_operation(id, Some(Lane::Recompute))));
        Some(values.map_err(|e| self.backend_error(self.var(ids[0]), e)))
    }

    fn forward_again(&self, id: u32) -> Result<Tensor> {
        let (op, operands) = {
            let nodes = self.nodes.borrow();
            let node = &nodes[id as usize];
            let operands: Option<SmallVec<[SharedTensor; 3]>> =
                node.inputs.iter().map(|operand| nodes[operand.id as usize].value.clone()).collect();
            (node.op.clone(), operands)
        };
        let (Some(op), Some(operands)) = (op, operands) else {
            return Err(Error::Dropped { site: self.site(id) });
        };
        let _timed = self.time_operation(id, Some(Lane::Recompute));
        op.forward(&tensors(&operands)).map_err(|e| self.backend_error(self.var(id), e))
    }

    fn expect_unchanged(&self, id: u32, value: &Tensor) -> Result<()> {
        let before = self.usage();
        let drift = match &mut *self.followed.borrow_mut() {
            Some(Run { plan, prints, receipt, .. }) => match prints.get(&id) {
                Some(print) => {
                    let _timed = self.time_hash(id);
                    let nodes = self.nodes.borrow();
                    let shows = plan.0.costs.entries[id as usize].shows;
                    let shown = shows.and_then(|shown| nodes[shown as usize].value.as_deref());
                    print.drift(value, shown, &mut receipt.verified)
                }
                None => return Ok(()),
            },
            None => return Ok(()),
        };
        self.forget_peak_since(before);
        match drift.map_err(|e| self.backend_error(self.var(id), e))? {
            None => Ok(()),
            Some(what) => Err(Error::Drift { site: self.site(id), what }),
        }
    }

    fn drop_planned(&self, id: u32) -> Result<()> {
        let before = self.usage();
        let value = self.nodes.borrow_mut()[id as usize].value.take();
        let mut printed = Ok(());
        if let (Some(value), Some(run)) = (&value, &mut *self.followed.borrow_mut())
            && run.plan.recomputations(id as usize) > 0
            && !run.prints.contains_key(&id)
        {
            let _timed = self.time_hash(id);
            let is_view = run.plan.0.costs.entries[id as usize].shows.is_some();
            match Print::take(value, is_view, run.verify, &mut run.receipt.verified) {
                Ok(print) => run.prints.extend(print.map(|print| (id, print))),
                Err(error) => printed = Err(error),
            }
        }
        self.forget_peak_since(before);
        if value.is_some() {
            self.drops.count_dropped();
        }
        drop(value);
        self.step_done(0);
        printed.map_err(|e| self.backend_error(self.var(id), e))
    }
}
