//! The figures and the report.

use limpid::Tensor;
use limpid::nn::residual::Variant;
use limpid::report::palette::CATEGORY_COUNT;
use limpid::report::{
    Axis, Boundary, BoundaryPanel, HeatMap, HeatPanel, LineChart, Panel, Report, Section, Series, Table,
    scale,
};

use crate::Failure;
use crate::history::Metrics;
use crate::settings::Settings;
use crate::training::{Data, Trained, probabilities};

/// What is drawn of one seed's runs.
pub struct Figures {
    pub gradient_norms: String,
    pub loss: String,
    pub boundary: String,
    pub report: String,
}

pub fn draw(settings: &Settings, data: &Data, runs: &[Trained]) -> Result<Figures, Failure> {
    let gradient_norms = gradient_norms(settings, runs).to_svg();
    let loss = losses(runs).to_svg();
    let boundary = boundary(data, runs)?.to_svg();
    let report = report(settings, runs, &gradient_norms, &loss, &boundary);
    Ok(Figures { gradient_norms, loss, boundary, report })
}

/// Epochs worth a line: the first and the last, and the powers of ten between.
fn shown_epochs(count: usize) -> Vec<usize> {
    let mut epochs: Vec<usize> =
        [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].into_iter().filter(|&e| e + 1 < count).collect();
    if epochs.len() > 6 {
        epochs.retain(|e| ![2, 20, 200].contains(e));
    }
    epochs.extend(count.checked_sub(1));
    epochs
}

/// The main figure: norm against depth, a panel per variant, a line per chosen epoch.
fn gradient_norms(settings: &Settings, runs: &[Trained]) -> LineChart {
    let mut chart = LineChart::new(
        "Gradient norm of every layer's weights",
        Axis::linear("layer, from the input"),
        Axis::log("L2 norm, mean over the epoch"),
    )
    .subtitle(&format!(
        "{} layers of width {}, {}",
        settings.arguments.depth,
        settings.arguments.width,
        settings.clip.map_or("no clipping".into(), |clip| format!("before clipping at {clip}")),
    ))
    .key("epoch");
    for run in runs {
        let mut panel = Panel::new(run.variant.name()).caption(&run.formula);
        let rows = &run.history.gradient_norms;
        let epochs = shown_epochs(rows.len());
        let last = epochs.last().copied().unwrap_or(0).max(1) as f64;
        for &epoch in &epochs {
            let points = rows[epoch].iter().enumerate().map(|(layer, &norm)| (layer as f64, norm));
            let t = (1.0 + epoch as f64).ln() / (1.0 + last).ln();
            panel = panel.series(Series::new(&epoch.to_string(), points).sequential(t));
        }
        if epochs.is_empty() {
            let points =
                run.history.first_step().iter().enumerate().map(|(layer, &norm)| (layer as f64, norm));
            panel = panel.series(Series::new("first step", points).sequential(0.0));
        }
        chart = chart.panel(panel);
    }
    for run in runs {
        if let Some(d) = &run.history.divergence {
            chart = chart.note(&format!(
                "{} diverged in epoch {} (step {})",
                run.variant.name(),
                d.epoch,
                d.step
            ));
        }
    }
    chart
}

/// The same norms as a map: layer by epoch.
fn heat_map(runs: &[Trained]) -> HeatMap {
    let mut map =
        HeatMap::new("Gradient norms, every layer and epoch", "epoch", "layer", Axis::log("L2 norm"));
    for run in runs {
        let norms = &run.history.gradient_norms;
        if norms.is_empty() {
            continue;
        }
        let rows: Vec<String> = (0..run.history.layers.len()).map(|layer| layer.to_string()).collect();
        let columns: Vec<String> = (0..norms.len()).map(|epoch| epoch.to_string()).collect();
        let values = (0..rows.len())
            .flat_map(|layer| norms.iter().map(move |epoch| epoch[layer]))
            .collect::<Vec<f64>>();
        map = map.panel(HeatPanel::new(run.variant.name(), &rows, &columns, values).caption(&run.formula));
    }
    map
}

fn too_many_lines(runs: &[Trained]) -> bool {
    runs.len() > CATEGORY_COUNT
}

