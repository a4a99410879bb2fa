//! A plan to read: as a table, a summary, a difference, and as JSON.

use std::fmt::{self, Write};

use crate::error::Site;
use crate::json::string;
use crate::plan::{Fate, Plan, Step, Totals};
use crate::print::format_bytes;

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fate::Leaf => "leaf",
            Fate::Save => "save",
            Fate::Recompute => "recompute",
            Fate::Free => "free",
        })
    }
}

/// In two lines.
impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = 100.0 * self.extra_flops as f64 / self.flops.max(1) as f64;
        write!(
            f,
            "held {}, peak {};\n  {} of {} values computed again, {again:.1} % of the operations",
            format_bytes(self.held),
            format_bytes(self.peak),
            self.recomputed,
            self.computed
        )
    }
}

impl Plan {
    /// The totals, and for each rule what became of the values it decided of.
    ///
    /// ```
    /// use limpid_autograd::plan::Policy;
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::dry();
    /// let x = tape.variable(&Tensor::ones([256], DType::F32));
    /// let plan = tape.plan(x.exp().exp().sum(&[]), &Policy::norms_and_activations())?;
    /// let expected = "\
    /// norms and activations: held 4 B, peak 3.0 KiB;
    ///   2 of 4 values computed again, 66.7 % of the operations
    ///   recompute norms and activations
    ///       2 values: 0 B saved, 2.0 KiB computed again, 0 B dropped
    ///   otherwise
    ///       2 values: 4 B saved, 0 B computed again, 0 B dropped
    /// ";
    /// assert_eq!(plan.summary(), expected);
    /// # Ok::<(), limpid_autograd::plan::PlanError>(())
    /// ```
    pub fn summary(&self) -> String {
        let rules = &self.0.rules;
        let column = |index: usize| match self.fate(index) {
            Fate::Save => Some(0),
            Fate::Recompute => Some(1),
            Fate::Free => Some(2),
            Fate::Leaf => None,
        };
        // A storage is kept if a view of it is.
        let mut columns = vec![2; self.len()];
        for index in 0..self.len() {
            let root = &mut columns[self.0.costs.entries[index].root as usize];
            *root = (*root).min(column(index).unwrap_or(2));
        }
        // The last row is for what no rule selected.
        let mut rows = vec![(0, [0; 3]); rules.len() + 1];
        for index in (0..self.len()).filter(|&index| column(index).is_some()) {
            let (count, bytes) = &mut rows[self.0.decided[index].1.unwrap_or(rules.len())];
            *count += 1;
            bytes[columns[index]] += self.bytes(index);
        }
        let mut text = format!("{}: {}\n", self.policy(), self.totals());
        let names = rules.iter().map(String::as_str).chain(["otherwise"]);
        for (name, (count, bytes)) in names.zip(rows) {
            let plural = if count == 1 { "" } else { "s" };
            let [saved, again, dropped] = bytes.map(format_bytes);
            let _ = writeln!(text, "  {name}");
            let _ = writeln!(
                text,
                "      {count} value{plural}: {saved} saved, {again} computed again, {dropped} dropped"
            );
        }
        text
    }

    /// Where two plans of one program part.
    ///
    /// ```
    /// use limpid_autograd::plan::Policy;
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::dry();
    /// let x = tape.variable(&Tensor::ones([256], DType::F32));
    /// let loss = tape.scope("head", || x.exp().sum(&[]));
    /// let (everything, nothing) = (tape.plan(loss, &Policy::everything())?, tape.plan(loss, &Policy::nothing())?);
    /// let diff = everything.diff(&nothing).to_string();
    /// assert!(diff.contains("%1    1.0 KiB  save → recompute  exp in head at"), "{diff}");
    /// # Ok::<(), limpid_autograd::plan::PlanError>(())
    /// ```
    pub fn diff(&self, other: &Plan) -> PlanDiff {
        let program =
            |plan: &Plan, i: usize| plan.0.costs.entries.get(i).map(|entry| (entry.op, entry.meta.clone()));
        let parts_at = (0..self.len().max(other.len())).find(|&i| program(self, i) != program(other, i));
        let same = parts_at.unwrap_or(self.len());
        let change = |index: usize| {
            let (before, after) = (self.fate(index), other.fate(index));
            let site = || self.site(index);
            (before != after).then(|| Change { index, bytes: self.bytes(index), before, after, site: site() })
        };
        PlanDiff {
            policies: [self, other].map(|plan| plan.policy().to_string()),
            totals: [*self.totals(), *other.totals()],
            parts_at,
            changes: (0..same).filter_map(change).collect(),
        }
    }

