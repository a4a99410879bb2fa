//! The two-moons experiment as a person runs it: its files, its messages, and what it shows.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use limpid_nn::residual::Variant;
use limpid_tensor::io::safetensors;
use limpid_tests::program::{Folder, example, fail, files, succeed};
use serde_json::Value;

/// A network that trains in a blink.
const SMALL: &[(&str, &str)] =
    &[("epochs", "3"), ("depth", "4"), ("width", "8"), ("samples", "100"), ("batch", "32")];

const VARIANTS: [&str; 4] = ["plain", "residual", "scaled", "gated"];

/// The example's binary.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| example("two_moons"))
}

fn command(out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("--out").arg(out).args(arguments).stdin(Stdio::null());
    command
}

/// The small network, with `arguments` in place of its own.
fn small(out: &Path, arguments: &[&str]) -> Command {
    let given = |name: &str| {
        let flag = format!("--{name}");
        arguments.iter().any(|argument| *argument == flag || argument.starts_with(&format!("{flag}=")))
    };
    let mut command = command(out, arguments);
    for (name, value) in SMALL.iter().filter(|(name, _)| !given(name)) {
        command.arg(format!("--{name}={value}"));
    }
    command
}

#[track_caller]
fn assert_same_files(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, content) in &a {
        assert!(content == &b[name], "{name} differs");
    }
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn rows(path: &Path, header: &str) -> Vec<Vec<String>> {
    let text = text(path);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(header), "{}", path.display());
    lines.map(|line| line.split(',').map(str::to_string).collect()).collect()
}

fn run_json(out: &Path) -> Value {
    serde_json::from_str(&text(&out.join("run.json"))).unwrap()
}

/// The results in run.json by variant.
fn results(out: &Path) -> HashMap<String, Value> {
    let all = run_json(out)["results"].as_array().unwrap().clone();
    all.into_iter().map(|result| (result["variant"].as_str().unwrap().to_string(), result)).collect()
}

/// Every tag is closed in order, and nothing is fetched from anywhere.
#[track_caller]
fn assert_well_formed_and_self_contained(name: &str, text: &str) {
    const VOID: [&str; 6] = ["meta", "br", "hr", "img", "input", "!doctype"];
    let mut open: Vec<String> = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        if let Some(comment) = rest[start..].strip_prefix("<!--") {
            rest = &comment[comment.find("-->").expect("a comment ends") + 3..];
            continue;
        }
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let element = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap().to_lowercase();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(closed.trim()), "{name}: </{closed}>");
        } else if !tag.ends_with('/') && !tag.starts_with('?') && !VOID.contains(&element.as_str()) {
            if element == "script" || element == "style" {
                rest = &rest[rest.find(&format!("</{element}")).expect("it is closed")..];
            }
            open.push(element);
        }
    }
    assert!(open.is_empty(), "{name}: not closed: {open:?}");
    let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
    for reference in ["http:", "https:", "src=\"/", "<link", "@import", "url(//"] {
        assert!(!elsewhere.contains(reference), "{name}: {reference}");
    }
}

#[test]
fn the_tables_have_a_row_for_every_variant_epoch_and_layer() {
    let folder = Folder::new("tables");
    let out = folder.join("out");
    succeed(small(&out, &["--every-step"]));
    let steps = 3 * 70usize.div_ceil(32);
    let tables = [("gradient_norms.csv", "epoch", 3), ("gradient_norms_steps.csv", "step", steps)];
    for (name, unit, count) in tables {
        let rows = rows(&out.join(name), &format!("variant,{unit},layer,name,grad_norm"));
        assert_eq!(rows.len(), 4 * count * 4, "{name}");
        for (i, row) in rows.iter().enumerate() {
            let (variant, at, layer) = (VARIANTS[i / (count * 4)], i / 4 % count, i % 4);
            let expected = format!("{variant},{at},{layer},layers.{layer}.weight");
            assert_eq!(row[..4].join(","), expected, "{name}");
            let norm: f64 = row[4].parse().unwrap();
            assert!(norm.is_finite() && norm > 0.0, "{name}: {row:?}");
        }
    }
    let metrics = rows(&out.join("metrics.csv"), "variant,epoch,train_loss,val_loss,val_accuracy");
    assert_eq!(metrics.len(), 4 * 3);
    for (i, row) in metrics.iter().enumerate() {
        assert_eq!(row[..2], [VARIANTS[i / 3].to_string(), (i % 3).to_string()]);
        let [train, validation, accuracy] = [2, 3, 4].map(|column| row[column].parse::<f64>().unwrap());
        assert!(train > 0.0 && train < 2.0 && validation > 0.0 && validation < 2.0, "{row:?}");
        assert!((0.0..=1.0).contains(&accuracy), "{row:?}");
    }
    // An epoch's norm is the mean of its steps'.
    let number = |row: &Vec<String>| row[4].parse::<f64>().unwrap();
    let epochs = rows(&out.join("gradient_norms.csv"), "variant,epoch,layer,name,grad_norm");
    let by_step = rows(&out.join("gradient_norms_steps.csv"), "variant,step,layer,name,grad_norm");
    let first: Vec<f64> = (0..3).map(|step| number(&by_step[step * 4])).collect();
    let mean = first.iter().sum::<f64>() / 3.0;
    assert!((number(&epochs[0]) / mean - 1.0).abs() < 1e-12);
}

