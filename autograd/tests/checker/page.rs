//! Pages of `docs/` that quote what a program prints: the quotation is compared with what is printed now.

use std::path::Path;

/// Compares the blocks of `docs/{page}` with what is printed now, by name. With `LIMPID_BLESS` set they are written there
/// instead.
///
/// A block is the fenced one below a line `<!-- printed: NAME -->`. Source lines are left out of it, and numbers may
/// differ in the last digits, as they do between processors.
#[track_caller]
pub fn compare(page: &str, printed: &[(&str, String)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let bless = std::env::var_os("LIMPID_BLESS").is_some();
    let (mut written, mut rest, mut found) = (String::new(), &text[..], Vec::new());
    while let Some((before, after)) = rest.split_once("<!-- printed: ") {
        let (name, after) =
            after.split_once(" -->\n```text\n").expect("a marker is followed by a text block");
        let (quoted, after) = after.split_once("```\n").expect("a block ends");
        let now = printed.iter().find(|(known, _)| *known == name);
        let now = without_lines(&now.unwrap_or_else(|| panic!("{page}: nothing prints {name:?}")).1);
        let now = format!("{}\n", now.trim_end());
        let hint = "LIMPID_BLESS=1 cargo test -p limpid-autograd --test checker writes it anew";
        assert!(bless || alike(quoted, &now), "{page}, {name}: {hint}\nit says\n{quoted}\nnow\n{now}");
        written += &format!("{before}<!-- printed: {name} -->\n```text\n{now}```\n");
        found.push(name);
        rest = after;
    }
    for (name, _) in printed {
        assert!(found.contains(name), "{page} does not show {name}: add a line <!-- printed: {name} -->");
    }
    if bless {
        std::fs::write(&path, written + rest).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// `file.rs:…` for `file.rs:81`.
fn without_lines(text: &str) -> String {
    let mut parts = text.split(".rs:");
    let mut result = parts.next().unwrap_or_default().to_string();
    for part in parts {
        result = result + ".rs:…" + part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    result
}

/// The same words, and the same numbers up to a millionth.
fn alike(a: &str, b: &str) -> bool {
    let ((words_a, numbers_a), (words_b, numbers_b)) = (words_and_numbers(a), words_and_numbers(b));
    let close = |(a, b): (&f64, &f64)| {
        let tiny = a.abs() < 1e-6 && b.abs() < 1e-6;
        tiny || (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
    };
    words_a == words_b && numbers_a.len() == numbers_b.len() && numbers_a.iter().zip(&numbers_b).all(close)
}

fn words_and_numbers(text: &str) -> (String, Vec<f64>) {
    let (mut words, mut numbers, mut rest) = (String::new(), Vec::new(), text);
    while let Some(c) = rest.chars().next() {
        if !c.is_ascii_digit() {
            words.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
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
    (words, numbers)
}

#[test]
fn only_the_last_digits_may_differ() {
    assert!(alike("x 1.0e-3 ± 4e-14.", "x 1.0000001e-3 ± 9e-14."));
    assert!(alike("axis=0 0..1 in %1.", "axis=0 0..1 in %1."));
    assert!(!alike("axis=0 0..1", "axis=0 0..2"));
    assert!(!alike("x 1.0e-3", "x 1.1e-3"));
    assert!(!alike("6 of 36", "5 of 36"));
    assert!(!alike("slope 1.00", "slopes 1.00"));
    assert_eq!(without_lines("a.rs:12, b.rs:7\n"), "a.rs:…, b.rs:…\n");
}
