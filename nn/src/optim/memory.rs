//! The walk over a model's weights that every optimiser makes, and what it remembers of each.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::ops::{Add, Div, Mul, Sub};

use bytemuck::Pod;
use limpid_autograd::{Gradients, ParamId};
use limpid_tensor::{
    DType, Descent, Device, Element, Meta, Pace, Rate, Shape, Tensor, WeightStep, bf16, round_to_bf16, widest,
};
use smallvec::SmallVec;

use super::{Group, Groups};
use crate::clip::{check_max_norm, clip_norm, global_norm, norm_and_scale, on_host};
use crate::state_dict::{LoadReport, Mismatch};
use crate::{Error, Parameter, Parameters, Result, Role};

/// A number that optimisers compute in.
pub(super) trait Real:
    Element + Pod + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Correctly rounded, so that every machine agrees.
    fn sqrt(self) -> Self;

    /// The nearest bf16, as a cast rounds.
    fn narrow(self) -> bf16;
}

impl Real for f32 {
    #[inline(always)]
    fn sqrt(self) -> f32 {
        self.sqrt()
    }

    #[inline(always)]
    fn narrow(self) -> bf16 {
        round_to_bf16(self)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn sqrt(self) -> f64 {
        self.sqrt()
    }

    #[inline(always)]
    fn narrow(self) -> bf16 {
        <bf16 as Element>::from_f64(self)
    }
}

/// The formula of an optimiser, element by element.
pub(super) trait Rule {
    /// The names of the tensors it keeps for each weight. They start as zeros.
    fn memory(&self) -> &'static [&'static str];

    /// The same rule in the words of a device that has a kernel for it.
    fn descent(&self) -> Descent;

    /// One step of one weight on the host; `memory` has a slice for each name. Mark it `#[inline(always)]`: it is compiled
    /// for the [widest] vectors.
    fn update<T: Real>(&self, at: At, weight: &mut [T], gradient: &[T], memory: &mut [&mut [T]]);
}

/// What differs between weights and between steps.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// Counted from 1, for each weight by itself: a weight that thaws late starts at 1.
    pub step: u64,
    /// What gradients are multiplied by, if their norm was too large.
    pub scale: Option<f64>,
}

impl At {
    /// A gradient as [`clip_norm`](crate::clip_norm) leaves it: every rule takes its gradients through this.
    #[inline(always)]
    pub fn clip<T: Real>(&self, g: T) -> T {
        // Clipping makes 0 of −0; otherwise 1·g − 0 is g.
        let (scale, zero) = self.scale.map_or((1.0, -0.0), |scale| (scale, 0.0));
        T::from_f64(scale) * g + T::from_f64(zero)
    }
}

/// What is remembered of every weight.
#[derive(Clone, Default)]
pub(super) struct Memory {
    slots: Slots,
    /// Of all gradients of the last step, before they were clipped.
    norm: Option<Tensor>,
}

/// By path, in the order in which a model's weights are visited.
#[derive(Clone, Default)]
struct Slots(Vec<(String, Slot)>);

/// Where the trainable weights of a model lie.
enum Home {
    Host,
    /// All on this one.
    Device(Device),
    Several,
}

/// How the norm of the gradients is limited.
enum Clip {
    Nothing,
    /// The host multiplies them on its way through the weights: they are not written again.
    Scale(f64),
    /// By norm and scale, on the device of all weights.
    There(Tensor),
    /// In these.
    Done(Gradients),
}

/// A weight on a device, and what is remembered of it, lent to a step. Both go back when this is dropped: after the step, an
/// error, or a panic. The weight's copy goes back after the step alone.
struct Lent<'a> {
    weight: &'a mut Parameter,
    slot: &'a mut Slot,
    step: WeightStep,
    is_done: bool,
}

/// Its tensors lie where the last step was made.
#[derive(Clone)]
struct Slot {
    group: Group,
    /// How many steps were made: i64, `[]`.
    steps: Tensor,
    /// Empty until the first step.
    tensors: SmallVec<[Tensor; 2]>,
}

const STEP: &str = "step";

/// The elements that the host updates before it rounds them.
const BLOCK: usize = 1 << 12;

