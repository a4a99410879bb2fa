//! What should be kept and what computed again: rules over the values of a program.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use limpid_tensor::Meta;

use crate::glob::{Glob, nearest};
use crate::op::Purity;
use crate::plan::PlanError;
use crate::plan::costs::Costs;
use crate::var::Edge;

/// Whether the backward pass finds a value or computes it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// It is kept from the forward pass, as long as something will read it.
    Save,
    /// It is dropped after its last reader in the forward pass, and computed again when the backward pass needs it.
    Recompute,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Choice::Save => "save",
            Choice::Recompute => "recompute",
        })
    }
}

/// Ordered rules that say of every value of a program whether to [save or recompute](Choice) it. The first rule that
/// selects a value decides. A view is part of the value that it shows, and goes by what is decided of that.
///
/// A rule that selects nothing (or leaves and views alone) is an error when a plan is made: a misspelt scope would otherwise mean something else in
/// silence.
///
/// ```
/// use limpid_autograd::plan::{Policy, Select};
/// use limpid_autograd::{Edge, Tape};
/// use limpid_tensor::{DType, Tensor};
/// let tape = Tape::dry();
/// let mut x = tape.variable(&Tensor::ones([64], DType::F32));
/// for i in 0..9 {
///     x = tape.scope(format_args!("block.{i}"), || x.skip() + x.sin().exp().branch());
/// }
/// let loss = x.sum(&[]);
/// let policy = Policy::recomputing("every third block").save(Select::edge(Edge::Skip).every(3));
/// let plan = tape.plan(loss, &policy)?;
/// // exp's rule reads its result and sin's its operand: 2 values a block, of which 9 are blocks' results.
/// assert_eq!(tape.plan(loss, &Policy::everything())?.totals().held, 4 * (17 * 64 + 1));
/// assert_eq!(plan.totals().held, 4 * (2 * 64 + 1));
/// # Ok::<(), limpid_autograd::plan::PlanError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    name: String,
    rules: Vec<Rule>,
    otherwise: Choice,
    together: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    select: Select,
    choice: Choice,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.choice, self.select)
    }
}

/// What a policy makes of a program.
pub(crate) struct Decisions {
    /// For each node: the decision, and the rule that made it (`None`: no rule selected it).
    pub by_node: Vec<(Choice, Option<usize>)>,
    /// The rules as text.
    pub rules: Vec<String>,
    /// Whether values of a block come back together.
    pub together: bool,
}

/// Policies with names.
impl Policy {
    /// Saves every value that a derivative rule reads, and nothing else: what a tape without a plan does.
    pub fn everything() -> Policy {
        Policy::saving("everything")
    }

    /// Saves nothing: the backward pass starts from inputs and parameters, and computes the whole program again.
    pub fn nothing() -> Policy {
        Policy::recomputing("nothing")
    }

    /// Recomputes what a residual connection computes and keeps what its branches compute: the state of the streams is
    /// saved every so many blocks, with the results of branches and the coefficients (they are small); the states between,
    /// what branches read, and its norms come back block by block.
    ///
    /// [`Every::Balanced`] is the spacing L_r = argmin nC⌈L/L_r⌉ + (n+2)C·L_r of mHC (arXiv 2512.24880, section 4.3),
    /// with the bytes that the program really has. The values of a block come back together, as the formula counts them.
    pub fn connections(every: impl Into<Every>) -> Policy {
        let norms = Select::op("rms_norm").or(Select::op("layer_norm"));
        let norms = Select::scope("**/branch").and(norms).called("norms in branches");
        let state = Select::edge(Edge::Skip).called("the state before a block");
        let wiring = ["**/read", "**/write"].map(Select::scope).into_iter().reduce(Select::or);
        let wiring = wiring.expect("there are three").called("reads, mixes and writes");
        Policy::saving("connections")
            .recompute_where_any(norms)
            .save(state.clone().every(every))
            .recompute(state)
            .recompute(wiring)
            .together()
    }

