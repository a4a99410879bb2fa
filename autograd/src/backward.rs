//! Reverse mode: from the cotangent of one value to those of everything it was computed from.
//!
//! One sweep serves every use. It visits the nodes from the last to the first, hands each node's cotangent to its
//! rule, and adds what the rule returns to the cotangents of the operands. The rules record [`Var`] operations; what
//! they record is either kept, and can be differentiated again, or dropped as soon as its value is known.
//!
//! What is carried is a [`Load`]: a cotangent, or one that remembers its addends (`ledger.rs`) or tells paths apart
//! (`spectrum.rs`).

use std::cell::Cell;

use limpid_tensor::{DType, Meta, Tensor};
use smallvec::SmallVec;

use crate::cotangent::{Cotangent, Load, Loads, Pending, Pulled};
use crate::error::Result;
use crate::op::{Cotangents, Derivative, Leaves, Pullback};
use crate::profile::Lane;
use crate::recycled::Recycled;
use crate::scope::Rule;
use crate::tape::{Operand, Operands, ParamId, Tape, no_derivative};
use crate::var::{Edge, Var};

/// The gradients of one scalar by everything it depends on: what [`Tape::backward`] returns.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    /// The tape the leaves are on; 0 if there are none.
    tape: u64,
    /// In order of their nodes.
    leaves: Recycled<(u32, Tensor)>,
    /// In order of their ids.
    parameters: Recycled<(ParamId, OfParameter)>,
    unreached: Vec<String>,
}

#[derive(Clone, Debug)]
struct OfParameter {
    gradient: Tensor,
    /// Σ g², if somebody has asked for it.
    square: Cell<Option<f64>>,
}

impl From<Tensor> for OfParameter {
    fn from(gradient: Tensor) -> OfParameter {
        OfParameter { gradient, square: Cell::new(None) }
    }
}

/// What stands under a key in a list in order of its keys.
fn find<K: Ord + Copy, V>(list: &[(K, V)], key: K) -> Option<usize> {
    list.binary_search_by_key(&key, |(key, _)| *key).ok()
}

impl Gradients {
    /// Those by parameters alone, in order of their ids.
    pub(crate) fn by_parameters(
        parameters: impl Iterator<Item = (ParamId, Tensor)>,
        unreached: &[String],
    ) -> Gradients {
        let parameters = parameters.map(|(id, gradient)| (id, gradient.into())).collect();
        Gradients { parameters, unreached: unreached.to_vec(), ..Gradients::default() }
    }

    /// The gradient by a [`variable`](Tape::variable) or parameter, `None` if the loss does not depend on it.
    ///
    /// # Panics
    /// If `var` is on another tape, or was placed after the tape had been cleared.
    #[track_caller]
    pub fn of(&self, var: Var<'_>) -> Option<&Tensor> {
        let same = self.tape == 0 || self.tape == var.tape().identity();
        assert!(same, "{var:?} is not on the tape, as it was, that these gradients were computed on");
        find(&self.leaves, var.id).map(|at| &self.leaves[at].1)
    }

    /// The gradient by a parameter, `None` if the loss does not depend on it.
    pub fn of_parameter(&self, id: ParamId) -> Option<&Tensor> {
        find(&self.parameters, id).map(|at| &self.parameters[at].1.gradient)
    }

    /// Σ g² of the gradient by each of these parameters, `None` where the loss does not depend on it: what `sum` makes of the
    /// gradients, which it is called with once, at the first time that one of them is asked for. So norms that are written
    /// down and then limited are computed once.
    ///
    /// # Errors
    /// Those of `sum`.
    pub fn squares<E>(
        &self,
        of: &[ParamId],
        sum: impl FnOnce(&[&Tensor]) -> std::result::Result<Vec<f64>, E>,
    ) -> std::result::Result<Vec<Option<f64>>, E> {
        let entry = |id: &ParamId| find(&self.parameters, *id).map(|at| &self.parameters[at].1);
        let found: SmallVec<[Option<&OfParameter>; 64]> = of.iter().map(entry).collect();
        if found.iter().flatten().any(|entry| entry.square.get().is_none()) {
            let gradients: SmallVec<[&Tensor; 64]> =
                found.iter().flatten().map(|entry| &entry.gradient).collect();
            let squares = sum(&gradients)?;
            found.iter().flatten().zip(squares).for_each(|(entry, square)| entry.square.set(Some(square)));
        }
        Ok(found.into_iter().map(|entry| entry?.square.get()).collect())
    }

