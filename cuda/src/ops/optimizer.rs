//! Steps of an optimiser for all weights at once, and the norm of all gradients: `optimizer.cu`.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Descent, Result, Tensor, WeightStep};
use smallvec::SmallVec;

use crate::device::{Buffer, Cuda, address_of};
use crate::launch::{Arguments, Grid};
use crate::module::Family;
use crate::ops::copy;

pub(crate) static OPTIMIZER: Family =
    Family { name: "optimizer.cu", text: include_str!("../../kernels/optimizer.cu") };

const THREADS: u32 = 256;

/// Elements of a block: enough to be worth a block, few enough that a small model has blocks for a whole card.
pub(crate) const CHUNK: usize = 1 << 13;

/// A step of every weight, in one launch for those of one dtype.
pub(crate) fn descend(cuda: &'static Cuda, rule: Descent, weights: &mut [&mut WeightStep]) -> Result<()> {
    if cuda.is_capturing() {
        check_repeatable(cuda, rule, weights)?;
    }
    weights.iter_mut().try_for_each(|step| settle(cuda, rule, step))?;
    // All that may find no memory comes before the first launch, so that no step is half made.
    let mut prepared = Vec::new();
    for dtype in [DType::F32, DType::F64] {
        let of_dtype = weights.iter_mut().filter(|step| step.weight.dtype() == dtype);
        let of_dtype: Vec<&mut WeightStep> = of_dtype.map(|step| &mut **step).collect();
        if !of_dtype.is_empty() {
            prepared.push(prepare(cuda, rule, of_dtype)?);
        }
    }
    prepared.iter().try_for_each(|(table, steps)| step(cuda, rule, table, steps, None))
}

/// Makes sure that a graph of this step, replayed, is the next step.
fn check_repeatable(cuda: &'static Cuda, rule: Descent, weights: &[&mut WeightStep]) -> Result<()> {
    if matches!(rule, Descent::Adam { .. }) {
        return Err(
            cuda.error("a graph would repeat the number of Adam's step; capture gradients, and step outside")
        );
    }
    let here = cuda.device();
    let is_here = |step: &&mut WeightStep| {
        step.memory.len() >= rule.remembers() && step.memory.iter().all(|memory| *memory.device() == here)
    };
    if !weights.iter().all(is_here) {
        return Err(cuda.error(
            "a graph would begin with no velocity in every replay; make the optimiser's first step before the capture",
        ));
    }
    Ok(())
}

/// Brings a step's operands to where a kernel takes them.
fn settle(cuda: &'static Cuda, rule: Descent, step: &mut WeightStep) -> Result<()> {
    let WeightStep { weight, gradient, memory, .. } = step;
    own(cuda, weight)?;
    if memory.is_empty() {
        let zeros = |_| copy::assemble(cuda, weight.shape(), weight.dtype(), &[]);
        *memory = (0..rule.remembers()).map(zeros).collect::<Result<_>>()?;
    }
    for memory in memory {
        *memory = memory.to(&cuda.device())?;
        own(cuda, memory)?;
    }
    *gradient = gradient.contiguous()?;
    Ok(())
}

/// Makes a tensor contiguous, in memory that nothing else refers to.
fn own(cuda: &'static Cuda, x: &mut Tensor) -> Result<()> {
    if x.is_alone() && x.layout().is_contiguous() {
        return Ok(());
    }
    if cuda.is_capturing() {
        return Err(cuda.error("a weight that something else refers to cannot be changed by a graph"));
    }
    *x = copy::contiguous(cuda, x)?;
    Ok(())
}

