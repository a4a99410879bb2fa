//! What can go wrong outside the program when a network is fed, trained or saved: files, their contents, arguments,
//! and data that cannot be used as asked. One line each: where, what was expected, what was found.

use std::fmt;
use std::path::PathBuf;

use crate::LoadReport;

/// The result of anything that depends on a file, on data or on a user's arguments.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something outside the program was not as it had to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device, a file operation or a file format failed below this crate.
    #[error(transparent)]
    Tensor(#[from] limpid_tensor::Error),
    /// A table in a text file does not hold what it should.
    #[error("{place}: expected {expected}, found {found}")]
    Table {
        /// Where in the file.
        place: Place,
        /// What should have been there.
        expected: String,
        /// What was.
        found: String,
    },
    /// An argument is outside its range.
    #[error("{name}: expected {expected}, found {found}")]
    Argument {
        /// The argument's name.
        name: &'static str,
        /// The values it may have.
        expected: String,
        /// The value it had.
        found: String,
    },
    /// A class has too few samples to appear on both sides of a split.
    #[error("class {class}: expected at least 2 samples, one for either side of the split, found {samples}")]
    TooFewSamples {
        /// The class: its name, or its number if it has none.
        class: String,
        /// How many samples it has.
        samples: usize,
    },
    /// A step was asked for, and there are trainable weights that the loss does not depend on.
    #[error(
        "expected a gradient for every trainable weight, found none for {}; freeze these weights, or allow it in the \
         optimiser's groups",
        paths.join(", ")
    )]
    MissingGradients {
        /// The weights, in the order of the model.
        paths: Vec<String>,
    },
    /// A gradient holds NaN or an infinity, or is so large that its square does.
    #[error("gradient of {path}: expected a finite norm, found {norm}")]
    NonFiniteGradient {
        /// The first such weight, in the order of the paths.
        path: String,
        /// NaN or inf.
        norm: f64,
    },
    /// Named tensors are not those that a model or an optimiser has.
    #[error("{origin}: {report}")]
    Load {
        /// The file, or what else they come from.
        origin: String,
        /// What became of each name.
        report: Box<LoadReport>,
    },
}

impl Error {
    /// An [`Error::Argument`].
    pub fn argument(name: &'static str, expected: impl Into<String>, found: impl fmt::Display) -> Error {
        Error::Argument { name, expected: expected.into(), found: found.to_string() }
    }
}

/// A place in a table: `moons.csv: line 3, column 2 (y)`, as far as it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line on which the row starts, counted from 1 as editors do, blank lines and the header included.
    pub line: Option<usize>,
    /// The column.
    pub column: Option<Column>,
}

/// A column of a table: its number, counted from 1, and its name if it has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Column {
    /// Counted from 1.
    pub number: usize,
    /// From the header, or the name such a column is given.
    pub name: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        let mut separator = ": ";
        if let Some(line) = self.line {
            write!(f, "{separator}line {line}")?;
            separator = ", ";
        }
        if let Some(Column { number, name }) = &self.column {
            write!(f, "{separator}column {number}")?;
            if let Some(name) = name {
                write!(f, " ({name})")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_as_much_as_is_known() {
        let path = PathBuf::from("a.csv");
        let column = |name: Option<&str>| Some(Column { number: 2, name: name.map(str::to_owned) });
        let place = |line, column| Place { path: path.clone(), line, column }.to_string();
        assert_eq!(place(None, None), "a.csv");
        assert_eq!(place(Some(3), None), "a.csv: line 3");
        assert_eq!(place(None, column(Some("y"))), "a.csv: column 2 (y)");
        assert_eq!(place(Some(3), column(None)), "a.csv: line 3, column 2");
        assert_eq!(place(Some(3), column(Some("y"))), "a.csv: line 3, column 2 (y)");
    }

    #[test]
    fn an_error_from_below_speaks_for_itself() {
        let below = limpid_tensor::Error::format("w.npy", "version 1", "version 9");
        assert_eq!(Error::from(below).to_string(), "w.npy: expected version 1, found version 9");
    }
}