    /// Recomputes norms and activations: cheap to compute, and as large as what they are computed from.
    pub fn norms_and_activations() -> Policy {
        let norms = ["rms_norm", "layer_norm"];
        let activations =
            ["relu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "softplus", "leaky_relu", "exp"];
        let cheap = norms.into_iter().chain(activations).map(Select::op).reduce(Select::or);
        let name = "norms and activations";
        Policy::saving(name).recompute(cheap.expect("there are some").called(name))
    }

    /// Saves one [bottleneck](Select::bottleneck) in every so many and recomputes all else, branches included. With
    /// [`Every::Root`] this is the √L scheme: memory grows with √L, for one more forward pass.
    ///
    /// T. Chen et al., *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174.
    pub fn blocks(every: impl Into<Every>) -> Policy {
        Policy::recomputing("blocks").save(Select::bottleneck().every(every))
    }
}

/// Writing policies.
impl Policy {
    /// Rules to come, and what no rule selects is saved.
    pub fn saving(name: impl Into<String>) -> Policy {
        Policy { name: name.into(), rules: Vec::new(), otherwise: Choice::Save, together: false }
    }

    /// Rules to come, and what no rule selects is recomputed. (An [effect](Purity::Effect) is saved.)
    pub fn recomputing(name: impl Into<String>) -> Policy {
        Policy { otherwise: Choice::Recompute, ..Policy::saving(name) }
    }

    /// What `select` selects, and no rule before, is saved.
    pub fn save(self, select: Select) -> Policy {
        self.rule(select, Choice::Save)
    }

    /// What `select` selects, and no rule before, is recomputed.
    pub fn recompute(self, select: Select) -> Policy {
        self.rule(select, Choice::Recompute)
    }

    /// As [`recompute`](Policy::recompute), where selecting nothing is no mistake.
    fn recompute_where_any(self, select: Select) -> Policy {
        self.recompute(Select { may_be_empty: true, ..select })
    }

    fn rule(mut self, select: Select, choice: Choice) -> Policy {
        self.rules.push(Rule { select, choice });
        self
    }

    /// The first value of a block that comes back brings with it all that will be computed again from there on, in one pass
    /// forward. Without this each comes back when something first reads it, which holds less.
    pub fn together(self) -> Policy {
        Policy { together: true, ..self }
    }

    /// Each value comes back when something first reads it: the opposite of [`together`](Policy::together), and how a policy
    /// begins.
    pub fn one_by_one(self) -> Policy {
        Policy { together: false, ..self }
    }

    /// The same policy under another name.
    pub fn named(self, name: impl Into<String>) -> Policy {
        Policy { name: name.into(), ..self }
    }

    /// What the policy is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Decides of every node, the first rule that selects it first.
    pub(crate) fn decide(&self, costs: &Costs) -> Result<Decisions, PlanError> {
        let candidates = costs.candidates();
        let mut chosen: Vec<Option<usize>> = vec![None; candidates.len()];
        for (number, rule) in self.rules.iter().enumerate() {
            let matched: Vec<usize> = rule.select.select(&candidates);
            let values = matched.iter().filter(|&&id| costs.entries[id].is_decided_of()).count();
            if values == 0 && !rule.select.may_be_empty {
                return Err(PlanError::SelectsNothing {
                    policy: self.name.clone(),
                    rule: rule.to_string(),
                    hint: rule.select.hint(&candidates),
                });
            }
            let spacing =
                rule.select.every.as_ref().map(|every| every.number(self, &matched, costs)).transpose()?;
            for &id in matched.iter().step_by(spacing.unwrap_or(1)) {
                chosen[id].get_or_insert(number);
            }
        }
        let mut by_node: Vec<(Choice, Option<usize>)> = Vec::with_capacity(chosen.len());
        for (id, entry) in costs.entries.iter().enumerate() {
            // A view goes by what it shows, which was recorded before it.
            let decided = match chosen[entry.root as usize] {
                // Nothing has to be kept for a leaf, nor for a view of one.
                _ if costs.entries[entry.root as usize].op.is_none() => (Choice::Save, None),
                _ if (entry.root as usize) < id => by_node[entry.root as usize],
                Some(rule) => (self.rules[rule].choice, Some(rule)),
                None => (self.otherwise, None),
            };
            if entry.purity != Purity::Effect {
                by_node.push(decided);
                continue;
            }
            match chosen[id].map(|rule| &self.rules[rule]) {
                Some(rule) if rule.choice == Choice::Recompute => {
                    return Err(PlanError::Effect { site: entry.site(), rule: rule.to_string() });
                }
                _ => by_node.push((Choice::Save, chosen[id])),
            }
        }
        let rules = self.rules.iter().map(Rule::to_string).collect();
        Ok(Decisions { by_node, rules, together: self.together })
    }

