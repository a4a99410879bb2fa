//! Scopes: who recorded a node, and what may be dropped when they are done.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::rc::Rc;

use smallvec::SmallVec;

use crate::op::Needs;
use crate::recycled::Recycled;
use crate::tape::{Node, Tape};
use crate::var::Outputs;

/// A scope path, interned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ScopeId(u32);

/// Every scope path that has occurred; the paths stay when a tape is cleared, the counts of draws start anew.
#[derive(Clone)]
pub(crate) struct Scopes {
    all: Vec<Scope>,
    current: ScopeId,
    /// Where names are written to be looked up.
    spelt: String,
}

#[derive(Clone, Default)]
struct Scope {
    path: Rc<str>,
    children: HashMap<String, ScopeId>,
    /// Where the derivative rules of this scope's operations record, by direction and operation.
    rules: Vec<(Rule, &'static str, ScopeId)>,
    draws: u64,
}

/// Which derivative rule is recording.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Rule {
    Vjp,
    Jvp,
}

impl Rule {
    /// What stands before an operation's name in that of its rule.
    pub fn prefix(self) -> &'static str {
        match self {
            Rule::Vjp => "∂",
            Rule::Jvp => "d",
        }
    }
}

impl Default for Scopes {
    fn default() -> Self {
        let root = Scope { path: "".into(), children: HashMap::new(), rules: Vec::new(), draws: 0 };
        Scopes { all: vec![root], current: ScopeId(0), spelt: String::new() }
    }
}

impl Scopes {
    pub fn current(&self) -> ScopeId {
        self.current
    }

    pub fn enter(&mut self, scope: ScopeId) {
        self.current = scope;
    }

    /// The scope called `name` inside `parent`.
    pub fn child(&mut self, parent: ScopeId, name: &str) -> ScopeId {
        if let Some(&child) = self.all[parent.0 as usize].children.get(name) {
            return child;
        }
        let id = ScopeId(self.all.len() as u32);
        let above = &mut self.all[parent.0 as usize];
        let path = if above.path.is_empty() { name.into() } else { format!("{}/{name}", above.path).into() };
        above.children.insert(name.into(), id);
        self.all.push(Scope { path, ..Scope::default() });
        id
    }

    /// Enters the scope in which the rule of `op`, recorded in `scope`, writes its program: `block3/∂tanh`.
    pub fn enter_rule(&mut self, scope: ScopeId, rule: Rule, op: &'static str) {
        // A scope has few kinds of operations: looking through them is faster than hashing.
        let rules = &self.all[scope.0 as usize].rules;
        let known = rules.iter().find(|(r, o, _)| *r == rule && *o == op).map(|(_, _, id)| *id);
        let id = known.unwrap_or_else(|| {
            let id = self.child(scope, &format!("{}{op}", rule.prefix()));
            self.all[scope.0 as usize].rules.push((rule, op, id));
            id
        });
        self.enter(id);
    }

    /// The path of a scope, to keep.
    pub fn shared_path(&self, scope: ScopeId) -> Rc<str> {
        self.all[scope.0 as usize].path.clone()
    }

    pub fn path(&self) -> &str {
        self.path_of(self.current)
    }

    pub fn path_of(&self, scope: ScopeId) -> &str {
        &self.all[scope.0 as usize].path
    }

    /// ` in block3/read`, or nothing at the root: for messages.
    pub fn suffix(&self) -> String {
        self.suffix_of(self.current)
    }

    /// As [`suffix`](Scopes::suffix), of another scope.
    pub fn suffix_of(&self, scope: ScopeId) -> String {
        let path = self.path_of(scope);
        if path.is_empty() { String::new() } else { format!(" in {path}") }
    }

    /// Counts the random draws in the current scope.
    pub fn next_draw(&mut self) -> u64 {
        let draws = &mut self.all[self.current.0 as usize].draws;
        *draws += 1;
        *draws - 1
    }

    pub fn restart(&mut self) {
        self.all.iter_mut().for_each(|scope| scope.draws = 0);
        self.current = ScopeId(0);
    }
}

/// While this lives, its scope is current; it ends however the scope is left, by a panic too.
struct Inside<'a> {
    tape: &'a Tape,
    outer: ScopeId,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.tape.scopes.borrow_mut().enter(self.outer);
    }
}

