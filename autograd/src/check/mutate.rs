//! Derivative rules with one mistake in them.
//!
//! A rule is written with [`Var`]s, so what it computes is a recorded program: the nodes it added to the tape, and the
//! ones it returns. A mutant is one edit of that program. Nothing here knows a rule; a user's own operation is mutated
//! as those of this crate are.
//!
//! A place in the program is known by what is computed there, `mul(ȳ, y)`, not by its number: which other operands want
//! a cotangent changes what a rule records, and the same mistake must be in all of its programs, or it would show by
//! that alone.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Meta};
use smallvec::SmallVec;

use crate::op::{Cotangents, Op, Pullback, Pushforward};
use crate::scope::Rule;
use crate::tape::{Node, Tape};
use crate::var::Var;

/// What is done to a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Edit {
    /// Everything is recorded again as it was: the control, which must change no bit.
    Nothing,
    /// A value is multiplied by 1.01.
    Scale,
    /// The sign of a value is turned; of a condition, its truth.
    Negate,
    /// Of a sum, a difference or an affine function, the term at this position is left out.
    DropTerm(usize),
    /// Instead of a sum along axes, its first summand: how an un-broadcast is forgotten.
    FirstOfSum,
    /// A mean instead of a sum.
    MeanOfSum,
    /// The last two axes, of one size, are exchanged.
    Transpose,
    /// An operation of one operand, whose result looks like it, is left out: a permutation, a flip, a sign.
    Omit,
    /// An operand or result of the differentiated operation is read as a constant with its elements in reverse: a value
    /// of the same domain that is no longer the one that was saved.
    Stale,
    /// A value that is read is taken as a constant: right at first order, wrong at second.
    Detach,
    /// Two operands, or two of the rule's results, are exchanged.
    Swap(usize, usize),
    /// A result is not returned.
    Missing,
}

impl Edit {
    /// The edit without its positions: what to count by.
    pub fn kind(self) -> &'static str {
        match self {
            Edit::Nothing => "nothing changed",
            Edit::Scale => "×1.01",
            Edit::Negate => "sign",
            Edit::DropTerm(_) => "dropped term",
            Edit::FirstOfSum => "first for sum",
            Edit::MeanOfSum => "mean for sum",
            Edit::Transpose => "transposed",
            Edit::Omit => "left out",
            Edit::Stale => "stale value",
            Edit::Detach => "detached",
            Edit::Swap(..) => "swapped",
            Edit::Missing => "not returned",
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Edit::DropTerm(i) => write!(f, " {i}"),
            Edit::Swap(i, j) => write!(f, " {i} and {j}"),
            _ => Ok(()),
        }
    }
}

/// Where a rule is edited. Nodes are known by their [mark](Recorded::marks).
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Site {
    Everywhere,
    Result(usize),
    Node(u64),
    Operand(u64, usize),
}

/// A derivative rule with one mistake, made by [`Check::mutants`](super::Check::mutants).
///
/// Displayed, it names the rule, the place and the edit, as in `softmax vjp: mul(ȳ, y): sign`. The text does not depend on
/// shapes, so that what became of a mutant can be counted over many inputs.
#[derive(Clone, PartialEq, Debug)]
pub struct Mutant {
    op: &'static str,
    rule: Rule,
    site: Site,
    edit: Edit,
    /// The place, and if another place is called so too, which of them it is.
    place: String,
}

impl Mutant {
    /// The name of the operation whose rule it is.
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// What is done.
    pub fn edit(&self) -> Edit {
        self.edit
    }

    /// The same rule with nothing changed, by the same way: recorded again, node by node. What is found with it must be
    /// what is found without.
    pub fn control(&self) -> Mutant {
        Mutant { site: Site::Everywhere, edit: Edit::Nothing, place: "everywhere".into(), ..self.clone() }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = if self.rule == Rule::Vjp { "vjp" } else { "jvp" };
        write!(f, "{} {rule}: {}: {}", self.op, self.place, self.edit)
    }
}

/// What a tape does with the rules it runs.
pub(crate) enum Mutation {
    /// Writes down the mutants there are of each.
    List(RefCell<Vec<Mutant>>),
    /// Mutates one, and notes that it was met.
    Apply { mutant: Mutant, met: Cell<bool> },
}

impl Mutation {
    fn concerns(&self, op: &dyn Op, rule: Rule) -> bool {
        match self {
            Mutation::List(_) => true,
            Mutation::Apply { mutant, .. } => mutant.op == op.name() && mutant.rule == rule,
        }
    }
}

impl Tape {
    pub(super) fn with_mutation(mut self, mutation: Option<Rc<Mutation>>) -> Tape {
        self.mutation = mutation;
        self
    }

