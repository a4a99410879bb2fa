//! Whose turn it is to use a device: everybody's, or that of the thread that captures a graph.
//!
//! Every call of the driver that queues, waits or changes what is loaded is made by a thread that [is at it](Turn::enter).
//! Who wants the turn waits until nobody is, and who comes meanwhile waits for the end of the turn; but a thread that is at it
//! already goes on, or the two would wait for each other. For the same reason no thread may begin while it holds a lock that
//! others take when they are at it.

use std::marker::PhantomData;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

#[derive(Default)]
pub(crate) struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The thread whose turn it is, or will be once nobody else is at it.
    taken_by: Option<ThreadId>,
    /// Who is at it, and how many times over.
    users: Vec<(ThreadId, usize)>,
}

impl State {
    fn is_at_it(&self, thread: ThreadId) -> bool {
        self.users.iter().any(|&(user, _)| user == thread)
    }

    fn enter(&mut self, thread: ThreadId) {
        match self.users.iter_mut().find(|(user, _)| *user == thread) {
            Some((_, times)) => *times += 1,
            None => self.users.push((thread, 1)),
        }
    }
}

/// This thread is at it, until this is dropped.
#[must_use = "what is called behind it needs it"]
pub(crate) struct InUse<'a> {
    turn: &'a Turn,
    /// It belongs to the thread.
    _stays: PhantomData<*const ()>,
}

impl Turn {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The state once `is_so`.
    fn wait_until(&self, is_so: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let wait = self.changed.wait_while(self.lock(), |state| !is_so(state));
        wait.unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until it is everybody's turn or this thread's.
    pub(crate) fn enter(&self) -> InUse<'_> {
        let me = thread::current().id();
        let is_free = |state: &State| state.taken_by.is_none_or(|thread| thread == me) || state.is_at_it(me);
        self.wait_until(is_free).enter(me);
        InUse { turn: self, _stays: PhantomData }
    }

    /// [`enter`](Turn::enter) if it is everybody's turn; does not wait.
    pub(crate) fn try_enter(&self) -> Option<InUse<'_>> {
        let mut state = self.lock();
        state.taken_by.is_none().then(|| {
            state.enter(thread::current().id());
            InUse { turn: self, _stays: PhantomData }
        })
    }

    /// Gives this thread the turn, once nobody is at it any more.
    pub(crate) fn take(&self) {
        let me = thread::current().id();
        self.wait_until(|state| state.taken_by.is_none()).taken_by = Some(me);
        drop(self.wait_until(|state| state.users.iter().all(|&(user, _)| user == me)));
    }

    /// Ends this thread's turn.
    pub(crate) fn end(&self) {
        self.lock().taken_by = None;
        self.changed.notify_all();
    }

    /// Whether this thread has the turn.
    pub(crate) fn is_mine(&self) -> bool {
        self.lock().taken_by == Some(thread::current().id())
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let me = thread::current().id();
        let mut state = self.turn.lock();
        let at = state.users.iter().position(|&(user, _)| user == me).expect("this thread is at it");
        state.users[at].1 -= 1;
        if state.users[at].1 == 0 {
            state.users.swap_remove(at);
            if state.taken_by.is_some() {
                self.turn.changed.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_turn_begins_when_nobody_is_at_it_and_who_is_at_it_goes_on() {
        let turn = Turn::default();
        let (taken, is_taken) = channel();
        let (ending, is_ending) = channel();
        let turn = &turn;
        thread::scope(|scope| {
            let outer = turn.enter();
            scope.spawn(move || {
                turn.take();
                taken.send(turn.is_mine()).unwrap();
                let _mine = turn.enter();
                is_ending.recv().unwrap();
                turn.end();
            });
            while turn.lock().taken_by.is_none() {
                thread::yield_now();
            }
            let inner = turn.enter(); // or it would wait for the thread that waits for this one
            assert!(!turn.is_mine() && turn.try_enter().is_none());
            drop(inner);
            assert!(is_taken.recv_timeout(Duration::from_millis(20)).is_err(), "somebody is at it still");
            drop(outer);
            assert_eq!(is_taken.recv(), Ok(true));
            assert!(turn.try_enter().is_none());

            let (entered, is_entered) = channel();
            scope.spawn(move || {
                let _in_use = turn.enter();
                entered.send(()).unwrap();
            });
            assert!(is_entered.recv_timeout(Duration::from_millis(20)).is_err(), "it is another's turn");
            ending.send(()).unwrap();
            is_entered.recv().unwrap();
        });
        assert!(turn.lock().users.is_empty());
    }
}
