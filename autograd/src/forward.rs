//! Forward mode: from tangents of some values to those of everything computed from them.

use smallvec::SmallVec;

use crate::error::Result;
use crate::op::{Derivative, Pushforward};
use crate::scope::Rule;
use crate::tape::Tape;
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
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If a tangent does not have its value's shape and dtype.
    #[track_caller]
    pub fn jvp<'t>(&'t self, y: Var<'t>, pairs: &[(Var<'t>, Var<'t>)]) -> Result<Var<'t>> {
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
        let pairs: SmallVec<[(Var<'t>, Var<'t>); 3]> =
            xs.iter().zip(tangents).filter_map(|(&x, &dx)| Some((x, dx?))).collect();
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
        let given = |id: u32| pairs.iter().find(|(x, _)| x.id == id).map(|(_, dx)| *dx);
        let outer = self.scopes.borrow().current();
        for id in start..end {
            let (op, inputs, scope) = {
                let nodes = self.nodes.borrow();
                let node = &nodes[id as usize];
                let Some(op) = node.op.clone().filter(|op| op.derivative() == Derivative::Exists) else {
                    computed[(id - start) as usize] = given(id);
                    continue;
                };
                if !node.meta.dtype.is_float() {
                    continue;
                }
                (op, node.inputs.clone(), node.scope)
            };
            if let Some(dx) = given(id) {
                computed[(id - start) as usize] = Some(dx);
                continue;
            }
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
            self.scopes.borrow_mut().enter_rule(scope, Rule::Jvp, op.name());
            let at = Pushforward {
                x: inputs.iter().map(|operand| self.var(operand.id)).collect(),
                y: self.var(id),
                tangents: &tangents,
                start: self.len(),
            };
            computed[(id - start) as usize] = op.jvp(&at);
        }
        self.scopes.borrow_mut().enter(outer);
        let tangent = |y: &Var<'t>| match y.id.checked_sub(start) {
            Some(i) => computed[i as usize],
            None => given(y.id),
        };
        ys.iter().map(tangent).collect()
    }
}
