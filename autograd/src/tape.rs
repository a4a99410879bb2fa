//! The tape: a straight-line program over tensors, written by running it.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::Location;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Device, Inferred, Meta, Tensor};
use smallvec::SmallVec;

use crate::check::mutate::Mutation;
use crate::effects::Note;
use crate::error::{Error, Result, Site};
use crate::hooks::Hooks;
use crate::op::{Derivative, Op};
use crate::ops::cast::CastKept;
use crate::ops::streams::Terms;
use crate::plan::costs::Rehearsed;
use crate::plan::run::Run;
use crate::profile::Profile;
use crate::scope::{ScopeId, Scopes};
use crate::shared::{Shared, SharedOp, SharedTensor};
use crate::value::{Drops, ReadLog};
use crate::var::{Edge, Var};

/// Identifies a parameter that lives outside the tape, so that every use of it meets in one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ParamId(pub u64);

/// A record of a computation: one node per value, in the order in which they were computed.
///
/// Everything else (derivatives, printing, accounting, recomputation) is a function of this one list. A tape is an
/// explicit value; there is no global one.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_tensor::Tensor;
/// let tape = Tape::new();
/// let x = tape.variable(&Tensor::scalar(1.0f64));
/// let a = x + 3.0;
/// let y = a * 2.0;
/// let loss = (y - 10.0) * (y - 10.0);
/// let gradients = tape.backward(loss)?;
/// assert_eq!(gradients.of(x).unwrap().item()?, -8.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tape {
    pub(crate) nodes: RefCell<Vec<Node>>,
    pub(crate) scopes: RefCell<Scopes>,
    parameters: RefCell<Parameters>,
    /// The first failure, and the length of the tape then: what was recorded before it can still be computed.
    failure: RefCell<Option<(u32, Error)>>,
    pub(crate) drops: Drops,
    pub(crate) reads: RefCell<Option<ReadLog>>,
    /// The plan that is followed.
    pub(crate) followed: RefCell<Option<Run>>,
    /// What a backward pass takes, if this tape is only to find out.
    pub(crate) rehearsed: RefCell<Option<Rehearsed>>,
    /// Counts the passes of differentiation begun or ended.
    pass: Cell<u32>,
    /// What should change outside the tape once the program has run.
    pub(crate) updates: RefCell<Vec<Note>>,
    pub(crate) hooks: Hooks,
    pub(crate) profile: Option<Profile>,
    epoch: Cell<u32>,
    /// Shares in cotangents that the sweep under way has not computed, by the node they belong to. `None` where a sweep
    /// carries something else than cotangents that are dropped as it goes.
    pub(crate) terms: RefCell<Option<BTreeMap<u32, Terms>>>,
    /// Tells this tape, since it was last cleared, from every other.
    identity: u64,
    pub(crate) recording: Cell<bool>,
    /// What is recorded is cut off again, and no part of the program.
    pub(crate) aside: Cell<bool>,
    /// What is recorded is constant: no gradient passes it, even if asked for by `grad`.
    constant: Cell<bool>,
    /// The dtype in which parameters are read, if it is another than their own.
    precision: Cell<Option<DType>>,
    /// What is done to the derivative rules that run, when it is asked whether a check would notice.
    pub(crate) mutation: Option<Rc<Mutation>>,
    settings: Settings,
}

struct Settings {
    kind: Kind,
    device: Device,
    training: bool,
    seed: u64,
    step: u64,
    anomaly: bool,
    expanded: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    Dry,
    Inference,
}

/// One value: how it was computed, and the value itself while it is kept.
#[derive(Clone)]
pub(crate) struct Node {
    pub op: Option<SharedOp>,
    pub inputs: Operands,
    pub meta: Meta,
    pub value: Option<SharedTensor>,
    pub scope: ScopeId,
    pub location: &'static Location<'static>,
    pub epoch: u32,
    /// Counts the passes of differentiation begun or ended before it was recorded.
    pub pass: u32,
    pub tracked: bool,
    /// Recorded where gradients were not to pass.
    pub stops: bool,
    pub name: Option<Rc<str>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub id: u32,
    pub edge: Edge,
}

/// The operands of a node.
pub(crate) type Operands = SmallVec<[Operand; 3]>;

