//! One case: its operands, what is queued again and again, and what counts as its work.

use limpid_cuda::Cuda;
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Device, Result, Tensor};

use crate::clock::{Clock, Time};
use crate::report::{Goal, Rate, Row};

/// How large operands are.
pub struct Sizes {
    /// Bytes of the largest operand of a case that memory bounds.
    pub bytes: usize,
    /// Bytes that pass before the same operands come again, so that no cache has them any more.
    rotation: usize,
    /// Sides of square matrices that are multiplied.
    pub sides: [usize; 3],
    /// How many 4×4 matrices Sinkhorn normalises.
    pub matrices: usize,
    /// Layers of networks that are trained.
    pub layers: usize,
    /// What numbers of columns are divided by.
    narrower: usize,
}

impl Sizes {
    /// The largest cache of the cards that kernels are compiled for has 126 MB.
    pub fn of_card(bytes: u64) -> Sizes {
        Sizes {
            bytes: bytes as usize,
            rotation: 512 << 20,
            sides: [1024, 4096, 8192],
            matrices: 32_768,
            layers: 20,
            narrower: 1,
        }
    }

    /// The same cases for an emulator, in seconds.
    pub fn tiny() -> Sizes {
        Sizes { bytes: 16 << 10, rotation: 0, sides: [16, 32, 64], matrices: 40, layers: 4, narrower: 32 }
    }

    /// Cases in which rows and columns have several packs of 16 bytes, so that what a request takes is not what its last
    /// lanes take.
    #[cfg(test)]
    pub fn of_traffic() -> Sizes {
        Sizes { bytes: 64 << 10, rotation: 0, sides: [64, 96, 128], matrices: 64, layers: 0, narrower: 8 }
    }

    /// Elements of the largest operand.
    pub fn elements(&self, dtype: DType) -> usize {
        self.bytes / dtype.size()
    }

    /// Rows and columns of the largest operand, of as many columns as asked for on a card.
    pub fn rows_of(&self, columns: usize, dtype: DType) -> [usize; 2] {
        let columns = (columns / self.narrower).min(self.elements(dtype));
        [self.elements(dtype) / columns, columns]
    }
}

/// What a rate counts.
#[derive(Clone, Copy, PartialEq)]
pub enum Work {
    /// Bytes that no kernel could do without: every element of the operands read once (one that is broadcast counts once),
    /// every element of the results written once; of the operands, the first `in_place` are written too.
    Bytes { in_place: usize },
    /// Additions and multiplications.
    Operations(f64),
    /// Nothing: it is the time that matters, with that of queueing or, as a graph, without.
    Nothing { captured: bool },
}

type Operands = dyn Fn(&Source) -> Result<Vec<Tensor>>;
type Queue = dyn Fn(&mut Vec<Tensor>) -> Result<Vec<Tensor>>;

/// Something to be timed.
pub struct Case {
    pub name: String,
    pub work: Work,
    /// Whether it is the copy that bandwidths are compared with.
    pub is_reference: bool,
    pub goal: Goal,
    operands: Box<Operands>,
    queue: Box<Queue>,
}

impl Case {
    pub fn new(
        name: impl Into<String>,
        work: Work,
        operands: impl Fn(&Source) -> Result<Vec<Tensor>> + 'static,
        queue: impl Fn(&mut Vec<Tensor>) -> Result<Vec<Tensor>> + 'static,
    ) -> Case {
        let (operands, queue) = (Box::new(operands), Box::new(queue));
        let goal =
            if matches!(work, Work::Bytes { .. }) { Goal::Bandwidth { times: 1.0 } } else { Goal::None };
        Case { name: name.into(), work, is_reference: false, goal, operands, queue }
    }

    /// With another goal than that of its work, which is the copy's bandwidth if bytes are counted.
    pub fn with_goal(self, goal: Goal) -> Case {
        Case { goal, ..self }
    }

    /// With kernels that take so many times as long as the bytes that are counted, at best.
    pub fn taking(self, times: f64) -> Case {
        self.with_goal(Goal::Bandwidth { times })
    }