    /// This policy with every value saved that its last rule so far would space out.
    fn saving_all_of(&self, matched: &[usize], costs: &Costs) -> Result<Vec<Choice>, PlanError> {
        let states: BTreeSet<u32> = matched.iter().map(|&id| costs.entries[id].root).collect();
        let plain = Policy {
            rules: self.rules.iter().filter(|rule| rule.select.every.is_none()).cloned().collect(),
            ..self.clone()
        };
        let saved = |id: usize| states.contains(&costs.entries[id].root);
        let decided = plain.decide(costs)?.by_node.into_iter().enumerate();
        Ok(decided.map(|(id, (choice, _))| if saved(id) { Choice::Save } else { choice }).collect())
    }
}

/// How many of the values that a [`Select`] selects are between two that count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Every {
    /// The first counts, and then each k-th.
    Nth(usize),
    /// k = ⌈√L⌉, where L is how many there are.
    Root,
    /// k = argmin s⌈L/k⌉ + b·k, the smallest if there are several: s is how many bytes one of the L values has, and b how
    /// many come back with each where all are saved, that one included.
    Balanced,
}

impl From<usize> for Every {
    fn from(k: usize) -> Every {
        Every::Nth(k)
    }
}

impl Every {
    fn number(self, policy: &Policy, matched: &[usize], costs: &Costs) -> Result<usize, PlanError> {
        let count = matched.len();
        Ok(match self {
            Every::Nth(k) => k.max(1),
            Every::Root => (1..=count).find(|k| k * k >= count).unwrap_or(1),
            Every::Balanced => {
                let decided = policy.saving_all_of(matched, costs)?;
                let returning: usize = crate::plan::schedule::returning(costs, &decided)?;
                let own: usize =
                    matched.iter().map(|&id| costs.entries[costs.entries[id].root as usize].bytes).sum();
                let (own, returning) = (own as f64 / count as f64, returning as f64 / count as f64);
                let cost = |k: usize| own * count.div_ceil(k) as f64 + (own + returning) * k as f64;
                (1..=count).fold(1, |best, k| if cost(k) < cost(best) { k } else { best })
            }
        })
    }
}

/// What is known of a value when a policy decides.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its position on the tape.
    pub index: usize,
    /// The operation's name; `None` for a leaf.
    pub op: Option<&'a str>,
    /// Its own name, or that of a view of it, if there is one.
    pub name: Option<&'a str>,
    /// The scope path it was recorded in.
    pub scope: &'a str,
    /// Shape and dtype.
    pub meta: &'a Meta,
    /// The bytes of its storage; 0 for a view.
    pub bytes: usize,
    /// The operations that it takes to compute it.
    pub flops: u64,
    /// Whether some operation takes it by an edge of each class, in the order of [`Edge`].
    pub taken_by: [bool; 4],
    /// Whether everything after it depends on what was before it by way of it alone.
    pub is_bottleneck: bool,
}

type Test = Rc<dyn Fn(&Candidate<'_>) -> bool>;

/// Which values a rule is about.
#[derive(Clone)]
pub struct Select {
    text: String,
    test: Test,
    every: Option<Every>,
    may_be_empty: bool,
    /// What could have been misspelt.
    patterns: Vec<(Field, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Scope,
    Op,
    Name,
}

impl Field {
    fn of<'a>(self, candidate: &Candidate<'a>) -> Option<&'a str> {
        match self {
            Field::Scope => Some(candidate.scope),
            Field::Op => candidate.op,
            Field::Name => candidate.name,
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Field::Scope => "scopes",
            Field::Op => "operations",
            Field::Name => "names",
        }
    }

    /// What a pattern may have meant: of a scope also those that it lies in.
    fn with_scopes_around(self, text: &str) -> impl Iterator<Item = &str> {
        let ends = text.match_indices('/').filter(move |_| self == Field::Scope).map(|(end, _)| &text[..end]);
        ends.chain([text])
    }

    fn holds(self, pattern: &Glob, text: &str) -> bool {
        if self == Field::Scope { pattern.covers(text) } else { pattern.matches(text) }
    }
}