#[derive(Default)]
struct Parameters {
    node: HashMap<ParamId, u32>,
    /// In order of their nodes, so that cutting the tape back is popping.
    order: Vec<(u32, ParamId)>,
    /// Those of the parameters before the tape was cleared among them: they come again.
    names: HashMap<ParamId, Rc<str>>,
}

impl Parameters {
    fn name(&mut self, id: ParamId, path: &str) -> Rc<str> {
        let name = self.names.entry(id).or_insert_with(|| path.into());
        if **name != *path {
            *name = path.into();
        }
        name.clone()
    }
}

impl Default for Tape {
    fn default() -> Self {
        Tape::new()
    }
}

/// Making tapes.
impl Tape {
    fn of(kind: Kind) -> Tape {
        Tape {
            nodes: RefCell::default(),
            scopes: RefCell::default(),
            parameters: RefCell::default(),
            failure: RefCell::default(),
            drops: Drops::default(),
            reads: RefCell::default(),
            followed: RefCell::default(),
            rehearsed: RefCell::default(),
            pass: Cell::new(0),
            updates: RefCell::default(),
            hooks: Hooks::default(),
            profile: None,
            epoch: Cell::new(0),
            identity: new_identity(),
            recording: Cell::new(kind != Kind::Inference),
            aside: Cell::new(false),
            terms: RefCell::default(),
            constant: Cell::new(kind == Kind::Inference),
            precision: Cell::new(None),
            mutation: None,
            settings: Settings {
                kind,
                device: Device::cpu(),
                training: kind != Kind::Inference,
                seed: 0,
                step: 0,
                anomaly: false,
                expanded: false,
            },
        }
    }

    /// A tape that computes, records and can differentiate, in training mode.
    pub fn new() -> Tape {
        Tape::of(Kind::Full)
    }

    /// A tape that records shapes and computes nothing: a program that has not run.
    pub fn dry() -> Tape {
        Tape::of(Kind::Dry)
    }

    /// A tape as this one, without its nodes, on another device.
    pub(crate) fn rehearsal(&self, device: Device) -> Tape {
        let tape = Tape::new().with_training(self.is_training()).with_fused_expanded(self.settings.expanded);
        *tape.scopes.borrow_mut() = self.scopes.borrow().clone();
        tape.with_device(device)
    }

    /// A tape that computes in evaluation mode, tracks no gradient, and forgets a scope's nodes when it closes.
    pub fn inference() -> Tape {
        Tape::of(Kind::Inference)
    }

    /// Sets the seed of every random draw on this tape.
    pub fn with_seed(mut self, seed: u64) -> Tape {
        self.settings.seed = seed;
        self
    }

    /// Puts the constants that operations make on their own (scalars, masks, random draws) on a device.
    pub fn with_device(mut self, device: Device) -> Tape {
        self.settings.device = device;
        self
    }

    /// Chooses training mode (dropout draws, batch statistics are updated) or evaluation mode.
    pub fn with_training(mut self, training: bool) -> Tape {
        self.settings.training = training;
        self
    }

    /// Stops at the first operation whose result holds a NaN or an infinity, and says which it was.
    pub fn with_anomaly_detection(mut self, on: bool) -> Tape {
        self.settings.anomaly = on;
        self
    }

    /// Records every fused operation as its expansion into simpler ones: the form to read and to check against.
    pub fn with_fused_expanded(mut self, on: bool) -> Tape {
        self.settings.expanded = on;
        self
    }

    /// Forgets every node and starts step `step`, keeping the memory for the nodes to come. No [`Var`] can outlive
    /// this: the borrow checker sees to it.
    pub fn clear(&mut self, step: u64) {
        self.nodes.get_mut().clear();
        self.scopes.get_mut().restart();
        let Parameters { node, order, names } = self.parameters.get_mut();
        // A tape that is cleared twice has not been used in between.
        if !node.is_empty() {
            names.retain(|id, _| node.contains_key(id));
        }
        node.clear();
        order.clear();
        *self.failure.get_mut() = None;
        *self.reads.get_mut() = None;
        self.updates.get_mut().clear();
        self.drops.restart();
        self.pass.set(0);
        self.restart_run();
        self.epoch.set(self.epoch.get() + 1);
        self.identity = new_identity();
        self.settings.step = step;
    }
}

