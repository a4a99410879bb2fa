//! Point sets in the plane that no straight line separates.
//!
//! Points are computed in f64, shuffled, moved by Gaussian noise, and rounded once to the dtype asked for.

use std::f64::consts::{PI, TAU};

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Tensor};

use super::Dataset;
use crate::{Error, Result};

/// Two interleaving half circles, as scikit-learn's `make_moons` defines them.
///
/// Class 0, the upper moon, is `(cos t, sin t)`; class 1, the lower, is `(1 − cos t, 1/2 − sin t)`; `t` goes from
/// 0 to π in equal steps, both included. Class 0 has `samples / 2` points and class 1 the rest. Each coordinate is
/// moved by a Gaussian of standard deviation `noise`.
///
/// ```
/// use limpid_nn::data::two_moons;
/// use limpid_tensor::{DType, rng::Key};
/// let moons = two_moons(201, 0.1, DType::F32, Key::new(7)).unwrap();
/// assert_eq!(moons.features().shape().to_string(), "[201, 2]");
/// assert_eq!(moons.labels().to_vec::<i64>().unwrap().iter().sum::<i64>(), 101);
/// ```
///
/// # Errors
/// If `samples` is less than 2, or `noise` is negative or not finite.
///
/// # Panics
/// If `dtype` is not a float.
#[track_caller]
pub fn two_moons(samples: usize, noise: f64, dtype: DType, key: Key) -> Result<Dataset> {
    planar(samples, 2, noise, dtype, key, |class, i, n| {
        let (sin, cos) = libm::sincos(PI * i as f64 / (n - 1).max(1) as f64);
        if class == 0 { [cos, sin] } else { [1.0 - cos, 1.0 - sin - 0.5] }
    })
}

/// A circle within a circle, as scikit-learn's `make_circles` defines them.
///
/// Class 0 is `(cos t, sin t)`, class 1 is `factor·(cos t, sin t)`; `t` goes round from 0 to 2π in equal steps, 2π
/// itself left out. Class 0 has `samples / 2` points and class 1 the rest. Each coordinate is moved by a Gaussian
/// of standard deviation `noise`.
///
/// ```
/// use limpid_nn::data::circles;
/// use limpid_tensor::{DType, rng::Key};
/// let rings = circles(100, 0.0, 0.5, DType::F64, Key::new(7)).unwrap();
/// let points = rings.features().to_vec::<f64>().unwrap();
/// for (point, label) in points.chunks(2).zip(rings.labels().to_vec::<i64>().unwrap()) {
///     let radius = if label == 0 { 1.0 } else { 0.5 };
///     assert!((point[0].hypot(point[1]) - radius).abs() < 1e-15);
/// }
/// ```
///
/// # Errors
/// If `samples` is less than 2, `noise` is negative or not finite, or `factor` is outside `0..1`.
///
/// # Panics
/// If `dtype` is not a float.
#[track_caller]
pub fn circles(samples: usize, noise: f64, factor: f64, dtype: DType, key: Key) -> Result<Dataset> {
    if !(0.0..1.0).contains(&factor) {
        return Err(Error::argument("factor", "a number from 0 up to but not including 1", factor));
    }
    planar(samples, 2, noise, dtype, key, |class, i, n| {
        let (sin, cos) = libm::sincos(TAU * i as f64 / n as f64);
        let radius = if class == 0 { 1.0 } else { factor };
        [radius * cos, radius * sin]
    })
}

/// Arms of an Archimedean spiral, one class each, winding out from the origin to the unit circle.
///
/// Point `i` of the `n` on arm `k` of `arms` is `r·(cos θ, sin θ)` with `r = (i + 1)/n` and
/// `θ = 2π(turns·r + k/arms)`; the origin, where all arms meet, is left out. Arm `k` has
/// `⌊samples·(k + 1)/arms⌋ − ⌊samples·k/arms⌋` points, so arms differ by one at most. Each coordinate is moved by a
/// Gaussian of standard deviation `noise`.
///
/// ```
/// use limpid_nn::data::spirals;
/// use limpid_tensor::{DType, rng::Key};
/// let galaxy = spirals(300, 3, 1.25, 0.02, DType::F64, Key::new(0)).unwrap();
/// assert_eq!((galaxy.len(), galaxy.classes()), (300, 3));
/// ```
///
/// # Errors
/// If there are fewer than 2 arms, fewer samples than arms, `turns` is not finite, or `noise` is negative or not
/// finite.
///
/// # Panics
/// If `dtype` is not a float.
#[track_caller]
pub fn spirals(
    samples: usize,
    arms: usize,
    turns: f64,
    noise: f64,
    dtype: DType,
    key: Key,
) -> Result<Dataset> {
    if arms < 2 {
        return Err(Error::argument("arms", "at least 2", arms));
    }
    if !turns.is_finite() {
        return Err(Error::argument("turns", "a finite number", turns));
    }
    planar(samples, arms, noise, dtype, key, |class, i, n| {
        let radius = (i + 1) as f64 / n as f64;
        let (sin, cos) = libm::sincos(TAU * (turns * radius + class as f64 / arms as f64));
        [radius * cos, radius * sin]
    })
}

