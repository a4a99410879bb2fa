//! What can go wrong outside the program: devices, memory, files and their contents.
//!
//! A programmer's mistake (shapes that do not broadcast, an axis out of range) is not here: it panics at the
//! caller's line, as indexing a slice does.

use std::path::{Path, PathBuf};

/// The result of anything that touches a device or a file.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something outside the program was not as it had to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's contents are not what its format, or the caller, asks for.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What should have been there.
        expected: String,
        /// What was.
        found: String,
    },
    /// A device cannot do what was asked.
    #[error("{device}: {message}")]
    Device {
        /// The device's name, e.g. `cpu`.
        device: String,
        /// What was asked and why it failed.
        message: String,
    },
}

impl Error {
    /// An [`Error::Io`] for a file.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// An [`Error::Format`] for a file.
    pub fn format(path: impl AsRef<Path>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_path_buf(), expected: expected.into(), found: found.into() }
    }
}
