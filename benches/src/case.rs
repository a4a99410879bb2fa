//! One kernel: its operands, what is done to them, and the work in it that no implementation is spared.

use std::hint::black_box;

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Result, Tensor};

/// What a kernel has to do, whoever writes it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Bytes of the operands, each element once; one that is broadcast counts once.
    pub read: f64,
    /// Bytes of the results.
    pub written: f64,
    /// Additions, multiplications and divisions, where they are what the algorithm is made of; 0 where bytes are.
    pub flops: f64,
    /// Numbers (f32) that its arithmetic instructions work on, counted in the loop that the compiler made; 0 where nobody counted.
    pub instructions: f64,
}

/// A kernel, with all that is needed to time it.
pub struct Case {
    /// What it is listed under.
    pub group: &'static str,
    /// What it is called in its group.
    pub name: String,
    /// What it computes in.
    pub dtype: DType,
    flops: f64,
    /// For each element of the result.
    instructions: f64,
    /// What cannot be seen from operands and results.
    work: Option<Work>,
    prepare: Box<dyn Fn() -> Result<Queue>>,
}

/// What runs a kernel: results and operands, of which bytes are counted.
pub(crate) type Queue = Box<dyn FnMut() -> Result<Vec<Tensor>>>;

/// A kernel with its operands in memory.
pub struct Prepared {
    /// The work of one run.
    pub work: Work,
    queue: Queue,
}

impl Case {
    /// A kernel whose operands `operands` makes. Its bytes are counted from operands and results.
    pub fn new(
        group: &'static str,
        name: impl Into<String>,
        operands: impl Fn() -> Result<Vec<Tensor>> + 'static,
        compute: impl Fn(&[Tensor]) -> Result<Tensor> + Clone + 'static,
    ) -> Case {
        let prepare = move || {
            let (operands, compute) = (operands()?, compute.clone());
            let queue: Queue = Box::new(move || {
                let mut all = vec![compute(&operands)?];
                all.extend_from_slice(&operands);
                Ok(all)
            });
            Ok(queue)
        };
        Case::of_queue(group, name.into(), Box::new(prepare))
    }

    /// A kernel that changes its operands, and its work.
    pub(crate) fn of_work(
        group: &'static str,
        name: impl Into<String>,
        work: Work,
        prepare: impl Fn() -> Result<Queue> + 'static,
    ) -> Case {
        Case { work: Some(work), ..Case::of_queue(group, name.into(), Box::new(prepare)) }
    }

    fn of_queue(group: &'static str, name: String, prepare: Box<dyn Fn() -> Result<Queue>>) -> Case {
        Case { group, name, dtype: DType::F32, flops: 0.0, instructions: 0.0, work: None, prepare }
    }

    /// The same, bounded by operations too.
    pub fn with_flops(self, flops: f64) -> Case {
        Case { flops, ..self }
    }

    /// The same, bounded by arithmetic instructions too: so many for each vector of the result.
    pub fn with_instructions(self, instructions: u32) -> Case {
        Case { instructions: f64::from(instructions), ..self }
    }

    /// The same, in another dtype than f32.
    pub fn in_dtype(self, dtype: DType) -> Case {
        Case { dtype, ..self }
    }

    /// Makes the operands and runs the kernel once.
    ///
    /// # Errors
    /// If the processor could not compute it.
    pub fn prepare(&self) -> Result<Prepared> {
        let mut queue = (self.prepare)()?;
        let all = queue()?;
        if let Some(work) = self.work {
            return Ok(Prepared { work, queue });
        }
        let (result, operands) = all.split_first().expect("a kernel has a result");
        let read = operands.iter().map(bytes).sum();
        let instructions = self.instructions * result.elements() as f64;
        Ok(Prepared { work: Work { read, written: bytes(result), flops: self.flops, instructions }, queue })
    }
}

impl Prepared {
    /// Runs the kernel.
    ///
    /// # Panics
    /// If the processor cannot compute what it has computed once.
    pub fn run(&mut self) {
        let _ = black_box((self.queue)().expect("the first run went well"));
    }
}

/// Bytes of the elements that a tensor shows, each once however often it shows it.
fn bytes(x: &Tensor) -> f64 {
    let shown = x.elements() * x.dtype().size();
    shown.min(x.storage().bytes()) as f64
}

/// Normal draws.
pub(crate) fn normal(shape: &[usize], dtype: DType, label: u64) -> Result<Tensor> {
    Tensor::random(Distribution::Normal { mean: 0.0, std: 1.0 }, shape, dtype, Key::new(0).fold(label))
}

/// Numbers of `0.1..1.1`, where every function is defined.
pub(crate) fn positive(shape: &[usize], dtype: DType, label: u64) -> Result<Tensor> {
    Tensor::random(Distribution::Uniform { low: 0.1, high: 1.1 }, shape, dtype, Key::new(0).fold(label))
}

/// Whole numbers (i64) of `0..below`.
pub(crate) fn indices(shape: &[usize], below: usize, label: u64) -> Result<Tensor> {
    let spread = Distribution::Uniform { low: 0.0, high: below as f64 };
    Tensor::random(spread, shape, DType::F64, Key::new(0).fold(label))?.cast(DType::I64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpid_tensor::Map;

    #[test]
    fn a_row_that_is_broadcast_is_read_once() {
        let operands =
            || Ok(vec![normal(&[8, 4], DType::F32, 0)?, normal(&[1, 4], DType::F32, 1)?.expand([8, 4])]);
        let case = Case::new("map", "add", operands, |x| Tensor::map(Map::Add, &[&x[0], &x[1]]));
        let Work { read, written, .. } = case.prepare().unwrap().work;
        assert_eq!(read, ((8 * 4 + 4) * 4) as f64);
        assert_eq!(written, (8 * 4 * 4) as f64);
    }

    #[test]
    fn of_a_slice_what_it_shows_is_read() {
        let operands = || Ok(vec![normal(&[8, 4], DType::F64, 0)?.slice(1, 0, 2, 1)]);
        let case = Case::new("copy", "half", operands, |x| x[0].contiguous());
        assert_eq!(case.prepare().unwrap().work.read, (8 * 2 * 8) as f64);
    }
}
