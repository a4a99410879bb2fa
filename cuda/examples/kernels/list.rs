//! Every kernel, by file.

use std::collections::BTreeMap;

use limpid_cuda::{HEADERS, emulated, families};
use limpid_emulator::{Build, Program, Source, compile};
use serde_json::json;

use crate::{Arguments, write_json};

/// Names of kernels without the dtype, and the dtypes that each has.
fn by_stem(names: &[String]) -> BTreeMap<&str, Vec<&str>> {
    let mut stems: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in names {
        let (stem, suffix) = name.rsplit_once('_').unwrap_or((name, ""));
        stems.entry(stem).or_default().push(suffix);
    }
    stems
}

pub fn list(arguments: &Arguments) -> Result<bool, String> {
    let mut all = Vec::new();
    let mut total = 0;
    for family in families() {
        let source = Source { name: family.name, text: family.text, headers: &HEADERS, defines: &[] };
        let library = compile(&source, Build::Fast, &emulated::cache_folder()).map_err(|e| e.to_string())?;
        let names = Program::open(&library).map_err(|e| e.to_string())?.kernel_names();
        println!("{}", family.name);
        for (stem, suffixes) in by_stem(&names) {
            println!("  {stem:<34} {}", suffixes.join(" "));
        }
        total += names.len();
        all.push(json!({ "file": family.name, "kernels": names }));
    }
    println!("{total} kernels in {} files; --help says how to run one", all.len());
    write_json(&arguments.json, &json!(all))?;
    Ok(true)
}