impl Select {
    /// What was recorded in a scope whose path matches the [pattern](Glob), or inside such a scope.
    pub fn scope(pattern: impl Into<String>) -> Select {
        Select::by(Field::Scope, "scope", pattern.into())
    }

    /// Results of operations whose name matches the [pattern](Glob).
    pub fn op(pattern: impl Into<String>) -> Select {
        Select::by(Field::Op, "op", pattern.into())
    }

    /// Values whose [name](crate::Var::named), or that of a view of them, matches the [pattern](Glob).
    pub fn name(pattern: impl Into<String>) -> Select {
        Select::by(Field::Name, "name", pattern.into())
    }

    fn by(field: Field, what: &str, pattern: String) -> Select {
        let glob = Glob::new(&pattern);
        let select = Select::when(format!("{what} {pattern}"), move |candidate| {
            field.of(candidate).is_some_and(|text| field.holds(&glob, text))
        });
        Select { patterns: vec![(field, pattern)], ..select }
    }

    /// Values that some operation takes by an edge of this class: by [`Edge::Skip`] the state of a residual stream before
    /// each block, by [`Edge::Branch`] the results of branches, by [`Edge::Control`] coefficients.
    pub fn edge(edge: Edge) -> Select {
        let name = format!("{edge:?}").to_lowercase();
        Select::when(format!("taken by a {name} edge"), move |candidate| candidate.taken_by[edge as usize])
    }

    /// Values by way of which alone everything after them depends on what was before them (inputs and parameters apart):
    /// the results of layers in a chain, the state between two blocks of a residual network.
    pub fn bottleneck() -> Select {
        Select::when("bottleneck", |candidate| candidate.is_bottleneck)
    }

