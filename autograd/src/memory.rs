//! What a tape holds, counted by unique storage, and whether derivative rules read what they declare.

use std::collections::{BTreeSet, HashMap, HashSet};

use smallvec::SmallVec;

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

/// What a storage is held for; the first that applies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Leaf,
    Needed,
    Other,
}

/// Memory that values share.
struct Stored {
    class: Class,
    bytes: usize,
    /// The first node that refers to it.
    first: usize,
}

impl Tape {
    /// Counts what the tape holds now.
    pub fn memory(&self) -> Memory {
        let stored = self.stored();
        let bytes = |class| stored.values().filter(|s| s.class == class).map(|s| s.bytes).sum();
        let (dropped_values, recomputed, recomputed_on_request) = self.drops.counts();
        Memory {
            leaves: bytes(Class::Leaf),
            needed: bytes(Class::Needed),
            other: bytes(Class::Other),
            dropped_values,
            recomputed,
            recomputed_on_request,
        }
    }

    /// The bytes of results of operations that the tape holds now, by the scope that recorded them, in the order in which
    /// the scopes first did: what a block keeps for the backward pass, once it is done. A storage that views share counts
    /// once, where the first of them was recorded; one that a leaf shares counts nowhere. The sum is `needed + other` of
    /// [`memory`](Tape::memory). Scopes that hold nothing are left out, and scopes inside others stand by themselves.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::ones([4], DType::F64));
    /// let y = tape.scope("block", || x + tape.scope("branch", || (x * 2.0).tanh()));
    /// // tanh's rule reads its result; the sum is what the block returns.
    /// assert_eq!(tape.memory_by_scope(), [("block/branch".to_string(), 32), ("block".to_string(), 32)]);
    /// # drop(y);
    /// ```
    pub fn memory_by_scope(&self) -> Vec<(String, usize)> {
        let mut stored: Vec<Stored> =
            self.stored().into_values().filter(|s| s.class != Class::Leaf).collect();
        stored.sort_by_key(|s| s.first);
        let (nodes, scopes) = (self.nodes.borrow(), self.scopes.borrow());
        let mut by_scope: Vec<(String, usize)> = Vec::new();
        let mut place: HashMap<&str, usize> = HashMap::new();
        for Stored { first, bytes, .. } in stored {
            let path = scopes.path_of(nodes[first].scope);
            let at = *place.entry(path).or_insert_with(|| {
                by_scope.push((path.to_string(), 0));
                by_scope.len() - 1
            });
            by_scope[at].1 += bytes;
        }
        by_scope
    }

    /// Every storage that the tape refers to, by its identity.
    fn stored(&self) -> HashMap<usize, Stored> {
        let needed: HashSet<u32> = (0..self.len() as u32).flat_map(|id| self.declared_reads(id)).collect();
        let mut stored: HashMap<usize, Stored> = HashMap::new();
        for (id, node) in self.nodes.borrow().iter().enumerate() {
            let Some(value) = &node.value else { continue };
            let class = match &node.op {
                None => Class::Leaf,
                Some(_) if needed.contains(&(id as u32)) => Class::Needed,
                Some(_) => Class::Other,
            };
            let (storage, first) = (value.storage(), id);
            let entry = stored.entry(storage.id()).or_insert(Stored { class, bytes: storage.bytes(), first });
            entry.class = entry.class.min(class);
        }
        stored
    }

    /// The nodes whose values the rule of node `id` declares to read.
    pub(crate) fn declared_reads(&self, id: u32) -> SmallVec<[u32; 4]> {
        let needs = self.needs_of(id);
        let nodes = self.nodes.borrow();
        let inputs = nodes[id as usize].inputs.iter().enumerate();
        let mut reads: SmallVec<[u32; 4]> =
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
