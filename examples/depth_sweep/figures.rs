//! The figures and the report.

use limpid::report::{Axis, LineChart, Panel, Report, Section, Series, Table, scale};

use crate::settings::{MAP_SAMPLES, Settings};
use crate::spread::{Group, Spread};

/// What is drawn of a sweep.
pub struct Figures {
    pub accuracy: String,
    pub gradients: String,
    /// `None` if no variant has streams to mix.
    pub composite: Option<String>,
    pub report: String,
}

pub fn draw(settings: &Settings, groups: &[Group]) -> Figures {
    let accuracy = accuracy(settings, groups);
    let gradients = gradients(settings, groups);
    let composite = composite(settings, groups);
    let report = report(settings, groups, &accuracy, &gradients, composite.as_deref());
    Figures { accuracy, gradients, composite, report }
}

/// Over the depth, a line through the medians and a band over all seeds, for each variant that has the number.
fn lines<'a>(
    settings: &'a Settings,
    groups: &'a [Group],
    number: fn(&Group) -> Option<Spread>,
) -> impl Iterator<Item = Series> + 'a {
    settings.variants.iter().filter_map(move |&variant| {
        let of_variant: Vec<&Group> = groups.iter().filter(|group| group.variant() == variant).collect();
        let found: Vec<(f64, Option<Spread>)> =
            of_variant.iter().map(|group| (group.depth() as f64, number(group))).collect();
        found.iter().any(|(_, spread)| spread.is_some()).then(|| {
            let of = |f: fn(Spread) -> f64, spread: Option<Spread>| spread.map_or(f64::NAN, f);
            let points = found.iter().map(|&(depth, spread)| (depth, of(|s| s.median, spread)));
            let band = found.iter().map(|&(_, spread)| (of(|s| s.low, spread), of(|s| s.high, spread)));
            Series::new(variant.name(), points).band(band)
        })
    })
}

fn subtitle(settings: &Settings) -> String {
    let a = &settings.arguments;
    format!("width {}, {} epochs; median of {} seeds, band: all of them", a.width, a.epochs, a.seeds)
}

fn accuracy(settings: &Settings, groups: &[Group]) -> String {
    let chart =
        LineChart::new("Accuracy after training", Axis::log("layers"), Axis::linear("validation accuracy"))
            .subtitle(&subtitle(settings));
    lines(settings, groups, |group| group.accuracy()).fold(chart, LineChart::series).to_svg()
}

fn gradients(settings: &Settings, groups: &[Group]) -> String {
    let panel = |title: &str, number: fn(&Group) -> Option<Spread>| {
        lines(settings, groups, number).fold(Panel::new(title), Panel::series)
    };
    LineChart::new("How much gradient arrives", Axis::log("layers"), Axis::log("L2 norm, weights of a layer"))
        .subtitle(&subtitle(settings))
        .panel(panel("second layer, before", |group| group.before(|run| run.before.second)))
        .panel(panel("last block, before", |group| group.before(|run| run.before.last)))
        .panel(panel("second layer, trained", |group| group.after(|trained| trained.gradient.second)))
        .panel(panel("last block, trained", |group| group.after(|trained| trained.gradient.last)))
        .to_svg()
}

fn composite(settings: &Settings, groups: &[Group]) -> Option<String> {
    groups.iter().find(|group| group.perturbed(|gain| Some(gain.forward)).is_some())?;
    let panel = |title: &str, number: fn(&Group) -> Option<Spread>| {
        lines(settings, groups, number).fold(Panel::new(title), Panel::series)
    };
    let chart = LineChart::new(
        "The product of all mixes",
        Axis::log("layers"),
        Axis::log("gain, singular value"),
    )
    .subtitle(&format!(
        "forward: gain, the largest absolute row sum; perturbed: N(0, {}²) added to the mixing before training; {}",
        settings.arguments.perturbation,
        subtitle(settings)
    ))
    .panel(panel("forward, perturbed", |group| group.perturbed(|gain| Some(gain.forward))))
    .panel(panel("σ₂, perturbed", |group| group.perturbed(|gain| gain.second)))
    .panel(panel("forward, trained", |group| group.learned(|gain| Some(gain.forward))))
    .panel(panel("σ₂, trained", |group| group.learned(|gain| gain.second)));
    Some(chart.to_svg())
}

fn median(spread: Option<Spread>) -> String {
    spread.map_or("–".into(), |spread| scale::number(spread.median))
}

