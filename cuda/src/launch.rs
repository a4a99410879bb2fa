//! Launching a kernel: the grid, the arguments, and the check that they are what the kernel takes.

use bytemuck::Pod;
use cudarc::driver::result;
use limpid_tensor::{Result, Tensor};
use smallvec::SmallVec;

use crate::device::{Buffer, Cuda, address_of};
use crate::module::Family;

/// Blocks and threads of a launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Grid {
    pub blocks: [u32; 3],
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: usize,
}

impl Grid {
    /// So many blocks of so many threads.
    pub(crate) fn new(blocks: usize, threads: u32) -> Grid {
        Grid { blocks: [blocks as u32, 1, 1], threads, shared: 0 }
    }

    /// As many blocks as it takes to give every item its thread, and at most `most`: beyond that, threads take several.
    pub(crate) fn covering(items: usize, threads: u32, most: usize) -> Grid {
        Grid::new(items.div_ceil(threads as usize).clamp(1, most.max(1)), threads)
    }
}

/// The values of a kernel's parameters, one behind the other.
#[derive(Default)]
pub(crate) struct Arguments {
    /// Each begins at a multiple of 8 bytes.
    words: SmallVec<[u64; 64]>,
    /// Where each begins, in words, and its bytes.
    places: SmallVec<[(usize, usize); 16]>,
}

impl Arguments {
    /// The address of a tensor that the kernel writes.
    pub(crate) fn output(&mut self, y: &mut Tensor) -> &mut Arguments {
        self.value(address_of(y))
    }

    /// The address of a tensor that the kernel reads.
    pub(crate) fn input(&mut self, x: &Tensor) -> &mut Arguments {
        self.value(address_of(x))
    }

    /// The address of a tensor that the kernel reads, or null.
    pub(crate) fn optional(&mut self, x: Option<&Tensor>) -> &mut Arguments {
        self.value(x.map_or(0, address_of))
    }

    /// The address of scratch memory.
    pub(crate) fn scratch(&mut self, buffer: &Buffer) -> &mut Arguments {
        self.value(buffer.address)
    }

    /// A number or a struct, as the kernel declares it.
    pub(crate) fn value<T: Pod>(&mut self, value: T) -> &mut Arguments {
        let start = self.words.len();
        self.words.resize(start + size_of::<T>().div_ceil(8), 0);
        bytemuck::cast_slice_mut::<u64, u8>(&mut self.words[start..])[..size_of::<T>()]
            .copy_from_slice(bytemuck::bytes_of(&value));
        self.places.push((start, size_of::<T>()));
        self
    }
}

impl Cuda {
    /// Queues a kernel. A grid without blocks queues nothing.
    ///
    /// # Panics
    /// If the arguments are not as many and as large as the kernel's parameters.
    pub(crate) fn launch(
        &self,
        family: &'static Family,
        kernel: &str,
        grid: Grid,
        arguments: &mut Arguments,
    ) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let _in_use = self.bind()?;
        let function = self.function(family, kernel)?;
        let sizes: SmallVec<[usize; 16]> = arguments.places.iter().map(|&(_, size)| size).collect();
        assert_eq!(
            sizes, function.parameters,
            "{kernel}: the arguments' bytes are not those of its parameters"
        );
        let [x, y, z] = grid.blocks;
        let words = arguments.words.as_mut_ptr();
        let mut pointers: SmallVec<[*mut std::ffi::c_void; 16]> =
            // SAFETY: every place lies inside `words`, which is not touched before the launch has copied it.
            arguments.places.iter().map(|&(start, _)| unsafe { words.add(start) }.cast()).collect();
        // SAFETY: there is a pointer for every parameter, to as many bytes as it has; the memory they name belongs to tensors
        // and scratch buffers of this device, which are reused only by work that is queued behind this in the same stream.
        let launched = unsafe {
            result::launch_kernel(
                function.handle,
                (x, y, z),
                (grid.threads, 1, 1),
                grid.shared as u32,
                self.stream,
                &mut pointers,
            )
        };
        self.check(format_args!("launching {kernel}"), launched)
    }

    /// Blocks that keep every multiprocessor busy: where more would not be faster, a thread takes several elements.
    pub(crate) fn most_blocks(&self) -> usize {
        self.properties().multiprocessors as usize * 32
    }
}

#[cfg(test)]
mod tests {
    use limpid_tensor::{DType, Map};

    use super::*;
    use crate::ops::rows::tests::Emulated;
    use crate::staging::PageLocked;

    static READS_NULL: Family = Family {
        name: "reads_null.cu",
        text: "#include \"prelude.cuh\"\n\
               KERNEL(32, reads_null, (float* y, const float* x)) { y[threadIdx.x] = x[threadIdx.x]; }\n",
    };

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn after_an_illegal_address_everything_is_an_error_and_nothing_panics() {
        let emulated = Emulated::device();
        // Nothing brings a device back, so that it is one that no other test uses.
        let cuda = Cuda::new(1).unwrap();
        let ones = Tensor::ones([32], DType::F32);
        let x = ones.to(&cuda.device()).unwrap();
        let (mut graph, of_graph) = {
            Tensor::map(Map::Neg, &[&x]).unwrap();
            cuda.capture(|| Tensor::map(Map::Neg, &[&x])).unwrap()
        };
        graph.replay().unwrap();
        assert_eq!(of_graph.to_vec::<f32>().unwrap(), [-1.0; 32]);
        let (scratch, page_locked) = (cuda.scratch(100).unwrap(), PageLocked::new(cuda, 100).unwrap());

        let mut y = cuda.empty([32], DType::F32).unwrap();
        let mut arguments = Arguments::default();
        arguments.output(&mut y).optional(None);
        cuda.launch(&READS_NULL, "reads_null", Grid::new(1, 32), &mut arguments).expect("it is queued");
        let illegal = "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)";
        let message = |result: Result<()>| result.expect_err("the device has failed").to_string();
        let read = message(y.to_vec::<f32>().map(drop));
        assert_eq!(read, format!("cuda:1: waiting for a copy: {illegal}"), "the first who waits is told");

        for _ in 0..2 {
            let waited = message(cuda.synchronize());
            for failed in [
                waited.clone(),
                message(y.to_vec::<f32>().map(drop)),
                message(Tensor::map(Map::Neg, &[&x]).map(drop)),
                message(ones.to(&cuda.device()).map(drop)),
                message(graph.replay()),
                message(cuda.capture(|| Tensor::map(Map::Neg, &[&x])).map(drop)),
                message(PageLocked::new(cuda, 8).map(drop)),
                message(cuda.release_cache()),
            ] {
                assert!(failed.starts_with("cuda:1: ") && failed.ends_with(illegal), "{failed}");
            }
        }
        drop((graph, of_graph, scratch, page_locked, x, y));
        let findings = emulated.findings();
        assert!(findings.len() == 1 && findings[0].contains("reads_null"), "{findings:?}");

        // The CPU and another device go on.
        assert_eq!(Tensor::map(Map::Neg, &[&ones]).unwrap().to_vec::<f32>().unwrap(), [-1.0; 32]);
        assert_eq!(emulated.read(Tensor::map(Map::Neg, &[&emulated.place(&ones)])), [-1.0; 32]);
    }
}
