//! What is kept for the backward pass, what is computed again, and what does that cost?
//!
//! A [`Policy`] is a list of rules over the values of a program. [`Tape::plan`] makes a [`Plan`] of it, before anything
//! runs: for each value whether it is saved, computed again or dropped for good, and which rule said so; every step of
//! the run, and the bytes held after each. A tape that [follows a plan](Tape::with_plan) runs those steps, compares
//! each value that comes back with what was dropped, and hands out a [`Receipt`] of what it measured, to be compared with
//! the plan. Gradients are the same bits under every plan.
//!
//! ```
//! use limpid_autograd::plan::Policy;
//! use limpid_autograd::{Tape, Var};
//! use limpid_tensor::{DType, Tensor};
//! let x = Tensor::ones([1000], DType::F32);
//! let network = |x| (0..16).fold(x, |x: Var<'_>, _| x.sin().exp()).sum(&[]);
//!
//! let dry = Tape::dry();
//! let plan = dry.plan(network(dry.variable(&x)), &Policy::blocks(4))?;
//!
//! let tape = Tape::new().with_plan(&plan);
//! let x = tape.variable(&x);
//! tape.backward(network(x))?;
//! let receipt = tape.receipt().unwrap();
//! assert_eq!(receipt.measured, *plan.totals());
//! assert!(receipt.differences(&plan).is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A reader's order: `policy.rs` says what is decided, `costs.rs` what a program takes, `schedule.rs` what follows from
//! both, `run.rs` how it is carried out, `verify.rs` how a value that comes back is proved, and `budget.rs` which plan is
//! best.

mod budget;
pub(crate) mod costs;
mod policy;
pub(crate) mod run;
mod schedule;
mod table;
mod verify;

use std::rc::Rc;

pub use budget::{Budget, Front, Point};
pub use policy::{Candidate, Choice, Every, Policy, Select};
pub use run::{Difference, Receipt};
pub use schedule::{Moment, Step};
pub use table::{Change, PlanDiff};
pub use verify::{Verified, Verify};

use crate::error::{Error, Site};
use crate::tape::Tape;
use crate::var::Var;
use costs::Costs;
use policy::Decisions;
use schedule::{Schedule, Window};

/// Why there is no plan.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A rule selects no value of the program.
    #[error("policy {policy:?}: the rule \"{rule}\" selects no value; {hint}")]
    SelectsNothing {
        /// The policy's name.
        policy: String,
        /// The rule.
        rule: String,
        /// What is near.
        hint: String,
    },
    /// What changes something outside the tape would happen twice.
    #[error(
        "{site}: it cannot be computed again ({rule}), because it is an effect and happens once; save it"
    )]
    Effect {
        /// Which operation.
        site: Site,
        /// The rule that selects it.
        rule: String,
    },
    /// A derivative rule looks at numbers, and a plan is made before there are any.
    #[error(
        "{site}: its derivative depends on values, so that what it takes is not known before it runs: {message}"
    )]
    DependsOnValues {
        /// Which operation.
        site: Site,
        /// What happened when it looked.
        message: String,
    },
    /// No plan holds as few bytes.
    #[error("no plan holds at most {budget}; the least that was found is {least} bytes")]
    OverBudget {
        /// The limit.
        budget: String,
        /// The smallest peak.
        least: usize,
    },
    /// The program has failed.
    #[error(transparent)]
    Tape(#[from] Error),
}

/// What becomes of a value in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// An input, a parameter or a constant: the tape refers to it all the time.
    Leaf,
    /// Kept from the forward pass until its last reader in the backward pass.
    Save,
    /// Dropped, and computed again when the backward pass needs it.
    Recompute,
    /// Dropped after its last reader in the forward pass: nothing will need it.
    Free,
}

/// What a run takes. Inputs and parameters do not count, and a storage that values share counts once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Values computed in the forward pass.
    pub computed: usize,
    /// Values computed again.
    pub recomputed: usize,
    /// Floating-point operations of the forward pass.
    pub flops: u64,
    /// Floating-point operations of what is computed again.
    pub extra_flops: u64,
    /// The bytes held when the backward pass begins.
    pub held: usize,
    /// The most bytes held at any time: values, cotangents, what rules compute, and gradients.
    pub peak: usize,
    /// The most held at any time besides gradients that have been delivered.
    pub peak_activations: usize,
}

/// What is kept, what is computed again and when, decided before the run: made by [`Tape::plan`].
///
/// It holds for one program, and knows nothing of the tape it was made on. Displayed, it is a table with a line for
/// every value; [`summary`](Plan::summary) has a line for every rule.
#[derive(Clone)]
pub struct Plan(Rc<Planned>);

