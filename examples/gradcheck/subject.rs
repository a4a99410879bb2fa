//! What is checked: a function, the operands it is tried on, and what else is known of its derivative.

use limpid::Var;
use limpid::autograd::check::Property;
use limpid::autograd::check::case::{Case, Drawn};

/// Operations, or modules made of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// An operation on `Var`, or a loss.
    Op,
    /// A module with its weights.
    Module,
}

/// The gradient by formula: from the elements of each operand, their shapes and the cotangent of the result.
pub type Formula = dyn Fn(&[Vec<f64>], &[Vec<usize>], &[f64]) -> Vec<Vec<f64>>;

/// What is agreed about the derivative where the function has none.
pub struct Convention {
    /// The function, at operands with ties and at kinks.
    pub property: Property,
    /// What its gradient is there.
    pub gradient: Box<Formula>,
}

/// One row of the table.
pub struct Subject {
    /// What it is called.
    pub name: &'static str,
    /// What kind of thing it is.
    pub group: Group,
    /// The function where it is smooth.
    pub smooth: Property,
    /// The same at kinks and so near them that no step fits.
    pub kinks: Option<Property>,
    /// What is agreed there.
    pub convention: Option<Convention>,
    /// Whether its derivative must not be NaN at saturated, tiny and huge values where its value is finite.
    pub extremes: bool,
}

impl Subject {
    /// `f` at `cases`.
    pub fn new(
        name: &'static str,
        group: Group,
        cases: Drawn<Case>,
        f: impl for<'t> Fn(&[Var<'t>], &Case) -> Var<'t> + 'static,
    ) -> Subject {
        let smooth = Property::new(name, cases, f);
        Subject { name, group, smooth, kinks: None, convention: None, extremes: false }
    }

    /// The operation whose rules are mutated here: the one that the row is named after, unless the name has something in
    /// brackets. The rules of other operations that the function uses are mutated in the rows of those; that of pow, which
    /// has special cases at zero, where these occur. Modules bring one operation, the write of a block.
    pub fn operation(&self) -> Option<&'static str> {
        match (self.group, self.name) {
            (Group::Op, "pow (at zero)") => Some("pow"),
            (Group::Op, name) if name == "pow" || name.contains('(') => None,
            (Group::Op, name) => name.split(" + ").next(),
            (Group::Module, name) => (name == "Residual<Plain>").then_some("write"),
        }
    }

    /// Also checked at these cases, where a derivative between the one-sided ones passes.
    pub fn with_kinks(self, cases: Drawn<Case>) -> Subject {
        Subject { kinks: Some(self.smooth.clone().with_cases("at kinks", cases)), ..self }
    }

    /// Also compared with a formula at these cases.
    pub fn with_convention(
        self,
        cases: Drawn<Case>,
        gradient: impl Fn(&[Vec<f64>], &[Vec<usize>], &[f64]) -> Vec<Vec<f64>> + 'static,
    ) -> Subject {
        let property = self.smooth.clone().with_cases("by convention", cases);
        Subject { convention: Some(Convention { property, gradient: Box::new(gradient) }), ..self }
    }

    /// The function that the formula is for, where it is not the one that is checked.
    pub fn convention_of(mut self, f: impl for<'t> Fn(&[Var<'t>], &Case) -> Var<'t> + 'static) -> Subject {
        if let Some(convention) = &mut self.convention {
            convention.property = convention.property.clone().with_function(f);
        }
        self
    }

    /// First checked at the cases of this table that are of its name.
    pub fn with_regressions(self, table: &str) -> Subject {
        let smooth = self.smooth.with_regressions(table);
        Subject { smooth, kinks: self.kinks.map(|kinks| kinks.with_regressions(table)), ..self }
    }

    /// Not looked at where values are extreme.
    pub fn smooth_only(self) -> Subject {
        Subject { extremes: false, ..self }
    }

    /// Also looked at where values are extreme.
    pub fn finite_at_extremes(self) -> Subject {
        Subject { extremes: true, ..self }
    }
}
