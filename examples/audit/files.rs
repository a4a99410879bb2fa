//! Every file a run leaves, written whole or not at all.

use std::fmt::Write as _;
use std::path::Path;

use limpid::autograd::Profile;
use limpid::tensor::io::write_atomically;
use serde_json::{Value, json};

use crate::figures::Figures;
use crate::measure::{Audit, Block, SAMPLES, Shares};
use crate::network::Data;
use crate::settings::Settings;
use crate::{Failure, Run, page};

/// Makes the folders, and finds out now whether they can be written to.
pub fn prepare(out: &Path) -> Result<(), Failure> {
    let unusable =
        |e: std::io::Error| Failure::input(format!("{}: cannot be written to: {e}", out.display()));
    for folder in ["figures", "tapes"] {
        std::fs::create_dir_all(out.join(folder)).map_err(unusable)?;
    }
    let probe = out.join("tapes/.writable");
    std::fs::write(&probe, b"").map_err(unusable)?;
    std::fs::remove_file(&probe).map_err(unusable)
}

/// Writes run.json, the tables, the tapes, the figures and the report.
pub fn write(settings: &Settings, data: &Data, runs: &[Run], figures: &Figures) -> Result<(), Failure> {
    let out = &settings.arguments.out;
    let mut tables = Tables::default();
    for run in runs {
        tables.add(run);
        for (ending, content) in [("txt", &run.tape.text), ("dot", &run.tape.dot), ("json", &run.tape.json)] {
            text(&out.join(format!("tapes/{}.{ending}", run.variant())), content)?;
        }
    }
    for (name, content) in tables.files() {
        text(&out.join(name), &content)?;
    }
    text(&out.join("boundary.csv"), &format!("variant,x,y,probability\n{}", figures.boundary_points))?;
    for figure in figures.all() {
        text(&out.join(format!("figures/{}.svg", figure.file)), &figure.svg)?;
    }
    if settings.arguments.profile {
        let profiles: Vec<_> = runs.iter().map(|run| (run.variant().name(), &run.network.profile)).collect();
        Profile::write(&profiles, out)?;
    }
    text(&out.join("report.html"), &page::report(settings, runs, figures))?;
    let record = json!({
        "program": "limpid audit", "version": env!("CARGO_PKG_VERSION"),
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "command": settings.command(), "settings": settings.to_json(),
        "points": { "training": data.train.len(), "validation": data.validation.len(), "jacobian_samples": SAMPLES },
        "results": runs.iter().map(result).collect::<Vec<Value>>(),
    });
    text(&out.join("run.json"), &format!("{record}\n"))
}

fn text(path: &Path, content: &str) -> Result<(), Failure> {
    Ok(write_atomically(path, |out| out.write_all(content.as_bytes()))?)
}

/// A number as a cell of a table; empty where there is none.
fn cell(value: Option<f64>) -> String {
    value.map_or(String::new(), |v| format!("{v:e}"))
}

/// The CSV files.
#[derive(Default)]
struct Tables {
    layers: String,
    blocks: String,
    epochs: String,
    gradients: String,
    spectrum: String,
    jacobians: String,
    memory: String,
}

impl Tables {
    fn add(&mut self, run: &Run) {
        let name = run.variant().name();
        for audit in &run.audits {
            let moment = audit.moment.split(' ').next().unwrap_or_default();
            for (layer, (path, norm)) in run.network.layers.iter().zip(&audit.weight_norms).enumerate() {
                let _ = writeln!(self.layers, "{name},{moment},{layer},{path},{norm:e}");
            }
            for (i, block) in (1..).zip(&audit.blocks) {
                let _ = writeln!(self.blocks, "{name},{moment},{i},{}", block_cells(block));
                for (rank, sigma) in (1..).zip(&block.jacobian) {
                    let _ = writeln!(self.jacobians, "{name},{moment},{i},{rank},{sigma:e}");
                }
            }
            for term in &audit.spectrum {
                let (branches, control, norm) = (term.branches, term.through_control, term.norm);
                let (cosine, share) = (cell(term.cosine), cell(term.share));
                let _ =
                    writeln!(self.spectrum, "{name},{moment},{branches},{control},{norm:e},{cosine},{share}");
            }
        }
        for (i, epoch) in (1..).zip(&run.network.epochs) {
            let (train, validation) = (epoch.train_loss, epoch.validation_loss);
            let _ = writeln!(self.epochs, "{name},{i},{train},{validation},{}", epoch.validation_accuracy);
            for (layer, (path, norm)) in run.network.layers.iter().zip(&epoch.gradient_norms).enumerate() {
                let _ = writeln!(self.gradients, "{name},{i},{layer},{path},{norm:e}");
            }
        }
        for (i, node) in run.last().nodes.iter().enumerate() {
            let _ = writeln!(self.memory, "{name},{i},{},{},{}", node.op, node.scope, node.bytes);
        }
    }