/// The table and the scalars of weights of one dtype.
fn prepare(cuda: &'static Cuda, rule: Descent, weights: Vec<&mut WeightStep>) -> Result<(Table, Steps)> {
    // Weights whose scalars are equal share them.
    let mut groups: Vec<[f64; 4]> = Vec::new();
    let group_of = |scalars: [f64; 4], groups: &mut Vec<[f64; 4]>| {
        groups.iter().position(|other| *other == scalars).unwrap_or_else(|| {
            groups.push(scalars);
            groups.len() - 1
        })
    };
    let mut rows = Vec::new();
    for WeightStep { weight, gradient, memory, learning_rate, weight_decay, step } in weights {
        let group = group_of(scalars(rule, *learning_rate, *weight_decay, *step), &mut groups);
        rows.push(Weight { value: weight, gradient, memory: memory.iter_mut().collect(), copy: None, group });
    }
    let table = Table::new(cuda, &mut rows)?;
    let steps = match rule {
        Descent::Momentum { .. } => {
            let groups: Vec<SgdStep> =
                groups.iter().map(|&[rate, decay, ..]| SgdStep { rate, decay }).collect();
            Steps::new(cuda, &groups)?
        }
        Descent::Adam { .. } => {
            let step = |&[rate, root, coupled, kept]: &[f64; 4]| AdamStep { rate, root, coupled, kept };
            Steps::new(cuda, &groups.iter().map(step).collect::<Vec<AdamStep>>())?
        }
    };
    Ok((table, steps))
}

/// What changes from step to step: of [`SgdStep`] and nothing else, or of [`AdamStep`].
fn scalars(rule: Descent, rate: f64, decay: f64, step: u64) -> [f64; 4] {
    match rule {
        Descent::Momentum { .. } => [rate, decay, 0.0, 0.0],
        Descent::Adam { betas: [beta1, beta2], decoupled, .. } => {
            let correction = |beta: f64| 1.0 - beta.powf(step as f64);
            let (coupled, kept) = if decoupled { (0.0, 1.0 - rate * decay) } else { (decay, 1.0) };
            [rate / correction(beta1), correction(beta2).sqrt(), coupled, kept]
        }
    }
}

/// Σ x² of each float tensor: one launch for those of one dtype, whose parts are added here, in order.
pub(crate) fn sums_of_squares(cuda: &'static Cuda, x: &[&Tensor]) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; x.len()];
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let of_dtype: Vec<usize> = (0..x.len()).filter(|&i| x[i].dtype() == dtype).collect();
        let contiguous = of_dtype.iter().map(|&i| x[i].contiguous()).collect::<Result<Vec<Tensor>>>()?;
        let chunks: Vec<Chunk> = contiguous.iter().flat_map(chunks_to_read).collect();
        if chunks.is_empty() {
            continue;
        }
        let table = cuda.scratch(size_of_val(&chunks[..]))?;
        cuda.copy_from_host(table.address, bytemuck::cast_slice(&chunks))?;
        let parts = cuda.scratch(8 * chunks.len())?;
        let mut arguments = Arguments::default();
        arguments.scratch(&parts).scratch(&table);
        cuda.launch(
            &OPTIMIZER,
            &format!("squares_{dtype}"),
            Grid::new(chunks.len(), THREADS),
            &mut arguments,
        )?;
        let mut values = vec![0.0f64; chunks.len()];
        if !cuda.is_capturing() {
            cuda.read_fault()?;
        }
        cuda.copy_to_host(bytemuck::cast_slice_mut(&mut values), parts.address)?;
        cuda.raise_fault()?;
        let mut values = values.into_iter();
        for (&i, x) in of_dtype.iter().zip(&contiguous) {
            sums[i] = values.by_ref().take(x.elements().div_ceil(CHUNK)).sum();
        }
    }
    Ok(sums)
}

/// The pieces of a contiguous tensor of which only squares are taken.
fn chunks_to_read(x: &Tensor) -> Vec<Chunk> {
    let (address, size, elements) = (address_of(x), x.dtype().size(), x.elements());
    let chunk = |first: usize| Chunk {
        gradient: address + (first * size) as u64,
        length: CHUNK.min(elements - first) as i64,
        ..Chunk::zeroed()
    };
    (0..elements).step_by(CHUNK).map(chunk).collect()
}

/// A weight as a step sees it. All tensors are contiguous, and those that are written have no other reference.
pub(crate) struct Weight<'a> {
    pub value: &'a mut Tensor,
    pub gradient: &'a Tensor,
    /// As many as the rule remembers, of the weight's dtype.
    pub memory: Vec<&'a mut Tensor>,
    /// The weight rounded to bf16, written in the same pass.
    pub copy: Option<&'a mut Tensor>,
    /// The number of its group's scalars.
    pub group: usize,
}

