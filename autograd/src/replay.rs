//! How a step is run again without being written again.
//!
//! Every step of training writes the same tape with other values. A [`Replay`] is that program, forward and backward, as a
//! list of operations: for each which values it reads and which of them nobody reads afterwards. Running it records nothing,
//! infers no shapes and runs no rule. What a step needs in memory is known from the list, and comes from where the step before
//! left it.

use std::any::Any;
use std::cell::Cell;

use limpid_tensor::{Activation, DType, Device, Fused, Inferred, Map, Meta, Tensor};
use smallvec::SmallVec;

use crate::backward::Gradients;
use crate::error::{Error, Result, Site};
use crate::op::{Needs, Op, Purity};
use crate::ops::elementwise::Elementwise;
use crate::ops::matmul::MatMul;
use crate::shared::SharedOp;
use crate::tape::{Node, ParamId, Tape};
use crate::var::Var;

/// A loss, its gradients and other results as a function of inputs and parameters: what [`Tape::replay`] makes of a tape.
///
/// ```
/// use limpid_autograd::{ParamId, Tape};
/// use limpid_tensor::Tensor;
///
/// let number = |v: f64| Tensor::scalar(v);
/// let tape = Tape::new();
/// let x = tape.constant(&number(3.0));
/// let w = tape.parameter(ParamId(1), "w", &number(2.0), false);
/// let mut replay = tape.replay(&[x], w * w * x, &[w * x])?;
///
/// // w = 5, x = 10
/// let step = replay.run(&[&number(10.0)], |give| give(ParamId(1), &number(5.0)))?;
/// assert_eq!((step.loss.item()?, step.others[0].item()?), (250.0, 50.0));
/// assert_eq!(step.gradients.of_parameter(ParamId(1)).unwrap().item()?, 100.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Replay {
    steps: Vec<Step>,
    /// By position on the tape; from one run to the next only those of constants.
    values: Vec<Option<Tensor>>,
    inputs: Vec<Slot>,
    /// In order of their ids.
    parameters: Vec<(ParamId, Slot)>,
    loss: u32,
    gradients: Vec<(ParamId, u32)>,
    unreached: Vec<String>,
    others: Vec<u32>,
    device: Device,
}

/// What one run of a [`Replay`] gives.
#[derive(Debug)]
pub struct Replayed {
    /// The loss.
    pub loss: Tensor,
    /// Its gradients by the parameters.
    pub gradients: Gradients,
    /// The other results, in the order in which they were named.
    pub others: Vec<Tensor>,
}

/// An operation and the places of what it reads and makes.
struct Step {
    op: SharedOp,
    operands: SmallVec<[u32; 3]>,
    result: u32,
    /// Those of the operands that nobody reads afterwards, each once.
    dropped: SmallVec<[u32; 3]>,
    /// Whether the first of them is the first operand and no other, so that the result may take its memory.
    consumes: bool,
    site: Site,
}

/// Where a value from outside goes.
struct Slot {
    place: u32,
    meta: Meta,
    name: String,
}

