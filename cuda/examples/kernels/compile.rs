//! What every kernel takes on every architecture, as the compiler says.

use std::fmt::Write;
use std::thread;

use limpid_cuda::{ARCHITECTURES, Resources, Said, families};
use serde_json::json;

use crate::{Arguments, write_json};

/// Kernels that may have bytes on a thread's stack, up to how many, and why. Elsewhere an array that is not in registers is a
/// mistake.
const STACK: [(&str, u32, &str); 4] = [
    ("cos_f64", 40, "reducing a large argument takes a table of words"),
    ("sin_f64", 40, "as above"),
    (
        "connection_write_backward_4_",
        256,
        "the 32 sums of a token that lanes hand each other, once at its end",
    ),
    ("connection_write_backward_8_", 256, "as above"),
];

/// Whether a kernel has more on the stack than it may.
fn is_too_much(found: &Resources) -> bool {
    let allowed = STACK.iter().find(|(kernel, ..)| found.kernel.starts_with(kernel));
    found.stack > allowed.map_or(0, |&(_, bytes, _)| bytes)
}

/// Compiles everything. `false` if a kernel spills registers, has a stack that is not known here, or is warned of.
pub fn compile(arguments: &Arguments) -> Result<bool, String> {
    let mut table = String::from(HEADER);
    let mut all = Vec::new();
    let mut wrong = Vec::new();
    for family in families() {
        // One thread for each architecture: the compiler takes seconds for a file.
        let said: Vec<Said> = thread::scope(|scope| {
            let compile = |architecture| scope.spawn(move || family.resources(architecture));
            let compiling = ARCHITECTURES.map(compile);
            compiling
                .into_iter()
                .map(|column| column.join().expect("compiling does not panic"))
                .collect::<Result<_, _>>()
        })?;
        for (architecture, said) in ARCHITECTURES.iter().zip(&said) {
            wrong.extend(
                said.warnings.iter().map(|line| format!("{} for {architecture}: {line}", family.name)),
            );
        }
        let columns: Vec<Vec<Resources>> = said.into_iter().map(|said| said.kernels).collect();
        if columns.iter().all(Vec::is_empty) {
            return Err(format!("{}: the compiler says nothing of its kernels", family.name));
        }
        let names = columns.iter().flatten().map(|resources| resources.kernel.clone());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names.dedup();
        writeln!(table, "\n## {}\n", family.name).expect("writing to a string");
        writeln!(table, "| kernel | {} |", ARCHITECTURES.join(" | ")).expect("writing to a string");
        writeln!(table, "|---{}|", "|---".repeat(ARCHITECTURES.len())).expect("writing to a string");
        for name in &names {
            let mut cells = Vec::new();
            for (architecture, column) in ARCHITECTURES.iter().zip(&columns) {
                // Some kernels use instructions of one architecture alone.
                let Some(found) = column.iter().find(|resources| resources.kernel == *name) else {
                    cells.push("–".to_string());
                    continue;
                };
                if found.spilled > 0 {
                    wrong.push(format!("{found} on {architecture}: it spills registers"));
                }
                if is_too_much(found) {
                    wrong.push(format!("{found} on {architecture}: its stack is not known here"));
                }
                cells.push(cell(found));
                all.push(json!({
                    "file": family.name, "kernel": name, "architecture": architecture, "registers": found.registers,
                    "shared": found.shared, "stack": found.stack, "spilled": found.spilled,
                }));
            }
            writeln!(table, "| {name} | {} |", cells.join(" | ")).expect("writing to a string");
        }
        let made_for = ARCHITECTURES.iter().zip(&columns).filter(|(_, column)| !column.is_empty());
        let made_for: Vec<&str> = made_for.map(|(architecture, _)| *architecture).collect();
        println!("{}: {} kernels for {}", family.name, names.len(), made_for.join(", "));
    }
    if let Some(path) = &arguments.table {
        std::fs::write(path, &table).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    write_json(&arguments.json, &json!(all))?;
    for line in &wrong {
        println!("{line}");
    }
    let complaints = if wrong.len() == 1 { "complaint" } else { "complaints" };
    println!("{} kernels compiled, {} {complaints}", all.len(), wrong.len());
    Ok(wrong.is_empty())
}

const HEADER: &str = "\
# What kernels take

Registers of a thread; shared memory of a block in bytes, without what a launch asks for; and the bytes of a thread's
stack, where there are any. No kernel spills registers. As NVRTC 13.0.88 compiles them:
`cargo run --release --example kernels -- --compile --table cuda/kernels/RESOURCES.md`.
";

fn cell(resources: &Resources) -> String {
    let mut text = resources.registers.to_string();
    if resources.shared > 0 {
        text += &format!(", {} B shared", resources.shared);
    }
    if resources.stack > 0 {
        text += &format!(", {} B stack", resources.stack);
    }
    text
}
