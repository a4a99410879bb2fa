//! Every file a sweep leaves, written whole or not at all.

use std::fmt::Write as _;
use std::path::Path;

use limpid::autograd::Profile;
use limpid::tensor::io::write_atomically;
use serde_json::{Value, json};

use crate::figures;
use crate::run::{Gain, Gradient, Run};
use crate::settings::Settings;
use crate::spread::{Group, Spread};

/// Writes the table of all runs, their spread, figures and the report.
pub fn write(settings: &Settings, runs: &[Run], groups: &[Group]) -> Result<(), limpid::tensor::Error> {
    let out = &settings.arguments.out;
    text(&out.join("sweep.csv"), &table(runs))?;
    let record = json!({
        "program": "limpid depth_sweep", "version": env!("CARGO_PKG_VERSION"),
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "command": settings.command(), "settings": settings.to_json(),
        "results": groups.iter().map(result).collect::<Vec<Value>>(),
    });
    text(&out.join("sweep.json"), &format!("{record:#}\n"))?;
    if settings.arguments.profile {
        let first = runs.iter().filter(|run| run.seed == settings.arguments.seed);
        let named: Vec<(String, &Profile)> =
            first.map(|run| (format!("{}, {} layers", run.variant, run.depth), &run.profile)).collect();
        let named: Vec<(&str, &Profile)> = named.iter().map(|(name, profile)| (&**name, *profile)).collect();
        Profile::write(&named, out)?;
    }
    let drawn = figures::draw(settings, groups);
    text(&out.join("accuracy.svg"), &drawn.accuracy)?;
    text(&out.join("gradients.svg"), &drawn.gradients)?;
    if let Some(composite) = &drawn.composite {
        text(&out.join("composite.svg"), composite)?;
    }
    text(&out.join("report.html"), &drawn.report)
}

fn text(path: &Path, content: &str) -> Result<(), limpid::tensor::Error> {
    write_atomically(path, |out| out.write_all(content.as_bytes()))
}

/// A row per run. What a run does not have is empty.
fn table(runs: &[Run]) -> String {
    let mut csv = "variant,depth,seed,val_accuracy,diverged_epoch,grad_second_before,grad_last_before,grad_second_after,\
                   grad_last_after,perturbed_forward,perturbed_backward,perturbed_sigma2,learned_forward,learned_backward,\
                   learned_sigma2\n"
        .to_string();
    let cell = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:e}"));
    let norms = |g: Option<Gradient>| [g.and_then(|g| g.second), g.and_then(|g| g.last)].map(cell).join(",");
    let gains = |g: Option<Gain>| {
        [g.map(|g| g.forward), g.map(|g| g.backward), g.and_then(|g| g.second)].map(cell).join(",")
    };
    for run in runs {
        let trained = run.trained.as_ref();
        let _ = writeln!(
            csv,
            "{},{},{},{},{},{},{},{},{}",
            run.variant,
            run.depth,
            run.seed,
            trained.map_or(String::new(), |trained| trained.accuracy.to_string()),
            run.diverged.map_or(String::new(), |epoch| epoch.to_string()),
            norms(Some(run.before)),
            norms(trained.map(|trained| trained.gradient)),
            gains(run.perturbed),
            gains(trained.and_then(|trained| trained.gain)),
        );
    }
    csv
}

fn result(group: &Group) -> Value {
    let spread = |spread: Option<Spread>| {
        spread.map(|Spread { low, median, high }| json!({"low": low, "median": median, "high": high}))
    };
    json!({
        "variant": group.variant().name(), "depth": group.depth(), "runs": group.runs(), "diverged": group.diverged(),
        "val_accuracy": spread(group.accuracy()),
        "grad_second_before": spread(group.before(|run| run.before.second)),
        "grad_last_before": spread(group.before(|run| run.before.last)),
        "grad_second_after": spread(group.after(|trained| trained.gradient.second)),
        "grad_last_after": spread(group.after(|trained| trained.gradient.last)),
        "perturbed_forward": spread(group.perturbed(|gain| Some(gain.forward))),
        "perturbed_backward": spread(group.perturbed(|gain| Some(gain.backward))),
        "perturbed_sigma2": spread(group.perturbed(|gain| gain.second)),
        "learned_forward": spread(group.learned(|gain| Some(gain.forward))),
        "learned_backward": spread(group.learned(|gain| Some(gain.backward))),
        "learned_sigma2": spread(group.learned(|gain| gain.second)),
    })
}
