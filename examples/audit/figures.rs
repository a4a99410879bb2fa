//! The figures: a panel per network, one scale for all.

use std::fmt::Write as _;

use limpid::Tensor;
use limpid::autograd::Degree;
use limpid::report::{
    Axis, Boundary, BoundaryPanel, HeatMap, HeatPanel, LineChart, Multiples, Panel, Series,
};

use crate::measure::{Audit, CAP, Shares};
use crate::network::Data;
use crate::{Failure, Run};

/// One figure: a file of its own, and small panels for the page.
pub struct Drawn {
    /// Of its SVG file, without the ending.
    pub file: String,
    /// The moment it shows, if it is of one.
    pub moment: &'static str,
    pub svg: String,
    pub multiples: Multiples,
}

/// Figures of one question: one for each moment, or one.
pub struct Figures {
    pub gradients: Drawn,
    pub spectrum: Vec<Drawn>,
    pub shares: Vec<Drawn>,
    pub composite: Vec<Drawn>,
    pub cosines: Vec<Drawn>,
    pub jacobians: Vec<Drawn>,
    pub memory: Drawn,
    /// Only of networks that were trained.
    pub loss: Option<Drawn>,
    pub boundary: Drawn,
    /// Its numbers, as rows `variant,x,y,probability`.
    pub boundary_points: String,
}

impl Figures {
    pub fn all(&self) -> impl Iterator<Item = &Drawn> {
        let moments = [&self.spectrum, &self.shares, &self.composite, &self.cosines, &self.jacobians];
        let single = [&self.gradients, &self.memory, &self.boundary];
        single.into_iter().chain(&self.loss).chain(moments.into_iter().flatten())
    }
}

pub fn draw(data: &Data, runs: &[Run]) -> Result<Figures, Failure> {
    let (boundary, boundary_points) = boundary(data, runs)?;
    Ok(Figures {
        gradients: heat("gradient_norms", gradient_norms(runs)),
        spectrum: at_moments(runs, "path_lengths", path_lengths),
        shares: at_moments(runs, "shares", shares),
        composite: at_moments(runs, "composite", composite),
        cosines: at_moments(runs, "cosines", cosines),
        jacobians: at_moments(runs, "jacobians", jacobians),
        memory: lines("memory", "", memory(runs)),
        loss: runs.iter().any(|run| run.audits.len() > 1).then(|| lines("loss", "", loss(runs))),
        boundary: Drawn {
            file: "boundary".into(),
            moment: "",
            svg: boundary.to_svg(),
            multiples: boundary.to_multiples(),
        },
        boundary_points,
    })
}

fn lines(file: &str, moment: &'static str, chart: LineChart) -> Drawn {
    Drawn { file: file.into(), moment, svg: chart.to_svg(), multiples: chart.to_multiples() }
}

fn heat(file: &str, map: HeatMap) -> Drawn {
    Drawn { file: file.into(), moment: "", svg: map.to_svg(), multiples: map.to_multiples() }
}

/// The same figure of each moment: `shares_before.svg`, `shares_after.svg`.
fn at_moments(
    runs: &[Run],
    file: &str,
    figure: fn(&'static str, &[(&Run, &Audit)]) -> LineChart,
) -> Vec<Drawn> {
    let moments: Vec<&'static str> = runs[0].audits.iter().map(|audit| audit.moment).collect();
    let at = |i: usize, moment: &'static str| {
        let audits: Vec<(&Run, &Audit)> = runs.iter().map(|run| (run, &run.audits[i])).collect();
        let suffix = moment.split(' ').next().unwrap_or(moment);
        lines(&format!("{file}_{suffix}"), moment, figure(moment, &audits))
    };
    moments.into_iter().enumerate().map(|(i, moment)| at(i, moment)).collect()
}

fn panel(run: &Run) -> Panel {
    Panel::new(run.variant().name()).caption(run.variant().formula())
}

fn gradient_norms(runs: &[Run]) -> HeatMap {
    let title = "Gradient norm of every layer's weight, epoch by epoch";
    let mut map = HeatMap::new(title, "epoch (start: before training)", "layer", Axis::log("L2 norm"));
    for run in runs {
        let mut columns = vec![("start".to_string(), &run.audits[0].weight_norms)];
        columns
            .extend((1..).zip(&run.network.epochs).map(|(i, epoch)| (i.to_string(), &epoch.gradient_norms)));
        let rows: Vec<String> = (0..run.network.layers.len()).map(|layer| layer.to_string()).collect();
        let names: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
        let values = (0..rows.len()).flat_map(|row| columns.iter().map(move |(_, norms)| norms[row]));
        let panel = HeatPanel::new(run.variant().name(), &rows, &names, values.collect());
        map = map.panel(panel.caption(run.variant().formula()));
    }
    map
}

