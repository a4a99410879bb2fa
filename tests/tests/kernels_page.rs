//! `docs/kernels.md`, which reads one kernel from top to bottom: its excerpts, lines, names and figures are those of the
//! kernels as they are now.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use limpid_tests::program::{example, succeed};

const HINT: &str = "LIMPID_BLESS=1 cargo test -p limpid-tests --test kernels_page writes it anew";

/// The operation whose launches the page shows.
const OPERATION: &str = "sinkhorn f32 5 of 4×4, Steps(20)";

/// The loop that divides by row sums, two lines below this text.
const DIVIDES: (&str, usize) = ("team.row_sums(v, sum);", 2);

/// Where the page names a line of `sinkhorn.cu`: the words in front of its number, and how many lines below which text it is.
const LINES: [(&str, (&str, usize)); 7] = [
    ("asks for at once. Line ", ("for (int r = 0; r < R; r++) x[r] = there ? element(vector, r) : W(0);", 0)),
    ("in a bank. Line ", ("const Pack<W, WIDTH> pack = load_pack<W, WIDTH>(x + p * WIDTH);", 0)),
    ("sinkhorn_alone_4_f32 (…) at sinkhorn.cu:", ("DTYPE_ENTRIES(f32, float)", 0)),
    ("(gdb) break sinkhorn.cu:", DIVIDES),
    ("Breakpoint 2 at 0x7ffff78abbe1: sinkhorn.cu:", DIVIDES),
    ("this=...)\n    at sinkhorn.cu:", DIVIDES),
    (
        "Alone<float, 4>, false> (…) at sinkhorn.cu:",
        ("scalings.iterate(0, task.at_most, present, task.waits);", 0),
    ),
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What the program prints.
fn kernels(arguments: &[&str]) -> String {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(BINARY.get_or_init(|| example("kernels")));
    command.args(arguments);
    succeed(command)
}

/// Kernels by file, each with what it takes on three architectures: the table that the compiler's answers make.
fn resources() -> Vec<(String, String, [String; 3])> {
    let (table, mut file, mut all) = (read("cuda/kernels/RESOURCES.md"), String::new(), Vec::new());
    for line in table.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            file = name.to_string();
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [kernel, columns @ ..] = &cells[..]
            && let Ok(columns) = <[&str; 3]>::try_from(columns)
            && !kernel.starts_with("---")
            && *kernel != "kernel"
        {
            all.push((file.clone(), kernel.to_string(), columns.map(str::to_string)));
        }
    }
    all
}

/// How many kernels are compiled, each architecture's counted.
fn compiled() -> usize {
    resources().iter().flat_map(|(_, _, columns)| columns).filter(|cell| *cell != "–").count()
}

/// Replaces what lies between a marker and the end of the block below it.
fn with_block(page: &str, name: &str, block: &str) -> String {
    let marker = format!("<!-- printed: {name} -->\n");
    let (before, after) = page.split_once(&marker).unwrap_or_else(|| panic!("no block {name:?}"));
    let after = match after.strip_prefix("```text\n") {
        Some(after) => after.split_once("```\n").expect("a block ends").1,
        None => &after[after.find("\n\n").expect("a table ends") + 1..],
    };
    format!("{before}{marker}{block}{after}")
}

/// Replaces the number behind these words, which stand there once.
fn with_number(page: &str, words: &str, number: usize) -> String {
    let mut parts = page.split(words);
    let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
        panic!("expected {words:?} once on the page")
    };
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    assert_ne!(rest.len(), after.len(), "expected a number behind {words:?}");
    format!("{before}{words}{number}{rest}")
}

fn text(lines: &str) -> String {
    format!("```text\n{}\n```\n", lines.trim_end())
}

/// Lane 3's lines of a trace, without what follows `in`; of the way there and the way back, where they begin.
fn of_lane_3(trace: &str) -> String {
    let lines = trace.lines().filter(|line| line.contains("lane  3"));
    let lines: Vec<&str> = lines.map(|line| line.split(" in ").next().expect("one").trim()).collect();
    let loads = |line: &&str| line.contains("reads 16 bytes");
    let cotangent = lines.iter().position(loads).expect("K is loaded");
    let cotangent = cotangent + 4 + lines[cotangent + 4..].iter().position(loads).expect("so is g");
    [&lines[..5], &["…"], &lines[cotangent - 1..cotangent + 5], &["…"]].concat().join("\n")
}

/// The page with everything that is made here as it is now.
fn renewed(page: &str) -> String {
    let (resources, source) = (resources(), read("cuda/kernels/sinkhorn.cu"));
    let launches = ["--kernel", "sinkhorn*", "--only", OPERATION, "--check"];
    let checked = kernels(&launches);
    let mut page = with_block(page, "launches", &text(&checked));
    let orders = kernels(&[&launches[..], &["--seeds", "20"]].concat());
    page = with_block(&page, "orders", &text(orders.lines().next().expect("the operation")));
    let trace = ["--kernel", "sinkhorn_backward_alone_4_f32", "--only", OPERATION, "--trace"];
    let trace = kernels(&trace);
    page = with_number(&page, "Of this operation it tells ", trace.matches("lane  3").count());
    page = with_block(&page, "trace", &text(&of_lane_3(&trace)));

    let of_file = resources.iter().filter(|(file, ..)| file == "sinkhorn.cu").count();
    let sentences = format!(
        "sinkhorn.cu: {of_file} kernels for sm_80, sm_90a, sm_100\n…\n{} kernels compiled, 0 complaints",
        compiled()
    );
    page = with_block(&page, "compiled", &text(&sentences));
    let mut table = String::from("| kernel | sm_80 | sm_90a | sm_100 |\n|---|---|---|---|\n");
    for shown in [
        "sinkhorn_alone_4_f32",
        "sinkhorn_alone_4_f64",
        "sinkhorn_backward_alone_4_f32",
        "sinkhorn_backward_alone_4_f64",
        "sinkhorn_lanes_8_f32",
        "sinkhorn_logarithms_f32",
    ] {
        let (_, kernel, columns) = resources.iter().find(|(_, kernel, _)| kernel == shown).expect("a kernel");
        table += &format!("| {kernel} | {} |\n", columns.join(" | "));
        if shown == "sinkhorn_alone_4_f32" {
            let registers = columns[1].parse().expect("registers alone");
            page = with_number(&page, "K, u, v and the sums are 28 of the ", registers);
        }
    }
    page = with_block(&page, "registers", &table);

    for (words, (line, below)) in LINES {
        let mut found = source.lines().enumerate().filter(|(_, text)| text.trim() == line);
        let (number, _) = found.next().unwrap_or_else(|| panic!("sinkhorn.cu has no line {line:?}"));
        assert!(found.next().is_none(), "sinkhorn.cu has {line:?} more than once");
        page = with_number(&page, words, number + 1 + below);
    }
    page
}