/// One panel with a line per variant, or a panel per variant where the lines would be too many to tell apart.
fn losses(runs: &[Trained]) -> LineChart {
    let chart = |title| LineChart::new(title, Axis::linear("epoch"), Axis::log("cross-entropy"));
    let line = |run: &Trained, name: &str, loss: fn(&Metrics) -> f64| {
        let metrics = run.history.metrics.iter().enumerate();
        let mut points: Vec<(f64, f64)> = metrics.map(|(epoch, m)| (epoch as f64, loss(m))).collect();
        if let Some(d) = &run.history.divergence {
            points.push((d.epoch as f64, f64::NAN));
        }
        Series::new(name, points)
    };
    if !too_many_lines(runs) {
        let lines = runs.iter().map(|run| line(run, run.variant.name(), |m| m.train_loss));
        return lines.fold(chart("Training loss"), LineChart::series);
    }
    let panel = |run: &Trained| {
        Panel::new(run.variant.name())
            .caption(&run.formula)
            .series(line(run, "training", |m| m.train_loss))
            .series(line(run, "validation", |m| m.validation_loss))
    };
    runs.iter().map(panel).fold(chart("Loss"), LineChart::panel)
}

const GRID: usize = 100;

/// What each network has learned, over the whole plane.
fn boundary(data: &Data, runs: &[Trained]) -> Result<Boundary, Failure> {
    let points = data.raw.features().to_f64_vec()?;
    let labels = data.raw.labels().to_f64_vec()?;
    let range = |axis: usize| {
        let values = points.iter().skip(axis).step_by(2);
        let low = values.clone().copied().fold(f64::INFINITY, f64::min);
        let high = values.copied().fold(f64::NEG_INFINITY, f64::max);
        let margin = 0.08 * (high - low).max(1e-9);
        (low - margin, high + margin)
    };
    let (x, y) = (range(0), range(1));
    let at = |(low, high): (f64, f64), i: usize| low + (high - low) * i as f64 / (GRID - 1) as f64;
    let grid: Vec<f64> = (0..GRID * GRID).flat_map(|i| [at(x, i % GRID), at(y, i / GRID)]).collect();
    let grid = Tensor::from_f64(&grid, [GRID * GRID, 2], data.raw.features().dtype());

    let names = data.raw.class_names();
    let mut figure = Boundary::new("Decision boundaries", [&names[0], &names[1]])
        .subtitle("shade: probability of each class; dots: all points");
    for run in runs {
        let caption = match (&run.history.divergence, run.history.last()) {
            (Some(d), _) => format!("diverged in epoch {}", d.epoch),
            (None, Some(m)) => format!("accuracy {:.3}", m.validation_accuracy),
            (None, None) => String::new(),
        };
        let dots = points.chunks(2).zip(&labels).map(|(p, &label)| (p[0], p[1], label as usize));
        let shade = probabilities(&run.model, &data.scaler, &grid)?;
        figure = figure
            .panel(BoundaryPanel::new(run.variant.name(), x, y, GRID, shade).caption(&caption).points(dots));
    }
    Ok(figure)
}

/// What differs between some variants besides the way their layers are joined; empty if nothing does.
fn more_than_joins(runs: &[Trained]) -> String {
    let any = |is: fn(&Trained) -> bool| runs.iter().any(is);
    let normed = |run: &Trained| run.formula.contains("norm") || run.variant.has_streams();
    let notes = [
        (any(|run| run.variant == Variant::Euler), "euler goes through one block again and again"),
        (any(|run| run.variant == Variant::DeepNorm), "deepnorm starts with smaller weights in its blocks"),
        (
            any(normed),
            "what has a norm in its formula, or several streams, has the weights of its norms besides",
        ),
    ];
    let notes: Vec<&str> = notes.into_iter().filter_map(|(there, note)| there.then_some(note)).collect();
    if notes.is_empty() { String::new() } else { format!(" Some differ in more: {}.", notes.join("; ")) }
}

