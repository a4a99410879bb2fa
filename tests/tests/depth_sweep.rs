//! The depth sweep as a person runs it: its files, its messages, and what it shows at a small size.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use limpid_tests::program::{Folder, example, files, succeed};
use serde_json::Value;

/// The example's binary.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| example("depth_sweep"))
}

/// A sweep of few points and one epoch.
fn small(out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("--out").arg(out).args(["--epochs", "1", "--samples", "100", "--batch", "32"]);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The rows of sweep.csv, cells by the names of their columns.
fn runs(out: &Path) -> Vec<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(out.join("sweep.csv")).unwrap();
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            assert_eq!(cells.len(), header.len(), "{line}");
            header.iter().zip(cells).map(|(name, cell)| (name.to_string(), cell.to_string())).collect()
        })
        .collect()
}

fn number(run: &BTreeMap<String, String>, column: &str) -> f64 {
    run[column].parse().unwrap_or_else(|_| panic!("{column}: {run:?}"))
}

const WIDTH_8: [&str; 6] = ["--depths", "2,5", "--seeds", "2", "--width", "8"];

#[test]
fn a_sweep_writes_a_row_per_run_figures_and_a_report() {
    let folder = Folder::new("files");
    let out = folder.join("out");
    let said = succeed(small(&out, &WIDTH_8));
    for line in said.lines().filter(|line| !line.starts_with("Written")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let names = ["accuracy.svg", "composite.svg", "gradients.svg", "report.html", "sweep.csv", "sweep.json"];
    let found = files(&out);
    assert_eq!(found.keys().collect::<Vec<_>>(), names);
    for name in ["accuracy.svg", "composite.svg", "gradients.svg", "report.html"] {
        let text = String::from_utf8(found[name].clone()).unwrap();
        let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
        for reference in ["http:", "https:", "<link", "@import", "NaN"] {
            assert!(!elsewhere.contains(reference), "{name}: {reference}");
        }
        assert!(text.contains("mhc"), "{name}");
    }

    let runs = runs(&out);
    let expected = ["2", "5"].into_iter().flat_map(|depth| {
        ["plain", "residual", "hc", "mhc"]
            .into_iter()
            .flat_map(move |variant| ["0", "1"].map(|seed| [variant, depth, seed]))
    });
    let found: Vec<[&str; 3]> =
        runs.iter().map(|run| ["variant", "depth", "seed"].map(|column| run[column].as_str())).collect();
    assert_eq!(found, expected.collect::<Vec<_>>());
    for run in &runs {
        let (blocks, streams) = (run["depth"] != "2", ["hc", "mhc"].contains(&run["variant"].as_str()));
        assert!((0.0..=1.0).contains(&number(run, "val_accuracy")) && run["diverged_epoch"].is_empty());
        for (column, cell) in run {
            // Without hidden blocks there are neither their gradients nor mixes; without streams there are no mixes.
            let gone = column.starts_with("grad_") && !blocks
                || (column.starts_with("perturbed_") || column.starts_with("learned_"))
                    && !(blocks && streams);
            if column != "diverged_epoch" {
                assert_eq!(cell.is_empty(), gone, "{column}: {run:?}");
            }
            if !gone && column.starts_with("grad_") {
                assert!(number(run, column) > 0.0, "{column}: {run:?}");
            }
        }
    }

    let record: Value = serde_json::from_slice(&files(&out)["sweep.json"]).unwrap();
    assert_eq!(
        record["command"],
        "cargo run --release --example depth_sweep -- --depths 2,5 --seeds 2 --epochs 1 --width 8 --samples 100 --batch 32"
    );
    assert_eq!(record["settings"]["seeds"], serde_json::json!([0, 1]));
    let results = record["results"].as_array().unwrap();
    assert_eq!(results.len(), 8);
    // A spread is that of the rows.
    let of_hc = results.iter().find(|r| r["variant"] == "hc" && r["depth"] == 5).unwrap();
    let gains: Vec<f64> = runs
        .iter()
        .filter(|run| run["variant"] == "hc" && run["depth"] == "5")
        .map(|run| number(run, "perturbed_forward"))
        .collect();
    let spread = |name: &str| of_hc["perturbed_forward"][name].as_f64().unwrap();
    assert_eq!((spread("low"), spread("high")), (gains[0].min(gains[1]), gains[0].max(gains[1])));
    assert_eq!(spread("median"), (gains[0] + gains[1]) / 2.0);
}

#[test]
fn a_seed_decides_every_byte_whatever_the_threads() {
    let folder = Folder::new("determinism");
    let run = |name: &str, arguments: &[&str]| {
        let out = folder.join(name);
        assert_eq!(succeed(small(&out, &[&WIDTH_8, arguments, &["--quiet"]].concat())), "");
        files(&out)
    };
    let one = run("one", &["--threads", "1"]);
    assert!(one == run("two", &["--threads", "2"]));
    let other = run("other", &["--seed", "7"]);
    assert_ne!(one["sweep.csv"], other["sweep.csv"]);
    // A run does not depend on the runs beside it.
    let alone = run("alone", &["--variants", "mhc"]);
    let rows = |files: &BTreeMap<String, Vec<u8>>| {
        let text = String::from_utf8(files["sweep.csv"].clone()).unwrap();
        text.lines().filter(|line| line.starts_with("mhc")).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(rows(&alone), rows(&one));
}

#[test]
fn plain_dies_with_depth_before_anything_is_learned() {
    let folder = Folder::new("plain");
    let out = folder.join("out");
    let arguments = ["--variants", "plain,residual", "--depths", "10,20,30", "--seeds", "3", "--width", "32"];
    succeed(small(&out, &[&arguments[..], &["--quiet"]].concat()));
    let runs = runs(&out);
    let of = |variant: &str, depth: usize, seed: u64| {
        let is = |run: &&BTreeMap<String, String>| {
            run["variant"] == variant
                && number(run, "depth") as usize == depth
                && number(run, "seed") as u64 == seed
        };
        number(runs.iter().find(is).unwrap(), "grad_second_before")
    };
    for seed in 0..3 {
        for depth in [10, 20] {
            let (shallow, deep) = (of("plain", depth, seed), of("plain", depth + 10, seed));
            assert!(deep < shallow / 10.0, "seed {seed}, {depth} layers: {shallow:e}, 10 more: {deep:e}");
        }
        assert!(of("residual", 30, seed) > 1e6 * of("plain", 30, seed), "seed {seed}");
    }
}

#[test]
fn a_free_mix_amplifies_with_depth_and_a_doubly_stochastic_one_does_not() {
    let folder = Folder::new("composite");
    let out = folder.join("out");
    let arguments = ["--variants", "hc,mhc,mhc-lite,identity-hc", "--depths", "5,50", "--seeds", "3"];
    succeed(small(&out, &[&arguments[..], &["--width", "8", "--quiet"]].concat()));
    let runs = runs(&out);
    let of = |variant: &str, depth: &str, seed: &str, column: &str| {
        let is = |run: &&BTreeMap<String, String>| {
            run["variant"] == variant && run["depth"] == depth && run["seed"] == seed
        };
        number(runs.iter().find(is).unwrap(), column)
    };
    for seed in ["0", "1", "2"] {
        let hc = |depth| of("hc", depth, seed, "perturbed_forward");
        assert!(hc("50") > hc("5") && hc("5") > 1.0, "seed {seed}: {} {}", hc("5"), hc("50"));
        for variant in ["mhc", "mhc-lite"] {
            for depth in ["5", "50"] {
                // Rows sum to 1, each to a rounding of f32.
                let forward = of(variant, depth, seed, "perturbed_forward");
                assert!((forward - 1.0).abs() < 1e-5, "{variant}, {depth} layers, seed {seed}: {forward}");
                assert!(of(variant, depth, seed, "perturbed_backward") < 1.01, "{variant}, {depth}, {seed}");
            }
            // And yet what tells the streams apart shrinks.
            let (shallow, deep) =
                (of(variant, "5", seed, "perturbed_sigma2"), of(variant, "50", seed, "perturbed_sigma2"));
            assert!(
                0.0 < deep && deep < shallow && shallow < 1.0,
                "{variant}, seed {seed}: {shallow} {deep}"
            );
        }
        assert_eq!(of("identity-hc", "50", seed, "perturbed_forward"), 1.0);
        assert_eq!(of("identity-hc", "50", seed, "perturbed_sigma2"), 1.0);
    }
}

#[test]
fn every_variant_can_be_swept() {
    let folder = Folder::new("all");
    let out = folder.join("out");
    let variants = limpid_nn::residual::Variant::ALL.map(|variant| variant.name()).join(",");
    let arguments =
        ["--variants", &variants, "--depths", "2,4", "--seeds", "1", "--width", "8", "--streams", "2"];
    let said = succeed(small(&out, &arguments));
    for line in said.lines().filter(|line| !line.starts_with("Written")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert_eq!(runs(&out).len(), 2 * 22);
    // Without streams there is no map to draw.
    let plain = folder.join("plain");
    succeed(small(&plain, &["--variants", "plain", "--depths", "3", "--seeds", "1", "--width", "8"]));
    assert!(!files(&plain).contains_key("composite.svg"));
}

#[test]
fn bad_input_is_one_line_and_leaves_nothing() {
    let folder = Folder::new("bad-input");
    let out = folder.join("out");
    let cases: [(&[&str], &str); 12] = [
        (&["--depths", "5,1"], "--depths: expected at least 2, found 1"),
        (&["--depths", "5,5"], "--depths: expected growing numbers, found 5 after 5"),
        (&["--depths", "5,20000"], "--depths: expected at most 10000, found 20000"),
        (&["--seeds", "0"], "--seeds: expected at least 1, found 0"),
        (&["--width", "0"], "--width: expected at least 1, found 0"),
        (&["--threads", "65"], "--threads: expected at most 64, found 65"),
        (&["--lr", "0"], "--lr: expected a positive number, found 0"),
        (&["--perturbation", "-1"], "--perturbation: expected a number of at least 0, found -1"),
        (&["--perturbation", "nan"], "--perturbation: expected a number of at least 0, found NaN"),
        (&["--variants", "hc,hc"], "--variants: hc is named twice"),
        (
            &["--variants", "mhc-lite", "--streams", "5"],
            "--streams: expected at most 4 for mhc-lite, found 5",
        ),
        (&["--depths", "x"], "invalid value 'x' for '--depths <LIST>': invalid digit found in string"),
    ];
    let fail = |arguments: &[&str]| {
        let Output { status, stderr, .. } = small(&out, arguments).output().unwrap();
        let message = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{arguments:?}: {message}");
        assert_eq!(message.matches('\n').count(), 1, "{arguments:?}: {message}");
        assert!(!out.exists(), "{arguments:?} left something");
        message.trim_end().to_string()
    };
    for (arguments, expected) in cases {
        assert_eq!(fail(arguments), format!("depth_sweep: {expected}"), "{arguments:?}");
    }
    let unknown = fail(&["--variants", "nope"]);
    assert!(unknown.starts_with("depth_sweep: --variants: variant: expected one of plain, "), "{unknown}");
    assert!(unknown.ends_with(", found nope"), "{unknown}");
}