/// What a tape is.
impl Tape {
    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.borrow().len()
    }

    /// Whether nothing has been recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether modules should behave as in training.
    pub fn is_training(&self) -> bool {
        self.settings.training
    }

    pub(crate) fn detects_anomalies(&self) -> bool {
        self.settings.anomaly
    }

    /// Whether this tape records without computing.
    pub fn is_dry(&self) -> bool {
        self.settings.kind == Kind::Dry
    }

    pub(crate) fn is_inference(&self) -> bool {
        self.settings.kind == Kind::Inference
    }

    /// The training step, as given to [`clear`](Tape::clear).
    pub fn step(&self) -> u64 {
        self.settings.step
    }

    /// A pass of differentiation has begun or ended: what is recorded from here on belongs to another.
    pub(crate) fn count_pass(&self) {
        self.pass.set(self.pass.get() + 1);
    }

    /// The key of the next random draw: a function of seed, step, scope path and the draw's ordinal in its scope, so
    /// that operations recorded elsewhere change no draw.
    pub fn next_key(&self) -> Key {
        let mut scopes = self.scopes.borrow_mut();
        let ordinal = scopes.next_draw();
        Key::new(self.settings.seed).fold(self.settings.step).fold_str(scopes.path()).fold(ordinal)
    }

    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<Error> {
        self.failure.borrow().as_ref().map(|(_, error)| error.clone())
    }

    /// The failure, if node `id` was recorded after it or is what failed.
    pub(crate) fn failure_at(&self, id: u32) -> Option<Error> {
        self.failure.borrow().as_ref().filter(|(end, _)| id + 1 >= *end).map(|(_, error)| error.clone())
    }

    pub(crate) fn fail(&self, error: Error) -> Error {
        if matches!(error, Error::Dry { .. }) {
            return error; // nothing went wrong: there was nothing to give
        }
        let end = self.len() as u32;
        self.failure.borrow_mut().get_or_insert((end, error)).1.clone()
    }

    pub(crate) fn identity(&self) -> u64 {
        self.identity
    }
}

