//! What every kernel takes on every architecture, as the compiler says.

use std::fmt::Write;
use std::thread;

use limpid_cuda::{ARCHITECTURES, Resources, families};
use serde_json::json;

use crate::{Arguments, write_json};

/// Compiles everything. `false` if a kernel spills registers.
pub fn compile(arguments: &Arguments) -> Result<bool, String> {
    let mut table = String::from(HEADER);
    let mut all = Vec::new();
    let mut spilled = Vec::new();
    for family in families() {
        // One thread for each architecture: the compiler takes seconds for a file.
        let columns: Vec<Vec<Resources>> = thread::scope(|scope| {
            let compile = |architecture| scope.spawn(move || family.resources(architecture));
            let compiling = ARCHITECTURES.map(compile);
            compiling
                .into_iter()
                .map(|column| column.join().expect("compiling does not panic"))
                .collect::<Result<_, _>>()
        })?;
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
                    spilled.push(format!("{found} on {architecture}"));
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
    for line in &spilled {
        println!("spills: {line}");
    }
    println!("{} kernels compiled, {} of them spill registers", all.len(), spilled.len());
    Ok(spilled.is_empty())
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