/// `Chunk` of `optimizer.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Chunk {
    weight: u64,
    gradient: u64,
    memory: [u64; 2],
    copy: u64,
    length: i64,
    group: u32,
    vector: u32,
}

/// The weights of a model with one dtype of values and one of gradients, in pieces for blocks.
pub(crate) struct Table {
    chunks: Buffer,
    count: usize,
    weight: DType,
    gradient: DType,
}

impl Table {
    /// The table of these weights, which must stay where they are while it is used.
    pub(crate) fn new(cuda: &'static Cuda, weights: &mut [Weight]) -> Result<Table> {
        let dtypes = |w: &Weight| (w.value.dtype(), w.gradient.dtype());
        let (weight, gradient) = weights.first().map_or((DType::F32, DType::F32), dtypes);
        assert!(weights.iter().all(|w| dtypes(w) == (weight, gradient)), "a table has weights of one dtype");
        let chunks: Vec<Chunk> = weights.iter_mut().flat_map(chunks_of).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&chunks);
        let buffer = cuda.scratch(bytes.len())?;
        cuda.copy_from_host(buffer.address, bytes)?;
        Ok(Table { chunks: buffer, count: chunks.len(), weight, gradient })
    }

    fn grid(&self) -> Grid {
        Grid::new(self.count, THREADS)
    }
}

fn chunks_of(w: &mut Weight) -> Vec<Chunk> {
    let width = 16 / w.value.dtype().size();
    let sizes = [w.value.dtype().size(), w.gradient.dtype().size()];
    let memory: SmallVec<[u64; 2]> = w.memory.iter().map(|m| address_of(m)).collect();
    let copy = w.copy.as_ref().map(|copy| address_of(copy));
    let (value, gradient) = (address_of(w.value), address_of(w.gradient));
    let aligned = |address: u64, size: usize| address.is_multiple_of((width * size) as u64);
    let vector = aligned(value, sizes[0])
        && aligned(gradient, sizes[1])
        && memory.iter().all(|&m| aligned(m, sizes[0]))
        && copy.is_none_or(|copy| aligned(copy, 2));
    let elements = w.value.elements();
    let chunk = |first: usize| {
        let behind = |address: u64, size: usize| address + (first * size) as u64;
        let memory = |m: usize| memory.get(m).map_or(0, |&address| behind(address, sizes[0]));
        Chunk {
            weight: behind(value, sizes[0]),
            gradient: behind(gradient, sizes[1]),
            memory: [memory(0), memory(1)],
            copy: copy.map_or(0, |address| behind(address, 2)),
            length: CHUNK.min(elements - first) as i64,
            group: w.group as u32,
            vector: u32::from(vector),
        }
    };
    (0..elements).step_by(CHUNK).map(chunk).collect()
}

/// What changes from step to step for a group of SGD; `SgdStep` of `optimizer.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SgdStep {
    pub rate: f64,
    pub decay: f64,
}

/// What changes from step to step for a group of Adam; `AdamStep` of `optimizer.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AdamStep {
    /// η/(1 − β₁ᵗ).
    pub rate: f64,
    /// √(1 − β₂ᵗ).
    pub root: f64,
    /// λ where the decay is part of the gradient, else 0.
    pub coupled: f64,
    /// 1 − η·λ where it is not, else 1.
    pub kept: f64,
}

/// Scalars of all groups, in memory of the device: another step writes others, and the same launches read them.
pub(crate) struct Steps(Buffer);

impl Steps {
    pub(crate) fn new<S: Pod>(cuda: &'static Cuda, groups: &[S]) -> Result<Steps> {
        let steps = Steps(cuda.scratch(size_of_val(groups))?);
        steps.set(cuda, groups)?;
        Ok(steps)
    }

    /// Queues a step's scalars, behind the steps before.
    pub(crate) fn set<S: Pod>(&self, cuda: &'static Cuda, groups: &[S]) -> Result<()> {
        cuda.copy_from_host(self.0.address, bytemuck::cast_slice(groups))
    }
}

#[cfg(test)]
/// The norm of all gradients and what they are multiplied by; `Clip` of `optimizer.cu`.
pub(crate) struct Clip(Buffer);

