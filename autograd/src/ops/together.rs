//! Kernels with several results, as operations with one each.

use std::cell::{Cell, RefCell};

use limpid_tensor::{Fused, Result, Tensor};

use smallvec::SmallVec;

use crate::op::{Cotangents, Op, Pullback, forward_by_expansion};
use crate::replay;
use crate::shared::Shared;
use crate::var::Var;

/// A call of a kernel that several operations stand for, each for one of its results.
///
/// A node of the tape has one value. The first of the operations that is computed calls the kernel and leaves the results
/// of the others here, each of which is fetched once. Any other call of the kernel is for one of them alone.
#[derive(Debug)]
pub(crate) struct Together {
    kernel: Fused,
    /// Which results there are operations for.
    wanted: SmallVec<[bool; 4]>,
    /// Whether they are computed in order, once.
    once: bool,
    /// Whether the kernel has been called.
    called: Cell<bool>,
    /// What nobody has fetched yet, by its number among the results.
    left: RefCell<SmallVec<[(usize, Tensor); 3]>>,
}

impl Together {
    /// A call of `kernel` by the rule `at`, of whose results those that are `wanted` will be asked for.
    ///
    /// In a pass that is kept nothing is left for others: its operations may be computed at any time, and what a node holds
    /// is its value alone. When it is replayed they are computed in order again, and the first of them calls the kernel anew.
    pub fn new(at: &Pullback<'_, '_>, kernel: Fused, wanted: SmallVec<[bool; 4]>) -> Together {
        let once = at.g().tape().aside.get();
        Together { kernel, wanted, once, called: Cell::new(false), left: RefCell::default() }
    }

    /// Records, for each operand of the operation whose cotangents these are, the operation that `part` makes for it: result
    /// i of `kernel` on `x` is the cotangent of operand i.
    pub fn cotangents<'t, O: Op>(
        at: &Pullback<'_, 't>,
        kernel: Fused,
        x: &[Var<'t>],
        part: impl Fn(usize, Shared<Together>) -> O,
    ) -> Cotangents<'t> {
        let wanted = (0..at.arity()).map(|i| at.wants(i)).collect();
        let together = Shared::holding(Together::new(at, kernel, wanted));
        at.each(|i| at.g().tape().record(part(i, together.clone()), x))
    }

    /// Result i, for `op`, which stands for it.
    pub fn result(&self, i: usize, op: &impl Op, x: &[&Tensor]) -> Result<Tensor> {
        let replays = replay::is_running();
        if self.once || replays {
            let mut left = self.left.borrow_mut();
            if let Some(at) = left.iter().position(|(number, _)| *number == i) {
                return Ok(left.swap_remove(at).1);
            }
        }
        let Some(results) = Tensor::fused_all(self.kernel, x) else { return forward_by_expansion(op, x) };
        let for_others = replays || self.once && !self.called.replace(true);
        let mut left = self.left.borrow_mut();
        if for_others {
            left.clear();
        }
        let mut own = None;
        for (number, result) in results?.into_iter().enumerate() {
            if number == i {
                own = Some(result);
            } else if for_others && self.wanted[number] {
                left.push((number, result));
            }
        }
        Ok(own.expect("the kernel has the result that the operation stands for"))
    }
}