    fn files(self) -> [(&'static str, String); 7] {
        let table = |header: &str, rows: String| format!("{header}\n{rows}");
        [
            ("layers.csv", table("variant,moment,layer,name,grad_norm", self.layers)),
            (
                "blocks.csv",
                table(
                    "variant,moment,block,scope,grad_norm,skip,branch,control,other,streams,gain_forward,gain_backward,\
                     sigma_2,lambda_2,cosine,row_error,column_error,spread,jacobian_sigma_1,saved_bytes",
                    self.blocks,
                ),
            ),
            ("metrics.csv", table("variant,epoch,train_loss,val_loss,val_accuracy", self.epochs)),
            ("gradient_norms.csv", table("variant,epoch,layer,name,grad_norm", self.gradients)),
            (
                "path_lengths.csv",
                table("variant,moment,branches,through_control,norm,cosine,share", self.spectrum),
            ),
            ("jacobians.csv", table("variant,moment,block,rank,sigma", self.jacobians)),
            ("memory.csv", table("variant,node,op,scope,bytes", self.memory)),
        ]
    }
}

fn block_cells(block: &Block) -> String {
    let c = &block.composite;
    let shares = block.shares.map(Shares::values);
    let mut cells = vec![block.scope.clone(), cell(block.gradient_norm)];
    cells.extend((0..4).map(|k| cell(shares.map(|s| s[k]))));
    cells.push(c.streams.to_string());
    cells.extend([Some(c.forward_gain), Some(c.backward_gain), c.sigma_2, c.lambda_2, c.cosine].map(cell));
    cells.extend([c.row_error, c.column_error, c.spread].map(|v| cell(Some(v))));
    cells.push(cell(block.jacobian.first().copied()));
    cells.push(block.saved.to_string());
    cells.join(",")
}

fn result(run: &Run) -> Value {
    let network = &run.network;
    let epochs = network.epochs.iter().map(|epoch| {
        json!({
            "train_loss": epoch.train_loss, "val_loss": epoch.validation_loss,
            "val_accuracy": epoch.validation_accuracy, "grad_norms": epoch.gradient_norms,
        })
    });
    let nodes = run.last().nodes.iter().map(|node| json!([node.op, node.scope, node.bytes]));
    json!({
        "variant": run.variant().name(), "formula": run.variant().formula(), "layers": network.layers,
        "val_loss": network.evaluation.0, "val_accuracy": network.evaluation.1,
        "diverged": network.divergence.as_ref().map(|(epoch, step, cause)| json!({"epoch": epoch, "step": step, "cause": cause})),
        "nodes": nodes.collect::<Vec<Value>>(),
        "epochs": epochs.collect::<Vec<Value>>(),
        "audits": run.audits.iter().map(audit).collect::<Vec<Value>>(),
    })
}

fn audit(audit: &Audit) -> Value {
    let blocks = audit.blocks.iter().map(|block| {
        let c = &block.composite;
        json!({
            "scope": block.scope, "grad_norm": block.gradient_norm,
            "shares": block.shares.map(|s| json!({"skip": s.skip, "branch": s.branch, "control": s.control, "other": s.other})),
            "composite": {
                "streams": c.streams, "gain_forward": c.forward_gain, "gain_backward": c.backward_gain,
                "sigma_2": c.sigma_2, "lambda_2": c.lambda_2, "cosine": c.cosine,
                "row_error": c.row_error, "column_error": c.column_error, "spread": c.spread,
            },
            "jacobian": {"singular_values": block.jacobian, "method": block.jacobian_method},
            "saved_bytes": block.saved,
        })
    });
    let spectrum = audit.spectrum.iter().map(|term| {
        json!({
            "branches": term.branches.to_string(), "through_control": term.through_control,
            "norm": term.norm, "cosine": term.cosine, "share": term.share,
        })
    });
    json!({
        "moment": audit.moment, "loss": audit.loss, "grad_norms": audit.weight_norms,
        "blocks": blocks.collect::<Vec<Value>>(),
        "path_lengths": spectrum.collect::<Vec<Value>>(), "path_lengths_rounding": audit.spectrum_error,
        "held_bytes": audit.held,
    })
}
