//! The tape's promises: any order of derivative, any depth, nothing silent.

use limpid_autograd::{Error, Op, ParamId, Tape};
use limpid_tensor::{DType, Tensor};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn scalar(v: f64) -> Tensor {
    Tensor::scalar(v)
}

#[test]
fn powers_have_derivatives_of_every_order() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(2.0));
    let y = (x * x) * (x * x);
    let mut derivative = y;
    for expected in [32.0, 48.0, 48.0, 24.0, 0.0] {
        derivative = tape.grad(derivative, &[x])?[0];
        assert_eq!(derivative.item()?, expected);
    }
    Ok(())
}

#[test]
fn one_value_used_many_times_collects_every_gradient() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(3.0));
    assert_eq!(tape.backward(x * x)?.of(x).unwrap().item()?, 6.0);
    assert_eq!(tape.backward(x + x)?.of(x).unwrap().item()?, 2.0);
    let mut y = x;
    for _ in 0..999 {
        y = y + x;
    }
    assert_eq!(tape.backward(y)?.of(x).unwrap().item()?, 1000.0);
    Ok(())
}

#[test]
fn a_million_nodes_record_differentiate_print_and_drop() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(1.0));
    let mut y = x;
    for _ in 0..1_000_000 {
        y = y + x;
    }
    assert_eq!(y.item()?, 1_000_001.0);
    assert_eq!(tape.backward(y)?.of(x).unwrap().item()?, 1_000_001.0);
    let text = tape.program().to_string();
    assert_eq!(text.lines().count(), 1_000_001);
    drop(tape);
    Ok(())
}

#[test]
fn a_dropped_value_deep_in_a_chain_comes_back_without_recursion() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(0.0));
    let mut middle = x;
    let y = tape.scope("chain", || {
        let mut y = x;
        for i in 0..200_000 {
            y = y + 1.0;
            if i == 100_000 {
                middle = y;
            }
        }
        y
    });
    assert_eq!(y.item()?, 200_000.0);
    assert_eq!(tape.memory().dropped_values, 199_999);
    assert_eq!(middle.item()?, 100_001.0);
    assert_eq!(tape.memory().recomputed_on_request, 100_001);
    Ok(())
}

#[test]
fn forward_mode_agrees_with_reverse_mode() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![0.3f64, -0.8, 1.2], [3]));
    let w = tape.variable(&Tensor::from_vec(vec![0.5f64, -0.1, 0.7, 0.2, 0.9, -0.4], [3, 2]));
    let y = x.matmul(w).tanh();
    let (dx, dw) = (tape.constant(&Tensor::ones([3], DType::F64)), w * 0.5);
    let u = tape.constant(&Tensor::from_vec(vec![1.0f64, -2.0], [2]));
    let forward = (tape.jvp(y, &[(x, dx), (w, dw)])? * u).sum(&[]).item()?;
    let back = tape.vjp(y, u, &[x, w])?;
    let reverse = ((back[0].unwrap() * dx).sum(&[]) + (back[1].unwrap() * dw).sum(&[])).item()?;
    assert!((forward - reverse).abs() < 1e-15, "{forward} {reverse}");
    Ok(())
}

#[test]
fn an_unreached_leaf_is_named_and_an_unused_gradient_is_absent() -> Outcome {
    let tape = Tape::new();
    let used = tape.parameter(limpid_autograd::ParamId(1), "layers.0.weight", &scalar(1.0), false);
    let unused = tape.parameter(limpid_autograd::ParamId(2), "layers.1.weight", &scalar(1.0), false);
    let gradients = tape.backward(used * 2.0)?;
    assert_eq!(gradients.unreached(), ["layers.1.weight"]);
    assert!(gradients.of(unused).is_none());
    assert_eq!(gradients.of_parameter(limpid_autograd::ParamId(1)).unwrap().item()?, 2.0);
    Ok(())
}

