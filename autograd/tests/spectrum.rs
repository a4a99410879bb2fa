//! Gradients told apart by their paths, composite maps, and Jacobian spectra.

mod residual_programs;

use limpid_autograd::{Degree, Grading, Matrix, Method, Paths, Spectrum, Tape};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};
use residual_programs::{BATCH, CHANNELS, normal, residual};

type Outcome = Result<(), Box<dyn std::error::Error>>;
use Degree::{Any, Exactly, MoreThan};

fn scalar(v: f64) -> Tensor {
    Tensor::scalar(v)
}

fn coefficient(spectrum: &Spectrum, branches: Degree, controls: Degree) -> f64 {
    spectrum.term(branches, controls).map_or(0.0, |term| term.gradient.item().unwrap())
}

/// The coefficients sum to the gradient within 10⁻¹² of the sum of their norms.
fn expect_sum(spectrum: &Spectrum, gradient: &[f64]) {
    let sizes: f64 = spectrum.terms.iter().map(|term| term.part.norm).sum();
    for (sum, expected) in spectrum.sum().unwrap().iter().zip(gradient) {
        assert!((sum - expected).abs() <= 1e-12 * sizes, "{sum} is not {expected}\n{spectrum}");
    }
}

#[test]
fn three_linear_blocks_have_elementary_symmetric_coefficients() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&scalar(7.0));
    let w = [2.0, 3.0, 5.0].map(|w| tape.variable(&scalar(w)));
    let y = w.iter().fold(x, |x, &w| x.skip() + (w * x).branch());
    let spectra = tape.spectrum(y, &[x, w[0]], Grading::BRANCHES)?;
    let of = |s: usize| (0..4).map(|k| coefficient(&spectra[s], Exactly(k), Any)).collect::<Vec<_>>();
    // ∂y/∂x = (1 + 2)(1 + 3)(1 + 5): e₀ = 1, e₁ = 2+3+5, e₂ = 2·3+2·5+3·5, e₃ = 2·3·5.
    assert_eq!(of(0), [1.0, 10.0, 31.0, 30.0]);
    // ∂y/∂w₁ = x(1 + 3)(1 + 5), and every path crosses the first branch.
    assert_eq!(of(1), [0.0, 7.0, 7.0 * 8.0, 7.0 * 15.0]);
    assert!(spectra[1].term(Exactly(0), Any).is_none());
    assert_eq!(spectra[0].terms[1].part.share, Some(10.0 / 72.0));
    Ok(())
}

#[test]
fn a_coefficient_computed_from_the_stream_is_a_second_variable() -> Outcome {
    // x' = x + g·F with g = 3x and F = 5x at x = 2: 1 + z·3x·5 + w·5x·3.
    let tape = Tape::new();
    let x = tape.variable(&scalar(2.0));
    let y = x.skip() + (x * 3.0).control() * (x * 5.0).branch();
    let spectrum = &tape.spectrum(y, &[x], Grading::BOTH)?[0];
    let terms: Vec<(Degree, Degree, f64)> =
        spectrum.terms.iter().map(|t| (t.branches, t.controls, t.gradient.item().unwrap())).collect();
    assert_eq!(
        terms,
        [(Exactly(0), Exactly(0), 1.0), (Exactly(0), Exactly(1), 30.0), (Exactly(1), Exactly(0), 30.0)]
    );
    // Not counted, controls stand with what their paths cross of the other kind.
    let by_branches = &tape.spectrum(y, &[x], Grading::BRANCHES)?[0];
    assert_eq!(coefficient(by_branches, Exactly(0), Any), 31.0);
    let by_controls = &tape.spectrum(y, &[x], Grading::CONTROLS)?[0];
    assert_eq!(coefficient(by_controls, Any, Exactly(1)), 30.0);
    Ok(())
}

