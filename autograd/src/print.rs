//! A tape as text: a line per node, as a program reads.

use std::collections::HashMap;
use std::fmt;

use crate::op::Op;
use crate::tape::{Node, Tape};
use crate::var::{Edge, Var};

/// A range of a tape's nodes, displayed as a program. Made by [`Tape::program`] and [`Tape::backward_program`].
///
/// Each line has a name, the type, the operation with its operands, the bytes held, the scope and the source line that
/// recorded it. Operands are marked with the edge they arrive by: `↷` skip, `⑂` branch, `∿` control.
pub struct Program<'a> {
    tape: &'a Tape,
    start: usize,
    end: usize,
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
        Program { tape: self, start: 0, end: self.len() }
    }

    /// The nodes from position `start` on as a program.
    pub(crate) fn program_from(&self, start: usize) -> Program<'_> {
        Program { tape: self, start, end: self.len() }
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
        let recorded = self.grad(y, &leaves);
        let mut text = Program { tape: self, start: mark, end: self.len() }.to_string();
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
struct Line {
    definition: String,
    held: String,
    scope: String,
    source: String,
}

impl Program<'_> {
    fn line(&self, id: usize, nodes: &[Node], first_holder: &mut HashMap<usize, usize>) -> Line {
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
            definition: format!("%{id}: {} = {operation}", node.meta),
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
                let mark = match operand.edge {
                    Edge::Interior => "",
                    Edge::Skip => "↷",
                    Edge::Branch => "⑂",
                    Edge::Control => "∿",
                };
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
        let nodes = &self.tape.nodes.borrow()[..];
        let (start, end) = (self.start.min(nodes.len()), self.end.min(nodes.len()));
        // A pass for the widths and one for the text: a program may have a million lines.
        let lines = || {
            let before = nodes[..start].iter().enumerate();
            let held = before.filter_map(|(id, node)| Some((node.value.as_ref()?.storage().id(), id)));
            let mut first_holder: HashMap<usize, usize> = held.collect();
            (start..end).map(move |id| self.line(id, nodes, &mut first_holder))
        };
        let mut widths = [0; 3];
        for line in lines() {
            for (width, column) in widths.iter_mut().zip([&line.definition, &line.held, &line.scope]) {
                *width = (*width).max(column.chars().count()).min(60);
            }
        }
        let [definition, held, scope] = widths;
        for line in lines() {
            let text = format!(
                "{:definition$}  {:>held$}  {:scope$}  {}",
                line.definition, line.held, line.scope, line.source
            );
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
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
