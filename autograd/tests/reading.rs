//! The tape as something to read: statistics, rules, graphs, differences, hooks.

mod residual_programs;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use limpid_autograd::ops::sinkhorn::{Gradient, Sinkhorn};
use limpid_autograd::{Difference, Tape, Var, diff};
use limpid_tensor::rng::Key;
use limpid_tensor::{Activation, DType, Stop, Tensor};
use residual_programs::{normal, residual};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn scalar(v: f64) -> Tensor {
    Tensor::scalar(v)
}

/// The lines below the line of the node at this position.
fn below(text: &str, id: usize) -> Vec<String> {
    let start = format!("%{id}: ");
    let after = text.lines().skip_while(|line| !line.starts_with(&start)).skip(1);
    after.take_while(|line| line.starts_with("      ")).map(|line| line.trim().to_string()).collect()
}

#[test]
fn a_program_says_nothing_that_was_not_asked_for() {
    let tape = Tape::new();
    residual(&tape, 5, 1);
    assert_eq!(tape.program().to_string().lines().count(), tape.len());
}

#[test]
fn statistics_of_every_value_also_of_dropped_ones() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![1.0f32, f32::NAN, -3.0], [3]));
    let mut inside = x;
    tape.scope("f", || {
        inside = x + 1.0;
        inside.tanh()
    });
    let dropped = tape.memory().dropped_values;
    assert_eq!(dropped, 1);
    let text = tape.program().with_statistics().to_string();
    assert_eq!(below(&text, 0), ["[-3.000e0, 1.000e0] mean -1.000e0 norm 3.162e0, 1 of 3 not finite"]);
    assert_eq!(
        below(&text, inside.index()),
        ["[-2.000e0, 2.000e0] mean 0.000e0 norm 2.828e0, 1 of 3 not finite"]
    );
    let last = text.lines().last().unwrap();
    assert_eq!(last, "3 nodes hold 24 B in unique storage; each alone, 24 B");
    assert_eq!(tape.memory().dropped_values, dropped);
    assert!(text.contains("dropped"), "what was looked at was not kept:\n{text}");
    Ok(())
}

#[test]
fn views_share_their_bytes() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::ones([4], DType::F64));
    let _ = x.reshape([2, 2]).transpose(0, 1);
    let text = tape.program().with_statistics().to_string();
    assert!(text.ends_with("3 nodes hold 32 B in unique storage; each alone, 96 B\n"), "{text}");
}

#[test]
fn gradient_norms_stand_by_their_lines() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![3.0f64, 4.0], [2]));
    let aside = x * 5.0;
    let y = (x * x).sum(&[]);
    let (_, ledger) = tape.backward_with_ledger(y)?;
    let text = tape.program().with_gradients(&ledger).to_string();
    assert_eq!(below(&text, x.index()), ["gradient norm 1.000e1"]);
    assert_eq!(below(&text, aside.index()), [""; 0], "no gradient came there");
    Ok(())
}

#[test]
fn the_rule_of_a_line_is_what_the_rule_records() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&normal([2, 3], Key::new(1)));
    let w = tape.parameter(limpid_autograd::ParamId(1), "w", &normal([3, 4], Key::new(2)), false);
    let c = tape.constant(&normal([2, 4], Key::new(3)));
    let h = x.matmul(w);
    let y = h * c;
    let z = y * y;
    let nodes = tape.len();
    let text = tape.program().with_rules().to_string();
    assert_eq!(tape.len(), nodes, "reading records nothing");
    assert_eq!(below(&text, x.index()), [""; 0]);
    let [h, y, z] = [h, y, z].map(Var::index);
    let rule = below(&text, h);
    assert!(rule.iter().any(|line| line.starts_with("∂%0 += t")), "{rule:?}");
    assert!(rule.iter().any(|line| line.starts_with("∂w += t")), "{rule:?}");
    assert_eq!(below(&text, y), [format!("t1 = mul(∂%{y}, %2)"), format!("∂%{h} += t1")]);
    // The constant operand wants no gradient; one used twice gets the sum.
    assert_eq!(below(&text, z).last().unwrap(), &format!("∂%{y} += t3"));
    Ok(())
}

