//! Which plan repeats the fewest operations within so many bytes?
//!
//! A program falls apart at its bottlenecks. What a plan holds while it is between two saved bottlenecks is what it
//! keeps of the parts before, which only adds, and what happens in that part, which depends on nothing else. So the best
//! plan up to a bottleneck is found from the best plans up to the bottlenecks before it, as a shortest path is; what
//! there is to compare is three numbers: the bytes kept, the peak, and the operations repeated.
//!
//! Where every value is a bottleneck (a chain) these are all the plans there are, and the result is exact. Elsewhere a few
//! things are tried inside a part: to save nothing, or all, or what takes the most operations per byte to compute; plans by
//! [`Policy`] join the contest, and each result has a bound below which no plan can be.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;

use crate::plan::costs::Costs;
use crate::plan::policy::Decisions;
use crate::plan::schedule::{Window, scheduled};
use crate::plan::{Choice, Plan, PlanError, Policy, Step};
use crate::print::format_bytes;
use crate::tape::Tape;
use crate::var::Var;

/// The most bytes that a run may hold at any time; inputs and parameters do not count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Budget(pub usize);

/// More bottlenecks than these are thinned out: the work grows with their square.
const MOST_BOTTLENECKS: usize = 64;

/// The same for a chain, whose parts are small.
const MOST_IN_CHAIN: usize = 256;

/// The ways to a cut that are followed further, where the program is no chain.
const MOST_WAYS: usize = 256;

/// The plans of a program of which none is better than another in both bytes and operations: made by [`Tape::front`].
pub struct Front {
    costs: Rc<Costs>,
    points: Vec<Point>,
    exact: bool,
}

/// One plan of a [`Front`].
#[derive(Clone, Debug)]
pub struct Point {
    /// The most bytes it holds at any time.
    pub peak: usize,
    /// The operations it repeats.
    pub extra_flops: u64,
    /// No plan with this peak repeats fewer operations.
    pub bound: u64,
    name: String,
    choices: Rc<[Choice]>,
    together: bool,
}

impl Tape {
    /// The trade between bytes and operations for the program up to `loss`: exact for a chain, else a good approximation
    /// from above with a bound from below.
    ///
    /// ```
    /// use limpid_autograd::plan::Budget;
    /// use limpid_autograd::{Tape, Var};
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::dry();
    /// let x = tape.variable(&Tensor::ones([256], DType::F32));
    /// let loss = (0..16).fold(x, |x: Var<'_>, _| x.exp()).sum(&[]);
    /// let front = tape.front(loss)?;
    /// assert!(front.is_exact());
    /// // Each of 16 results of 1 KiB is read by its rule. With all saved, and cotangents, that is 17 KiB; 7 KiB will do.
    /// let peaks: Vec<usize> = front.points().iter().map(|point| point.peak / 1024).collect();
    /// assert_eq!((peaks[0], peaks[peaks.len() - 1]), (7, 17));
    /// let plan = front.within(Budget(10 * 1024))?;
    /// assert!(plan.totals().peak <= 10 * 1024);
    /// # Ok::<(), limpid_autograd::plan::PlanError>(())
    /// ```
    ///
    /// # Errors
    /// As [`plan`](Tape::plan).
    ///
    /// # Panics
    /// If `loss` does not have exactly one element.
    #[track_caller]
    pub fn front(&self, loss: Var<'_>) -> Result<Front, PlanError> {
        self.expect_differentiable("front");
        self.expect_scalar("front", loss);
        Front::of(Rc::new(self.costs(loss)?))
    }
}

impl Front {
    /// The plans, from the fewest bytes to the fewest operations.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Whether there is no plan that is not on or above the front: the program is a chain.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// The plan that repeats the fewest operations within a budget.
    ///
    /// # Errors
    /// If none is within it.
    pub fn within(&self, budget: Budget) -> Result<Plan, PlanError> {
        match self.points.iter().rfind(|point| point.peak <= budget.0) {
            Some(point) => self.named(point, &format!("within {}", format_bytes(budget.0))),
            None => Err(PlanError::OverBudget {
                budget: format_bytes(budget.0),
                least: self.points.first().map_or(0, |point| point.peak),
            }),
        }
    }

