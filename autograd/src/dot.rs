//! A tape as a graph, for Graphviz.

use std::fmt::Write;

use crate::print::Program;
use crate::var::Edge;

impl Program<'_> {
    /// The program as a directed graph in Graphviz' language: a box per node, in clusters by scope, and an edge per operand,
    /// skip edges blue, branch edges red, control edges dashed. What was asked for with
    /// [`with_statistics`](Program::with_statistics) and the like stands in the boxes.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::scalar(1.0f64));
    /// tape.scope("block", || x.skip() + x.tanh().branch());
    /// let dot = tape.program().to_dot();
    /// assert!(dot.contains("n0 -> n2 [color=blue, label=skip]"), "{dot}");
    /// assert!(dot.contains("subgraph \"cluster_block\""), "{dot}");
    /// ```
    pub fn to_dot(&self) -> String {
        let mut dot = String::from("digraph tape {\n  node [shape=box, fontname=monospace];\n");
        let mut edges = String::new();
        let mut open: Vec<String> = Vec::new();
        for id in self.start..self.end {
            let (label, scope) = self.boxed(id);
            let names: Vec<&str> = scope.split('/').filter(|name| !name.is_empty()).collect();
            let shared = open.iter().zip(&names).take_while(|(open, name)| open == *name).count();
            close(&mut dot, &mut open, shared);
            for name in &names[shared..] {
                open.push(name.to_string());
                let (indent, path) = (indent(open.len()), quoted(&format!("cluster_{}", open.join("/"))));
                let _ = writeln!(dot, "{indent}subgraph {path} {{\n{indent}  label={};", quoted(name));
            }
            let _ = writeln!(dot, "{}n{id} [label={}];", indent(open.len() + 1), quoted(&label));
            for operand in &self.tape.nodes.borrow()[id].inputs {
                let style = match operand.edge {
                    Edge::Interior => "",
                    Edge::Skip => " [color=blue, label=skip]",
                    Edge::Branch => " [color=red, label=branch]",
                    Edge::Control => " [style=dashed, label=control]",
                };
                let _ = writeln!(edges, "  n{} -> n{id}{style};", operand.id);
            }
        }
        close(&mut dot, &mut open, 0);
        dot + &edges + "}\n"
    }

    /// The text in a node's box, and its scope.
    fn boxed(&self, id: usize) -> (String, String) {
        let line = self.line(id, &self.tape.nodes.borrow(), &mut Default::default());
        let mut text = line.definition;
        if let Some(statistics) = self.statistics(id) {
            let _ = write!(text, "\n{statistics}");
        }
        if let Some(norm) = self.gradient_norm(id) {
            let _ = write!(text, "\ngradient norm {norm:.3e}");
        }
        for line in self.rule(id) {
            let _ = write!(text, "\n{line}");
        }
        (text, line.scope)
    }
}

/// Closes clusters until `depth` are open. One that a later node belongs to is opened again: Graphviz joins them by name.
fn close(dot: &mut String, open: &mut Vec<String>, depth: usize) {
    while open.len() > depth {
        let _ = writeln!(dot, "{}}}", indent(open.len()));
        open.pop();
    }
}

fn indent(depth: usize) -> String {
    "  ".repeat(depth)
}

/// A string in Graphviz' quotes; lines end on the left.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\l"),
            c => quoted.push(c),
        }
    }
    quoted + if text.contains('\n') { "\\l\"" } else { "\"" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_are_escaped() {
        assert_eq!(quoted(r#"a "b" \c"#), r#""a \"b\" \\c""#);
        assert_eq!(quoted("two\nlines"), r#""two\llines\l""#);
    }
}
