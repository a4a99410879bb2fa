//! A tape as JSON, for other programs to read.

use std::collections::HashMap;
use std::fmt::Write;

use crate::print::Program;
use crate::var::Edge;

impl Program<'_> {
    /// The program as one JSON object: `{"nodes": [..]}` with, for each node, `id`, `op` and `attributes` (or `null` and
    /// the `name` of a leaf), `inputs` (`id` and `edge`: interior, skip, branch or control), `dtype`, `shape`, `tracked`,
    /// `bytes` held (`null` if dropped), `storage` (the first node that holds the same storage), `scope`, `file`, `line`,
    /// and what was asked for of `statistics`, `gradient_norm` and `rule`. Numbers that are not finite are `null`.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// tape.variable(&Tensor::scalar(1.0f64)).tanh();
    /// let json = tape.program().to_json();
    /// assert!(json.contains(r#""op":"tanh","name":null,"attributes":"","inputs":[{"id":0,"edge":"interior"}]"#), "{json}");
    /// ```
    pub fn to_json(&self) -> String {
        let mut first_holder: HashMap<usize, usize> = HashMap::new();
        let nodes: Vec<String> =
            (self.start..self.end).map(|id| self.object(id, &mut first_holder)).collect();
        format!("{{\"nodes\":[\n{}\n]}}\n", nodes.join(",\n"))
    }

    fn object(&self, id: usize, first_holder: &mut HashMap<usize, usize>) -> String {
        let mut object = {
            let nodes = self.tape.nodes.borrow();
            let node = &nodes[id];
            let inputs: Vec<String> = node
                .inputs
                .iter()
                .map(|operand| {
                    let edge = match operand.edge {
                        Edge::Interior => "interior",
                        Edge::Skip => "skip",
                        Edge::Branch => "branch",
                        Edge::Control => "control",
                    };
                    format!("{{\"id\":{},\"edge\":\"{edge}\"}}", operand.id)
                })
                .collect();
            let shape: Vec<String> = node.meta.shape.iter().map(usize::to_string).collect();
            let storage = node.value.as_ref().map(|value| value.storage());
            let holder = storage.map(|storage| *first_holder.entry(storage.id()).or_insert(id));
            let scopes = self.tape.scopes.borrow();
            format!(
                "{{\"id\":{id},\"op\":{},\"name\":{},\"attributes\":{},\"inputs\":[{}],\"dtype\":\"{}\",\
                 \"shape\":[{}],\"tracked\":{},\"bytes\":{},\"storage\":{},\"scope\":{},\"file\":{},\"line\":{}",
                node.op.as_ref().map_or("null".into(), |op| string(op.name())),
                node.name.as_ref().map_or("null".into(), |name| string(name)),
                string(&node.op.as_ref().map_or(String::new(), |op| op.attributes())),
                inputs.join(","),
                node.meta.dtype,
                shape.join(","),
                node.tracked,
                storage.map_or("null".into(), |storage| storage.bytes().to_string()),
                holder.map_or("null".into(), |holder| holder.to_string()),
                string(scopes.path_of(node.scope)),
                string(node.location.file()),
                node.location.line(),
            )
        };
        if let Some(s) = self.statistics(id) {
            let [min, max, mean, norm] = [s.min, s.max, s.mean, s.norm].map(number);
            let _ = write!(
                object,
                ",\"statistics\":{{\"elements\":{},\"non_finite\":{},\"min\":{min},\"max\":{max},\"mean\":{mean},\"norm\":{norm}}}",
                s.elements, s.non_finite
            );
        }
        if let Some(norm) = self.gradient_norm(id) {
            let _ = write!(object, ",\"gradient_norm\":{}", number(norm));
        }
        let rule: Vec<String> = self.rule(id).iter().map(|line| string(line)).collect();
        if !rule.is_empty() {
            let _ = write!(object, ",\"rule\":[{}]", rule.join(","));
        }
        object + "}"
    }
}

/// A number with as many digits as it takes to read it back; JSON has none that is not finite.
fn number(v: f64) -> String {
    if v.is_finite() { format!("{v:?}") } else { "null".into() }
}

/// A string in JSON's quotes (RFC 8259, section 7).
pub(crate) fn string(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_numbers_are_json() {
        assert_eq!(string("a \"b\" \\ \n ∂"), r#""a \"b\" \\ \u000a ∂""#);
        assert_eq!([number(1.0), number(1e-300), number(f64::NAN)], ["1.0", "1e-300", "null"]);
    }
}