#[test]
fn without_every_step_there_is_no_table_of_steps() {
    let folder = Folder::new("no-steps");
    let out = folder.join("out");
    assert!(succeed(small(&out, &["--quiet"])).is_empty());
    let mut expected: Vec<String> = VARIANTS
        .iter()
        .flat_map(|variant| [format!("{variant}.safetensors"), format!("checkpoints/{variant}.safetensors")])
        .chain(
            [
                "boundary.svg",
                "gradient_norms.csv",
                "gradient_norms.svg",
                "loss.svg",
                "metrics.csv",
                "report.html",
                "run.json",
            ]
            .map(String::from),
        )
        .collect();
    expected.sort();
    assert_eq!(files(&out).into_keys().collect::<Vec<_>>(), expected);
}

#[test]
fn a_profile_is_two_more_files_and_changes_no_byte_of_the_others() {
    let folder = Folder::new("profile");
    let (plain, profiled) = (folder.join("plain"), folder.join("profiled"));
    let variants = ["--variants", "residual,mhc"];
    succeed(small(&plain, &variants));
    let said = succeed(small(&profiled, &[&variants[..], &["--profile"]].concat()));
    let mut found = files(&profiled);
    let [profile, trace] = ["profile.json", "trace.json"].map(|name| -> Value {
        serde_json::from_slice(&found.remove(name).unwrap_or_else(|| panic!("no {name}"))).unwrap()
    });
    assert!(found == files(&plain), "the other files differ");
    for line in said.lines().filter(|line| !line.starts_with("Written")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for (process, variant) in (1..).zip(["residual", "mhc"]) {
        // Three epochs of three steps: the fifth to the ninth.
        assert!(said.contains(&format!("{variant}: 5 steps, 4 to 8: ")), "{said}");
        let rows = |list: &str| profile[variant][list].as_array().unwrap().clone();
        let row = |list: &str, name: &str| {
            let found = rows(list).into_iter().find(|row| row["name"] == name);
            found.unwrap_or_else(|| panic!("{variant}: no {name} among {list}"))
        };
        assert_eq!(profile[variant]["steps"].as_array().unwrap().len(), 5);
        for name in ["∂linear", "optimiser", "clipping", "gradient norms"] {
            assert!(row("operations", name)["calls"].as_u64().unwrap() >= 5, "{variant}: {name}");
        }
        let branch = row("scopes", "layers.1/branch");
        assert!(
            branch["forward_ns"].as_u64() > Some(0) && branch["backward_ns"].as_u64() > Some(0),
            "{branch}"
        );
        let own: u64 = rows("operations").iter().map(|row| row["ns"].as_u64().unwrap()).sum();
        let between = profile[variant]["between_ns"].as_u64().unwrap();
        assert_eq!(Some(own + between), profile[variant]["wall_ns"].as_u64());
        let events =
            || trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["pid"] == process);
        let named = |what: &str| -> Vec<&str> {
            let named = events().filter(|event| event["name"] == what);
            named.map(|event| event["args"]["name"].as_str().unwrap()).collect()
        };
        assert_eq!(named("process_name"), [variant]);
        assert_eq!(named("thread_name"), ["forward", "backward", "recompute", "other"]);
        let steps = events().filter(|event| event["name"].as_str().unwrap().starts_with("step "));
        assert_eq!(steps.count(), 5);
    }
}

#[test]
fn the_weights_are_named_shaped_and_typed_as_promised() {
    let folder = Folder::new("weights");
    let out = folder.join("out");
    succeed(small(&out, &[]));
    for variant in VARIANTS {
        let loaded = safetensors::load(out.join(format!("{variant}.safetensors"))).unwrap();
        let mut expected = BTreeMap::new();
        for (i, (inputs, outputs)) in [(2, 8), (8, 8), (8, 8), (8, 2)].into_iter().enumerate() {
            expected.insert(format!("layers.{i}.weight"), format!("f32[{outputs}, {inputs}]"));
            expected.insert(format!("layers.{i}.bias"), format!("f32[{outputs}]"));
            if variant == "gated" && (1..3).contains(&i) {
                expected.insert(format!("layers.{i}.gate.weight"), "f32[8, 8]".into());
                expected.insert(format!("layers.{i}.gate.bias"), "f32[8]".into());
            }
        }
        let found: BTreeMap<String, String> =
            loaded.tensors.iter().map(|(name, x)| (name.clone(), x.meta().to_string())).collect();
        assert_eq!(found, expected, "{variant}");
        assert!(loaded.tensors.values().all(|x| x.to_f64_vec().unwrap().iter().all(|v| v.is_finite())));
        assert_eq!(loaded.metadata["variant"], variant);
    }
}

