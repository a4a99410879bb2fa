//! One branch edge per block, and the skip and control edges that its formula has.

use limpid_autograd::Tape;
use limpid_nn::Module;

use crate::blocks::{one_stream, with_streams};

#[test]
fn a_block_has_one_branch_edge_and_the_edges_its_formula_has() {
    // (variant, skip edges, control edges)
    let expected = [
        ("plain", 0, 0),
        ("residual", 1, 0),
        ("scaled", 1, 0),
        ("rezero", 1, 1),
        ("layerscale", 1, 1),
        ("gated", 1, 2),
        ("interpolated", 1, 2),
        ("droppath", 1, 1),
        ("post-norm", 1, 0),
        ("deepnorm", 1, 0),
        // x is what goes on, and what is looked at along k; β and v.
        ("delta", 2, 2),
        ("hc", 1, 3),
        ("hc-dynamic", 1, 3),
        ("mhc", 1, 3),
        ("mhc-lite", 1, 3),
        ("identity-hc", 1, 2),
        ("attnres", 1, 1),
        ("resi-dual", 1, 2),
    ];
    let mut seen = 0;
    for case in one_stream(3).into_iter().chain(with_streams(2, 3, 20)) {
        let (name, state) = (case.name, case.state(&[2], 3, 0));
        let block = case.block(3, 1.0, 0);
        let tape = Tape::new();
        block.forward(tape.variable(&state));
        let program = tape.program().to_string();
        assert_eq!(program.matches('⑂').count(), 1, "{name}:\n{program}");
        let edges = (program.matches('↷').count(), program.matches('∿').count());
        let &(_, skip, control) = expected.iter().find(|(n, ..)| *n == name).unwrap();
        assert_eq!(edges, (skip, control), "{name}:\n{program}");
        seen += 1;
    }
    assert_eq!(seen, expected.len());
}
