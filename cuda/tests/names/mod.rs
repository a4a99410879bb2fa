//! The kernels that there are.

use std::collections::BTreeSet;

use limpid_cuda::{HEADERS, emulated, families};
use limpid_emulator::{Build, Program, Source, compile};

/// The names of the kernels of every file.
pub fn every_kernel() -> BTreeSet<String> {
    let of_file = |family: &limpid_cuda::Family| {
        let source = Source { name: family.name, text: family.text, headers: &HEADERS, defines: &[] };
        let library = compile(&source, Build::Checked, &emulated::cache_folder()).expect("g++ compiles it");
        Program::open(&library).expect("what was compiled can be loaded").kernel_names()
    };
    families().into_iter().flat_map(of_file).collect()
}