#[test]
fn figures_and_report_are_well_formed_and_need_nothing_else() {
    let folder = Folder::new("figures");
    let out = folder.join("out");
    succeed(small(&out, &[]));
    for name in ["gradient_norms.svg", "loss.svg", "boundary.svg", "report.html"] {
        let text = text(&out.join(name));
        assert_well_formed_and_self_contained(name, &text);
        for variant in VARIANTS {
            assert!(text.contains(variant), "{name} does not name {variant}");
        }
    }
}

#[test]
fn run_json_says_what_ran() {
    let folder = Folder::new("run-json");
    let out = folder.join("out");
    succeed(small(&out, &["--seed", "7", "--lr", "0.05", "--variants", "gated,plain"]));
    let run = run_json(&out);
    assert_eq!(run["seed"], 7);
    assert_eq!(run["version"], env!("CARGO_PKG_VERSION"));
    let settings = &run["settings"];
    assert_eq!(
        (&settings["lr"], &settings["depth"], &settings["init"]),
        (&0.05.into(), &4.into(), &"default".into())
    );
    assert_eq!(settings["variants"], serde_json::json!(["gated", "plain"]));
    let hash = run["hash"].as_str().unwrap();
    assert!(hash.len() == 16 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{hash}");
    assert_eq!(
        run["command"],
        "cargo run --release --example two_moons -- --variants gated,plain --depth 4 --width 8 --epochs 3 --batch 32 \
         --lr 0.05 --seed 7 --samples 100"
    );
    assert_eq!(results(&out)["plain"]["epochs"], 3);
}

#[test]
fn a_seed_decides_every_byte_whatever_the_threads() {
    let folder = Folder::new("determinism");
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| folder.join(name));
    succeed(small(&a, &["--seed", "3", "--every-step", "--threads", "1"]));
    succeed(small(&b, &["--seed", "3", "--every-step", "--threads", "1"]));
    succeed(small(&c, &["--seed", "3", "--every-step", "--threads", "2"]));
    succeed(small(&d, &["--seed", "4", "--every-step", "--threads", "1"]));
    assert_same_files(&a, &b);
    assert_same_files(&a, &c);
    let (three, four) = (files(&a), files(&d));
    for (name, content) in three {
        assert!(content != four[&name], "{name} is the same for another seed");
    }
    assert_ne!(run_json(&a)["hash"], run_json(&d)["hash"]);
}

