//! Threads of a warp, or of a group of warps, that wait for each other.

use std::ffi::c_void;

use crate::abi::Collective;

/// Threads that meet. One that has come to its end is no longer waited for.
pub(crate) struct Meeting {
    /// The lanes that are to meet, and those that have come.
    pub mask: u128,
    pub arrived: u128,
    /// Of each lane that has come, its operand.
    operands: Vec<*mut c_void>,
    /// What is done for all; `None`: nothing, they meet to be ordered.
    pub function: Option<Collective>,
    pub place: usize,
}

/// The meetings of one warp or one group of warps. Disjoint parts of a warp may meet at the same time.
#[derive(Default)]
pub(crate) struct Meetings(Vec<Meeting>);

/// What a thread brings to a meeting.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub lane: usize,
    pub mask: u128,
    pub operand: *mut c_void,
    pub function: Option<Collective>,
    pub place: usize,
}

impl Meetings {
    /// A lane comes to the meeting that it shares lanes with, or opens one. Its position.
    pub fn arrive(&mut self, arrival: Arrival, lanes: usize) -> usize {
        let open = self.0.iter().position(|meeting| meeting.arrived != 0 && meeting.mask & arrival.mask != 0);
        let position = open.unwrap_or_else(|| self.open(&arrival, lanes));
        let meeting = &mut self.0[position];
        meeting.arrived |= 1 << arrival.lane;
        meeting.operands[arrival.lane] = arrival.operand;
        position
    }

    /// Begins a meeting, in the place of one that has ended if there is one.
    fn open(&mut self, arrival: &Arrival, lanes: usize) -> usize {
        let position = self.0.iter().position(|meeting| meeting.arrived == 0).unwrap_or(self.0.len());
        if position == self.0.len() {
            let operands = vec![std::ptr::null_mut(); lanes];
            self.0.push(Meeting { mask: 0, arrived: 0, operands, function: None, place: 0 });
        }
        let meeting = &mut self.0[position];
        meeting.mask = arrival.mask;
        meeting.function = arrival.function;
        meeting.place = arrival.place;
        position
    }

    /// Whether nobody waits.
    pub fn are_over(&self) -> bool {
        self.0.iter().all(|meeting| meeting.arrived == 0)
    }

    pub fn at(&self, position: usize) -> &Meeting {
        &self.0[position]
    }

    /// Whether all lanes that are alive have come.
    pub fn is_complete(&self, position: usize, alive: u128) -> bool {
        let meeting = &self.0[position];
        meeting.mask & alive & !meeting.arrived == 0
    }

    /// An open meeting to which all have come that are still alive.
    pub fn complete(&self, alive: u128) -> Option<usize> {
        (0..self.0.len()).find(|&position| self.0[position].arrived != 0 && self.is_complete(position, alive))
    }

    /// The operands by lane, null for those that did not come.
    pub fn operands(&mut self, position: usize) -> *mut *mut c_void {
        self.0[position].operands.as_mut_ptr()
    }

    /// Ends a meeting, and returns the lanes that had come.
    pub fn close(&mut self, position: usize) -> u128 {
        let meeting = &mut self.0[position];
        meeting.operands.fill(std::ptr::null_mut());
        std::mem::take(&mut meeting.arrived)
    }

    /// Forgets all meetings.
    pub fn clear(&mut self) {
        for position in 0..self.0.len() {
            if self.0[position].arrived != 0 {
                self.close(position);
            }
        }
    }
}
