//! The gallery of mistakes: each is found under every order of threads, and its mended version is silent.

mod launching;

use launching::*;
use limpid_emulator::{Build, Finding, Options};

const SEEDS: u64 = 20;

/// A file of the gallery and the launch that shows its mistake. The places are marked in the file, with `// <- kind`.
struct Exhibit {
    name: &'static str,
    text: &'static str,
    blocks: u32,
    threads: u32,
    elements: usize,
}

macro_rules! exhibit {
    ($name:ident, $blocks:expr, $threads:expr, $elements:expr) => {
        #[test]
        #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
        fn $name() {
            let text = include_str!(concat!("../gallery/", stringify!($name), ".cu"));
            let name = stringify!($name);
            show(Exhibit { name, text, blocks: $blocks, threads: $threads, elements: $elements });
        }
    };
}

exhibit!(reduction_without_barrier, 1, 64, 64);
exhibit!(tile_overwritten_too_early, 1, 64, 256);
exhibit!(shared_out_of_bounds, 1, 64, 64);
exhibit!(global_out_of_bounds, 2, 64, 100);
exhibit!(uninitialised_shared, 1, 64, 64);
exhibit!(divergent_barriers, 1, 64, 64);
exhibit!(shuffle_in_half_a_warp, 1, 32, 32);
exhibit!(unsynchronised_sum, 4, 32, 128);
exhibit!(copy_not_waited_for, 1, 16, 64);
exhibit!(copy_without_barrier, 1, 16, 64);
exhibit!(misaligned_vector, 1, 15, 64);
exhibit!(null_pointer, 1, 64, 64);
exhibit!(warp_exchange_without_sync, 1, 32, 32);
exhibit!(unwritten_tail, 1, 32, 64);
exhibit!(shuffle_without_caller, 1, 32, 32);
exhibit!(shuffle_from_ended_lane, 1, 32, 32);
exhibit!(divergent_shuffles, 1, 32, 32);
exhibit!(plain_read_of_atomic, 1, 64, 64);
exhibit!(product_read_too_early, 1, 128, 1024);
exhibit!(product_without_fence, 1, 128, 1024);
exhibit!(product_never_waited_for, 1, 128, 1024);
exhibit!(operand_overwritten_too_early, 1, 128, 2048);
exhibit!(operand_copied_over, 1, 128, 2048);
exhibit!(operand_without_fence, 1, 128, 1024);
exhibit!(too_much_shared, 1, 32, 32);

/// Runs both versions under every seed.
fn show(exhibit: Exhibit) {
    let marks = marks(exhibit.text);
    assert!(!marks.is_empty(), "{} marks no line", exhibit.name);
    for seed in 0..SEEDS {
        let (findings, _) = run(&exhibit, &[], seed);
        let is_marked =
            |finding: &Finding| marks.iter().any(|(kind, line)| shows(&exhibit, finding, kind, *line));
        assert!(findings.iter().any(is_marked), "seed {seed}: {marks:?} not found, but {findings:#?}");
        let (again, _) = run(&exhibit, &[], seed);
        assert_eq!(findings, again, "seed {seed} gives the same findings each time");
    }
    let (_, expected) = run(&exhibit, &["MENDED"], 0);
    for seed in 0..SEEDS {
        let (findings, result) = run(&exhibit, &["MENDED"], seed);
        assert!(findings.is_empty(), "mended, seed {seed}: {findings:#?}");
        assert_eq!(result, expected, "mended, seed {seed}: the same bits");
    }
}

/// Launches one version; its findings and the bits that it leaves in `y`.
fn run(exhibit: &Exhibit, defines: &[&str], seed: u64) -> (Vec<Finding>, Vec<u32>) {
    let program = program(&format!("{}.cu", exhibit.name), exhibit.text, Build::Checked, defines);
    let mut card = Card::new();
    let x = card.upload("x", &noise(exhibit.elements, 1));
    let y = card.empty::<f32>("y", exhibit.elements);
    let arguments = [argument(x), argument(y), argument(exhibit.elements as i32)];
    let options = Options { seed, preempt: if seed.is_multiple_of(2) { 8 } else { 0 }, ..Options::default() };
    let report = card.launch(
        &kernel(&program, exhibit.name),
        line(exhibit.blocks, exhibit.threads),
        &arguments,
        options,
    );
    (report.findings, card.download(y, exhibit.elements))
}

/// Whether a finding is of that kind, with that line as one of its places.
fn shows(exhibit: &Exhibit, finding: &Finding, kind: &str, line: u32) -> bool {
    let file = format!("{}.cu", exhibit.name);
    let places = [Some(&finding.at), finding.other.as_ref()];
    finding.kind.to_string() == kind && places.into_iter().flatten().any(|place| place.is_in(&file, line))
}

/// The kinds and the lines that a file marks.
fn marks(text: &str) -> Vec<(String, u32)> {
    let lines = text.lines().zip(1..);
    lines.filter_map(|(line, number)| Some((line.split_once("// <- ")?.1.to_string(), number))).collect()
}
