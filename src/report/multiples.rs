//! Many small panels of one figure, each an SVG text of its own.

/// A figure as small multiples: panels on one scale, to be placed by the page they stand in, and its key.
///
/// Made by [`LineChart::to_multiples`](super::LineChart::to_multiples),
/// [`HeatMap::to_multiples`](super::HeatMap::to_multiples) and [`Boundary::to_multiples`](super::Boundary::to_multiples).
///
/// ```
/// use limpid::report::{Axis, LineChart, Panel, Series};
/// let panel = |name: &str, last: f64| Panel::new(name).series(Series::new("loss", [(0.0, 0.7), (1.0, last)]));
/// let chart = LineChart::new("Loss", Axis::linear("epoch"), Axis::log("loss"));
/// let multiples = chart.panel(panel("plain", 0.69)).panel(panel("residual", 0.02)).to_multiples();
/// assert_eq!(multiples.panels.len(), 2);
/// assert_eq!(multiples.axes, "Up: loss (log scale). Across: epoch.");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Multiples {
    /// The figure's title.
    pub title: String,
    /// What the axes are, in a sentence.
    pub axes: String,
    /// The key, as SVG text.
    pub key: String,
    /// The title of each panel, and the panel as SVG text.
    pub panels: Vec<(String, String)>,
    /// What stands at the foot.
    pub notes: Vec<String>,
}
