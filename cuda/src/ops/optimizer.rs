//! Steps of an optimiser for all weights at once, and the norm of all gradients: `optimizer.cu`.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Descent, Pace, Rate, Result, Tensor, WeightStep};
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

/// A step of every weight, in one launch for those of one dtype and with gradients of one; Adam has another one before.
pub(crate) fn descend(
    cuda: &'static Cuda,
    rule: Descent,
    pace: Pace,
    weights: &mut [&mut WeightStep],
) -> Result<()> {
    if cuda.is_capturing() {
        check_repeatable(cuda, rule, weights)?;
    }
    weights.iter_mut().try_for_each(|step| settle(cuda, rule, step))?;
    // All that may find no memory comes before the first launch, so that no step is half made.
    let mut tables = Vec::new();
    for weight in [DType::F32, DType::F64] {
        for gradient in [DType::F32, DType::BF16, DType::F64] {
            let is_so = |step: &&mut &mut WeightStep| {
                (step.weight.dtype(), step.gradient.dtype()) == (weight, gradient)
            };
            let mut rows: Vec<Weight> =
                weights.iter_mut().filter(is_so).map(|step| Weight::of(step)).collect();
            if !rows.is_empty() {
                tables.push(Table::new(cuda, rule, &mut rows)?);
            }
        }
    }
    tables.iter().try_for_each(|table| step(cuda, rule, pace, table))
}

/// Makes sure that a graph of this step, replayed, is the next step.
fn check_repeatable(cuda: &'static Cuda, rule: Descent, weights: &[&mut WeightStep]) -> Result<()> {
    let here = cuda.device();
    let is_here = |step: &&mut WeightStep| {
        let memory = step.memory.iter().chain([&step.steps]);
        step.memory.len() >= rule.remembers() && memory.into_iter().all(|memory| *memory.device() == here)
    };
    if !weights.iter().all(is_here) {
        return Err(cuda.error(
            "a graph would begin with what the optimiser remembers now in every replay; make the optimiser's first step \
             before the capture",
        ));
    }
    Ok(())
}

/// Brings a step's operands to where a kernel takes them.
fn settle(cuda: &'static Cuda, rule: Descent, step: &mut WeightStep) -> Result<()> {
    let WeightStep { weight, gradient, memory, steps, copy, .. } = step;
    own(cuda, weight)?;
    copy.iter_mut().try_for_each(|copy| own(cuda, copy))?;
    if memory.is_empty() {
        let zeros = |_| copy::assemble(cuda, weight.shape(), weight.dtype(), &[]);
        *memory = (0..rule.remembers()).map(zeros).collect::<Result<_>>()?;
    }
    for memory in memory.iter_mut().chain([steps]) {
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
        return Err(cuda.error(
            "a graph cannot change a weight, or what is remembered of it, that something else refers to; clear the tape \
             and drop clones and checkpoints before the step",
        ));
    }
    *x = copy::contiguous(cuda, x)?;
    Ok(())
}

/// Σ x² of each float tensor: one launch for those of one dtype, whose parts are added here, in order.
pub(crate) fn sums_of_squares(cuda: &'static Cuda, x: &[&Tensor]) -> Result<Vec<f64>> {
    if cuda.is_capturing() {
        return Err(cuda.error(
            "a norm is read while a graph is captured, whose kernels do not run; let the optimiser limit the norm of the \
             gradients, which does not read it",
        ));
    }
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
        cuda.read_fault()?;
        cuda.copy_to_host(bytemuck::cast_slice_mut(&mut values), parts.address)?;
        cuda.raise_fault()?;
        let mut values = values.into_iter();
        for (&i, x) in of_dtype.iter().zip(&contiguous) {
            sums[i] = values.by_ref().take(chunks_in(x)).sum();
        }
    }
    Ok(sums)
}

