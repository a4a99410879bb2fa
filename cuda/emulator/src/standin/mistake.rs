//! What the stand-in found wrong.

use std::fmt;

use crate::Finding;

/// Something that a program does wrong: inside a kernel, or in how the host orders and frees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// A kernel's, found while it ran.
    Kernel {
        /// The kernel's name.
        kernel: String,
        /// What it did.
        finding: Finding,
    },
    /// Two operations use one allocation, one of them writes, and neither stream order nor an event nor waiting of the
    /// host orders them.
    Race {
        /// The operation that ran first this time, with its stream.
        first: String,
        /// The other.
        second: String,
        /// The allocation.
        memory: String,
    },
    /// An operation names memory that was freed.
    UseAfterFree {
        /// The operation.
        operation: String,
        /// The memory.
        memory: String,
    },
    /// Memory was freed twice.
    DoubleFree {
        /// The memory.
        memory: String,
    },
    /// The stand-in itself failed, in this function of the driver.
    Broken {
        /// The function.
        function: String,
        /// What its panic said.
        message: String,
    },
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Mistake::Kernel { kernel, finding } => write!(f, "kernel {kernel}: {finding}"),
            Mistake::Race { first, second, memory } => write!(
                f,
                "race between streams: {first} and {second} both use {memory}, one of them writes, and nothing orders them"
            ),
            Mistake::UseAfterFree { operation, memory } => {
                write!(f, "use after free: {operation} uses {memory}, which was freed")
            }
            Mistake::DoubleFree { memory } => write!(f, "double free: {memory} was freed before"),
            Mistake::Broken { function, message } => {
                write!(f, "the stand-in failed in {function}: {message}")
            }
        }
    }
}