    /// The plan of one of its points.
    ///
    /// # Errors
    /// Those of [`Tape::plan`], which do not occur for a point of this front.
    pub fn plan(&self, point: &Point) -> Result<Plan, PlanError> {
        self.named(point, &point.name)
    }

    fn named(&self, point: &Point, name: &str) -> Result<Plan, PlanError> {
        let by_node = point.choices.iter().map(|&choice| (choice, None)).collect();
        let decisions = Decisions { by_node, rules: Vec::new(), together: point.together };
        Plan::of(&self.costs, name, decisions)
    }

    /// The operations of one forward pass.
    pub fn flops(&self) -> u64 {
        self.costs.entries.iter().map(|entry| entry.flops).sum()
    }

    /// A line for each point: `peak_bytes,extra_flops,bound_flops,flops,plan`, where `flops` are those of one forward pass.
    pub fn to_csv(&self) -> String {
        let flops = self.flops();
        let mut csv = String::from("peak_bytes,extra_flops,bound_flops,flops,plan\n");
        for Point { peak, extra_flops, bound, name, .. } in &self.points {
            let _ = writeln!(csv, "{peak},{extra_flops},{bound},{flops},\"{name}\"");
        }
        csv
    }

    fn of(costs: Rc<Costs>) -> Result<Front, PlanError> {
        let (cuts, exact) = cuts(&costs);
        let mut points: Vec<Point> = Vec::new();
        for (name, choices) in best_by_parts(&costs, &cuts, exact)? {
            points.push(Point::of(&costs, name, choices, false)?);
        }
        if !exact {
            for policy in contenders(cuts.len()) {
                // A policy that does not fit this program is no contender.
                let Ok(decisions) = policy.decide(&costs) else { continue };
                let choices = decisions.by_node.iter().map(|(choice, _)| *choice).collect();
                points.push(Point::of(&costs, policy.name().into(), choices, decisions.together)?);
            }
        }
        points.sort_by_key(|point| (point.peak, point.extra_flops));
        let mut front: Vec<Point> = Vec::new();
        for point in points {
            if front.last().is_none_or(|last| point.extra_flops < last.extra_flops) {
                front.push(point);
            }
        }
        for point in &mut front {
            point.bound =
                if exact { point.extra_flops } else { bound(&costs, point.peak).min(point.extra_flops) };
        }
        Ok(Front { costs, points: front, exact })
    }
}

impl Point {
    fn of(costs: &Costs, name: String, choices: Rc<[Choice]>, together: bool) -> Result<Point, PlanError> {
        let schedule = scheduled(Window::all(costs), &choices, together)?;
        let peak = schedule.moments.iter().map(|moment| moment.peak).max().unwrap_or(0);
        let extra_flops = repeated(costs, schedule.moments.iter().map(|moment| moment.step));
        Ok(Point { peak, extra_flops, bound: 0, name, choices, together })
    }
}

fn repeated(costs: &Costs, steps: impl Iterator<Item = Step>) -> u64 {
    let flops = |step: Step| match step {
        Step::Recompute(id) => costs.entries[id as usize].flops,
        _ => 0,
    };
    steps.map(flops).sum()
}

/// The bottlenecks at which a program is taken apart, and whether that leaves nothing to decide inside its parts.
fn cuts(costs: &Costs) -> (Vec<u32>, bool) {
    if costs.entries.iter().any(|entry| entry.pass > 0) {
        return (Vec::new(), false);
    }
    let bottlenecks = costs.bottlenecks();
    let inside = |id: usize| costs.entries[id].bytes > 0 && id != costs.result as usize;
    let exact =
        (0..costs.entries.len()).filter(|&id| inside(id)).all(|id| bottlenecks.contains(&(id as u32)));
    let most = if exact { MOST_IN_CHAIN } else { MOST_BOTTLENECKS };
    let thinned = bottlenecks.len().div_ceil(most).max(1);
    let cuts = bottlenecks.into_iter().filter(|&id| id > 0).step_by(thinned).collect();
    (cuts, exact && thinned == 1)
}