#[cfg(test)]
impl Clip {
    /// Queues finding the norm of all gradients, and the scale that brings it to at most `most`: `∞` leaves them.
    pub(crate) fn new(cuda: &'static Cuda, tables: &[&Table], most: f64) -> Result<Clip> {
        let clip = Clip(cuda.scratch(16)?);
        let count: usize = tables.iter().map(|table| table.count).sum();
        let sums = cuda.scratch(8 * count)?;
        let mut first = 0;
        for table in tables {
            let mut arguments = Arguments::default();
            arguments.value(sums.address + 8 * first as u64).scratch(&table.chunks);
            let kernel = format!("squares_{}", table.gradient);
            cuda.launch(&OPTIMIZER, &kernel, table.grid(), &mut arguments)?;
            first += table.count;
        }
        let mut arguments = Arguments::default();
        arguments.scratch(&clip.0).scratch(&sums).value(count as i64).value(most);
        cuda.launch(&OPTIMIZER, "clip_to_norm", Grid::new(1, THREADS), &mut arguments)?;
        Ok(clip)
    }

    /// Norm and scale; waits for them.
    pub(crate) fn read(&self, cuda: &'static Cuda) -> Result<[f64; 2]> {
        let mut values = [0.0; 2];
        cuda.copy_to_host(bytemuck::cast_slice_mut(&mut values), self.0.address)?;
        Ok(values)
    }
}

