//! What the stand-in's compiler gives out as a module: a text that names a library.

use std::fs;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

/// The first line.
const MAGIC: &str = "limpid emulator module";

/// A compiled file of kernels, by name.
pub(super) struct Image {
    /// The shared library.
    pub library: PathBuf,
    /// The hash of its bytes.
    hash: u64,
}

impl Image {
    /// The image of a library. `None`: it cannot be read.
    pub(super) fn of(library: &Path) -> Option<Image> {
        Some(Image { library: library.to_path_buf(), hash: xxh3_64(&fs::read(library).ok()?) })
    }

    pub(super) fn parse(text: &str) -> Option<Image> {
        let mut lines = text.lines();
        (lines.next()? == MAGIC).then_some(())?;
        let hash = u64::from_str_radix(lines.next()?, 16).ok()?;
        Some(Image { library: lines.next()?.into(), hash })
    }

    /// The bytes of the image, with a NUL at the end.
    pub(super) fn bytes(&self) -> Vec<u8> {
        format!("{MAGIC}\n{:016x}\n{}\n\0", self.hash, self.library.display()).into_bytes()
    }

    /// Whether the library is the one that the image was made of.
    pub(super) fn is_unchanged(&self) -> bool {
        Image::of(&self.library).is_some_and(|now| now.hash == self.hash)
    }
}
