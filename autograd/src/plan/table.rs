//! A plan as text.

use std::fmt;

use crate::plan::Plan;

/// How two plans differ.
#[derive(Clone, Debug)]
pub struct PlanDiff {}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan {:?} of {} nodes, {:?}", self.policy(), self.len(), self.totals())
    }
}