/// Recording.
impl Tape {
    /// Places a value that gradients are wanted for.
    #[track_caller]
    pub fn variable(&self, value: &Tensor) -> Var<'_> {
        assert!(value.dtype().is_float(), "variable: {} carries no gradient", value.dtype());
        self.leaf(value.clone(), !self.is_inference(), None)
    }

    /// Places a value that no gradient flows to.
    #[track_caller]
    pub fn constant(&self, value: &Tensor) -> Var<'_> {
        self.leaf(value.clone(), false, None)
    }

    /// Places a parameter; every further use of the same `id` is the same node, so its gradients add up.
    /// `frozen` parameters are constants under their name.
    #[track_caller]
    pub fn parameter(&self, id: ParamId, path: &str, value: &Tensor, frozen: bool) -> Var<'_> {
        if let Some(&node) = self.parameters.borrow().node.get(&id) {
            return self.var(node);
        }
        let tracked = !self.is_inference() && !frozen;
        let name = self.parameters.borrow_mut().name(id, path);
        let var = self.leaf(value.clone(), tracked, Some(name));
        let mut parameters = self.parameters.borrow_mut();
        parameters.node.insert(id, var.id);
        parameters.order.push((var.id, id));
        var
    }

    /// Places a parameter and reads it in another dtype, in which `rounded` gives the same value: made once by whoever owns
    /// it, it is not made again for every tape. The gradient is the parameter's, in its own dtype; of several uses each is
    /// widened before they add up.
    ///
    /// ```
    /// use limpid_autograd::{ParamId, Tape};
    /// use limpid_tensor::{DType, Tensor};
    /// let w = Tensor::scalar(1.0f32 + 1.0 / 1024.0);
    /// let tape = Tape::new();
    /// let y = tape.parameter_in(DType::BF16, ParamId(7), "w", &w, false, || w.cast(DType::BF16)) * 3.0;
    /// assert_eq!((y.dtype(), y.item()?), (DType::BF16, 3.0));
    /// let gradients = tape.backward(y)?;
    /// assert_eq!(gradients.of_parameter(ParamId(7)).unwrap().dtype(), DType::F32);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn parameter_in(
        &self,
        dtype: DType,
        id: ParamId,
        path: &str,
        value: &Tensor,
        frozen: bool,
        rounded: impl FnOnce() -> limpid_tensor::Result<Tensor>,
    ) -> Var<'_> {
        let master = self.parameter(id, path, value, frozen);
        // What is on the tape may have been bound, or be the value before a step.
        let is_of_value = self.with_node(master, |node| {
            let same = |here: &SharedTensor| {
                here.storage().id() == value.storage().id() && here.layout() == value.layout()
            };
            node.op.is_none() && node.name.as_deref() == Some(path) && node.value.as_ref().is_none_or(same)
        });
        if master.dtype() == dtype || !is_of_value {
            return master.cast(dtype);
        }
        let rounded = if self.is_dry() {
            let meta = Meta { dtype, ..value.meta() };
            self.push(None, SmallVec::new(), meta, false, None)
        } else {
            match rounded() {
                Ok(rounded) => self.constant(&rounded),
                Err(error) => {
                    self.fail(self.backend_error(master, error));
                    return master.cast(dtype);
                }
            }
        };
        self.record(CastKept(dtype), &[master, rounded])
    }

    /// Runs `f`, in which parameters that modules place are read in this dtype: what they compute with them is in it, and the
    /// gradients are in the parameters' own. Buffers are read as they are.
    pub fn in_precision<R>(&self, dtype: DType, f: impl FnOnce() -> R) -> R {
        let _precision = set_while_alive(&self.precision, Some(dtype));
        f()
    }

    /// The dtype in which parameters are to be read here, if [one is set](Tape::in_precision).
    pub fn precision(&self) -> Option<DType> {
        self.precision.get()
    }

    /// Lets a value that is on the tape stand for a parameter: further uses of the same `id` are this value. How a
    /// module becomes a function of its weights.
    ///
    /// # Panics
    /// If the parameter is on the tape already.
    #[track_caller]
    pub fn bind_parameter<'t>(&'t self, id: ParamId, var: Var<'t>) {
        drop(self.meta(var));
        let mut parameters = self.parameters.borrow_mut();
        let earlier = parameters.node.insert(id, var.id);
        assert!(earlier.is_none(), "bind_parameter: {id:?} is on the tape already");
        let at = parameters.order.partition_point(|&(node, _)| node <= var.id);
        parameters.order.insert(at, (var.id, id));
    }

    /// Places a constant on the tape's device.
    #[track_caller]
    pub fn constant_here(&self, value: &Tensor) -> Var<'_> {
        match value.to(&self.settings.device) {
            Ok(value) => self.constant(&value),
            Err(error) => {
                let var = self.constant(value);
                self.fail(self.backend_error(var, error));
                var
            }
        }
    }

    /// A constant scalar on the tape's device.
    #[track_caller]
    pub fn scalar(&self, value: f64, dtype: DType) -> Var<'_> {
        self.constant_here(&Tensor::full([], value, dtype))
    }

    /// The device for constants that operations make on their own.
    pub fn device(&self) -> &Device {
        &self.settings.device
    }

    /// The parameters on the tape, in order of their first use.
    pub(crate) fn placed_parameters(&self) -> Ref<'_, [(u32, ParamId)]> {
        Ref::map(self.parameters.borrow(), |parameters| parameters.order.as_slice())
    }

    #[track_caller]
    pub(crate) fn leaf(&self, value: Tensor, tracked: bool, name: Option<Rc<str>>) -> Var<'_> {
        self.shared_leaf(Shared::holding(value), tracked, name)
    }

    #[track_caller]
    pub(crate) fn shared_leaf(&self, value: SharedTensor, tracked: bool, name: Option<Rc<str>>) -> Var<'_> {
        let meta = value.meta();
        // A number is part of a program's text, so that a dry tape keeps it too.
        let keep = !self.is_dry() || !tracked && value.elements() == 1;
        let looked_at = self.settings.anomaly.then(|| value.clone());
        let var = self.push(None, SmallVec::new(), meta, tracked, name);
        if keep {
            self.nodes.borrow_mut()[var.id as usize].value = Some(value);
        }
        if let Some(value) = looked_at
            && let Err(error) = self.check_finite(var.id, &value, &[])
        {
            self.fail(error);
        }
        self.show_value(var.id);
        var
    }

    /// Records an operation and computes its result.
    ///
    /// # Panics
    /// At the caller's line, if the operation cannot take these operands (shapes, dtypes, devices), if a handle
    /// belongs to another tape or is stale, or if a gradient would have to pass an operation that has no derivative.
    #[track_caller]
    pub fn record<'t>(&'t self, op: impl Op, x: &[Var<'t>]) -> Var<'t> {
        if self.settings.expanded
            && let Some(y) = op.expand(x)
        {
            return y;
        }
        self.record_shared(SharedOp::new(op), x)
    }

    /// [`record`](Tape::record) for an operation that another node may hold as well, as it is.
    #[track_caller]
    pub(crate) fn record_shared<'t>(&'t self, op: SharedOp, x: &[Var<'t>]) -> Var<'t> {
        let mut inputs = Operands::new();
        let mut any_tracked = false;
        let meta = {
            let nodes = self.nodes.borrow();
            let mut metas: SmallVec<[&Meta; 3]> = SmallVec::new();
            for &x in x {
                let node = self.node_of(&nodes, x);
                metas.push(&node.meta);
                any_tracked |= node.tracked;
                inputs.push(Operand { id: x.id, edge: x.edge });
            }
            self.inferred(&*op, op.infer(&metas))
        };
        let tracked = self.recording.get()
            && meta.dtype.is_float()
            && any_tracked
            && match op.derivative() {
                Derivative::Exists => true,
                Derivative::Stops => false,
                Derivative::Missing(why) => no_derivative(&*op, self.scopes.borrow().suffix(), why),
            };
        self.expect_one_device(&*op, x);
        let y = self.push(Some(op), inputs, meta, tracked, None);
        if !self.is_dry() && self.failure.borrow().is_none() {
            self.compute_planned(y.id, || {
                self.run(y.id);
                self.show_value(y.id);
            });
        }
        y
    }

    /// Puts a scope's result in place of the nodes that made it.
    pub(crate) fn place_result(&self, result: Node) -> Var<'_> {
        let var = self.push(None, SmallVec::new(), result.meta, false, result.name);
        let node = &mut self.nodes.borrow_mut()[var.id as usize];
        (node.value, node.location) = (result.value, result.location);
        var
    }

    #[track_caller]
    #[inline]
    fn inferred(&self, op: &dyn Op, inferred: Inferred) -> Meta {
        inferred.unwrap_or_else(|message| {
            let name = op.name();
            let message = message.strip_prefix(name).unwrap_or(&message);
            let message = message.strip_prefix(':').unwrap_or(message).trim_start();
            panic!("{name}{}: {message}", self.scopes.borrow().suffix())
        })
    }

    /// Adds a node without its value.
    #[track_caller]
    fn push(
        &self,
        op: Option<SharedOp>,
        inputs: Operands,
        meta: Meta,
        tracked: bool,
        name: Option<Rc<str>>,
    ) -> Var<'_> {
        let mut nodes = self.nodes.borrow_mut();
        let id = u32::try_from(nodes.len()).expect("a tape holds at most 2³² nodes");
        let (scope, epoch) = (self.scopes.borrow().current(), self.epoch.get());
        let location = Location::caller();
        let (stops, pass) = (self.constant.get(), self.pass.get());
        nodes.push(Node {
            op,
            inputs,
            meta,
            value: None,
            scope,
            location,
            epoch,
            pass,
            tracked,
            stops,
            name,
        });
        drop(nodes);
        self.expect_planned(id);
        Var { tape: self, id, epoch, edge: Edge::Interior }
    }

    #[track_caller]
    fn expect_one_device(&self, op: &dyn Op, x: &[Var<'_>]) {
        if x.len() < 2 {
            return;
        }
        let nodes = self.nodes.borrow();
        let mut devices = x.iter().filter_map(|x| Some(nodes[x.id as usize].value.as_ref()?.device()));
        let Some(first) = devices.next() else { return };
        // A rule may place tensors of its own, which no phantom stands in for.
        if self.rehearsed.borrow().is_some() {
            return;
        }
        if let Some(other) = devices.find(|device| *device != first) {
            let (name, scope) = (op.name(), self.scopes.borrow().suffix());
            panic!("{name}{scope}: operands are on different devices, {first} and {other}");
        }
    }

    /// Computes the value of a node just recorded.
    fn run(&self, id: u32) {
        let _timed = self.time_operation(id, None);
        if let Err(error) = self.try_run(id) {
            self.fail(error);
        }
    }

    fn try_run(&self, id: u32) -> Result<()> {
        let value = match self.run_in_place(id) {
            Some(value) => value,
            None => self.run_apart(id)?,
        };
        let value = match value {
            Ok(value) => value,
            Err(error) => {
                let result = self.rehearsed_result(id, error);
                Shared::holding(result.map_err(|e| self.backend_error(self.var(id), e))?)
            }
        };
        let node = &mut self.nodes.borrow_mut()[id as usize];
        let name = || node.op.as_deref().map(|op| op.name()).unwrap_or_default();
        debug_assert_eq!(value.meta(), node.meta, "{} infers wrongly", name());
        node.value = Some(value);
        Ok(())
    }

    /// Computes a node from operands where they lie. `None` if one has to be made again, or somebody looks at them or
    /// writes down who reads what.
    #[inline]
    fn run_in_place(&self, id: u32) -> Option<limpid_tensor::Result<SharedTensor>> {
        if self.settings.anomaly || self.reads.borrow().is_some() {
            return None;
        }
        let nodes = self.nodes.borrow();
        let node = &nodes[id as usize];
        let mut operands: SmallVec<[&Tensor; 3]> = SmallVec::new();
        for operand in &node.inputs {
            operands.push(nodes[operand.id as usize].value.as_deref()?);
        }
        Some(node.op.as_ref().expect("only operations are run").forward(&operands).map(Shared::holding))
    }

    /// The same with operands of its own.
    fn run_apart(&self, id: u32) -> Result<limpid_tensor::Result<SharedTensor>> {
        let op = self.nodes.borrow()[id as usize].op.clone().expect("only operations are run");
        let operands = self.operands(id)?;
        let operands = tensors(&operands);
        let value = op.forward(&operands);
        if self.settings.anomaly
            && let Ok(value) = &value
        {
            self.check_finite(id, value, &operands)?;
        }
        Ok(value.map(Shared::holding))
    }

    pub(crate) fn check_finite(&self, id: u32, value: &Tensor, operands: &[&Tensor]) -> Result<()> {
        if !value.dtype().is_float() {
            return Ok(());
        }
        let to_f64 = |x: &Tensor| x.to_f64_vec().map_err(|e| self.backend_error(self.var(id), e));
        let values = to_f64(value)?;
        let Some(element) = values.iter().position(|v| !v.is_finite()) else { return Ok(()) };
        let mut described = Vec::new();
        let inputs = self.nodes.borrow()[id as usize].inputs.clone();
        for (operand, x) in inputs.iter().zip(operands) {
            let values = to_f64(x)?;
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let nans = values.iter().filter(|v| v.is_nan()).count();
            let nans = if nans > 0 { format!(" and {nans} NaN") } else { String::new() };
            described.push(format!(
                "{} {} in [{low:.3e}, {high:.3e}]{nans}",
                self.label(operand.id),
                x.meta()
            ));
        }
        Err(Error::NonFinite {
            site: self.site(id),
            found: values[element],
            element,
            operands: if described.is_empty() { "none".into() } else { described.join(", ") },
        })
    }

    /// Runs `f` without tracking gradients: what it records is constant.
    pub fn without_gradients<R>(&self, f: impl FnOnce() -> R) -> R {
        let _constant = (self.stop_recording(), set_while_alive(&self.constant, true));
        f()
    }

    /// While the result lives, what is recorded is not tracked.
    pub(crate) fn stop_recording(&self) -> impl Drop + '_ {
        set_while_alive(&self.recording, false)
    }

    /// While the result lives, what is recorded is not tracked, and will be cut off again.
    pub(crate) fn record_aside(&self) -> (impl Drop + '_, impl Drop + '_) {
        (self.stop_recording(), set_while_alive(&self.aside, true))
    }

    /// Cuts the tape back to its first `len` nodes. Handles on the others become stale.
    pub(crate) fn truncate(&self, len: usize) {
        while self.len() > len {
            let mut nodes = self.nodes.borrow_mut();
            let last = nodes.len() - 1;
            let op = nodes[last].op.take();
            nodes.truncate(last);
            drop(nodes);
            // Outside the borrow: an operation may be anybody's code. (What a device holds is sent between threads: no tape.)
            drop(op);
        }
        let mut parameters = self.parameters.borrow_mut();
        while parameters.order.last().is_some_and(|&(node, _)| node as usize >= len) {
            let (_, id) = parameters.order.pop().expect("just looked at");
            parameters.node.remove(&id);
        }
        self.epoch.set(self.epoch.get() + 1);
    }
}