/// The norm of all gradients together and what brings it to at most `most`, which stay on the device: `Clip` of
/// `optimizer.cu`.
pub(crate) fn norm_and_scale(
    cuda: &'static Cuda,
    gradients: &[(&str, &Tensor)],
    most: f64,
) -> Result<Tensor> {
    let contiguous = gradients.iter().map(|(_, x)| x.contiguous()).collect::<Result<Vec<Tensor>>>()?;
    let chunks: Vec<Chunk> = contiguous.iter().flat_map(chunks_to_read).collect();
    let table = cuda.scratch(size_of_val(&chunks[..]))?;
    cuda.copy_from_host(table.address, bytemuck::cast_slice(&chunks))?;
    let sums = cuda.scratch(8 * chunks.len())?;
    let mut first = 0;
    for of_dtype in contiguous.chunk_by(|a, b| a.dtype() == b.dtype()) {
        let count: usize = of_dtype.iter().map(chunks_in).sum();
        let mut arguments = Arguments::default();
        let behind = |buffer: &Buffer, size: usize| buffer.address + (first * size) as u64;
        arguments.value(behind(&sums, 8)).value(behind(&table, size_of::<Chunk>()));
        let kernel = format!("squares_{}", of_dtype[0].dtype());
        cuda.launch(&OPTIMIZER, &kernel, Grid::new(count, THREADS), &mut arguments)?;
        first += count;
    }
    let mut clip = cuda.empty([2], DType::F64)?;
    let mut arguments = Arguments::default();
    arguments.output(&mut clip).scratch(&sums).value(chunks.len() as i64).value(most);
    let names: Vec<(String, usize)> =
        gradients.iter().zip(&contiguous).map(|((name, _), x)| (name.to_string(), chunks_in(x))).collect();
    cuda.checked(&mut arguments, move |mut chunk| {
        let has_chunk = |(_, count): &&(String, usize)| {
            let is_in = chunk < *count as u64;
            chunk = chunk.saturating_sub(*count as u64);
            is_in
        };
        let whose = names.iter().find(has_chunk).map_or("all weights", |(name, _)| name);
        format!("gradient of {whose}: expected a finite norm; the step has changed nothing")
    })?;
    cuda.launch(&OPTIMIZER, "clip_to_norm", Grid::new(1, THREADS), &mut arguments)?;
    Ok(clip)
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

/// How many they are.
fn chunks_in(x: &Tensor) -> usize {
    x.elements().div_ceil(CHUNK)
}

/// A weight as a step sees it. All tensors are contiguous, and those that are written have no other reference.
pub(crate) struct Weight<'a> {
    pub value: &'a mut Tensor,
    pub gradient: &'a Tensor,
    /// As many as the rule remembers, of the weight's dtype.
    pub memory: Vec<&'a mut Tensor>,
    /// The weight rounded to bf16, written in the same pass.
    pub copy: Option<&'a mut Tensor>,
    /// How many steps were made: i64, `[]`.
    pub steps: &'a mut Tensor,
    /// What the learning rate is multiplied by.
    pub scale: f64,
    pub decay: f64,
}

impl Weight<'_> {
    fn of(step: &mut WeightStep) -> Weight<'_> {
        let WeightStep { weight, gradient, memory, steps, copy, rate_scale, weight_decay } = step;
        let memory = memory.iter_mut().collect();
        Weight {
            value: weight,
            gradient,
            memory,
            copy: copy.as_mut(),
            steps,
            scale: *rate_scale,
            decay: *weight_decay,
        }
    }
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
    owner: u32,
    vector: u16,
    first: u16,
}

/// `Share` of `optimizer.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Share {
    scale: f64,
    decay: f64,
    steps: u64,
}

/// `Rate` of `optimizer.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RateWord {
    at: u64,
    number: f64,
}

impl RateWord {
    fn of(rate: Rate) -> RateWord {
        match rate {
            Rate::Number(number) => RateWord { at: 0, number },
            Rate::Stored(x) => RateWord { at: address_of(x), number: 0.0 },
        }
    }
}

/// Bytes of `AdamStep` of `optimizer.cu`.
const ADAM_STEP: usize = 32;

/// The weights of a model with one dtype of values and one of gradients, in pieces for blocks.
pub(crate) struct Table {
    chunks: Buffer,
    count: usize,
    shares: Buffer,
    weights: usize,
    /// What Adam makes of the count of each weight.
    adam_steps: Option<Buffer>,
    weight: DType,
    gradient: DType,
}

impl Table {
    /// The table of these weights, which must stay where they are while it is used.
    pub(crate) fn new(cuda: &'static Cuda, rule: Descent, weights: &mut [Weight]) -> Result<Table> {
        let dtypes = |w: &Weight| (w.value.dtype(), w.gradient.dtype());
        let (weight, gradient) = weights.first().map_or((DType::F32, DType::F32), dtypes);
        assert!(weights.iter().all(|w| dtypes(w) == (weight, gradient)), "a table has weights of one dtype");
        let share = |w: &mut Weight| Share { scale: w.scale, decay: w.decay, steps: address_of(w.steps) };
        let shares: Vec<Share> = weights.iter_mut().map(share).collect();
        let chunks: Vec<Chunk> = weights.iter_mut().enumerate().flat_map(|(i, w)| chunks_of(i, w)).collect();
        let upload = |bytes: &[u8]| {
            let buffer = cuda.scratch(bytes.len())?;
            cuda.copy_from_host(buffer.address, bytes)?;
            Ok(buffer)
        };
        let is_adam = matches!(rule, Descent::Adam { .. });
        Ok(Table {
            chunks: upload(bytemuck::cast_slice(&chunks))?,
            count: chunks.len(),
            shares: upload(bytemuck::cast_slice(&shares))?,
            weights: shares.len(),
            adam_steps: is_adam.then(|| cuda.scratch(ADAM_STEP * shares.len())).transpose()?,
            weight,
            gradient,
        })
    }