/// The place of a degree on the axis.
pub fn place(degree: Degree) -> usize {
    match degree {
        Degree::Exactly(k) => k,
        Degree::MoreThan(k) => k + 1,
        Degree::Any => 0,
    }
}

/// The shares by the number of branches crossed: of all paths, and of those through a coefficient.
pub fn by_length(audit: &Audit) -> Vec<(f64, f64)> {
    let most = audit.spectrum.iter().map(|term| place(term.branches)).max().unwrap_or(0);
    let mut shares = vec![(0.0, 0.0); most + 1];
    for term in &audit.spectrum {
        let share = term.share.unwrap_or(f64::NAN);
        let at = &mut shares[place(term.branches)];
        at.0 += share;
        at.1 += if term.through_control { share } else { 0.0 };
    }
    shares
}

fn path_lengths(moment: &'static str, audits: &[(&Run, &Audit)]) -> LineChart {
    let x = Axis::linear("branches that a path crosses");
    let mut chart = LineChart::new(
        &format!("Share of the gradient by path length, {moment}"),
        x,
        Axis::linear("signed share of the gradient"),
    )
    .subtitle("the gradient at the first block, at the point where the network stands; shares sum to 1");
    for (run, audit) in audits {
        let shares = by_length(audit);
        let at = |f: fn(&(f64, f64)) -> f64| shares.iter().enumerate().map(move |(k, s)| (k as f64, f(s)));
        let mut panel = panel(run).series(Series::new("all paths", at(|s| s.0)));
        if shares.iter().any(|s| s.1 != 0.0) {
            panel = panel.series(Series::new("those through a coefficient", at(|s| s.1)));
        }
        chart = chart.panel(panel);
    }
    let capped = |audit: &Audit| audit.spectrum.iter().any(|t| matches!(t.branches, Degree::MoreThan(_)));
    match audits.iter().any(|(_, audit)| capped(audit)) {
        true => chart.note(&format!("The last point is all paths that cross more than {CAP} branches.")),
        false => chart,
    }
}

fn shares(moment: &'static str, audits: &[(&Run, &Audit)]) -> LineChart {
    let mut chart = LineChart::new(
        &format!("By which way the gradient comes to each block, {moment}"),
        Axis::linear("block"),
        Axis::linear("signed share of the gradient"),
    );
    for (run, audit) in audits {
        let mut panel = panel(run);
        for (k, name) in Shares::NAMES.into_iter().enumerate() {
            let all = || audit.blocks.iter().map(|block| block.shares.map_or(f64::NAN, |s| s.values()[k]));
            // Skip and branch everywhere, so that they have one colour; what does not occur elsewhere is left out.
            if k < 2 || all().any(|share| share != 0.0) {
                panel = panel.series(Series::new(name, (1..).map(f64::from).zip(all())));
            }
        }
        chart = chart.panel(panel);
    }
    chart
}

fn composite(moment: &'static str, audits: &[(&Run, &Audit)]) -> LineChart {
    let mut chart = LineChart::new(
        &format!("The composite map up to each block, {moment}"),
        Axis::linear("block"),
        Axis::log("factor"),
    )
    .note("Where lines lie on each other, the one named last in the key is on top.");
    for (run, audit) in audits {
        let with = |panel: Panel, name: &str, f: &dyn Fn(&Audit, usize) -> Option<f64>| {
            let points: Vec<(f64, f64)> =
                (0..audit.blocks.len()).filter_map(|i| Some(((i + 1) as f64, f(audit, i)?))).collect();
            if points.is_empty() { panel } else { panel.series(Series::new(name, points)) }
        };
        let panel = with(panel(run), "gain forward", &|a, i| Some(a.blocks[i].composite.forward_gain));
        let panel = with(panel, "gain backward", &|a, i| Some(a.blocks[i].composite.backward_gain));
        let panel = with(panel, "σ₂", &|a, i| a.blocks[i].composite.sigma_2);
        chart = chart.panel(with(panel, "|λ₂|", &|a, i| a.blocks[i].composite.lambda_2));
    }
    chart
}

fn cosines(moment: &'static str, audits: &[(&Run, &Audit)]) -> LineChart {
    let mut chart = LineChart::new(
        &format!("How alike the streams are behind each block, {moment}"),
        Axis::linear("block"),
        Axis::linear("mean cosine between streams"),
    );
    for (run, audit) in audits {
        let points: Vec<(f64, f64)> = (1..)
            .map(f64::from)
            .zip(&audit.blocks)
            .filter_map(|(i, b)| Some((i, b.composite.cosine?)))
            .collect();
        if !points.is_empty() {
            chart = chart.panel(panel(run).series(Series::new("cosine", points)));
        }
    }
    chart
}

