//! What a tape holds, counted by unique storage, and whether derivative rules read what they declare.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::error::Result;
use crate::tape::Tape;
use crate::value::ReadLog;
use crate::var::Var;

/// The bytes a tape holds. Views share storage, and each storage counts once, in the first class it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// Leaves: inputs, parameters, constants. The tape refers to them; it does not own copies.
    pub leaves: usize,
    /// Results of operations that a derivative rule will read.
    pub needed: usize,
    /// Results of operations that are held for another reason: they are results of the outermost scope, or no scope
    /// has closed yet.
    pub other: usize,
    /// How many values have been dropped because nothing would read them.
    pub dropped_values: usize,
    /// How many values backward passes have computed again.
    pub recomputed: usize,
    /// How many values have been computed again because somebody asked for one that was dropped.
    pub recomputed_on_request: usize,
}

/// What derivative rules declare to read against what one backward pass really read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadAudit {
    /// (operation, the value its rule declares), as positions on the tape, for every rule that ran.
    pub declared: BTreeSet<(usize, usize)>,
    /// (operation, the value its rule read).
    pub read: BTreeSet<(usize, usize)>,
    /// The bytes of the results of operations that were read, each storage once.
    pub read_bytes: usize,
}

impl Tape {
    /// Counts what the tape holds now.
    pub fn memory(&self) -> Memory {
        let needed: HashSet<u32> = (0..self.len() as u32).flat_map(|id| self.declared_reads(id)).collect();
        let nodes = self.nodes.borrow();
        let mut class_of: HashMap<usize, (u8, usize)> = HashMap::new();
        for (id, node) in nodes.iter().enumerate() {
            let Some(value) = &node.value else { continue };
            let class = match &node.op {
                None => 0,
                Some(_) if needed.contains(&(id as u32)) => 1,
                Some(_) => 2,
            };
            let entry = class_of.entry(value.storage().id()).or_insert((class, value.storage().bytes()));
            entry.0 = entry.0.min(class);
        }
        let bytes = |class: u8| class_of.values().filter(|(c, _)| *c == class).map(|(_, bytes)| bytes).sum();
        let (dropped_values, recomputed, recomputed_on_request) = self.drops.counts();
        Memory {
            leaves: bytes(0),
            needed: bytes(1),
            other: bytes(2),
            dropped_values,
            recomputed,
            recomputed_on_request,
        }
    }

    /// The nodes whose values the rule of node `id` declares to read.
    fn declared_reads(&self, id: u32) -> Vec<u32> {
        let needs = self.needs_of(id);
        let nodes = self.nodes.borrow();
        let inputs = nodes[id as usize].inputs.iter().enumerate();
        let mut reads: Vec<u32> =
            inputs.filter(|(i, _)| needs.input(*i)).map(|(_, operand)| operand.id).collect();
        reads.extend(needs.output.then_some(id));
        reads
    }

    /// Runs [`backward`](Tape::backward) from `loss` and compares what each rule read with what it declares.
    ///
    /// # Errors
    /// As [`backward`](Tape::backward).
    #[track_caller]
    pub fn audit_reads(&self, loss: Var<'_>) -> Result<ReadAudit> {
        let boundary = self.len() as u32;
        *self.reads.borrow_mut() = Some(ReadLog { boundary, ..ReadLog::default() });
        let outcome = self.backward(loss);
        let log = self.reads.borrow_mut().take().unwrap_or_default();
        outcome?;
        let pair = |id: u32, read: u32| (id as usize, read as usize);
        let declared = log
            .rules
            .iter()
            .flat_map(|&id| self.declared_reads(id).into_iter().map(move |r| pair(id, r)))
            .collect();
        let nodes = self.nodes.borrow();
        let leaves: HashSet<usize> = nodes
            .iter()
            .filter(|node| node.op.is_none())
            .filter_map(|node| Some(node.value.as_ref()?.storage().id()))
            .collect();
        let read_storages: HashMap<usize, usize> = log
            .pairs
            .iter()
            .filter_map(|&(_, read)| nodes[read as usize].value.as_ref())
            .map(|value| (value.storage().id(), value.storage().bytes()))
            .filter(|(id, _)| !leaves.contains(id))
            .collect();
        Ok(ReadAudit {
            declared,
            read: log.pairs.iter().map(|&(id, read)| pair(id, read)).collect(),
            read_bytes: read_storages.values().sum(),
        })
    }
}
