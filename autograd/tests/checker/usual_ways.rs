//! What the usual tests of a gradient let through, and what `check` says of the same. `docs/checking.md` shows the tables.

use super::*;

/// |a − b| ≤ atol + rtol·|b| everywhere.
fn allclose(a: &[f64], b: &[f64], rtol: f64, atol: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= atol + rtol * b.abs())
}

/// The value of a function at x, computed in x's dtype.
fn at(f: Function, x: &Tensor) -> Vec<f64> {
    let tape = Tape::inference();
    f(&[tape.constant(x)]).value().unwrap().to_f64_vec().unwrap()
}

/// By reverse mode, the gradient of the sum of f.
fn gradient(f: Function, x: &Tensor) -> Vec<f64> {
    let tape = Tape::new();
    let x = tape.variable(x);
    tape.backward(f(&[x]).sum(&[])).unwrap().of(x).unwrap().to_f64_vec().unwrap()
}

/// The derivative of an elementwise function by central differences of one step, all elements moved at once.
fn central(f: Function, x: &Tensor, h: f64) -> Vec<f64> {
    let moved = |h: f64| {
        let numbers: Vec<f64> = x.to_f64_vec().unwrap().iter().map(|x| x + h).collect();
        at(f, &Tensor::from_f64(&numbers, x.shape(), x.dtype()))
    };
    moved(h).iter().zip(&moved(-h)).map(|(plus, minus)| (plus - minus) / (2.0 * h)).collect()
}

/// sin x·eˣ.
fn smooth<'t>(x: &[Var<'t>]) -> Var<'t> {
    x[0].sin() * x[0].exp()
}

/// A step: the largest relative error of a central difference, over 16 points.
fn steps() -> String {
    let mut text = "  h       error in f64   error in f32\n".to_string();
    let x = uniform(&[16], 0.2, 1.2, 1);
    let right = gradient(smooth, &x);
    let mut best = [f64::INFINITY; 2];
    for k in 1..=12 {
        let h = 10f64.powi(-k);
        let errors = [DType::F64, DType::F32].map(|dtype| {
            let found = central(smooth, &x.cast(dtype).unwrap(), h);
            found.iter().zip(&right).fold(0.0f64, |m, (a, b)| m.max(((a - b) / b).abs()))
        });
        text += &format!("  1e-{k:<2}   {:<12.0e}   {:.0e}\n", errors[0], errors[1]);
        for (best, error) in best.iter_mut().zip(errors) {
            *best = best.min(error);
        }
    }
    // No step is good: the best leaves 1e-12 to 1e-10 in f64 and 1e-5 to 1e-3 in f32.
    assert!((1e-13..1e-9).contains(&best[0]) && (1e-5..1e-3).contains(&best[1]), "{best:?}");
    text
}

/// The derivative of GELU that follows from constants of six digits.
fn gelu_of_six_digits<'t>(x: &[Var<'t>]) -> Var<'t> {
    let x = x[0];
    let density = (x * x * -0.5).exp() * 0.398942;
    let slope = ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5 + x * density;
    with_slope(x, x.gelu(), slope)
}

/// sin, with a derivative that is 0.05 % too large.
fn sine_and_a_little<'t>(x: &[Var<'t>]) -> Var<'t> {
    with_slope(x[0], x[0].sin(), x[0].cos() * 1.0005)
}

/// softmax, with three times its derivative.
fn softmax_three_times<'t>(x: &[Var<'t>]) -> Var<'t> {
    let y = x[0].softmax(1);
    y * 3.0 - y.detach() * 2.0
}

/// sin, with twice its derivative.
fn sine_twice<'t>(x: &[Var<'t>]) -> Var<'t> {
    with_slope(x[0], x[0].sin(), x[0].cos() * 2.0)
}

