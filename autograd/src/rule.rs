//! What is written where a node hands its gradient back?
//!
//! The text of a rule is not typed by hand: it is the program that the rule records, on a dry tape of its own, where the
//! operands are leaves with their names on the tape that is read.

use limpid_tensor::Tensor;
use smallvec::SmallVec;

use crate::print::edge_mark;
use crate::tape::Tape;
use crate::var::Var;

impl Tape {
    /// The rule of the node at position `id`, a line per operation; none for a leaf, or where no gradient passes. Fused
    /// operations of a rule are expanded.
    pub(crate) fn rule_text(&self, id: usize) -> Vec<String> {
        let (op, operands) = {
            let nodes = self.nodes.borrow();
            let node = &nodes[id];
            let (true, Some(op)) = (node.tracked, node.op.clone()) else { return Vec::new() };
            let operands: SmallVec<[_; 3]> = node
                .inputs
                .iter()
                .map(|operand| {
                    (operand.id, nodes[operand.id as usize].meta.clone(), nodes[operand.id as usize].tracked)
                })
                .collect();
            (op, operands)
        };
        let dry = Tape::dry().with_fused_expanded(true);
        // One element stands for all: no value is computed.
        let leaf = |meta: &limpid_tensor::Meta, tracked, name: String| {
            dry.leaf(Tensor::zeros([], meta.dtype).expand(meta.shape.clone()), tracked, Some(name.into()))
        };
        let mut placed: Vec<(u32, Var<'_>)> = Vec::new();
        let mut wanted: Vec<(String, Var<'_>)> = Vec::new();
        let mut x: SmallVec<[Var<'_>; 3]> = SmallVec::new();
        for (operand, meta, tracked) in &operands {
            let var = placed.iter().find(|(id, _)| id == operand).map(|(_, var)| *var).unwrap_or_else(|| {
                let label = self.label(*operand);
                let var = leaf(meta, *tracked, label.clone());
                placed.push((*operand, var));
                wanted.extend(tracked.then_some((label, var)));
                var
            });
            x.push(var);
        }
        let y = dry.record_shared(op, &x);
        let name = self.label(id as u32);
        let g = leaf(&y.meta(), false, format!("∂{name}"));
        let rule = dry.len();
        let sources: Vec<Var<'_>> = wanted.iter().map(|(_, var)| *var).collect();
        let cotangents = match dry.vjp(y, g, &sources) {
            Ok(cotangents) => cotangents,
            Err(why) => return vec![format!("(its rule depends on values: {why})")],
        };
        dry.written(rule, y, &name, &wanted, &cotangents)
    }

    /// The nodes from `start` on as assignments, and what they come to.
    fn written(
        &self,
        start: usize,
        y: Var<'_>,
        y_name: &str,
        wanted: &[(String, Var<'_>)],
        cotangents: &[Option<Var<'_>>],
    ) -> Vec<String> {
        let nodes = self.nodes.borrow();
        let mut names: Vec<String> = Vec::new();
        let mut lines = Vec::new();
        let mut steps = 0;
        for (id, node) in nodes.iter().enumerate() {
            let literal = node.value.as_ref().and_then(|value| value.item().ok());
            let name = match (&node.name, literal, &node.op) {
                (Some(name), ..) => name.to_string(),
                (None, Some(number), None) => number.to_string(),
                (None, None, None) => format!("constant {}", node.meta),
                _ if id == y.index() => y_name.to_string(),
                (None, _, Some(op)) => {
                    steps += 1;
                    let operands: Vec<String> = node
                        .inputs
                        .iter()
                        .map(|operand| format!("{}{}", edge_mark(operand.edge), names[operand.id as usize]))
                        .collect();
                    let attributes = op.attributes();
                    let space = if attributes.is_empty() { "" } else { " " };
                    debug_assert!(id >= start);
                    lines.push(format!(
                        "t{steps} = {}({}){space}{attributes}",
                        op.name(),
                        operands.join(", ")
                    ));
                    format!("t{steps}")
                }
            };
            names.push(name);
        }
        for ((label, _), cotangent) in wanted.iter().zip(cotangents) {
            match cotangent {
                Some(cotangent) => lines.push(format!("∂{label} += {}", names[cotangent.index()])),
                None => lines.push(format!("∂{label} += 0")),
            }
        }
        lines
    }
}
