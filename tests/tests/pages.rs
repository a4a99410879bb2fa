//! The pages of `docs/` about gradients: what they quote is what the example `pages` prints now, and their
//! figures are what it draws.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use limpid_tests::program::example;

const HINT: &str = "LIMPID_BLESS=1 cargo test -p limpid-tests --test pages writes it anew";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}; {HINT}", path.display()))
}

/// What the example makes: its blocks by page and name, and its figures by file name.
#[derive(PartialEq)]
struct Made {
    blocks: BTreeMap<(String, String), String>,
    figures: BTreeMap<String, String>,
}

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| run("first"))
}

fn run(folder: &str) -> Made {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let out = std::env::temp_dir().join(format!("limpid-pages-{}-{folder}", std::process::id()));
    let binary = BINARY.get_or_init(|| example("pages"));
    let output = Command::new(binary).arg("--out").arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut blocks, mut name) = (BTreeMap::new(), None);
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        assert!(line.chars().count() <= 80, "wider than a terminal: {line}");
        match line.strip_prefix("docs/").and_then(|line| line.split_once(".md: ")) {
            Some((page, block)) => name = Some((format!("{page}.md"), block.to_string())),
            None => {
                let name = name.clone().expect("a block begins with its page and name");
                *blocks.entry(name).or_insert_with(String::new) += &format!("{line}\n");
            }
        }
    }
    let blocks = blocks.into_iter().map(|(name, text)| (name, format!("{}\n", text.trim_end()))).collect();
    let paths = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let figures = paths.map(|path| (name(&path), read(&path))).collect();
    std::fs::remove_dir_all(&out).unwrap();
    Made { blocks, figures }
}

#[test]
fn pages_show_what_the_example_makes() {
    let Made { blocks, figures } = made();
    let bless = std::env::var_os("LIMPID_BLESS").is_some();
    let mut pages: Vec<&String> = blocks.keys().map(|(page, _)| page).collect();
    pages.dedup();
    assert_eq!(pages.len(), 6);
    let facade = read(&docs().join("../src/lib.rs"));
    let mut texts = String::new();
    for page in pages {
        assert!(
            facade.contains(&format!("include_str!(\"../docs/{page}\")")),
            "{page} is no documentation test"
        );
        let path = docs().join(page);
        let text = read(&path);
        let (mut written, mut rest, mut found) = (String::new(), &text[..], 0);
        while let Some((before, after)) = rest.split_once("<!-- printed: ") {
            let (name, after) =
                after.split_once(" -->\n```text\n").expect("a marker is followed by a text block");
            let (quoted, after) = after.split_once("```\n").expect("a block ends");
            let now = blocks.get(&(page.clone(), name.to_string()));
            let now = now.unwrap_or_else(|| panic!("{page}: nothing prints {name:?}"));
            let same = alike(quoted, now, |a, b| (a - b).abs() <= 1e-6 * a.abs().max(b.abs()));
            assert!(bless || same, "{page}, {name}: {HINT}\nit says\n{quoted}\nnow\n{now}");
            written += &format!("{before}<!-- printed: {name} -->\n```text\n{now}```\n");
            found += 1;
            rest = after;
        }
        let printed = blocks.keys().filter(|(of, _)| of == page).count();
        assert_eq!(found, printed, "{page} shows {found} of {printed} blocks");
        written += rest;
        if bless {
            std::fs::write(&path, &written).unwrap();
        }
        texts += &written;
    }
    for (name, now) in figures {
        assert!(texts.contains(&format!("](figures/{name})")), "{name} stands on no page");
        let path = docs().join("figures").join(name);
        if bless {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, now).unwrap();
        }
        // A tenth of a pixel; in a description, the last digit.
        let near = |a: f64, b: f64| (a - b).abs() <= 0.11;
        assert!(alike(&read(&path), now, near), "{name} is not what is drawn now: {HINT}");
    }
    let checked_in = std::fs::read_dir(docs().join("figures")).unwrap().count();
    assert_eq!(checked_in, figures.len(), "docs/figures has files that nothing draws");
}

#[test]
fn the_same_bytes_every_time() {
    assert!(run("second") == *made());
}

/// The same words, and numbers as near to each other as `near` wants: between processors, last digits differ.
fn alike(a: &str, b: &str, near: impl Fn(f64, f64) -> bool) -> bool {
    let ((words_a, numbers_a), (words_b, numbers_b)) = (words_and_numbers(a), words_and_numbers(b));
    let numbers = || numbers_a.iter().zip(&numbers_b);
    words_a == words_b && numbers_a.len() == numbers_b.len() && numbers().all(|(&a, &b)| a == b || near(a, b))
}

/// The text with `#` for each number, and the numbers.
fn words_and_numbers(text: &str) -> (String, Vec<f64>) {
    let (mut words, mut numbers, mut rest) = (String::new(), Vec::new(), text);
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        words += &rest[..start];
        rest = &rest[start..];
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let mut end = digits(rest);
        if let Some(fraction) = rest[end..].strip_prefix('.') {
            let length = digits(fraction);
            end += if length > 0 { 1 + length } else { 0 };
        }
        if let Some(exponent) = rest[end..].strip_prefix('e') {
            let sign = usize::from(exponent.starts_with('-'));
            let length = digits(&exponent[sign..]);
            end += if length > 0 { 1 + sign + length } else { 0 };
        }
        words.push('#');
        numbers.push(rest[..end].parse().expect("digits, a fraction, an exponent"));
        rest = &rest[end..];
    }
    (words + rest, numbers)
}

#[test]
fn only_the_last_digits_may_differ() {
    let alike = |a, b| alike(a, b, |a, b| (a - b).abs() <= 1e-6 * a.abs().max(b.abs()));
    assert!(alike("σ 1.0000001e-27, 2", "σ 1.0e-27, 2"));
    assert!(!alike("σ 1.1e-27", "σ 1.0e-27"));
    assert!(!alike("σ 1.0e-27", "τ 1.0e-27"));
    assert!(!alike("1 2", "1 2 3"));
}
