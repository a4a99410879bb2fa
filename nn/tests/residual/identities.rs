//! What holds exactly of every variant, on networks of twenty layers whose weights are nothing special: books that balance,
//! spectra that sum to the gradient, composite maps, and bytes that are accounted for.

use limpid_autograd::{Degree, Grading, Matrix, Paths, Route, Spectrum, Tape, Var};
use limpid_nn::residual::{
    Coefficient, Coefficients, Connection, MixStart, Residual, Start, Variant, VariantConfig,
};
use limpid_nn::{Activation, Init, Mlp, MlpConfig, Module, Parameters};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use crate::blocks::{normal, values};

const WIDTH: usize = 4;
const DEPTH: usize = 20;
const BLOCKS: usize = DEPTH - 2;
const SAMPLES: usize = 2;
const STREAMS: usize = 3;

fn config(activation: Activation) -> MlpConfig {
    MlpConfig { width: WIDTH, depth: DEPTH, activation, ..MlpConfig::default() }
}

/// Every weight away from where it starts, learned coefficients with the rest.
fn network(variant: Variant, activation: Activation) -> Mlp {
    let start = Start { mix: MixStart::IdentityLogits, alpha: 1.0, ..Start::default() };
    let settings = VariantConfig { streams: STREAMS, drop: 0.5, start, ..VariantConfig::default() };
    let init = Init::new(3).with_dtype(DType::F64);
    let mut model = Mlp::of_variant(&init, config(activation), variant, &settings).unwrap();
    model.visit_mut(&mut |parameter| {
        let (shape, key) = (parameter.value().shape().to_vec(), Key::new(1).fold_str(parameter.path()));
        let start = parameter.value().to_vec::<f64>().unwrap();
        let moves = normal(&shape, 0.4, key).to_vec::<f64>().unwrap();
        let moved = start.iter().zip(moves).map(|(start, by)| start + by).collect();
        parameter.set_value(Tensor::from_vec(moved, &shape[..]));
    });
    model
}

/// A network that has run.
struct Run<'t> {
    /// The state in front of the first block and behind each.
    states: Vec<Var<'t>>,
    loss: Var<'t>,
}

/// The scope of each use of a block.
fn places(variant: Variant) -> Vec<String> {
    let place = |i: usize| match variant {
        Variant::Euler => format!("step.{}/layers.1", i - 1),
        _ => format!("layers.{i}"),
    };
    (1..=BLOCKS).map(place).collect()
}

fn is_within(scope: &str, place: &str) -> bool {
    scope.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn run<'t>(tape: &'t Tape, model: &Mlp, variant: Variant) -> Run<'t> {
    let x = tape.constant(&normal(&[SAMPLES, 2], 1.0, Key::new(7)));
    let y = model.forward(x);
    let scopes: Vec<String> = (0..tape.len()).map(|i| tape.at(i).site().scope).collect();
    let result_of = |place: &str| {
        tape.at(scopes.iter().rposition(|scope| is_within(scope, place)).expect("each place records"))
    };
    let places = places(variant);
    let states = std::iter::once("layers.0").chain(places.iter().map(String::as_str)).map(result_of);
    Run { states: states.collect(), loss: tape.scope("loss", || (y.sin() * y).mean(&[])) }
}

fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |m: f64, v| if v.is_nan() { v } else { m.max(v.abs()) })
}

fn off(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    largest(a.iter().zip(b).map(|(a, b)| a - b))
}