/// Points in the plane, shuffled and moved by noise; `point(class, i, n)` is point `i` of the `n` of a class.
#[track_caller]
fn planar(
    samples: usize,
    classes: usize,
    noise: f64,
    dtype: DType,
    key: Key,
    point: impl Fn(usize, usize, usize) -> [f64; 2],
) -> Result<Dataset> {
    assert!(dtype.is_float(), "points in the plane are floats, asked for {dtype}");
    if samples < classes {
        return Err(Error::argument("samples", format!("at least {classes}, one for each class"), samples));
    }
    if !(noise.is_finite() && noise >= 0.0) {
        return Err(Error::argument("noise", "a finite number that is not negative", noise));
    }
    let ordered: Vec<(usize, [f64; 2])> = (0..classes)
        .flat_map(|class| {
            let n = samples * (class + 1) / classes - samples * class / classes;
            (0..n).map(move |i| (class, i, n))
        })
        .map(|(class, i, n)| (class, point(class, i, n)))
        .collect();
    let order = Tensor::random(Distribution::Permutation, [samples], DType::I64, key.fold_str("order"))?;
    let (labels, points): (Vec<i64>, Vec<[f64; 2]>) = order
        .to_vec::<i64>()?
        .into_iter()
        .map(|at| ordered[at as usize])
        .map(|(class, point)| (class as i64, point))
        .unzip();
    let mut points = points.into_flattened();
    if noise > 0.0 {
        let gaussian = Distribution::Normal { mean: 0.0, std: noise };
        let shifts = Tensor::random(gaussian, [samples, 2], DType::F64, key.fold_str("noise"))?;
        for (coordinate, shift) in points.iter_mut().zip(shifts.to_vec::<f64>()?) {
            *coordinate += shift;
        }
    }
    let class_names: Vec<String> = (0..classes).map(|class| class.to_string()).collect();
    Dataset::new(
        Tensor::from_f64(&points, [samples, 2], dtype),
        Tensor::from_vec(labels, [samples]),
        &["x", "y"],
        &class_names,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(data: &Dataset) -> Vec<(i64, [f64; 2])> {
        let labels = data.labels().to_vec::<i64>().unwrap();
        let features = data.features().to_f64_vec().unwrap();
        labels.into_iter().zip(features.chunks(2).map(|p| [p[0], p[1]])).collect()
    }

    fn of_class(data: &Dataset, class: i64) -> Vec<[f64; 2]> {
        points(data).into_iter().filter(|p| p.0 == class).map(|p| p.1).collect()
    }

    const KEY: Key = Key { seed: 11, stream: 0 };

    #[test]
    fn without_noise_each_point_lies_on_its_moon() {
        let moons = two_moons(501, 0.0, DType::F64, KEY).unwrap();
        let (upper, lower) = (of_class(&moons, 0), of_class(&moons, 1));
        assert_eq!((upper.len(), lower.len()), (250, 251));
        let mut angles = [Vec::new(), Vec::new()];
        for [x, y] in upper {
            assert!((x.hypot(y) - 1.0).abs() < 1e-15 && y >= 0.0);
            angles[0].push(y.atan2(x));
        }
        for [x, y] in lower {
            assert!(((x - 1.0).hypot(y - 0.5) - 1.0).abs() < 1e-15 && y <= 0.5);
            angles[1].push((0.5 - y).atan2(1.0 - x));
        }
        for mut angles in angles {
            let n = angles.len();
            angles.sort_unstable_by(f64::total_cmp);
            for (i, angle) in angles.into_iter().enumerate() {
                let t = PI * i as f64 / (n - 1) as f64;
                assert!((angle - t).abs() < 1e-8, "{i}: {angle} for {t}"); // near 0 and π, y has few digits left
            }
        }
    }

    #[test]
    fn the_smallest_moons_are_one_point_each() {
        let moons = two_moons(2, 0.0, DType::F64, KEY).unwrap();
        assert_eq!((of_class(&moons, 0), of_class(&moons, 1)), (vec![[1.0, 0.0]], vec![[0.0, 0.5]]));
    }

    #[test]
    fn noise_is_gaussian_around_the_noiseless_points() {
        let (samples, noise) = (20_000, 0.2);
        let moved = two_moons(samples, noise, DType::F64, KEY).unwrap();
        let still = two_moons(samples, 0.0, DType::F64, KEY).unwrap();
        assert_eq!(moved.labels().to_vec::<i64>().unwrap(), still.labels().to_vec::<i64>().unwrap());
        let shifts: Vec<f64> = moved
            .features()
            .to_f64_vec()
            .unwrap()
            .into_iter()
            .zip(still.features().to_f64_vec().unwrap())
            .map(|(a, b)| (a - b) / noise)
            .collect();
        let n = shifts.len() as f64;
        let moment = |power: i32| shifts.iter().map(|z| z.powi(power)).sum::<f64>() / n;
        // Within five standard errors: those of z, z² and z⁴ are √(1/n), √(2/n) and √(96/n).
        assert!(moment(1).abs() < 5.0 * (1.0 / n).sqrt(), "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "variance {}", moment(2));
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt(), "kurtosis {}", moment(4));
        let across = shifts.chunks(2).map(|s| s[0] * s[1]).sum::<f64>() / (n / 2.0);
        assert!(across.abs() < 5.0 * (2.0 / n).sqrt(), "x and y are correlated: {across}");
    }

    #[test]
    fn circles_have_their_radii_and_even_angles() {
        let data = circles(21, 0.0, 0.3, DType::F64, KEY).unwrap();
        for (class, radius, n) in [(0, 1.0, 10), (1, 0.3, 11)] {
            let mut turns: Vec<f64> = of_class(&data, class)
                .into_iter()
                .map(|[x, y]| {
                    assert!((x.hypot(y) - radius).abs() < 1e-15);
                    (y.atan2(x) / TAU).rem_euclid(1.0)
                })
                .collect();
            turns.sort_unstable_by(f64::total_cmp);
            let even = |(i, turn): (usize, &f64)| (turn - i as f64 / n as f64).abs() < 1e-12;
            assert!(turns.len() == n && turns.iter().enumerate().all(even), "{turns:?}");
        }
    }

    #[test]
    fn spirals_turn_with_their_radius() {
        let (arms, turns) = (3, 1.5);
        let data = spirals(100, arms, turns, 0.0, DType::F64, KEY).unwrap();
        for (arm, n) in [(0, 33), (1, 33), (2, 34)] {
            let points = of_class(&data, arm);
            assert_eq!(points.len(), n);
            let mut radii = Vec::new();
            for [x, y] in points {
                let radius = x.hypot(y);
                let off = y.atan2(x) / TAU - turns * radius - arm as f64 / arms as f64;
                assert!((off - off.round()).abs() < 1e-12);
                radii.push(radius);
            }
            radii.sort_unstable_by(f64::total_cmp);
            let even = |(i, radius): (usize, &f64)| (radius - (i + 1) as f64 / n as f64).abs() < 1e-12;
            assert!(radii.iter().enumerate().all(even), "{radii:?}");
        }
    }

    #[test]
    fn points_are_a_shuffled_function_of_the_key() {
        let make = |seed| points(&two_moons(200, 0.2, DType::F32, Key::new(seed)).unwrap());
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        let first_half = make(1)[..100].iter().map(|p| p.0).sum::<i64>();
        assert!((25..75).contains(&first_half), "classes are mixed, found {first_half} of class 1 among 100");
    }

    #[test]
    fn the_dtype_rounds_once() {
        let wide = two_moons(50, 0.2, DType::F64, KEY).unwrap().features().to_vec::<f64>().unwrap();
        let narrow = two_moons(50, 0.2, DType::F32, KEY).unwrap().features().to_vec::<f32>().unwrap();
        assert!(wide.into_iter().map(|v| v as f32).eq(narrow));
    }

    #[test]
    fn arguments_out_of_range_are_errors() {
        let f32 = DType::F32;
        let error = |data: Result<Dataset>| data.unwrap_err().to_string();
        assert_eq!(
            error(two_moons(1, 0.0, f32, KEY)),
            "samples: expected at least 2, one for each class, found 1"
        );
        for (noise, found) in [(-0.1, "-0.1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
            assert_eq!(
                error(two_moons(10, noise, f32, KEY)),
                format!("noise: expected a finite number that is not negative, found {found}")
            );
        }
        assert_eq!(
            error(circles(10, 0.0, 1.0, f32, KEY)),
            "factor: expected a number from 0 up to but not including 1, found 1"
        );
        assert_eq!(error(spirals(10, 1, 1.0, 0.0, f32, KEY)), "arms: expected at least 2, found 1");
        assert_eq!(
            error(spirals(10, 2, f64::NAN, 0.0, f32, KEY)),
            "turns: expected a finite number, found NaN"
        );
        assert_eq!(
            error(spirals(4, 5, 1.0, 0.0, f32, KEY)),
            "samples: expected at least 5, one for each class, found 4"
        );
    }
}
