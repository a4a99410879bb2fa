//! The ledger's books balance, and say which way a gradient came.

mod residual_programs;

use limpid_autograd::{Edge, FanIn, Route, Tape, Var};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};
use residual_programs::{normal, residual};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn scalar(v: f64) -> Tensor {
    Tensor::scalar(v)
}

/// Addends sum to the gradient within 10⁻¹² of Σ‖addend‖, shares to 1 within as much of Σ‖addend‖/‖gradient‖.
fn expect_balanced(fan_in: &FanIn) {
    let sizes: f64 = fan_in.addends.iter().map(|addend| addend.part.norm).sum();
    assert!(fan_in.rounding <= 1e-12 * sizes, "{fan_in}");
    if fan_in.norm == 0.0 {
        assert!(fan_in.addends.iter().all(|addend| addend.part.share.is_none()), "{fan_in}");
        return;
    }
    let slack = 1e-12 * sizes / fan_in.norm;
    let shares: f64 = fan_in.addends.iter().map(|addend| addend.part.share.unwrap()).sum();
    let by_route: f64 = fan_in.routes.iter().map(|(_, part)| part.share.unwrap()).sum();
    assert!((shares - 1.0).abs() <= slack && (by_route - 1.0).abs() <= slack, "{shares} {by_route} {fan_in}");
}

#[test]
fn the_books_of_random_programs_balance_and_change_no_bit() -> Outcome {
    for seed in 0..12 {
        let tape = Tape::new();
        let program = residual(&tape, 20, seed);
        let plain = tape.backward(program.loss)?;
        let (gradients, ledger) = tape.backward_with_ledger(program.loss)?;
        let x = program.streams[0];
        assert_eq!(gradients.of(x).unwrap().to_vec::<f64>()?, plain.of(x).unwrap().to_vec::<f64>()?);
        ledger.fan_ins.iter().for_each(expect_balanced);
        assert!(ledger.fan_ins.is_sorted_by_key(|fan_in| fan_in.node));
        // What a fan-in calls the gradient is the gradient.
        for &stream in &program.streams[..20] {
            let gradient = tape.vjp(program.loss, tape.constant(&scalar(1.0)), &[stream])?[0].unwrap();
            let norm = gradient.value()?.to_vec::<f64>()?.iter().map(|v| v * v).sum::<f64>().sqrt();
            let booked = ledger.norm(stream.index()).unwrap();
            assert!((booked / norm - 1.0).abs() < 1e-13, "{booked} {norm}");
        }
    }
    Ok(())
}

#[test]
fn each_way_through_a_gated_block_has_its_route() -> Outcome {
    // x' = (1 − g)x + g·F with g = 0.25x and F = 3x, at x = 2: g = 0.5, F = 6.
    let tape = Tape::new();
    let x = tape.variable(&scalar(2.0));
    let y = tape.scope("block", || {
        let g = tape.scope("coefficients", || x * 0.25);
        let f = tape.scope("branch", || x * 3.0);
        (1.0 - g).control() * x.skip() + g.control() * f.branch()
    });
    let (gradients, ledger) = tape.backward_with_ledger(y)?;
    // skip 1 − g = 0.5; branch g·3 = 1.5; control (F − x)/4 = 1.
    assert_eq!(gradients.of(x).unwrap().item()?, 3.0);
    let at_x = ledger.fan_in(x).unwrap();
    assert_eq!(at_x.scope, "block");
    let norm = |route| at_x.by(route).unwrap().norm;
    assert_eq!((norm(Route::Skip), norm(Route::Branch), norm(Route::Control)), (0.5, 1.5, 1.0));
    assert_eq!(at_x.by(Route::Interior), None);
    assert_eq!(at_x.by(Route::Branch).unwrap().share, Some(0.5));
    assert_eq!(ledger.joins().count(), 1, "both ways to g are control:\n{ledger}");
    let skip = at_x.addends.iter().find(|addend| addend.route == Route::Skip).unwrap();
    assert_eq!((skip.edge, skip.op.as_str(), skip.operand), (Edge::Skip, "mul", 1));
    let branch = at_x.addends.iter().find(|addend| addend.route == Route::Branch).unwrap();
    assert_eq!((branch.edge, branch.scope.as_str()), (Edge::Interior, "block/branch"));
    Ok(())
}

#[test]
fn a_block_inside_a_branch_is_the_outer_blocks_branch() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(0.5));
    let mut inside = x;
    let y = tape.scope("outer", || {
        let f = tape.scope("branch", || {
            inside = x * 2.0;
            let g = inside.sigmoid();
            (g.control() * inside.skip()) + inside.sin().branch()
        });
        x.skip() + f.branch()
    });
    let (_, ledger) = tape.backward_with_ledger(y)?;
    let routes =
        |var: Var<'_>| ledger.fan_in(var).unwrap().routes.iter().map(|(r, _)| *r).collect::<Vec<_>>();
    assert_eq!(routes(x), [Route::Skip, Route::Branch]);
    assert_eq!(routes(inside), [Route::Skip, Route::Branch, Route::Control]);
    Ok(())
}