impl Memory {
    /// Changes every trainable weight by `rule` and by gradients whose norm is at most `max_norm`.
    #[track_caller]
    pub fn step(
        &mut self,
        rule: &impl Rule,
        groups: &Groups,
        max_norm: Option<f64>,
        model: &mut dyn Parameters,
        gradients: &Gradients,
        rate: Rate,
    ) -> Result<()> {
        if let Rate::Stored(x) = rate {
            let scalar = Meta { shape: Shape::from([]), dtype: DType::F64 };
            assert_eq!(x.meta(), scalar, "step: the learning rate is no scalar in f64");
        }
        let home = Home::of(model);
        let device = match &home {
            Home::Device(device) => Some(device),
            Home::Host | Home::Several => None,
        };
        let rate = match rate {
            Rate::Stored(x) if device == Some(x.device()) => rate,
            _ => Rate::Number(number(rate)?),
        };
        max_norm.map_or(Ok(()), check_max_norm)?;
        self.prepare(groups, model, gradients)?;
        let clip = match max_norm {
            Some(max_norm) => self.clip(max_norm, model, gradients, &home)?,
            None => Clip::Nothing,
        };
        let gradients = if let Clip::Done(clipped) = &clip { clipped } else { gradients };
        let done = match home {
            // Lists would be made for nothing, in every step.
            Home::Host => BTreeSet::new(),
            _ => {
                let clip = if let Clip::There(clip) = &clip { Some(clip) } else { None };
                self.step_on_devices(rule, model, gradients, Pace { rate, clip })?
            }
        };
        let scale = if let Clip::Scale(scale) = clip { Some(scale) } else { None };
        let (mut outcome, mut order) = (Ok(()), 0);
        model.visit_mut(&mut |weight| {
            if weight.role() != Role::Weight {
                return;
            }
            // One that has been frozen since it came may have none.
            let Some(at) = self.slots.find(weight.path(), order) else { return };
            order = at + 1;
            if outcome.is_err() || !weight.is_trainable() || done.contains(&weight.id()) {
                return;
            }
            let Some(gradient) = gradients.of_parameter(weight.id()) else { return };
            let slot = &mut self.slots.0[at].1;
            outcome = number(rate).and_then(|rate| match weight.value().dtype() {
                DType::F32 => slot.advance::<f32>(rule, weight, gradient, rate, scale),
                _ => slot.advance::<f64>(rule, weight, gradient, rate, scale),
            });
        });
        outcome
    }

    /// The norm of all gradients in the last step that limited it.
    pub fn norm(&self) -> Option<&Tensor> {
        self.norm.as_ref()
    }

    /// Limits the norm of the gradients, wherever the weights are.
    fn clip(
        &mut self,
        max_norm: f64,
        model: &dyn Parameters,
        gradients: &Gradients,
        home: &Home,
    ) -> Result<Clip> {
        match home {
            Home::Host => {
                let norm = global_norm(model, gradients)?;
                self.norm = Some(Tensor::scalar(norm));
                return Ok(if norm > max_norm { Clip::Scale(max_norm / norm) } else { Clip::Nothing });
            }
            Home::Device(device) => {
                if let Some(clip) = norm_and_scale(model, gradients, max_norm, device)? {
                    self.norm = Some(clip.as_strided([], &[], 0));
                    return Ok(Clip::There(clip));
                }
            }
            Home::Several => {}
        }
        let mut clipped = gradients.clone();
        self.norm = Some(Tensor::scalar(clip_norm(model, &mut clipped, max_norm)?));
        Ok(Clip::Done(clipped))
    }