#[test]
fn every_variant_runs_and_writes_its_files() {
    let folder = Folder::new("all");
    let [a, b, named] = ["a", "b", "named"].map(|name| folder.join(name));
    let arguments = ["--variants", "all", "--epochs", "2"];
    let said = succeed(small(&a, &arguments));
    let names = Variant::ALL.map(Variant::name);
    for line in said.lines().filter(|line| !line.starts_with("Written")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let found = files(&a);
    for name in names {
        assert!(found.contains_key(&format!("{name}.safetensors")), "{name}");
        assert!(found.contains_key(&format!("checkpoints/{name}.safetensors")), "{name}");
        // A line for its memory, where all that is kept is read, and one in the closing table.
        let lines: Vec<&str> = said.lines().filter(|line| line.split(' ').any(|word| word == name)).collect();
        assert!(lines.len() == 2 && lines[0].ends_with('✓'), "{name}: {said}");
    }
    for name in ["gradient_norms.svg", "loss.svg", "boundary.svg", "report.html"] {
        let text = text(&a.join(name));
        assert_well_formed_and_self_contained(name, &text);
        for variant in names {
            assert!(text.contains(&format!(">{variant}<")), "{name} does not name {variant}");
        }
    }
    let metrics = rows(&a.join("metrics.csv"), "variant,epoch,train_loss,val_loss,val_accuracy");
    let expected: Vec<String> =
        names.iter().flat_map(|name| [format!("{name},0"), format!("{name},1")]).collect();
    assert_eq!(metrics.iter().map(|row| row[..2].join(",")).collect::<Vec<_>>(), expected);
    let settings = &run_json(&a)["settings"];
    assert_eq!(settings["variants"], serde_json::json!(names));
    assert_eq!((&settings["streams"], &settings["sinkhorn_iters"]), (&4.into(), &20.into()));
    // The same bytes again; and each name alone gives what `all` gives.
    succeed(small(&b, &arguments));
    assert_same_files(&a, &b);
    succeed(small(&named, &["--variants", "hc,attnres", "--epochs", "2"]));
    for name in ["hc.safetensors", "attnres.safetensors"] {
        assert_eq!(files(&named)[name], found[name], "{name}");
    }
}

#[test]
fn streams_and_sinkhorn_steps_reach_the_network() {
    let folder = Folder::new("streams");
    let run = |name: &str, arguments: &[&str]| {
        let out = folder.join(name);
        let variants = ["--variants", "residual,mhc", "--quiet"];
        succeed(small(&out, &[&variants, arguments].concat()));
        out
    };
    let (default, two, one) =
        (run("default", &[]), run("two", &["--streams", "2"]), run("one", &["--sinkhorn-iters", "1"]));
    let mix = |out: &Path| {
        let loaded = safetensors::load(out.join("mhc.safetensors")).unwrap();
        loaded.tensors["layers.1.res.bias"].meta().to_string()
    };
    assert_eq!([mix(&default), mix(&two), mix(&one)], ["f32[4, 4]", "f32[2, 2]", "f32[4, 4]"]);
    let weights =
        |out: &Path, variant: &str| std::fs::read(out.join(format!("{variant}.safetensors"))).unwrap();
    assert_ne!(weights(&default, "mhc"), weights(&one, "mhc"));
    for other in [&two, &one] {
        assert_eq!(weights(&default, "residual"), weights(other, "residual"));
    }
    let command = run_json(&two)["command"].as_str().unwrap().to_string();
    assert!(command.contains("--variants residual,mhc --streams 2 "), "{command}");
}

#[test]
fn a_norm_around_the_branch_of_a_residual_network_is_the_variant_of_that_name() {
    let folder = Folder::new("norm");
    for (norm, variant) in [("pre", "pre-norm"), ("peri", "peri-norm"), ("post", "post-norm")] {
        let (ours, theirs) = (folder.join(norm), folder.join(variant));
        succeed(small(&ours, &["--variants", "residual", "--norm", norm]));
        succeed(small(&theirs, &["--variants", variant]));
        let numbers = |out: &Path, name: &str| results(out)[name]["train_loss"].as_f64().unwrap();
        assert_eq!(numbers(&ours, "residual"), numbers(&theirs, variant), "{norm}");
        assert_eq!(results(&ours)["residual"]["formula"], results(&theirs)[variant]["formula"]);
        assert_eq!(run_json(&ours)["settings"]["norm"], norm);
    }
    // Where the catalogue has no name for it, norms of the branch have weights of their own.
    let out = folder.join("gated");
    succeed(small(&out, &["--variants", "gated,plain", "--norm", "peri"]));
    for variant in ["gated", "plain"] {
        let loaded = safetensors::load(out.join(format!("{variant}.safetensors"))).unwrap();
        for i in [1, 2] {
            for norm in ["before", "after"] {
                let name = format!("layers.{i}.norm_{norm}.weight");
                assert_eq!(loaded.tensors[&name].meta().to_string(), "f32[8]", "{variant}: {name}");
                let learned = loaded.tensors[&name].to_f64_vec().unwrap();
                assert!(learned.iter().any(|&v| v != 1.0), "{variant}: {name} did not learn");
            }
        }
    }
}

#[test]
fn branches_in_bf16_learn_as_well_and_leave_weights_in_f32() {
    let folder = Folder::new("precision");
    let run = |name: &str, arguments: &[&str]| {
        let out = folder.join(name);
        let common =
            ["--variants", "residual,mhc", "--depth", "5", "--samples", "400", "--epochs", "12", "--quiet"];
        succeed(small(&out, &[&common, arguments].concat()));
        out
    };
    let (default, wide, narrow) = (
        run("default", &[]),
        run("wide", &["--branch-dtype", "f32"]),
        run("narrow", &["--branch-dtype", "bf16"]),
    );
    assert_same_files(&default, &wide);
    for variant in ["residual", "mhc"] {
        let tensors =
            |out: &Path| safetensors::load(out.join(format!("{variant}.safetensors"))).unwrap().tensors;
        let metas =
            |out: &Path| tensors(out).iter().map(|(name, x)| (name.clone(), x.meta())).collect::<Vec<_>>();
        assert_eq!(metas(&narrow), metas(&wide), "{variant}");
        let weight = |out: &Path| tensors(out)["layers.1.weight"].to_f64_vec().unwrap();
        assert_ne!(weight(&narrow), weight(&wide), "{variant}");
        let accuracy = |out: &Path| results(out)[variant]["val_accuracy"].as_f64().unwrap();
        let (wide, narrow) = (accuracy(&wide), accuracy(&narrow));
        assert!(wide > 0.9 && (wide - narrow).abs() < 0.04, "{variant}: {wide} in f32, {narrow} in bf16");
    }
    let (before, after) = (run_json(&wide), run_json(&narrow));
    assert_eq!(
        (&before["settings"]["branch_dtype"], &after["settings"]["branch_dtype"]),
        (&Value::Null, &"bf16".into())
    );
    assert!(after["command"].as_str().unwrap().contains(" --branch-dtype bf16 "), "{}", after["command"]);
    let message =
        fail(small(&narrow, &["--variants", "mhc", "--depth", "5", "--samples", "400", "--resume"]), 2);
    assert!(message.ends_with("expected branch_dtype null, found \"bf16\""), "{message}");
}

#[test]
fn full_size_is_the_same_with_one_thread_and_two() {
    let folder = Folder::new("threads");
    let [one, two] = ["1", "2"].map(|threads| {
        let out = folder.join(threads);
        succeed(command(&out, &["--epochs", "2", "--threads", threads]));
        out
    });
    assert_same_files(&one, &two);
}

/// Waits for a file that a running program is to write.
fn wait_for(path: &Path, child: &mut Child) {
    let start = Instant::now();
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before {} was written", path.display());
        assert!(start.elapsed() < Duration::from_secs(600), "{} was never written", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the program says that is interrupted once it has written a checkpoint of `variant`. On a busy machine it may have
/// gone on to what comes after `variant` by then; it is then run again from where it was before.
fn interrupted(out: &Path, arguments: &[&str], variant: &str) -> String {
    let checkpoint = out.join("checkpoints").join(format!("{variant}.safetensors"));
    let before = out.with_extension("before");
    for _ in 0..20 {
        copy_folder(out, &before);
        let mut again = small(out, arguments);
        let mut child = again.arg("--resume").stderr(Stdio::piped()).spawn().unwrap();
        wait_for(&checkpoint, &mut child);
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let message = String::from_utf8(stderr).unwrap();
        let in_time =
            status.code() == Some(130) && message.contains(&format!("interrupted: {variant} after"));
        if in_time {
            return message;
        }
        assert!(matches!(status.code(), Some(0 | 130)), "{message}");
        copy_folder(&before, out);
    }
    panic!("{variant} was never interrupted in time");
}

/// Makes `to` what `from` is, which may not be there.
fn copy_folder(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    if !from.exists() {
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let place = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &place);
        } else {
            std::fs::copy(entry.path(), place).unwrap();
        }
    }
}

/// Interrupts each of `variants` in turn, resumes, and compares with a run that was left alone.
#[track_caller]
fn interrupted_and_resumed(test: &str, variants: &[&str], epochs: &str) {
    let folder = Folder::new(test);
    let (whole, parts) = (folder.join("whole"), folder.join("parts"));
    let list = variants.join(",");
    let arguments = ["--epochs", epochs, "--variants", &list, "--quiet"];
    succeed(small(&whole, &arguments));
    for first in variants {
        let message = interrupted(&parts, &arguments, first);
        let start = format!("two_moons: interrupted: {first} after epoch ");
        assert!(message.starts_with(&start), "{message}");
        assert!(message.ends_with("; the same command with --resume goes on from there\n"), "{message}");
        assert_eq!(message.matches('\n').count(), 1, "{message}");
        assert!(!parts.join("run.json").exists(), "nothing is written before the run is whole");
    }
    let mut rest = small(&parts, &arguments);
    rest.arg("--resume");
    succeed(rest);
    assert_same_files(&whole, &parts);
}

#[test]
fn interrupted_and_resumed_gives_the_bytes_of_an_uninterrupted_run() {
    interrupted_and_resumed("resume", &["plain", "gated"], "1500");
}

#[test]
fn so_it_does_with_streams_and_sinkhorn() {
    interrupted_and_resumed("resume-mhc", &["mhc"], "200");
}

#[test]
fn more_epochs_go_on_from_a_finished_run() {
    let folder = Folder::new("extend");
    let (whole, parts) = (folder.join("whole"), folder.join("parts"));
    succeed(small(&whole, &["--epochs", "5"]));
    succeed(small(&parts, &["--epochs", "2"]));
    succeed(small(&parts, &["--epochs", "5", "--resume"]));
    assert_same_files(&whole, &parts);
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = Folder::new("foreign");
    let out = folder.join("out");
    succeed(small(&out, &[]));
    let before = files(&out);
    let checkpoint = |variant: &str| out.join("checkpoints").join(format!("{variant}.safetensors"));
    let plain = checkpoint("plain");
    let resume = |arguments: &[&str]| {
        let mut command = small(&out, arguments);
        command.arg("--resume");
        let message = fail(command, 2);
        let start = format!("two_moons: {}: ", plain.display());
        message.strip_prefix(&start).unwrap_or_else(|| panic!("{message}")).to_string()
    };
    assert_eq!(resume(&["--lr", "0.2"]), "expected lr 0.2, found 0.1");
    assert_eq!(resume(&["--seed", "1"]), "expected seed 1, found 0");
    assert_eq!(resume(&["--width", "9"]), "expected width 9, found 8");
    assert!(resume(&["--data-seed", "5"]).contains("expected points "));
    assert_eq!(resume(&["--epochs", "2"]), "expected at most 2 epochs, found 3");
    assert!(files(&out) == before, "a refused run changes nothing");

    let good = std::fs::read(&plain).unwrap();
    std::fs::write(&plain, &good[..500]).unwrap();
    assert_eq!(resume(&[]), "expected a safetensors file, found 500 bytes with invalid header length");
    std::fs::write(&plain, &good[..good.len() - 1]).unwrap();
    assert!(
        resume(&[])
            .starts_with(&format!("expected a safetensors file, found {} bytes with ", good.len() - 1))
    );
    std::fs::write(&plain, "hi").unwrap();
    assert_eq!(resume(&[]), "expected a safetensors file, found 2 bytes with header too small");
    std::fs::copy(out.join("plain.safetensors"), &plain).unwrap();
    assert_eq!(resume(&[]), "expected metadata with format = \"limpid checkpoint 1\", found none");
    // The same names and shapes, but another network.
    std::fs::copy(checkpoint("residual"), &plain).unwrap();
    assert_eq!(resume(&[]), "expected variant \"plain\", found \"residual\"");
    // A setting that only one of the two has is a difference too.
    assert_eq!(
        resume(&["--norm", "pre"]),
        "expected norm \"pre\", found null; expected variant \"plain\", found \"residual\""
    );
    std::fs::write(&plain, good).unwrap();
    assert!(files(&out) == before, "a refused run changes nothing");
}

#[test]
fn a_checkpoint_goes_on_only_under_the_settings_its_variant_reads() {
    let folder = Folder::new("settings");
    let out = folder.join("out");
    let variants = ["--variants", "residual,mhc", "--epochs", "1", "--quiet"];
    let run = |arguments: &[&str]| small(&out, &[&variants, arguments].concat());
    succeed(run(&[]));
    let refused = |arguments: &[&str]| fail(run(&[arguments, &["--resume"]].concat()), 2);
    // residual has neither streams nor Sinkhorn–Knopp, and goes on; mhc does not.
    let mhc = out.join("checkpoints/mhc.safetensors").display().to_string();
    assert_eq!(refused(&["--streams", "2"]), format!("two_moons: {mhc}: expected streams 2, found 4"));
    assert_eq!(
        refused(&["--sinkhorn-iters", "3"]),
        format!("two_moons: {mhc}: expected sinkhorn_iters 3, found 20")
    );
    succeed(run(&["--resume"]));
    succeed(small(&out, &["--variants", "residual", "--norm", "post", "--epochs", "1"]));
    let residual = out.join("checkpoints/residual.safetensors").display().to_string();
    assert_eq!(refused(&[]), format!("two_moons: {residual}: expected norm null, found \"post\""));
}

#[test]
fn bad_input_is_one_line_and_leaves_nothing() {
    let folder = Folder::new("bad-input");
    let csv = |name: &str, content: &str| folder.file(name, content);
    let number = csv("number.csv", "x,y,label\n1,2,0\n3,abc,1\n");
    let fields = csv("fields.csv", "1,2,0\n3,4\n");
    let one = csv("one.csv", "1,2,0\n3,4,0\n");
    let nan = csv("nan.csv", "1,2,0\nnan,4,1\n");
    let header = csv("header.csv", "x,y,label\n");
    let empty = csv("empty.csv", "");
    let three = csv("three.csv", "1,2,0\n3,4,1\n5,6,2\n");
    let narrow = csv("narrow.csv", "1,0\n2,1\n");
    let missing = folder.join("missing.csv").display().to_string();
    let without_cuda = |device: &str| {
        format!(
            "two_moons: --device: {device}: this program was built without CUDA; build it with `--features cuda`"
        )
    };
    let cases: Vec<(Vec<&str>, String)> = vec![
        (vec!["--depth", "0"], "two_moons: --depth: expected at least 2, found 0".into()),
        (vec!["--depth", "1"], "two_moons: --depth: expected at least 2, found 1".into()),
        (vec!["--width", "0"], "two_moons: --width: expected at least 1, found 0".into()),
        (vec!["--epochs", "0"], "two_moons: --epochs: expected at least 1, found 0".into()),
        (vec!["--batch", "0"], "two_moons: --batch: expected at least 1, found 0".into()),
        (vec!["--seeds", "0"], "two_moons: --seeds: expected at least 1, found 0".into()),
        (vec!["--threads", "5000"], "two_moons: --threads: expected at most 64, found 5000".into()),
        (vec!["--lr", "-1"], "two_moons: --lr: expected a positive number, found -1".into()),
        (vec!["--lr", "0"], "two_moons: --lr: expected a positive number, found 0".into()),
        (vec!["--lr", "nan"], "two_moons: --lr: expected a positive number, found NaN".into()),
        (vec!["--lr", "inf"], "two_moons: --lr: expected a positive number, found inf".into()),
        (
            vec!["--momentum", "1"],
            "two_moons: --momentum: expected a number from 0 to below 1, found 1".into(),
        ),
        (vec!["--noise", "-1"], "two_moons: --noise: expected a number of at least 0, found -1".into()),
        (vec!["--clip", "-1"], "two_moons: --clip: expected a number of at least 0, found -1".into()),
        (
            vec!["--variants", "plain,nope"],
            "two_moons: --variants: variant: expected one of plain, residual, scaled, complete-p, rezero, layerscale, \
             gated, interpolated, droppath, euler, pre-norm, peri-norm, post-norm, deepnorm, resi-dual, delta, attnres, \
             hc, hc-dynamic, mhc, mhc-lite, identity-hc, found nope"
                .into(),
        ),
        (vec!["--variants", "plain,plain"], "two_moons: --variants: plain is named twice".into()),
        (
            vec!["--variants", "all,plain"],
            "two_moons: --variants: all stands for every variant, expected no other name beside it".into(),
        ),
        (
            vec!["--variants", "mhc,mhc-lite", "--streams", "5"],
            "two_moons: --streams: expected at most 4 for mhc-lite, found 5".into(),
        ),
        (vec!["--streams", "0"], "two_moons: --streams: expected at least 1, found 0".into()),
        (vec!["--streams", "65"], "two_moons: --streams: expected at most 64, found 65".into()),
        (vec!["--sinkhorn-iters", "0"], "two_moons: --sinkhorn-iters: expected at least 1, found 0".into()),
        (
            vec!["--variants", "gated,hc", "--norm", "pre"],
            "two_moons: --norm pre: expected only plain, residual, scaled, complete-p, rezero, layerscale, gated, \
             interpolated, droppath in --variants, found hc"
                .into(),
        ),
        (
            vec!["--branch-dtype", "i64"],
            "two_moons: --branch-dtype: expected f32 or bf16, found \"i64\"".into(),
        ),
        (
            vec!["--norm", "post"],
            "two_moons: --norm post: expected only residual in --variants, found plain".into(),
        ),
        (
            vec!["--init", "nope"],
            "two_moons: --init: expected default, he, xavier, orthogonal or truncated-normal, found \"nope\""
                .into(),
        ),
        (
            vec!["--data", &number],
            format!("two_moons: {number}: line 3, column 2 (y): expected a number, found \"abc\""),
        ),
        (
            vec!["--data", &fields],
            format!("two_moons: {fields}: line 2: expected 3 fields as on line 1, found 2"),
        ),
        (
            vec!["--data", &one],
            format!("two_moons: {one}: column 3 (label): expected at least two classes, found only \"0\""),
        ),
        (
            vec!["--data", &nan],
            format!("two_moons: {nan}: line 2, column 1 (x): expected a finite number, found \"nan\""),
        ),
        (
            vec!["--data", &header],
            format!("two_moons: {header}: expected at least one row of data, found only a header"),
        ),
        (
            vec!["--data", &empty],
            format!("two_moons: {empty}: expected at least one row of data, found an empty file"),
        ),
        (
            vec!["--data", &three],
            format!("two_moons: {three}: expected 2 features and 2 classes, found 2 and 3"),
        ),
        (
            vec!["--data", &narrow],
            format!("two_moons: {narrow}: expected 2 features and 2 classes, found 1 and 2"),
        ),
        (vec!["--data", &missing], format!("two_moons: {missing}: No such file or directory (os error 2)")),
        (vec!["--device", "cuda"], without_cuda("cuda")),
        (vec!["--device", "cuda:1"], without_cuda("cuda:1")),
        (vec!["--device", "emulator"], without_cuda("emulator")),
    ];
    let out = folder.join("out");
    for (arguments, expected) in &cases {
        assert_eq!(&fail(small(&out, arguments), 2), expected, "{arguments:?}");
        assert!(!out.exists(), "{arguments:?} left something");
    }
    // Where the words are those of other crates, what was given has to be named.
    let named: [(&[&str], &str); 8] = [
        (&["--norm", "nope"], "possible values: none, pre, peri, post"),
        (&["--depth", "x"], "'x' for '--depth"),
        (&["--epochs", "1.5"], "'1.5' for '--epochs"),
        (&["--lr", "fast"], "'fast' for '--lr"),
        (&["--activation", "nope"], "silu, tanh, sigmoid, softplus"),
        (&["--recipe", "nope"], "possible values: stable, article"),
        (&["--nope"], "'--nope'"),
        (&["extra"], "'extra'"),
    ];
    for (arguments, part) in named {
        let message = fail(small(&out, arguments), 2);
        assert!(message.contains(part), "{arguments:?}: {message}");
        assert!(!out.exists(), "{arguments:?} left something");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_one_line_before_anything_runs() {
    let folder = Folder::new("unwritable");
    let file = folder.file("file", "here already");
    for out in [PathBuf::from(&file), Path::new(&file).join("below")] {
        let message = fail(small(&out, &[]), 2);
        assert!(
            message.starts_with(&format!("two_moons: {}: cannot be written to: ", out.display())),
            "{message}"
        );
    }
    assert_eq!(text(Path::new(&file)), "here already");
}

#[test]
fn a_run_that_records_every_step_writes_the_same_numbers() {
    let folder = Folder::new("replay");
    let run = |name: &str, more: &[&str]| {
        let out = folder.join(name);
        // 140 points to train on: batches of two sizes.
        let common = ["--variants", "residual,mhc", "--samples", "200", "--epochs", "5", "--every-step"];
        succeed(small(&out, &[&common, more].concat()));
        out
    };
    let (recorded, replayed) = (run("recorded", &["--record"]), run("replayed", &[]));
    for name in [
        "metrics.csv",
        "gradient_norms.csv",
        "gradient_norms_steps.csv",
        "residual.safetensors",
        "mhc.safetensors",
    ] {
        let [a, b] = [&recorded, &replayed].map(|out| std::fs::read(out.join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
    // What is drawn at random cannot be replayed.
    succeed(small(&folder.join("drawn"), &["--variants", "droppath"]));
}

#[test]
fn your_own_points_train_with_a_header_and_without() {
    let folder = Folder::new("own-points");
    // Two separable clouds on a grid.
    let points: String = (0..60).map(|i| format!("{},{},{}\n", (i % 2) * 4 + i % 5, i % 7, i % 2)).collect();
    let bare = folder.file("bare.csv", &points);
    let headed = folder.file("headed.csv", &format!("x,y,label\n{points}"));
    let [bare, headed] = [("a", bare), ("b", headed)].map(|(name, data)| {
        let out = folder.join(name);
        let said = succeed(small(&out, &["--data", &data, "--epochs", "30"]));
        assert!(said.starts_with("60 points, 42 to train on"), "{said}");
        assert!(results(&out)["residual"]["val_accuracy"].as_f64().unwrap() > 0.8);
        out
    });
    for name in ["metrics.csv", "gradient_norms.csv", "gated.safetensors"] {
        assert_eq!(
            std::fs::read(bare.join(name)).unwrap(),
            std::fs::read(headed.join(name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn several_seeds_are_what_each_alone_would_be() {
    let folder = Folder::new("seeds");
    let (both, alone) = (folder.join("both"), folder.join("alone"));
    succeed(small(&both, &["--seed", "5", "--seeds", "2"]));
    succeed(small(&alone, &["--seed", "6"]));
    for name in ["metrics.csv", "gradient_norms.csv", "gated.safetensors", "boundary.svg"] {
        let seed = both.join("seed-6").join(name);
        assert_eq!(std::fs::read(seed).unwrap(), std::fs::read(alone.join(name)).unwrap(), "{name}");
    }
    let header = "variant,seed,val_accuracy,val_loss,first_step_grad_norm_layer_1,first_step_grad_norm_last,diverged_epoch";
    let rows = rows(&both.join("seeds.csv"), header);
    assert_eq!(rows.len(), 8);
    let accuracy = results(&both.join("seed-5"))["gated"]["val_accuracy"].as_f64().unwrap();
    let gated = rows.iter().find(|row| row[..2] == ["gated", "5"]).unwrap();
    assert_eq!(gated[2].parse::<f64>().unwrap(), accuracy);
}

#[test]
fn a_plain_network_of_20_layers_does_not_learn_and_every_skip_connection_helps() {
    let folder = Folder::new("science");
    let out = folder.join("out");
    succeed(command(&out, &["--seed", "0"]));
    let results = results(&out);
    let accuracy = |variant: &str| results[variant]["val_accuracy"].as_f64().unwrap();
    let norm =
        |variant: &str, layer: usize| results[variant]["first_step_grad_norms"][layer].as_f64().unwrap();
    assert!((0.45..=0.55).contains(&accuracy("plain")), "{}", accuracy("plain"));
    assert!(norm("plain", 1) * 1e4 <= norm("plain", 19), "{} {}", norm("plain", 1), norm("plain", 19));
    for variant in ["residual", "scaled", "gated"] {
        assert!(accuracy(variant) >= 0.94, "{variant}: {}", accuracy(variant));
        assert!(norm(variant, 1) * 1e4 > norm(variant, 19), "{variant} vanishes too");
    }
}

#[test]
fn depth_alone_does_not_make_a_gradient_vanish() {
    let folder = Folder::new("he");
    let out = folder.join("out");
    succeed(command(&out, &["--init", "he", "--variants", "plain"]));
    let accuracy = results(&out)["plain"]["val_accuracy"].as_f64().unwrap();
    assert!(accuracy >= 0.9, "{accuracy}");
}

#[test]
fn without_clipping_the_residual_network_diverges_and_says_where() {
    let folder = Folder::new("article");
    let out = folder.join("out");
    let said = succeed(command(&out, &["--recipe", "article", "--variants", "residual"]));
    let diverged = results(&out)["residual"]["diverged"].clone();
    let (epoch, step) = (diverged["epoch"].as_u64().unwrap(), diverged["step"].as_u64().unwrap());
    assert_eq!(step / 6, epoch, "an epoch has 6 steps");
    let cause = diverged["cause"].as_str().unwrap();
    assert!(cause.contains(" in layers.") && cause.contains(".rs:"), "operation, scope and line: {cause}");
    assert!(said.contains(&format!("residual diverged in epoch {epoch}, step {step}:\n  {cause}")), "{said}");
    let report = text(&out.join("report.html"));
    assert!(report.contains(&format!("diverged in epoch {epoch}, step {step}")));
    let metrics = rows(&out.join("metrics.csv"), "variant,epoch,train_loss,val_loss,val_accuracy");
    assert_eq!(metrics.len() as u64, epoch, "whole epochs only");
}
