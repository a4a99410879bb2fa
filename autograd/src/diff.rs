//! What differs between two tapes?

use std::collections::HashMap;
use std::fmt;

use crate::error::Site;
use crate::tape::{Node, Tape};
use crate::var::Var;

/// What differs between two tapes: from [`diff()`].
#[derive(Clone, PartialEq, Debug)]
pub struct TapeDiff {
    /// The lines that differ, in the order of the program.
    pub lines: Vec<Difference>,
    /// The first value that differs among nodes that are on both tapes with one shape and dtype.
    pub value: Option<ValueDifference>,
}

/// A line of a program that the other does not have as it is. A line is a node's name, type, operation, operands and scope.
#[derive(Clone, PartialEq, Debug)]
pub enum Difference {
    /// A node that only the first tape has.
    Removed(String),
    /// A node that only the second tape has.
    Added(String),
    /// A node that both have, as it is on the one and on the other.
    Changed(String, String),
}

/// Two values of one node.
#[derive(Clone, PartialEq, Debug)]
pub struct ValueDifference {
    /// The node's position on the first tape and on the second.
    pub nodes: (usize, usize),
    /// What recorded it on the first.
    pub site: Site,
    /// The row-major position of the first element whose bits differ.
    pub element: usize,
    /// That element's values.
    pub values: (f64, f64),
    /// How many elements differ.
    pub count: usize,
    /// Of how many.
    pub elements: usize,
}

impl TapeDiff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.value.is_none()
    }
}

/// Compares two programs, node by node, and the values they computed.
///
/// Within each scope the nodes of both are aligned by the names of their operations, so that as few as possible are left
/// over (E. W. Myers, *An O(ND) Difference Algorithm and Its Variations*, 1986). A node on both is the same if type,
/// attributes and marks are, and its operands are each other's counterparts. Values are compared bit by bit, those that a
/// tape has dropped after computing them again; all NaNs count as one.
///
/// ```
/// use limpid_autograd::{Tape, diff};
/// use limpid_tensor::Tensor;
/// let run = |slope: f64, shift: bool| {
///     let tape = Tape::new();
///     let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0], [2]));
///     let y = (x * slope).tanh();
///     let _ = if shift { y + 1.0 } else { y };
///     tape
/// };
/// assert!(diff(&run(0.5, false), &run(0.5, false)).is_empty());
/// let found = diff(&run(0.5, false), &run(0.25, true));
/// assert_eq!(found.value.unwrap().values, (0.5, 0.25));
/// assert_eq!(found.lines.len(), 2); // the factor, and what was added
/// ```
pub fn diff(old: &Tape, new: &Tape) -> TapeDiff {
    let counterpart = counterparts(old, new);
    let mut of_new = vec![None; new.len()];
    for (o, n) in (0..).zip(&counterpart).filter_map(|(o, n)| Some((o, (*n)?))) {
        of_new[n as usize] = Some(o);
    }
    let mut lines = Vec::new();
    // In the second program's order; what only the first has comes before what followed it there.
    let mut removed = (0..old.len() as u32).filter(|&id| counterpart[id as usize].is_none()).peekable();
    for n in 0..new.len() as u32 {
        match of_new[n as usize] {
            None => lines.push(Difference::Added(line(new, n))),
            Some(o) => {
                while let Some(gone) = removed.next_if(|&gone| gone < o) {
                    lines.push(Difference::Removed(line(old, gone)));
                }
                if !same(old, o, new, n, &counterpart) {
                    lines.push(Difference::Changed(line(old, o), line(new, n)));
                }
            }
        }
    }
    lines.extend(removed.map(|gone| Difference::Removed(line(old, gone))));
    let value = (0..).zip(&counterpart).find_map(|(o, n)| first_difference(old.var(o), new.var((*n)?)));
    TapeDiff { lines, value }
}

fn line(tape: &Tape, id: u32) -> String {
    let line = tape.program().line(id as usize, &tape.nodes.borrow(), &mut HashMap::new());
    if line.scope.is_empty() { line.definition } else { format!("{}  {}", line.definition, line.scope) }
}

/// What a node is aligned by.
fn kind(node: &Node) -> String {
    match (&node.op, &node.name) {
        (Some(op), _) => op.name().into(),
        (None, Some(name)) => format!("leaf {name}"),
        (None, None) => "leaf".into(),
    }
}

/// For each node of `old` the node of `new` that stands for it.
fn counterparts(old: &Tape, new: &Tape) -> Vec<Option<u32>> {
    let by_scope = |tape: &Tape| {
        let mut scopes: HashMap<String, Vec<(u32, String)>> = HashMap::new();
        for (id, node) in tape.nodes.borrow().iter().enumerate() {
            let scope = tape.scopes.borrow().path_of(node.scope).to_string();
            scopes.entry(scope).or_default().push((id as u32, kind(node)));
        }
        scopes
    };
    let others = by_scope(new);
    let mut found = vec![None; old.len()];
    for (scope, nodes) in by_scope(old) {
        let Some(others) = others.get(&scope) else { continue };
        let kinds = |nodes: &[(u32, String)]| nodes.iter().map(|(_, kind)| kind.clone()).collect::<Vec<_>>();
        let pairs = aligned(&kinds(&nodes), &kinds(others));
        pairs.into_iter().for_each(|(o, n)| found[nodes[o].0 as usize] = Some(others[n].0));
    }
    found
}

