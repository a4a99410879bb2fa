//! Patterns over paths, and the names nearest to one that matches nothing.

/// A pattern over paths: `*` stands for any characters within one component, `**` for any at all, and `**/` for any number
/// of leading components, also none.
///
/// ```
/// use limpid_autograd::glob::Glob;
/// let branches = Glob::new("**/branch/*");
/// assert!(branches.matches("layers.3/branch/linear") && branches.matches("branch/linear"));
/// assert!(!branches.matches("layers.3/branch/gate/linear"));
/// ```
#[derive(Clone, Debug)]
pub struct Glob(Vec<Piece>);

#[derive(Clone, Copy, PartialEq, Debug)]
enum Piece {
    Char(char),
    /// Any run of characters that are not `/`.
    Component,
    /// Any run of characters.
    Any,
    /// Nothing, or any run of characters that ends with `/`.
    Components,
}

impl Glob {
    /// Every text is a pattern.
    pub fn new(pattern: &str) -> Glob {
        let mut pieces = Vec::new();
        for c in pattern.chars() {
            let begins = pieces.len() == 1 || matches!(pieces.iter().nth_back(1), Some(Piece::Char('/')));
            match (c, pieces.last()) {
                ('*', Some(Piece::Component | Piece::Any)) => {
                    pieces.pop();
                    pieces.push(Piece::Any);
                }
                ('*', _) => pieces.push(Piece::Component),
                ('/', Some(Piece::Any)) if begins => {
                    pieces.pop();
                    pieces.push(Piece::Components);
                }
                (c, _) => pieces.push(Piece::Char(c)),
            }
        }
        Glob(pieces)
    }

    /// Whether the pattern stands for the whole path.
    pub fn matches(&self, path: &str) -> bool {
        // All positions in the pattern that the path so far can have reached, step by step: no backtracking.
        let end = self.0.len();
        let mut reached = vec![false; end + 1];
        reached[0] = true;
        let pass_over_stars = |reached: &mut Vec<bool>| {
            for (i, piece) in self.0.iter().enumerate() {
                reached[i + 1] |= reached[i] && matches!(piece, Piece::Component | Piece::Any);
            }
        };
        // `**/` may be nothing only where a component begins.
        let begin_component = |reached: &mut Vec<bool>| {
            for (i, piece) in self.0.iter().enumerate() {
                reached[i + 1] |= reached[i] && *piece == Piece::Components;
            }
        };
        begin_component(&mut reached);
        pass_over_stars(&mut reached);
        for c in path.chars() {
            let mut next = vec![false; end + 1];
            for (i, piece) in self.0.iter().enumerate().filter(|(i, _)| reached[*i]) {
                match *piece {
                    Piece::Char(p) => next[i + 1] |= p == c,
                    Piece::Component => next[i] |= c != '/',
                    Piece::Any | Piece::Components => next[i] = true,
                }
            }
            if c == '/' {
                begin_component(&mut next);
            }
            pass_over_stars(&mut next);
            reached = next;
        }
        reached[end]
    }

    /// Whether the pattern stands for the path or for a scope that it lies in.
    pub fn covers(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(end, _)| end);
        ends.chain([path.len()]).any(|end| self.matches(&path[..end]))
    }
}

/// The (at most three) names that are nearest to a pattern which matches none of them.
pub fn nearest<'a>(pattern: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by_key(|name| distance(pattern, name));
    names.truncate(3);
    names
}

/// Levenshtein's distance from `name` to the nearest string that `pattern` matches, where `*` stands for any run of
/// characters.
fn distance(pattern: &str, name: &str) -> usize {
    let name: Vec<char> = name.chars().collect();
    // row[j]: the distance between the pattern so far and the first j characters of the name.
    let mut row: Vec<usize> = (0..=name.len()).collect();
    for p in pattern.chars() {
        let mut diagonal = row[0];
        if p != '*' {
            row[0] += 1;
        }
        for j in 1..row.len() {
            let above = row[j];
            row[j] = match p {
                '*' => above.min(row[j - 1]),
                _ => (diagonal + usize::from(p != name[j - 1])).min(above + 1).min(row[j - 1] + 1),
            };
            diagonal = above;
        }
    }
    row[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, path, expected) in [
            ("layers.*/mix/add", "layers.3/mix/add", true),
            ("layers.*/mix/add", "layers.3/sub/mix/add", false),
            ("layers.*", "layers.3/mix", false),
            ("layers.**", "layers.3/mix/add", true),
            ("**/add", "layers.3/mix/add", true),
            ("**/add", "add", true),
            ("**/add", "padd", false),
            ("a/**/add", "a/add", true),
            ("a/**/add", "a/b/c/add", true),
            ("a/**/add", "a/badd", false),
            ("x**/add", "xadd", false),
            ("x**/add", "xy/add", true),
            ("**add", "add", true),
            ("***", "a/b", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXcYb", false),
            ("∂*", "∂tanh", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_scope_covers_what_lies_in_it() {
        for (pattern, path, expected) in [
            ("**/branch", "layers.1/branch", true),
            ("**/branch", "layers.1/branch/gate/∂mul", true),
            ("**/branch", "layers.1/branches", false),
            ("layers.1", "layers.1/mix", true),
            ("layers.1", "layers.10/mix", false),
            ("", "", true),
        ] {
            assert_eq!(Glob::new(pattern).covers(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn the_distance_is_the_least_number_of_edits_with_stars_free() {
        for (pattern, name, expected) in [
            ("abc", "abc", 0),
            ("abc", "adc", 1),
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("abc", "", 3),
            ("*", "anything", 0),
            ("layers.*.bias", "layers.10.bias", 0),
            ("layer.*.bias", "layers.10.bias", 1),
            ("*.biases", "layers.0.bias", 2),
            ("a*a", "a", 1),
        ] {
            assert_eq!(distance(pattern, name), expected, "{pattern} and {name}");
        }
        assert_eq!(nearest("*.baas", ["a.weight", "a.bias", "b.bias", "a.w"]), ["a.bias", "b.bias", "a.w"]);
    }
}
