//! A tape as text: a line per node, as a program reads.

use std::collections::HashMap;
use std::fmt;

use crate::ledger::Ledger;
use crate::op::Op;
use crate::statistics::Statistics;
use crate::tape::{Node, Tape, set_while_alive};
use crate::var::{Edge, Var};

/// A range of a tape's nodes, displayed as a program. Made by [`Tape::program`] and [`Tape::backward_program`].
///
/// Each line has a name, the type, the operation with its operands, the bytes held, the scope and the source line that
/// recorded it. Operands are marked with the edge they arrive by: `↷` skip, `⑂` branch, `∿` control.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_tensor::Tensor;
/// let tape = Tape::new();
/// let x = tape.variable(&Tensor::scalar(3.0f64));
/// let y = x * x;
/// let (_, ledger) = tape.backward_with_ledger(y)?;
/// let text = tape.program().with_statistics().with_gradients(&ledger).with_rules().to_string();
/// for line in ["      [9.000e0, 9.000e0] mean 9.000e0 norm 9.000e0", "      gradient norm 6.000e0", "      t1 = mul(∂%1, %0)"] {
///     assert!(text.contains(line), "{text}");
/// }
/// # Ok::<(), limpid_autograd::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Program<'a> {
    pub(crate) tape: &'a Tape,
    pub(crate) start: usize,
    pub(crate) end: usize,
    statistics: bool,
    rules: bool,
    ledger: Option<&'a Ledger>,
}

/// What is shown of the nodes; each as further lines below them.
impl<'a> Program<'a> {
    fn of(tape: &'a Tape, start: usize, end: usize) -> Program<'a> {
        Program { tape, start, end, statistics: false, rules: false, ledger: None }
    }

    /// Also the values' range, mean, norm and how many elements are not finite, and below the program what they take in
    /// unique storage. Dropped values are computed again for it, and not kept.
    pub fn with_statistics(self) -> Program<'a> {
        Program { statistics: true, ..self }
    }

    /// Also the norms of the gradients that a pass with [books](Tape::backward_with_ledger) found.
    pub fn with_gradients(self, ledger: &'a Ledger) -> Program<'a> {
        Program { ledger: Some(ledger), ..self }
    }

    /// Also the rule by which each node hands its gradient back: the program that its
    /// [`vjp`](crate::Op::vjp) records, with fused operations expanded. `∂%3` is the gradient of `%3`.
    /// It is recorded on a dry tape of its own, so nothing is computed; a rule that depends on values says so.
    pub fn with_rules(self) -> Program<'a> {
        Program { rules: true, ..self }
    }

    /// What is known of a value, if it was asked for and there is one.
    pub(crate) fn statistics(&self, id: usize) -> Option<Statistics> {
        let value = self.statistics.then(|| self.tape.value(self.tape.at(id)).ok())??;
        Statistics::of(&value).ok()
    }

    pub(crate) fn gradient_norm(&self, id: usize) -> Option<f64> {
        self.ledger?.norm(id)
    }

    pub(crate) fn rule(&self, id: usize) -> Vec<String> {
        if self.rules { self.tape.rule_text(id) } else { Vec::new() }
    }

    /// The bytes of all values held: each storage once, and as if each node had its own.
    fn held(&self) -> (usize, usize) {
        let nodes = self.tape.nodes.borrow();
        let values = nodes[self.start..self.end].iter().filter_map(|node| node.value.as_ref());
        let mut storages: HashMap<usize, usize> = HashMap::new();
        let mut by_node = 0;
        for value in values {
            storages.insert(value.storage().id(), value.storage().bytes());
            by_node += value.meta().bytes();
        }
        (storages.values().sum(), by_node)
    }
}

impl Tape {
    /// The whole tape as a program.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::scalar(2.0f64));
    /// let y = tape.scope("square", || x * x);
    /// let text = tape.program().to_string();
    /// assert!(text.contains("%1: f64[] = mul(%0, %0)"), "{text}");
    /// ```
    pub fn program(&self) -> Program<'_> {
        Program::of(self, 0, self.len())
    }

    /// The nodes from position `start` on as a program.
    pub(crate) fn program_from(&self, start: usize) -> Program<'_> {
        Program::of(self, start, self.len())
    }

    /// The derivative of a scalar by every tracked leaf, as the program its rules write: recorded, printed and dropped
    /// again. The source line of each node is the line of the rule that wrote it.
    ///
    /// # Errors
    /// As [`grad`](Tape::grad).
    #[track_caller]
    pub fn backward_program(&self, y: Var<'_>) -> crate::Result<String> {
        let leaves: Vec<Var<'_>> = {
            let nodes = self.nodes.borrow();
            let tracked =
                (0..=y.id).filter(|&id| nodes[id as usize].op.is_none() && nodes[id as usize].tracked);
            tracked.collect::<Vec<u32>>().into_iter().map(|id| self.var(id)).collect()
        };
        let mark = self.len();
        let _aside = set_while_alive(&self.aside, true);
        let recorded = self.grad(y, &leaves);
        let mut text = self.program_from(mark).to_string();
        if let Ok(gradients) = &recorded {
            for (leaf, gradient) in leaves.iter().zip(gradients) {
                text += &format!("∂{} = %{}\n", self.label(leaf.id), gradient.id);
            }
        }
        self.truncate(mark);
        recorded.map(|_| text)
    }
}

