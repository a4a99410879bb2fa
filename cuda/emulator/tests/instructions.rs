//! The bodies of ptx.cuh's instructions against plain loops.

mod launching;

use std::sync::Arc;

use launching::*;
use limpid_emulator::{Build, Options, Program, Shape};

const TEXT: &str = include_str!("kernels/instructions.cu");

fn programs() -> [Arc<Program>; 2] {
    [Build::Fast, Build::Checked].map(|build| program("instructions.cu", TEXT, build, &[]))
}

/// The nearest bf16, ties to even.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn from_bf16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// `n` random bf16s.
fn halves(n: usize, seed: u64) -> Vec<u16> {
    noise(n, seed).into_iter().map(to_bf16).collect()
}

/// Runs a kernel of one block that takes arrays `a`, `b` and fills `d`, in both builds and some orders.
fn check_product(
    name: &str,
    threads: u32,
    dynamic_shared: usize,
    a: &[u16],
    b: &[u16],
    expected: &[f64],
    tolerance: f64,
) {
    for program in programs() {
        for seed in 0..4 {
            let mut card = Card::new();
            let (pa, pb) = (card.upload("a", a), card.upload("b", b));
            let pd = card.empty::<f32>("d", expected.len());
            let shape = Shape { dynamic_shared, ..line(1, threads) };
            let arguments = [pa, pb, pd].map(argument);
            let report = card.launch(
                &kernel(&program, name),
                shape,
                &arguments,
                Options { seed, ..Options::default() },
            );
            assert_clean(&report, name);
            let found = card.download::<f32>(pd, expected.len());
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let error = (f64::from(*found) - expected).abs();
                assert!(error <= tolerance, "{name}: element {i} is {found}, expected {expected}");
            }
        }
    }
}

/// Σₖ a(i, k)·b(k, j), for i < m, j < n.
fn product(
    m: usize,
    n: usize,
    k: usize,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let element = |i: usize, j: usize| (0..k).map(|k| a(i, k) * b(k, j)).sum();
    (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn copies_fill_with_zeros() {
    for program in programs() {
        for valid in [16, 12, 4, 0] {
            let x = noise(128, 3);
            let mut card = Card::new();
            let (px, py) = (card.upload("x", &x), card.empty::<f32>("y", 160));
            let arguments = [argument(px), argument(py), argument(valid)];
            let report =
                card.launch(&kernel(&program, "copies"), line(1, 32), &arguments, Options::default());
            assert_clean(&report, "copies");
            let kept = |i: usize| if 4 * (i % 4) < valid as usize { x[i] } else { 0.0 };
            let expected: Vec<f32> =
                (0..128).map(|i| kept(127 - i)).chain((0..32).map(|i| x[31 - i])).collect();
            assert_eq!(card.download::<f32>(py, 160), expected);
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn matrices_are_spread_over_the_lanes() {
    for program in programs() {
        let x: Vec<u16> = (0..256).collect();
        let mut card = Card::new();
        let (px, py) = (card.upload("x", &x), card.empty::<u32>("y", 256));
        let report = card.launch(
            &kernel(&program, "matrices"),
            line(1, 32),
            &[px, py].map(argument),
            Options::default(),
        );
        assert_clean(&report, "matrices");
        let pair = |low: usize, high: usize| x[low] as u32 | (x[high] as u32) << 16;
        let plain = (0..128).map(|i| {
            let (lane, matrix) = (i / 4, i % 4);
            let first = matrix * 64 + lane / 4 * 8 + lane % 4 * 2;
            pair(first, first + 1)
        });
        let transposed = (0..128).map(|i| {
            let (lane, matrix) = (i / 4, i % 4);
            let first = matrix * 64 + lane % 4 * 2 * 8 + lane / 4;
            pair(first, first + 8)
        });
        assert_eq!(card.download::<u32>(py, 256), plain.chain(transposed).collect::<Vec<u32>>());
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_warp_multiplies_bf16() {
    let (a, b) = (halves(256, 1), halves(128, 2));
    let expected = product(16, 8, 16, |i, k| from_bf16(a[i * 16 + k]), |k, j| from_bf16(b[k * 8 + j]));
    check_product("product_bf16", 32, 0, &a, &b, &expected, 1e-5);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_warp_multiplies_tf32() {
    let (a, b) = (noise(128, 1), noise(64, 2));
    let tf32 = |x: f32| f64::from(f32::from_bits((x.to_bits() + 0x1000) & !0x1fff));
    let expected = product(16, 8, 8, |i, k| tf32(a[i * 8 + k]), |k, j| tf32(b[k * 8 + j]));
    for program in programs() {
        let mut card = Card::new();
        let (pa, pb, pd) = (card.upload("a", &a), card.upload("b", &b), card.empty::<f32>("d", 128));
        let arguments = [pa, pb, pd].map(argument);
        let report =
            card.launch(&kernel(&program, "product_tf32"), line(1, 32), &arguments, Options::default());
        assert_clean(&report, "product_tf32");
        for (found, expected) in card.download::<f32>(pd, 128).iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() <= 1e-5, "{found}, expected {expected}");
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn tf32_ties_go_away_from_zero() {
    let cases = [
        (0x3f80_0fff, 0x3f80_0000),
        (0x3f80_1000, 0x3f80_2000),
        (0xbf80_1000, 0xbf80_2000),
        (0x3fff_ffff, 0x4000_0000),
        (0x7f80_0000, 0x7f80_0000),
        (0x0000_0000, 0x0000_0000),
    ];
    let x = cases.map(|(bits, _)| f32::from_bits(bits));
    for program in programs() {
        let mut card = Card::new();
        let (px, py) = (card.upload("x", &x), card.empty::<u32>("y", x.len()));
        let arguments = [argument(px), argument(py), argument(x.len() as i32)];
        let report = card.launch(&kernel(&program, "rounding"), line(1, 64), &arguments, Options::default());
        assert_clean(&report, "rounding");
        assert_eq!(card.download::<u32>(py, x.len()), cases.map(|(_, rounded)| rounded));
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn four_warps_multiply_rows_along_k() {
    for n in [64, 128, 256] {
        let (a, b) = (halves(64 * 64, 1), halves(n * 64, 2));
        let expected = product(64, n, 64, |i, k| from_bf16(a[i * 64 + k]), |k, j| from_bf16(b[j * 64 + k]));
        let bytes = 1024 + (64 + n) * 64 * 2;
        check_product(&format!("product_k_major_{n}"), 128, bytes, &a, &b, &expected, 5e-5);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn four_warps_multiply_rows_along_m_and_n() {
    for n in [64, 128, 256] {
        let (a, b) = (halves(16 * 64, 1), halves(16 * n, 2));
        let expected = product(64, n, 16, |i, k| from_bf16(a[k * 64 + i]), |k, j| from_bf16(b[k * n + j]));
        let bytes = 1024 + (64 + n) * 16 * 2;
        check_product(&format!("product_mn_major_{n}"), 128, bytes, &a, &b, &expected, 5e-5);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn four_warps_add_to_what_is_under_way() {
    let (a, b) = (halves(64 * 16, 1), halves(64 * 16, 2));
    let once = product(64, 64, 16, |i, k| from_bf16(a[i * 16 + k]), |k, j| from_bf16(b[j * 16 + k]));
    let expected: Vec<f64> = once.iter().map(|x| 3.0 * x).collect();
    check_product("product_rows_16", 128, 0, &a, &b, &expected, 5e-5);
}
