//! Every file a run leaves, written whole or not at all.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use limpid::autograd::Profile;
use limpid::nn::save_weights;
use limpid::tensor::io::write_atomically;
use serde_json::{Value, json};

use crate::history::fingerprint;
use crate::settings::Settings;
use crate::training::{Data, Trained};
use crate::{Failure, figures};

/// Makes the folder, and finds out now whether it can be written to.
pub fn prepare(out: &Path) -> Result<(), Failure> {
    let checkpoints = out.join("checkpoints");
    let unusable =
        |e: std::io::Error| Failure::input(format!("{}: cannot be written to: {e}", out.display()));
    std::fs::create_dir_all(&checkpoints).map_err(unusable)?;
    let probe = checkpoints.join(".writable");
    std::fs::write(&probe, b"").map_err(unusable)?;
    std::fs::remove_file(&probe).map_err(unusable)
}

pub fn checkpoint(out: &Path, variant: &str) -> PathBuf {
    out.join("checkpoints").join(format!("{variant}.safetensors"))
}

/// Writes tables, weights, figures, the report and run.json.
pub fn write(
    out: &Path,
    settings: &Settings,
    seed: u64,
    data: &Data,
    runs: &[Trained],
) -> Result<(), Failure> {
    let mut gradients = "variant,epoch,layer,name,grad_norm\n".to_string();
    let mut steps = "variant,step,layer,name,grad_norm\n".to_string();
    let mut metrics = "variant,epoch,train_loss,val_loss,val_accuracy\n".to_string();
    let mut weights = Vec::new();
    for run in runs {
        run.history.gradient_rows(run.variant.name(), &mut gradients);
        run.history.step_rows(run.variant.name(), &mut steps);
        run.history.metric_rows(run.variant.name(), &mut metrics);
        let path = out.join(format!("{}.safetensors", run.variant.name()));
        let list = |values: &limpid::Tensor| -> Result<String, Failure> {
            Ok(json!(values.to_f64_vec()?).to_string())
        };
        let metadata = BTreeMap::from([
            ("variant".to_string(), run.variant.name().to_string()),
            ("formula".to_string(), run.formula.clone()),
            ("input_mean".to_string(), list(data.scaler.mean())?),
            ("input_std".to_string(), list(data.scaler.std())?),
        ]);
        save_weights(&path, &run.model, &metadata)?;
        weights.push(std::fs::read(&path).map_err(|e| Failure::input(format!("{}: {e}", path.display())))?);
    }
    text(&out.join("gradient_norms.csv"), &gradients)?;
    text(&out.join("metrics.csv"), &metrics)?;
    if settings.arguments.every_step {
        text(&out.join("gradient_norms_steps.csv"), &steps)?;
    }

    if settings.arguments.profile {
        let profiles: Vec<_> = runs.iter().map(|run| (run.variant.name(), &run.profile)).collect();
        Profile::write(&profiles, out)?;
    }

    let drawn = figures::draw(settings, data, runs)?;
    text(&out.join("gradient_norms.svg"), &drawn.gradient_norms)?;
    text(&out.join("loss.svg"), &drawn.loss)?;
    text(&out.join("boundary.svg"), &drawn.boundary)?;
    text(&out.join("report.html"), &drawn.report)?;

    let parts = [gradients.as_bytes(), metrics.as_bytes(), steps.as_bytes()];
    let hash = fingerprint(parts.into_iter().chain(weights.iter().map(Vec::as_slice)));
    let results: Vec<Value> = runs.iter().map(result).collect();
    let record = json!({
        "program": "limpid two_moons", "version": env!("CARGO_PKG_VERSION"),
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "command": settings.command(), "settings": settings.to_json(), "seed": seed,
        "results": results, "hash": hash,
    });
    text(&out.join("run.json"), &format!("{record:#}\n"))
}

fn result(run: &Trained) -> Value {
    let history = &run.history;
    json!({
        "variant": run.variant.name(),
        "formula": run.formula,
        "epochs": history.metrics.len(),
        "train_loss": history.last().map(|m| m.train_loss),
        "val_loss": history.last().map(|m| m.validation_loss),
        "val_accuracy": history.last().map(|m| m.validation_accuracy),
        "first_step_grad_norms": history.first_step(),
        "diverged": history.divergence.as_ref().map(|d| json!({"epoch": d.epoch, "step": d.step, "cause": d.cause})),
    })
}

/// A row per variant and seed.
pub fn write_seeds(out: &Path, all: &[(u64, Vec<Trained>)]) -> Result<(), Failure> {
    let mut csv =
        "variant,seed,val_accuracy,val_loss,first_step_grad_norm_layer_1,first_step_grad_norm_last,diverged_epoch\n"
            .to_string();
    for (seed, runs) in all {
        for run in runs {
            let h = &run.history;
            let metric = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
            let norm = |i: usize| h.first_step().get(i).map_or(String::new(), |v| format!("{v:e}"));
            let diverged = h.divergence.as_ref().map_or(String::new(), |d| d.epoch.to_string());
            let _ = writeln!(
                csv,
                "{},{seed},{},{},{},{},{diverged}",
                run.variant.name(),
                metric(h.last().map(|m| m.validation_accuracy)),
                metric(h.last().map(|m| m.validation_loss)),
                norm(1.min(h.layers.len() - 1)),
                norm(h.layers.len() - 1),
            );
        }
    }
    text(&out.join("seeds.csv"), &csv)
}

fn text(path: &Path, content: &str) -> Result<(), Failure> {
    Ok(write_atomically(path, |out| out.write_all(content.as_bytes()))?)
}