#[test]
fn rules_read_what_they_declare() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![0.3f64, -0.8, 1.2, 0.1], [2, 2]));
    let y = tape.scope("f", || {
        let a = (x * x + 1.0).tanh() / (x.exp() + 1.0);
        (a.maximum(x) - a.matmul(x)).relu().logsumexp(&[1]).sum(&[])
    });
    let memory = tape.memory();
    let audit = tape.audit_reads(y)?;
    assert_eq!(audit.declared, audit.read);
    assert_eq!(memory.needed, audit.read_bytes);
    Ok(())
}

#[test]
fn bytes_by_scope_sum_to_the_bytes_held() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![0.3f64, -0.8, 1.2, 0.1], [2, 2]));
    let y = tape.scope("outer", || {
        // A view of a leaf owns nothing; a view of a result belongs to whoever made that.
        let a = tape.scope("inner", || x.transpose(0, 1).tanh());
        let b = tape.scope("views", || a.reshape([4]).slice(0, 0, 2, 1) * x.reshape([4]).slice(0, 2, 4, 1));
        tape.scope("inner", || b.exp())
    });
    let by_scope = tape.memory_by_scope();
    let memory = tape.memory();
    assert_eq!(by_scope.iter().map(|(_, bytes)| bytes).sum::<usize>(), memory.needed + memory.other);
    // Twice the same scope is one: tanh's result (4 numbers) and exp's (2). The product itself is read by nobody.
    assert_eq!(by_scope, [("outer/inner".to_string(), 48)]);
    // Outside all scopes nothing is dropped.
    let z = y * 2.0;
    assert_eq!(tape.memory_by_scope()[1], (String::new(), 16));
    assert_eq!(z.shape()[..], [2]);
    assert_eq!(Tape::dry().memory_by_scope(), []);
}

#[test]
#[should_panic(expected = "matmul in block/read: [2, 3] times [2, 3]")]
fn a_wrong_shape_panics_with_the_operation_scope_and_shapes() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::ones([2, 3], DType::F32));
    tape.scope("block", || tape.scope("read", || x.matmul(x)));
}

#[test]
#[should_panic(expected = "add: operands must have one dtype, found f32 and f64")]
fn mixing_dtypes_names_both() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::ones([2], DType::F32));
    let _ = x + tape.variable(&Tensor::ones([2], DType::F64));
}

#[test]
fn a_dry_tape_knows_shapes_and_no_values() {
    let tape = Tape::dry();
    let x = tape.variable(&Tensor::ones([128, 2], DType::F32));
    let w = tape.variable(&Tensor::ones([2, 64], DType::F32));
    let y = x.matmul(w).relu().mean(&[0]);
    assert_eq!(y.meta().to_string(), "f32[64]");
    assert!(matches!(y.value(), Err(Error::Dry { .. })));
    assert!(tape.program().to_string().contains("(32.0 KiB)"));
}

#[test]
fn inference_keeps_no_nodes_behind() -> Outcome {
    let tape = Tape::inference();
    let x = tape.constant(&Tensor::ones([4], DType::F64));
    let mut y = x;
    for _ in 0..100 {
        y = tape.scope("block", || (y * 0.5).tanh() + y);
    }
    assert!(y.value()?.to_f64_vec()?[0] > 1.0);
    assert_eq!(tape.len(), 101);
    assert!(!y.is_tracked());
    Ok(())
}

#[test]
fn anomaly_mode_stops_at_the_first_bad_value_and_says_where() -> Outcome {
    let tape = Tape::new().with_anomaly_detection(true);
    let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 0.0], [2]));
    let y = tape.scope("head", || x.log());
    let later = (y + 1.0).exp();
    let error = later.value().err().unwrap().to_string();
    assert!(error.starts_with("log in head at "), "{error}");
    assert!(error.contains("-inf at element 1") && error.contains("f64[2] in [0.000e0, 1.000e0]"), "{error}");
    assert_eq!(tape.backward(later.sum(&[])).err().unwrap().to_string(), error);
    Ok(())
}

#[derive(Debug)]
struct Round;

