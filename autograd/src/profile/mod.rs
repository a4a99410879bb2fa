//! Where did the time go?
//!
//! A profile notes when each piece of work began and how long it took: every operation computed forward, every derivative
//! rule and what it computes, every value computed again. Pieces lie inside each other; a piece's own time is what it took
//! without those inside, so that own times add up to what was noted and never to more than went by.

mod text;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use limpid_tensor::Meta;
use smallvec::SmallVec;

use crate::scope::{Rule, ScopeId};
use crate::tape::Tape;

/// A record of where the time of some steps went: what the tapes that were [given](Tape::with_profile) it did, and
/// [spans](Profile::span) of the program's own. Clones are handles on one record.
///
/// Nothing is noted but while a [step](Profile::step) is under way. Displayed, it is a table in 80 columns: time by kind of
/// work, by operation and by scope.
///
/// Times are those of the calling thread. On a device that only queues its work, as a CUDA device does, they are times of
/// queueing, and the work itself shows where the program next waits for a result. Operations that share a kernel with several
/// results show its time at the first of them.
///
/// ```
/// use limpid_autograd::{Profile, Tape};
/// use limpid_tensor::Tensor;
/// let profile = Profile::new();
/// let tape = Tape::new().with_profile(&profile);
/// let x = tape.variable(&Tensor::from_vec(vec![0.5f64, -1.0], [2]));
/// for step in 0..3 {
///     let _step = profile.step(step);
///     let y = tape.scope("energy", || (x.tanh() * x).sum(&[]));
///     let gradients = tape.backward(y)?;
///     profile.span("optimiser", || gradients.of(x).unwrap().to_f64_vec())?;
/// }
/// let calls = |name| profile.by_op().iter().find(|row| row.name == name).unwrap().calls;
/// assert_eq!((calls("tanh"), calls("∂tanh"), calls("optimiser")), (3, 3, 3));
/// println!("{profile}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Profile(Rc<Recorder>);

struct Recorder {
    origin: Instant,
    /// The numbers of the steps to note.
    wanted: Range<u64>,
    /// Whether such a step is under way.
    recording: Cell<bool>,
    log: RefCell<Log>,
}

#[derive(Default)]
struct Log {
    /// The last is under way while the profile records.
    steps: Vec<Step>,
    /// In the order in which they began.
    events: Vec<Event>,
    /// Those under way, each inside the one before it.
    open: Vec<u32>,
}

/// Times are in nanoseconds since the profile was made.
struct Step {
    number: u64,
    begun: u64,
    took: u64,
}

struct Event {
    what: What,
    scope: Rc<str>,
    lane: Lane,
    /// The one that it lies in.
    parent: Option<u32>,
    begun: u64,
    took: u64,
    /// What of that the events inside took.
    inside: u64,
    flops: u64,
    bytes: u64,
}

#[derive(Clone, PartialEq, Eq)]
enum What {
    Operation(&'static str),
    Rule(Rule, &'static str),
    /// Named by the program.
    Span(Cow<'static, str>),
    /// A scope: its own time is no operation's.
    Scope,
    /// A pass of differentiation, likewise.
    Pass(&'static str),
}

impl Event {
    /// The time that it took itself.
    fn own(&self) -> u64 {
        self.took - self.inside
    }

    /// Whether it is work, and not only what encloses work.
    fn is_work(&self) -> bool {
        !matches!(self.what, What::Scope | What::Pass(_))
    }

    fn name(&self) -> Cow<'_, str> {
        match &self.what {
            What::Operation(name) | What::Pass(name) => (*name).into(),
            What::Rule(rule, op) => format!("{}{op}", rule.prefix()).into(),
            What::Span(name) => (&**name).into(),
            What::Scope => self.scope.rsplit('/').next().unwrap_or_default().into(),
        }
    }
}

/// A kind of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Operations as the program records them.
    Forward,
    /// The rules of backward passes, what they compute, and sums of cotangents.
    Backward,
    /// Values that were dropped and came back.
    Recompute,
    /// Spans of the program's own, rules of forward mode, hashing of what a plan drops.
    Other,
}

impl Lane {
    /// In the order in which they are shown.
    pub const ALL: [Lane; 4] = [Lane::Forward, Lane::Backward, Lane::Recompute, Lane::Other];

    /// The name in tables and traces.
    pub fn name(self) -> &'static str {
        ["forward", "backward", "recompute", "other"][self as usize]
    }
}

/// Pieces of work that have something in common, added up.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// What they have in common.
    pub name: String,
    /// How many there are.
    pub calls: usize,
    /// What they took themselves.
    pub time: Duration,
    /// That time as a part of that of all steps.
    pub share: f64,
    /// That time by the kind of work, in the order of [`Lane::ALL`].
    pub by_lane: [Duration; 4],
    /// Their floating-point operations, as far as [`Op::flops`](crate::Op::flops) counts them.
    pub flops: u64,
    /// The bytes of their operands and results, as if each were read or written once. A view counts too, though it moves
    /// nothing.
    pub bytes: u64,
}