/// `median (smallest – largest)`.
fn cell(spread: Option<Spread>) -> String {
    spread.map_or("–".into(), |Spread { low, median, high }| {
        format!("{} ({}–{})", scale::number(median), scale::number(low), scale::number(high))
    })
}

fn report(
    settings: &Settings,
    groups: &[Group],
    accuracy: &str,
    gradients: &str,
    composite: Option<&str>,
) -> String {
    let a = &settings.arguments;
    let command = settings.command();
    let mut summary =
        Table::new(["variant, layers", "accuracy", "diverged", "∇ second layer", "∇ last block"]);
    let mut ranges =
        Table::new(["variant, layers", "second, before", "last, before", "second, trained", "last, trained"]);
    let mut maps = Table::new([
        "variant, layers",
        "forward, perturbed",
        "back, perturbed",
        "σ₂, perturbed",
        "forward, trained",
        "back, trained",
        "σ₂, trained",
    ]);
    for group in groups {
        let name = format!("{}, {}", group.variant(), group.depth());
        summary = summary.row([
            name.clone(),
            cell(group.accuracy()),
            format!("{} of {}", group.diverged(), group.runs()),
            median(group.before(|run| run.before.second)),
            median(group.before(|run| run.before.last)),
        ]);
        ranges = ranges.row([
            name.clone(),
            cell(group.before(|run| run.before.second)),
            cell(group.before(|run| run.before.last)),
            cell(group.after(|trained| trained.gradient.second)),
            cell(group.after(|trained| trained.gradient.last)),
        ]);
        if group.perturbed(|gain| Some(gain.forward)).is_some() {
            maps = maps.row([
                name,
                cell(group.perturbed(|gain| Some(gain.forward))),
                cell(group.perturbed(|gain| Some(gain.backward))),
                cell(group.perturbed(|gain| gain.second)),
                cell(group.learned(|gain| Some(gain.forward))),
                cell(group.learned(|gain| Some(gain.backward))),
                cell(group.learned(|gain| gain.second)),
            ]);
        }
    }
    let mut report = Report::new("Two moons, deeper and deeper")
        .lead(&format!(
            "Networks of {} to {} layers learn the same {} points. The table has medians of {} seeds and, in \
             brackets, the lowest and the highest accuracy; ∇ is the norm of the gradient of a layer's weights on the first batch, \
             before training. It is a small problem and a narrow network: what it shows of depth, it shows of these.",
            a.depths.first().copied().unwrap_or_default(),
            a.depths.last().copied().unwrap_or_default(),
            a.samples,
            a.seeds,
        ))
        .summary(summary)
        .section(
            Section::new("What they learn")
                .prose(
                    "Half of the points are of each class: 0.5 is a coin toss. A line ends where every run diverged.\n\n\
                     plain and residual have no norms. hc and mhc, as published, have one in front of every branch: to \
                     see what is the norm's doing and what the streams', add pre-norm to --variants, which is the one \
                     stream with that norm.",
                )
                .figure(accuracy, "Accuracy on the points that were not trained on")
                .command(&command),
        )
        .section(
            Section::new("How much gradient arrives")
                .prose(
                    "Backpropagation comes from the last block and ends in front of the first. If the second layer's \
                     gradient falls with depth while the last block's does not, it vanishes on the way.",
                )
                .figure(gradients, "Gradient norm of the second layer and of the last block")
                .table("The numbers", ranges)
                .command(&command),
        );
    if let Some(composite) = composite {
        report = report.section(
            Section::new("What the mixes do to the streams")
                .prose(&format!(
                    "A network of n streams multiplies them by a matrix A in every block. The product of all A is what \
                     reaches the last block from the first without crossing a branch. Its largest absolute row sum is how \
                     much a signal can grow on the way, its largest column sum how much a gradient can grow on the way \
                     back, and its second singular value, σ₂, how much of what tells the streams apart is left. The \
                     numbers are those of the worst of the first {MAP_SAMPLES} samples: the largest gain, the smallest σ₂.\n\n\
                     At the start every A is the identity, or close to it. Perturbed means that a normal draw of \
                     standard deviation {} has been added to each of its numbers (hc), or to each of the logits that \
                     Sinkhorn–Knopp makes it from (mhc): the former are free to grow, the latter make rows that sum to 1 \
                     whatever they are. A row gain of 1 does not say that the streams stay apart; σ₂ says it.",
                    a.perturbation,
                ))
                .figure(composite, "Forward gain and second singular value of the product of all mixes")
                .table("The numbers", maps)
                .command(&command),
        );
    }
    report.to_html()
}
