//! Which plans are compared?

use limpid::autograd::plan::{Every, Fate, Plan, PlanError, Policy};
use limpid::{Tape, Var};

/// From all that is kept to nothing, under names that can be typed.
pub fn policies(connections: Every) -> Vec<Policy> {
    vec![
        Policy::everything(),
        Policy::norms_and_activations().named("norms-activations"),
        Policy::connections(connections),
        Policy::blocks(Every::Root).named("blocks-root"),
        Policy::blocks(Every::Balanced).named("blocks-balanced"),
        Policy::nothing(),
    ]
}

/// A plan of each policy for the program up to `loss`. Nothing is computed.
pub fn plans(tape: &Tape, loss: Var<'_>, policies: &[Policy]) -> Result<Vec<Plan>, PlanError> {
    policies.iter().map(|policy| tape.plan(loss, policy)).collect()
}

/// k, if a plan saves the state of the streams before every k-th block.
pub fn spacing(plan: &Plan) -> Option<usize> {
    let chosen = |&node: &usize| {
        let saved = plan.fate(node) == Fate::Save && plan.bytes(node) > 0;
        saved && plan.rule(node).is_some_and(|rule| rule.starts_with("save "))
    };
    let block =
        |node: usize| plan.site(node).scope.strip_prefix("block.")?.strip_suffix("/write")?.parse().ok();
    let blocks: Vec<usize> = (0..plan.len()).filter(chosen).filter_map(block).collect();
    Some(blocks.get(1)? - blocks[0])
}