    /// Measures it. What it took of the card is free again afterwards.
    pub fn measure(&self, cuda: &'static Cuda, clock: &Clock, sizes: &Sizes) -> Row {
        let measured = self.time(cuda, clock, sizes).and_then(|measured| {
            cuda.release_cache()?;
            Ok(measured)
        });
        let rate = |bytes: usize| match self.work {
            Work::Bytes { .. } => Rate::Bytes(bytes as f64),
            Work::Operations(operations) => Rate::Operations(operations),
            Work::Nothing { .. } => Rate::None,
        };
        Row {
            name: self.name.clone(),
            is_reference: self.is_reference,
            goal: self.goal,
            library: None,
            measured: measured.map(|(time, bytes)| (time, rate(bytes))).map_err(|error| error.to_string()),
        }
    }

    /// The time of a repetition, and the bytes it must move.
    fn time(&self, cuda: &'static Cuda, clock: &Clock, sizes: &Sizes) -> Result<(Time, usize)> {
        let source = |turn: u64| Source { device: cuda.device(), key: Key::new(turn) };
        let mut first = (self.operands)(&source(0))?;
        let results = (self.queue)(&mut first)?;
        let bytes = self.bytes(&first, &results);
        if self.work == (Work::Nothing { captured: true }) {
            return Ok((clock.time_captured(|| (self.queue)(&mut first).map(drop))?, bytes));
        }
        let turns = match self.work {
            Work::Bytes { .. } => sizes.rotation.div_ceil(bytes.max(1)).clamp(1, 64),
            _ => 1,
        };
        // Each set of operands with the results of its last turn: these are written anew only when it is its turn again.
        let mut sets = vec![(first, results)];
        for turn in 1..turns {
            sets.push(((self.operands)(&source(turn as u64))?, Vec::new()));
        }
        let mut turn = 0;
        let time = clock.time(|| {
            let (operands, results) = &mut sets[turn];
            turn = (turn + 1) % turns;
            results.clear();
            *results = (self.queue)(operands)?;
            Ok(())
        })?;
        Ok((time, bytes))
    }

    /// Queues it once; `ready` is called when the operands are there. The bytes that it must move, whatever its work is.
    #[cfg(test)]
    pub fn run_once(&self, cuda: &'static Cuda, ready: impl FnOnce()) -> Result<usize> {
        let mut operands = (self.operands)(&Source { device: cuda.device(), key: Key::new(0) })?;
        cuda.synchronize()?;
        ready();
        let results = (self.queue)(&mut operands)?;
        cuda.synchronize()?;
        Ok(self.bytes(&operands, &results))
    }

    /// See [`Work::Bytes`].
    fn bytes(&self, operands: &[Tensor], results: &[Tensor]) -> usize {
        let in_place = match self.work {
            Work::Bytes { in_place } => in_place,
            _ => 0,
        };
        operands.iter().chain(results).chain(&operands[..in_place]).map(distinct).sum()
    }
}

/// Bytes of a tensor's different elements: an axis along which nothing changes counts as one.
fn distinct(x: &Tensor) -> usize {
    let axes = x.shape().iter().zip(x.layout().strides());
    axes.map(|(&n, &stride)| if stride == 0 { n.min(1) } else { n }).product::<usize>() * x.dtype().size()
}

/// Where operands come from: drawn on the device, so that nothing large is sent to it.
pub struct Source {
    pub device: Device,
    key: Key,
}

impl Source {
    /// Numbers of mean 0 and deviation 1; the label tells operands of one shape apart.
    pub fn normal(&self, shape: &[usize], dtype: DType, label: u64) -> Result<Tensor> {
        let what = Distribution::Normal { mean: 0.0, std: 1.0 };
        self.device.backend().random(what, &shape.into(), dtype, self.key.fold(label))
    }

    /// Numbers between ½ and 1½.
    pub fn positive(&self, shape: &[usize], dtype: DType, label: u64) -> Result<Tensor> {
        let what = Distribution::Uniform { low: 0.5, high: 1.5 };
        self.device.backend().random(what, &shape.into(), dtype, self.key.fold(label))
    }

    /// Indices below n, each as likely as the others.
    pub fn indices(&self, shape: &[usize], n: usize, label: u64) -> Result<Tensor> {
        let what = Distribution::Uniform { low: 0.0, high: n as f64 };
        self.device.backend().random(what, &shape.into(), DType::F64, self.key.fold(label))?.cast(DType::I64)
    }
}
