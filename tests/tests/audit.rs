//! The audit as a person runs it: its files, its messages, and the identities that its numbers keep.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use limpid_nn::residual::Variant;
use limpid_tests::program::{Folder, example, files};
use serde_json::Value;

/// The example's binary.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| example("audit"))
}

/// Runs the program with these arguments, separated by blanks.
fn run(out: &Path, arguments: &str) -> Output {
    let mut command = Command::new(binary());
    command.arg("--out").arg(out).args(arguments.split_whitespace()).stdin(Stdio::null());
    command.output().unwrap()
}

/// Runs to the end, which has to be a good one; what it printed.
#[track_caller]
fn succeed(out: &Path, arguments: &str) -> String {
    let Output { status, stdout, stderr } = run(out, arguments);
    assert!(status.success(), "{arguments}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Runs to an end that has to have exit code 2 and one line on the error stream; the line.
#[track_caller]
fn fail(arguments: &str) -> String {
    let folder = Folder::new("fail");
    let Output { status, stderr, stdout } = run(&folder.join("out"), arguments);
    let message = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{arguments}: {message}");
    assert_eq!(message.matches('\n').count(), 1, "{arguments}: {message}");
    assert!(stdout.is_empty(), "{arguments}");
    message.trim_end().to_string()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn record(out: &Path) -> Value {
    serde_json::from_str(&text(&out.join("run.json"))).unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// The audits of a record: variant, moment, and the audit.
fn audits(record: &Value) -> Vec<(&str, &str, &Value)> {
    list(&record["results"])
        .iter()
        .flat_map(|result| {
            let variant = result["variant"].as_str().unwrap();
            list(&result["audits"]).iter().map(move |a| (variant, a["moment"].as_str().unwrap(), a))
        })
        .collect()
}

/// What holds of every audit of a network of finite numbers, whatever joins its layers.
#[track_caller]
fn assert_identities(record: &Value) {
    let depth = record["settings"]["depth"].as_u64().unwrap() as usize;
    for (variant, moment, audit) in audits(record) {
        let what = format!("{variant} {moment}, depth {depth}");
        assert!(number(&audit["loss"]) > 0.0, "{what}");
        let blocks = list(&audit["blocks"]);
        assert_eq!(blocks.len(), depth - 2, "{what}");
        let mut saved = 0;
        for block in blocks {
            let what = format!("{what}, {}", block["scope"]);
            if number(&block["grad_norm"]) > 0.0 {
                let shares = block["shares"].as_object().unwrap_or_else(|| panic!("{what}: no shares"));
                let sum: f64 = shares.values().map(number).sum();
                let size: f64 = shares.values().map(|share| number(share).abs()).sum();
                assert!((sum - 1.0).abs() < 1e-5 * size, "{what}: shares sum to {sum}");
            }
            let sigma: Vec<f64> = list(&block["jacobian"]["singular_values"]).iter().map(number).collect();
            assert!(
                sigma.is_sorted_by(|a, b| a >= b) && sigma.iter().all(|s| *s >= 0.0),
                "{what}: {sigma:?}"
            );
            let c = &block["composite"];
            if c["streams"] == 1 {
                assert!(c["sigma_2"].is_null() && c["lambda_2"].is_null(), "{what}");
            } else {
                // The second singular value is at most the first, and that at most √(row gain · column gain).
                let bound = (number(&c["gain_forward"]) * number(&c["gain_backward"])).sqrt();
                assert!(number(&c["sigma_2"]) <= bound * (1.0 + 1e-5) + 1e-6, "{what}: {c}");
                // A sample of which a stream is 0 has no cosine.
                assert!(c["cosine"].as_f64().is_none_or(|cosine| cosine.abs() <= 1.0 + 1e-6), "{what}");
            }
            saved += block["saved_bytes"].as_u64().unwrap();
        }
        assert!(saved <= audit["held_bytes"].as_u64().unwrap(), "{what}: blocks hold more than the tape");
        let terms = list(&audit["path_lengths"]);
        if let Some(rounding) = audit["path_lengths_rounding"].as_f64() {
            assert!(rounding < 1e-5, "{what}: path lengths miss the gradient by {rounding:e}");
            let sum: f64 = terms.iter().map(|term| number(&term["share"])).sum();
            let size: f64 = terms.iter().map(|term| number(&term["share"]).abs()).sum();
            assert!((sum - 1.0).abs() < 1e-9 * size, "{what}: path lengths sum to {sum}");
        }
    }
    for result in list(&record["results"]) {
        let nodes = list(&result["nodes"]);
        let held: u64 = nodes.iter().map(|node| node[2].as_u64().unwrap()).sum();
        let audit = list(&result["audits"]).last().unwrap();
        assert_eq!(held, audit["held_bytes"].as_u64().unwrap(), "{}: bytes by node", result["variant"]);
    }
}

const SMALL: &str = "--depth 5 --width 8 --epochs 2";

#[test]
fn every_variant_by_name_alone_and_all_together() {
    let folder = Folder::new("all");
    let all = folder.join("all");
    let said = succeed(&all, &format!("--all {SMALL}"));
    let record = record(&all);
    assert_eq!(list(&record["results"]).len(), Variant::ALL.len());
    assert_identities(&record);
    let together = files(&all);
    for (variant, result) in Variant::ALL.into_iter().zip(list(&record["results"])) {
        assert_eq!(result["variant"], variant.name());
        assert!(said.lines().any(|line| line.starts_with(variant.name())), "{variant}: {said}");
        let alone = folder.join(variant.name());
        let said = succeed(&alone, &format!("--variant {variant} {SMALL}"));
        assert!(said.contains(variant.formula()), "{variant}: {said}");
        assert!(said.lines().all(|line| line.chars().count() <= 80), "{variant}: wider than 80:\n{said}");
        // A network is the same whatever stands beside it.
        let by_itself: Value = self::record(&alone);
        assert_eq!(&by_itself["results"][0], result, "{variant}");
        for ending in ["txt", "dot", "json"] {
            let name = format!("tapes/{variant}.{ending}");
            assert!(files(&alone)[&name] == together[&name], "{name}");
        }
        let tape: Value = serde_json::from_slice(&together[&format!("tapes/{variant}.json")]).unwrap();
        assert_eq!(list(&tape["nodes"]).len(), list(&result["nodes"]).len(), "{variant}");
    }
    assert!(said.lines().all(|line| line.chars().count() <= 80), "wider than 80:\n{said}");
}

#[test]
fn every_figure_is_a_file_and_every_table_has_its_rows() {
    let folder = Folder::new("files");
    let out = folder.join("out");
    assert!(succeed(&out, &format!("--variant residual,mhc --quiet {SMALL}")).is_empty());
    let mut expected: Vec<String> = ["before", "after"]
        .iter()
        .flat_map(|moment| {
            let figures = ["path_lengths", "shares", "composite", "cosines", "jacobians"];
            figures.map(|figure| format!("figures/{figure}_{moment}.svg"))
        })
        .chain(["gradient_norms", "memory", "loss", "boundary"].map(|figure| format!("figures/{figure}.svg")))
        .chain(
            ["residual", "mhc"].iter().flat_map(|v| ["txt", "dot", "json"].map(|e| format!("tapes/{v}.{e}"))),
        )
        .chain(
            [
                "layers",
                "blocks",
                "metrics",
                "gradient_norms",
                "path_lengths",
                "jacobians",
                "memory",
                "boundary",
            ]
            .map(|table| format!("{table}.csv")),
        )
        .chain(["report.html", "run.json"].map(String::from))
        .collect();
    expected.sort();
    let found = files(&out);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    let rows = |name: &str| {
        let text = text(&out.join(name));
        let columns = text.lines().next().unwrap().split(',').count();
        assert!(text.lines().all(|line| line.split(',').count() == columns), "{name}");
        text.lines().count() - 1
    };
    // Two variants; two moments; five layers, three of them blocks; two epochs; width 8.
    assert_eq!(rows("layers.csv"), 2 * 2 * 5);
    assert_eq!(rows("blocks.csv"), 2 * 2 * 3);
    assert_eq!(rows("metrics.csv"), 2 * 2);
    assert_eq!(rows("gradient_norms.csv"), 2 * 2 * 5);
    assert_eq!(rows("jacobians.csv"), 2 * 2 * 3 * 8);
    let nodes: usize = list(&record(&out)["results"]).iter().map(|r| list(&r["nodes"]).len()).sum();
    assert_eq!(rows("memory.csv"), nodes);
    assert_eq!(rows("boundary.csv"), 2 * 60 * 60);
    assert!(rows("path_lengths.csv") >= 2 * 2 * 4);
}

#[test]
fn the_numbers_say_what_each_connection_is() {
    let folder = Folder::new("identities");
    let out = folder.join("out");
    let arguments = "--depth 8 --width 8 --epochs 2 --dtype f64 --all";
    succeed(&out, arguments);
    let record = record(&out);
    assert_identities(&record);
    for (variant, moment, audit) in audits(&record) {
        let what = format!("{variant} {moment}");
        let terms = list(&audit["path_lengths"]);
        assert!(number(&audit["path_lengths_rounding"]) < 1e-13, "{what}");
        for block in list(&audit["blocks"]) {
            let (c, shares) = (&block["composite"], &block["shares"]);
            let gains = [number(&c["gain_forward"]), number(&c["gain_backward"])];
            match variant {
                "plain" => {
                    assert_eq!((gains, number(&shares["branch"])), ([0.0, 0.0], 1.0), "{what}");
                    assert_eq!(terms.len(), 1, "{what}: all paths cross every branch");
                    assert_eq!((terms[0]["branches"].as_str(), number(&terms[0]["share"])), (Some("6"), 1.0));
                }
                "residual" | "scaled" | "complete-p" | "rezero" | "layerscale" | "droppath" | "euler"
                | "pre-norm" | "peri-norm" => {
                    assert_eq!((gains, number(&c["spread"])), ([1.0, 1.0], 0.0), "{what}");
                    assert_eq!((number(&shares["control"]), number(&c["row_error"])), (0.0, 0.0), "{what}");
                }
                "mhc" | "mhc-lite" => {
                    assert!(gains.iter().all(|gain| (gain - 1.0).abs() < 1e-4), "{what}: {gains:?}");
                    assert!(number(&c["row_error"]) < 1e-12, "{what}: rows are normalised last");
                    assert!(number(&c["lambda_2"]) < 1.0 && number(&c["sigma_2"]) < 1.0, "{what}");
                }
                "identity-hc" => {
                    assert_eq!(
                        (gains, number(&c["sigma_2"]), number(&c["lambda_2"])),
                        ([1.0, 1.0], 1.0, 1.0)
                    );
                }
                "hc" => assert_eq!(number(&shares["control"]), 0.0, "{what}: its coefficients are constants"),
                "gated" => assert!(gains[0] < 1.0 && number(&c["spread"]) > 0.0, "{what}: {c}"),
                _ => {}
            }
        }
        let through_control = terms.iter().any(|term| term["through_control"] == true);
        let dynamic = ["gated", "delta", "attnres", "hc-dynamic", "mhc", "mhc-lite", "identity-hc"];
        assert_eq!(through_control, dynamic.contains(&variant), "{what}");
    }
}

#[test]
fn at_any_depth_and_width() {
    let folder = Folder::new("depth");
    for (name, arguments) in [
        ("depth-2", "--all --depth 2 --width 4 --epochs 1"),
        ("depth-50", "--all --depth 50 --width 4 --epochs 0"),
        ("one-by-one", "--variant plain,residual,gated,hc --depth 3 --width 1 --epochs 1 --streams 1"),
        ("wide", "--variant residual --depth 3 --width 200 --epochs 0"),
        (
            "streams",
            "--variant mhc,hc,identity-hc --depth 4 --width 3 --epochs 1 --streams 7 --sinkhorn-iters 3",
        ),
    ] {
        let out = folder.join(name);
        succeed(&out, arguments);
        assert_identities(&record(&out));
    }
    let wide = record(&folder.join("wide"));
    let method = wide["results"][0]["audits"][0]["blocks"][0]["jacobian"]["method"].as_str().unwrap();
    assert!(method.starts_with("power iteration"), "{method}");
    // Of paths that cross more than 32 of the 48 branches there is one share.
    let plain = &record(&folder.join("depth-50"))["results"][0];
    assert_eq!(plain["audits"][0]["path_lengths"][0]["branches"], ">32", "{plain}");
}

#[test]
fn without_training_there_is_one_moment() {
    let folder = Folder::new("untrained");
    let out = folder.join("out");
    let said = succeed(&out, "--variant residual --depth 4 --width 4 --epochs 0");
    assert!(said.contains("not trained") && !said.contains("after"), "{said}");
    let record = record(&out);
    assert_eq!(list(&record["results"][0]["audits"]).len(), 1);
    assert!(list(&record["results"][0]["epochs"]).is_empty());
    let names: Vec<String> = files(&out).into_keys().collect();
    assert!(names.iter().all(|name| !name.contains("after") && !name.contains("loss")), "{names:?}");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let folder = Folder::new("seed");
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.join(name));
    let arguments = "--variant droppath,mhc --depth 4 --width 6 --epochs 2";
    succeed(&a, &format!("{arguments} --seed 3"));
    succeed(&b, &format!("{arguments} --seed 3"));
    succeed(&c, &format!("{arguments} --seed 4"));
    let (a, b, c) = (files(&a), files(&b), files(&c));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, content) in &a {
        assert!(content == &b[name], "{name} differs");
    }
    for name in [
        "run.json",
        "report.html",
        "gradient_norms.csv",
        "figures/boundary.svg",
        "jacobians.csv",
        "tapes/mhc.txt",
    ] {
        assert!(a[name] != c[name], "{name} is the same for another seed");
    }
}

#[test]
fn what_cannot_be_is_one_clear_line() {
    for (arguments, expected) in [
        ("", "audit: expected --variant NAME or --all"),
        ("--variant mhclite", "expected one of plain, residual, scaled"),
        ("--variant plain,plain", "--variant: plain is named twice"),
        ("--variant plain --all", "cannot be used with"),
        ("--variant plain --depth 1", "--depth: expected at least 2, found 1"),
        ("--variant plain --depth 99999", "--depth: expected at most 1024, found 99999"),
        ("--variant plain --depth two", "invalid value 'two'"),
        ("--variant plain --width 0", "--width: expected at least 1, found 0"),
        ("--variant mhc --streams 0", "--streams: expected at least 1, found 0"),
        ("--variant mhc-lite --streams 5 --depth 3", "--streams: expected at most 4 for mhc-lite, found 5"),
        ("--all --streams 5", "--streams: expected at most 4 for mhc-lite, found 5"),
        ("--variant mhc --sinkhorn-iters 0", "--sinkhorn-iters: expected at least 1, found 0"),
        ("--variant plain --dtype f16", "--dtype: expected f32 or f64, found \"f16\""),
        ("--variant plain --epoch 3", "unexpected argument '--epoch'"),
    ] {
        let message = fail(arguments);
        assert!(message.contains(expected), "{arguments}: {message}");
    }
    let folder = Folder::new("occupied");
    let file = folder.join("file");
    std::fs::write(&file, "").unwrap();
    let Output { status, stderr, .. } = run(&file, "--variant plain");
    assert_eq!(status.code(), Some(2));
    assert!(String::from_utf8_lossy(&stderr).contains("cannot be written to"));
}
