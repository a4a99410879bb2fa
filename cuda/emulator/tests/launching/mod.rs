//! Compiles and launches kernels for the tests.

#![allow(dead_code, reason = "each test file uses a part")]

use std::path::Path;
use std::sync::Arc;

use limpid_emulator::{Build, Kernel, Memory, Options, Program, Report, Shape, Source, compile, launch};

/// The files that kernels include.
pub const HEADERS: [(&str, &str); 2] = [
    ("prelude.cuh", include_str!("../../../kernels/prelude.cuh")),
    ("ptx.cuh", include_str!("../../../kernels/ptx.cuh")),
];

/// Compiles and loads a file of kernels.
pub fn program(name: &str, text: &str, build: Build, defines: &[&str]) -> Arc<Program> {
    let defines: Vec<String> = defines.iter().map(|define| define.to_string()).collect();
    let source = Source { name, text, headers: &HEADERS, defines: &defines };
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let library = compile(&source, build, &cache).unwrap_or_else(|error| panic!("{error}"));
    Program::open(&library).unwrap_or_else(|error| panic!("{error}"))
}

/// The kernel of that name.
pub fn kernel(program: &Arc<Program>, name: &str) -> Kernel {
    program.kernel(name).unwrap_or_else(|| panic!("no kernel {name} among {:?}", program.kernel_names()))
}

/// A value that a kernel takes or an array holds.
pub trait Plain: Copy + Default {}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for u16 {}
impl Plain for u64 {}

/// Its bytes.
pub fn bytes<T: Plain>(values: &[T]) -> Vec<u8> {
    // SAFETY: plain numbers have no padding, and any of their bytes can be read.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }.to_vec()
}

/// One argument.
pub fn argument<T: Plain>(value: T) -> Vec<u8> {
    bytes(&[value])
}

/// A card's memory, with what tests do to it.
pub struct Card(pub Memory);

impl Card {
    pub fn new() -> Card {
        Card(Memory::new(256 << 20))
    }

    /// An array with these values.
    pub fn upload<T: Plain>(&mut self, label: &str, values: &[T]) -> u64 {
        let address = self.empty::<T>(label, values.len());
        assert!(self.0.write(address, &bytes(values)));
        address
    }

    /// An array that nobody has written.
    pub fn empty<T: Plain>(&mut self, label: &str, elements: usize) -> u64 {
        self.0.allocate(elements * size_of::<T>(), label).expect("room on the card")
    }

    /// The elements of an array.
    pub fn download<T: Plain>(&self, address: u64, elements: usize) -> Vec<T> {
        let mut values = vec![T::default(); elements];
        // SAFETY: any bytes are a value of a plain number.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), elements * size_of::<T>())
        };
        assert!(self.0.read(address, bytes), "{elements} elements at {address:#x}");
        values
    }

    /// Launches a kernel.
    pub fn launch(
        &mut self,
        kernel: &Kernel,
        shape: Shape,
        arguments: &[Vec<u8>],
        options: Options,
    ) -> Report {
        launch(&mut self.0, kernel, shape, arguments, options)
    }
}

/// A shape of one dimension.
pub fn line(blocks: u32, threads: u32) -> Shape {
    Shape { grid: [blocks, 1, 1], block: [threads, 1, 1], dynamic_shared: 0 }
}

/// Fails if there is a finding.
pub fn assert_clean(report: &Report, what: &str) {
    let findings: Vec<String> = report.findings.iter().map(|finding| finding.to_string()).collect();
    assert!(findings.is_empty() && !report.stopped, "{what}:\n{}", findings.join("\n"));
}

/// `n` numbers in (-1, 1) that look random.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
