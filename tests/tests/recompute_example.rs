//! The plans side by side as a person runs them: the table, the files, and what is refused.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use limpid_tests::program::{Folder, example, fail, files, succeed};
use serde_json::Value;

const PLANS: [&str; 6] =
    ["everything", "norms-activations", "connections", "blocks-root", "blocks-balanced", "nothing"];

/// The example's binary.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| example("recompute"))
}

/// A network of sixteen narrow blocks, run once.
fn small(out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("--out").arg(out).args(["--depth", "16", "--width", "16", "--tokens", "16", "--rounds", "1"]);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn six_plans_have_one_gradient_and_keep_to_what_they_say() {
    let folder = Folder::new("recompute");
    let (out, record) = (folder.join("out"), folder.join("record.json"));
    let said = succeed(small(&out, &["--json", record.to_str().unwrap()]));
    for line in said.lines().filter(|line| !line.starts_with("Written")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let record = json(&record);
    let rows = record["plans"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["policy"].as_str().unwrap()).collect::<Vec<_>>(), PLANS);
    let number = |name: &str, key: &str| {
        let row = &rows[PLANS.iter().position(|plan| *plan == name).unwrap()];
        row[key].as_f64().unwrap_or_else(|| panic!("{name}, {key}: {row}"))
    };
    for (name, row) in PLANS.into_iter().zip(rows) {
        // The table says of every plan what the record does.
        let line = said.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        assert!(line.ends_with(" same same"), "{line}");
        assert_eq!((&row["same_bits"], &row["as_planned"]), (&Value::from(true), &Value::from(true)));
        assert_eq!(row["unplanned"], serde_json::json!([]));
        let share = 100.0 * number(name, "peak") / number("everything", "peak");
        assert!(line.contains(&format!(" {share:.1} ")), "{share}: {line}");
        // Whatever comes back was compared.
        assert_eq!(row["compared_values"], row["recomputed"]);
        for time in ["time", "hashed"] {
            assert!(number(name, time) > 0.0);
        }
    }
    assert_eq!((number("everything", "time"), number("everything", "extra_flops")), (1.0, 0.0));
    // With nothing saved only the loss is held, and almost the whole forward pass is repeated.
    assert_eq!(number("nothing", "held"), 4.0);
    assert!(number("nothing", "extra_flops") > 0.95 * number("nothing", "flops"));
    assert_eq!(number("nothing", "peak"), number("everything", "peak"));
    for name in ["norms-activations", "connections", "blocks-root", "blocks-balanced"] {
        assert!(number(name, "peak") < number("everything", "peak"), "{name}");
        assert!(number(name, "held") < number("everything", "held"), "{name}");
        assert!(number(name, "extra_flops") > 0.0, "{name}");
    }
    assert!(number("connections", "extra_flops") < 0.5 * number("blocks-root", "extra_flops"));
    assert_eq!(
        record["command"],
        "cargo run --release --example recompute -- --depth 16 --width 16 --tokens 16 --rounds 1"
    );

    let found = files(&out);
    let mut expected: Vec<String> = PLANS.iter().map(|name| format!("plan-{name}.txt")).collect();
    expected.extend(["memory.svg".to_string(), "plans.json".to_string()]);
    expected.sort();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    let plans = json(&out.join("plans.json"));
    for (name, plan) in PLANS.into_iter().zip(plans.as_array().unwrap()) {
        let (steps, totals) = (plan["steps"].as_array().unwrap(), &plan["totals"]);
        assert_eq!((&plan["policy"], totals["peak"].as_f64()), (&name.into(), Some(number(name, "peak"))));
        let recomputed = steps.iter().filter(|step| step[0] == "recompute").count();
        assert_eq!(totals["recomputed"], recomputed);
        let text = String::from_utf8(found[&format!("plan-{name}.txt")].clone()).unwrap();
        assert!(text.starts_with(&format!("{name}: held ")), "{text}");
        let computed = text.lines().filter(|line| line.trim_start().starts_with('%')).count();
        assert_eq!(totals["computed"], computed);
    }
    let svg = String::from_utf8(found["memory.svg"].clone()).unwrap();
    let elsewhere = svg.replace("http://www.w3.org/2000/svg", "");
    for reference in ["http:", "https:", "<link", "@import", "NaN"] {
        assert!(!elsewhere.contains(reference), "{reference}");
    }
    for words in
        PLANS.into_iter().chain(["the backward pass begins", "16 mHC blocks, 4 streams of 16 channels"])
    {
        assert!(svg.contains(words), "{words}");
    }
}

#[test]
fn what_is_written_depends_on_the_arguments_alone() {
    let folder = Folder::new("recompute-again");
    let run = |name: &str, arguments: &[&str]| {
        let out = folder.join(name);
        assert_eq!(succeed(small(&out, &[arguments, &["--quiet"]].concat())), "");
        files(&out)
    };
    let one = run("one", &["--threads", "1"]);
    assert!(one == run("two", &["--threads", "2"]));
    assert!(one != run("f64", &["--dtype", "f64"]));
}

#[test]
fn the_spacing_can_be_given() {
    let folder = Folder::new("recompute-every");
    let record = folder.join("record.json");
    let arguments = ["--every", "5", "--dtype", "f64", "--json", record.to_str().unwrap()];
    let said = succeed(small(&folder.join("out"), &arguments));
    assert!(said.contains("save the state before a block, one in 5"), "{said}");
    let record = json(&record);
    let rows = record["plans"].as_array().unwrap();
    assert_eq!((&rows[0]["spacing"], &rows[2]["spacing"]), (&Value::Null, &5.into()));
    assert_eq!(rows[5]["held"], 8);
    assert!(rows.iter().all(|row| row["same_bits"] == true && row["as_planned"] == true));
    assert_eq!(
        record["command"],
        "cargo run --release --example recompute -- --depth 16 --width 16 --tokens 16 --dtype f64 --every 5 --rounds 1"
    );
}

#[test]
fn a_budget_adds_the_best_plan_within_it_and_the_front() {
    let folder = Folder::new("recompute-budget");
    let (out, record) = (folder.join("out"), folder.join("record.json"));
    let said = succeed(small(&out, &["--budget", "200KiB", "--json", record.to_str().unwrap()]));
    let line = said.lines().find(|line| line.starts_with("within 200.0 KiB")).expect("a row of its own");
    assert!(line.ends_with(" same same"), "{line}");
    let record = json(&record);
    let row = record["plans"].as_array().unwrap().last().unwrap();
    assert!(row["peak"].as_u64().unwrap() <= 200 << 10 && row["extra_flops"].as_u64().unwrap() > 0, "{row}");
    assert_eq!(record["settings"]["budget"], 200 << 10);
    let found = files(&out);
    let csv = String::from_utf8(found["front.csv"].clone()).unwrap();
    let points: Vec<Vec<u64>> = (csv.lines().skip(1))
        .map(|line| line.split(',').take(4).map(|number| number.parse().unwrap()).collect())
        .collect();
    assert!(points.windows(2).all(|pair| pair[0][0] < pair[1][0] && pair[0][1] > pair[1][1]), "{csv}");
    assert!(points.iter().all(|point| point[2] <= point[1]), "{csv}");
    assert_eq!(points.last().unwrap()[1], 0, "keeping everything repeats nothing");
    let svg = String::from_utf8(found["front.svg"].clone()).unwrap();
    assert!(svg.contains("no plan is below") && !svg.contains("NaN"));
    assert!(found.contains_key("plan-within-200.0-KiB.txt"));
}

#[test]
fn plans_are_shown_without_running_anything() {
    let folder = Folder::new("recompute-plan");
    let out = folder.join("out");
    let plan = succeed(small(&out, &["--plan", "connections"]));
    assert!(plan.starts_with("connections: held "), "{plan}");
    for line in ["  [2] save the state before a block, one in ", "block.15/write", "recompute"] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    let diff = succeed(small(&out, &["--diff", "everything", "connections"]));
    assert!(diff.starts_with("− everything: ") && diff.contains("\n+ connections: "), "{diff}");
    assert!(diff.contains("save → recompute  rms_norm in block.15/branch at "), "{diff}");
    let none = succeed(small(&out, &["--diff", "nothing", "nothing"]));
    assert_eq!(none.lines().count(), 4, "{none}");
    assert!(!out.exists());
}

#[test]
fn what_cannot_be_is_one_line() {
    let folder = Folder::new("recompute-refused");
    let out = folder.join("out");
    let file = folder.file("file", "");
    let names = PLANS.join(", ");
    let cases: [(&[&str], String); 13] = [
        (&["--plan", "most"], format!("--plan: expected one of {names}, found \"most\"")),
        (&["--diff", "nothing", "most"], format!("--diff: expected one of {names}, found \"most\"")),
        (&["--every", "0"], "--every: expected at least 1, found 0".into()),
        (&["--depth", "0"], "--depth: expected at least 1, found 0".into()),
        (&["--streams", "0"], "--streams: expected at least 1, found 0".into()),
        (&["--tokens", "0"], "--tokens: expected at least 1, found 0".into()),
        (&["--width", "5000"], "--width: expected at most 1024, found 5000".into()),
        (&["--threads", "65"], "--threads: expected at most 64, found 65".into()),
        (&["--dtype", "bf16"], "--dtype: expected f32 or f64, found \"bf16\"".into()),
        (&["--budget", "much"], "--budget: expected a number of bytes such as 12MiB, found \"much\"".into()),
        (&["--budget", "-1"], "unexpected argument '-1' found".into()),
        (&["--every", "x"], "invalid value 'x' for '--every <K>': invalid digit found in string".into()),
        (
            &["--json", &format!("{file}/x/y")],
            format!("{file}/x: cannot be written to: Not a directory (os error 20)"),
        ),
    ];
    let refused = |out: &Path, arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("--out").arg(out).args(arguments).stdin(Stdio::null());
        fail(command, 2)
    };
    for (arguments, expected) in cases {
        assert_eq!(refused(&out, arguments), format!("recompute: {expected}"), "{arguments:?}");
        assert!(!out.exists(), "{arguments:?} left something");
    }
    let blocked = Path::new(&file).join("out");
    let expected = format!("{}: cannot be written to: Not a directory (os error 20)", blocked.display());
    assert_eq!(refused(&blocked, &[]), format!("recompute: {expected}"));
}