#[test]
fn what_cancels_has_no_shares_and_says_so() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(3.0));
    let y = tape.scope("block", || x.skip() - (x * 1.0).branch());
    let (_, ledger) = tape.backward_with_ledger(y)?;
    let at_x = ledger.fan_in(x).unwrap();
    expect_balanced(at_x);
    assert_eq!((at_x.norm, at_x.by(Route::Skip).unwrap().norm), (0.0, 1.0));
    assert!(ledger.to_string().contains("the gradient is 0: no shares"), "{ledger}");
    Ok(())
}

#[test]
fn an_operand_used_twice_is_two_addends() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(3.0));
    let (_, ledger) = tape.backward_with_ledger(x * x)?;
    let at_x = ledger.fan_in(x).unwrap();
    let positions: Vec<usize> = at_x.addends.iter().map(|addend| addend.operand).collect();
    assert_eq!((positions, at_x.is_join()), (vec![0, 1], false));
    assert_eq!(ledger.joins().count(), 0);
    Ok(())
}

#[test]
fn it_reads_at_eighty_columns() -> Outcome {
    let tape = Tape::new();
    let program = residual(&tape, 20, 3);
    let (_, ledger) = tape.backward_with_ledger(program.loss)?;
    let mut text = ledger.to_string();
    assert!(text.lines().count() > 15, "{text}");
    ledger.fan_ins.iter().for_each(|fan_in| text += &fan_in.to_string());
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    Ok(())
}

#[test]
fn a_narrow_dtype_says_what_rounding_cost() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_f64(&[1.0], [], DType::BF16));
    let y = (0..300).fold(x, |y, _| y + x);
    let (gradients, ledger) = tape.backward_with_ledger(y)?;
    // 301 is no bf16 number; the addends add up in f32 and are rounded once, to 302 or 300.
    let at_x = ledger.fan_in(x).unwrap();
    assert_eq!((at_x.addends.len(), at_x.rounding), (301, 1.0));
    assert_eq!(at_x.norm, gradients.of(x).unwrap().item()?);
    Ok(())
}

#[test]
fn a_cotangent_of_ones_own_and_values_in_between() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&normal([2, 3], Key::new(1)));
    let h = x.tanh();
    let y = h.skip() + (h * h).branch();
    let g = normal([2, 3], Key::new(2));
    let (values, ledger) = tape.vjp_with_ledger(y, &g, &[h, x])?;
    let recorded = tape.vjp(y, tape.constant(&g), &[h, x])?;
    for (value, recorded) in values.iter().zip(recorded) {
        assert_eq!(value.as_ref().unwrap().to_vec::<f64>()?, recorded.unwrap().value()?.to_vec::<f64>()?);
    }
    expect_balanced(ledger.fan_in(h).unwrap());
    let other = tape.variable(&scalar(1.0));
    assert!(tape.vjp_with_ledger(y, &g, &[other])?.0[0].is_none());
    Ok(())
}

#[test]
fn a_long_chain_has_a_ledger_too() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(1.0));
    let y = (0..20_000).fold(x, |y, _| y.skip() + (x * 1e-4).branch());
    let (gradients, ledger) = tape.backward_with_ledger(y)?;
    assert!((gradients.of(x).unwrap().item()? - 3.0).abs() < 1e-9);
    assert_eq!(
        ledger.fan_in(x).unwrap().by(Route::Branch).unwrap().share.map(|s| (s * 3.0).round()),
        Some(2.0)
    );
    Ok(())
}

#[test]
fn a_recorded_gradient_has_books_of_its_own() -> Outcome {
    let tape = Tape::new();
    let program = residual(&tape, 5, 8);
    let x = program.streams[0];
    let slope = tape.grad(program.loss, &[x])?[0];
    let (gradients, ledger) = tape.backward_with_ledger((slope * slope).sum(&[]))?;
    assert!(ledger.fan_ins.len() > 5);
    ledger.fan_ins.iter().for_each(expect_balanced);
    assert!(gradients.of(x).is_some());
    Ok(())
}

#[test]
fn without_values_there_are_no_books() {
    let tape = Tape::dry();
    let x = tape.variable(&scalar(1.0));
    assert!(tape.backward_with_ledger(x * x).is_err());
    assert!(tape.vjp_with_ledger(x * x, &scalar(1.0), &[x]).is_err());
}

#[test]
#[should_panic(
    expected = "vjp_with_ledger: the cotangent must have the shape and dtype of the result, f64[], found f64[2]"
)]
fn a_cotangent_of_another_shape_names_both() {
    let tape = Tape::new();
    let x = tape.variable(&scalar(1.0));
    let _ = tape.vjp_with_ledger(x * x, &Tensor::ones([2], DType::F64), &[x]);
}
