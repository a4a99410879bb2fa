//! The kernels that there are.

use std::collections::BTreeMap;

use limpid_cuda::{HEADERS, emulated, families};
use limpid_emulator::{Build, Program, Source, compile};

/// The names of all kernels, and the file of each.
pub fn every_kernel() -> BTreeMap<String, &'static str> {
    let of_file = |family: &'static limpid_cuda::Family| {
        let source = Source { name: family.name, text: family.text, headers: &HEADERS, defines: &[] };
        let library = compile(&source, Build::Checked, &emulated::cache_folder()).expect("g++ compiles it");
        let names = Program::open(&library).expect("what was compiled can be loaded").kernel_names();
        names.into_iter().map(|name| (name, family.name))
    };
    families().into_iter().flat_map(of_file).collect()
}
