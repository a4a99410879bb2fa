//! Tensors in files: [`npy`] for one array, [`safetensors`] for named ones, and [`write_atomically`] for both and
//! any other file that must never be found half-written.

pub mod npy;
pub mod safetensors;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{DType, Error, HostBuffer, Result, Shape, Tensor};

// Both formats are little-endian and elements are copied as they lie in memory.
const _: () =
    assert!(cfg!(target_endian = "little"), "tensor files are read and written on little-endian machines");

/// Writes a file so that, whatever happens, `path` holds either what it held before or all of the new contents.
///
/// `write` fills a temporary file in the same directory, which is synced to disk and then renamed to `path`; the
/// rename is synced too. If `write` fails, or the system does, the temporary file is removed and `path` is
/// untouched. A crash can leave a file named `.NAME.….tmp` behind. A symbolic link at `path` is replaced, not
/// followed.
///
/// # Errors
/// [`Error::Io`] with `path` if the system refuses. An [`Error`] that `write` wrapped in [`io::Error::other`]
/// comes back as it was.
///
/// ```
/// use limpid_tensor::io::write_atomically;
/// # fn main() -> limpid_tensor::Result<()> {
/// let path = std::env::temp_dir().join(format!("limpid-{}.csv", std::process::id()));
/// write_atomically(&path, |file| writeln!(file, "step,loss"))?;
/// assert_eq!(std::fs::read_to_string(&path).unwrap(), "step,loss\n");
/// # std::fs::remove_file(&path).unwrap();
/// # Ok(())
/// # }
/// ```
pub fn write_atomically(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let replace = || {
        let (file, temporary) = create_beside(path)?;
        let written = write_through(file, write).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // The first error is the one to report; a leftover does no harm.
            let _ = fs::remove_file(&temporary);
        }
        written.and_then(|()| sync_directory(path))
    };
    replace().map_err(|e| e.downcast::<Error>().unwrap_or_else(|e| Error::io(path, e)))
}

fn write_through(file: File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    write(&mut buffered)?;
    buffered.into_inner().map_err(|e| e.into_error())?.sync_all()
}

/// A new file in the directory of `path`, with a name no other writer has.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path does not name a file"))?;
    loop {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(temporary);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            // Left by a crashed process of the same id.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

/// Makes a rename in the directory of `path` durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(not(unix)) {
        // Elsewhere a directory cannot be opened as a file.
        return Ok(());
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// The bytes of a contiguous tensor, `None` if they cannot exist in memory. Also refuses shapes such as
/// `[0, 2⁶³, 2⁶³]`, without elements but with strides that overflow.
fn byte_count(shape: &[usize], dtype: DType) -> Option<usize> {
    let strides = shape.iter().try_fold(dtype.size(), |bytes, &n| bytes.checked_mul(n.max(1)))?;
    isize::try_from(strides).ok()?;
    Some(shape.iter().product::<usize>() * dtype.size())
}

/// Writes the elements in row-major order.
fn write_elements(out: &mut dyn Write, x: &Tensor) -> io::Result<()> {
    let host = x.device().backend().download(x).map_err(io::Error::other)?;
    let start = host.layout().offset() * x.dtype().size();
    let bytes = host.storage().host().expect("downloaded tensors are in host memory");
    out.write_all(&bytes[start..start + x.elements() * x.dtype().size()])
}

/// Makes a tensor of a block whose bytes came from outside; the message says which are not elements.
fn into_checked_tensor(mut buffer: HostBuffer, shape: Shape, dtype: DType) -> Result<Tensor, String> {
    if dtype == DType::Bool
        && let Some(byte) = buffer.as_mut::<u8>().iter().find(|&&byte| byte > 1)
    {
        return Err(format!("the byte {byte}"));
    }
    Ok(buffer.into_tensor(shape, dtype))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory of its own for one test, removed when the test ends.
    pub struct Directory(PathBuf);

    impl Directory {
        pub fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("limpid-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Directory(path)
        }

        pub fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        pub fn names(&self) -> Vec<String> {
            fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = Directory::new("failed-write");
        let path = directory.file("a.txt");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();
        let error = write_atomically(&path, |out| {
            out.write_all(b"half of the new")?;
            Err(io::Error::other("disk on fire"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("a.txt: disk on fire"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(directory.names(), ["a.txt"]);
        write_atomically(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(directory.names(), ["a.txt"]);
    }

    #[test]
    fn an_own_error_comes_back_as_it_was() {
        let directory = Directory::new("own-error");
        let device = Error::Device { device: "cuda:0".into(), message: "out of memory".into() };
        let error = write_atomically(directory.file("b"), |_| Err(io::Error::other(device))).unwrap_err();
        assert!(matches!(error, Error::Device { .. }), "{error:?}");
        assert!(directory.names().is_empty());
    }

    #[test]
    fn paths_that_cannot_be_written_are_named() {
        let directory = Directory::new("no-path");
        for path in [directory.file("missing/c.txt"), PathBuf::from("/"), directory.file("")] {
            let error = write_atomically(&path, |_| Ok(())).unwrap_err();
            assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn writers_of_one_path_do_not_mix() {
        let directory = Directory::new("race");
        let path = directory.file("d");
        std::thread::scope(|scope| {
            for byte in 0..8u8 {
                let path = &path;
                scope.spawn(move || write_atomically(path, |out| out.write_all(&[byte; 10_000])).unwrap());
            }
        });
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 10_000 && bytes.iter().all(|&b| b == bytes[0]));
        assert_eq!(directory.names(), ["d"]);
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        assert_eq!(byte_count(&[2, 3], DType::F32), Some(24));
        assert_eq!(byte_count(&[], DType::F64), Some(8));
        assert_eq!(byte_count(&[0, 5], DType::F64), Some(0));
        assert_eq!(byte_count(&[usize::MAX, 2], DType::Bool), None);
        assert_eq!(byte_count(&[usize::MAX], DType::Bool), None);
        assert_eq!(byte_count(&[0, usize::MAX, usize::MAX], DType::Bool), None);
    }
}