#[test]
fn at_every_fan_in_the_addends_are_the_gradient() {
    for variant in Variant::ALL {
        let (tape, model) = (Tape::new(), network(variant, Activation::Tanh));
        let run = run(&tape, &model, variant);
        let plain = tape.backward(run.loss).unwrap();
        let (gradients, ledger) = tape.backward_with_ledger(run.loss).unwrap();
        for parameter in model.parameters() {
            let of = |g: &limpid_autograd::Gradients| {
                g.of_parameter(parameter.id()).map(|g| g.to_vec::<f64>().unwrap())
            };
            assert_eq!(of(&gradients), of(&plain), "{variant}: keeping books changes {}", parameter.path());
        }
        for fan_in in &ledger.fan_ins {
            let sizes: f64 = fan_in.addends.iter().map(|addend| addend.part.norm).sum();
            assert!(fan_in.rounding <= 1e-12 * sizes, "{variant}: {fan_in}");
            if fan_in.norm == 0.0 {
                assert!(
                    fan_in.addends.iter().all(|addend| addend.part.share.is_none()),
                    "{variant}: {fan_in}"
                );
                continue;
            }
            let slack = 1e-12 * sizes / fan_in.norm;
            let shares: f64 = fan_in.addends.iter().map(|addend| addend.part.share.unwrap()).sum();
            let by_route: f64 = fan_in.routes.iter().map(|(_, part)| part.share.unwrap()).sum();
            assert!((shares - 1.0).abs() <= slack, "{variant}: {shares} {fan_in}");
            assert!((by_route - 1.0).abs() <= slack, "{variant}: {by_route} {fan_in}");
        }
        // The state in front of each block is one of them, unless nothing passes the branch by.
        for (state, place) in run.states.iter().zip(places(variant)) {
            let fan_in = ledger.fan_in(*state);
            assert_eq!(fan_in.is_some(), variant != Variant::Plain, "{variant}");
            if let Some(fan_in) = fan_in {
                assert!(fan_in.is_join() && is_within(&fan_in.scope, &place), "{variant}: {fan_in}");
                assert!(fan_in.by(Route::Skip).is_some(), "{variant}: {fan_in}");
            }
        }
    }
}

/// Of coefficients with the same degree of one kind, summed over the other.
fn summed(spectrum: &Spectrum, same: impl Fn(&limpid_autograd::Term) -> bool) -> Option<Vec<f64>> {
    let terms = spectrum.terms.iter().filter(|term| same(term)).map(|t| t.gradient.to_f64_vec().unwrap());
    terms.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect())
}

#[test]
fn the_coefficients_of_every_spectrum_sum_to_the_gradient() {
    for variant in Variant::ALL {
        let (tape, model) = (Tape::new(), network(variant, Activation::Tanh));
        let run = run(&tape, &model, variant);
        let mut wanted = vec![run.states[0], run.states[BLOCKS / 2], run.states[BLOCKS]];
        // In front of the first block streams are copies: a read before a norm, and a mix whose rows sum to 1, have a
        // gradient there that is 0 but for ε and rounding, whatever the paths.
        let blind = ["read", "dynamic.read", "pre.", "res.", "query"];
        let blind = |path: &str| {
            path.strip_prefix("layers.1.").is_some_and(|rest| blind.iter().any(|name| rest.starts_with(name)))
        };
        let seen = model.parameters().into_iter().filter(|parameter| !blind(parameter.path()));
        wanted.extend(seen.map(|parameter| parameter.on(&tape)));
        let one = tape.constant(&Tensor::scalar(1.0f64));
        let gradients: Vec<Option<Vec<f64>>> =
            tape.vjp(run.loss, one, &wanted).unwrap().into_iter().map(|g| g.map(values)).collect();
        let spectra = |grading| tape.spectrum(run.loss, &wanted, grading).unwrap();
        // Nothing is capped: (18 + 1)² coefficients of a state of 2·3·4 numbers are small.
        let [branches, controls, both] = [Grading::BRANCHES, Grading::CONTROLS, Grading::BOTH].map(spectra);
        for (i, gradient) in gradients.iter().enumerate() {
            let what = format!("{variant}, value {i}");
            for spectrum in [&branches[i], &controls[i], &both[i]] {
                let Some(gradient) = gradient else {
                    assert!(spectrum.terms.is_empty(), "{what}");
                    continue;
                };
                let sizes: f64 = spectrum.terms.iter().map(|term| term.part.norm).sum();
                assert!(off(&spectrum.sum().unwrap(), gradient) <= 1e-12 * sizes, "{what}\n{spectrum}");
            }
            // Both at once, summed over one of them, are the spectrum of the other.
            let sizes: f64 = both[i].terms.iter().map(|term| term.part.norm).sum();
            for term in &branches[i].terms {
                let sum = summed(&both[i], |fine| fine.branches == term.branches).unwrap();
                assert!(off(&sum, &term.gradient.to_f64_vec().unwrap()) <= 1e-12 * sizes, "{what}");
            }
            for term in &controls[i].terms {
                let sum = summed(&both[i], |fine| fine.controls == term.controls).unwrap();
                assert!(off(&sum, &term.gradient.to_f64_vec().unwrap()) <= 1e-12 * sizes, "{what}");
            }
        }
        // From the first state, paths cross no branch to all of them, and all of them where there is no other way.
        let degrees: Vec<Degree> = branches[0].terms.iter().map(|term| term.branches).collect();
        let fewest = if variant == Variant::Plain { BLOCKS } else { 0 };
        assert_eq!(degrees, (fewest..=BLOCKS).map(Degree::Exactly).collect::<Vec<_>>(), "{variant}");
    }
}

