//! What kind of mistake a set of wrong entries looks like.

use limpid_tensor::{Shape, Tensor};

use super::entries::{Comparison, Entry};

/// Two numbers that are the same up to their bars.
fn agree(a: f64, entry: &Entry, factor: f64) -> bool {
    (a - factor * entry.numeric.value).abs()
        <= 10.0 * entry.numeric.bar * factor.abs().max(1.0) + 1e-9 * a.abs()
}

/// Sentences, the most telling first; none if no pattern fits. `output` is the shape of the result.
pub(super) fn diagnose(comparison: &Comparison, inputs: &[Tensor], output: &Shape) -> Vec<String> {
    let shape = inputs[comparison.input].shape();
    let wrong: Vec<&Entry> = comparison.wrong.iter().map(|&i| &comparison.entries[i]).collect();
    let mut found = Vec::new();
    if wrong.is_empty() {
        return found;
    }
    let broadcast: Vec<usize> = match shape.broadcast(output) {
        Some(whole) if whole == *output => {
            let missing = output.len() - shape.len();
            (0..output.len()).filter(|&a| output[a] > 1 && (a < missing || shape[a - missing] == 1)).collect()
        }
        _ => Vec::new(),
    };
    let dropped = wrong.iter().filter(|e| e.analytic == 0.0).count();
    if dropped == wrong.len() {
        let nothing = comparison.entries.iter().all(|e| e.analytic == 0.0);
        found.push(match (nothing, broadcast.is_empty()) {
            (true, _) => "no gradient arrives at all: a detached path, or a rule that returns nothing".into(),
            (false, false) => format!(
                "contributions are missing along axis {broadcast:?} of the result, over which x{} is broadcast: a \
                 missing sum",
                comparison.input
            ),
            (false, true) => "the wrong entries are all 0: a dropped term, or part of a path detached".into(),
        });
        return found;
    }
    if wrong.iter().all(|e| e.numeric.value.abs() <= 10.0 * e.numeric.bar) {
        let what = "every wrong entry should be 0: a gradient passes where the function does not depend on the input";
        found.push(format!("{what}, as without a mask"));
        return found;
    }
    // Entries that should not be 0 and are wrong by one factor.
    let ratios: Vec<f64> =
        wrong.iter().filter(|e| e.numeric.value != 0.0).map(|e| e.analytic / e.numeric.value).collect();
    if let Some(&ratio) = ratios.first().filter(|_| ratios.len() == wrong.len())
        && wrong.iter().all(|e| agree(e.analytic, e, ratio))
    {
        let n: usize = broadcast.iter().map(|&a| output[a]).product();
        found.push(match ratio {
            r if (r + 1.0).abs() < 1e-6 => "the sign is wrong".into(),
            r if n > 1 && (r * n as f64 - 1.0).abs() < 1e-6 => format!(
                "every wrong entry is 1/{n} of the right one: a mean where a sum over the broadcast axis {broadcast:?} \
                 belongs"
            ),
            r => format!("every wrong entry is {r:.9} times the right one: a constant factor"),
        });
        return found;
    }
    // y = x + F(x) gives every diagonal entry a 1 that F does not know of.
    let off = wrong[0].analytic - wrong[0].numeric.value;
    let lacks = |e: &&Entry| agree(e.analytic - off, e, 1.0) && e.output == e.element;
    if shape == output && comparison.outputs.is_some() && wrong.len() > 1 && wrong.iter().all(lacks) {
        let what = match (off.round() - off).abs() < 1e-9 {
            true => format!("{:+}", off.round()),
            false => format!("{off:+.9}"),
        };
        found.push(format!(
            "every diagonal entry is off by the same number, {what}: of a value that is used twice, the contribution \
             that passes it on unchanged (a skip connection) is lost or counted too often"
        ));
        return found;
    }
    let n = shape.elements();
    let whole = comparison.entries.len() == n * comparison.outputs.unwrap_or(1);
    if whole {
        let at = |output: usize, element: usize| {
            comparison.entries.iter().find(move |e| e.output == output && e.element == element)
        };
        if let Some(swap) = transposition(shape) {
            let transposed =
                |e: &Entry| at(e.output, swap(e.element)).is_some_and(|t| agree(e.analytic, t, 1.0));
            if comparison.entries.iter().all(transposed) {
                found.push(format!("the gradient of x{} is transposed", comparison.input));
                return found;
            }
        }
        if let Some(swap) = transposition(output).filter(|_| comparison.outputs.is_some()) {
            let transposed =
                |e: &Entry| at(swap(e.output), e.element).is_some_and(|t| agree(e.analytic, t, 1.0));
            if comparison.entries.iter().all(transposed) {
                found.push(
                    "the cotangent of the result is taken transposed, or the result is computed so".into(),
                );
                return found;
            }
        }
        let mut analytic: Vec<f64> = comparison.entries.iter().map(|e| e.analytic).collect();
        let mut numeric: Vec<&Entry> = comparison.entries.iter().collect();
        analytic.sort_by(f64::total_cmp);
        numeric.sort_by(|a, b| a.numeric.value.total_cmp(&b.numeric.value));
        if wrong.len() > 1 && analytic.iter().zip(&numeric).all(|(a, e)| agree(*a, e, 1.0)) {
            found.push("the right numbers in the wrong places: a transposed or permuted operand".into());
            return found;
        }
    }
    let superfluous = wrong.iter().filter(|e| e.numeric.value.abs() <= 10.0 * e.numeric.bar).count();
    if superfluous > 0 && superfluous + dropped == wrong.len() {
        found.push("some entries are 0 and should not be, and the others should be 0: another mask".into());
    }
    found
}

/// Where each element goes when the last two axes, of one size, change places.
fn transposition(shape: &Shape) -> Option<impl Fn(usize) -> usize> {
    let rank = shape.len();
    let n = *shape.last().filter(|&&n| rank >= 2 && n > 1 && shape[rank - 2] == n)?;
    Some(move |flat: usize| flat / (n * n) * n * n + flat % n * n + flat / n % n)
}