/// The columns of one line.
pub(crate) struct Line {
    pub definition: String,
    held: String,
    pub scope: String,
    source: String,
}

impl Program<'_> {
    pub(crate) fn line(&self, id: usize, nodes: &[Node], first_holder: &mut HashMap<usize, usize>) -> Line {
        let node = &nodes[id];
        let operation = match &node.op {
            None => {
                node.name.as_deref().unwrap_or(if node.tracked { "variable" } else { "constant" }).to_string()
            }
            Some(op) => self.operation(&**op, node, nodes),
        };
        let held = match &node.value {
            None if self.tape.is_dry() => format!("({})", format_bytes(node.meta.bytes())),
            None => "dropped".into(),
            Some(value) => match first_holder.get(&value.storage().id()) {
                Some(&holder) => format!("in %{holder}"),
                None => {
                    first_holder.insert(value.storage().id(), id);
                    format_bytes(value.storage().bytes())
                }
            },
        };
        Line {
            definition: match (&node.op, &node.name) {
                (Some(_), Some(name)) => format!("%{id} {name}: {} = {operation}", node.meta),
                _ => format!("%{id}: {} = {operation}", node.meta),
            },
            held,
            scope: self.tape.scopes.borrow().path_of(node.scope).to_string(),
            source: format!("{}:{}", short_path(node.location.file()), node.location.line()),
        }
    }

    fn operation(&self, op: &dyn Op, node: &Node, nodes: &[Node]) -> String {
        let operands: Vec<String> = node
            .inputs
            .iter()
            .map(|operand| {
                let mark = edge_mark(operand.edge);
                match &nodes[operand.id as usize].name {
                    Some(name) => format!("{mark}{name}"),
                    None => format!("{mark}%{}", operand.id),
                }
            })
            .collect();
        let attributes = op.attributes();
        let space = if attributes.is_empty() { "" } else { " " };
        format!("{}({}){space}{attributes}", op.name(), operands.join(", "))
    }
}

impl fmt::Display for Program<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = (self.start.min(self.tape.len()), self.end.min(self.tape.len()));
        // A pass for the widths and one for the text: a program may have a million lines.
        let lines = || {
            let nodes = self.tape.nodes.borrow();
            let before = nodes[..start].iter().enumerate();
            let held = before.filter_map(|(id, node)| Some((node.value.as_ref()?.storage().id(), id)));
            let mut first_holder: HashMap<usize, usize> = held.collect();
            drop(nodes);
            (start..end).map(move |id| self.line(id, &self.tape.nodes.borrow(), &mut first_holder))
        };
        let mut widths = [0; 3];
        for line in lines() {
            for (width, column) in widths.iter_mut().zip([&line.definition, &line.held, &line.scope]) {
                *width = (*width).max(column.chars().count()).min(60);
            }
        }
        let [definition, held, scope] = widths;
        for (id, line) in (start..end).zip(lines()) {
            let text = format!(
                "{:definition$}  {:>held$}  {:scope$}  {}",
                line.definition, line.held, line.scope, line.source
            );
            writeln!(f, "{}", text.trim_end())?;
            if let Some(statistics) = self.statistics(id) {
                writeln!(f, "      {statistics}")?;
            }
            if let Some(norm) = self.gradient_norm(id) {
                writeln!(f, "      gradient norm {norm:.3e}")?;
            }
            for line in self.rule(id) {
                writeln!(f, "      {line}")?;
            }
        }
        if self.statistics {
            let (unique, by_node) = self.held();
            let (unique, by_node) = (format_bytes(unique), format_bytes(by_node));
            writeln!(f, "{} nodes hold {unique} in unique storage; each alone, {by_node}", end - start)?;
        }
        Ok(())
    }
}

/// How an edge is marked in a program.
pub(crate) fn edge_mark(edge: Edge) -> &'static str {
    match edge {
        Edge::Interior => "",
        Edge::Skip => "↷",
        Edge::Branch => "⑂",
        Edge::Control => "∿",
    }
}

/// The folder and file of a source path: `ops/softmax.rs`. A bare `mod.rs` would say too little.
fn short_path(path: &str) -> String {
    let parts: Vec<&str> = path.split(['/', '\\']).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// Bytes as a person reads them: `512 B`, `32.0 KiB`.
pub fn format_bytes(bytes: usize) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 || unit == "GiB" {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    unreachable!("the loop returns at its last unit")
}