    /// Makes the step of every weight whose device has a kernel for it, all of a device's at once, and says which they are.
    #[track_caller]
    fn step_on_devices(
        &mut self,
        rule: &impl Rule,
        model: &mut dyn Parameters,
        gradients: &Gradients,
        pace: Pace,
    ) -> Result<BTreeSet<ParamId>> {
        let mut done = BTreeSet::new();
        let mut slots: BTreeMap<&str, &mut Slot> =
            self.slots.0.iter_mut().map(|(path, slot)| (path.as_str(), slot)).collect();
        let mut devices: Vec<(Device, Vec<Lent>)> = Vec::new();
        for weight in model.parameters_mut() {
            let device = weight.value().device().clone();
            if device == Device::cpu() || !weight.is_trainable() {
                continue;
            }
            let Some(gradient) = gradients.of_parameter(weight.id()) else { continue };
            let slot = slots.remove(weight.path()).expect("every trainable weight has a slot");
            let lent = Lent::new(weight, slot, gradient)?;
            match devices.iter_mut().find(|(other, _)| *other == device) {
                Some((_, of_device)) => of_device.push(lent),
                None => devices.push((device, vec![lent])),
            }
        }
        for (device, of_device) in &mut devices {
            let mut steps: Vec<&mut WeightStep> = of_device.iter_mut().map(|lent| &mut lent.step).collect();
            if device.backend().descend(rule.descent(), pace, &mut steps).transpose()?.is_none() {
                continue;
            }
            let is_captured = device.backend().is_capturing();
            for lent in of_device {
                lent.is_done = true;
                done.insert(lent.weight.id());
                if is_captured {
                    lent.weight.is_stepped_by_graph();
                }
            }
        }
        Ok(done)
    }

    /// Makes sure that a step can be made, before anything is changed.
    #[track_caller]
    fn prepare(&mut self, groups: &Groups, model: &dyn Parameters, gradients: &Gradients) -> Result<()> {
        let (mut unsupported, mut missing) = (None, Vec::new());
        let (mut all_known, mut all_fit, mut order) = (true, true, 0);
        model.visit(&mut |weight| {
            if weight.role() != Role::Weight {
                return;
            }
            let known = self.slots.find(weight.path(), order);
            order = known.map_or(order, |at| at + 1);
            if !weight.is_trainable() {
                return;
            }
            all_known &= known.is_some();
            if !matches!(weight.value().dtype(), DType::F32 | DType::F64) {
                unsupported = unsupported.or(Some(weight));
            }
            match gradients.of_parameter(weight.id()) {
                Some(gradient) => {
                    all_fit &= misfit(weight, gradient, known.map(|at| &self.slots.0[at].1)).is_none()
                }
                None if groups.missing_allowed() => {}
                None => missing.push(weight.path().to_owned()),
            }
        });
        if let Some(weight) = unsupported {
            return Err(Error::argument("dtype of a weight", "f32 or f64", format!("{weight:?}")));
        }
        if !missing.is_empty() {
            return Err(Error::MissingGradients { paths: missing });
        }
        if !all_known {
            self.resolve(groups, model)?;
        }
        if !all_fit {
            for (order, weight) in weights(model).enumerate().filter(|(_, weight)| weight.is_trainable()) {
                let slot = self.slots.find(weight.path(), order).map(|at| &self.slots.0[at].1);
                if let Some(what) = gradients.of_parameter(weight.id()).and_then(|g| misfit(weight, g, slot))
                {
                    panic!("step: {what}");
                }
            }
        }
        Ok(())
    }

    /// Gives every weight its group, and a slot if it has none.
    #[track_caller]
    fn resolve(&mut self, groups: &Groups, model: &dyn Parameters) -> Result<()> {
        let resolved = groups.resolve(model)?;
        for (order, weight) in weights(model).enumerate() {
            let group = resolved[weight.path()];
            match self.slots.find(weight.path(), order) {
                Some(at) => self.slots.0[at].1.group = group,
                None => {
                    let slot = Slot { group, steps: Tensor::scalar(0i64), tensors: SmallVec::new() };
                    self.slots.0.push((weight.path().to_owned(), slot));
                }
            }
        }
        Ok(())
    }

