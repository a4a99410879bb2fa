//! mHC without an iteration: the mix is a mean of permutations.

use limpid_autograd::Var;
use limpid_tensor::{Shape, Tensor};

use super::projection::{Gates, Projection, Start};
use super::{Coefficients, Connection};
use crate::init::Init;
use crate::module::Parameters;
use crate::parameter::Parameter;

/// As [`Mhc`](super::Mhc), but for `A = Σ_k softmax(H̃_res)_k·P_k` over the n! permutation matrices P_k.
///
/// Every doubly stochastic matrix is such a mean (Birkhoff), and every such mean is doubly stochastic, rows and columns
/// alike. It takes n! logits, so n is at most 4. Permutations are in lexicographic order: the first is the identity.
/// A multiplies from the left.
///
/// *mHC-lite*, arXiv 2601.05732.
#[derive(Clone, Debug)]
pub struct MhcLite {
    /// Of a and b: `{path}.pre.*` and `{path}.post.*`.
    pub gates: Gates,
    /// The logits of the permutations: `{path}.res.phi` `[nC, n!]`, `{path}.res.alpha` and `{path}.res.bias` `[n!]`.
    pub res: Projection,
    streams: usize,
}

/// The permutation matrices of n things, one after the other.
fn permutations(n: usize) -> Vec<f64> {
    fn extend(order: &mut Vec<usize>, n: usize, matrices: &mut Vec<f64>) {
        if order.len() == n {
            matrices.extend(order.iter().flat_map(|&j| (0..n).map(move |k| f64::from(u8::from(j == k)))));
            return;
        }
        for next in 0..n {
            if !order.contains(&next) {
                order.push(next);
                extend(order, n, matrices);
                order.pop();
            }
        }
    }
    let mut matrices = Vec::new();
    extend(&mut Vec::with_capacity(n), n, &mut matrices);
    matrices
}

impl MhcLite {
    /// The connection of layer `layer` (counted from 0) with n streams of `channels` channels. Where `start.mix` speaks of
    /// the diagonal, that is the permutation that changes nothing.
    ///
    /// # Panics
    /// If there are no streams, or more than 4.
    #[track_caller]
    pub fn new(init: &Init, channels: usize, streams: usize, layer: usize, start: Start) -> MhcLite {
        assert!(streams <= 4, "mhc_lite: {streams}! permutations are too many, expected at most 4 streams");
        let gates = Gates::new(init, channels, streams, layer, start);
        let count = (1..=streams).product();
        let bias = |k| start.mix.bias(k == 0);
        let res =
            Projection::new(&init.enter("res"), channels * streams, start.phi, start.alpha, &[count], bias);
        MhcLite { gates, res, streams }
    }
}

impl Parameters for MhcLite {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.gates.visit(f);
        self.res.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.gates.visit_mut(f);
        self.res.visit_mut(f);
    }
}

impl Connection for MhcLite {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        self.gates.coefficients(x, &self.res, |logits| {
            let (n, weights) = (self.streams, logits.softmax(-1));
            let (count, lead) = (self.res.bias.value().elements(), weights.shape());
            let matrices = Tensor::from_f64(&permutations(n), [count, n * n], weights.dtype());
            let mix = weights.matmul(x.tape().constant_here(&matrices));
            mix.reshape(lead[..lead.len() - 1].iter().copied().chain([n, n]).collect::<Shape>())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_permutation_once_the_identity_first() {
        for (n, count) in [(1, 1), (2, 2), (3, 6), (4, 24)] {
            let all = permutations(n);
            let mut matrices: Vec<&[f64]> = all.chunks(n * n).collect();
            assert_eq!(matrices.len(), count);
            assert!((0..n * n).all(|i| matrices[0][i] == f64::from(u8::from(i / n == i % n))));
            for matrix in &matrices {
                for i in 0..n {
                    assert_eq!((0..n).map(|j| matrix[i * n + j]).sum::<f64>(), 1.0);
                    assert_eq!((0..n).map(|j| matrix[j * n + i]).sum::<f64>(), 1.0);
                }
            }
            matrices.sort_by(|a, b| a.partial_cmp(b).unwrap());
            matrices.dedup();
            assert_eq!(matrices.len(), count, "a permutation occurs twice");
        }
    }

    #[test]
    #[should_panic(expected = "mhc_lite: 5! permutations are too many, expected at most 4 streams")]
    fn five_streams_are_too_many() {
        MhcLite::new(&Init::new(0), 2, 5, 0, Start::default());
    }
}