/// The positions of a longest common subsequence, in time `(|a| + |b|)·D` and memory `D²` for D positions left over.
fn aligned<T: PartialEq>(a: &[T], b: &[T]) -> Vec<(usize, usize)> {
    let (n, m) = (a.len() as isize, b.len() as isize);
    let reach = (n + m) as usize;
    // The furthest position in `a` on each diagonal (position in `a` less position in `b`), for each number of edits.
    let mut furthest = vec![0isize; 2 * reach + 3];
    let at = |diagonal: isize| (diagonal + reach as isize + 1) as usize;
    let mut history: Vec<Vec<isize>> = Vec::new();
    'edits: for d in 0..=reach as isize {
        for k in (-d..=d).step_by(2) {
            let down = k == -d || k != d && furthest[at(k - 1)] < furthest[at(k + 1)];
            let mut x = if down { furthest[at(k + 1)] } else { furthest[at(k - 1)] + 1 };
            while x < n && x - k < m && a[x as usize] == b[(x - k) as usize] {
                x += 1;
            }
            furthest[at(k)] = x;
            if x >= n && x - k >= m {
                history.push(furthest[at(-d)..=at(d)].to_vec());
                break 'edits;
            }
        }
        history.push(furthest[at(-d)..=at(d)].to_vec());
    }
    // Back from the end: on each diagonal what is equal are pairs, up to the edit that led there.
    let mut pairs = Vec::new();
    let (mut x, mut y) = (n, m);
    for d in (0..history.len() as isize).rev() {
        let k = x - y;
        let before = |k: isize| match history.get((d - 1).max(0) as usize) {
            Some(furthest) if k.abs() < d => furthest[(k + d - 1) as usize],
            _ => isize::MIN,
        };
        let down = k == -d || k != d && before(k - 1) < before(k + 1);
        let start = match (d, down) {
            (0, _) => 0,
            (_, true) => before(k + 1),
            (_, false) => before(k - 1) + 1,
        };
        while x > start {
            (x, y) = (x - 1, y - 1);
            pairs.push((x as usize, y as usize));
        }
        (x, y) = if down { (x, y - 1) } else { (x - 1, y) };
    }
    pairs.reverse();
    pairs
}

/// Whether two nodes say the same.
fn same(old: &Tape, o: u32, new: &Tape, n: u32, counterpart: &[Option<u32>]) -> bool {
    let (old, new) = (old.nodes.borrow(), new.nodes.borrow());
    let (a, b) = (&old[o as usize], &new[n as usize]);
    let attributes = |node: &Node| node.op.as_ref().map(|op| op.attributes());
    a.meta == b.meta
        && a.tracked == b.tracked
        && attributes(a) == attributes(b)
        && a.inputs.len() == b.inputs.len()
        && a.inputs
            .iter()
            .zip(&b.inputs)
            .all(|(x, y)| x.edge == y.edge && counterpart[x.id as usize] == Some(y.id))
}

/// The first element in which two values differ; none if one of them cannot be had, or their types differ.
fn first_difference(old: Var<'_>, new: Var<'_>) -> Option<ValueDifference> {
    if old.meta() != new.meta() {
        return None;
    }
    let a = old.value().ok()?.to_f64_vec().ok()?;
    let b = new.value().ok()?.to_f64_vec().ok()?;
    let differ = |(a, b): (&f64, &f64)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    let element = a.iter().zip(&b).position(differ)?;
    Some(ValueDifference {
        nodes: (old.index(), new.index()),
        site: old.site(),
        element,
        values: (a[element], b[element]),
        count: a.iter().zip(&b).filter(|&pair| differ(pair)).count(),
        elements: a.len(),
    })
}

/// As `diff` prints it: `-` removed, `+` added; then the first value that differs.
impl fmt::Display for TapeDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            match line {
                Difference::Removed(line) => writeln!(f, "- {line}")?,
                Difference::Added(line) => writeln!(f, "+ {line}")?,
                Difference::Changed(old, new) => writeln!(f, "- {old}\n+ {new}")?,
            }
        }
        if let Some(value) = &self.value {
            let (old, new) = value.nodes;
            writeln!(f, "first value that differs: %{old} and %{new}, {}", value.site)?;
            let ((a, b), element) = (value.values, value.element);
            writeln!(
                f,
                "  element {element}: {a:e} and {b:e}; {} of {} differ",
                value.count, value.elements
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignments_are_common_and_longest() {
        let pairs = |a: &str, b: &str| {
            let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            let pairs = aligned(&a, &b);
            assert!(pairs.iter().all(|&(i, j)| a[i] == b[j]));
            assert!(pairs.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1));
            pairs.len()
        };
        assert_eq!(pairs("", ""), 0);
        assert_eq!(pairs("", "ab"), 0);
        assert_eq!(pairs("ab", ""), 0);
        assert_eq!(pairs("abcabba", "cbabac"), 4);
        assert_eq!(pairs("xaxcxabc", "abcy"), 3);
        // Against the quadratic recurrence, on every pair of words of up to 5 letters from two.
        let words: Vec<String> = (0..6u32)
            .flat_map(|n| {
                (0..1u32 << n)
                    .map(move |bits| (0..n).map(|i| if bits >> i & 1 == 1 { 'a' } else { 'b' }).collect())
            })
            .collect();
        for a in &words {
            for b in &words {
                let (x, y): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
                let mut longest = vec![vec![0; y.len() + 1]; x.len() + 1];
                for i in 0..x.len() {
                    for j in 0..y.len() {
                        let skip = longest[i][j + 1].max(longest[i + 1][j]);
                        longest[i + 1][j + 1] = if x[i] == y[j] { longest[i][j] + 1 } else { skip };
                    }
                }
                assert_eq!(pairs(a, b), longest[x.len()][y.len()], "{a} {b}");
            }
        }
    }
}
