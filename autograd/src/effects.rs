//! Effects: what a program changes outside itself, written down as it runs and carried out once, by its caller.

use limpid_tensor::{Inferred, Meta, Result, Tensor};

use crate::op::{Derivative, Needs, Op, Purity};
use crate::tape::{ParamId, Tape};
use crate::var::Var;

/// A note that a value outside the tape should become the operand. The operand itself is the result; no gradient passes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Update {
    /// What should change.
    pub id: ParamId,
}

impl Op for Update {
    fn name(&self) -> &'static str {
        "update"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Ok(x[0].clone())
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn purity(&self) -> Purity {
        Purity::Effect
    }

    fn derivative(&self) -> Derivative {
        Derivative::Stops
    }

    fn flops(&self, _x: &[&Meta], _y: &Meta) -> u64 {
        0
    }
}

/// What should change, and where that was recorded.
#[derive(Clone)]
pub(crate) struct Note {
    id: ParamId,
    node: u32,
    epoch: u32,
    value: Option<Tensor>,
}

/// Updates of what lives outside the tape: the running statistics of a normalisation.
impl Tape {
    /// Notes that the parameter or buffer `id` should take this value once the program has run. The tape changes
    /// nothing: whoever owns the value [takes](Tape::take_updates) the note. A later note for the same `id` replaces
    /// an earlier one.
    ///
    /// Recording is what makes the note; computing the value again does not repeat it.
    ///
    /// ```
    /// use limpid_autograd::{ParamId, Tape};
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::scalar(3.0f64));
    /// tape.update_later(ParamId(7), x * 2.0);
    /// let updates = tape.take_updates();
    /// assert_eq!((updates[0].0, updates[0].1.item().unwrap()), (ParamId(7), 6.0));
    /// assert!(tape.take_updates().is_empty());
    /// ```
    #[track_caller]
    pub fn update_later<'t>(&'t self, id: ParamId, value: Var<'t>) {
        let noted = self.record(Update { id }, &[value]);
        // Without a value the tape is dry or has failed, and there is nothing to carry out.
        let note = Note { id, node: noted.id, epoch: noted.epoch, value: noted.value().ok() };
        let mut updates = self.updates.borrow_mut();
        match updates.iter_mut().find(|earlier| earlier.id == id) {
            Some(earlier) => *earlier = note,
            None => updates.push(note),
        }
    }

    /// The value noted for `id` so far: what a second use on the same tape starts from. On a dry tape too, so that it records
    /// the same program.
    #[track_caller]
    pub fn pending_update(&self, id: ParamId) -> Option<Var<'_>> {
        let note = self.updates.borrow().iter().find(|note| note.id == id)?.clone();
        let is_there = self.nodes.borrow().get(note.node as usize).is_some_and(|n| n.epoch == note.epoch);
        match note.value {
            _ if is_there => Some(self.var(note.node)),
            // An inference tape has forgotten the node.
            value => value.map(|value| self.constant(&value)),
        }
    }

    /// Hands out the notes in the order of their first occurrence, and forgets them.
    pub fn take_updates(&self) -> Vec<(ParamId, Tensor)> {
        self.updates.take().into_iter().filter_map(|note| Some((note.id, note.value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_note_replaces_an_earlier_one_and_clearing_forgets_both() {
        let mut tape = Tape::new();
        let (a, b) = (ParamId(1), ParamId(2));
        let note = |tape: &Tape, id, value: f64| tape.update_later(id, tape.constant(&Tensor::scalar(value)));
        note(&tape, a, 1.0);
        note(&tape, b, 2.0);
        note(&tape, a, 3.0);
        assert_eq!(tape.pending_update(a).unwrap().item().unwrap(), 3.0);
        let taken: Vec<_> = tape.take_updates().into_iter().map(|(id, v)| (id, v.item().unwrap())).collect();
        assert_eq!(taken, [(a, 3.0), (b, 2.0)]);
        note(&tape, a, 4.0);
        tape.clear(1);
        assert!(tape.take_updates().is_empty());
    }

    #[test]
    fn an_effect_is_kept_when_its_scope_closes_and_stops_the_gradient() {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::scalar(3.0f64));
        let y = tape.scope("layer", || {
            tape.update_later(ParamId(1), x + 1.0);
            x * x
        });
        let program = tape.program().to_string();
        let line = program.lines().find(|line| line.contains("update(")).expect("it is on the tape");
        assert!(!line.contains("dropped"), "{line}");
        assert_eq!(tape.backward(y).unwrap().of(x).unwrap().item().unwrap(), 6.0);
    }

    #[test]
    fn a_dry_tape_records_the_note_and_has_nothing_to_carry_out() {
        let tape = Tape::dry();
        tape.update_later(ParamId(1), tape.constant(&Tensor::scalar(1.0f64)));
        assert!(tape.program().to_string().contains("update("));
        assert!(tape.pending_update(ParamId(1)).is_some(), "the program is that of a tape with values");
        assert!(tape.take_updates().is_empty());
    }
}