#[test]
fn the_rule_of_a_fused_operation_is_expanded() {
    let tape = Tape::new();
    let x = tape.variable(&normal([2, 3], Key::new(1)));
    let y = x.softmax(1);
    let program = tape.program().with_rules().to_string();
    let rule = below(&program, y.index()).join("\n");
    assert!(!rule.contains("softmax") && rule.contains("mul(") && rule.contains("sum("), "{rule}");
    assert!(rule.ends_with(|c: char| c.is_ascii_digit()) && rule.contains("∂%0 += t"), "{rule}");
}

#[test]
fn every_operation_of_a_random_program_has_a_rule_to_read() {
    let tape = Tape::new();
    let program = residual(&tape, 20, 2);
    let text = tape.program().with_rules().to_string();
    for id in 0..=program.loss.index() {
        let var = tape.at(id);
        let is_leaf = var.site().op == "leaf";
        assert_eq!(below(&text, id).is_empty(), is_leaf || !var.is_tracked(), "%{id}\n{text}");
    }
    assert!(!text.contains("depends on values"), "{text}");
}

#[test]
fn rules_of_every_form_of_operation_can_be_read() {
    let tape = Tape::new().with_seed(1);
    let x = tape.variable(&normal([2, 3, 3], Key::new(1)));
    let (w, b) = (tape.variable(&normal([3, 4], Key::new(2))), tape.variable(&normal([4], Key::new(3))));
    let scale = tape.variable(&normal([3], Key::new(4)));
    let labels = tape.constant(&Tensor::from_vec(vec![2i64, 0], [2]));
    let gradients = [Gradient::Unrolled, Gradient::OnTape, Gradient::Implicit];
    let of_stop = [Stop::Steps(2), Stop::Tolerance { error: 1e-3, at_most: 5 }];
    for (gradient, stop) in gradients.into_iter().zip(of_stop.into_iter().cycle()) {
        x.sinkhorn(&Sinkhorn { gradient, stop, ..Sinkhorn::default() });
    }
    x.linear(w.transpose(0, 1), Some(b), Activation::Tanh).gelu().cumsum(1).max(&[0]);
    x.layer_norm(scale, scale, 1e-5).dropout(0.5).prod(&[2]).logsumexp(&[0]);
    x.rms_norm(scale, 1e-5).log_softmax(1).sort(2, false).0.tril(0).clamp(-1.0, 1.0);
    x.select(1, 0).cross_entropy(labels);
    x.gather(1, tape.constant(&Tensor::zeros([2, 1, 3], DType::I64))).cast(DType::F32).abs();
    limpid_autograd::einsum("bij,jk->ik", &[x, w]);
    let text = tape.program().with_rules().to_string();
    for id in 0..tape.len() {
        let var = tape.at(id);
        let passes = var.is_tracked() && var.site().op != "leaf";
        assert_eq!(below(&text, id).is_empty(), !passes, "%{id}\n{text}");
    }
    assert!(!text.contains("depends on values"), "{text}");
}