/// Policies that take part where the parts of a program have an inside.
fn contenders(bottlenecks: usize) -> Vec<Policy> {
    let mut policies = vec![Policy::everything(), Policy::nothing(), Policy::norms_and_activations()];
    for k in (1..=16).chain([20, 24, 32, 48, 64]).filter(|&k| k <= bottlenecks.max(16)) {
        policies.push(Policy::connections(k).named(format!("connections, one in {k}")));
    }
    policies
}

/// What is saved inside a part of a program: values that take at least so many operations per byte to compute. Infinitely
/// many: none; 0: all.
type Density = f64;

/// The densities that are tried: above them lie none, half, and nine tenths of all operations.
fn densities(costs: &Costs) -> Vec<Density> {
    let mut values: Vec<(Density, u64)> = (0..costs.entries.len())
        .filter(|&id| costs.entries[id].bytes > 0)
        .map(|id| (density(costs, id), costs.entries[id].flops))
        .collect();
    values.sort_by(|a, b| b.0.total_cmp(&a.0));
    let total: u64 = values.iter().map(|value| value.1).sum();
    let mut found = vec![Density::INFINITY];
    for share in [0.5, 0.9] {
        let mut above = 0;
        let at = values.iter().find(|value| {
            above += value.1;
            above as f64 >= share * total as f64
        });
        found.extend(at.map(|value| value.0));
    }
    found.dedup();
    found
}

fn density(costs: &Costs, id: usize) -> Density {
    costs.entries[id].flops as f64 / costs.entries[id].bytes.max(1) as f64
}

/// Saves `first` and `last`, and what is dense enough in between.
fn choose(costs: &Costs, first: u32, last: u32, saves: Density, choices: &mut [Choice]) {
    let inside = first as usize..=last as usize;
    for id in inside.clone() {
        let is_end = id == first as usize || id == last as usize;
        let saved = is_end || density(costs, id) >= saves;
        choices[id] = if saved { Choice::Save } else { Choice::Recompute };
    }
    costs.complete(choices, inside);
}

/// A part of a program between two cuts, in one of the ways to run it.
struct Part {
    /// The most held in it, besides what is kept of the parts before its first node.
    peak: usize,
    /// What it keeps for the backward pass, its first node included and its last one not.
    kept: usize,
    extra_flops: u64,
}

/// A way to the end of a part.
#[derive(Clone, Copy)]
struct Way {
    kept: usize,
    peak: usize,
    extra_flops: u64,
    /// The cut where the last part begins, which way led there, and what is saved in between.
    from: Option<(usize, usize, Density)>,
}

/// Choices for every node, and a name for them.
type Named = (String, Rc<[Choice]>);

