//! Kernels with several results, as operations with one each.

use std::cell::RefCell;
use std::rc::Rc;

use limpid_tensor::{Fused, Result, Results, Tensor};

use crate::op::{Cotangents, Op, Pullback, forward_by_expansion};
use crate::var::Var;

/// A call of a kernel that several operations stand for, each for one of its results.
///
/// A node of the tape has one value. The first of the operations that is computed calls the kernel and leaves the results
/// of the others here, each of which is fetched once. Any other call of the kernel is for one of them alone.
#[derive(Debug)]
pub(super) struct Together {
    kernel: Fused,
    /// Which results there are operations for.
    wanted: Vec<bool>,
    left: RefCell<Left>,
}

#[derive(Debug)]
enum Left {
    /// The kernel has not been called.
    Nothing,
    /// What nobody has fetched yet.
    Results(Vec<Option<Tensor>>),
}

impl Together {
    /// A call of `kernel` by the rule `at`, of whose results those that are `wanted` will be asked for.
    ///
    /// In a pass that is kept nothing is left for others: its operations may be computed at any time, and what a node holds
    /// is its value alone.
    pub fn new(at: &Pullback<'_, '_>, kernel: Fused, wanted: Vec<bool>) -> Together {
        let left = if at.g().tape().aside.get() { Left::Nothing } else { Left::Results(Vec::new()) };
        Together { kernel, wanted, left: RefCell::new(left) }
    }

    /// Records, for each operand of the operation whose cotangents these are, the operation that `part` makes for it: result
    /// i of `kernel` on `x` is the cotangent of operand i.
    pub fn cotangents<'t, O: Op>(
        at: &Pullback<'_, 't>,
        kernel: Fused,
        x: &[Var<'t>],
        part: impl Fn(usize, Rc<Together>) -> O,
    ) -> Cotangents<'t> {
        let wanted = (0..at.arity()).map(|i| at.wants(i)).collect();
        let together = Rc::new(Together::new(at, kernel, wanted));
        at.each(|i| at.g().tape().record(part(i, together.clone()), x))
    }

    /// Result i, for `op`, which stands for it.
    pub fn result(&self, i: usize, op: &impl Op, x: &[&Tensor]) -> Result<Tensor> {
        if let Left::Results(left) = &mut *self.left.borrow_mut()
            && let Some(result) = left.get_mut(i).and_then(Option::take)
        {
            return Ok(result);
        }
        let Some(results) = Tensor::fused_all(self.kernel, x) else { return forward_by_expansion(op, x) };
        let mut results: Results = results?;
        let own = results[i].clone();
        let mut left = self.left.borrow_mut();
        if matches!(*left, Left::Nothing) {
            let for_others = |(j, result)| (j != i && self.wanted[j]).then_some(result);
            *left = Left::Results(results.drain(..).enumerate().map(for_others).collect());
        }
        Ok(own)
    }
}