fn jacobians(moment: &'static str, audits: &[(&Run, &Audit)]) -> LineChart {
    let mut chart = LineChart::new(
        &format!("Singular values of each branch's Jacobian, {moment}"),
        Axis::linear("singular value, the largest first"),
        Axis::linear("factor, mean over samples"),
    )
    .key("block");
    for (run, audit) in audits {
        let mut panel = panel(run);
        let count = audit.blocks.len();
        for i in shown(count) {
            let values = audit.blocks[i].jacobian.iter();
            let points = (1..).map(f64::from).zip(values.copied());
            let t = i as f64 / (count - 1).max(1) as f64;
            panel = panel.series(Series::new(&(i + 1).to_string(), points).sequential(t));
        }
        chart = chart.panel(panel);
    }
    chart
}

/// Up to five of `count` places, the first and the last among them.
fn shown(count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..5).map(|i| i * count.saturating_sub(1) / 4).collect();
    places.dedup();
    if count == 0 { Vec::new() } else { places }
}

fn memory(runs: &[Run]) -> LineChart {
    let mut chart = LineChart::new(
        "What the tape holds for the derivative, node by node",
        Axis::linear("node of the tape"),
        Axis::linear("held so far / KiB"),
    );
    for run in runs {
        let mut sum = 0.0;
        let points = run.last().nodes.iter().enumerate().map(|(i, node)| {
            sum += node.bytes as f64 / 1024.0;
            (i as f64, sum)
        });
        let caption = format!("{} in {} nodes", run.last().held_text(), run.last().nodes.len());
        let panel = Panel::new(run.variant().name()).caption(&caption);
        chart = chart.panel(panel.series(Series::new("held", points)));
    }
    chart
}

fn loss(runs: &[Run]) -> LineChart {
    let mut chart = LineChart::new("Loss in training", Axis::linear("epoch"), Axis::log("cross-entropy"));
    for run in runs {
        let epochs = || (1..).map(f64::from).zip(&run.network.epochs);
        let end = run.network.divergence.as_ref().map(|(epoch, ..)| ((epoch + 1) as f64, f64::NAN));
        let train = epochs().map(|(i, epoch)| (i, epoch.train_loss)).chain(end);
        let validation = epochs().map(|(i, epoch)| (i, epoch.validation_loss)).chain(end);
        chart = chart.panel(
            panel(run).series(Series::new("training", train)).series(Series::new("validation", validation)),
        );
    }
    chart
}

/// Grid points along an axis: a panel is small.
const GRID: usize = 60;

/// The figure, and the rows of its numbers.
fn boundary(data: &Data, runs: &[Run]) -> Result<(Boundary, String), Failure> {
    let points = data.raw.features().to_f64_vec()?;
    let labels = data.raw.labels().to_f64_vec()?;
    let range = |axis: usize| {
        let values = points.iter().skip(axis).step_by(2);
        let low = values.clone().copied().fold(f64::INFINITY, f64::min);
        let high = values.copied().fold(f64::NEG_INFINITY, f64::max);
        let margin = 0.08 * (high - low);
        (low - margin, high + margin)
    };
    let (x, y) = (range(0), range(1));
    let at = |(low, high): (f64, f64), i: usize| low + (high - low) * i as f64 / (GRID - 1) as f64;
    let places: Vec<[f64; 2]> = (0..GRID * GRID).map(|i| [at(x, i % GRID), at(y, i / GRID)]).collect();
    let grid = Tensor::from_f64(places.as_flattened(), [GRID * GRID, 2], data.raw.features().dtype());

    let names = data.raw.class_names();
    let mut rows = String::new();
    let mut figure = Boundary::new("What each network has learned", [&names[0], &names[1]]);
    for run in runs {
        let caption = match run.network.divergence {
            Some((epoch, ..)) => format!("diverged in epoch {}", epoch + 1),
            None => format!("accuracy {:.3}", run.network.evaluation.1),
        };
        // A quarter of the points: a page has a panel for every network.
        let dots = points.chunks(2).zip(&labels).step_by(4).map(|(p, &label)| (p[0], p[1], label as usize));
        let shade = run.network.probabilities(&data.scaler, &grid)?;
        for ([x, y], p) in places.iter().zip(&shade) {
            let _ = writeln!(rows, "{},{x:.4},{y:.4},{p:.4}", run.variant());
        }
        let panel = BoundaryPanel::new(run.variant().name(), x, y, GRID, shade);
        figure = figure.panel(panel.caption(&caption).points(dots));
    }
    Ok((figure, rows))
}
