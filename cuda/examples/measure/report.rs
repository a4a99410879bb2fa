//! What was found, and its JSON.

use limpid_cuda::Cuda;
use serde_json::{Value, json};

use crate::clock::Time;
use crate::operations::Compared;

/// Everything that is written.
pub struct Report {
    cuda: &'static Cuda,
    pub is_emulated: bool,
    pub operations: Vec<Compared>,
    pub rows: Vec<Row>,
    /// Whose times stand beside the rows, if anybody's do.
    pub library: Option<String>,
}

/// A line of the table.
pub struct Row {
    pub name: String,
    /// Whether it is the copy that bandwidths are compared with.
    pub is_reference: bool,
    pub goal: Goal,
    pub measured: Result<(Time, Rate), String>,
    /// The same work by a library.
    pub library: Option<Library>,
}

/// What a row is meant to reach.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Goal {
    /// Nothing that was said beforehand.
    None,
    /// Memory bounds it: 85 % of the copy's bandwidth, if what bounds it took so many `times` as long as the bytes that are
    /// counted. That is 1 but for kernels that move more than they would have to, or compute for longer.
    Bandwidth { times: f64 },
    /// 70 % of the library's speed.
    Library,
    /// So many microseconds.
    Within(f64),
    /// 1.3 times what so many bytes take at the copy's bandwidth.
    Passes { bytes: f64 },
}

/// Microseconds that a library takes: as a program writes it, and compiled by the library.
pub struct Library {
    pub eager: Option<f64>,
    pub compiled: Option<f64>,
}

impl Library {
    /// The faster of both.
    pub fn microseconds(&self) -> Option<f64> {
        [self.eager, self.compiled].into_iter().flatten().reduce(f64::min)
    }
}

/// What a repetition does, of which a rate is made.
#[derive(Clone, Copy)]
pub enum Rate {
    Bytes(f64),
    Operations(f64),
    None,
}

impl Row {
    pub fn microseconds(&self) -> Option<f64> {
        self.measured.as_ref().ok().map(|(time, _)| time.microseconds)
    }

    /// The library's time as a part of this: 1 is as fast, above is faster.
    pub fn of_library(&self) -> Option<f64> {
        Some(self.library.as_ref()?.microseconds()? / self.microseconds()?)
    }

    /// The bytes that are counted, if any are.
    pub fn bytes(&self) -> Option<f64> {
        match &self.measured {
            Ok((_, Rate::Bytes(bytes))) => Some(*bytes),
            _ => None,
        }
    }

    /// Bytes a second, if it counts bytes.
    pub fn bandwidth(&self) -> Option<f64> {
        Some(self.bytes()? / self.microseconds()? * 1e6)
    }

    fn to_json(&self, copy: Option<f64>) -> Value {
        let (time, rate) = match &self.measured {
            Ok(measured) => measured,
            Err(message) => return json!({ "name": self.name, "error": message }),
        };
        let mut value = json!({
            "name": self.name, "microseconds": time.microseconds, "spread": time.spread,
            "repetitions": time.repetitions,
        });
        match rate {
            Rate::Bytes(bytes) => {
                value["bytes"] = json!(bytes);
                value["gigabytes_per_second"] = json!(bytes / time.microseconds / 1e3);
                value["of_copy"] =
                    json!(self.bandwidth().zip(copy).map(|(of_this, of_copy)| of_this / of_copy));
            }
            Rate::Operations(operations) => {
                value["operations"] = json!(operations);
                value["teraflops_per_second"] = json!(operations / time.microseconds / 1e6);
            }
            Rate::None => {}
        }
        if let Some(Library { eager, compiled }) = &self.library {
            value["library"] = json!({ "eager_microseconds": eager, "compiled_microseconds": compiled });
            value["of_library"] = json!(self.of_library());
        }
        value
    }
}

impl Report {
    pub fn new(cuda: &'static Cuda, is_emulated: bool) -> Report {
        Report { cuda, is_emulated, operations: Vec::new(), rows: Vec::new(), library: None }
    }

    /// Bytes a second of the copy, once it has been measured.
    pub fn copy(&self) -> Option<f64> {
        self.rows.iter().find(|row| row.is_reference)?.bandwidth()
    }

    pub fn is_right(&self) -> bool {
        self.operations.iter().all(Compared::is_right) && self.rows.iter().all(|row| row.measured.is_ok())
    }

    pub fn to_json(&self) -> Value {
        let properties = self.cuda.properties();
        let copy = self.copy();
        json!({
            "by": "limpid",
            "device": self.cuda.model(),
            "is_emulated": self.is_emulated,
            "capability": [properties.capability.0, properties.capability.1],
            "multiprocessors": properties.multiprocessors,
            "memory": properties.memory,
            "library": self.library,
            "operations": self.operations.iter().map(Compared::to_json).collect::<Vec<_>>(),
            "rows": self.rows.iter().map(|row| row.to_json(copy)).collect::<Vec<_>>(),
        })
    }
}