fn report(settings: &Settings, runs: &[Trained], gradient_norms: &str, loss: &str, boundary: &str) -> String {
    let command = settings.command();
    // Of many variants, formulas would push the numbers off the page; they stand above the panels.
    let formulas = !too_many_lines(runs);
    let with_formula = |cells: [String; 8]| {
        cells
            .into_iter()
            .enumerate()
            .filter(move |(column, _)| formulas || *column != 1)
            .map(|(_, cell)| cell)
    };
    let headers = [
        "variant",
        "connection",
        "accuracy",
        "loss",
        "∇ second layer",
        "∇ middle",
        "∇ last",
        "last ÷ second",
    ];
    let mut summary = Table::new(with_formula(headers.map(String::from)));
    let mut norms_table = Table::new(["variant and layer", "first step", "first epoch", "last epoch"]);
    let mut metrics_table = Table::new(["variant and epoch", "training loss", "validation loss", "accuracy"]);
    for run in runs {
        let h = &run.history;
        let first = h.first_step();
        let norm = |layer: usize| first.get(layer).map_or("–".to_string(), |&v| scale::number(v));
        let depth = h.layers.len();
        let ratio = match (first.get(1), first.last()) {
            (Some(&second), Some(&last)) if second > 0.0 => scale::number(last / second),
            _ => "–".into(),
        };
        let (accuracy, loss) = match (&h.divergence, h.last()) {
            (Some(d), _) => (format!("diverged, epoch {}", d.epoch), "–".into()),
            (None, Some(m)) => (format!("{:.3}", m.validation_accuracy), format!("{:.4}", m.train_loss)),
            (None, None) => ("–".into(), "–".into()),
        };
        summary = summary.row(with_formula([
            run.variant.name().to_string(),
            run.formula.clone(),
            accuracy,
            loss,
            norm(1.min(depth - 1)),
            norm(depth / 2),
            norm(depth - 1),
            ratio,
        ]));
        let at = |rows: Option<&Vec<f64>>, layer: usize| {
            rows.and_then(|row| row.get(layer)).map_or("–".to_string(), |&v| scale::number(v))
        };
        for (layer, name) in h.layers.iter().enumerate() {
            norms_table = norms_table.row([
                format!("{} {name}", run.variant.name()),
                norm(layer),
                at(h.gradient_norms.first(), layer),
                at(h.gradient_norms.last(), layer),
            ]);
        }
        for (epoch, m) in h.metrics.iter().enumerate() {
            let Metrics { train_loss, validation_loss, validation_accuracy } = m;
            metrics_table = metrics_table.row([
                format!("{} {epoch}", run.variant.name()),
                format!("{train_loss:.6}"),
                format!("{validation_loss:.6}"),
                format!("{validation_accuracy:.4}"),
            ]);
        }
    }
    let diverged: Vec<String> = runs
        .iter()
        .filter_map(|run| {
            let d = run.history.divergence.as_ref()?;
            Some(format!(
                "{} diverged in epoch {}, step {}: {}.",
                run.variant.name(),
                d.epoch,
                d.step,
                d.cause
            ))
        })
        .collect();
    let mut loss_prose =
        "Mean cross-entropy over each epoch's batches. ln 2 ≈ 0.693 is a coin toss.".to_string();
    if !diverged.is_empty() {
        loss_prose += &format!("\n\n{}", diverged.join("\n\n"));
    }

    let loss_caption = match too_many_lines(runs) {
        true => "Training and validation loss per epoch",
        false => "Training loss per epoch",
    };
    let lead = "The same points, the same layers, the same first weights; only the way the layers are joined differs. \
                The table (∇: norm of a layer's weight gradient at the first step) and the first figure show how much \
                of the gradient reaches each layer.";
    Report::new("Two moons through a deep network")
        .lead(&format!("{lead}{}", more_than_joins(runs)))
        .summary(summary)
        .section(
            Section::new("How far the gradient gets")
                .prose(
                    "Backpropagation goes from the right to the left. A layer's gradient is the next one's times the \
                     layer's gain; without a skip connection the usual initialisation and ReLU have a gain of about \
                     0.41 a layer, and the product vanishes. With one, the derivative of a block is 1 plus \
                     something: the gradient arrives.",
                )
                .figure(gradient_norms, "Gradient norms against depth, for the epochs in the key")
                .table("The numbers", norms_table)
                .command(&command),
        )
        .section(
            Section::new("Every layer, every epoch")
                .figure(&heat_map(runs).to_svg(), "Gradient norm by layer and epoch, one scale for all")
                .prose("All numbers are in gradient_norms.csv beside this file.")
                .command(&command),
        )
        .section(
            Section::new("Loss")
                .prose(&loss_prose)
                .figure(loss, loss_caption)
                .table("The numbers", metrics_table)
                .command(&command),
        )
        .section(
            Section::new("What was learned")
                .figure(boundary, "Probability of each class over the plane, and all points")
                .command(&command),
        )
        .to_html()
}