/// A value with another derivative: `y + slope·(x − x)`, where what should not be differentiated is detached.
fn with_slope<'t>(x: Var<'t>, y: Var<'t>, slope: Var<'t>) -> Var<'t> {
    y.detach() + slope.detach() * (x - x.detach())
}

/// A tolerance: `allclose` with a common step and common tolerances, and `check`.
fn tolerances() -> String {
    let mut text = "                              largest relative error   allclose   check\n".to_string();
    let x = uniform(&[16], 0.2, 1.2, 1);
    let table: [(&str, Function, Function, bool); 3] = [
        ("gelu", |x| x[0].gelu(), |x| x[0].gelu(), true),
        ("gelu′ with six digits", gelu_of_six_digits, |x| x[0].gelu(), false),
        ("sin′ 0.05 % too large", sine_and_a_little, |x| x[0].sin(), false),
    ];
    for (name, f, right, is_right) in table {
        let (by_rule, right) = (gradient(f, &x), gradient(right, &x));
        let error = by_rule.iter().zip(&right).fold(0.0f64, |m, (a, b)| m.max(((a - b) / b).abs()));
        let close = allclose(&by_rule, &central(f, &x, 1e-6), 1e-3, 1e-5);
        // The derivative that is written down stops at first order.
        let checked = Check::new().second_order(false).run(f, std::slice::from_ref(&x)).passed();
        assert!(close, "{name}");
        assert_eq!(checked, is_right, "{name}");
        text += &format!("  {name:26}  {error:<23.0e}  {:9}  {}\n", passes(close), passes(checked));
    }
    text
}

fn passes(passes: bool) -> &'static str {
    if passes { "passes" } else { "fails" }
}

/// A tolerance times the number of elements: a derivative twice as large as it should be.
fn scaled_tolerances() -> String {
    let mut text = "  outputs   allclose, rtol = 2e-3·n   check\n".to_string();
    let accepts = |n: usize| {
        let x = uniform(&[n], 0.2, 1.2, 1);
        allclose(&gradient(sine_twice, &x), &central(sine_twice, &x, 1e-6), 2e-3 * n as f64, 0.0)
    };
    let first = (1..2000).find(|&n| accepts(n)).expect("in the end anything is accepted");
    assert!((499..=501).contains(&first), "{first}");
    for n in [10, 100, first - 1, first, 1000] {
        let x = uniform(&[n], 0.2, 1.2, 1);
        let checked = Check::new().second_order(false).explain(false).run(sine_twice, &[x]).passed();
        assert!(!checked, "{n}");
        text += &format!("  {n:<8}  {:23}  {}\n", passes(accepts(n)), passes(checked));
    }
    text
}

/// `loss = sum`: a softmax whose derivative is three times too large.
fn sums() -> String {
    let x = normal(&[3, 5], 1);
    let mut text = "                                 allclose   check\n".to_string();
    let right: Function = |x| x[0].softmax(1);
    let table: [(&str, Function); 2] = [("softmax", right), ("softmax′ times three", softmax_three_times)];
    for (name, f) in table {
        // The sum moves no more than rounding, whatever moves.
        let zero = vec![0.0; 15];
        let close = allclose(&gradient(f, &x), &zero, 1e-3, 1e-5);
        assert!(close, "{name}");
        let of_sum = Check::new().second_order(false).run(|x| f(x).sum(&[]), std::slice::from_ref(&x));
        assert!(findings(&of_sum).contains("no power"), "{name}: {of_sum}");
        let itself = Check::new().second_order(false).run(f, std::slice::from_ref(&x)).passed();
        text += &format!("  {:30} {:9}  fails: no power\n", format!("sum of {name}"), passes(close));
        text += &format!("  {name:30} {:9}  {}\n", "", passes(itself));
    }
    text
}

