//! Every word for states against its definition in f64, and the same bits for any vectors and threads.

use super::super::tests::numbers;
use super::*;
use crate::cpu::fixture::naive;
use crate::cpu::simd::tests::at_every_level;
use crate::{DType, Fused};

/// Leading axes, n and C: whole runs and others, groups of tokens and others, more than one block of tokens.
const SIZES: [(&[usize], usize, usize); 8] = [
    (&[], 2, 3),
    (&[1], 1, 1),
    (&[3, 3], 4, 16),
    (&[17], 4, 20),
    (&[9], 3, 33),
    (&[300], 2, 5),
    (&[0], 4, 8),
    (&[2], 8, 40),
];
const EPS: f64 = 1e-3;

fn shape(lead: &[usize], own: &[usize]) -> Shape {
    lead.iter().chain(own).copied().collect()
}

/// The operands and results of every word, and what the definitions make of the operands in f64.
struct Case {
    word: Fused,
    x: Vec<Tensor>,
    expected: Vec<Vec<f64>>,
}

/// Σ over `terms`, for each of `count`.
fn sums(count: usize, terms: usize, term: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..count).map(|i| (0..terms).map(|j| term(i, j)).sum()).collect()
}

fn cases(lead: &[usize], n: usize, c: usize, dtype: DType) -> Vec<Case> {
    let wide = if dtype == DType::BF16 { DType::F32 } else { dtype };
    let tokens: usize = lead.iter().product();
    let state = |seed| numbers(shape(lead, &[n, c]), dtype, seed);
    let one = |seed| numbers(shape(lead, &[c]), dtype, seed);
    // A view whose rows do not follow each other.
    let coefficient = |seed| numbers(shape(lead, &[2 * n]), wide, seed).slice(lead.len(), 0, 2 * n, 2);
    let (x, g, f, h) = (state(1), state(2), one(3), one(4));
    let (a, b, mix) = (coefficient(5), coefficient(6), numbers(shape(lead, &[n, n]), wide, 7));
    let [xs, gs, fs, hs, of_a, of_b, of_mix] = [&x, &g, &f, &h, &a, &b, &mix].map(naive);
    let channel = |at: usize| (at / c, at % c);

    let read = sums(tokens * c, n, |at, i| {
        let (t, k) = channel(at);
        of_a[t * n + i] * xs[(t * n + i) * c + k]
    });
    let read_backward = sums(tokens * n, c, |at, k| xs[at * c + k] * hs[at / n * c + k]);
    let written = sums(tokens * n * c, n + 1, |at, j| {
        let (row, k) = channel(at);
        let t = row / n;
        if j < n { of_mix[row * n + j] * xs[(t * n + j) * c + k] } else { of_b[row] * fs[t * c + k] }
    });
    let of_f = sums(tokens * c, n, |at, i| {
        let (t, k) = channel(at);
        of_b[t * n + i] * gs[(t * n + i) * c + k]
    });
    let dmix = sums(tokens * n * n, c, |at, k| {
        let (row, j) = (at / n, at % n);
        gs[row * c + k] * xs[(row / n * n + j) * c + k]
    });
    let db = sums(tokens * n, c, |row, k| gs[row * c + k] * fs[row / n * c + k]);
    let handed = |written: bool, read: bool| {
        sums(tokens * n * c, n + 1, |at, j| {
            let (row, k) = channel(at);
            let (t, i) = (row / n, row % n);
            match j < n {
                true if written => of_mix[(t * n + j) * n + i] * gs[(t * n + j) * c + k],
                false if read => of_a[row] * hs[t * c + k],
                _ => 0.0,
            }
        })
    };
    let mut cases = vec![
        Case { word: Fused::StreamRead, x: vec![x.clone(), a.clone()], expected: vec![read] },
        Case {
            word: Fused::StreamReadBackward,
            x: vec![x.clone(), h.clone()],
            expected: vec![read_backward],
        },
        Case {
            word: Fused::StreamWrite,
            x: vec![x.clone(), f.clone(), mix.clone(), b.clone()],
            expected: vec![written],
        },
        Case {
            word: Fused::StreamWriteBackward,
            x: vec![x.clone(), f, b, g.clone()],
            expected: vec![of_f, dmix, db],
        },
    ];
    for (is_written, is_read) in [(true, false), (false, true), (true, true), (false, false)] {
        let which = Handed { written: is_written, read: is_read };
        let mut others = Vec::new();
        others.extend(if is_written { vec![g.clone(), mix.clone()] } else { vec![] });
        others.extend(if is_read { vec![h.clone(), a.clone()] } else { vec![] });
        let shares = handed(is_written, is_read);
        if !others.is_empty() {
            let (x, expected) = (others.clone(), vec![shares.clone()]);
            cases.push(Case { word: Fused::StreamCotangent(which), x, expected });
        }
        cases.extend(projections(&x, lead, [n, c], wide, which, &others, &shares));
    }
    cases
}