    /// Values of which `test` holds; `text` says in a plan which these are.
    pub fn when(text: impl Into<String>, test: impl Fn(&Candidate<'_>) -> bool + 'static) -> Select {
        Select {
            text: text.into(),
            test: Rc::new(test),
            every: None,
            may_be_empty: false,
            patterns: Vec::new(),
        }
    }

    /// What both select.
    pub fn and(self, other: Select) -> Select {
        let (a, b) = (self.test, other.test);
        let text = format!("{} and {}", self.text, other.text);
        let patterns = [self.patterns, other.patterns].concat();
        Select { patterns, ..Select::when(text, move |candidate| a(candidate) && b(candidate)) }
    }

    /// What either selects.
    pub fn or(self, other: Select) -> Select {
        let (a, b) = (self.test, other.test);
        let text = format!("{} or {}", self.text, other.text);
        let patterns = [self.patterns, other.patterns].concat();
        Select { patterns, ..Select::when(text, move |candidate| a(candidate) || b(candidate)) }
    }

    /// What this does not select.
    #[allow(clippy::should_implement_trait)]
    pub fn not(self) -> Select {
        let test = self.test;
        Select::when(format!("not ({})", self.text), move |candidate| !test(candidate))
    }

    /// The same under another text, which a plan shows.
    pub fn called(self, text: impl Into<String>) -> Select {
        Select { text: text.into(), ..self }
    }

    /// Of what this selects, in the order of the tape, the first and then each so many; the others go on to the next rule.
    /// A leaf among them counts, and is there anyway.
    pub fn every(self, every: impl Into<Every>) -> Select {
        Select { every: Some(every.into()), ..self }
    }

    fn select(&self, candidates: &[Candidate<'_>]) -> Vec<usize> {
        candidates.iter().filter(|c| (self.test)(c)).map(|c| c.index).collect()
    }

    /// What could have been meant.
    fn hint(&self, candidates: &[Candidate<'_>]) -> String {
        let ops = || candidates.iter().filter(|c| c.op.is_some());
        let mut hints = Vec::new();
        for (field, pattern) in &self.patterns {
            let glob = Glob::new(pattern);
            let texts = ops().filter_map(|c| field.of(c)).flat_map(|text| field.with_scopes_around(text));
            let texts: BTreeSet<&str> = texts.filter(|text| !text.is_empty()).collect();
            if texts.iter().any(|text| field.holds(&glob, text)) {
                continue;
            }
            let near: Vec<String> = nearest(pattern, texts).iter().map(|near| format!("{near:?}")).collect();
            hints.push(match near.is_empty() {
                true => format!("there are no {}", field.plural()),
                false => format!("the nearest {} to {pattern:?} are {}", field.plural(), near.join(", ")),
            });
        }
        if hints.is_empty() && candidates.iter().any(|candidate| (self.test)(candidate)) {
            hints.push("what it selects are leaves, or views, which go by what they show".into());
        }
        if hints.is_empty() {
            let edges: Vec<&str> =
                [(Edge::Skip, "skip"), (Edge::Branch, "branch"), (Edge::Control, "control")]
                    .into_iter()
                    .filter(|(edge, _)| ops().any(|c| c.taken_by[*edge as usize]))
                    .map(|(_, name)| name)
                    .collect();
            let edges = if edges.is_empty() { "none is marked".into() } else { edges.join(", ") };
            hints.push(format!("of {} values; edges: {edges}", ops().count()));
        }
        hints.join("; ")
    }
}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match self.every {
            None => Ok(()),
            Some(Every::Nth(k)) => write!(f, ", one in {k}"),
            Some(Every::Root) => write!(f, ", one in √L"),
            Some(Every::Balanced) => write!(f, ", one in argmin s⌈L/k⌉ + b·k"),
        }
    }
}

impl fmt::Debug for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Costs {
    /// Every node as policies see it.
    fn candidates(&self) -> Vec<Candidate<'_>> {
        let mut taken_by = vec![[false; 4]; self.entries.len()];
        for operand in self.entries.iter().flat_map(|entry| &entry.inputs) {
            taken_by[operand.id as usize][operand.edge as usize] = true;
        }
        let mut is_bottleneck = vec![false; self.entries.len()];
        self.bottlenecks().into_iter().for_each(|id| is_bottleneck[id as usize] = true);
        // What a view is called, the value that it shows is called too.
        let mut names: Vec<Option<&str>> = self.entries.iter().map(|entry| entry.name.as_deref()).collect();
        for entry in self.entries.iter().filter(|entry| entry.shows.is_some()) {
            let root = &mut names[entry.root as usize];
            *root = root.or(entry.name.as_deref());
        }
        let mut candidates = Vec::with_capacity(self.entries.len());
        for (index, entry) in self.entries.iter().enumerate() {
            candidates.push(Candidate {
                index,
                op: entry.op,
                name: names[index],
                scope: &entry.scope,
                meta: &entry.meta,
                bytes: entry.bytes,
                flops: entry.flops,
                taken_by: taken_by[index],
                is_bottleneck: is_bottleneck[index],
            });
        }
        candidates
    }

    /// The values, views apart, by way of which alone everything after them depends on what was before them.
    pub fn bottlenecks(&self) -> Vec<u32> {
        let mut last_reader = vec![0; self.entries.len()];
        for (id, entry) in self.entries.iter().enumerate() {
            entry.inputs.iter().for_each(|operand| last_reader[operand.id as usize] = id);
        }
        let mut found = Vec::new();
        // The last reader of everything so far that is not a leaf.
        let mut reach = 0;
        for (id, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.op.is_some()) {
            if reach <= id && last_reader[id] > id && entry.shows.is_none() {
                found.push(id as u32);
            }
            reach = reach.max(last_reader[id]);
        }
        found
    }

    /// Makes views in a range of nodes go by what they show, and saves leaves and effects.
    pub fn complete(&self, choices: &mut [Choice], range: std::ops::RangeInclusive<usize>) {
        for id in range {
            let entry = &self.entries[id];
            let is_leaf = self.entries[entry.root as usize].op.is_none();
            choices[id] = match is_leaf || entry.purity == Purity::Effect {
                true => Choice::Save,
                false => choices[entry.root as usize],
            };
        }
    }
}