/// Queues a step of all weights of a table, whose memory is what the rule needs: nothing, the velocity, or both moments.
pub(crate) fn step(
    cuda: &'static Cuda,
    rule: Descent,
    table: &Table,
    steps: &Steps,
    clip: Option<&Buffer>,
) -> Result<()> {
    let mut arguments = Arguments::default();
    arguments.scratch(&table.chunks).scratch(&steps.0).value(clip.map_or(0, |clip| clip.address));
    let name = match rule {
        Descent::Momentum { momentum: 0.0, .. } => "sgd",
        Descent::Momentum { momentum, nesterov } => {
            arguments.value(momentum).value(i32::from(nesterov));
            "momentum"
        }
        Descent::Adam { betas: [beta1, beta2], eps, .. } => {
            arguments.value(beta1).value(beta2).value(eps);
            "adam"
        }
    };
    let kernel = format!("{name}_{}_{}", table.weight, table.gradient);
    cuda.launch(&OPTIMIZER, &kernel, table.grid(), &mut arguments)
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::{Emulated, assert_near, numbers, sum};
    use super::*;

    const PLAIN: Descent = Descent::Momentum { momentum: 0.0, nesterov: false };

    const RULES: [Descent; 5] = [
        PLAIN,
        Descent::Momentum { momentum: 0.9, nesterov: false },
        Descent::Momentum { momentum: 0.9, nesterov: true },
        Descent::Adam { betas: [0.9, 0.999], eps: 1e-8, decoupled: false },
        Descent::Adam { betas: [0.5, 0.75], eps: 1e-3, decoupled: false },
    ];

    /// Learning rate and weight decay of two groups; the decay of Adam's second is decoupled.
    const GROUPS: [[f64; 2]; 2] = [[0.125, 0.0], [0.5, 0.25]];

    /// The rule's memory of one weight.
    type Memory = [Vec<f64>; 2];

    /// One step in f64, from the definitions.
    fn reference(rule: Descent, group: usize, t: i32, w: &mut [f64], g: &[f64], memory: &mut Memory) {
        let [rate, decay] = GROUPS[group];
        let [first, second] = memory;
        for i in 0..w.len() {
            match rule {
                Descent::Momentum { momentum: 0.0, .. } => w[i] -= rate * (g[i] + decay * w[i]),
                Descent::Momentum { momentum, nesterov } => {
                    let g = g[i] + decay * w[i];
                    first[i] = momentum * first[i] + g;
                    w[i] -= rate * if nesterov { g + momentum * first[i] } else { first[i] };
                }
                Descent::Adam { betas: [beta1, beta2], eps, .. } => {
                    let coupled = if group == 0 { decay } else { 0.0 };
                    let g = g[i] + coupled * w[i];
                    let kept = if group == 0 { 1.0 } else { 1.0 - rate * decay };
                    first[i] = beta1 * first[i] + (1.0 - beta1) * g;
                    second[i] = beta2 * second[i] + (1.0 - beta2) * (g * g);
                    let rate = rate / (1.0 - beta1.powi(t));
                    let root = (1.0 - beta2.powi(t)).sqrt();
                    w[i] = kept * w[i] - rate * first[i] / (second[i].sqrt() / root + eps);
                }
            }
        }
    }

    /// The scalars of step t.
    fn scalars(emulated: &Emulated, rule: Descent, t: i32) -> Steps {
        let Descent::Adam { betas: [beta1, beta2], .. } = rule else {
            return Steps::new(emulated.cuda, &GROUPS.map(|[rate, decay]| SgdStep { rate, decay })).unwrap();
        };
        let group = |group: usize| {
            let [rate, decay] = GROUPS[group];
            AdamStep {
                rate: rate / (1.0 - beta1.powi(t)),
                root: (1.0 - beta2.powi(t)).sqrt(),
                coupled: if group == 0 { decay } else { 0.0 },
                kept: if group == 0 { 1.0 } else { 1.0 - rate * decay },
            }
        };
        Steps::new(emulated.cuda, &[group(0), group(1)]).unwrap()
    }

    /// A weight on the device, and in f64.
    struct Pair {
        value: Tensor,
        memory: [Tensor; 2],
        copy: Tensor,
        values: Vec<f64>,
        memories: Memory,
    }

    impl Pair {
        fn new(emulated: &Emulated, elements: usize, dtype: DType) -> Pair {
            let value = numbers([elements], dtype, 1);
            Pair {
                values: value.to_f64_vec().unwrap(),
                memories: [vec![0.0; elements], vec![0.0; elements]],
                value: emulated.place(&value),
                memory: [0, 1].map(|_| emulated.place(&Tensor::zeros([elements], dtype))),
                copy: emulated.place(&Tensor::zeros([elements], DType::BF16)),
            }
        }

        fn weight<'a>(&'a mut self, rule: Descent, gradient: &'a Tensor, group: usize) -> Weight<'a> {
            let remembered = rule.remembers();
            let copy = (self.value.dtype() == DType::F32).then_some(&mut self.copy);
            let memory = self.memory.iter_mut().take(remembered).collect();
            Weight { value: &mut self.value, gradient, memory, copy, group }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn steps_are_those_of_the_formulas() {
        let emulated = Emulated::device();
        for (dtype, of_gradient) in
            [(DType::F32, DType::F32), (DType::F32, DType::BF16), (DType::F64, DType::F64)]
        {
            for rule in RULES {
                // One block's worth and more, tails, and nothing.
                let mut pairs = [1, 0, 7, 64, CHUNK + 5].map(|n| Pair::new(&emulated, n, dtype));
                for t in 1..=3 {
                    let gradient = |(seed, pair): (usize, &Pair)| {
                        numbers(pair.value.shape(), of_gradient, 10 * t as usize + seed)
                    };
                    let gradients: Vec<Tensor> = pairs.iter().enumerate().map(gradient).collect();
                    let placed: Vec<Tensor> = gradients
                        .iter()
                        .enumerate()
                        .map(|(i, g)| if i == 2 { emulated.place_unaligned(g) } else { emulated.place(g) })
                        .collect();
                    let mut weights: Vec<Weight> = pairs
                        .iter_mut()
                        .zip(&placed)
                        .enumerate()
                        .map(|(i, (pair, g))| pair.weight(rule, g, i % 2))
                        .collect();
                    let table = Table::new(emulated.cuda, &mut weights).unwrap();
                    step(emulated.cuda, rule, &table, &scalars(&emulated, rule, t), None).unwrap();
                    for (i, (pair, g)) in pairs.iter_mut().zip(&gradients).enumerate() {
                        let g = g.to_f64_vec().unwrap();
                        reference(rule, i % 2, t, &mut pair.values, &g, &mut pair.memories);
                        let found = emulated.read(Ok(pair.value.clone()));
                        assert_near(
                            &found,
                            &pair.values,
                            dtype,
                            64.0,
                            &format!("{dtype} weight {i} step {t}"),
                        );
                        if dtype == DType::F64 {
                            assert_eq!(found, pair.values, "the bits of the formula");
                        } else {
                            let rounded = pair.value.cast(DType::BF16);
                            assert_eq!(emulated.read(Ok(pair.copy.clone())), emulated.read(rounded));
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn gradients_are_scaled_to_a_norm() {
        let emulated = Emulated::device();
        let mut pairs = [(3, DType::F32), (CHUNK + 9, DType::F32), (300, DType::F64)]
            .map(|(n, dtype)| Pair::new(&emulated, n, dtype));
        let gradients = [0, 1, 2].map(|i| numbers(pairs[i].value.shape(), pairs[i].value.dtype(), i));
        let placed = gradients.each_ref().map(|g| emulated.place(g));
        let all: Vec<f64> = gradients.iter().flat_map(|g| g.to_f64_vec().unwrap()).collect();
        let norm = sum(all.iter().map(|g| g * g)).sqrt();
        for most in [norm / 8.0, 2.0 * norm] {
            let before = pairs.each_ref().map(|pair| emulated.read(Ok(pair.value.clone())));
            let tables = {
                let mut weights = pairs.iter_mut().zip(&placed).map(|(pair, g)| pair.weight(PLAIN, g, 0));
                let [a, b, c] = [(); 3].map(|()| weights.next().unwrap());
                [Table::new(emulated.cuda, &mut [a, b]), Table::new(emulated.cuda, &mut [c])]
                    .map(Result::unwrap)
            };
            let clip = Clip::new(emulated.cuda, &tables.each_ref(), most).unwrap();
            let [found, scale] = clip.read(emulated.cuda).unwrap();
            let expected = (most / norm).min(1.0);
            assert_near(&[found, scale], &[norm, expected], DType::F64, 16.0, "norm and scale");
            let steps = scalars(&emulated, PLAIN, 1);
            for table in &tables {
                step(emulated.cuda, PLAIN, table, &steps, Some(&clip.0)).unwrap();
            }
            for ((pair, before), g) in pairs.iter().zip(before).zip(&gradients) {
                let g = g.to_f64_vec().unwrap();
                let after: Vec<f64> =
                    before.iter().zip(g).map(|(w, g)| w - GROUPS[0][0] * g * expected).collect();
                assert_near(
                    &emulated.read(Ok(pair.value.clone())),
                    &after,
                    pair.value.dtype(),
                    4.0,
                    "scaled",
                );
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let emulated = Emulated::device();
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut pair = Pair::new(&emulated, 5, DType::F32);
            let g = emulated.place(&Tensor::from_f64(&[1.0, 2.0, bad, 3.0, 4.0], [5], DType::F32));
            let before = emulated.read(Ok(pair.value.clone()));
            let table = Table::new(emulated.cuda, &mut [pair.weight(PLAIN, &g, 0)]).unwrap();
            let clip = Clip::new(emulated.cuda, &[&table], f64::INFINITY).unwrap();
            assert!(!clip.read(emulated.cuda).unwrap()[0].is_finite());
            step(emulated.cuda, PLAIN, &table, &scalars(&emulated, PLAIN, 1), Some(&clip.0)).unwrap();
            assert_eq!(emulated.read(Ok(pair.value.clone())), before);
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn the_next_step_reads_its_own_scalars() {
        let emulated = Emulated::device();
        let mut pair = Pair::new(&emulated, 4, DType::F64);
        let g = emulated.place(&Tensor::ones([4], DType::F64));
        let before = emulated.read(Ok(pair.value.clone()));
        let table = Table::new(emulated.cuda, &mut [pair.weight(PLAIN, &g, 0)]).unwrap();
        let steps = scalars(&emulated, PLAIN, 1);
        step(emulated.cuda, PLAIN, &table, &steps, None).unwrap();
        steps.set(emulated.cuda, &[SgdStep { rate: 2.0, decay: 0.0 }]).unwrap();
        step(emulated.cuda, PLAIN, &table, &steps, None).unwrap();
        let after: Vec<f64> = before.iter().map(|w| w - GROUPS[0][0] - 2.0).collect();
        assert_near(&emulated.read(Ok(pair.value.clone())), &after, DType::F64, 4.0, "two steps");
    }
}