    /// What [`Optimizer::state`](super::Optimizer::state) returns.
    pub fn save(&self, rule: &impl Rule, model: &dyn Parameters) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for (order, weight) in weights(model).enumerate() {
            let slot = self.slots.find(weight.path(), order).map(|at| &self.slots.0[at].1);
            let steps = slot.map_or_else(|| Tensor::scalar(0i64), |slot| slot.steps.clone());
            state.push((format!("{}.{STEP}", weight.path()), steps));
            let tensors = slot.into_iter().flat_map(|slot| &slot.tensors);
            for (name, tensor) in rule.memory().iter().zip(tensors) {
                state.push((format!("{}.{name}", weight.path()), tensor.clone()));
            }
        }
        state
    }

    /// What [`Optimizer::load_state`](super::Optimizer::load_state) does.
    #[track_caller]
    pub fn load(
        &mut self,
        rule: &impl Rule,
        groups: &Groups,
        model: &dyn Parameters,
        state: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let mut loaded = Memory::default();
        loaded.resolve(groups, model)?;
        let mut report = LoadReport::default();
        for (order, weight) in weights(model).enumerate() {
            let mut take =
                |name: &str, meta: Meta| report.take(state, format!("{}.{name}", weight.path()), meta);
            let Some(steps) = take(STEP, Meta { shape: Shape::from([]), dtype: DType::I64 }) else {
                continue;
            };
            let count = steps.to_vec::<i64>()?[0];
            // A device makes the zeros of a first step that it then refuses.
            let has_begun = count != 0
                || rule.memory().iter().any(|name| state.contains_key(&format!("{}.{name}", weight.path())));
            let names = if has_begun { rule.memory() } else { &[] };
            let tensors = names.iter().filter_map(|name| take(name, weight.meta())).cloned().collect();
            if count < 0 {
                report.mismatched.push(Mismatch {
                    name: format!("{}.{STEP}", weight.path()),
                    expected: "a count".into(),
                    found: count.to_string(),
                });
                continue;
            }
            let at = loaded.slots.find(weight.path(), order).expect("every weight has a slot");
            let slot = &mut loaded.slots.0[at].1;
            (slot.steps, slot.tensors) = (steps.clone(), tensors);
        }
        report.reject_others(state);
        if !report.is_complete() {
            return Err(Error::Load { origin: "optimiser state".into(), report: Box::new(report) });
        }
        *self = loaded;
        Ok(())
    }
}

impl Slots {
    /// Where the slot of a path is: at the place where it is expected, or after a search.
    fn find(&self, path: &str, expected: usize) -> Option<usize> {
        match self.0.get(expected) {
            Some((there, _)) if there == path => Some(expected),
            _ => self.0.iter().position(|(there, _)| there == path),
        }
    }
}

impl Home {
    fn of(model: &dyn Parameters) -> Home {
        let (mut device, mut is_one) = (None, true);
        model.visit(&mut |weight| {
            if weight.is_trainable() {
                let here = weight.value().device();
                is_one &= here == *device.get_or_insert(here);
            }
        });
        match device {
            _ if !is_one => Home::Several,
            Some(device) if *device != Device::cpu() => Home::Device(device.clone()),
            _ => Home::Host,
        }
    }
}

impl<'a> Lent<'a> {
    fn new(weight: &'a mut Parameter, slot: &'a mut Slot, gradient: &Tensor) -> Result<Lent<'a>> {
        let gradient = gradient.to(weight.value().device())?;
        let Group { rate_scale, weight_decay } = slot.group;
        let nothing = Tensor::zeros([0], weight.value().dtype());
        let steps = mem::replace(&mut slot.steps, nothing.clone());
        let (value, copy) = weight.value_and_copy_mut();
        let copy = copy.take_bf16().filter(|_| value.dtype() == DType::F32);
        let value = mem::replace(value, nothing);
        let memory = mem::take(&mut slot.tensors);
        let step = WeightStep { weight: value, gradient, memory, steps, copy, rate_scale, weight_decay };
        Ok(Lent { weight, slot, step, is_done: false })
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let (value, copy) = self.weight.value_and_copy_mut();
        mem::swap(value, &mut self.step.weight);
        copy.keep(self.step.copy.take().filter(|_| self.is_done));
        mem::swap(&mut self.slot.tensors, &mut self.step.memory);
        mem::swap(&mut self.slot.steps, &mut self.step.steps);
    }
}

