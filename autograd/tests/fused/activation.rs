//! Activations that gate their operand by a function of it.

use limpid_autograd::{Tape, Var};
use limpid_tensor::{DType, Tensor};

use crate::check::normal;
use crate::{agrees, panic_message};

type Unary = for<'t> fn(Var<'t>) -> Var<'t>;

const SELF_GATED: [(&str, Unary); 3] =
    [("gelu", |x| x.gelu()), ("gelu_tanh", |x| x.gelu_tanh()), ("silu", |x| x.silu())];

#[test]
fn fused_is_expanded() {
    for (name, f) in SELF_GATED {
        for shape in [&[][..], &[5], &[2, 3, 4]] {
            agrees(name, |x| f(x[0]), &[normal(shape, 2)]);
        }
    }
}

#[test]
fn their_operand_is_all_that_is_held() {
    for (name, f) in SELF_GATED {
        let tape = Tape::new();
        let x = tape.variable(&normal(&[100], 3));
        let y = tape.scope("block", || f(x + 1.0).sum(&[]));
        let held = tape.memory();
        assert_eq!(held.needed, 800, "{name}");
        assert_eq!(tape.audit_reads(y).unwrap().read_bytes, 800, "{name}");
        assert_eq!(tape.memory().recomputed, 0, "{name}");
    }
}

#[test]
fn integers_have_none() {
    let message = panic_message(|tape| tape.constant(&Tensor::zeros([2], DType::I64)).gelu());
    assert_eq!(message, "gelu: is not defined for i64");
}
