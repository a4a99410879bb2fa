//! A random policy: one with a name, or ordered rules over what a program has.

use std::collections::BTreeSet;

use limpid_autograd::plan::{Every, Policy, Select};
use limpid_autograd::{Edge, Tape};
use limpid_tensor::rng::Key;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::network::NAMES;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Drawn {
    Everything,
    Nothing,
    Connections(Spacing),
    Blocks(Spacing),
    NormsAndActivations,
    Rules { saving: bool, together: bool, rules: Vec<Rule> },
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Spacing {
    Nth(usize),
    Root,
    Balanced,
}

impl From<Spacing> for Every {
    fn from(spacing: Spacing) -> Every {
        match spacing {
            Spacing::Nth(k) => Every::Nth(k),
            Spacing::Root => Every::Root,
            Spacing::Balanced => Every::Balanced,
        }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Rule {
    pub save: bool,
    pub select: Selection,
    pub every: Option<Spacing>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Selection {
    /// So many of 16 nodes, by a hash of their position: any subset at all.
    Some {
        of_16: u64,
        seed: u64,
    },
    /// One of the scopes that the program has, by number.
    Scope(usize),
    Pattern(String),
    Op(usize),
    Name(usize),
    Edge(usize),
    Bottleneck,
    /// Values of at least so many bytes.
    Large(usize),
    Not(Box<Selection>),
    And(Box<Selection>, Box<Selection>),
    Or(Box<Selection>, Box<Selection>),
}

/// What a program has to select by.
pub struct Catalogue {
    scopes: Vec<String>,
    ops: Vec<String>,
}

impl Catalogue {
    pub fn of(tape: &Tape) -> Catalogue {
        let sites: Vec<_> = (0..tape.len()).map(|index| tape.at(index).site()).collect();
        let scopes: BTreeSet<String> = sites.iter().map(|site| site.scope.clone()).collect();
        let ops: BTreeSet<String> = sites.into_iter().map(|site| site.op).collect();
        Catalogue { scopes: scopes.into_iter().collect(), ops: ops.into_iter().collect() }
    }
}

impl Selection {
    fn select(&self, catalogue: &Catalogue) -> Select {
        let pick = |from: &[String], i: usize| from[i % from.len()].clone();
        match self {
            &Selection::Some { of_16, seed } => {
                Select::when(format!("{of_16} of 16, {seed}"), move |candidate| {
                    Key::new(seed).bits(candidate.index as u64) % 16 < of_16
                })
            }
            Selection::Scope(i) => Select::scope(pick(&catalogue.scopes, *i)),
            Selection::Pattern(pattern) => Select::scope(pattern.clone()),
            Selection::Op(i) => Select::op(pick(&catalogue.ops, *i)),
            Selection::Name(i) => Select::name(NAMES[i % NAMES.len()]),
            Selection::Edge(i) => {
                Select::edge([Edge::Interior, Edge::Skip, Edge::Branch, Edge::Control][i % 4])
            }
            Selection::Bottleneck => Select::bottleneck(),
            &Selection::Large(bytes) => {
                Select::when(format!("{bytes} bytes"), move |candidate| candidate.bytes >= bytes)
            }
            Selection::Not(select) => select.select(catalogue).not(),
            Selection::And(a, b) => a.select(catalogue).and(b.select(catalogue)),
            Selection::Or(a, b) => a.select(catalogue).or(b.select(catalogue)),
        }
    }
}

impl Drawn {
    pub fn policy(&self, catalogue: &Catalogue) -> Policy {
        match self {
            Drawn::Everything => Policy::everything(),
            Drawn::Nothing => Policy::nothing(),
            Drawn::Connections(every) => Policy::connections(*every),
            Drawn::Blocks(every) => Policy::blocks(*every),
            Drawn::NormsAndActivations => Policy::norms_and_activations(),
            Drawn::Rules { saving, together, rules } => {
                let policy = if *saving { Policy::saving("drawn") } else { Policy::recomputing("drawn") };
                let policy = rules.iter().fold(policy, |policy, rule| {
                    let select = rule.select.select(catalogue);
                    let select = rule.every.map_or(select.clone(), |every| select.every(every));
                    if rule.save { policy.save(select) } else { policy.recompute(select) }
                });
                if *together { policy.together() } else { policy }
            }
        }
    }

    /// The same, with effects saved before anything else is decided.
    pub fn sparing_effects(&self, catalogue: &Catalogue) -> Option<Policy> {
        let Drawn::Rules { saving, together, rules } = self else { return None };
        let update = catalogue.ops.iter().position(|op| op == "update")?;
        let spared = Rule { save: true, select: Selection::Op(update), every: None };
        let rules = [spared].into_iter().chain(rules.clone()).collect();
        Some(Drawn::Rules { saving: *saving, together: *together, rules }.policy(catalogue))
    }
}

fn spacings() -> impl Strategy<Value = Spacing> {
    prop_oneof![(1..5usize).prop_map(Spacing::Nth), Just(Spacing::Root), Just(Spacing::Balanced)]
}

fn selections() -> impl Strategy<Value = Selection> {
    let patterns =
        ["**/branch", "**/read", "**/write", "**/mix", "**/coefficients", "outer", "**/inner", "block.*"];
    let simple = prop_oneof![
        8 => (1..16u64, 0..1000u64).prop_map(|(of_16, seed)| Selection::Some { of_16, seed }),
        3 => (0..64usize).prop_map(Selection::Scope),
        1 => prop::sample::select(patterns.to_vec()).prop_map(|pattern| Selection::Pattern(pattern.into())),
        3 => (0..64usize).prop_map(Selection::Op),
        1 => (0..NAMES.len()).prop_map(Selection::Name),
        2 => (0..4usize).prop_map(Selection::Edge),
        1 => Just(Selection::Bottleneck),
        1 => (0..400usize).prop_map(Selection::Large),
    ];
    simple.prop_recursive(2, 6, 2, |inside| {
        let inside = || inside.clone().prop_map(Box::new);
        prop_oneof![
            inside().prop_map(Selection::Not),
            (inside(), inside()).prop_map(|(a, b)| Selection::And(a, b)),
            (inside(), inside()).prop_map(|(a, b)| Selection::Or(a, b)),
        ]
    })
}

pub fn policies() -> impl Strategy<Value = Drawn> {
    let rule = (any::<bool>(), selections(), prop::option::weighted(0.25, spacings()))
        .prop_map(|(save, select, every)| Rule { save, select, every });
    let rules = (any::<bool>(), any::<bool>(), prop::collection::vec(rule, 1..4))
        .prop_map(|(saving, together, rules)| Drawn::Rules { saving, together, rules });
    prop_oneof![
        1 => Just(Drawn::Everything),
        2 => Just(Drawn::Nothing),
        2 => spacings().prop_map(Drawn::Connections),
        2 => spacings().prop_map(Drawn::Blocks),
        1 => Just(Drawn::NormsAndActivations),
        12 => rules,
    ]
}