impl Row {
    /// 10⁹ floating-point operations a second; `None` where none are known.
    pub fn gflops_per_second(&self) -> Option<f64> {
        let nanoseconds = self.time.as_nanos() as f64;
        (self.flops > 0 && nanoseconds > 0.0).then(|| self.flops as f64 / nanoseconds)
    }
}

impl Default for Profile {
    fn default() -> Self {
        Profile::new()
    }
}

/// Recording.
impl Profile {
    /// A profile of every step.
    pub fn new() -> Profile {
        Profile::of_steps(0..u64::MAX)
    }

    /// A profile of the steps with these numbers; an empty range notes nothing.
    pub fn of_steps(wanted: Range<u64>) -> Profile {
        let (origin, recording, log) = (Instant::now(), Cell::new(false), RefCell::default());
        Profile(Rc::new(Recorder { origin, wanted, recording, log }))
    }

    /// A profile of ten of so many steps, once caches and pools are warm: the eleventh to the twentieth, or of fewer than
    /// twenty the second half.
    pub fn after_warm_up(steps: u64) -> Profile {
        let begin = (steps / 2).min(10);
        Profile::of_steps(begin..steps.min(begin + 10))
    }

    /// Notes what happens until the result is dropped, if the step of this number is wanted.
    ///
    /// # Panics
    /// If a step is under way.
    #[track_caller]
    pub fn step(&self, number: u64) -> impl Drop + '_ {
        assert!(!self.is_recording(), "step {number}: the step before it is still under way");
        let wanted = self.0.wanted.contains(&number);
        if wanted {
            self.0.recording.set(true);
            let begun = self.now();
            self.0.log.borrow_mut().steps.push(Step { number, begun, took: 0 });
        }
        InStep(wanted.then_some(self))
    }

    /// Runs `f` as a piece of work of this name. What operations inside it take is theirs.
    pub fn span<R>(&self, name: &str, f: impl FnOnce() -> R) -> R {
        let what = || What::Span(name.to_string().into());
        let _timed = self.is_recording().then(|| self.begin(what(), "".into(), Some(Lane::Other), [0, 0]));
        f()
    }

    fn is_recording(&self) -> bool {
        self.0.recording.get()
    }

    fn now(&self) -> u64 {
        self.0.origin.elapsed().as_nanos() as u64
    }

    /// An event begins, of `[flops, bytes]`. Without a lane of its own it has that of the pass, the rule or the scope it lies in.
    fn begin(&self, what: What, scope: Rc<str>, lane: Option<Lane>, [flops, bytes]: [u64; 2]) -> Timed<'_> {
        let mut log = self.0.log.borrow_mut();
        let log = &mut *log;
        let parent = log.open.last().copied();
        let around = || match &log.events[parent? as usize] {
            Event { what: What::Span(_), .. } => None,
            outer => Some(outer.lane),
        };
        let lane = lane.or_else(around).unwrap_or(Lane::Forward);
        let id = log.events.len() as u32;
        log.open.push(id);
        log.events.reserve(1);
        let begun = self.now();
        log.events.push(Event { what, scope, lane, parent, begun, took: 0, inside: 0, flops, bytes });
        Timed { profile: self, id }
    }
}

/// A step under way, if it is wanted.
struct InStep<'a>(Option<&'a Profile>);