    /// Puts what a vjp rule's mutant does in place of what the rule returned, if one is to be met here.
    pub(crate) fn mutate_vjp<'t>(&'t self, op: &dyn Op, at: &Pullback<'_, 't>, found: &mut Cotangents<'t>) {
        let Some(mutation) = self.mutation.as_ref().filter(|m| m.concerns(op, Rule::Vjp)) else { return };
        let operands = at.x.iter().enumerate().map(|(i, x)| (x.id, format!("x{i}")));
        let reads = operands.chain([(at.y.id, "y".into()), (at.g.id, "ȳ".into())]).collect();
        let recorded = Recorded::new(self, at.start, reads, std::mem::take(found));
        *found = recorded.mutated(mutation, op.name(), Rule::Vjp);
    }

    /// What a jvp rule returned, or what its mutant does.
    pub(crate) fn mutate_jvp<'t>(
        &'t self,
        op: &dyn Op,
        at: &Pushforward<'_, 't>,
        found: Option<Var<'t>>,
    ) -> Option<Var<'t>> {
        let Some(mutation) = self.mutation.as_ref().filter(|m| m.concerns(op, Rule::Jvp)) else {
            return found;
        };
        let operands = at.x.iter().enumerate().map(|(i, x)| (x.id, format!("x{i}")));
        let tangents =
            at.tangents.iter().enumerate().filter_map(|(i, dx)| Some(((*dx)?.id, format!("dx{i}"))));
        let reads = operands.chain([(at.y.id, "y".into())]).chain(tangents).collect();
        let found = [found].into_iter().collect();
        Recorded::new(self, at.start, reads, found).mutated(mutation, op.name(), Rule::Jvp)[0]
    }
}

/// The program that a rule wrote.
pub(super) struct Recorded<'t> {
    pub tape: &'t Tape,
    pub start: usize,
    pub nodes: Vec<Node>,
    /// The values that the rule was given, and how they are called.
    reads: Vec<(u32, String)>,
    pub results: Cotangents<'t>,
    /// What each node computes, as a number: equal for equal expressions.
    pub marks: Vec<u64>,
}

