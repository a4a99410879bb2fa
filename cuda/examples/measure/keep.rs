//! Compiled kernels for a machine that has no compiler.

use std::path::Path;
use std::thread;

use limpid_cuda::{ARCHITECTURES, families};

/// Compiles every file for every architecture into a folder.
pub fn keep(folder: &Path) -> Result<bool, String> {
    for family in families() {
        // One thread for each architecture: the compiler takes seconds for a file.
        thread::scope(|scope| {
            let keep = |architecture| scope.spawn(move || family.keep(folder, architecture));
            let keeping = ARCHITECTURES.map(keep);
            keeping.into_iter().try_for_each(|one| one.join().expect("compiling does not panic"))
        })?;
        println!("{} for {}", family.name, ARCHITECTURES.join(", "));
    }
    Ok(true)
}