#[test]
fn json_is_json_and_says_what_the_program_says() -> Outcome {
    let tape = Tape::new();
    let program = residual(&tape, 6, 4);
    let bad = tape.parameter(limpid_autograd::ParamId(1), "a \"quoted\" name", &scalar(f64::NAN), false);
    let loss = program.loss + bad * 0.0;
    let (_, ledger) = tape.backward_with_ledger(loss)?;
    let text = tape.program().with_statistics().with_gradients(&ledger).with_rules().to_json();
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let nodes = json["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), tape.len());
    for (id, node) in nodes.iter().enumerate() {
        let var = tape.at(id);
        assert_eq!(node["id"], id);
        assert_eq!(node["scope"], var.site().scope);
        let shape: Vec<usize> =
            node["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        assert_eq!(shape, var.shape().to_vec());
        assert_eq!(node["tracked"], var.is_tracked());
        let norm = ledger.norm(id).filter(|norm| norm.is_finite());
        assert_eq!(node["gradient_norm"].as_f64(), norm);
    }
    let name = nodes.iter().find(|node| node["name"] == "a \"quoted\" name").unwrap();
    assert_eq!(name["statistics"]["non_finite"], 1);
    assert!(name["statistics"]["mean"].is_null() && name["op"].is_null());
    let edges = |edge: &str| text.matches(&format!("\"edge\":\"{edge}\"")).count();
    let plain = tape.program().to_string();
    assert_eq!([edges("skip"), edges("branch")], ["↷", "⑂"].map(|mark| plain.matches(mark).count()));
    Ok(())
}

#[test]
fn a_graph_has_every_node_and_edge_and_balanced_braces() {
    let tape = Tape::new();
    residual(&tape, 6, 4);
    let dot = tape.program().to_dot();
    let operands: usize = tape.program().to_json().matches("\"edge\":").count();
    assert_eq!(dot.matches(" -> ").count(), operands);
    assert_eq!(dot.matches("[label=\"%").count(), tape.len());
    let labels_apart: String = dot.split('"').step_by(2).collect();
    assert_eq!(labels_apart.matches('{').count(), labels_apart.matches('}').count());
    assert!(
        dot.contains("    subgraph \"cluster_block3/branch\" {\n      label=\"branch\";\n      n"),
        "{dot}"
    );
}

#[test]
fn a_tape_differs_from_itself_in_nothing() {
    let run = || {
        let tape = Tape::new();
        residual(&tape, 20, 6);
        tape
    };
    let found = diff(&run(), &run());
    assert!(found.is_empty() && found.to_string().is_empty(), "{found}");
}

#[test]
fn an_inserted_operation_is_one_line_and_its_reader_another() {
    let run = |inserted: bool| {
        let tape = Tape::new();
        let x = tape.variable(&scalar(0.5));
        let y = tape.scope("first", || if inserted { x.tanh().exp() } else { x.tanh() });
        let _ = tape.scope("second", || y.sin() * y);
        tape
    };
    let found = diff(&run(false), &run(true));
    let added: Vec<&Difference> = found.lines.iter().filter(|l| matches!(l, Difference::Added(_))).collect();
    assert_eq!(added, [&Difference::Added("%2: f64[] = exp(%1)  first".into())]);
    let changed: Vec<&Difference> =
        found.lines.iter().filter(|line| matches!(line, Difference::Changed(..))).collect();
    assert_eq!(changed.len(), 2, "sin and mul read another value:\n{found}");
    let value = found.value.as_ref().unwrap();
    assert_eq!((value.nodes, value.site.op.as_str(), value.site.scope.as_str()), ((2, 3), "sin", "second"));
    let back = diff(&run(true), &run(false));
    assert!(back.to_string().starts_with("- %2: f64[] = exp(%1)  first\n"), "{back}");
}

#[test]
fn marks_attributes_and_types_are_changes() {
    let run = |mark: bool, axis: isize, dtype: DType| {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::ones([2, 2], dtype));
        let y = x.sum(&[axis]);
        let _ = if mark { y.skip() + y } else { y + y };
        tape
    };
    let old = run(false, 0, DType::F64);
    let lines = |new: &Tape| diff(&old, new).lines.len();
    assert_eq!(lines(&run(false, 0, DType::F64)), 0);
    assert_eq!(lines(&run(true, 0, DType::F64)), 1);
    assert_eq!(lines(&run(false, 1, DType::F64)), 1);
    assert_eq!(lines(&run(false, 0, DType::F32)), old.len());
    assert_eq!(diff(&old, &run(false, 0, DType::F32)).value, None, "values of other types are not compared");
}

#[test]
fn the_first_value_that_differs_has_its_place_and_both_numbers() {
    let run = |at_two: f64| {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::from_vec(vec![f64::NAN, 1.0, at_two], [3]));
        let _ = tape.scope("f", || (x + 1.0).tanh());
        tape
    };
    let value = diff(&run(5.0), &run(6.0)).value.unwrap();
    assert_eq!((value.nodes, value.element, value.values), ((0, 0), 2, (5.0, 6.0)));
    assert_eq!((value.count, value.elements), (1, 3), "NaN is NaN");
    let zero = diff(&run(0.0), &run(-0.0)).value.unwrap();
    assert!(zero.values.1.is_sign_negative());
    let dry = Tape::dry();
    assert_eq!(diff(&dry, &dry).value, None);
}