/// Without how many roundings a result is off, which depends on the processor's `exp`.
fn settled(page: &str) -> String {
    let without = |line: &str| match line.split_once(" roundings off") {
        Some((before, after)) => {
            format!("{} # roundings off{after}", before.rsplit_once(' ').expect("a number").0)
        }
        None => line.to_string(),
    };
    page.lines().map(without).collect::<Vec<_>>().join("\n")
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn the_page_quotes_lines_and_figures_as_they_are() {
    let page = read("docs/kernels.md");
    let now = renewed(&page);
    if std::env::var_os("LIMPID_BLESS").is_some() {
        std::fs::write(repository().join("docs/kernels.md"), &now).unwrap();
    } else {
        let (says, now) = (settled(&page), settled(&now));
        let mut lines = says.lines().zip(now.lines());
        if let Some((says, now)) = lines.find(|(says, now)| says != now) {
            panic!("docs/kernels.md says\n    {says}\nand now it is\n    {now}\n{HINT}");
        }
        assert_eq!(says.lines().count(), now.lines().count(), "docs/kernels.md: {HINT}");
    }
    // Nothing else names a line that could move.
    let mut rest = &now[..];
    let mut by_hand = String::new();
    while let Some((before, after)) = rest.split_once("<!-- printed: ") {
        by_hand += before;
        rest = after.split_once("\n\n").expect("a block ends").1;
    }
    by_hand += rest;
    let numbered = |text: &str| {
        text.split(".cu:").skip(1).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())).count()
    };
    let known = LINES.iter().filter(|(words, _)| words.ends_with(".cu:")).count();
    assert_eq!(numbered(&by_hand), known, "a line's number stands outside `LINES` and the printed blocks");
}

#[test]
fn the_page_shows_the_text_of_the_kernels() {
    // The page says what it leaves out.
    let words = |line: &str| {
        let line = line.replace("__device__ __forceinline__ ", "");
        line.trim_end_matches('\\').split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let mut there = BTreeSet::new();
    for folder in ["cuda/kernels", "cuda/emulator/shim"] {
        for entry in std::fs::read_dir(repository().join(folder)).unwrap() {
            there.extend(std::fs::read_to_string(entry.unwrap().path()).unwrap().lines().map(words));
        }
    }
    let page = read("docs/kernels.md");
    let excerpts: Vec<&str> =
        page.split("```cpp\n").skip(1).map(|rest| rest.split("```").next().expect("one")).collect();
    assert!(excerpts.len() > 5);
    for line in excerpts.iter().flat_map(|excerpt| excerpt.lines()).filter(|line| line.trim() != "…") {
        assert!(there.contains(&words(line)), "no kernel has the line {line:?}");
    }
}

#[test]
fn every_kernel_that_is_named_is_there() {
    let names: Vec<String> = resources().into_iter().map(|(_, kernel, _)| kernel).collect();
    let fits = |name: &str| match name.split_once('*') {
        Some((front, "")) => names.iter().any(|kernel| kernel.starts_with(front)),
        Some(_) => panic!("{name}: one star, at the end, is enough for examples"),
        None => names.iter().any(|kernel| kernel == name),
    };
    let mut texts = vec![("kernels --help".to_string(), kernels(&["--help"]))];
    let pages = std::fs::read_dir(repository().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|end| end == "md"));
    texts.extend(pages.map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap())));
    for path in ["README.md", "ARCHITECTURE.md", "cuda/examples/kernels/main.rs"] {
        texts.push((path.into(), read(path)));
    }
    let mut asked_for = 0;
    for (place, text) in &texts {
        for rest in text.split("--kernel ").skip(1).filter(|rest| !rest.starts_with('<')) {
            let name = rest.trim_start_matches('\'');
            let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '*'));
            let name = &name[..end.unwrap_or(name.len())];
            assert!(fits(name), "{place}: no kernel is called {name}");
            asked_for += 1;
        }
    }
    assert!(asked_for > 8, "{asked_for}");

    // Of the page about a kernel also where none is asked for.
    let page = read("docs/kernels.md");
    for word in page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        if word.starts_with("sinkhorn_") && word.ends_with(|c: char| c.is_ascii_digit()) {
            assert!(fits(word), "docs/kernels.md: no kernel is called {word}");
        }
    }
    let count = format!("`kernels --compile`: {} kernels for", compiled());
    assert!(read("ARCHITECTURE.md").contains(&count), "ARCHITECTURE.md: expected {count:?}");
}