impl Tape {
    /// Runs `f` inside a scope. Nodes it records carry the scope's path; when it closes, values that neither a
    /// derivative rule will read nor `f` returns are dropped (one that is asked for later is computed again), unless the tape
    /// follows a [plan](Tape::with_plan), which then says what is dropped. On an
    /// inference tape the nodes themselves are forgotten.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::ones([4], DType::F64));
    /// let y = tape.scope("block", || {
    ///     let shifted = x + 1.0; // no rule reads it: tanh's derivative is a function of tanh's result
    ///     shifted.tanh()
    /// });
    /// assert_eq!(tape.memory().dropped_values, 1);
    /// assert!(y.value().is_ok());
    /// ```
    ///
    /// A name that is made up for the occasion is best given as `format_args!`, which takes no memory of its own.
    pub fn scope<'t, R: Outputs<'t>>(&'t self, name: impl fmt::Display, f: impl FnOnce() -> R) -> R {
        let start = self.len();
        let inside = self.enter_child(&name);
        let _timed = self.time_scope();
        let mut result = f();
        drop(inside);
        if self.is_inference() {
            self.forget_nodes(start, &mut result);
        } else {
            let mut returned: SmallVec<[u32; 4]> = SmallVec::new();
            result.visit(&mut |var| returned.push(var.id));
            if !self.follows_plan() {
                self.drop_unneeded(start, &returned);
            }
        }
        result
    }

    /// When the result is dropped, the scope that is current now is so again.
    pub(crate) fn return_to_scope(&self) -> impl Drop + '_ {
        Inside { tape: self, outer: self.scopes.borrow().current() }
    }

    fn enter_child(&self, name: &dyn fmt::Display) -> Inside<'_> {
        let mut spelt = std::mem::take(&mut self.scopes.borrow_mut().spelt);
        spelt.clear();
        write!(spelt, "{name}").expect("a name can be written");
        let mut scopes = self.scopes.borrow_mut();
        let outer = scopes.current();
        let child = scopes.child(outer, &spelt);
        scopes.enter(child);
        scopes.spelt = spelt;
        Inside { tape: self, outer }
    }

    /// Drops the values recorded since `start` that no derivative rule reads, but for those in `returned`.
    pub(crate) fn drop_unneeded(&self, start: usize, returned: &[u32]) {
        let end = self.len();
        let mut needed = Recycled::filled(end - start, false);
        for id in start..end {
            let needs = self.needs_of(id as u32);
            let nodes = self.nodes.borrow();
            needed[id - start] |= needs.output;
            for (i, operand) in nodes[id].inputs.iter().enumerate() {
                if needs.input(i) && operand.id as usize >= start {
                    needed[operand.id as usize - start] = true;
                }
            }
        }
        for &id in returned.iter().filter(|&&id| id as usize >= start) {
            needed[id as usize - start] = true;
        }
        let mut nodes = self.nodes.borrow_mut();
        for (node, _) in nodes[start..].iter_mut().zip(&*needed).filter(|(_, needed)| !**needed) {
            let replayable = node.op.as_ref().is_some_and(|op| op.purity() != crate::op::Purity::Effect);
            if replayable && node.value.is_some() {
                node.value = None;
                self.drops.count_dropped();
            }
        }
    }

    /// What the derivative rule of a node will read: nothing if no gradient passes it.
    pub(crate) fn needs_of(&self, id: u32) -> Needs {
        let nodes = self.nodes.borrow();
        let node = &nodes[id as usize];
        let (true, Some(op)) = (node.tracked, &node.op) else { return Needs::NOTHING };
        let mut tracked: SmallVec<[bool; 8]> = SmallVec::new();
        node.inputs.iter().for_each(|o| tracked.push(nodes[o.id as usize].tracked));
        op.needs(&tracked)
    }

    /// Keeps the values of the scope's results as constants and forgets everything else it recorded.
    fn forget_nodes<'t>(&'t self, start: usize, result: &mut impl Outputs<'t>) {
        let mut kept = Vec::new();
        result.visit(&mut |var| {
            let node = self.with_node(*var, Node::clone);
            if var.id as usize >= start {
                kept.push(node);
            }
        });
        self.truncate(start);
        let mut kept = kept.into_iter();
        result.visit(&mut |var| {
            if var.id as usize >= start {
                *var = self.place_result(kept.next().expect("visited in the same order"));
            }
        });
    }
}