#[test]
fn a_cap_gathers_what_is_above_it() {
    for variant in [Variant::Gated, Variant::HcDynamic, Variant::Mhc] {
        let (tape, model) = (Tape::new(), network(variant, Activation::Tanh));
        let run = run(&tape, &model, variant);
        let of = |grading| tape.spectrum(run.loss, &run.states[..1], grading).unwrap().swap_remove(0);
        let (whole, capped) = (of(Grading::BOTH), of(Grading::BOTH.branches_up_to(4).controls_up_to(2)));
        assert!(capped.terms.len() <= 6 * 4 && whole.terms.len() > capped.terms.len());
        let sizes: f64 = whole.terms.iter().map(|term| term.part.norm).sum();
        assert!(off(&capped.sum().unwrap(), &whole.sum().unwrap()) <= 1e-12 * sizes, "{variant}");
        let bucket = |degree: Degree, cap| match degree {
            Degree::Exactly(k) if k > cap => Degree::MoreThan(cap),
            other => other,
        };
        for term in &capped.terms {
            let sum = summed(&whole, |fine| {
                (bucket(fine.branches, 4), bucket(fine.controls, 2)) == (term.branches, term.controls)
            });
            assert!(off(&sum.unwrap(), &term.gradient.to_f64_vec().unwrap()) <= 1e-12 * sizes, "{variant}");
        }
    }
}

/// `C(n, k)`.
fn binomial(n: usize, k: usize) -> f64 {
    (0..k).fold(1.0, |c, i| c * (n - i) as f64 / (i + 1) as f64)
}

/// `gᵀ·W` for g `[samples, C]`.
fn rows_times(g: &[f64], w: &[f64]) -> Vec<f64> {
    let row = |g: &[f64]| -> Vec<f64> {
        (0..WIDTH).map(|j| (0..WIDTH).map(|i| g[i] * w[i * WIDTH + j]).sum()).collect()
    };
    g.chunks(WIDTH).flat_map(row).collect()
}

/// With linear branches x' = x + W·x + c the gradient is `(1 + Wᵀ)¹⁸·ḡ`, whose terms a spectrum tells apart.
#[test]
fn linear_branches_have_the_binomial_expansion() {
    for (variant, step) in [(Variant::Residual, 1.0), (Variant::Euler, 1.0 / BLOCKS as f64)] {
        let mut model = network(variant, Activation::Identity);
        // The same weight in every block, as Euler's are anyway.
        let w = normal(&[WIDTH, WIDTH], 0.5, Key::new(11));
        model.visit_mut(&mut |parameter| {
            if parameter.value().shape()[..] == [WIDTH, WIDTH] {
                parameter.set_value(w.clone());
            }
        });
        let tape = Tape::new();
        let run = run(&tape, &model, variant);
        let (first, last) = (run.states[0], run.states[BLOCKS]);
        let above = tape.vjp(run.loss, tape.constant(&Tensor::scalar(1.0f64)), &[last]).unwrap();
        let spectrum = tape.spectrum(run.loss, &[first], Grading::BRANCHES).unwrap().swap_remove(0);
        let w = w.to_vec::<f64>().unwrap();
        let absolute: Vec<f64> = w.iter().map(|w| w.abs()).collect();
        let mut power = values(above[0].unwrap());
        let mut size: Vec<f64> = power.iter().map(|g| g.abs()).collect();
        for k in 0..=BLOCKS {
            let weight = binomial(BLOCKS, k) * step.powi(k as i32);
            let expected: Vec<f64> = power.iter().map(|p| weight * p).collect();
            let found =
                spectrum.term(Degree::Exactly(k), Degree::Any).unwrap().gradient.to_f64_vec().unwrap();
            let slack = 1e-13 * weight * largest(size.iter().copied());
            assert!(off(&found, &expected) <= slack, "{variant}, {k}: {found:?} for {expected:?}");
            (power, size) = (rows_times(&power, &w), rows_times(&size, &absolute));
        }
    }
}