#[test]
fn hooks_see_the_program_and_not_its_rules() -> Outcome {
    let tape = Tape::new();
    let (forward, backward) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(Vec::new())));
    let (seen, came) = (forward.clone(), backward.clone());
    tape.on_forward("**", move |var, value| seen.borrow_mut().push((var.index(), value.elements())));
    tape.on_backward("**", move |var, g| came.borrow_mut().push((var.index(), g.to_f64_vec().unwrap())));
    let program = residual(&tape, 10, 7);
    let indices: Vec<usize> = forward.borrow().iter().map(|(index, _)| *index).collect();
    assert_eq!(indices, (0..tape.len()).collect::<Vec<_>>(), "each node once, in order");

    tape.backward(program.loss)?;
    assert_eq!(
        forward.borrow().len(),
        tape.len(),
        "what rules record and what is computed again is not shown"
    );
    let first = backward.take();
    let (_, ledger) = tape.backward_with_ledger(program.loss)?;
    assert_eq!(backward.take(), first, "the pass with books is the same pass");
    for (index, gradient) in &first {
        let norm = gradient.iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!((ledger.norm(*index).unwrap() - norm).abs() <= 1e-13 * norm);
    }
    tape.spectrum(program.loss, &program.streams, limpid_autograd::Grading::BRANCHES)?;
    tape.sample_jacobians(program.streams[5], program.streams[4], 1, limpid_autograd::Paths::Direct)?;
    tape.jacobian_spectrum(program.streams[5], program.streams[4], 1)?;
    assert!(backward.borrow().is_empty(), "a part of a gradient is none");
    // A pass that is recorded shows the same.
    let x = program.streams[0];
    tape.grad(program.loss, &[x])?;
    let recorded = backward.take();
    assert_eq!(recorded.last().unwrap(), first.iter().find(|(index, _)| *index == x.index()).unwrap());
    Ok(())
}

#[test]
fn a_hook_may_use_the_tape() -> Outcome {
    let tape = Tape::new();
    let calls = Rc::new(Cell::new(0));
    let count = calls.clone();
    tape.on_forward("block/*", move |var, _| {
        count.set(count.get() + 1);
        let tape = var.tape();
        assert!(tape.program().to_string().contains("block"));
        let square = (var * var).sum(&[]);
        let slope = tape.grad(square, &[var]).unwrap()[0];
        assert!((slope.item().unwrap() - 2.0 * var.item().unwrap()).abs() < 1e-15);
        tape.on_forward("never", |_, _| {});
    });
    let x = tape.variable(&scalar(0.5));
    let y = tape.scope("block", || x.tanh().sin());
    assert_eq!(calls.get(), 2);
    assert!(tape.backward(y)?.of(x).is_some());
    Ok(())
}

#[test]
fn what_a_hook_records_stands_in_the_scope_of_what_it_looked_at() -> Outcome {
    let tape = Tape::new();
    tape.on_backward("block/tanh", |var, _| {
        let _ = var * 3.0;
    });
    let x = tape.variable(&scalar(0.5));
    let y = tape.scope("block", || x.tanh()).sin();
    let nodes = tape.len();
    assert!(tape.backward(y)?.of(x).is_some());
    assert_eq!((tape.len(), tape.at(nodes).site().scope.as_str()), (nodes + 1, "block"));
    assert_eq!(tape.scope("after", || y * 2.0).site().scope, "after");
    Ok(())
}

#[test]
fn hooks_stay_when_a_tape_is_cleared_and_a_dry_one_shows_nothing() {
    let calls = Rc::new(Cell::new(0));
    for (mut tape, expected) in [(Tape::new(), 4), (Tape::dry(), 0)] {
        calls.set(0);
        let count = calls.clone();
        tape.on_forward("**", move |_, _| count.set(count.get() + 1));
        for step in 0..2 {
            let x = tape.variable(&Tensor::ones([2], DType::F64));
            let _ = x.tanh();
            tape.clear(step + 1);
        }
        assert_eq!(calls.get(), expected);
    }
}