/// Handles and nodes.
impl Tape {
    /// The value at a position: what [`index`](Var::index) was asked for, or a report names.
    ///
    /// # Panics
    /// If the tape is shorter.
    #[track_caller]
    pub fn at(&self, index: usize) -> Var<'_> {
        assert!(index < self.len(), "at: no node {index} on a tape of {}", self.len());
        self.var(index as u32)
    }

    pub(crate) fn var(&self, id: u32) -> Var<'_> {
        let epoch = self.nodes.borrow()[id as usize].epoch;
        Var { tape: self, id, epoch, edge: Edge::Interior }
    }

    #[track_caller]
    #[inline]
    pub(crate) fn with_node<R>(&self, var: Var<'_>, f: impl FnOnce(&Node) -> R) -> R {
        f(self.node_of(&self.nodes.borrow(), var))
    }

    #[track_caller]
    #[inline]
    pub(crate) fn node_of<'a>(&self, nodes: &'a [Node], var: Var<'_>) -> &'a Node {
        assert!(std::ptr::eq(self, var.tape), "{var:?} belongs to another tape");
        match nodes.get(var.id as usize) {
            Some(node) if node.epoch == var.epoch => node,
            _ => panic!("{var:?} is stale: the tape has dropped the node it refers to"),
        }
    }

    #[track_caller]
    pub(crate) fn meta(&self, var: Var<'_>) -> Meta {
        self.with_node(var, |node| node.meta.clone())
    }

    #[track_caller]
    pub(crate) fn is_tracked(&self, var: Var<'_>) -> bool {
        self.with_node(var, |node| node.tracked)
    }

    pub(crate) fn site(&self, id: u32) -> Site {
        let nodes = self.nodes.borrow();
        let node = &nodes[id as usize];
        Site {
            op: match (&node.op, &node.name) {
                (Some(op), _) => op.name().into(),
                (None, Some(name)) => name.to_string(),
                (None, None) => "leaf".into(),
            },
            scope: self.scopes.borrow().path_of(node.scope).into(),
            location: node.location,
        }
    }

    /// How a node is called in print: its name, or `%` and its position.
    pub(crate) fn label(&self, id: u32) -> String {
        match &self.nodes.borrow()[id as usize].name {
            Some(name) => name.to_string(),
            None => format!("%{id}"),
        }
    }

    pub(crate) fn backend_error(&self, var: Var<'_>, error: limpid_tensor::Error) -> Error {
        Error::Backend { site: self.site(var.id), message: error.to_string() }
    }
}

/// The tensors that a short list refers to.
pub(crate) fn tensors(list: &[SharedTensor]) -> SmallVec<[&Tensor; 3]> {
    let mut tensors = SmallVec::new();
    list.iter().for_each(|tensor| tensors.push(&**tensor));
    tensors
}

/// Sets a flag until the result is dropped, by a panic too.
pub(crate) fn set_while_alive<T: Copy>(flag: &Cell<T>, value: T) -> impl Drop + '_ {
    struct Restore<'a, T: Copy>(&'a Cell<T>, T);
    impl<T: Copy> Drop for Restore<'_, T> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    Restore(flag, flag.replace(value))
}

/// Panics because a gradient cannot pass.
#[track_caller]
pub(crate) fn no_derivative(op: &dyn Op, scope: String, why: &str) -> ! {
    panic!(
        "{}{scope}: a gradient would have to pass, and the operation has no derivative ({why}); \
         use detach() on its operand if it should be a constant",
        op.name()
    )
}

fn new_identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tape of {} nodes", self.len())
    }
}
