//! The table of derivatives as a person runs it, with a budget small enough for every day.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use limpid_tests::program::example;
use serde_json::Value;

fn gradcheck(arguments: &[&str]) -> Output {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    Command::new(BINARY.get_or_init(|| example("gradcheck"))).args(arguments).output().unwrap()
}

/// What it writes with `--json`.
fn record(arguments: &[&str]) -> (Value, Output) {
    let name = arguments.join("-").replace(|c: char| !c.is_ascii_alphanumeric(), "");
    let path = std::env::temp_dir().join(format!("limpid-gradcheck-{}-{name}.json", std::process::id()));
    let output = gradcheck(&[arguments, &["--json", path.to_str().unwrap()]].concat());
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)));
    std::fs::remove_file(&path).unwrap();
    (serde_json::from_str(&text).unwrap(), output)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_derivative_passes() {
    let (record, output) = record(&["--cases", "10", "--mutants", "0"]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    let count = |key: &str| record[key].as_u64().unwrap();
    assert!(count("ops") > 100 && count("cases") > 900, "{record}");
    assert_eq!((count("fail"), count("mutants")), (0, 0));
    assert_eq!(count("pass") + count("inconclusive"), count("cases"));
    assert!(count("inconclusive") * 100 <= count("cases"), "{}", text(&output.stdout));
    for row in record["rows"].as_array().unwrap() {
        let ulps = &row["ulps"]["f32"];
        // Infinity, which JSON writes as null, is what is not a number.
        // In the tail of a module's gelu, 1 + erf leaves a few digits only.
        let most = if row["group"] == "op" { 100.0 } else { 1e4 };
        assert!(ulps["value"].as_f64().is_some_and(|ulps| ulps < most), "{row}");
        assert!(ulps["gradient"].as_f64().is_some(), "{row}");
    }
}

#[test]
fn mutants_are_killed() {
    let (record, output) =
        record(&["--cases", "5", "--op", "tanh", "--op", "div", "--op", "softmax", "--op", "linear"]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    let count = |key: &str| record[key].as_u64().unwrap();
    assert_eq!((count("ops"), count("survivors")), (4, 0), "{}", text(&output.stdout));
    assert!(count("mutants") > 100 && count("killed") + count("excluded") == count("mutants"));
}

#[test]
fn the_table_fits_a_terminal_and_the_same_seed_says_the_same() {
    let rows = ["exp", "relu", "max", "LayerNorm"];
    let mut arguments = vec!["--cases", "5", "--mutants", "24"];
    rows.iter().for_each(|row| arguments.extend(["--op", row]));
    let run = || {
        let output = gradcheck(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let (first, second) = (run(), run());
    for row in rows {
        assert!(first.lines().any(|line| line.starts_with(row) && line.contains('│')), "{row}\n{first}");
    }
    let longest = first.lines().take(30).map(|line| line.chars().count()).max();
    assert!(longest <= Some(80), "{longest:?}\n{first}");
    let table = |text: &str| text.lines().filter(|line| line.contains('│')).collect::<Vec<_>>().join("\n");
    assert_eq!(table(&first), table(&second));
}

#[test]
fn what_is_not_there_is_named() {
    for (arguments, expected) in [
        (["--op", "tanhh"], "--op: expected one of neg, affine, exp"),
        (["--cases", "0"], "--cases: expected at least 1, found 0"),
    ] {
        let output = gradcheck(&arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}

/// Methods of `Var` that the table does not have, and why.
const NOT_IN_THE_TABLE: [(&str, &str); 6] = [
    ("argmax", "integers carry no gradient"),
    ("argsort", "integers carry no gradient"),
    ("cast", "to differences, rounding is a staircase; its rule is tested where it is exact"),
    ("detach", "no gradient passes"),
    ("fill", "a constant"),
    ("not equal not_equal lt le gt ge and or", "truth carries no gradient"),
];

#[test]
fn every_operation_is_in_the_table() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = std::fs::read_to_string(folder.join("examples/gradcheck/ops.rs")).unwrap();
    let excluded: BTreeSet<&str> = NOT_IN_THE_TABLE.iter().flat_map(|(names, _)| names.split(' ')).collect();
    let (mut found, mut missing) = (0, Vec::new());
    for file in std::fs::read_dir(folder.join("autograd/src/ops")).unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for line in source.lines().filter_map(|line| line.trim().strip_prefix("pub fn ")) {
            let Some((name, rest)) = line.split_once('(') else { continue };
            let name = name.trim_end_matches("<'t>");
            let on_values = rest.contains("-> Var<'t>") || rest.contains("(Var<'t>") || name == "einsum";
            if !on_values || excluded.contains(name) {
                continue;
            }
            found += 1;
            let call = format!("{name}(");
            let is_called = |(at, _): (usize, &str)| {
                // `exp(` is not in the table because `logsumexp(` is, nor because it is defined there.
                let before = table[..at].trim_end_matches(' ').chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            };
            if !table.match_indices(&call).any(is_called) {
                missing.push(name.to_string());
            }
        }
    }
    assert!(found > 60, "{found}");
    assert_eq!(missing, Vec::<String>::new());
}