    /// Replaces the gradient by a parameter: how clipping and accumulation are written.
    pub fn set_parameter(&mut self, id: ParamId, gradient: Tensor) {
        match self.of_parameter_mut(id) {
            Some(old) => *old = gradient,
            None => {
                let at = self.parameters.partition_point(|(other, _)| *other < id);
                self.parameters.insert(at, (id, gradient.into()));
            }
        }
    }

    /// The gradient by a parameter, to be changed.
    pub fn of_parameter_mut(&mut self, id: ParamId) -> Option<&mut Tensor> {
        let at = find(&self.parameters, id)?;
        let entry = &mut self.parameters[at].1;
        entry.square.set(None);
        Some(&mut entry.gradient)
    }

    /// The names of tracked leaves on the tape that the loss does not depend on.
    pub fn unreached(&self) -> &[String] {
        &self.unreached
    }
}

/// Which paths a gradient takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paths {
    /// Every one: the ordinary gradient.
    All,
    /// Those that cross no [branch](Edge::Branch) and no [control](Edge::Control) edge: what the stream itself hands
    /// on, the degree-0 coefficient of the [path spectrum](Tape::spectrum).
    Direct,
}

/// The nodes through which a gradient flows from a result back to some sources.
pub(crate) struct Flow {
    /// Nodes from here to the result may pass it on.
    low: u32,
    passes: Recycled<bool>,
    /// Where it is wanted.
    sources: Recycled<u32>,
    paths: Paths,
}

impl Flow {
    /// Whether a gradient goes by way of this operand.
    fn follows(&self, operand: &Operand) -> bool {
        let open = self.paths == Paths::All || matches!(operand.edge, Edge::Interior | Edge::Skip);
        open && self.contains(operand.id)
    }

    fn contains(&self, id: u32) -> bool {
        match id.checked_sub(self.low) {
            Some(i) => self.passes.get(i as usize).copied().unwrap_or(false),
            None => self.sources.contains(&id),
        }
    }
}

impl Tape {
    /// The gradients of a scalar by every [`variable`](Tape::variable) and parameter it depends on. The backward
    /// program is dropped as it runs.
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If `loss` does not have exactly one element.
    #[track_caller]
    pub fn backward(&self, loss: Var<'_>) -> Result<Gradients> {
        self.expect_scalar("backward", loss);
        self.backward_carrying(loss, || self.value_like(loss, 1.0), |seed| seed, |load| load)
    }