impl<'t> Recorded<'t> {
    fn new(tape: &'t Tape, start: usize, reads: Vec<(u32, String)>, results: Cotangents<'t>) -> Recorded<'t> {
        let nodes = tape.nodes.borrow()[start..].to_vec();
        let mut recorded = Recorded { tape, start, nodes, reads, results, marks: Vec::new() };
        for node in &recorded.nodes {
            let key = match &node.op {
                None => Key::new(0).fold_str(&recorded.leaf(node)),
                Some(op) => {
                    let key = Key::new(0).fold_str(op.name()).fold_str(&op.attributes());
                    node.inputs.iter().fold(key, |key, operand| key.fold(recorded.mark(operand.id)))
                }
            };
            recorded.marks.push(key.stream);
        }
        recorded
    }

    /// The position in the program of a node of the tape, if it is in it.
    pub fn position(&self, id: u32) -> Option<usize> {
        (id as usize).checked_sub(self.start)
    }

    /// How a value from outside the program is called.
    pub fn label(&self, id: u32) -> &str {
        self.reads.iter().find(|(read, _)| *read == id).map_or("outside", |(_, label)| label)
    }

    fn mark(&self, id: u32) -> u64 {
        match self.position(id) {
            Some(i) => self.marks[i],
            None => Key::new(0).fold_str(self.label(id)).stream,
        }
    }

    /// A constant that the rule made.
    pub fn leaf(&self, node: &Node) -> String {
        match node.value.as_ref().filter(|value| value.elements() == 1).and_then(|value| value.item().ok()) {
            Some(value) => format!("{value}"),
            None => "constant".into(),
        }
    }

    fn mutated(self, mutation: &Mutation, op: &'static str, rule: Rule) -> Cotangents<'t> {
        match mutation {
            Mutation::List(list) => {
                for (site, edit, place) in self.edits(rule) {
                    let mut list = list.borrow_mut();
                    let of_rule = |other: &&Mutant| (other.op, other.rule, other.edit) == (op, rule, edit);
                    if list.iter().filter(of_rule).any(|other| other.site == site) {
                        continue;
                    }
                    let taken = |place: &str| list.iter().filter(of_rule).any(|other| other.place == place);
                    let again = (2..).map(|n| format!("{place} ({n})"));
                    let place = [place.clone()].into_iter().chain(again).find(|place| !taken(place));
                    list.extend(place.map(|place| Mutant { op, rule, site, edit, place }));
                }
                self.results
            }
            Mutation::Apply { mutant, met } => match self.replay(mutant.site, mutant.edit) {
                Some(results) => {
                    met.set(true);
                    results
                }
                None => self.results,
            },
        }
    }

    /// The results once more, after an edit; what it does not reach is not computed again. `None` if the program has no
    /// such place.
    fn replay(&self, site: Site, edit: Edit) -> Option<Cotangents<'t>> {
        let mut met = site == Site::Everywhere;
        let mut changed: HashMap<u32, Var<'t>> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let id = (self.start + i) as u32;
            let mut operands: SmallVec<[Var<'t>; 3]> = SmallVec::new();
            for operand in &node.inputs {
                let var = changed.get(&operand.id).copied().unwrap_or_else(|| self.tape.var(operand.id));
                operands.push(Var { edge: operand.edge, ..var });
            }
            let mut again = site == Site::Everywhere
                || node.inputs.iter().any(|operand| changed.contains_key(&operand.id));
            let here = site == Site::Node(self.marks[i]);
            match (site, edit) {
                (Site::Operand(mark, k), _) if mark == self.marks[i] && k < operands.len() => {
                    operands[k] = self.value_edited(edit, operands[k]);
                    (met, again) = (true, true);
                }
                (_, Edit::Swap(j, k)) if here && may_swap(node, &operands, j, k) => {
                    operands.swap(j, k);
                    (met, again) = (true, true);
                }
                _ => {}
            }
            let mut value = match &node.op {
                Some(op) if again => self.tape.record_shared(op.clone(), &operands),
                _ => self.tape.var(id),
            };
            if here && !matches!(edit, Edit::Swap(..)) {
                value = self.node_edited(edit, node, &operands, value);
                (met, again) = (true, true);
            }
            if again {
                changed.insert(id, value);
            }
        }
        let mut results = self.results.clone();
        for result in results.iter_mut().flatten() {
            *result = changed.get(&result.id).copied().unwrap_or(*result);
        }
        if let Site::Result(i) = site {
            let found = *results.get(i)?;
            met = found.is_some();
            match edit {
                Edit::Missing => results[i] = None,
                Edit::Swap(_, k) => {
                    let meta = |i: usize| results.get(i).copied().flatten().map(Var::meta);
                    met = met && meta(i) == meta(k);
                    if met {
                        results.swap(i, k);
                    }
                }
                _ => results[i] = found.map(|found| self.value_edited(edit, found)),
            }
        }
        met.then_some(results)
    }

    /// An edit that needs only the value it is done to.
    pub fn value_edited(&self, edit: Edit, v: Var<'t>) -> Var<'t> {
        match edit {
            Edit::Scale => v * 1.01,
            Edit::Negate if v.dtype() == DType::Bool => v.not(),
            Edit::Negate => -v,
            Edit::Transpose if is_square(&v.meta()) => v.transpose(-2, -1),
            Edit::Detach => v.detach(),
            Edit::Stale => {
                let reversed =
                    |v: limpid_tensor::Tensor| v.reshape([v.elements()])?.flip(0).reshape(v.shape());
                // A value that cannot be computed has made the program fail already.
                let value = self.tape.value(v).ok().and_then(|value| reversed(value).ok());
                value.map_or(v, |value| self.tape.constant(&value))
            }
            _ => v,
        }
    }

    /// An edit of a node, whose value is `v`.
    pub fn node_edited(&self, edit: Edit, node: &Node, x: &[Var<'t>], v: Var<'t>) -> Var<'t> {
        let name = node.op.as_ref().map(|op| op.name());
        match (edit, name) {
            (Edit::DropTerm(dropped), Some("add")) => x[1 - dropped].expand(v.shape()),
            (Edit::DropTerm(0), Some("sub")) => -x[1].expand(v.shape()),
            (Edit::DropTerm(_), Some("sub")) => x[0].expand(v.shape()),
            (Edit::DropTerm(0), _) => self.constant_term(node, x),
            (Edit::DropTerm(_), _) => v - self.constant_term(node, x),
            (Edit::FirstOfSum, _) => {
                let axes = summed(&x[0].meta(), &v.meta());
                axes.iter().fold(x[0], |x, &axis| x.slice(axis as isize, 0, 1, 1))
            }
            (Edit::MeanOfSum, _) => v * (v.shape().elements() as f64 / x[0].shape().elements() as f64),
            (Edit::Omit, _) if x[0].meta() == v.meta() => x[0],
            _ => self.value_edited(edit, v),
        }
    }

    /// What an affine function makes of zeros.
    pub fn constant_term(&self, node: &Node, x: &[Var<'t>]) -> Var<'t> {
        let zeros = x[0].fill(0.0).expand(x[0].shape());
        node.op.as_ref().map_or(zeros, |op| self.tape.record_shared(op.clone(), &[zeros]))
    }
}

/// The axes that a sum took together.
pub(super) fn summed(x: &Meta, sum: &Meta) -> Vec<usize> {
    (0..x.shape.len().min(sum.shape.len())).filter(|&axis| x.shape[axis] != sum.shape[axis]).collect()
}

/// Whether an operation takes its operands in another order too, and means something else by it.
pub(super) fn may_swap(node: &Node, x: &[Var<'_>], j: usize, k: usize) -> bool {
    let Some(op) = node.op.as_ref().filter(|op| k < x.len() && !is_commutative(op.name())) else {
        return false;
    };
    let mut metas: Vec<Meta> = x.iter().map(|x| x.meta()).collect();
    metas.swap(j, k);
    op.infer(&metas.iter().collect::<Vec<_>>()).is_ok_and(|meta| meta == node.meta)
}

pub(super) fn is_square(meta: &Meta) -> bool {
    matches!(meta.shape[..], [.., rows, columns] if rows == columns && rows > 1)
}

fn is_commutative(op: &str) -> bool {
    matches!(op, "add" | "mul" | "maximum" | "minimum" | "eq" | "ne" | "and" | "or")
}