/// With a weight of its own in each block, the coefficient of k sums the products of all k of them, in their order.
#[test]
fn different_linear_branches_have_the_elementary_symmetric_expansion() {
    let model = network(Variant::Residual, Activation::Identity);
    let tape = Tape::new();
    let run = run(&tape, &model, Variant::Residual);
    let above = tape.vjp(run.loss, tape.constant(&Tensor::scalar(1.0f64)), &run.states[BLOCKS..]).unwrap();
    let spectrum = tape.spectrum(run.loss, &run.states[..1], Grading::BRANCHES).unwrap().swap_remove(0);
    let weight = |i: usize| model.layer(i).weight.value().to_vec::<f64>().unwrap();
    // e[k] of the blocks so far, and the same of absolute values.
    let first = values(above[0].unwrap());
    let mut e = vec![vec![0.0; first.len()]; BLOCKS + 1];
    let mut sizes = e.clone();
    (e[0], sizes[0]) = (first.clone(), first.iter().map(|g| g.abs()).collect());
    for block in (1..=BLOCKS).rev() {
        let w = weight(block);
        let absolute: Vec<f64> = w.iter().map(|w| w.abs()).collect();
        for k in (1..=BLOCKS).rev() {
            for (e, w) in [(&mut e, &w), (&mut sizes, &absolute)] {
                let more = rows_times(&e[k - 1], w);
                e[k].iter_mut().zip(more).for_each(|(e, more)| *e += more);
            }
        }
    }
    for k in 0..=BLOCKS {
        let found = spectrum.term(Degree::Exactly(k), Degree::Any).unwrap().gradient.to_f64_vec().unwrap();
        assert!(
            off(&found, &e[k]) <= 1e-13 * largest(sizes[k].iter().copied()),
            "{k}: {found:?} for {:?}",
            e[k]
        );
    }
}