#[test]
fn a_read_by_a_coefficient_crosses_a_branch_and_a_control() -> Outcome {
    // x' = x + 2·(a·x) with a = 3x at x = 1: the read's own x by z, that in a by z·w.
    let tape = Tape::new();
    let x = tape.variable(&scalar(1.0));
    let y = x.skip() + (((x * 3.0).control() * x) * 2.0).branch();
    let spectrum = &tape.spectrum(y, &[x], Grading::BOTH)?[0];
    assert_eq!(coefficient(spectrum, Exactly(1), Exactly(0)), 6.0);
    assert_eq!(coefficient(spectrum, Exactly(1), Exactly(1)), 6.0);
    assert_eq!(spectrum.terms.len(), 3);
    Ok(())
}

#[test]
fn degrees_above_a_cap_share_one_coefficient() -> Outcome {
    let tape = Tape::new();
    let program = residual(&tape, 12, 5);
    let x = program.streams[0];
    let whole = &tape.spectrum(program.loss, &[x], Grading::BRANCHES)?[0];
    let capped = &tape.spectrum(program.loss, &[x], Grading::BRANCHES.branches_up_to(3))?[0];
    let above: Vec<f64> = whole.terms.iter().fold(vec![0.0; BATCH * CHANNELS], |sum, term| {
        let more = matches!(term.branches, Exactly(k) if k > 3);
        let values = term.gradient.to_f64_vec().unwrap();
        sum.iter().zip(values).map(|(s, v)| if more { s + v } else { *s }).collect()
    });
    let found = capped.term(MoreThan(3), Any).unwrap().gradient.to_f64_vec()?;
    let size = whole.terms.iter().map(|term| term.part.norm).sum::<f64>();
    assert!(found.iter().zip(&above).all(|(a, b)| (a - b).abs() <= 1e-13 * size));
    for k in 0..=3 {
        let of = |s: &Spectrum| s.term(Exactly(k), Any).map(|term| term.gradient.to_vec::<f64>().unwrap());
        assert_eq!(of(capped), of(whole), "degree {k}");
    }
    assert!(capped.terms.len() <= 5);
    // A cap of 0 tells only the identity path from the rest.
    let two = &tape.spectrum(program.loss, &[x], Grading::BOTH.branches_up_to(0).controls_up_to(0))?[0];
    assert!(two.terms.len() <= 4);
    expect_sum(two, &whole.sum()?);
    Ok(())
}

#[test]
fn coefficients_of_random_programs_sum_to_the_gradient() -> Outcome {
    for seed in 0..8 {
        let tape = Tape::new();
        let program = residual(&tape, 20, seed);
        let wanted = program.wanted();
        assert!(tape.memory().dropped_values > 0, "scopes drop values");
        let spectra = tape.spectrum(program.loss, &wanted, Grading::BRANCHES)?;
        let one = tape.constant(&scalar(1.0));
        let gradients = tape.vjp(program.loss, one, &wanted)?;
        for (spectrum, gradient) in spectra.iter().zip(gradients) {
            expect_sum(spectrum, &gradient.unwrap().value()?.to_vec::<f64>()?);
        }
        if seed < 3 {
            let both = &tape.spectrum(program.loss, &wanted[..1], Grading::BOTH)?[0];
            expect_sum(both, &spectra[0].sum()?);
            // Summed over controls, they are the coefficients by branches alone.
            for term in &spectra[0].terms {
                let sizes: f64 = both.terms.iter().map(|term| term.part.norm).sum();
                let mut sum = [0.0; BATCH * CHANNELS];
                for fine in both.terms.iter().filter(|fine| fine.branches == term.branches) {
                    sum.iter_mut().zip(fine.gradient.to_f64_vec()?).for_each(|(s, v)| *s += v);
                }
                let expected = term.gradient.to_f64_vec()?;
                assert!(sum.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-12 * sizes));
            }
        }
    }
    Ok(())
}

