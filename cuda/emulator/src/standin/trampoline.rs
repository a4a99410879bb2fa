//! Libraries under the names of the driver's and the compiler's, whose functions lead here.
//!
//! A program finds the driver by name, when it first needs it. The loader answers with a library that is already open
//! under that name, before it looks at any folder. So each library is a page of assembly: every function jumps to where
//! a table says, and the table is filled once the library is open.

use std::ffi::c_char;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, mem, process};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL, RTLD_NOW};
use xxhash_rust::xxh3::xxh3_64;

use super::InstallError;
use crate::CompileError;

/// A function by its name in the library.
pub(super) struct Function {
    pub name: &'static str,
    pub address: *const (),
}

/// The table of addresses in a library.
const TABLE: &str = "limpid_stand_in_table";

/// The names that a program tries first.
pub(super) const DRIVER: &str = "libcuda.so";
pub(super) const COMPILER: &str = "libnvrtc.so";

/// Opens a library under `name`, so that whoever looks for that name gets it.
pub(super) fn open(name: &str, functions: &[Function], cache: &Path) -> Result<(), InstallError> {
    let path = build(name, functions, cache)?;
    let failure =
        |error: libloading::Error| InstallError::Open { path: path.clone(), reason: error.to_string() };
    // SAFETY: the library has no initialisers.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.map_err(failure)?;
    // SAFETY: the symbol is the first of as many words as there are functions; nothing of the type is assumed.
    let table = *unsafe { library.get::<*mut *const ()>(TABLE.as_bytes()) }.map_err(failure)?;
    for (i, function) in functions.iter().enumerate() {
        // SAFETY: the table is writable and has a word for each function; nobody calls them before this returns.
        unsafe { table.add(i).write(function.address) };
    }
    // The functions are called until the process ends.
    mem::forget(library);
    match found_by_name(name) == Some(table as usize) {
        true => Ok(()),
        false => Err(InstallError::AnotherLibrary { name: name.to_string() }),
    }
}

/// The table of the library that a program gets under that name, if it has one.
fn found_by_name(name: &str) -> Option<usize> {
    // SAFETY: this opens nothing new: a library of that name is open.
    let library = unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_LOCAL) }.ok()?;
    // SAFETY: only the address is used.
    unsafe { library.get::<*mut c_char>(TABLE.as_bytes()) }.ok().map(|table| *table as usize)
}

/// The library's path; it is made unless the cache has it.
fn build(name: &str, functions: &[Function], cache: &Path) -> Result<PathBuf, InstallError> {
    let text = assembly(functions);
    let library = cache.join(format!("{name}-{:016x}", xxh3_64(text.as_bytes())));
    if library.exists() {
        return Ok(library);
    }
    let io = |path: &Path, source| CompileError::Io { path: path.to_path_buf(), source };
    fs::create_dir_all(cache).map_err(|error| io(cache, error))?;
    let [source, made] = ["s", "so"].map(|kind| cache.join(format!(".{name}-{}.{kind}", process::id())));
    fs::write(&source, text).map_err(|error| io(&source, error))?;
    let mut compiler = Command::new("g++");
    compiler.args(["-shared", "-nostdlib", "-x", "assembler"]).arg(&source).arg("-o").arg(&made);
    let output = compiler.arg(format!("-Wl,-soname,{name}")).output();
    fs::remove_file(&source).map_err(|error| io(&source, error))?;
    let output = output.map_err(|error| CompileError::NoCompiler(error.to_string()))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(CompileError::Refused { name: name.to_string(), log }.into());
    }
    fs::rename(&made, &library).map_err(|error| io(&library, error))?;
    Ok(library)
}

fn assembly(functions: &[Function]) -> String {
    let mut text = String::from("    .text\n");
    for (i, Function { name, .. }) in functions.iter().enumerate() {
        let offset = i * size_of::<*const ()>();
        let jump = jump(offset);
        // Writing to a String cannot fail.
        let _ =
            write!(text, "    .globl {name}\n    .type {name}, %function\n    .p2align 4\n{name}:\n{jump}");
    }
    let bytes = size_of::<*const ()>() * functions.len();
    let _ = write!(
        text,
        "    .data\n    .p2align 4\n    .globl {TABLE}\n    .type {TABLE}, %object\n    .size {TABLE}, {bytes}\n{TABLE}:\n\
         .Ltable:\n    .zero {bytes}\n    .section .note.GNU-stack,\"\",%progbits\n"
    );
    text
}

/// A jump to the address at an offset in the table, that leaves all arguments where they are.
#[cfg(target_arch = "x86_64")]
fn jump(offset: usize) -> String {
    format!("    jmp *.Ltable+{offset}(%rip)\n")
}

/// A jump to the address at an offset in the table, that leaves all arguments where they are.
#[cfg(target_arch = "aarch64")]
fn jump(offset: usize) -> String {
    let load = format!("    adrp x16, .Ltable+{offset}\n    ldr x16, [x16, :lo12:.Ltable+{offset}]\n");
    load + "    br x16\n"
}