    /// The plan as one JSON object: `policy`, `rules` (text), `totals` (as [`Totals`] names them), `nodes` and `steps`.
    ///
    /// A node has `id`, `op` (`null` for a leaf), `name`, `scope`, `file`, `line`, `bytes`, `view_of` (a node or `null`), `fate`
    /// (leaf, save, recompute, free), `rule` (a position in `rules`, or `null`), `recomputations` and `flops`. A step is
    /// `[what, node, peak, held, gradients]`, in bytes; `backward_begins` is the position of the first that is part of the
    /// backward pass.
    pub fn to_json(&self) -> String {
        let strings = |texts: &[String]| texts.iter().map(|text| string(text)).collect::<Vec<_>>().join(",");
        let t = self.totals();
        let mut json = format!(
            "{{\"policy\":{},\"rules\":[{}],\"totals\":{{\"computed\":{},\"recomputed\":{},\"flops\":{},\
             \"extra_flops\":{},\"held\":{},\"peak\":{},\"peak_activations\":{}}},\"backward_begins\":{},\"nodes\":[",
            string(self.policy()),
            strings(&self.0.rules),
            t.computed,
            t.recomputed,
            t.flops,
            t.extra_flops,
            t.held,
            t.peak,
            t.peak_activations,
            self.backward_begins()
        );
        let or_null = |text: Option<String>| text.unwrap_or("null".into());
        for (index, entry) in self.0.costs.entries.iter().enumerate() {
            let _ = write!(
                json,
                "{}\n{{\"id\":{index},\"op\":{},\"name\":{},\"scope\":{},\"file\":{},\"line\":{},\"bytes\":{},\
                 \"view_of\":{},\"fate\":\"{}\",\"rule\":{},\"recomputations\":{},\"flops\":{}}}",
                if index > 0 { "," } else { "" },
                or_null(entry.op.map(string)),
                or_null(entry.name.as_deref().map(string)),
                string(&entry.scope),
                string(entry.location.file()),
                entry.location.line(),
                entry.bytes,
                or_null(entry.shows.map(|shown| shown.to_string())),
                self.fate(index),
                or_null(self.0.decided[index].1.map(|rule| rule.to_string())),
                self.recomputations(index),
                entry.flops
            );
        }
        json += "],\"steps\":[";
        for (at, moment) in self.moments().iter().enumerate() {
            let (what, node) = match moment.step {
                Step::Compute(id) => ("compute", id),
                Step::Recompute(id) => ("recompute", id),
                Step::Rule(id) => ("rule", id),
                Step::Drop(id) => ("drop", id),
            };
            let comma = if at > 0 { "," } else { "" };
            let _ = write!(
                json,
                "{comma}\n[\"{what}\",{node},{},{},{}]",
                moment.peak, moment.held, moment.gradients
            );
        }
        json + "]}\n"
    }
}

/// A line for each value that is not a leaf: its position, what becomes of it, its bytes, the rule that decided (a number
/// from the list above the table, or nothing), what computes it and where.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.policy(), self.totals())?;
        for (number, rule) in (1..).zip(&self.0.rules) {
            writeln!(f, "  [{number}] {rule}")?;
        }
        for (index, entry) in self.0.costs.entries.iter().enumerate() {
            let Some(op) = entry.op else { continue };
            let times = match self.recomputations(index) {
                0 | 1 => String::new(),
                times => format!(" {times} times"),
            };
            let held = match entry.shows {
                Some(shown) => format!("in %{shown}"),
                None => format_bytes(entry.bytes),
            };
            let rule = self.0.decided[index].1.map_or(String::new(), |rule| format!("[{}]", rule + 1));
            let line = format!(
                "{:>8}  {:<9}{times} {held:>10}  {rule:<4} {op:<14} {}",
                format!("%{index}"),
                self.fate(index),
                entry.scope
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan {:?} of {} nodes, {:?}", self.policy(), self.len(), self.totals())
    }
}

/// Where two plans part: made by [`Plan::diff`].
#[derive(Clone, Debug)]
pub struct PlanDiff {
    /// The names of the policies.
    pub policies: [String; 2],
    /// What each takes.
    pub totals: [Totals; 2],
    /// The first node at which the programs themselves are not the same; nothing is compared from there on.
    pub parts_at: Option<usize>,
    /// The values of which they say different things, in the order of the tape.
    pub changes: Vec<Change>,
}

/// A value of which two plans say different things.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its position on the tape.
    pub index: usize,
    /// What it allocates.
    pub bytes: usize,
    /// What the first plan says.
    pub before: Fate,
    /// What the second plan says.
    pub after: Fate,
    /// Where it was recorded.
    pub site: Site,
}

impl fmt::Display for PlanDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sign, i) in [("−", 0), ("+", 1)] {
            writeln!(f, "{sign} {}: {}", self.policies[i], self.totals[i])?;
        }
        for Change { index, bytes, before, after, site } in &self.changes {
            let (node, bytes) = (format!("%{index}"), format_bytes(*bytes));
            writeln!(f, "  {node:<5} {bytes:>7}  {before} → {after}  {site}")?;
        }
        match self.parts_at {
            Some(index) => writeln!(f, "the programs themselves part at %{index}"),
            None => Ok(()),
        }
    }
}
