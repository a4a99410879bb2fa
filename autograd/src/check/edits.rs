//! Which mistakes can be made in a recorded rule, and how their places are called.

use limpid_tensor::DType;
use limpid_tensor::rng::Key;

use super::mutate::{Edit, Recorded, Site, is_square, may_swap, summed};
use crate::scope::Rule;
use crate::tape::Node;
use crate::var::Var;

impl<'t> Recorded<'t> {
    /// Every edit that could change something, with the name of its place.
    pub fn edits(&self, rule: Rule) -> Vec<(Site, Edit, String)> {
        let mut found = Vec::new();
        for (i, result) in self.results.iter().enumerate() {
            let Some(result) = result else { continue };
            let name = if rule == Rule::Vjp { format!("x̄{i}") } else { "dy".into() };
            let mut edits = vec![Edit::Scale, Edit::Negate, Edit::Missing];
            edits.extend(is_square(&result.meta()).then_some(Edit::Transpose));
            for (k, other) in self.results.iter().enumerate().skip(i + 1) {
                let fits = other.is_some_and(|o| o.id != result.id && o.meta() == result.meta());
                edits.extend(fits.then_some(Edit::Swap(i, k)));
            }
            found.extend(edits.into_iter().map(|edit| (Site::Result(i), edit, name.clone())));
        }
        let (texts, uses, depends) = (self.texts(), self.uses(), self.depends());
        for (i, node) in self.nodes.iter().enumerate() {
            let v = self.tape.var((self.start + i) as u32);
            let is_result = self.results.iter().flatten().any(|result| result.id == v.id);
            if uses[i] == 0 && !is_result {
                continue;
            }
            let x: Vec<Var<'t>> = node.inputs.iter().map(|operand| self.tape.var(operand.id)).collect();
            let mut edits = self.node_edits(node, &x, v);
            if uses[i] == 0 {
                // Done to the result.
                edits.retain(|edit| !matches!(edit, Edit::Scale | Edit::Negate));
            }
            // What a constant becomes is all there is to see of it.
            edits.retain(|&edit| depends[i] || differ(v, self.node_edited(edit, node, &x, v)));
            edits.extend(Self::swaps(node, &x).into_iter().map(|(j, k)| Edit::Swap(j, k)));
            found.extend(edits.into_iter().map(|e| (Site::Node(self.marks[i]), e, texts[i].clone())));
            for (j, &x) in x.iter().enumerate() {
                let (site, place) = (Site::Operand(self.marks[i], j), format!("operand {j} of {}", texts[i]));
                let mut push = |edit| found.push((site, edit, place.clone()));
                let label = self.position(x.id).is_none().then(|| self.label(x.id));
                if label.is_some() && x.is_tracked() && v.is_tracked() {
                    push(Edit::Detach);
                }
                let changes = |edit| differ(x, self.value_edited(edit, x));
                if label.is_some_and(|l| l.starts_with('x') || l == "y") && changes(Edit::Stale) {
                    push(Edit::Stale);
                }
                let depends = self.position(x.id).is_none_or(|i| depends[i]);
                if is_square(&x.meta()) && (depends || changes(Edit::Transpose)) {
                    push(Edit::Transpose);
                }
            }
        }
        found
    }

    /// Edits of one node other than swaps.
    fn node_edits(&self, node: &Node, x: &[Var<'t>], v: Var<'t>) -> Vec<Edit> {
        let meta = v.meta();
        let mut edits = match meta.dtype {
            dtype if dtype.is_float() => vec![Edit::Scale, Edit::Negate],
            DType::Bool => vec![Edit::Negate],
            _ => Vec::new(),
        };
        let Some(op) = &node.op else { return edits };
        let affine = |x: &[Var<'t>]| {
            let constant = self.constant_term(node, x);
            differ(constant, constant * 0.0)
        };
        match op.name() {
            "add" | "sub" => edits.extend([Edit::DropTerm(0), Edit::DropTerm(1)]),
            "affine" if affine(x) => edits.extend([Edit::DropTerm(0), Edit::DropTerm(1)]),
            "sum" if !summed(&x[0].meta(), &meta).is_empty() => {
                edits.extend([Edit::FirstOfSum, Edit::MeanOfSum]);
            }
            _ => {}
        }
        if let [x] = x
            && x.meta() == meta
        {
            edits.push(Edit::Omit);
        }
        edits
    }

    /// Pairs of operands that could be exchanged, and where it would matter.
    fn swaps(node: &Node, x: &[Var<'t>]) -> Vec<(usize, usize)> {
        let pairs = (0..x.len()).flat_map(|k| (0..k).map(move |j| (j, k)));
        pairs.filter(|&(j, k)| x[j].id != x[k].id && may_swap(node, x, j, k)).collect()
    }

    /// Whether each node depends on a value that the rule was given.
    fn depends(&self) -> Vec<bool> {
        let mut depends: Vec<bool> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let of = |id: u32| self.position(id).is_none_or(|i| depends[i]);
            depends.push(node.inputs.iter().any(|operand| of(operand.id)));
        }
        depends
    }

    /// How many nodes that lead to a result use each node.
    fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.nodes.len()];
        for i in (0..self.nodes.len()).rev() {
            let is_result = self.results.iter().flatten().any(|r| self.position(r.id) == Some(i));
            if uses[i] > 0 || is_result {
                for operand in &self.nodes[i].inputs {
                    if let Some(k) = self.position(operand.id) {
                        uses[k] += 1;
                    }
                }
            }
        }
        uses
    }

    /// Each node as an expression of what the rule was given, at most about 50 characters long. One that is too long has
    /// its inner parts left out and four digits behind it that tell it from others.
    fn texts(&self) -> Vec<String> {
        const LONGEST_OPERAND: usize = 18;
        let mut parts: Vec<(String, Key, bool)> = Vec::new();
        for node in &self.nodes {
            let Some(op) = &node.op else {
                let text = self.leaf(node);
                parts.push((text.clone(), Key::new(0).fold_str(&text), false));
                continue;
            };
            let (mut key, mut elided) = (Key::new(0).fold_str(op.name()), false);
            let mut operands = Vec::new();
            for operand in &node.inputs {
                let Some(i) = self.position(operand.id) else {
                    let label = self.label(operand.id);
                    key = key.fold_str(label);
                    operands.push(label.to_string());
                    continue;
                };
                let (text, inner, shortened) = &parts[i];
                key = key.fold(inner.stream);
                let long = text.chars().count() > LONGEST_OPERAND;
                operands.push(if long { "…".into() } else { text.clone() });
                elided |= *shortened || long;
            }
            parts.push((format!("{}({})", op.name(), operands.join(", ")), key, elided));
        }
        let text = |(text, key, elided): (String, Key, bool)| match elided {
            true => format!("{text} #{:04x}", key.stream >> 48),
            false => text,
        };
        parts.into_iter().map(text).collect()
    }
}

/// Whether two values have different elements. One that cannot be computed differs.
fn differ(a: Var<'_>, b: Var<'_>) -> bool {
    let elements = |v: Var<'_>| v.value().ok().and_then(|value| value.to_f64_vec().ok());
    match (elements(a), elements(b)) {
        (Some(a), Some(b)) => a != b,
        _ => true,
    }
}
