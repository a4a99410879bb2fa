//! Every file a run leaves, written whole or not at all.

use std::path::Path;

use limpid::autograd::plan::{Front, Plan};
use limpid::report::{bytes_and_operations, memory_over_time};
use limpid::tensor::Error;
use limpid::tensor::io::write_atomically;
use serde_json::{Value, json};

use crate::measure::{Measured, Measurement};
use crate::policies;
use crate::settings::{Arguments, Settings};

/// Makes the output folder, and sees before anything runs whether there is a folder for the other file.
pub fn prepare(arguments: &Arguments) -> Result<(), String> {
    let folder = arguments.json.as_ref().and_then(|path| path.parent());
    for folder in folder.into_iter().filter(|path| !path.as_os_str().is_empty()).chain([&*arguments.out]) {
        std::fs::create_dir_all(folder)
            .map_err(|e| format!("{}: cannot be written to: {e}", folder.display()))?;
    }
    Ok(())
}

/// Writes the figure, every plan as a table, and all of them as JSON; and the front, if there is one.
pub fn write(settings: &Settings, plans: &[Plan], front: Option<&Front>) -> Result<(), Error> {
    let out = &settings.arguments.out;
    let named: Vec<(&str, &Plan)> = plans.iter().map(|plan| (plan.policy(), plan)).collect();
    let figure = memory_over_time(&named).subtitle(&settings.network()).to_svg();
    text(&out.join("memory.svg"), &figure)?;
    let all: Vec<String> = plans.iter().map(Plan::to_json).collect();
    text(&out.join("plans.json"), &format!("[{}]\n", all.join(",")))?;
    for plan in plans {
        let name = plan.policy().replace(' ', "-");
        text(&out.join(format!("plan-{name}.txt")), &plan.to_string())?;
    }
    let Some(front) = front else { return Ok(()) };
    let figure = bytes_and_operations(front).subtitle(&settings.network()).to_svg();
    text(&out.join("front.svg"), &figure)?;
    text(&out.join("front.csv"), &front.to_csv())
}

/// Everything measured as one JSON object.
pub fn record(settings: &Settings, plans: &[Plan], measurement: &Measurement) -> Value {
    let row = |(plan, row): (&Plan, &Measured)| {
        let totals = plan.totals();
        json!({
            "policy": plan.policy(), "spacing": policies::spacing(plan), "held": totals.held, "peak": totals.peak,
            "peak_activations": totals.peak_activations, "computed": totals.computed,
            "recomputed": totals.recomputed, "flops": totals.flops, "extra_flops": totals.extra_flops,
            "time": row.time, "hashed": row.hashed,
            "same_bits": row.differs.is_none(), "differs": row.differs,
            "as_planned": row.unplanned.is_empty(), "unplanned": row.unplanned,
            "compared_values": row.receipt.verified.values, "compared_bytes": row.receipt.verified.bytes,
            "scratch": row.receipt.scratch,
        })
    };
    json!({
        "program": "limpid recompute", "version": env!("CARGO_PKG_VERSION"),
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "command": settings.command(), "settings": settings.to_json(),
        "first_plan_seconds": measurement.seconds,
        "plans": plans.iter().zip(&measurement.rows).map(row).collect::<Vec<Value>>(),
    })
}

pub fn text(path: &Path, content: &str) -> Result<(), Error> {
    write_atomically(path, |out| out.write_all(content.as_bytes()))
}