/// What is projected onto one and three φ, and what flows back.
fn projections(
    x: &Tensor,
    lead: &[usize],
    [n, c]: [usize; 2],
    wide: DType,
    which: Handed,
    others: &[Tensor],
    shares: &[f64],
) -> Vec<Case> {
    let (tokens, k) = (lead.iter().product::<usize>(), n * c);
    let xs = naive(x);
    let mut cases = Vec::new();
    for widths in [&[0usize][..], &[1], &[n, n, n * n], &[17, 0, 30]] {
        let m: usize = widths.iter().sum();
        // The second is transposed in memory.
        let phi = |(i, &width): (usize, &usize)| match i {
            1 => numbers([width, k], wide, 20).transpose(0, 1),
            _ => numbers([k, width], wide, 20 + i),
        };
        let phi: Vec<Tensor> = widths.iter().enumerate().map(phi).collect();
        let columns: Vec<Vec<f64>> = phi
            .iter()
            .zip(widths)
            .flat_map(|(phi, &width)| {
                let phi = naive(phi);
                (0..width).map(move |j| (0..k).map(|s| phi[s * width + j]).collect())
            })
            .collect();
        let v = |t: usize, s: usize| xs[t * k + s];
        let r: Vec<f64> =
            sums(tokens, k, |t, s| v(t, s) * v(t, s) / k as f64).iter().map(|m| (m + EPS).sqrt()).collect();
        let y: Vec<f64> = (0..tokens * (m + 1))
            .map(|at| match (at / (m + 1), at % (m + 1)) {
                (t, j) if j == m => r[t],
                (t, j) => (0..k).map(|s| v(t, s) * columns[j][s]).sum::<f64>() / r[t],
            })
            .collect();
        let operands: Vec<Tensor> = [x.clone()].into_iter().chain(phi.clone()).collect();
        if !which.written && !which.read {
            let (word, x) = (Fused::StreamProject { eps: EPS }, operands.clone());
            cases.push(Case { word, x, expected: vec![y.clone()] });
        }
        let dy = numbers(shape(lead, &[m + 1]), wide, 30);
        let dys = naive(&dy);
        let given = Tensor::from_f64(&y, shape(lead, &[m + 1]), wide);
        let q = |t: usize, j: usize| dys[t * (m + 1) + j] / r[t];
        let along = sums(tokens, m, |t, j| dys[t * (m + 1) + j] * y[t * (m + 1) + j]);
        let dx = (0..tokens * k)
            .map(|at| {
                let (t, s) = (at / k, at % k);
                let scale = (dys[t * (m + 1) + m] - along[t] / r[t]) / (k as f64 * r[t]);
                shares[at] + v(t, s) * scale + (0..m).map(|j| columns[j][s] * q(t, j)).sum::<f64>()
            })
            .collect();
        let mut expected = vec![dx];
        let mut from = 0;
        for &width in widths {
            expected.push(sums(k * width, tokens, |at, t| v(t, at / width) * q(t, from + at % width)));
            from += width;
        }
        let x = operands.into_iter().chain([given, dy]).chain(others.iter().cloned()).collect();
        cases.push(Case { word: Fused::StreamProjectBackward(which), x, expected });
    }
    cases
}

#[test]
fn every_word_is_its_definition() {
    for (lead, n, c) in SIZES {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            for Case { word, x, expected } in cases(lead, n, c, dtype) {
                let operands: Vec<&Tensor> = x.iter().collect();
                let metas: Vec<_> = x.iter().map(Tensor::meta).collect();
                let results = Tensor::fused_all(word, &operands).unwrap().unwrap();
                let what = format!("{word:?}, {dtype}, {lead:?}, {n} streams of {c}");
                assert_eq!(results.len(), expected.len(), "{what}");
                let promised = word.results(&metas.iter().collect::<Vec<_>>());
                for ((found, expected), promised) in results.iter().zip(&expected).zip(promised) {
                    assert_eq!(found.meta(), promised, "{what}");
                    // Sums cancel: an error counts against the largest of their kind.
                    let scale = expected.iter().fold(1.0f64, |scale, v| scale.max(v.abs()));
                    let tolerance = match found.dtype() {
                        DType::F64 => 1e-13,
                        DType::F32 => 2e-5,
                        _ => 1e-2,
                    };
                    for (i, (found, expected)) in naive(found).iter().zip(expected).enumerate() {
                        let near = (found - expected).abs() <= tolerance * scale;
                        assert!(near, "{what}: element {i} is {found}, expected {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn threads_and_vector_widths_do_not_change_a_bit() {
    let bits = |word: Fused, x: &[&Tensor]| -> Vec<Vec<u8>> {
        let results = Tensor::fused_all(word, x).unwrap().unwrap();
        results.iter().map(|y| y.storage().host().unwrap().to_vec()).collect()
    };
    for (lead, n, c) in [(300, 4, 70), (7, 3, 21)] {
        for dtype in [DType::F32, DType::F64] {
            for Case { word, x, .. } in cases(&[lead], n, c, dtype) {
                let x: Vec<&Tensor> = x.iter().collect();
                let pooled = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| bits(word, &x))
                };
                let alone = pooled(1);
                for threads in [2, 3] {
                    assert!(alone == pooled(threads), "{word:?}: {threads} threads");
                }
                // Few enough elements are computed by the thread that asks, which is the one a level is forced for.
                if lead == 7 {
                    for (level, found) in at_every_level(|| bits(word, &x)) {
                        assert!(alone == found, "{word:?}: {level:?}");
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "streams: φ must be [6, m], found [5, 2]")]
fn a_projection_of_another_size_panics() {
    let (x, phi) = (numbers([4, 2, 3], DType::F32, 1), numbers([5, 2], DType::F32, 2));
    let _ = Tensor::fused(Fused::StreamProject { eps: 0.0 }, &[&x, &phi]);
}

#[test]
#[should_panic(expected = "streams: a has 2 elements for each of 4 tokens, found [4, 3]")]
fn a_coefficient_of_another_size_panics() {
    let (x, a) = (numbers([4, 2, 3], DType::F32, 1), numbers([4, 3], DType::F32, 2));
    let _ = Tensor::fused(Fused::StreamRead, &[&x, &a]);
}