impl Drop for InStep<'_> {
    fn drop(&mut self) {
        let Some(profile) = self.0 else { return };
        let now = profile.now();
        profile.0.recording.set(false);
        let mut log = profile.0.log.borrow_mut();
        while let Some(&id) = log.open.last() {
            log.end(id, now);
        }
        let step = log.steps.last_mut().expect("it was begun");
        step.took = now - step.begun;
    }
}

/// An event under way; it ends when this is dropped, by a panic too, and at the latest with its step.
pub(crate) struct Timed<'a> {
    profile: &'a Profile,
    id: u32,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let now = self.profile.now();
        self.profile.0.log.borrow_mut().end(self.id, now);
    }
}

impl Log {
    fn end(&mut self, id: u32, now: u64) {
        if self.open.last() != Some(&id) {
            return; // its step has ended
        }
        self.open.pop();
        let event = &mut self.events[id as usize];
        event.took = now - event.begun;
        let (took, parent) = (event.took, event.parent);
        if let Some(parent) = parent {
            self.events[parent as usize].inside += took;
        }
    }

    /// What an event is counted as: the rules it is computed by, and its name, `∂linear/matmul`.
    fn path(&self, event: &Event) -> String {
        let own = event.name().into_owned();
        self.part_of(event).fold(own, |path, outer| format!("{}/{path}", outer.name()))
    }

    /// The scope an event is counted in: where its outermost rule's operation was recorded.
    fn place(&self, event: &Event) -> Rc<str> {
        self.part_of(event).last().unwrap_or(event).scope.clone()
    }

    /// The rules that this event is part of, and the sum of cotangents, the innermost first.
    fn part_of<'a>(&'a self, event: &'a Event) -> impl Iterator<Item = &'a Event> {
        let outer = |event: &Event| event.parent.map(|parent| &self.events[parent as usize]);
        std::iter::successors(outer(event), move |event| outer(event))
            .take_while(|outer| outer.lane == event.lane && !matches!(outer.what, What::Span(_)))
            .filter(|outer| outer.is_work())
    }

    fn wall(&self) -> u64 {
        self.steps.iter().map(|step| step.took).sum()
    }

    /// All work, added up by what `name` says, the largest time first.
    fn rows(&self, mut name: impl FnMut(&Event) -> String) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let mut place: HashMap<String, usize> = HashMap::new();
        for event in self.events.iter().filter(|event| event.is_work()) {
            let at = *place.entry(name(event)).or_insert_with_key(|name| {
                let (time, by_lane) = (Duration::ZERO, [Duration::ZERO; 4]);
                let row = Row { name: name.clone(), calls: 0, time, share: 0.0, by_lane, flops: 0, bytes: 0 };
                rows.push(row);
                rows.len() - 1
            });
            let (row, own) = (&mut rows[at], Duration::from_nanos(event.own()));
            row.calls += 1;
            row.time += own;
            row.by_lane[event.lane as usize] += own;
            row.flops += event.flops;
            row.bytes += event.bytes;
        }
        let wall = self.wall().max(1) as f64;
        rows.iter_mut().for_each(|row| row.share = row.time.as_nanos() as f64 / wall);
        rows.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.name.cmp(&b.name)));
        rows
    }
}

/// What was found, of the steps that are over.
impl Profile {
    /// The time that all steps took.
    pub fn wall(&self) -> Duration {
        Duration::from_nanos(self.finished().wall())
    }

    /// What of it no piece of work took: recording, dropping values, walking back along the tape, and whatever the program
    /// does outside operations and spans.
    pub fn between(&self) -> Duration {
        let log = self.finished();
        let work = log.events.iter().filter(|event| event.is_work()).map(Event::own);
        Duration::from_nanos(log.wall() - work.sum::<u64>())
    }

    /// By kind of work, those that there are.
    pub fn by_lane(&self) -> Vec<Row> {
        self.finished().rows(|event| event.lane.name().to_string())
    }

    /// By operation. What a rule computes stands under the rule, `∂linear/matmul`; the row `∂linear` is what the rule takes
    /// besides. Values computed again stand under their operation.
    pub fn by_op(&self) -> Vec<Row> {
        let log = self.finished();
        log.rows(|event| log.path(event))
    }