impl Op for Round {
    fn name(&self) -> &'static str {
        "round"
    }
    fn infer(&self, x: &[&limpid_tensor::Meta]) -> limpid_tensor::Inferred {
        Ok(x[0].clone())
    }
    fn forward(&self, x: &[&Tensor]) -> limpid_tensor::Result<Tensor> {
        x[0].cast(DType::I64)?.cast(x[0].dtype())
    }
    fn needs(&self, _: &[bool]) -> limpid_autograd::Needs {
        limpid_autograd::Needs::NOTHING
    }
    fn derivative(&self) -> limpid_autograd::Derivative {
        limpid_autograd::Derivative::Missing("rounding is flat almost everywhere")
    }
}

#[test]
fn an_operation_without_a_derivative_takes_constants() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(2.4));
    assert_eq!(tape.record(Round, &[x.detach()]).item()?, 2.0);
    Ok(())
}

#[test]
#[should_panic(
    expected = "round: a gradient would have to pass, and the operation has no derivative (rounding is flat"
)]
fn an_operation_without_a_derivative_on_a_tracked_path_panics_when_recorded() {
    let tape = Tape::new();
    let x = tape.variable(&scalar(2.4));
    tape.record(Round, &[x]);
}

#[test]
fn the_backward_program_prints_the_rules() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(0.5));
    let y = tape.scope("block", || x.tanh() * x);
    let text = tape.backward_program(y)?;
    assert!(text.contains("block/∂tanh") && text.contains("elementwise.rs:"), "{text}");
    assert_eq!(tape.len(), 3, "what was recorded for printing is gone");
    Ok(())
}

#[test]
fn edges_are_marked_where_they_are_used() {
    let tape = Tape::new();
    let x = tape.variable(&scalar(0.5));
    let _ = x.skip() + x.tanh().branch();
    assert!(tape.program().to_string().contains("add(↷%0, ⑂%1)"));
}

#[test]
fn a_panic_inside_a_scope_leaves_the_tape_usable() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::ones([2, 3], DType::F64));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tape.without_gradients(|| tape.scope("block", || x.matmul(x)))
    }));
    assert!(caught.is_err());
    let y = tape.scope("sum", || (x * x).sum(&[]));
    assert!(y.is_tracked());
    assert!(tape.program().to_string().lines().last().unwrap().contains("  sum  "));
    assert_eq!(tape.backward(y)?.of(x).unwrap().to_vec::<f64>()?, [2.0; 6]);
    Ok(())
}

#[test]
fn a_parameter_first_used_as_a_constant_still_learns() -> Outcome {
    let tape = Tape::new();
    let w = || tape.parameter(limpid_autograd::ParamId(1), "w", &scalar(3.0), false);
    let target = tape.without_gradients(|| w() * 2.0);
    let y = w() * 5.0 + target;
    assert_eq!(tape.backward(y)?.of(w()).unwrap().item()?, 5.0);
    assert_eq!(tape.grad(y, &[w()])?[0].item()?, 5.0, "no gradient passes what was recorded as constant");
    Ok(())
}

/// a·b, with no rule but its expansion.
#[derive(Debug)]
struct Product;

impl Op for Product {
    fn name(&self) -> &'static str {
        "product"
    }
    fn infer(&self, x: &[&limpid_tensor::Meta]) -> limpid_tensor::Inferred {
        Ok(x[0].clone())
    }
    fn needs(&self, _: &[bool]) -> limpid_autograd::Needs {
        limpid_autograd::Needs::inputs(&[0, 1])
    }
    fn expand<'t>(&self, x: &[limpid_autograd::Var<'t>]) -> Option<limpid_autograd::Var<'t>> {
        Some(x[0] * x[1])
    }
}

#[test]
fn an_expansion_stands_in_for_the_rules_also_where_an_operand_repeats() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(3.0));
    let y = tape.record(Product, &[x, x]);
    assert_eq!(tape.backward(y)?.of(x).unwrap().item()?, 6.0);
    let first = tape.grad(y, &[x])?[0];
    assert_eq!((first.item()?, tape.grad(first, &[x])?[0].item()?), (6.0, 2.0));
    assert_eq!(tape.jvp(y, &[(x, tape.constant(&scalar(1.0)))])?.item()?, 6.0);
    Ok(())
}