    /// The gradients of `⟨cotangent, y⟩`, as [`backward`](Tape::backward) finds those of a scalar: the pass back from a
    /// result of any shape whose own gradient is known.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    ///
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![1.0f32, 2.0, 3.0], [3]));
    /// let gradients = tape.backward_from(x * x, &Tensor::from_vec(vec![1.0f32, 0.0, 10.0], [3])).unwrap();
    /// assert_eq!(gradients.of(x).unwrap().to_vec::<f32>().unwrap(), [2.0, 0.0, 60.0]);
    /// ```
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If `cotangent` does not have `y`'s shape and dtype.
    #[track_caller]
    pub fn backward_from(&self, y: Var<'_>, cotangent: &Tensor) -> Result<Gradients> {
        self.expect_cotangent("backward_from", y, &cotangent.meta());
        let seed = || cotangent.to(self.device()).map_err(|e| self.backend_error(y, e));
        self.backward_carrying(y, seed, |seed| seed, |load| load)
    }

    /// [`backward`](Tape::backward) from `y`, whose cotangent is the seed: with a load made from it, each leaf's gradient
    /// taken out of what arrives there.
    #[track_caller]
    pub(crate) fn backward_carrying<'t, L: Load<'t>>(
        &'t self,
        y: Var<'_>,
        seed: impl FnOnce() -> Result<Tensor>,
        load: impl FnOnce(Cotangent<'t>) -> L,
        cotangent: impl Fn(L) -> Cotangent<'t>,
    ) -> Result<Gradients> {
        self.expect_differentiable("backward");
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let planned = self.begin_planned_backward(y.id);
        // What a plan keeps to compute other values from, no rule has to read.
        if planned.is_none() && !self.follows_plan() {
            self.drop_unneeded(0, &[y.id]);
        }
        let flow = {
            let nodes = self.nodes.borrow();
            let passes = nodes[..=y.id as usize].iter().map(|node| node.tracked).collect();
            let is_source = |id: &u32| nodes[*id as usize].op.is_none() && nodes[*id as usize].tracked;
            let sources = (0..nodes.len() as u32).filter(is_source).collect();
            Flow { low: 0, passes, sources, paths: Paths::All }
        };
        self.rehearse_start();
        let seed = load(Cotangent::of(seed()?));
        let constant = self.record_aside();
        let swept = self.sweep(y.id, seed, &flow);
        drop((constant, planned));

        let mut swept = swept?;
        let mut leaves = Recycled::new();
        // A sweep comes to its sources from the last to the first.
        for (id, load) in swept.drain(..).rev() {
            if let Some(gradient) = cotangent(load).into_value() {
                leaves.push((id, gradient));
            }
        }
        debug_assert!(leaves.is_sorted_by_key(|(id, _)| *id), "leaves are found in order");
        let placed = self.placed_parameters();
        let at = |node: &u32| find(&leaves, *node).map(|at| leaves[at].1.clone());
        let mut parameters: Recycled<(ParamId, OfParameter)> =
            placed.iter().filter_map(|(node, id)| Some((*id, at(node)?.into()))).collect();
        parameters.sort_unstable_by_key(|(id, _)| *id);
        drop(placed);
        let is_reached = |id: &u32| find(&leaves, *id).is_some();
        let unreached = flow.sources.iter().filter(|id| !is_reached(id)).map(|&id| self.label(id)).collect();
        Ok(Gradients { tape: self.identity(), leaves, parameters, unreached })
    }

    /// The gradient of a scalar by each of `xs`, recorded on the tape, so that it can be differentiated again. Zeros
    /// where `y` does not depend on one.
    ///
    /// # Errors
    /// If something failed, now or before. (On a dry tape the gradients are as dry as the rest.)
    ///
    /// # Panics
    /// If `y` does not have exactly one element.
    #[track_caller]
    pub fn grad<'t>(&'t self, y: Var<'t>, xs: &[Var<'t>]) -> Result<Vec<Var<'t>>> {
        self.expect_scalar("grad", y);
        let seed = self.constant(&self.value_like(y, 1.0)?);
        let cotangents = self.vjp(y, seed, xs)?;
        xs.iter()
            .zip(cotangents)
            .map(|(&x, cotangent)| match cotangent {
                Some(cotangent) => Ok(cotangent),
                None => Ok(self.constant(&self.value_like(x, 0.0)?)),
            })
            .collect()
    }

    /// The vector–Jacobian product `gᵀ·∂y/∂x` for each of `xs`, recorded on the tape; `None` where `y` does not
    /// depend on one.
    ///
    /// # Errors
    /// If something failed, now or before.
    ///
    /// # Panics
    /// If `g` does not have `y`'s shape and dtype.
    #[track_caller]
    pub fn vjp<'t>(&'t self, y: Var<'t>, g: Var<'t>, xs: &[Var<'t>]) -> Result<Vec<Option<Var<'t>>>> {
        self.expect_cotangent("vjp", y, &self.meta(g));
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let flow = self.flow_between(y, xs, Paths::All);
        let found = self.sweep(y.id, Cotangent::Node(g), &flow)?;
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        Ok(xs.iter().map(|x| node_of(&found, x.id)).collect())
    }

    /// What arrives at each of `xs` when `seed` is carried back from `y`, as values: the backward program is dropped as
    /// it runs. `None` where `y` does not depend on one.
    pub(crate) fn carry<'t, L: Load<'t>>(
        &'t self,
        y: Var<'t>,
        seed: L,
        xs: &[Var<'t>],
        paths: Paths,
    ) -> Result<Vec<Option<L>>> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let flow = self.flow_between(y, xs, paths);
        let constant = self.record_aside();
        let swept = self.sweep(y.id, seed, &flow);
        drop(constant);
        let found = swept?;
        let at = |x: &Var<'t>| found.iter().find(|(id, _)| *id == x.id).map(|(_, load)| load.clone());
        Ok(xs.iter().map(at).collect())
    }

    /// The cotangents of `xs` through the nodes recorded from the first one after them up to `y`: how an operation's
    /// expansion stands in for its rule.
    pub(crate) fn pull_through<'t>(
        &'t self,
        y: Var<'t>,
        g: Var<'t>,
        xs: &[Var<'t>],
        wanted: &[bool],
        start: usize,
    ) -> Cotangents<'t> {
        let sources = xs.iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(x, _)| x.id).collect();
        let flow = self.flow(y.id, start as u32, sources, Paths::All);
        match self.sweep(y.id, Cotangent::Node(g), &flow) {
            // An operand that occurs twice gets what flows to it once.
            Ok(found) => (0..xs.len())
                .map(|i| {
                    let first = xs[..i].iter().all(|x| x.id != xs[i].id);
                    if wanted[i] && first { node_of(&found, xs[i].id) } else { None }
                })
                .collect(),
            Err(error) => {
                self.fail(error);
                xs.iter().map(|_| None).collect()
            }
        }
    }

    #[track_caller]
    fn flow_between(&self, y: Var<'_>, xs: &[Var<'_>], paths: Paths) -> Flow {
        xs.iter().for_each(|&x| drop(self.meta(x)));
        let low = xs.iter().map(|x| x.id).min().unwrap_or(y.id).min(y.id);
        self.flow(y.id, low, xs.iter().map(|x| x.id).collect(), paths)
    }

    fn flow(&self, y: u32, low: u32, sources: Recycled<u32>, paths: Paths) -> Flow {
        let nodes = self.nodes.borrow();
        let mut flow = Flow { low, passes: Recycled::new(), sources, paths };
        let mut is_source = Recycled::filled((y + 1).saturating_sub(low) as usize, false);
        for &source in flow.sources.iter().filter(|&&s| s >= low && s <= y) {
            is_source[(source - low) as usize] = true;
        }
        for id in low..=y {
            let node = &nodes[id as usize];
            let reached = !node.stops
                && node.meta.dtype.is_float()
                && node.inputs.iter().any(|operand| flow.follows(operand));
            let carried = reached
                && node.op.as_ref().is_some_and(|op| match op.derivative() {
                    Derivative::Exists => true,
                    Derivative::Stops => false,
                    Derivative::Missing(why) => {
                        no_derivative(&**op, self.scopes.borrow().suffix_of(node.scope), why)
                    }
                });
            let passes = carried || is_source[(id - low) as usize];
            flow.passes.push(passes);
        }
        flow
    }

    /// Carries a load from node `y` to the sources of `flow`.
    fn sweep<'t, L: Load<'t>>(&'t self, y: u32, seed: L, flow: &Flow) -> Result<Recycled<(u32, L)>> {
        let mut found = Recycled::new();
        if !flow.contains(y) {
            return Ok(found);
        }
        let mut sources = Recycled::filled((y + 1).saturating_sub(flow.low) as usize, false);
        for source in flow.sources.iter() {
            if let Some(inside) = source.checked_sub(flow.low).and_then(|i| sources.get_mut(i as usize)) {
                *inside = true;
            }
        }
        let mut pending = Pending::new(flow.low, y);
        // A sweep inside this one, of a rule's expansion, has nothing to do with what is left here.
        let gathers = seed.joins() && flow.low == 0 && self.mutation.is_none();
        let _terms = gathers.then(|| self.gather_terms());
        *pending.slot(y) = Some(seed);
        let has_terms = |id| gathers && self.has_terms(id);
        let joined = |arrived, id| if has_terms(id) { L::joined(arrived, self, id) } else { Ok(arrived) };
        let mut pulled = Loads::new();
        let _scope = self.return_to_scope();
        let sweep = self.begin_sweep();
        let _timed = if sweep.outermost { self.time_pass("backward", Lane::Backward) } else { None };
        for id in (flow.low..=y).rev() {
            if sweep.outermost {
                self.swept_to(id + 1);
            }
            let arrived = pending.slot(id).take();
            if arrived.is_none() && !has_terms(id) {
                continue;
            }
            let watched = if sweep.outermost { self.before_rule(id)? } else { None };
            let Some(load) = joined(arrived, id)? else { continue };
            let load = load.arrived(self, id)?;
            let is_source = sources[(id - flow.low) as usize];
            if is_source {
                found.push((id, load.clone()));
            }
            load.pulled(self, id, flow, &pending, &mut pulled)?;
            for (operand, load) in pulled.drain(..) {
                let slot = pending.slot(operand);
                *slot = Some(match joined(slot.take(), operand)? {
                    Some(earlier) => {
                        let _timed = self.time_sum(operand);
                        earlier.plus(load, self)?
                    }
                    None => load,
                });
            }
            if sweep.outermost {
                let gradient = if is_source { self.nodes.borrow()[id as usize].meta.bytes() } else { 0 };
                self.after_rule(id, watched, gradient)?;
            }
        }
        for (id, load) in pending.below() {
            found.push((id, load.arrived(self, id)?));
        }
        Ok(found)
    }

    /// A node of the outermost sweep is about to hand its cotangent on.
    fn before_rule(&self, id: u32) -> Result<Option<isize>> {
        self.before_planned_rule(id).map_err(|error| self.fail(error))?;
        Ok(self.rehearse_rule())
    }

    /// It has, and `gradient` bytes are where they were wanted.
    fn after_rule(&self, id: u32, watched: Option<isize>, gradient: usize) -> Result<()> {
        self.rehearsed_rule(id, watched, gradient);
        self.after_planned_rule(gradient).map_err(|error| self.fail(error))
    }

    /// Runs the rule of one node, and gives what it makes. It may leave shares where no sum has been `begun`.
    pub(crate) fn pull<'t>(
        &'t self,
        id: u32,
        g: Cotangent<'t>,
        flow: &Flow,
        begun: Option<&dyn Fn(u32) -> bool>,
        give: &mut dyn FnMut(Pulled<'t>),
    ) -> Result<()> {
        let mut inputs = Operands::new();
        let mut wanted: SmallVec<[bool; 8]> = SmallVec::new();
        let mut x: SmallVec<[Var<'t>; 3]> = SmallVec::new();
        let (op, scope) = {
            let nodes = self.nodes.borrow();
            let node = &nodes[id as usize];
            let Some(op) = &node.op else { return Ok(()) };
            for &operand in &node.inputs {
                inputs.push(operand);
                wanted.push(flow.follows(&operand));
                let epoch = nodes[operand.id as usize].epoch;
                x.push(Var { tape: self, id: operand.id, epoch, edge: Edge::Interior });
            }
            if !wanted.contains(&true) {
                return Ok(());
            }
            (op.clone(), node.scope)
        };
        let _timed = self.time_rule(Rule::Vjp, op.name(), scope);
        self.scopes.borrow_mut().enter_rule(scope, Rule::Vjp, op.name());
        let _unseen = self.hooks.suspend();
        let keep = matches!(g, Cotangent::Node(_));
        let mark = self.len();
        let g = match g {
            Cotangent::Node(g) => g,
            Cotangent::Value(g) => self.shared_leaf(g, false, None),
        };
        let outer_rule = self.enter_rule(id);
        let at = Pullback {
            x,
            y: self.var(id),
            g,
            wanted: &wanted,
            start: self.len(),
            leaves: begun
                .filter(|_| !keep && self.gathers_terms())
                .map(|begun| Leaves { operands: &inputs, begun }),
        };
        let mut cotangents = op.vjp(&at);
        self.mutate_vjp(&*op, &at, &mut cotangents);
        let (name, expected, given) = (op.name(), inputs.len(), cotangents.len());
        assert_eq!(expected, given, "{name}: the vjp must return a cotangent, or None, for each operand");
        let mut failed = None;
        for (position, &operand) in inputs.iter().enumerate() {
            let Some(cotangent) = cotangents[position] else { continue };
            let fits = {
                let nodes = self.nodes.borrow();
                self.node_of(&nodes, cotangent).meta == nodes[operand.id as usize].meta
            };
            assert!(
                fits,
                "{name}: a cotangent must have its operand's shape and dtype, {}, found {}",
                self.meta(self.var(operand.id)),
                self.meta(cotangent)
            );
            let is_last =
                || cotangents[position + 1..].iter().flatten().all(|later| later.id != cotangent.id);
            let cotangent = if keep {
                Cotangent::Node(cotangent)
            } else if cotangent.index() >= mark
                && is_last()
                && let Some(value) = self.nodes.borrow_mut()[cotangent.index()].value.take()
            {
                // What the rule recorded is about to be cut off.
                Cotangent::Value(value)
            } else {
                match self.shared_value(cotangent) {
                    Ok(value) => Cotangent::Value(value),
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            };
            give(Pulled { position, operand, cotangent });
        }
        self.leave_rule(outer_rule);
        if !keep {
            self.truncate(mark);
        }
        match failed {
            Some(error) => Err(self.fail(error)),
            None => Ok(()),
        }
    }

    #[track_caller]
    pub(crate) fn expect_differentiable(&self, what: &str) {
        assert!(
            !self.is_inference(),
            "{what}: an inference tape keeps no program to differentiate; use Tape::new()"
        );
    }

    #[track_caller]
    pub(crate) fn expect_cotangent(&self, what: &str, y: Var<'_>, g: &Meta) {
        self.expect_differentiable(what);
        let y = self.meta(y);
        assert!(y == *g, "{what}: the cotangent must have the shape and dtype of the result, {y}, found {g}");
    }

    /// A constant of a value's shape and dtype.
    pub(crate) fn value_like(&self, var: Var<'_>, fill: f64) -> Result<Tensor> {
        let meta = self.meta(var);
        Tensor::full(meta.shape, fill, meta.dtype).to(self.device()).map_err(|e| self.backend_error(var, e))
    }

    #[track_caller]
    pub(crate) fn expect_scalar(&self, what: &str, y: Var<'_>) {
        let meta = self.meta(y);
        assert_eq!(
            meta.shape.elements(),
            1,
            "{what}: the result must have one element, found {}; reduce it, or use vjp with a cotangent",
            meta.shape
        );
        assert!(
            meta.dtype != DType::I64 && meta.dtype != DType::Bool,
            "{what}: {} carries no gradient",
            meta.dtype
        );
    }
}

fn node_of<'t>(found: &[(u32, Cotangent<'t>)], id: u32) -> Option<Var<'t>> {
    found.iter().find_map(|(source, cotangent)| match cotangent {
        Cotangent::Node(var) if *source == id => Some(*var),
        _ => None,
    })
}