    fn grid(&self) -> Grid {
        Grid::new(self.count, THREADS)
    }
}

/// A weight without elements has one too: its steps are counted.
fn chunks_of(number: usize, w: &mut Weight) -> Vec<Chunk> {
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
            owner: number as u32,
            vector: u16::from(vector),
            first: u16::from(first == 0),
        }
    };
    (0..elements.max(1)).step_by(CHUNK).map(chunk).collect()
}

/// Queues a step of all weights of a table, whose memory is what the rule needs: nothing, the velocity, or both moments.
pub(crate) fn step(cuda: &'static Cuda, rule: Descent, pace: Pace, table: &Table) -> Result<()> {
    let rate = RateWord::of(pace.rate);
    let mut arguments = Arguments::default();
    arguments.scratch(&table.chunks).scratch(&table.shares);
    let name = match (rule, &table.adam_steps) {
        (Descent::Adam { betas: [beta1, beta2], eps, decoupled }, Some(steps)) => {
            let mut before = Arguments::default();
            before.scratch(steps).scratch(&table.shares).value(table.weights as i64).value(rate);
            before.value(beta1).value(beta2).value(i32::from(decoupled));
            let grid = Grid::covering(table.weights, THREADS, usize::MAX);
            cuda.launch(&OPTIMIZER, "adam_steps", grid, &mut before)?;
            arguments.scratch(steps).optional(pace.clip).value(beta1).value(beta2).value(eps);
            "adam"
        }
        (Descent::Momentum { momentum, nesterov }, _) if momentum > 0.0 => {
            arguments.value(rate).optional(pace.clip).value(momentum).value(i32::from(nesterov));
            "momentum"
        }
        _ => {
            arguments.value(rate).optional(pace.clip);
            "sgd"
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
        Descent::Adam { betas: [0.5, 0.75], eps: 1e-3, decoupled: true },
    ];

    /// The learning rate of a step, and what two groups make of it, with their decay.
    const RATE: f64 = 0.3;
    const GROUPS: [[f64; 2]; 2] = [[0.7, 0.0], [1.3, 0.25]];

    /// The rule's memory of one weight.
    type Memory = [Vec<f64>; 2];

    /// One step in f64, from the definitions.
    fn reference(rule: Descent, group: usize, t: i32, w: &mut [f64], g: &[f64], memory: &mut Memory) {
        let [scale, decay] = GROUPS[group];
        let rate = RATE * scale;
        let [first, second] = memory;
        for i in 0..w.len() {
            match rule {
                Descent::Momentum { momentum: 0.0, .. } => w[i] -= rate * (g[i] + decay * w[i]),
                Descent::Momentum { momentum, nesterov } => {
                    let g = g[i] + decay * w[i];
                    first[i] = momentum * first[i] + g;
                    w[i] -= rate * if nesterov { g + momentum * first[i] } else { first[i] };
                }
                Descent::Adam { betas: [beta1, beta2], eps, decoupled } => {
                    let coupled = if decoupled { 0.0 } else { decay };
                    let g = g[i] + coupled * w[i];
                    let kept = if decoupled { 1.0 - rate * decay } else { 1.0 };
                    first[i] = beta1 * first[i] + (1.0 - beta1) * g;
                    second[i] = beta2 * second[i] + (1.0 - beta2) * (g * g);
                    let rate = rate / (1.0 - power(beta1, t));
                    let root = (1.0 - power(beta2, t)).sqrt();
                    w[i] = kept * w[i] - rate * first[i] / (second[i].sqrt() / root + eps);
                }
            }
        }
    }

    /// βᵗ by the kernel's products.
    fn power(mut beta: f64, mut t: i32) -> f64 {
        let mut product = 1.0;
        while t > 0 {
            product *= if t % 2 == 1 { beta } else { 1.0 };
            (beta, t) = (beta * beta, t / 2);
        }
        product
    }

    /// A step by the rate of these tests.
    fn pace(clip: Option<&Tensor>) -> Pace<'_> {
        Pace { rate: Rate::Number(RATE), clip }
    }

    /// A weight on the device, and in f64.
    struct Pair {
        value: Tensor,
        memory: [Tensor; 2],
        copy: Tensor,
        steps: Tensor,
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
                steps: emulated.place(&Tensor::scalar(0i64)),
            }
        }

        fn weight<'a>(&'a mut self, rule: Descent, gradient: &'a Tensor, group: usize) -> Weight<'a> {
            let remembered = rule.remembers();
            let copy = (self.value.dtype() == DType::F32).then_some(&mut self.copy);
            let memory = self.memory.iter_mut().take(remembered).collect();
            let [scale, decay] = GROUPS[group];
            Weight { value: &mut self.value, gradient, memory, copy, steps: &mut self.steps, scale, decay }
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
                    let table = Table::new(emulated.cuda, rule, &mut weights).unwrap();
                    step(emulated.cuda, rule, pace(None), &table).unwrap();
                    for (i, (pair, g)) in pairs.iter_mut().zip(&gradients).enumerate() {
                        let g = g.to_f64_vec().unwrap();
                        reference(rule, i % 2, t, &mut pair.values, &g, &mut pair.memories);
                        let found = emulated.read(Ok(pair.value.clone()));
                        assert_eq!(pair.steps.to_vec::<i64>().unwrap(), [i64::from(t)], "weight {i}");
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
            let named = placed.each_ref().map(|g| ("w", g));
            let clip = norm_and_scale(emulated.cuda, &named, most).unwrap();
            let expected = (most / norm).min(1.0);
            let found = emulated.read(Ok(clip.clone()));
            assert_near(&found, &[norm, expected], DType::F64, 16.0, "norm and scale");
            let mut weights = pairs.iter_mut().zip(&placed).map(|(pair, g)| pair.weight(PLAIN, g, 0));
            let [a, b, c] = [(); 3].map(|()| weights.next().unwrap());
            for mut weights in [vec![a, b], vec![c]] {
                let table = Table::new(emulated.cuda, PLAIN, &mut weights).unwrap();
                step(emulated.cuda, PLAIN, pace(Some(&clip)), &table).unwrap();
            }
            for ((pair, before), g) in pairs.iter().zip(before).zip(&gradients) {
                let g = g.to_f64_vec().unwrap();
                let after: Vec<f64> =
                    before.iter().zip(g).map(|(w, g)| w - RATE * GROUPS[0][0] * g * expected).collect();
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
    fn gradients_that_are_not_finite_change_nothing_and_are_named() {
        let emulated = Emulated::device();
        for (bad, whose) in [
            ([f64::NAN, f64::NAN], "first"),
            ([0.0, f64::INFINITY], "second"),
            ([0.0, f64::NEG_INFINITY], "second"),
            ([1.3e154, 1.3e154], "all weights"),
        ] {
            let mut pair = Pair::new(&emulated, 5, DType::F64);
            let g = bad.map(|bad| emulated.place(&Tensor::from_vec(vec![1.0, 2.0, bad, 3.0, 4.0], [5])));
            let before = emulated.read(Ok(pair.value.clone()));
            let table = Table::new(emulated.cuda, PLAIN, &mut [pair.weight(PLAIN, &g[0], 0)]).unwrap();
            let named = [("first", &g[0]), ("second", &g[1])];
            let clip = norm_and_scale(emulated.cuda, &named, f64::INFINITY).unwrap();
            step(emulated.cuda, PLAIN, pace(Some(&clip)), &table).unwrap();
            let message = clip.to_vec::<f64>().unwrap_err().to_string();
            let expected =
                format!("cuda:0: gradient of {whose}: expected a finite norm; the step has changed nothing");
            assert_eq!(message, expected);
            assert_eq!(emulated.read(Ok(pair.value.clone())), before);
            assert_eq!(pair.steps.to_vec::<i64>().unwrap(), [0]);
            assert_eq!(clip.to_vec::<f64>().unwrap()[1], 0.0);
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn a_rate_is_read_when_the_step_runs() {
        let emulated = Emulated::device();
        let mut pair = Pair::new(&emulated, 4, DType::F64);
        let g = emulated.place(&Tensor::ones([4], DType::F64));
        let before = emulated.read(Ok(pair.value.clone()));
        let table = Table::new(emulated.cuda, PLAIN, &mut [pair.weight(PLAIN, &g, 0)]).unwrap();
        let mut rate = emulated.place(&Tensor::scalar(0.0f64));
        for number in [0.25, 2.0] {
            emulated.cuda.overwrite(&mut rate, &Tensor::scalar(number)).unwrap();
            step(emulated.cuda, PLAIN, Pace { rate: Rate::Stored(&rate), clip: None }, &table).unwrap();
        }
        let after: Vec<f64> = before.iter().map(|w| w - 2.25 * GROUPS[0][0]).collect();
        assert_near(&emulated.read(Ok(pair.value.clone())), &after, DType::F64, 4.0, "two steps");
    }
}