fn detached(c: Coefficient<'_>) -> Coefficient<'_> {
    match c {
        Coefficient::Constant(c) => Coefficient::Constant(c),
        Coefficient::Value(v) => Coefficient::Value(v.detach()),
        Coefficient::Streams(v) => Coefficient::Streams(v.detach()),
    }
}

/// What is left of a network when branches and coefficients stay what they are, however the stream changes: its last
/// state, and for each sample the derivative of that by the first, by forward mode.
fn frozen(model: &Mlp, variant: Variant, first: &Tensor) -> (Vec<f64>, Vec<Matrix>) {
    let tape = Tape::new();
    let start = tape.variable(first);
    let mut x = start;
    for (i, place) in places(variant).iter().enumerate() {
        let Residual { connection, branch } = &model.blocks()[i % model.blocks().len()];
        // A random draw is a function of its scope: the same ones as in the network.
        x = tape.scope(place, || {
            let seen = x.detach();
            let by = tape.scope("coefficients", || connection.coefficients(seen));
            let output = tape.scope("branch", || branch.forward(connection.read(seen, by.read)));
            let by = Coefficients { read: by.read, mix: detached(by.mix), write: detached(by.write) };
            connection.write(x, output.detach(), &by)
        });
    }
    let (rows, columns) = (x.shape().elements() / SAMPLES, first.elements() / SAMPLES);
    let mut maps = vec![vec![0.0; rows * columns]; SAMPLES];
    for column in 0..columns {
        let unit = (0..SAMPLES * columns).map(|at| f64::from(u8::from(at % columns == column))).collect();
        let unit = tape.constant(&Tensor::from_vec(unit, first.shape()));
        for (at, value) in values(tape.jvp(x, &[(start, unit)]).unwrap()).into_iter().enumerate() {
            maps[at / rows][at % rows * columns + column] = value;
        }
    }
    (values(x), maps.into_iter().map(|map| Matrix::new(rows, columns, map)).collect())
}

/// A for one sample, as a matrix of all streams and channels.
fn mix(c: Coefficient<'_>, sample: usize, n: usize) -> Vec<f64> {
    let size = n * WIDTH;
    // Of the element in stream i and channel c, and stream j and channel d.
    let dense = |value: &dyn Fn(usize, usize, usize) -> f64| {
        let at = |k: usize| ((k / size / WIDTH, k / size % WIDTH), (k % size / WIDTH, k % WIDTH));
        (0..size * size)
            .map(|k| {
                let ((i, c), (j, d)) = at(k);
                if c == d { value(i, j, c) } else { 0.0 }
            })
            .collect()
    };
    let diagonal = |i: usize, j: usize, value: f64| if i == j { value } else { 0.0 };
    match c {
        Coefficient::Constant(v) => dense(&|i, j, _| diagonal(i, j, v)),
        Coefficient::Value(v) => {
            let v = values(v.expand([SAMPLES, WIDTH]));
            dense(&|i, j, c| diagonal(i, j, v[sample * WIDTH + c]))
        }
        Coefficient::Streams(v) => {
            let v = values(v.expand([SAMPLES, n, n]));
            dense(&|i, j, _| v[(sample * n + i) * n + j])
        }
    }
}

fn product(size: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
    (0..size * size)
        .map(|k| (0..size).map(|m| a[k / size * size + m] * b[m * size + k % size]).sum())
        .collect()
}

#[test]
fn the_composite_map_is_what_is_left_when_branches_and_coefficients_are_frozen() {
    for variant in Variant::ALL {
        let (tape, model) = (Tape::new(), network(variant, Activation::Tanh));
        let run = run(&tape, &model, variant);
        let (first, last) = (run.states[0], run.states[BLOCKS]);
        let maps = tape.sample_jacobians(last, first, 1, Paths::Direct).unwrap();
        let (state, expected) = frozen(&model, variant, &first.value().unwrap());
        assert_eq!(values(last), state, "{variant}");
        for (map, expected) in maps.iter().zip(&expected) {
            let scale = largest(expected.values().iter().copied());
            assert!(off(map.values(), expected.values()) <= 1e-12 * scale, "{variant}\n{map}\n{expected}");
        }
        // It is the coefficient of degree 0 of the spectrum, to the bit.
        let (height, width) = (maps[0].rows(), maps[0].columns());
        for row in 0..height {
            let unit = (0..SAMPLES * height).map(|at| f64::from(u8::from(at % height == row))).collect();
            let unit = Tensor::from_vec(unit, last.shape());
            let lowest = Grading::BOTH.branches_up_to(0).controls_up_to(0);
            let spectrum = &tape.spectrum_of_vjp(last, &unit, &[first], lowest).unwrap()[0];
            let direct = spectrum.term(Degree::Exactly(0), Degree::Exactly(0));
            let direct = direct.map_or(vec![0.0; SAMPLES * width], |t| t.gradient.to_f64_vec().unwrap());
            for (sample, map) in maps.iter().enumerate() {
                let row: Vec<f64> = (0..width).map(|column| map.at(row, column)).collect();
                assert_eq!(direct[sample * width..][..width], row, "{variant}");
            }
        }
    }
}

#[test]
fn of_an_algebraic_variant_it_is_the_product_of_the_mixes() {
    for variant in Variant::ALL.into_iter().filter(|variant| variant.is_algebraic()) {
        let (tape, model) = (Tape::new(), network(variant, Activation::Tanh));
        let run = run(&tape, &model, variant);
        let n = if variant.has_streams() { STREAMS } else { 1 };
        let size = n * WIDTH;
        let identity = mix(Coefficient::Constant(1.0), 0, n);
        let mut expected = vec![identity.clone(); SAMPLES];
        let mut absolute = expected.clone();
        for (i, state) in run.states[..BLOCKS].iter().enumerate() {
            let block = &model.blocks()[i % model.blocks().len()];
            let by = block.connection.coefficients(*state);
            for sample in 0..SAMPLES {
                let a = mix(by.mix, sample, n);
                let size_of_a: Vec<f64> = a.iter().map(|a| a.abs()).collect();
                expected[sample] = product(size, &a, &expected[sample]);
                absolute[sample] = product(size, &size_of_a, &absolute[sample]);
            }
        }
        let (first, last) = (run.states[0], run.states[BLOCKS]);
        let maps = tape.sample_jacobians(last, first, 1, Paths::Direct).unwrap();
        let streams = tape.stream_map(last, first, n).unwrap();
        for (sample, map) in maps.iter().enumerate() {
            let slack = 1e-13 * largest(absolute[sample].iter().copied());
            assert!(off(map.values(), &expected[sample]) <= slack, "{variant}\n{map}");
            // The map between streams is the mean over channels.
            for (k, found) in streams.samples[sample].values().iter().enumerate() {
                let (i, j) = (k / n, k % n);
                let channels = (0..WIDTH).map(|c| map.at(i * WIDTH + c, j * WIDTH + c));
                assert!((found - channels.sum::<f64>() / WIDTH as f64).abs() <= slack, "{variant}");
            }
            // Rows that sum to 1, and no negative element: nothing grows, and the mean of the streams stays.
            if matches!(variant, Variant::Mhc | Variant::MhcLite) {
                let map = &streams.samples[sample];
                let moduli = map.eigenvalue_moduli();
                assert!((map.row_gain() - 1.0).abs() < 1e-13, "{variant}: {}", map.row_gain());
                assert!((moduli[0] - 1.0).abs() < 1e-12 && moduli[1] < 1.0, "{variant}: {moduli:?}");
            }
        }
        // Only a gate differs from channel to channel.
        let uneven = streams.spread > 1e-12 * largest(absolute.concat());
        assert_eq!(uneven, variant == Variant::Gated, "{variant}: {}", streams.spread);
    }
}

/// By how many bytes a block holds more than the one before: attention holds a row more, and three numbers made of it.
fn more_each(variant: Variant) -> usize {
    if variant == Variant::AttnRes { SAMPLES * (WIDTH + 3) * 8 } else { 0 }
}

#[test]
fn every_byte_that_is_kept_belongs_to_a_scope() {
    for variant in Variant::ALL {
        let (tape, model) = (Tape::new(), network(variant, Activation::Tanh));
        run(&tape, &model, variant);
        let (memory, by_scope) = (tape.memory(), tape.memory_by_scope());
        let total: usize = by_scope.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(total, memory.needed + memory.other, "{variant}");
        assert!(by_scope.iter().all(|(_, bytes)| *bytes > 0));
        let names: std::collections::BTreeSet<&String> = by_scope.iter().map(|(scope, _)| scope).collect();
        assert_eq!(names.len(), by_scope.len(), "{variant}: each scope once");
        let block = |place: &String| -> usize {
            by_scope.iter().filter(|(scope, _)| is_within(scope, place)).map(|(_, bytes)| bytes).sum()
        };
        let blocks: Vec<usize> = places(variant).iter().map(block).collect();
        // What differs from block to block is only how much attention has to look back on. (Copied streams are a view: what
        // makes memory of them belongs to the first block.)
        let more: Vec<usize> = blocks[1..].windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(more.iter().all(|&more| more == more_each(variant)), "{variant}: {blocks:?}");
        // In states of one stream: x' and, of the branch, tanh's result; a gate besides, and 1 less it.
        let kept = match variant {
            Variant::Plain => 1,
            Variant::Residual | Variant::Scaled | Variant::ReZero | Variant::LayerScale => 2,
            Variant::PreNorm => 3,
            Variant::Gated => 4,
            _ => continue,
        };
        assert_eq!(blocks, vec![kept * SAMPLES * WIDTH * 8; BLOCKS], "{variant}");
    }
}