    /// By the scope that recorded the operation, its rule included. What lies in no scope is under the empty name.
    pub fn by_scope(&self) -> Vec<Row> {
        let log = self.finished();
        log.rows(|event| log.place(event).to_string())
    }

    #[track_caller]
    fn finished(&self) -> std::cell::Ref<'_, Log> {
        assert!(!self.is_recording(), "a profile can be read between steps, and one is under way");
        self.0.log.borrow()
    }
}

/// What a tape has timed. Each is `None` unless a profile records.
impl Tape {
    /// Notes in `profile` what this tape does, also after it is [cleared](Tape::clear). Several tapes of one thread can share a
    /// profile. No result depends on it.
    pub fn with_profile(mut self, profile: &Profile) -> Tape {
        self.profile = Some(profile.clone());
        self
    }

    #[inline]
    fn profiled(&self) -> Option<&Profile> {
        self.profile.as_ref().filter(|profile| profile.is_recording())
    }

    /// The operation of node `id` is computed, in a lane of its own if it is not for the first time.
    #[inline]
    pub(crate) fn time_operation(&self, id: u32, lane: Option<Lane>) -> Option<Timed<'_>> {
        self.profiled().map(|profile| {
            let (op, inputs, meta, scope) = {
                let nodes = self.nodes.borrow();
                let node = &nodes[id as usize];
                let inputs = node.inputs.iter().map(|operand| nodes[operand.id as usize].meta.clone());
                let op = node.op.clone().expect("only operations are computed");
                (op, inputs.collect::<SmallVec<[Meta; 3]>>(), node.meta.clone(), node.scope)
            };
            let bytes = inputs.iter().chain([&meta]).map(Meta::bytes).sum::<usize>() as u64;
            let cost = [op.flops(&inputs.iter().collect::<SmallVec<[&Meta; 3]>>(), &meta), bytes];
            profile.begin(What::Operation(op.name()), self.shared_path(scope), lane, cost)
        })
    }

    /// A derivative rule of an operation recorded in `scope` runs.
    #[inline]
    pub(crate) fn time_rule(&self, rule: Rule, op: &'static str, scope: ScopeId) -> Option<Timed<'_>> {
        let begin =
            |profile| Profile::begin(profile, What::Rule(rule, op), self.shared_path(scope), None, [0, 0]);
        self.profiled().map(begin)
    }

    /// Cotangents of node `id` are added, or shares that rules left there computed.
    #[inline]
    pub(crate) fn time_sum(&self, id: u32) -> Option<Timed<'_>> {
        self.profiled().map(|profile| {
            let (elements, bytes, scope) = {
                let node = &self.nodes.borrow()[id as usize];
                (node.meta.shape.elements(), node.meta.bytes(), node.scope)
            };
            let cost = [elements as u64, 3 * bytes as u64];
            let lane = Some(Lane::Backward);
            profile.begin(What::Operation("sum of cotangents"), self.shared_path(scope), lane, cost)
        })
    }

    /// What was dropped, or came back, of node `id` is hashed.
    #[inline]
    pub(crate) fn time_hash(&self, id: u32) -> Option<Timed<'_>> {
        self.profiled().map(|profile| {
            let scope = self.nodes.borrow()[id as usize].scope;
            profile.begin(What::Span("hash".into()), self.shared_path(scope), Some(Lane::Other), [0, 0])
        })
    }

    /// The current scope has opened.
    #[inline]
    pub(crate) fn time_scope(&self) -> Option<Timed<'_>> {
        self.profiled().map(|profile| {
            let scope = self.scopes.borrow().current();
            profile.begin(What::Scope, self.shared_path(scope), None, [0, 0])
        })
    }

    /// A pass of differentiation has begun.
    #[inline]
    pub(crate) fn time_pass(&self, name: &'static str, lane: Lane) -> Option<Timed<'_>> {
        self.profiled().map(|profile| profile.begin(What::Pass(name), "".into(), Some(lane), [0, 0]))
    }

    fn shared_path(&self, scope: ScopeId) -> Rc<str> {
        self.scopes.borrow().shared_path(scope)
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = self.0.log.borrow();
        write!(f, "Profile of {} steps, {} events", log.steps.len(), log.events.len())
    }
}