struct Planned {
    policy: String,
    rules: Vec<String>,
    costs: Rc<Costs>,
    decided: Vec<(Choice, Option<usize>)>,
    fates: Vec<Fate>,
    recomputations: Vec<u32>,
    moments: Vec<Moment>,
    /// Where in `moments` the backward pass begins.
    begun: usize,
    totals: Totals,
}

impl Plan {
    fn of(costs: &Rc<Costs>, policy: &str, decisions: Decisions) -> Result<Plan, PlanError> {
        let choices: Vec<Choice> = decisions.by_node.iter().map(|(choice, _)| *choice).collect();
        let Schedule { moments, begun, held, .. } =
            schedule::scheduled(Window::all(costs), &choices, decisions.together)?;
        let mut recomputations = vec![0; costs.entries.len()];
        let mut dropped_early = vec![false; costs.entries.len()];
        for (at, moment) in moments.iter().enumerate() {
            match moment.step {
                Step::Recompute(id) => recomputations[id as usize] += 1,
                Step::Drop(id) if at < begun => dropped_early[id as usize] = true,
                _ => {}
            }
        }
        let fate = |id: usize| match costs.entries[id].op {
            None => Fate::Leaf,
            Some(_) if recomputations[id] > 0 => Fate::Recompute,
            Some(_) if dropped_early[id] => Fate::Free,
            Some(_) => Fate::Save,
        };
        let fates = (0..costs.entries.len()).map(fate).collect();
        let totals = totals(costs, &moments, held);
        Ok(Plan(Rc::new(Planned {
            policy: policy.into(),
            rules: decisions.rules,
            costs: costs.clone(),
            decided: decisions.by_node,
            fates,
            recomputations,
            moments,
            begun,
            totals,
        })))
    }

    /// The name of the policy.
    pub fn policy(&self) -> &str {
        &self.0.policy
    }

    /// What the run will take.
    pub fn totals(&self) -> &Totals {
        &self.0.totals
    }

    /// Everything that will happen, in order, with what is held: memory over time.
    pub fn moments(&self) -> &[Moment] {
        &self.0.moments
    }

    /// Where in [`moments`](Plan::moments) the backward pass begins.
    pub fn backward_begins(&self) -> usize {
        self.0.begun
    }

    /// The number of nodes that it is about.
    pub fn len(&self) -> usize {
        self.0.fates.len()
    }

    /// Whether the program is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What becomes of the value at a position of the tape.
    pub fn fate(&self, index: usize) -> Fate {
        self.0.fates[index]
    }

    /// The rule that decided of it, if one selected it.
    pub fn rule(&self, index: usize) -> Option<&str> {
        Some(&self.0.rules[self.0.decided[index].1?])
    }

    /// How often it is computed again.
    pub fn recomputations(&self, index: usize) -> usize {
        self.0.recomputations[index] as usize
    }

    /// The bytes that it allocates; 0 for a leaf and a view.
    pub fn bytes(&self, index: usize) -> usize {
        self.0.costs.entries[index].bytes
    }

    /// Its operation or name, scope and source line.
    pub fn site(&self, index: usize) -> Site {
        self.0.costs.entries[index].site()
    }
}

fn totals(costs: &Costs, moments: &[Moment], held: usize) -> Totals {
    let mut totals = Totals { held, ..Totals::default() };
    let mut gradients = 0;
    for moment in moments {
        totals.peak = totals.peak.max(moment.peak);
        totals.peak_activations = totals.peak_activations.max(moment.peak.saturating_sub(gradients));
        gradients = moment.gradients;
        let flops = costs.entries[moment.step.node()].flops;
        match moment.step {
            Step::Compute(_) => (totals.computed, totals.flops) = (totals.computed + 1, totals.flops + flops),
            Step::Recompute(_) => {
                (totals.recomputed, totals.extra_flops) = (totals.recomputed + 1, totals.extra_flops + flops);
            }
            Step::Rule(_) | Step::Drop(_) => {}
        }
    }
    totals
}

impl Tape {
    /// What running the program up to `loss`, and differentiating it, takes under a policy. Nothing is computed: the tape may
    /// be [dry](Tape::dry), and is where the program is known before it runs. (Its leaves are taken to be contiguous. An
    /// operation that reads elements of tensors itself, as one outside this crate may, is taken to allocate its result and
    /// nothing else.)
    ///
    /// # Errors
    /// If a rule of the policy selects nothing, if it would repeat an effect, or if the program depends on values.
    ///
    /// # Panics
    /// If `loss` does not have exactly one element.
    #[track_caller]
    pub fn plan(&self, loss: Var<'_>, policy: &Policy) -> Result<Plan, PlanError> {
        self.expect_differentiable("plan");
        self.expect_scalar("plan", loss);
        let costs = Rc::new(self.costs(loss)?);
        let decisions = policy.decide(&costs)?;
        Plan::of(&costs, policy.name(), decisions)
    }
}