#[test]
fn a_recorded_gradient_has_a_spectrum() -> Outcome {
    for seed in 0..4 {
        let tape = Tape::new();
        let program = residual(&tape, 4, seed);
        let x = program.streams[0];
        let slope = tape.grad(program.loss, &[x])?[0];
        let penalty = (slope * slope).sum(&[]);
        let spectrum = &tape.spectrum(penalty, &[x], Grading::BOTH)?[0];
        expect_sum(spectrum, &tape.grad(penalty, &[x])?[0].value()?.to_vec::<f64>()?);
    }
    Ok(())
}

#[test]
fn what_is_not_reached_has_no_terms_and_the_result_itself_has_one() -> Outcome {
    let tape = Tape::new();
    let (x, z) = (tape.variable(&scalar(2.0)), tape.variable(&scalar(1.0)));
    let y = x.tanh();
    let spectra = tape.spectrum(y, &[z, y, x], Grading::BOTH)?;
    assert!(spectra[0].terms.is_empty());
    assert_eq!(spectra[0].sum()?, [0.0]);
    assert_eq!(coefficient(&spectra[1], Exactly(0), Exactly(0)), 1.0);
    assert!(spectra[2].to_string().lines().all(|line| line.chars().count() <= 80));
    Ok(())
}

#[test]
fn direct_paths_are_the_coefficient_of_degree_zero() -> Outcome {
    for seed in 0..6 {
        let tape = Tape::new();
        let program = residual(&tape, 6, seed);
        let (x, y) = (program.streams[1], program.streams[6]);
        let maps = tape.sample_jacobians(y, x, 1, Paths::Direct)?;
        for row in 0..CHANNELS {
            let mut unit = vec![0.0; BATCH * CHANNELS];
            (0..BATCH).for_each(|sample| unit[sample * CHANNELS + row] = 1.0);
            let unit = Tensor::from_f64(&unit, [BATCH, CHANNELS], DType::F64);
            let spectrum = &tape.spectrum_of_vjp(y, &unit, &[x], Grading::BOTH)?[0];
            let direct = spectrum.term(Exactly(0), Exactly(0));
            let expected =
                direct.map_or(vec![0.0; BATCH * CHANNELS], |term| term.gradient.to_f64_vec().unwrap());
            for (sample, map) in maps.iter().enumerate() {
                for column in 0..CHANNELS {
                    assert_eq!(map.at(row, column), expected[sample * CHANNELS + column], "seed {seed}");
                }
            }
        }
    }
    Ok(())
}

/// Rows of exp(logits) scaled to sum to 1.
fn stochastic(n: usize, key: Key) -> Vec<f64> {
    let mut values: Vec<f64> = (0..(n * n) as u64).map(|i| key.normal(i).exp()).collect();
    values.chunks_mut(n).for_each(|row| {
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    });
    values
}

#[test]
fn the_map_between_streams_is_the_product_of_the_mixing_matrices() -> Outcome {
    let (batch, n, channels, depth) = (2, 3, 5, 4);
    let tape = Tape::new();
    let mut x = tape.variable(&normal([batch, n, channels], Key::new(1)));
    let first = x;
    let mut products: Vec<Vec<f64>> = vec![(0..9).map(|i| f64::from(u8::from(i % 4 == 0))).collect(); batch];
    for layer in 0..depth {
        let mixes: Vec<Vec<f64>> =
            (0..batch as u64).map(|s| stochastic(n, Key::new(2).fold(layer).fold(s))).collect();
        let a = tape.variable(&Tensor::from_f64(&mixes.concat(), [batch, n, n], DType::F64));
        // A second way to the coefficients, which the map leaves out.
        let a = a + x.mean(&[1, 2]).reshape([batch, 1, 1]) * 0.0;
        x = a.control().matmul(x.skip()) + x.tanh().branch();
        for (product, mix) in products.iter_mut().zip(&mixes) {
            let element =
                |i: usize, j: usize| (0..n).map(|k| mix[i * n + k] * product[k * n + j]).sum::<f64>();
            *product = (0..n * n).map(|at| element(at / n, at % n)).collect();
        }
    }
    let map = tape.stream_map(x, first, n)?;
    assert!(map.spread < 1e-15);
    for (found, expected) in map.samples.iter().zip(&products) {
        for (a, b) in found.values().iter().zip(expected) {
            assert!((a - b).abs() < 1e-15, "{a} {b}");
        }
        assert!((found.row_gain() - 1.0).abs() < 1e-14);
    }
    Ok(())
}