/// Probes: one entry of a positive 100×100 Jacobian is twice as large as it should be, and `u·J·v` is compared to a
/// thousandth.
fn probes() -> String {
    const N: usize = 100;
    let mut text = "  probe                 missed, of 1000\n".to_string();
    let mut missed = Vec::new();
    type Draw = fn(u64) -> Tensor;
    let kinds: [(&str, Draw); 3] = [
        ("uniform in [0, 1)", |seed| uniform(&[N], 0.0, 1.0, seed)),
        ("normal", |seed| normal(&[N], seed)),
        ("random signs", |seed| {
            let signs = uniform(&[N], -1.0, 1.0, seed).to_f64_vec().unwrap();
            Tensor::from_vec(signs.iter().map(|x| x.signum()).collect::<Vec<f64>>(), [N])
        }),
    ];
    for (name, draw) in kinds {
        let miss = |seed: &u64| {
            let jacobian = uniform(&[N, N], 0.5, 1.5, *seed).to_f64_vec().unwrap();
            let [u, v] = [draw(seed + 10_000), draw(seed + 20_000)].map(|t| t.to_f64_vec().unwrap());
            let right: f64 = (0..N * N).map(|k| u[k / N] * jacobian[k] * v[k % N]).sum();
            let k = (*seed as usize * 7919) % (N * N);
            let off = u[k / N] * jacobian[k] * v[k % N];
            allclose(&[right + off], &[right], 1e-3, 0.0)
        };
        missed.push((0..1000).filter(miss).count());
        text += &format!("  {name:20}  {}\n", missed[missed.len() - 1]);
    }
    assert!(missed[0] == 1000 && (50..500).contains(&missed[1]) && missed[2] < 10, "{missed:?}");
    text
}

/// One side: Taylor remainders of Σ e⁶ˣ with a gradient that is 0.1 % too large.
fn one_sided() -> String {
    let mut text = "  h        one side   slope   both sides   slope\n".to_string();
    let x = uniform(&[4], -0.1, 0.1, 1).to_f64_vec().unwrap();
    let phi = |h: f64| x.iter().map(|x| (6.0 * (x + h)).exp()).sum::<f64>();
    let slope = 1.001 * x.iter().map(|x| 6.0 * (6.0 * x).exp()).sum::<f64>();
    let rungs: Vec<(f64, f64, f64)> = (0..6)
        .map(|k| 0.01 * 0.5f64.powi(k))
        .map(|h| (h, (phi(h) - phi(0.0) - h * slope).abs(), (phi(h) - phi(-h) - 2.0 * h * slope).abs()))
        .collect();
    let mut slopes = Vec::new();
    for (k, &(h, one, both)) in rungs.iter().enumerate() {
        text += &format!("  {h:<7.5}  {one:.2e}   ");
        if k > 0 {
            let (_, one_before, both_before) = rungs[k - 1];
            slopes.push(((one_before / one).log2(), (both_before / both).log2()));
            let (s, t) = slopes[k - 1];
            text += &format!("{s:.2}    {both:.2e}     {t:.2}\n");
        } else {
            text += &format!("        {both:.2e}\n");
        }
    }
    // A test that wants 1.9 from the first three halvings is content with one side.
    assert!(slopes[..3].iter().all(|(one, both)| *one > 1.9 && *both < 1.1), "{slopes:?}");
    text
}

/// The report of a function that is right.
fn passing() -> String {
    let report = check(|x| (x[0] * x[1]).tanh(), &[normal(&[4, 3], 1), normal(&[3], 2)]);
    report.expect_pass();
    report.to_string()
}

#[test]
fn the_page_shows_what_the_usual_ways_let_through() {
    let printed = [
        ("pass", passing()),
        ("fail", specimens::message("factor")),
        ("steps", steps()),
        ("tolerances", tolerances()),
        ("scaled-tolerances", scaled_tolerances()),
        ("sums", sums()),
        ("probes", probes()),
        ("one-sided", one_sided()),
    ];
    for (name, table) in &printed {
        println!("{name}\n{table}");
    }
    page::compare("checking.md", &printed);
}
