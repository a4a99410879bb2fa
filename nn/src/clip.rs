//! How large gradients are, and how they are kept from being too large.

use std::borrow::Cow;

use limpid_autograd::{Gradients, ParamId};
use limpid_tensor::{DType, Device, Map, Tensor, widest};
use smallvec::SmallVec;

use crate::{Error, Parameter, Parameters, Result};

/// The L2 norm of each trainable weight's gradient, by path, in the order of the model; weights without a gradient
/// are left out. The squares are summed in f64, and the norm is not finite if the gradient is not.
///
/// # Errors
/// If a device cannot be read.
pub fn gradient_norms<'a>(model: &'a dyn Parameters, gradients: &Gradients) -> Result<Vec<(&'a str, f64)>> {
    let mut norms = squares(model, gradients)?;
    norms.iter_mut().for_each(|(_, square)| *square = square.sqrt());
    Ok(norms)
}

/// The L2 norm of all gradients of a model taken together, `√(Σ g²)`. The squares are summed in f64, in the order of
/// the paths, so that it does not depend on how the model's fields are arranged.
///
/// # Errors
/// If a gradient is not finite, or its square overflows f64 (its path is named), or a device cannot be read.
pub fn global_norm(model: &dyn Parameters, gradients: &Gradients) -> Result<f64> {
    let mut squares = squares(model, gradients)?;
    squares.sort_by_key(|(path, _)| *path);
    match squares.iter().find(|(_, square)| !square.is_finite()) {
        Some((path, square)) => Err(Error::NonFiniteGradient { path: path.to_string(), norm: square.sqrt() }),
        None => Ok(squares.iter().map(|(_, square)| square).sum::<f64>().sqrt()),
    }
}

/// `Σ g²` of each trainable weight's gradient, by path, in the order of the model.
fn squares<'a>(model: &'a dyn Parameters, gradients: &Gradients) -> Result<Vec<(&'a str, f64)>> {
    let (mut paths, mut ids) = (Vec::new(), SmallVec::<[ParamId; 64]>::new());
    model.visit(&mut |p| {
        if p.is_trainable() {
            paths.push(p.path());
            ids.push(p.id());
        }
    });
    let squares = gradients.squares(&ids, sums_of_squares)?;
    Ok(paths.into_iter().zip(squares).filter_map(|(path, square)| Some((path, square?))).collect())
}

/// What [`clip_norm`] finds out, left on a device that has a kernel for it: the norm, and what the gradients are to be
/// multiplied by.
pub(crate) fn norm_and_scale(
    model: &dyn Parameters,
    gradients: &Gradients,
    max_norm: f64,
    on: &Device,
) -> Result<Option<Tensor>> {
    let reached = |p: &Parameter| gradients.of_parameter(p.id()).filter(|_| p.is_trainable());
    let mut named = Vec::new();
    for p in model.parameters() {
        if let Some(gradient) = reached(p) {
            named.push((p.path(), gradient.to(on)?));
        }
    }
    named.sort_by_key(|(path, _)| *path);
    let named: Vec<(&str, &Tensor)> = named.iter().map(|(path, gradient)| (*path, gradient)).collect();
    Ok(on.backend().norm_and_scale(&named, max_norm).transpose()?)
}

/// Σ x² of each tensor: where they lie, if that is one device that has a kernel for it.
fn sums_of_squares(x: &[&Tensor]) -> Result<Vec<f64>> {
    if let Some(device) =
        x.first().map(|x| x.device()).filter(|device| x.iter().all(|x| x.device() == *device))
        && let Some(sums) = device.backend().sums_of_squares(x)
    {
        return Ok(sums?);
    }
    let cpu = Device::cpu();
    let on_cpu = |x: &&Tensor| -> Result<f64> {
        let sum = cpu.backend().sums_of_squares(&[&x.to(&cpu)?]);
        Ok(sum.expect("the processor has a kernel for it")?[0])
    };
    x.iter().map(on_cpu).collect()
}

/// Scales all gradients of a model by `max_norm/norm` if their [global norm](global_norm) is larger than `max_norm`
/// (Pascanu, Mikolov and Bengio, 2013, Algorithm 1); returns the norm before. Gradients by other leaves of the tape
/// are left alone.
///
/// PyTorch scales by `max_norm/(norm + 10⁻⁶)`; here the norm afterwards is `max_norm` but for rounding.
///
/// # Errors
/// If `max_norm` is not above 0, a gradient is not finite (its path is named; nothing has been changed), or a device
/// fails.
pub fn clip_norm(model: &dyn Parameters, gradients: &mut Gradients, max_norm: f64) -> Result<f64> {
    check_max_norm(max_norm)?;
    let norm = global_norm(model, gradients)?;
    if norm > max_norm {
        change_each(model, gradients, |gradient| scale(gradient, max_norm / norm))?;
    }
    Ok(norm)
}

pub(crate) fn check_max_norm(max_norm: f64) -> Result<()> {
    if max_norm.is_nan() || max_norm <= 0.0 {
        return Err(Error::argument("maximal norm", "a number above 0", max_norm));
    }
    Ok(())
}

/// Limits every element of a model's gradients to `−bound..=bound`. NaN stays NaN.
///
/// # Errors
/// If `bound` is not above 0, or a device fails.
pub fn clip_value(model: &dyn Parameters, gradients: &mut Gradients, bound: f64) -> Result<()> {
    if bound.is_nan() || bound <= 0.0 {
        return Err(Error::argument("bound of a gradient", "a number above 0", bound));
    }
    change_each(model, gradients, |gradient| {
        *gradient = Tensor::map(Map::Clamp { low: -bound, high: bound }, &[gradient])?;
        Ok(())
    })
}

fn change_each(
    model: &dyn Parameters,
    gradients: &mut Gradients,
    change: impl Fn(&mut Tensor) -> Result<()>,
) -> Result<()> {
    for p in model.parameters().into_iter().filter(|p| p.is_trainable()) {
        gradients.of_parameter_mut(p.id()).map_or(Ok(()), &change)?;
    }
    Ok(())
}

/// Multiplies a gradient by a factor: in its own memory, if nobody else reads that.
fn scale(gradient: &mut Tensor, factor: f64) -> Result<()> {
    if gradient.dtype() == DType::F32
        && let Some(values) = gradient.as_mut_slice::<f32>()
    {
        let factor = factor as f32;
        // The zero is `Affine`'s, which makes 0 of −0: the same bits in either memory.
        widest(
            #[inline(always)]
            || (0..values.len()).for_each(|i| values[i] = values[i] * factor + 0.0),
        );
        return Ok(());
    }
    *gradient = Tensor::map(Map::Affine { mul: factor, add: 0.0 }, &[gradient])?;
    Ok(())
}

/// A tensor whose numbers lie in the host's memory, one after the other: itself, if it is one.
pub(crate) fn on_host(x: &Tensor) -> Result<Cow<'_, Tensor>> {
    if *x.device() == Device::cpu() && x.layout().is_contiguous() {
        return Ok(Cow::Borrowed(x));
    }
    Ok(Cow::Owned(x.to(&Device::cpu())?.contiguous()?))
}
