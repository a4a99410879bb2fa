//! How one name becomes another.

/// A name with holes: `layers.{}.weight`, where `{}` stands for a part of a name without a dot.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// The text around the holes, one piece more than there are holes.
    pieces: Vec<String>,
}

impl Template {
    pub fn new(text: &str) -> Template {
        Template { pieces: text.split("{}").map(str::to_owned).collect() }
    }

    pub fn holes(&self) -> usize {
        self.pieces.len() - 1
    }

    /// What fills the holes if the template is to be `name`, the earliest and shortest fill first.
    pub fn captures<'a>(&self, name: &'a str) -> Option<Vec<&'a str>> {
        let (first, rest) = self.pieces.split_first()?;
        let mut found = Vec::new();
        fill(rest, name.strip_prefix(first.as_str())?, &mut found).then_some(found)
    }

    /// The template with its holes filled.
    pub fn filled(&self, parts: &[&str]) -> String {
        let mut text = self.pieces[0].clone();
        for (part, piece) in parts.iter().zip(&self.pieces[1..]) {
            text.push_str(part);
            text.push_str(piece);
        }
        text
    }
}

/// Fills one hole before each of `pieces`, so that all of `name` is used.
fn fill<'a>(pieces: &[String], name: &'a str, found: &mut Vec<&'a str>) -> bool {
    let Some((piece, rest)) = pieces.split_first() else { return name.is_empty() };
    let part_end = name.find('.').unwrap_or(name.len());
    let ends = name[..part_end].char_indices().map(|(at, c)| at + c.len_utf8());
    for end in ends {
        if let Some(remaining) = name[end..].strip_prefix(piece.as_str()) {
            found.push(&name[..end]);
            if fill(rest, remaining, found) {
                return true;
            }
            found.pop();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_capture_and_fill() {
        let captures = |template: &str, name: &'static str| Template::new(template).captures(name);
        assert_eq!(captures("net.{}.w", "net.12.w"), Some(vec!["12"]));
        assert_eq!(captures("net.{}.w", "net.1.2.w"), None);
        assert_eq!(captures("net.{}.w", "net..w"), None);
        assert_eq!(captures("net.{}.w", "net.1.wx"), None);
        assert_eq!(captures("{}.{}", "a.b"), Some(vec!["a", "b"]));
        assert_eq!(captures("{}x{}", "axxb"), Some(vec!["a", "xb"]));
        assert_eq!(captures("{}b", "abb"), Some(vec!["ab"]));
        assert_eq!(captures("plain", "plain"), Some(vec![]));
        assert_eq!(Template::new("layers.{}.{}").filled(&["3", "bias"]), "layers.3.bias");
        assert_eq!(Template::new("{}").holes(), 1);
    }
}
