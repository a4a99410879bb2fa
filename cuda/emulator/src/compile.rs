//! From the text of kernels to a shared library, with g++.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io, process};

use xxhash_rust::xxh3::Xxh3;

/// What stands in front of every kernel file, and what is linked to it.
const SHIMS: [(&str, &str); 3] = [
    ("emulate.h", include_str!("../shim/emulate.h")),
    ("emulate_ptx.h", include_str!("../shim/emulate_ptx.h")),
    ("runtime.cpp", include_str!("../shim/runtime.cpp")),
];

/// No contraction: a·b + c is rounded twice on every device, unless the kernel says `fma`. No aliasing rules: kernels
/// load vectors through pointers to scalars.
const LANGUAGE: &str = "-std=c++17 -fPIC -fvisibility=hidden -fno-gnu-unique -ffp-contract=off -fno-strict-aliasing \
                        -fno-math-errno -fno-trapping-math -fno-exceptions -fno-rtti -fno-threadsafe-statics \
                        -I. -include emulate.h";
/// A warning that means a mistake refuses the text; those about style, or about what NVRTC allows, do not.
const WARNINGS: &str = "-Wall -Werror -Wno-unused -Wno-unknown-pragmas -Wno-maybe-uninitialized -Wno-sign-compare \
                        -Wno-parentheses -Wno-strict-aliasing -Wno-psabi";
const FAST: &str = "-O2 -g1 -DEMULATE_IS_CHECKED=0";
/// Without scalar replacement, a load of four floats stays one access. Optimised little, so that an access keeps its
/// line.
const CHECKED: &str = "-O1 -g -fno-tree-sra -DEMULATE_CHECKED -DEMULATE_IS_CHECKED=1";

/// The text of a file of kernels, with all that belongs to it.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The file's name, such as `map.cu`: places in reports are named after it.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Names and texts of the files that it includes.
    pub headers: &'a [(&'a str, &'a str)],
    /// Macros, such as `WIDTH=4`.
    pub defines: &'a [String],
}

/// What a library is built for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Build {
    /// Speed.
    Fast,
    /// Finding mistakes: every load and store is looked at.
    Checked,
}

/// Why a file of kernels did not become a library.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// g++ is missing or does not run.
    #[error("the emulator compiles kernels with g++, which did not run: {0}")]
    NoCompiler(String),
    /// g++ refuses the text.
    #[error("g++ refuses {name}:\n{log}")]
    Refused {
        /// The source's name.
        name: String,
        /// What g++ says.
        log: String,
    },
    /// The cache folder cannot be used.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Compiles a file of kernels, and returns the path of the shared library.
///
/// Libraries are kept in the folder `cache` (made if missing) under a hash of all that went into them, so that the
/// same text is compiled once.
///
/// # Errors
/// g++ is missing, or refuses the text, or the folder cannot be written.
pub fn compile(source: &Source, build: Build, cache: &Path) -> Result<PathBuf, CompileError> {
    let flags = flags(build, source.defines);
    let library = cache.join(format!("{}-{:016x}.so", stem(source.name), key(source, &flags)?));
    if library.exists() {
        return Ok(library);
    }
    let folder = Folder::create(cache)?;
    folder.write(file_name(source.name), source.text)?;
    for (name, text) in source.headers.iter().chain(&SHIMS) {
        folder.write(name, text)?;
    }
    let made = match build {
        Build::Fast => {
            folder.run(&["-shared", "-o", "library.so"], &flags, &[file_name(source.name), "runtime.cpp"])
        }
        // The sanitizer's hooks are ours: the library is linked without the sanitizer.
        Build::Checked => folder
            .run(&["-fsanitize=thread", "-c", "-o", "kernels.o"], &flags, &[file_name(source.name)])
            .and_then(|()| {
                folder.run(&["-shared", "-o", "library.so", "kernels.o"], &flags, &["runtime.cpp"])
            }),
    };
    made.map_err(|failure| failure.of(source.name))?;
    fs::rename(folder.0.join("library.so"), &library)
        .map_err(|source| CompileError::Io { path: library.clone(), source })?;
    Ok(library)
}

/// The first line that `g++ --version` prints.
pub(crate) fn compiler_version() -> Result<&'static str, CompileError> {
    static VERSION: OnceLock<Result<String, String>> = OnceLock::new();
    let version = VERSION.get_or_init(|| match Command::new("g++").arg("--version").output() {
        Ok(Output { status, stdout, .. }) if status.success() => {
            Ok(String::from_utf8_lossy(&stdout).lines().next().unwrap_or_default().to_string())
        }
        Ok(output) => Err(format!("`g++ --version` failed with {}", output.status)),
        Err(error) => Err(error.to_string()),
    });
    version.as_deref().map_err(|reason| CompileError::NoCompiler(reason.clone()))
}

fn flags(build: Build, defines: &[String]) -> Vec<String> {
    let build = if build == Build::Fast { FAST } else { CHECKED };
    let words = [LANGUAGE, WARNINGS, build].into_iter().flat_map(str::split_whitespace).map(str::to_string);
    words.chain(machine_flags()).chain(defines.iter().map(|define| format!("-D{define}"))).collect()
}

/// Instructions of this processor that kernels need for speed: fma() is a call without them.
fn machine_flags() -> Option<String> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        return Some("-mfma".to_string());
    }
    None
}

/// A hash of all that decides what the library is.
fn key(source: &Source, flags: &[String]) -> Result<u64, CompileError> {
    let mut hash = Xxh3::new();
    let mut add = |part: &str| {
        hash.update(&part.len().to_le_bytes());
        hash.update(part.as_bytes());
    };
    add(compiler_version()?);
    add(source.name);
    add(source.text);
    for (name, text) in source.headers.iter().chain(&SHIMS) {
        add(name);
        add(text);
    }
    flags.iter().for_each(|flag| add(flag));
    Ok(hash.digest())
}

fn file_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn stem(name: &str) -> &str {
    let name = file_name(name);
    name.split('.').next().unwrap_or(name)
}

/// A folder for one compilation, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn create(cache: &Path) -> Result<Folder, CompileError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = cache.join(format!(".build-{}-{serial}", process::id()));
        fs::create_dir_all(&path).map_err(|source| CompileError::Io { path: path.clone(), source })?;
        Ok(Folder(path))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CompileError> {
        let path = self.0.join(name);
        fs::write(&path, text).map_err(|source| CompileError::Io { path, source })
    }

    /// Runs g++ in the folder, so that it names files as the source does.
    fn run(&self, before: &[&str], flags: &[String], inputs: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new("g++");
        command.current_dir(&self.0).args(before).args(flags).args(["-x", "c++"]).args(inputs);
        let output = command.output().map_err(Failure::DidNotRun)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Failure::Refused(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays behind costs some disk space and nothing else.
        let _ = fs::remove_dir_all(&self.0);
    }
}

enum Failure {
    DidNotRun(io::Error),
    Refused(String),
}

impl Failure {
    fn of(self, name: &str) -> CompileError {
        match self {
            Failure::DidNotRun(error) => CompileError::NoCompiler(error.to_string()),
            Failure::Refused(log) => CompileError::Refused { name: name.to_string(), log },
        }
    }
}