#[test]
fn cotangents_of_narrow_floats_add_up_in_wider_ones() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_f64(&[1.0], [], DType::BF16));
    let mut y = x;
    for _ in 0..999 {
        y = y + x;
    }
    assert_eq!(tape.backward(y)?.of(x).unwrap().item()?, 1000.0);
    assert_eq!(tape.grad(y, &[x])?[0].item()?, 1000.0);
    Ok(())
}

#[test]
fn a_hundred_operands_have_a_derivative() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::ones([1], DType::F64));
    let y = tape.scope("all", || limpid_autograd::concat(&[x; 100], 0).sum(&[]));
    assert_eq!(tape.backward(y)?.of(x).unwrap().item()?, 100.0);
    Ok(())
}

#[test]
#[should_panic(expected = "is stale")]
fn a_value_that_an_inference_scope_forgot_cannot_come_back_as_another() {
    let tape = Tape::inference();
    let x = tape.constant(&scalar(1.0));
    tape.scope("outer", || {
        let mut leaked = None;
        let kept = tape.scope("inner", || {
            leaked = Some(x * 2.0);
            x + 1.0
        });
        (leaked, kept)
    });
}

#[test]
#[should_panic(expected = "inference tape keeps no program")]
fn an_inference_tape_refuses_to_differentiate() {
    let tape = Tape::inference();
    let x = tape.constant(&scalar(1.0));
    let _ = tape.grad(x * x, &[x]);
}

#[test]
#[should_panic(expected = "round: a gradient would have to pass")]
fn grad_by_a_constant_does_not_pass_a_missing_derivative_as_zero() {
    let tape = Tape::new();
    let x = tape.constant(&scalar(2.4));
    let _ = tape.grad(tape.record(Round, &[x]), &[x]);
}

#[test]
#[should_panic(expected = "is not on the tape, as it was")]
fn gradients_know_their_tape() {
    let mut tape = Tape::new();
    let x = tape.variable(&scalar(1.0));
    let gradients = tape.backward(x * 2.0).unwrap();
    tape.clear(1);
    gradients.of(tape.variable(&scalar(1.0)));
}

#[test]
fn jvp_sums_over_repeated_and_intermediate_sources() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(3.0));
    let h = x * x;
    let y = h + 0.0;
    let number = |v: f64| tape.constant(&scalar(v));
    assert_eq!(tape.jvp(y, &[(x, number(1.0)), (h, number(10.0))])?.item()?, 16.0);
    assert_eq!(tape.jvp(y, &[(x, number(1.0)), (x, number(2.0))])?.item()?, 18.0);
    Ok(())
}

#[test]
fn anomaly_mode_sees_leaves_and_sums_of_cotangents() -> Outcome {
    let tape = Tape::new().with_anomaly_detection(true);
    let bad = Tensor::from_vec(vec![1.0f32, f32::NAN], [2]);
    let w = tape.parameter(limpid_autograd::ParamId(7), "layers.0.weight", &bad, false);
    let error = (w * 2.0).value().unwrap_err().to_string();
    assert!(error.starts_with("layers.0.weight at ") && error.contains("NaN at element 1"), "{error}");

    let tape = Tape::new().with_anomaly_detection(true);
    let x = tape.variable(&Tensor::scalar(0.0f32));
    let error = tape.backward(x * 3e38 + x * 3e38).unwrap_err().to_string();
    assert!(error.starts_with("sum of cotangents"), "{error}");
    Ok(())
}

#[test]
fn what_was_dropped_before_a_failure_can_still_be_read() -> Outcome {
    let tape = Tape::new().with_anomaly_detection(true);
    let x = tape.variable(&scalar(0.5));
    let mut inside = x;
    tape.scope("healthy", || {
        inside = x + 1.0;
        inside + 1.0
    });
    let bad = (x - 0.5).log();
    assert_eq!(inside.item()?, 1.5);
    assert!(bad.value().is_err() && (bad + 1.0).value().is_err());
    Ok(())
}

