//! What a tape reports when a value cannot be had.

use std::fmt;
use std::panic::Location;

/// The result of asking a tape for a value or a gradient.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where on the tape something happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// The operation's name.
    pub op: String,
    /// The scope path it was recorded in; empty outside any scope.
    pub scope: String,
    /// The source line that recorded it.
    pub location: &'static Location<'static>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op)?;
        if !self.scope.is_empty() {
            write!(f, " in {}", self.scope)?;
        }
        write!(f, " at {}:{}", self.location.file(), self.location.line())
    }
}

/// Why a tape has no value to give. It keeps the first of these; operations recorded after it have shapes but no
/// values, and every later request returns it again.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device could not compute an operation.
    #[error("{site}: {message}")]
    Backend {
        /// Which operation.
        site: Site,
        /// What the device said.
        message: String,
    },
    /// In anomaly mode: the first operation whose result is not finite.
    #[error("{site}: result {found} at element {element}; operands: {operands}")]
    NonFinite {
        /// Which operation.
        site: Site,
        /// The value: NaN, inf or -inf.
        found: f64,
        /// Its row-major position in the result.
        element: usize,
        /// Name, shape and range of each operand.
        operands: String,
    },
    /// The tape only records shapes.
    #[error("{site}: a dry tape has no values")]
    Dry {
        /// The operation whose value was asked for.
        site: Site,
    },
    /// Forward mode reached an operation without a rule for it.
    #[error("{site}: it has neither jvp nor expand, so that forward mode cannot pass it")]
    NoJvp {
        /// Which operation.
        site: Site,
    },
    /// A value that was computed again is not what it was the first time.
    #[error("{site}: computed again, it is not what was dropped: {what}")]
    Drift {
        /// Which operation.
        site: Site,
        /// Where and how they differ.
        what: String,
    },
    /// The program is not the one that the plan was made of.
    #[error("{site}: the plan has another program: %{node} is {planned} there")]
    OffPlan {
        /// What was recorded.
        site: Site,
        /// Its position.
        node: usize,
        /// What should have been recorded.
        planned: String,
    },
    /// A program has an operation that cannot be run again as it is.
    #[error("{site}: it cannot be replayed: {why}")]
    NoReplay {
        /// Which operation.
        site: Site,
        /// What would be wrong.
        why: String,
    },
    /// The value was asked of an effect, or of a leaf, that the tape no longer holds.
    #[error("{site}: its value was dropped and cannot be computed again")]
    Dropped {
        /// Which node.
        site: Site,
    },
}