/// The choices of the best plans that run each part between saved cuts in one of a few ways.
fn best_by_parts(costs: &Costs, cuts: &[u32], exact: bool) -> Result<Vec<Named>, PlanError> {
    // ends[0] is the beginning of the program, the last its result.
    let ends: Vec<u32> =
        [0].into_iter().chain(cuts.iter().copied().filter(|&id| id < costs.result)).collect();
    let ends: Vec<u32> = ends.into_iter().chain([costs.result]).collect();
    // Where there is nothing inside a part but cuts, it makes no difference what is saved inside.
    let densities = if exact { vec![Density::INFINITY] } else { densities(costs) };
    let mut ways: Vec<Vec<Way>> = vec![vec![Way { kept: 0, peak: 0, extra_flops: 0, from: None }]];
    let mut choices = vec![Choice::Save; costs.entries.len()];
    for to in 1..ends.len() {
        let mut found: Vec<Way> = Vec::new();
        for from in 0..to {
            let neighbours = (!exact && from + 1 == to).then_some(0.0);
            for saves in densities.iter().copied().chain(neighbours) {
                let (first, last) = (ends[from], ends[to]);
                choose(costs, first, last, saves, &mut choices);
                let part = part(costs, first, last, &choices)?;
                for (index, way) in ways[from].iter().enumerate() {
                    found.push(Way {
                        kept: way.kept + part.kept,
                        peak: way.peak.max(way.kept + part.peak),
                        extra_flops: way.extra_flops + part.extra_flops,
                        from: Some((from, index, saves)),
                    });
                }
            }
        }
        let found = without_worse(found);
        // Where the result is an approximation anyway, some ways stand for all.
        let thinned = if exact { 1 } else { found.len().div_ceil(MOST_WAYS).max(1) };
        ways.push(found.into_iter().step_by(thinned).collect());
    }
    let last = ends.len() - 1;
    let named = |index: usize| {
        let mut choices = vec![Choice::Recompute; costs.entries.len()];
        let (mut at, mut index, mut saved) = (last, index, 0);
        while let Some((from, earlier, saves)) = ways[at][index].from {
            choose(costs, ends[from], ends[at], saves, &mut choices);
            saved += 1;
            (at, index) = (from, earlier);
        }
        (format!("{} of {} bottlenecks", saved - 1, ends.len() - 2), choices.into())
    };
    Ok((0..ways[last].len()).map(named).collect())
}

/// What it takes to run a part from after `first` to `last`.
fn part(costs: &Costs, first: u32, last: u32, choices: &[Choice]) -> Result<Part, PlanError> {
    let schedule = scheduled(Window { costs, first, last }, choices, false)?;
    Ok(Part {
        peak: schedule.moments.iter().map(|moment| moment.peak).max().unwrap_or(0),
        kept: schedule.held - schedule.last_held,
        extra_flops: repeated(costs, schedule.moments.iter().map(|moment| moment.step)),
    })
}

/// The ways of which none is worse than another in everything.
fn without_worse(mut ways: Vec<Way>) -> Vec<Way> {
    ways.sort_by_key(|way| (way.kept, way.peak, way.extra_flops));
    let mut best: Vec<Way> = Vec::new();
    // The fewest operations of any way so far, by peak: they fall as the peak rises. All so far keep no more.
    let mut stairs: BTreeMap<usize, u64> = BTreeMap::new();
    for way in ways {
        let below = stairs.range(..=way.peak).next_back();
        if below.is_some_and(|(_, &flops)| flops <= way.extra_flops) {
            continue;
        }
        let above: Vec<usize> = stairs
            .range(way.peak..)
            .take_while(|(_, flops)| **flops >= way.extra_flops)
            .map(|(peak, _)| *peak)
            .collect();
        for peak in above {
            stairs.remove(&peak);
        }
        stairs.insert(way.peak, way.extra_flops);
        best.push(way);
    }
    best
}

/// The fewest operations that any plan with this peak repeats. When the first rule runs, what rules need is held or will be
/// computed again; the most that the bytes can spare is what fits if values could be held in part.
fn bound(costs: &Costs, peak: usize) -> u64 {
    let mut needed = vec![false; costs.entries.len()];
    for rule in &costs.rules {
        for &read in &costs.entries[rule.node as usize].reads {
            needed[costs.entries[read as usize].root as usize] = true;
        }
    }
    let mut values: Vec<(usize, u64)> = (0..costs.entries.len())
        .filter(|&id| needed[id] && costs.entries[id].op.is_some() && id != costs.result as usize)
        .map(|id| (costs.entries[id].bytes.max(1), costs.entries[id].flops))
        .collect();
    // The most operations per byte first.
    values.sort_by(|a, b| (u128::from(b.1) * a.0 as u128).cmp(&(u128::from(a.1) * b.0 as u128)));
    let (mut room, mut repeated) = (peak, 0.0);
    for (bytes, flops) in values {
        let held = bytes.min(room);
        room -= held;
        repeated += flops as f64 * (1.0 - held as f64 / bytes as f64);
    }
    repeated as u64
}