#[test]
fn a_dry_tape_records_derivatives_too() -> Outcome {
    let tape = Tape::dry();
    let x = tape.variable(&Tensor::ones([3], DType::F64));
    let y = (x * x).sum(&[]);
    assert!(tape.backward(y).is_err());
    assert_eq!(tape.grad(y, &[x])?[0].shape().to_string(), "[3]");
    Ok(())
}

#[test]
fn many_returning_values_take_linear_time() -> Outcome {
    let tape = Tape::new();
    let x = tape.constant(&scalar(0.3));
    let y = tape.scope("chain", || (0..100_000).fold(x, |y, _| y.sin()));
    assert!(tape.grad(y, &[x])?[0].item()? > 0.0);
    assert!(tape.memory().recomputed >= 99_999);
    Ok(())
}

#[test]
fn a_million_nodes_also_forward_and_recorded() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(1.0));
    let y = (0..1_000_000).fold(x, |y, _| y + x);
    assert_eq!(tape.jvp(y, &[(x, tape.constant(&scalar(1.0)))])?.item()?, 1_000_001.0);
    assert_eq!(tape.grad(y, &[x])?[0].item()?, 1_000_001.0);
    Ok(())
}

#[test]
fn powers_at_zero() -> Outcome {
    let gradients = |a: f64, b: f64| -> Result<(f64, f64), Box<dyn std::error::Error>> {
        let tape = Tape::new();
        let (a, b) = (tape.variable(&scalar(a)), tape.variable(&scalar(b)));
        let g = tape.grad(a.pow(b), &[a, b])?;
        Ok((g[0].item()?, g[1].item()?))
    };
    assert_eq!(gradients(0.0, 0.0)?, (0.0, 0.0));
    assert_eq!(gradients(0.0, -1.0)?.1, 0.0);
    assert_eq!(gradients(0.0, 2.0)?, (0.0, 0.0));
    assert_eq!(gradients(2.0, 0.0)?, (0.0, 2f64.ln()));
    Ok(())
}

#[test]
#[should_panic(expected = "careless: the vjp must return a cotangent, or None, for each operand")]
fn a_rule_that_forgets_an_operand_is_caught() {
    #[derive(Debug)]
    struct Careless;
    impl Op for Careless {
        fn name(&self) -> &'static str {
            "careless"
        }
        fn infer(&self, x: &[&limpid_tensor::Meta]) -> limpid_tensor::Inferred {
            Ok(x[0].clone())
        }
        fn forward(&self, x: &[&Tensor]) -> limpid_tensor::Result<Tensor> {
            Ok(x[0].clone())
        }
        fn needs(&self, _: &[bool]) -> limpid_autograd::Needs {
            limpid_autograd::Needs::NOTHING
        }
        fn vjp<'t>(&self, at: &limpid_autograd::Pullback<'_, 't>) -> limpid_autograd::Cotangents<'t> {
            [Some(at.g())].into_iter().collect()
        }
    }
    let tape = Tape::new();
    let x = tape.variable(&scalar(1.0));
    let _ = tape.backward(tape.record(Careless, &[x, x]));
}

#[test]
fn a_value_can_stand_for_a_parameter() {
    let tape = Tape::new();
    let id = ParamId(7);
    let w = tape.variable(&Tensor::scalar(3.0f64));
    tape.bind_parameter(id, w);
    let used = tape.parameter(id, "w", &Tensor::scalar(100.0f64), false);
    let gradients = tape.backward(used * used).unwrap();
    assert_eq!(gradients.of(w).unwrap().item().unwrap(), 6.0);
    assert_eq!(gradients.of_parameter(id).unwrap().item().unwrap(), 6.0);
}

#[test]
#[should_panic(expected = "is on the tape already")]
fn a_parameter_is_bound_once() {
    let tape = Tape::new();
    tape.parameter(ParamId(7), "w", &Tensor::scalar(1.0f64), false);
    tape.bind_parameter(ParamId(7), tape.variable(&Tensor::scalar(3.0f64)));
}
