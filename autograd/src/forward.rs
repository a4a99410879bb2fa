//! Forward mode: from tangents of some values to those of everything computed from them.

use smallvec::SmallVec;

use crate::error::Result;
use crate::op::{Derivative, Pushforward};
use crate::profile::Lane;
use crate::scope::Rule;
use crate::tape::{Tape, no_derivative};
use crate::var::Var;

impl Tape {
    /// The Jacobian–vector product `∂y/∂x·dx`, summed over the given pairs `(x, dx)`: one sweep forward over the
    /// recorded program. It is recorded on the tape, so that it can be differentiated again. Zeros if `y` depends on
    /// none of them.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![0.5f64, 2.0], [2]));
    /// let dx = tape.constant(&Tensor::from_vec(vec![1.0f64, 10.0], [2]));
    /// let dy = tape.jvp(x * x, &[(x, dx)])?;
    /// assert_eq!(dy.value()?.to_vec::<f64>()?, [1.0, 40.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If something failed, now or before: an operation on the way without a forward rule fails as
    /// [`Error::NoJvp`](crate::Error::NoJvp). (On a dry tape the result is as dry as the rest.)
    ///
    /// # Panics
    /// If a tangent does not have its value's shape and dtype, or this is an inference tape.
    #[track_caller]
    pub fn jvp<'t>(&'t self, y: Var<'t>, pairs: &[(Var<'t>, Var<'t>)]) -> Result<Var<'t>> {
        self.expect_differentiable("jvp");
        for &(x, dx) in pairs {
            assert_eq!(
                self.meta(x),
                self.meta(dx),
                "jvp: a tangent must have the shape and dtype of its value"
            );
        }
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        self.tangents(&[y], pairs).map(|tangents| tangents[0])
    }

    /// [`jvp`](Tape::jvp) of several results in one sweep.
    pub(crate) fn tangents<'t>(
        &'t self,
        ys: &[Var<'t>],
        pairs: &[(Var<'t>, Var<'t>)],
    ) -> Result<Vec<Var<'t>>> {
        let start = pairs.iter().map(|(x, _)| x.id).min().unwrap_or(u32::MAX);
        // What comes back for the rules stays until all have run.
        let _sweep = self.begin_sweep();
        let _timed = self.time_pass("jvp", Lane::Other);
        let tangents = self.push_forward(ys, pairs, start);
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let or_zeros = |(y, tangent): (&Var<'t>, Option<Var<'t>>)| match tangent {
            Some(tangent) => Ok(tangent),
            None => Ok(self.constant(&self.value_like(*y, 0.0)?)),
        };
        ys.iter().zip(tangents).map(or_zeros).collect()
    }

    /// The tangent of an expansion's result `y`, whose nodes begin at `start`.
    pub(crate) fn push_through<'t>(
        &'t self,
        y: Var<'t>,
        xs: &[Var<'t>],
        tangents: &[Option<Var<'t>>],
        start: usize,
    ) -> Option<Var<'t>> {
        // An operand that occurs twice has one tangent, not the sum of two.
        let first = |i: usize| xs[..i].iter().all(|x| x.id != xs[i].id);
        let pairs: SmallVec<[(Var<'t>, Var<'t>); 3]> =
            (0..xs.len()).filter(|&i| first(i)).filter_map(|i| Some((xs[i], tangents[i]?))).collect();
        self.push_forward(&[y], &pairs, start as u32)[0]
    }

    /// Carries tangents through the nodes from `start` to the last of `ys`.
    fn push_forward<'t>(
        &'t self,
        ys: &[Var<'t>],
        pairs: &[(Var<'t>, Var<'t>)],
        start: u32,
    ) -> SmallVec<[Option<Var<'t>>; 1]> {
        let end = ys.iter().map(|y| y.id + 1).max().unwrap_or(0);
        let mut computed: Vec<Option<Var<'t>>> = vec![None; end.saturating_sub(start) as usize];
        let given =
            |id: u32| pairs.iter().filter(|(x, _)| x.id == id).map(|(_, dx)| *dx).reduce(|a, b| a + b);
        let _scope = self.return_to_scope();
        for id in start..end {
            let (op, inputs, scope) = {
                let nodes = self.nodes.borrow();
                let node = &nodes[id as usize];
                let op = node.op.clone().filter(|_| !node.stops && node.meta.dtype.is_float());
                (op, node.inputs.clone(), node.scope)
            };
            computed[(id - start) as usize] = given(id);
            let Some(op) = op else { continue };
            let tangents: SmallVec<[Option<Var<'t>>; 3]> = inputs
                .iter()
                .map(|operand| match operand.id.checked_sub(start) {
                    Some(i) => computed[i as usize],
                    None => given(operand.id),
                })
                .collect();
            if tangents.iter().all(Option::is_none) {
                continue;
            }
            match op.derivative() {
                Derivative::Exists => {}
                Derivative::Stops => continue,
                Derivative::Missing(why) => no_derivative(&*op, self.scopes.borrow().suffix_of(scope), why),
            }
            let _timed = self.time_rule(Rule::Jvp, op.name(), scope);
            self.scopes.borrow_mut().enter_rule(scope, Rule::Jvp, op.name());
            let _unseen = self.hooks.suspend();
            let at = Pushforward {
                x: inputs.iter().map(|operand| self.var(operand.id)).collect(),
                y: self.var(id),
                tangents: &tangents,
                start: self.len(),
            };
            let carried = self.mutate_jvp(&*op, &at, op.jvp(&at));
            let slot = &mut computed[(id - start) as usize];
            *slot = slot.take().into_iter().chain(carried).reduce(|a, b| a + b);
        }
        let tangent = |y: &Var<'t>| match y.id.checked_sub(start) {
            Some(i) => computed[i as usize],
            None => given(y.id),
        };
        ys.iter().map(tangent).collect()
    }
}
