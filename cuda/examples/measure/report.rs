//! What was found, and its JSON.

use limpid_cuda::Cuda;
use serde_json::{Value, json};

use crate::clock::Time;
use crate::operations::Compared;

/// Everything that is written.
pub struct Report {
    cuda: &'static Cuda,
    is_emulated: bool,
    pub operations: Vec<Compared>,
    pub rows: Vec<Row>,
}

/// A line of the table.
pub struct Row {
    pub name: String,
    /// Whether it is the copy that bandwidths are compared with.
    pub is_reference: bool,
    pub measured: Result<(Time, Rate), String>,
}

/// What a repetition does, of which a rate is made.
#[derive(Clone, Copy)]
pub enum Rate {
    Bytes(f64),
    Operations(f64),
    None,
}

impl Row {
    /// Bytes a second, if it counts bytes.
    pub fn bandwidth(&self) -> Option<f64> {
        match &self.measured {
            Ok((time, Rate::Bytes(bytes))) => Some(bytes / time.microseconds * 1e6),
            _ => None,
        }
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
        value
    }
}

impl Report {
    pub fn new(cuda: &'static Cuda, is_emulated: bool) -> Report {
        Report { cuda, is_emulated, operations: Vec::new(), rows: Vec::new() }
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
            "operations": self.operations.iter().map(Compared::to_json).collect::<Vec<_>>(),
            "rows": self.rows.iter().map(|row| row.to_json(copy)).collect::<Vec<_>>(),
        })
    }
}