impl Slot {
    /// One step on the host.
    #[track_caller]
    fn advance<T: Real>(
        &mut self,
        rule: &impl Rule,
        weight: &mut Parameter,
        gradient: &Tensor,
        learning_rate: f64,
        scale: Option<f64>,
    ) -> Result<()> {
        if self.tensors.is_empty() {
            let Meta { shape, dtype } = weight.meta();
            self.tensors.extend(rule.memory().iter().map(|_| Tensor::zeros(&shape, dtype)));
        }
        // Of a device without a kernel for it, a weight is fetched, updated and sent back.
        let device = weight.value().device().clone();
        let gradient = on_host(gradient)?;
        let gradient = gradient.as_slice::<T>().expect("made contiguous on the CPU");
        let steps: &mut [i64] = writable(&mut self.steps)?;
        steps[0] += 1;
        let Group { rate_scale, weight_decay } = self.group;
        let learning_rate = learning_rate * rate_scale;
        let at = At { learning_rate, weight_decay, step: steps[0] as u64, scale };
        let mut memory: SmallVec<[&mut [T]; 2]> = SmallVec::new();
        for tensor in &mut self.tensors {
            memory.push(writable(tensor)?);
        }
        let (value, copy) = weight.value_and_copy_mut();
        let mut rounded = copy.take_bf16().filter(|_| device == Device::cpu());
        let weights = writable::<T>(value)?;
        let mut narrow = rounded.as_mut().map(overwritable);
        // A block is rounded while it is in the caches.
        let block = if narrow.is_some() { BLOCK } else { weights.len().max(1) };
        for start in (0..weights.len()).step_by(block) {
            let within = start..weights.len().min(start + block);
            let mut memory: SmallVec<[&mut [T]; 2]> =
                memory.iter_mut().map(|memory| &mut memory[within.clone()]).collect();
            let (weights, gradient) = (&mut weights[within.clone()], &gradient[within.clone()]);
            let narrow = narrow.as_mut().map(|narrow| &mut narrow[within]);
            widest(
                #[inline(always)]
                || {
                    rule.update(at, weights, gradient, &mut memory);
                    if let Some(narrow) = narrow {
                        narrow.iter_mut().zip(weights).for_each(|(to, w)| *to = w.narrow());
                    }
                },
            );
        }
        copy.keep(rounded);
        if device != Device::cpu() {
            let value = weight.value().to(&device)?;
            weight.set_value(value);
        }
        Ok(())
    }
}

/// The learning rate, read from where it lies.
fn number(rate: Rate) -> Result<f64> {
    let rate = match rate {
        Rate::Number(rate) => rate,
        Rate::Stored(x) => x.item()?,
    };
    if !(rate >= 0.0 && rate.is_finite()) {
        return Err(Error::argument("learning rate", "a finite number from 0", rate));
    }
    Ok(rate)
}

/// What does not fit a weight: its gradient, or what is remembered of it.
fn misfit(weight: &Parameter, gradient: &Tensor, slot: Option<&Slot>) -> Option<String> {
    let value = weight.value();
    let fits = |x: &Tensor| x.shape() == value.shape() && x.dtype() == value.dtype();
    let (what, x) = if !fits(gradient) {
        ("the gradient", gradient)
    } else {
        ("what is remembered", slot?.tensors.iter().find(|x| !fits(x))?)
    };
    let (path, expected, found) = (weight.path(), weight.meta(), x.meta());
    Some(format!("{what} of {path} differs from it: expected {expected}, found {found}"))
}

/// The elements for writing; if something else refers to them, a copy takes their place first.
fn writable<T: Element + Pod>(x: &mut Tensor) -> Result<&mut [T]> {
    if x.as_mut_slice::<T>().is_none() {
        let host = x.to(&Device::cpu())?.contiguous()?;
        *x = Tensor::from_slice(host.as_slice::<T>().expect("made contiguous on the CPU"), x.shape());
    }
    Ok(x.as_mut_slice().expect("a fresh tensor has one reference"))
}

/// The elements for writing, of which none is read before; if something else refers to them, others take their place.
fn overwritable(x: &mut Tensor) -> &mut [bf16] {
    if x.as_mut_slice::<bf16>().is_none() {
        *x = Tensor::zeros(x.shape(), DType::BF16);
    }
    x.as_mut_slice().expect("a fresh tensor has one reference")
}

fn weights(model: &dyn Parameters) -> impl Iterator<Item = &Parameter> {
    model.parameters().into_iter().filter(|p| p.role() == Role::Weight)
}