impl Tape {
    /// The program that led to `loss` and `others`, and that of the gradients by all parameters on the tape that are
    /// learned, to be run again: with other values for `inputs`, which are variables and constants, and for the parameters. All
    /// other constants stay what they are.
    ///
    /// The program is the one that was recorded: what a model decides by looking at values or by counting steps is decided.
    ///
    /// # Errors
    /// If something failed, a value is missing (the tape is dry), or the program draws random numbers, which would be the same
    /// ones every time, or changes something outside the tape.
    ///
    /// # Panics
    /// If `loss` does not have one element, an input is the result of an operation, or the tape follows a plan.
    #[track_caller]
    pub fn replay<'t>(&'t self, inputs: &[Var<'t>], loss: Var<'t>, others: &[Var<'t>]) -> Result<Replay> {
        self.expect_scalar("replay", loss);
        assert!(!self.follows_plan(), "replay: the tape follows a plan, which is of one run");
        let placed: Vec<(ParamId, Var<'t>)> =
            self.placed_parameters().iter().map(|&(node, id)| (id, self.var(node))).collect();
        let learned: Vec<(ParamId, Var<'t>)> =
            placed.iter().copied().filter(|(_, var)| self.is_tracked(*var)).collect();
        let seed = self.constant(&self.value_like(loss, 1.0)?);
        let wanted: Vec<Var<'t>> = learned.iter().map(|(_, var)| *var).collect();
        let found = self.vjp(loss, seed, &wanted)?;
        let label = |var: Var<'_>| self.label(var.id);
        let unreached = wanted.iter().zip(&found).filter(|(_, g)| g.is_none()).map(|(v, _)| label(*v));
        let mut gradients: Vec<(ParamId, u32)> =
            learned.iter().zip(&found).filter_map(|((id, _), g)| Some((*id, (*g)?.id))).collect();
        gradients.sort_unstable();

        let slot = |var: Var<'t>| Slot { place: var.id, meta: self.meta(var), name: label(var) };
        let mut parameters: Vec<(ParamId, Slot)> =
            placed.into_iter().map(|(id, var)| (id, slot(var))).collect();
        parameters.sort_unstable_by_key(|(id, _)| *id);
        let mut replay = Replay {
            steps: Vec::new(),
            values: Vec::new(),
            inputs: inputs.iter().map(|&var| slot(var)).collect(),
            parameters,
            loss: loss.id,
            gradients,
            unreached: unreached.collect(),
            others: others.iter().map(|var| var.id).collect(),
            device: self.device().clone(),
        };
        replay.take_steps(self)?;
        replay.take_constants(self)?;
        Ok(replay)
    }
}

impl Replay {
    /// From the last operation to the first: those whose results are read, and where each value is read last.
    #[track_caller]
    fn take_steps(&mut self, tape: &Tape) -> Result<()> {
        let nodes = tape.nodes.borrow();
        self.values = vec![None; nodes.len()];
        let mut read = vec![false; nodes.len()];
        // What is there before and what is asked for has no last reader.
        let mut stays = vec![false; nodes.len()];
        for place in self.results() {
            (read[place as usize], stays[place as usize]) = (true, true);
        }
        let mut readers = vec![0u32; nodes.len()];
        for operand in nodes.iter().flat_map(|node| &node.inputs) {
            readers[operand.id as usize] += 1;
        }
        for slot in &self.inputs {
            let is_leaf = nodes[slot.place as usize].op.is_none();
            assert!(is_leaf, "replay: the input {} is the result of an operation", slot.name);
        }
        for (id, node) in nodes.iter().enumerate().rev().filter(|(_, node)| node.op.is_some()) {
            let (op, site) = (node.op.as_ref().expect("filtered"), || tape.site(id as u32));
            let refuse = |why: &str| Err(Error::NoReplay { site: site(), why: why.into() });
            match op.purity() {
                Purity::Effect => return refuse("it changes something outside the tape"),
                Purity::Rng if read[id] => return refuse("it would draw the same numbers every time"),
                _ => {}
            }
            if !read[id] {
                continue;
            }
            let is_passed_on = |place: u32| readers[place as usize] == 1 && !stays[place as usize];
            let (op, operands): (SharedOp, SmallVec<[u32; 3]>) =
                match sum_with_product(&nodes, node, is_passed_on) {
                    Some(operands) => (SharedOp::new(ProductAdd), operands.into()),
                    None => (op.clone(), node.inputs.iter().map(|operand| operand.id).collect()),
                };
            let mut dropped = SmallVec::new();
            for &place in &operands {
                let is_last = !std::mem::replace(&mut read[place as usize], true);
                if is_last && nodes[place as usize].op.is_some() && !stays[place as usize] {
                    dropped.push(place);
                }
            }
            let consumes = dropped.first() == operands.first()
                && !dropped.is_empty()
                && !operands[1..].contains(&operands[0]);
            let (result, site) = (id as u32, site());
            self.steps.push(Step { op, operands, result, dropped, consumes, site });
        }
        self.steps.reverse();
        Ok(())
    }

    /// Values of leaves that nobody gives.
    fn take_constants(&mut self, tape: &Tape) -> Result<()> {
        let given: Vec<u32> = self.slots().map(|slot| slot.place).collect();
        let read = self.steps.iter().flat_map(|step| step.operands.iter().copied());
        let read: Vec<u32> = read.chain(self.results()).collect();
        for place in read {
            let is_leaf = tape.nodes.borrow()[place as usize].op.is_none();
            if is_leaf && !given.contains(&place) && self.values[place as usize].is_none() {
                self.values[place as usize] = Some(tape.value(tape.var(place))?);
            }
        }
        Ok(())
    }

    fn results(&self) -> impl Iterator<Item = u32> {
        let gradients = self.gradients.iter().map(|(_, place)| *place);
        std::iter::once(self.loss).chain(gradients).chain(self.others.iter().copied())
    }

    /// What is given at every run.
    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.inputs.iter().chain(self.parameters.iter().map(|(_, slot)| slot))
    }

    /// The number of operations that a run computes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Runs the program with these inputs, in the order in which they were named. `parameters` gives the value of each parameter
    /// by calling what it gets: `|give| model.visit(&mut |p| give(p.id(), p.value()))`. Parameters that the program does not have
    /// may be among them.
    ///
    /// Every result has the bits that recording and differentiating the program would give.
    ///
    /// # Errors
    /// If the device could not compute an operation.
    ///
    /// # Panics
    /// If an input or a parameter is missing, or has another shape, dtype or device than was recorded.
    #[track_caller]
    pub fn run(
        &mut self,
        inputs: &[&Tensor],
        parameters: impl FnOnce(&mut dyn FnMut(ParamId, &Tensor)),
    ) -> Result<Replayed> {
        let (expected, found) = (self.inputs.len(), inputs.len());
        assert_eq!(expected, found, "replay: {expected} inputs were named, found {found}");
        let Replay { inputs: named, parameters: known, values, device, .. } = self;
        let mut place = |slot: &Slot, value: &Tensor| {
            let meta = value.meta();
            assert_eq!(meta, slot.meta, "replay: {} was {}, found {meta}", slot.name, slot.meta);
            let is_here = value.device() == device;
            assert!(is_here, "replay: {} was on {device}, found on {}", slot.name, value.device());
            values[slot.place as usize] = Some(value.clone());
        };
        named.iter().zip(inputs).for_each(|(slot, value)| place(slot, value));
        parameters(&mut |id, value| {
            if let Ok(at) = known.binary_search_by_key(&id, |(id, _)| *id) {
                place(&known[at].1, value);
            }
        });
        for slot in self.slots() {
            let is_there = self.values[slot.place as usize].is_some();
            assert!(is_there, "replay: no value was given for {}", slot.name);
        }
        let computed = self.compute();
        let at = |place: u32| self.values[place as usize].clone().expect("it was computed or given");
        let replayed = computed.map(|()| Replayed {
            loss: at(self.loss),
            gradients: Gradients::by_parameters(
                self.gradients.iter().map(|&(id, place)| (id, at(place))),
                &self.unreached,
            ),
            others: self.others.iter().map(|&place| at(place)).collect(),
        });
        // Nobody shares weights that an optimiser changes in place; and what was computed is the caller's alone.
        let Replay { steps, values, inputs: named, parameters: known, .. } = self;
        let given = named.iter().chain(known.iter().map(|(_, slot)| slot)).map(|slot| slot.place);
        given.chain(steps.iter().map(|step| step.result)).for_each(|place| values[place as usize] = None);
        replayed
    }

    fn compute(&mut self) -> Result<()> {
        let _running = while_running();
        let values = &mut self.values;
        for step in &self.steps {
            let result = step.compute(values);
            let result =
                result.map_err(|e| Error::Backend { site: step.site.clone(), message: e.to_string() })?;
            values[step.result as usize] = Some(result);
            step.dropped.iter().for_each(|&place| values[place as usize] = None);
        }
        Ok(())
    }
}

impl Step {
    fn compute(&self, values: &mut [Option<Tensor>]) -> limpid_tensor::Result<Tensor> {
        let first = if self.consumes { values[self.operands[0] as usize].take() } else { None };
        let operands = &self.operands[usize::from(first.is_some())..];
        let mut x: SmallVec<[&Tensor; 3]> = SmallVec::new();
        for &place in operands {
            x.push(values[place as usize].as_ref().expect("no value is dropped before its last reader"));
        }
        match first {
            Some(first) => self.op.forward_consuming(first, &x),
            None => self.op.forward(&x),
        }
    }
}

/// `r + a·b` of a matrix product that nobody else reads: the cotangent of a stream that a linear layer hands on too. The bits are
/// those of the sum written out.
#[derive(Debug)]
struct ProductAdd;

impl Op for ProductAdd {
    fn name(&self) -> &'static str {
        "matmul_add"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> limpid_tensor::Result<Tensor> {
        let [r, a, b] = x else { unreachable!("matmul_add: made with three operands, found {}", x.len()) };
        let in_one = Tensor::fused(Fused::LinearAdd(Activation::Identity), &[r, a, &b.transpose(0, 1)]);
        in_one.unwrap_or_else(|| {
            let mut sum = a.matmul(b)?;
            sum.add_in_place(r)?;
            Ok(sum)
        })
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }
}

/// For a sum of which one addend is a product of two matrices that is `passed_on`, read by the sum alone: the other addend, and
/// the product's factors. In bf16 the product is rounded before it is added, which one kernel would not do.
fn sum_with_product(nodes: &[Node], sum: &Node, is_passed_on: impl Fn(u32) -> bool) -> Option<[u32; 3]> {
    fn kind(node: &Node) -> Option<&dyn Any> {
        node.op.as_deref().map(|op| op as &dyn Any)
    }
    let is_sum = kind(sum)?.downcast_ref::<Elementwise>() == Some(&Elementwise(Map::Add));
    let [left, right] = sum.inputs[..] else { return None };
    if !is_sum || !matches!(sum.meta.dtype, DType::F32 | DType::F64) || sum.meta.shape.len() != 2 {
        return None;
    }
    [(left.id, right.id), (right.id, left.id)].into_iter().find_map(|(r, product)| {
        let (r_node, product_node) = (&nodes[r as usize], &nodes[product as usize]);
        // What the product is added to is there first: its factors wait for nothing.
        let is_product = kind(product_node)?.is::<MatMul>() && is_passed_on(product) && r < product;
        // Neither addend is broadcast.
        let fits = r_node.meta == sum.meta && product_node.meta == sum.meta;
        let [a, b] = product_node.inputs[..] else { return None };
        (is_product && fits).then_some([r, a.id, b.id])
    })
}

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

fn while_running() -> impl Drop {
    struct Running(bool);
    impl Drop for Running {
        fn drop(&mut self) {
            RUNNING.set(self.0);
        }
    }
    Running(RUNNING.replace(true))
}

/// Whether this thread runs a replay. Operations that remember something of the run that was recorded ask for it.
pub(crate) fn is_running() -> bool {
    RUNNING.get()
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replay of {} operations", self.steps.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of a replay's operations, in order, and whether it has the bits of the recorded value.
    fn names(program: impl for<'t> Fn([Var<'t>; 3]) -> Var<'t>) -> Vec<&'static str> {
        let tape = Tape::new();
        let x = [[2, 3], [2, 4], [4, 3]].map(|shape| {
            Tensor::arange(0.0, 12.0, 0.7, DType::F32).slice(0, 0, shape[0] * shape[1], 1).reshape(shape)
        });
        let x = x.map(|x| x.expect("a view"));
        let vars = [0, 1, 2].map(|i| tape.constant(&x[i]));
        let y = program(vars);
        let mut replay = tape.replay(&vars, y.sum(&[]), &[y]).expect("every operation can be replayed");
        let found = replay.run(&[&x[0], &x[1], &x[2]], |_| {}).expect("every operation can be computed");
        let values = |x: &Tensor| x.to_vec::<f32>().expect("it lies here");
        assert_eq!(values(&found.others[0]), values(&y.value().expect("it was recorded")));
        replay
            .steps
            .iter()
            .map(|step| step.op.name())
            .filter(|name| !["sum", "reshape"].contains(name))
            .collect()
    }

    #[test]
    fn a_product_is_added_in_one_where_nobody_else_reads_it() {
        assert_eq!(names(|[r, a, b]| r + a.matmul(b)), ["matmul_add"]);
        assert_eq!(names(|[r, a, b]| a.matmul(b) + r), ["matmul_add"]);
        assert_eq!(
            names(|[_, a, b]| {
                let p = a.matmul(b);
                p + p
            }),
            ["matmul", "add"]
        );
        assert_eq!(
            names(|[r, a, b]| {
                let p = a.matmul(b);
                (r + p) * p
            }),
            ["matmul", "add", "mul"]
        );
        // What is added comes after the product, or is broadcast.
        assert_eq!(
            names(|[r, a, b]| {
                let p = a.matmul(b);
                p + r.exp()
            }),
            ["matmul", "exp", "add"]
        );
        assert_eq!(names(|[r, a, b]| r.slice(0, 0, 1, 1) + a.matmul(b)), ["slice", "matmul", "add"]);
    }
}