#[test]
fn a_gain_of_one_does_not_see_that_the_streams_have_collapsed() -> Outcome {
    // The product of 60 doubly stochastic 4×4 matrices.
    let tape = Tape::new();
    let mut x = tape.variable(&normal([4, 2], Key::new(3)));
    let first = x;
    for layer in 0..60 {
        let mut a = stochastic(4, Key::new(4).fold(layer));
        for _ in 0..200 {
            for j in 0..4 {
                let sum: f64 = (0..4).map(|i| a[i * 4 + j]).sum();
                (0..4).for_each(|i| a[i * 4 + j] /= sum);
            }
            a.chunks_mut(4).for_each(|row| {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= sum);
            });
        }
        let a = tape.constant(&Tensor::from_f64(&a, [4, 4], DType::F64));
        x = a.control().matmul(x.skip()) + x.tanh().branch();
    }
    let map = &tape.stream_map(x, first, 4)?.samples[0];
    assert!((map.row_gain() - 1.0).abs() < 1e-12 && (map.column_gain() - 1.0).abs() < 1e-12);
    let sigma = map.singular_values();
    assert!((sigma[0] - 1.0).abs() < 1e-12 && sigma[1] < 1e-12, "{sigma:?}");
    // What the stream itself hands on are four copies of one.
    let handed_on = tape.constant(&Tensor::from_f64(map.values(), [4, 4], DType::F64)).matmul(first);
    let [cosine] = tape.stream_cosines(handed_on)?[..] else { panic!("one sample") };
    assert!((cosine.unwrap() - 1.0).abs() < 1e-12);
    Ok(())
}

#[test]
fn what_does_not_act_on_streams_alone_shows_in_the_spread() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&normal([2, 4], Key::new(5)));
    let f = x.tanh();
    let plain = x.skip() + f.branch();
    assert_eq!(tape.stream_map(plain, x, 1)?.spread, 0.0);
    assert_eq!(tape.stream_map(plain, x, 1)?.samples[1].values(), [1.0]);
    let g = x.sigmoid();
    let gated = (1.0 - g).control() * x.skip() + g.control() * f.branch();
    let normed = plain / ((plain * plain).mean(&[1]).unsqueeze(1)).sqrt();
    let between_samples = x.skip() - x.mean(&[0]).expand([2, 4]).skip() + f.branch();
    for (y, what) in [(gated, "a gate per channel"), (normed, "a norm"), (between_samples, "a batch mean")] {
        assert!(tape.stream_map(y, x, 1)?.spread > 1e-3, "{what}");
    }
    Ok(())
}

#[test]
fn jacobians_of_all_samples_at_once_are_those_of_each_alone() -> Outcome {
    let tape = Tape::new();
    let (w, v) = (normal([4, 3], Key::new(6)), normal([3, 5], Key::new(7)));
    let values = normal([6, 4], Key::new(8));
    let run = |values: &Tensor| {
        let x = tape.variable(values);
        (x, x.matmul(tape.constant(&w)).tanh().matmul(tape.constant(&v)))
    };
    let (x, y) = run(&values);
    let all = tape.sample_jacobians(y, x, 1, Paths::All)?;
    let spectrum = tape.jacobian_spectrum(y, x, 1)?;
    assert_eq!(spectrum.method, Method::Exact { vjps: 5 });
    for sample in 0..6 {
        let (x, y) = run(&values.slice(0, sample, sample + 1, 1));
        let alone = tape.jacobian(y, x)?.value()?.to_f64_vec()?;
        assert_eq!((all[sample].rows(), all[sample].columns()), (5, 4));
        for (a, b) in all[sample].values().iter().zip(&alone) {
            assert!((a - b).abs() < 1e-14);
        }
        // Rank 3: through three units.
        let sigma = &spectrum.samples[sample];
        assert_eq!(sigma.len(), 4);
        assert!(sigma[2] > 1e-6 && sigma[3] < 1e-14, "{sigma:?}");
    }
    Ok(())
}

#[test]
#[should_panic(expected = "depends on other samples; there is no Jacobian per sample")]
fn a_batch_statistic_has_no_jacobian_per_sample() {
    let tape = Tape::new();
    let x = tape.variable(&normal([8, 2], Key::new(9)));
    let _ = tape.jacobian_spectrum(x - x.mean(&[0]).expand([8, 2]), x, 1);
}

#[test]
fn power_iteration_finds_the_largest_and_says_that_it_was_that() -> Outcome {
    let n = 140;
    let tape = Tape::new();
    let w = normal([n, n], Key::new(10));
    let x = tape.variable(&normal([3, n], Key::new(11)));
    let nodes = tape.len() + 2;
    let y = x.matmul(tape.constant(&w)).tanh();
    let found = tape.jacobian_spectrum(y, x, 1)?;
    let Method::PowerIteration { rounds, residual } = found.method else { panic!("{:?}", found.method) };
    assert!(rounds > 3 && residual < 0.05, "{rounds} {residual}");
    assert_eq!(tape.len(), nodes + 1, "nothing is left on the tape");
    let slopes = y.value()?.to_f64_vec()?;
    let w = w.to_f64_vec()?;
    for (sample, sigma) in found.samples.iter().enumerate() {
        let slope = |j: usize| 1.0 - slopes[sample * n + j].powi(2);
        let values = (0..n * n).map(|at| slope(at / n) * w[at % n * n + at / n]).collect();
        let exact = Matrix::new(n, n, values).singular_values()[0];
        // σ² is approached from below, and the rounds end when a step changes it by less than 10⁻⁴.
        assert!(sigma[0] <= exact * (1.0 + 1e-12) && sigma[0] > 0.98 * exact, "{} {exact}", sigma[0]);
    }
    Ok(())
}

#[test]
fn no_dependence_is_a_jacobian_of_zeros() -> Outcome {
    let tape = Tape::new();
    let x = tape.variable(&normal([2, 200], Key::new(12)));
    let z = tape.variable(&normal([2, 200], Key::new(13)));
    assert_eq!(tape.jacobian_spectrum(z * 2.0, x, 1)?.samples, [[0.0], [0.0]]);
    let (x, z) = (x.slice(1, 0, 3, 1), z.slice(1, 0, 2, 1));
    assert_eq!(tape.jacobian_spectrum(z, x, 1)?.samples, [[0.0, 0.0], [0.0, 0.0]]);
    Ok(())
}

#[test]
fn without_values_there_is_nothing_to_take_apart() {
    let tape = Tape::dry();
    let x = tape.variable(&normal([2, 3], Key::new(14)));
    let y = x.skip() + x.tanh().branch();
    assert!(tape.spectrum(y.sum(&[]), &[x], Grading::BOTH).is_err());
    assert!(tape.stream_map(y, x, 1).is_err());
    assert!(tape.stream_cosines(y).is_err());
    assert!(tape.jacobian_spectrum(y, x, 1).is_err());
}

#[test]
#[should_panic(expected = "stream_map: [2, 3] is no state [.., 3, C] of 3 streams")]
fn a_state_has_its_streams() {
    let tape = Tape::new();
    let x = tape.variable(&normal([2, 3], Key::new(15)));
    let _ = tape.stream_map(x.tanh(), x, 3);
}

#[test]
#[should_panic(
    expected = "sample_jacobians: the first 1 axes must number the samples of both, found [4] and [2, 2]"
)]
fn samples_are_numbered_alike() {
    let tape = Tape::new();
    let x = tape.variable(&normal([2, 2], Key::new(16)));
    let _ = tape.sample_jacobians(x.reshape([4]), x, 1, Paths::All);
}
