//! Lines: one panel or several that share their axes.

use super::frame::{self, Frame, Grid, Heading, Height, Plot, SMALL};
use super::multiples::Multiples;
use super::palette::{self, CATEGORY_COUNT, Ink, MUTED, TEXT};
use super::scale::{Scale, Tick, number};
use super::svg::{self, Element, Path, text_width};

/// How high the panels of one row are.
const PLOT_HEIGHT: f64 = 260.0;
/// How thick a line is.
const LINE: f64 = 1.8;

/// How wide a name at a line's end may be.
const END_LABEL: f64 = 200.0;

/// The meaning of an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it measures, with the unit: `epoch`, `time / ms`.
    pub label: String,
    /// Whether it is divided by powers of ten.
    pub log: bool,
}

impl Axis {
    /// An evenly divided axis.
    pub fn linear(label: &str) -> Axis {
        Axis { label: label.into(), log: false }
    }

    /// An axis by powers of ten. Zero and less have no place on it: they are marked at the foot of the plot.
    pub fn log(label: &str) -> Axis {
        Axis { label: label.into(), log: true }
    }

    pub(super) fn scale(&self, values: impl IntoIterator<Item = f64>) -> Scale {
        if self.log { Scale::log(values) } else { Scale::linear(values) }
    }

    pub(super) fn full_label(&self) -> String {
        if self.log && !self.label.is_empty() {
            format!("{} (log scale)", self.label)
        } else {
            self.label.clone()
        }
    }
}

/// A named line, with an optional band around it.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    band: Vec<(f64, f64)>,
    /// A place in the sequential map; without one, the next colour of the categories.
    place: Option<f64>,
    /// Whether the band is the thing, and the line only its upper edge.
    area: bool,
}

impl Series {
    /// A line through points (x, y) in the order given. A y that is not finite leaves a gap and is pointed out.
    pub fn new(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Series {
        let points = points.into_iter().collect();
        Series { name: name.into(), points, band: Vec::new(), place: None, area: false }
    }

    /// With a band from the lower to the upper value at each point: a spread over seeds, a share of a whole.
    ///
    /// # Panics
    /// If there are not as many pairs as points.
    #[track_caller]
    pub fn band(mut self, band: impl IntoIterator<Item = (f64, f64)>) -> Series {
        self.band = band.into_iter().collect();
        let (pairs, points) = (self.band.len(), self.points.len());
        assert_eq!(pairs, points, "the band of {:?} has {pairs} pairs for {points} points", self.name);
        self
    }

    /// Coloured as a member of an ordered set, `t` from 0 (the first) to 1 (the last).
    pub fn sequential(mut self, t: f64) -> Series {
        self.place = Some(t);
        self
    }

    /// Shares of a whole on top of each other: each becomes a band from the sum of those before it to that sum and
    /// itself.
    ///
    /// # Panics
    /// If the shares have different lengths.
    ///
    /// ```
    /// use limpid::report::{Axis, LineChart, Series};
    /// let stack = Series::stacked(&[1.0, 2.0], &[("skip", &[0.7, 0.6]), ("branch", &[0.3, 0.4])]);
    /// let chart = LineChart::new("Where the gradient comes from", Axis::linear("epoch"), Axis::linear("share"));
    /// let svg = stack.into_iter().fold(chart, LineChart::series).to_svg();
    /// assert!(svg.contains(">branch<"));
    /// ```
    #[track_caller]
    pub fn stacked(x: &[f64], shares: &[(&str, &[f64])]) -> Vec<Series> {
        let mut below = vec![0.0; x.len()];
        let mut stack = Vec::with_capacity(shares.len());
        for (name, share) in shares {
            assert_eq!(
                share.len(),
                x.len(),
                "share {name:?} has {} values for {} places",
                share.len(),
                x.len()
            );
            let above: Vec<f64> = below.iter().zip(*share).map(|(b, s)| b + s).collect();
            let points = x.iter().copied().zip(above.iter().copied());
            let band = below.into_iter().zip(above.iter().copied());
            stack.push(Series { area: true, ..Series::new(name, points).band(band) });
            below = above;
        }
        stack
    }

    fn ink(&self, index: usize) -> Ink {
        self.place.map_or_else(|| palette::category(index), palette::sequential_ink)
    }

    /// Categories beyond the number of colours are dashed.
    fn dashes(&self, index: usize) -> Option<&'static str> {
        let round = if self.place.is_some() { 0 } else { index / CATEGORY_COUNT };
        [None, Some("6 3"), Some("2 3")][round.min(2)]
    }

    fn line(&self, path: Path, index: usize, width: f64) -> Element {
        let line = Element::path(path).stroke(self.ink(index), width).attribute("stroke-linejoin", "round");
        match self.dashes(index) {
            Some(dashes) => line.attribute("stroke-dasharray", dashes),
            None => line.attribute("stroke-linecap", "round"),
        }
    }

    /// Its name, and a line below for where it diverged.
    fn end_label_height(&self) -> f64 {
        if self.diverged().is_some() { 29.0 } else { 16.0 }
    }

    fn last_finite(&self) -> Option<usize> {
        self.points.iter().rposition(|(x, y)| x.is_finite() && y.is_finite())
    }

    /// The x where the line stops being finite for good, if it does so after having been finite or without ever being so.
    fn diverged(&self) -> Option<f64> {
        let next = self.last_finite().map_or(0, |i| i + 1);
        self.points[next..].iter().find(|(x, y)| x.is_finite() && !y.is_finite()).map(|(x, _)| *x)
    }
}

/// Lines that share a plot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Panel {
    title: String,
    caption: String,
    series: Vec<Series>,
}

impl Panel {
    /// A panel with its title.
    pub fn new(title: &str) -> Panel {
        Panel { title: title.into(), ..Panel::default() }
    }

    /// With a few words below the title: what to see.
    pub fn caption(mut self, caption: &str) -> Panel {
        self.caption = caption.into();
        self
    }

    /// With one more line.
    pub fn series(mut self, series: Series) -> Panel {
        self.series.push(series);
        self
    }
}

/// A figure of lines: one panel, whose lines are named where they end (if they are few), or several side by side with the same
/// axes and one key.
///
/// ```
/// use limpid::report::{Axis, LineChart, Series};
/// let losses = (0..100).map(|epoch| (f64::from(epoch), 0.7 * 0.96f64.powi(epoch)));
/// let svg = LineChart::new("Training loss", Axis::linear("epoch"), Axis::log("cross-entropy / nats"))
///     .series(Series::new("residual", losses))
///     .series(Series::new("plain", [(0.0, 0.7), (1.0, 0.69), (2.0, f64::NAN)]))
///     .to_svg();
/// assert!(svg.contains("diverged at epoch 2"));
/// ```
///
/// Several panels, lines in an order:
///
/// ```
/// use limpid::report::{Axis, LineChart, Panel, Series};
/// let norms = |rate: f64| move |epoch: f64| {
///     Series::new(&format!("{epoch}"), (1..=20).map(move |l| (f64::from(l), rate.powi(20 - l)))).sequential(epoch / 100.0)
/// };
/// let panel = |title: &str, rate: f64| [1.0, 50.0, 100.0].map(norms(rate)).into_iter().fold(Panel::new(title), Panel::series);
/// let svg = LineChart::new("Gradient by depth", Axis::linear("layer"), Axis::log("gradient norm"))
///     .key("epoch")
///     .panel(panel("plain", 0.5))
///     .panel(panel("residual", 0.99))
///     .to_svg();
/// assert!(svg.starts_with("<svg"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LineChart {
    title: String,
    subtitle: String,
    x: Axis,
    y: Axis,
    key: String,
    panels: Vec<Panel>,
    mark: Option<(f64, String)>,
    notes: Vec<String>,
}

impl LineChart {
    /// A figure without lines.
    pub fn new(title: &str, x: Axis, y: Axis) -> LineChart {
        let (subtitle, key) = (String::new(), String::new());
        let (panels, mark, notes) = (Vec::new(), None, Vec::new());
        LineChart { title: title.into(), subtitle, x, y, key, panels, mark, notes }
    }

    /// With a sentence below the title: what to see.
    pub fn subtitle(mut self, subtitle: &str) -> LineChart {
        self.subtitle = subtitle.into();
        self
    }

    /// With a word for what the lines' names are, before the key of several panels: `epoch`.
    pub fn key(mut self, key: &str) -> LineChart {
        self.key = key.into();
        self
    }

    /// With one more panel.
    pub fn panel(mut self, panel: Panel) -> LineChart {
        self.panels.push(panel);
        self
    }

    /// With one more line in the last panel; the first makes a panel without a title.
    pub fn series(mut self, series: Series) -> LineChart {
        match self.panels.last_mut() {
            Some(panel) => panel.series.push(series),
            None => self.panels.push(Panel::default().series(series)),
        }
        self
    }

    /// With a vertical line through every panel at this x, and, where there is room beside it, a few words: what
    /// happens there. Beyond the lines it has no place and is left out.
    ///
    /// ```
    /// use limpid::report::{Axis, LineChart, Series};
    /// let rate = (0..100).map(|step| (f64::from(step), if step < 60 { 0.1 } else { 0.01 }));
    /// let svg = LineChart::new("Learning rate", Axis::linear("step"), Axis::log("rate"))
    ///     .series(Series::new("sgd", rate))
    ///     .mark(60.0, "milestone")
    ///     .to_svg();
    /// assert!(svg.contains(">milestone<"));
    /// ```
    pub fn mark(mut self, x: f64, label: &str) -> LineChart {
        self.mark = Some((x, label.into()));
        self
    }

    /// With a note at the foot.
    pub fn note(mut self, note: &str) -> LineChart {
        self.notes.push(note.into());
        self
    }

    /// The figure as an SVG file.
    pub fn to_svg(&self) -> String {
        let single = self.panels.len() <= 1;
        let lines = self.panels.iter().flat_map(|panel| &panel.series);
        let at_ends = single && lines.map(Series::end_label_height).sum::<f64>() <= PLOT_HEIGHT;
        let mut frame = Frame::new(&self.title, &self.subtitle);
        if !at_ends {
            frame.key(&self.key, self.key_entries());
        }
        let height = if self.panels.len() <= 4 { PLOT_HEIGHT } else { 170.0 };
        let labels = (self.x.full_label(), self.y.full_label());
        let zeros = self.draw(&mut frame, &self.panels, height, at_ends, (&labels.0, &labels.1));
        frame.finish(&self.all_notes(zeros), &self.description(&self.panels))
    }

    /// The same figure as one small SVG text per panel, on the same axes, for a [`Section`](super::Section) that places
    /// them as the page allows.
    pub fn to_multiples(&self) -> Multiples {
        let mut zeros = false;
        let mut panels = Vec::new();
        for panel in &self.panels {
            let shown = std::slice::from_ref(panel);
            let mut frame = Frame::small(&format!("{}: {}", self.title, panel.title));
            zeros |= self.draw(&mut frame, shown, 150.0, false, ("", ""));
            panels.push((panel.title.clone(), frame.finish(&[], &self.description(shown))));
        }
        let mut key = Frame::small(&format!("{}: what the lines are", self.title));
        let entries = self.key_entries();
        let names: Vec<String> = entries.iter().map(|(_, name)| name.clone()).collect();
        key.key(&self.key, entries);
        Multiples {
            title: self.title.clone(),
            axes: format!("Up: {}. Across: {}.", self.y.full_label(), self.x.full_label()),
            key: key.finish(&[], &names.join(", ")),
            panels,
            notes: self.all_notes(zeros),
        }
    }

    /// The scales of both axes, for all panels.
    fn scales(&self) -> (Scale, Scale) {
        let all = || self.panels.iter().flat_map(|panel| &panel.series);
        let x = self.x.scale(all().flat_map(|s| s.points.iter().map(|p| p.0)));
        let bands = all().flat_map(|s| s.band.iter().flat_map(|&(low, high)| [low, high]));
        let y = self.y.scale(all().flat_map(|s| s.points.iter().map(|p| p.1)).chain(bands)).rounded();
        (x, y)
    }

    /// Draws some of the panels; whether a line has zeros or less, that a logarithmic scale cannot place.
    fn draw(
        &self,
        frame: &mut Frame,
        shown: &[Panel],
        height: f64,
        at_ends: bool,
        (x_label, y_label): (&str, &str),
    ) -> bool {
        let (x, y) = self.scales();
        let headings: Vec<Heading> = match shown.is_empty() {
            true => vec![Heading::default()],
            false => shown.iter().map(|panel| self.heading(panel, at_ends)).collect(),
        };
        let y_ticks = y.ticks((height / 32.0) as usize);
        let left = frame::gutter(y_ticks.iter().map(|tick| tick.label.as_str()));
        // Half of the last tick's label may stand beyond the plot.
        let right = if at_ends { self.end_label_width() } else { 16.0 };
        let between = 26.0;
        let width = frame.panel_width(headings.len(), left + 22.0, between, right);
        let plots = frame.grid(&Grid {
            headings: &headings,
            left,
            between,
            right,
            height: Height::Fixed(height),
            x_label,
            y_label,
        });
        let x_ticks = x.ticks(((width / 36.0) as usize).clamp(2, 12));
        let mut zeros = false;
        for (i, plot) in plots.iter().enumerate() {
            frame.axes(plot, &x_ticks, &y_ticks);
            if let Some((at, label)) = &self.mark
                && let Some(across) = x.position(*at).filter(|across| (0.0..=1.0).contains(across))
            {
                draw_mark(frame, plot, across, label);
            }
            let series = shown.get(i).map_or(&[][..], |panel| &panel.series);
            if !series.iter().any(|s| s.last_finite().is_some()) {
                frame.empty(plot, if series.is_empty() { "no data" } else { "no finite value" });
            }
            let categories = shown.get(i).map_or(Vec::new(), |panel| self.categories(panel));
            categories.iter().zip(series).for_each(|(&k, s)| draw_band(frame, plot, (x, y), s, k));
            for (&k, s) in categories.iter().zip(series) {
                zeros |= draw_line(frame, plot, (x, y), s, k);
            }
            if at_ends {
                self.end_labels(frame, plot, (x, y), series);
            }
        }
        zeros
    }

    /// The notes, and what has no place on a scale.
    fn all_notes(&self, zeros: bool) -> Vec<String> {
        let mut notes = self.notes.clone();
        if zeros {
            notes.push("Dots on the lower axis are zero or negative: they have no logarithm.".into());
        }
        let (x, _) = self.scales();
        let points = self.panels.iter().flat_map(|panel| &panel.series).flat_map(|s| &s.points);
        let lost = points.filter(|p| x.position(p.0).is_none()).count();
        if lost > 0 {
            notes.push(format!("Points without a place on the lower axis, left out: {lost}."));
        }
        notes
    }

    /// Which category each line of a panel is: in several panels, lines of one name have one colour.
    fn categories(&self, panel: &Panel) -> Vec<usize> {
        let mut names: Vec<&str> = Vec::new();
        for series in self.panels.iter().flat_map(|p| &p.series) {
            if !names.contains(&series.name.as_str()) {
                names.push(&series.name);
            }
        }
        let by_name = |s: &Series| names.iter().position(|name| *name == s.name);
        let several = self.panels.len() > 1;
        panel.series.iter().enumerate().map(|(i, s)| by_name(s).filter(|_| several).unwrap_or(i)).collect()
    }

    fn key_entries(&self) -> Vec<(Element, String)> {
        let mut entries: Vec<(Element, String)> = Vec::new();
        for panel in &self.panels {
            for (index, series) in self.categories(panel).into_iter().zip(&panel.series) {
                if entries.iter().all(|(_, name)| *name != series.name) {
                    let mut path = Path::new();
                    path.polyline([(0.0, 0.0), (18.0, 0.0)]);
                    let line = series.line(path, index, 3.0);
                    entries.push((line, series.name.clone()));
                }
            }
        }
        entries
    }

    /// What a line that left the finite numbers is said to have done: `diverged at epoch 7`.
    fn divergence(&self, at: f64) -> String {
        let word = self.x.label.split(['/', '(', ',']).next().unwrap_or_default().trim();
        let word = if word.is_empty() { "x =" } else { word };
        format!("diverged at {word} {}", number(at))
    }

    fn heading(&self, panel: &Panel, at_ends: bool) -> Heading {
        let mut diverged = panel.series.iter().filter_map(|s| Some((s, s.diverged()?)));
        let alert = match (diverged.next(), diverged.count()) {
            _ if at_ends => String::new(),
            (None, _) => String::new(),
            (Some((series, at)), 0) => format!("✕ {} {}", series.name, self.divergence(at)),
            (Some((series, at)), more) => {
                format!("✕ {} {}, {more} more did", series.name, self.divergence(at))
            }
        };
        Heading { title: panel.title.clone(), caption: panel.caption.clone(), alert }
    }

    fn end_label_width(&self) -> f64 {
        let series = self.panels.iter().flat_map(|panel| &panel.series);
        let width = |s: &Series| {
            let second = s.diverged().map_or(0.0, |at| text_width(&self.divergence(at), 11.0));
            text_width(&s.name, SMALL).min(END_LABEL).max(second)
        };
        series.map(width).fold(0.0, f64::max) + 30.0
    }

    /// Each line's name right of the plot, at the height where the line ends, moved apart where they would overlap.
    fn end_labels(&self, frame: &mut Frame, plot: &Plot, (x, y): (Scale, Scale), series: &[Series]) {
        let mut labels: Vec<(f64, f64, usize)> = Vec::new();
        for (index, s) in series.iter().enumerate() {
            let end = (0..s.points.len()).rev().find_map(|i| {
                let middle = if s.area { (s.band[i].0 + s.band[i].1) / 2.0 } else { s.points[i].1 };
                Some(plot.at(x.position(s.points[i].0)?, y.position(middle)?))
            });
            // A line of which nothing can be drawn is still named, at the foot.
            let (across, end) = end.unwrap_or(plot.at(1.0, 0.0));
            if plot.x + plot.width - across > 12.0 {
                let mut guide = Path::new();
                guide.polyline([(across + 8.0, end), (plot.x + plot.width, end)]);
                frame.push(
                    Element::path(guide).stroke(s.ink(index), 1.0).attribute("stroke-dasharray", "1 4"),
                );
            }
            labels.push((end, s.end_label_height(), index));
        }
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let heights: Vec<(f64, f64)> = labels.iter().map(|l| (l.0, l.1)).collect();
        let centres = spread(&heights, plot.y - 8.0, plot.y + plot.height + 8.0);
        let edge = plot.x + plot.width;
        for ((end, height, index), centre) in labels.into_iter().zip(centres) {
            let s = &series[index];
            let mut leader = Path::new();
            let first = centre - height / 2.0 + 8.0;
            leader.polyline([(edge + 4.0, end), (edge + 16.0, first)]);
            frame.push(s.line(leader, index, LINE));
            let name = svg::shorten(&s.name, END_LABEL, SMALL);
            frame.push(Element::text(edge + 22.0, first + 4.0, SMALL, TEXT, &name));
            if let Some(at) = s.diverged() {
                let note = self.divergence(at);
                frame.push(Element::text(edge + 22.0, first + 18.0, 11.0, MUTED, &note));
            }
        }
    }

    fn description(&self, shown: &[Panel]) -> String {
        let mut text = format!("{} against {}.", self.y.full_label(), self.x.full_label());
        for panel in shown {
            if !panel.title.is_empty() {
                text.push_str(&format!(" {}:", panel.title));
            }
            for s in &panel.series {
                let first = s.points.iter().find(|p| p.1.is_finite()).map(|p| p.1);
                let range = match (first, s.last_finite()) {
                    (Some(first), Some(last)) => format!("{} to {}", number(first), number(s.points[last].1)),
                    _ => "no finite value".into(),
                };
                let diverged = s.diverged().map_or(String::new(), |at| format!(", {}", self.divergence(at)));
                text.push_str(&format!(" {} {range}{diverged};", s.name));
            }
        }
        text
    }
}

/// A vertical line, and right or left of it at the top its label, if there is room for that.
fn draw_mark(frame: &mut Frame, plot: &Plot, across: f64, label: &str) {
    let ((x, top), (_, bottom)) = (plot.at(across, 1.0), plot.at(across, 0.0));
    let mut line = Path::new();
    line.polyline([(x, top), (x, bottom)]);
    frame.push(Element::path(line).stroke(MUTED, 1.0).attribute("stroke-dasharray", "4 3"));
    let room = text_width(label, SMALL) + 16.0;
    let text = |x: f64| Element::text(x, top + 11.0, SMALL, MUTED, label);
    if x + room <= plot.x + plot.width {
        frame.push(text(x + 14.0));
    } else if x - room >= plot.x {
        frame.push(text(x - 14.0).anchor("end"));
    }
}

fn draw_band(frame: &mut Frame, plot: &Plot, (x, y): (Scale, Scale), series: &Series, index: usize) {
    // A bound below the scale (a zero on a logarithmic one) reaches its foot.
    let place = |v: f64| y.position(v).or(v.is_finite().then_some(0.0));
    let corners: Vec<Option<[(f64, f64); 2]>> = series
        .points
        .iter()
        .zip(&series.band)
        .map(|(p, b)| {
            let across = x.position(p.0)?;
            Some([plot.at(across, place(b.0)?), plot.at(across, place(b.1)?)])
        })
        .collect();
    let mut area = Path::new();
    for run in corners.split(Option::is_none) {
        let run: Vec<[(f64, f64); 2]> = run.iter().flatten().copied().collect();
        if run.len() > 1 {
            area.polygon(run.iter().map(|c| c[1]).chain(run.iter().rev().map(|c| c[0])));
        }
    }
    if !area.is_empty() {
        let opacity = if series.area { "0.45" } else { "0.2" };
        frame.push(Element::path(area).fill(series.ink(index)).attribute("fill-opacity", opacity));
    }
}

/// Draws the line; whether it has zeros or less, that a logarithmic scale cannot place.
fn draw_line(frame: &mut Frame, plot: &Plot, (x, y): (Scale, Scale), series: &Series, index: usize) -> bool {
    let places: Vec<Option<(f64, f64)>> =
        series.points.iter().map(|p| Some(plot.at(x.position(p.0)?, y.position(p.1)?))).collect();
    let (mut line, mut dots) = (Path::new(), Path::new());
    for run in places.split(Option::is_none) {
        let run: Vec<(f64, f64)> = run.iter().flatten().copied().collect();
        match run[..] {
            [] => {}
            [(x, y)] => dots.dot(x, y),
            _ => line.polyline(thin(&run)),
        }
    }
    let zero = |p: &&(f64, f64)| y.is_log() && p.1.is_finite() && p.1 <= 0.0;
    let mut on_axis = Path::new();
    for across in series.points.iter().filter(zero).filter_map(|p| x.position(p.0)) {
        let (across, bottom) = plot.at(across, 0.0);
        on_axis.dot(across, bottom);
    }
    let zeros = !on_axis.is_empty();
    if !line.is_empty() {
        frame.push(series.line(line, index, LINE));
    }
    for (path, width) in [(dots, 4.0), (on_axis, 3.0)] {
        if !path.is_empty() {
            frame.push(
                Element::path(path).stroke(series.ink(index), width).attribute("stroke-linecap", "round"),
            );
        }
    }
    if let (Some(_), Some((across, up))) = (series.diverged(), places.iter().flatten().last()) {
        let mut cross = Path::new();
        cross.polyline([(across - 4.5, up - 4.5), (across + 4.5, up + 4.5)]);
        cross.polyline([(across - 4.5, up + 4.5), (across + 4.5, up - 4.5)]);
        frame.push(Element::path(cross).stroke(series.ink(index), 2.4).attribute("stroke-linecap", "round"));
    }
    zeros
}

/// Of many points within half a pixel across, the first, lowest, highest and last: what can be seen of them.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let column = |p: &(f64, f64)| (p.0 * 2.0).floor();
    points
        .chunk_by(|a, b| column(a) == column(b))
        .flat_map(|chunk| {
            let by_height = |a: &usize, b: &usize| chunk[*a].1.total_cmp(&chunk[*b].1);
            let low = (0..chunk.len()).min_by(by_height).unwrap_or(0);
            let high = (0..chunk.len()).max_by(by_height).unwrap_or(0);
            let mut kept = vec![0, low, high, chunk.len() - 1];
            kept.sort_unstable();
            kept.dedup();
            kept.into_iter().map(|i| chunk[i]).collect::<Vec<_>>()
        })
        .collect()
}

/// The centres of labels that want to stand at given heights, in order, moved as little as a pass down and a
/// pass up move them so that none overlaps the next.
fn spread(labels: &[(f64, f64)], top: f64, bottom: f64) -> Vec<f64> {
    let mut centres: Vec<f64> = labels.iter().map(|l| l.0).collect();
    let mut edge = top;
    for (centre, (_, height)) in centres.iter_mut().zip(labels) {
        *centre = centre.max(edge + height / 2.0);
        edge = *centre + height / 2.0;
    }
    let mut edge = bottom.max(edge.min(bottom));
    for (centre, (_, height)) in centres.iter_mut().zip(labels).rev() {
        *centre = centre.min(edge - height / 2.0);
        edge = *centre - height / 2.0;
    }
    centres
}

/// The ticks of an axis that counts: those labels, evenly placed, that are round numbers or every n-th, so that
/// about `count` remain.
pub(super) fn index_ticks(labels: &[String], count: usize) -> Vec<Tick> {
    let place = |i: usize| (i as f64 + 0.5) / labels.len() as f64;
    let tick = |i: usize| Tick { position: place(i), label: labels[i].clone() };
    if labels.len() <= count {
        return (0..labels.len()).map(tick).collect();
    }
    let numbers: Option<Vec<f64>> = labels.iter().map(|l| l.parse().ok()).collect();
    if let Some(numbers) = numbers.filter(|n| n.windows(3).all(|w| (w[2] - w[1]) == (w[1] - w[0]))) {
        let round: Vec<String> = Scale::linear(numbers).ticks(count).into_iter().map(|t| t.label).collect();
        let kept: Vec<Tick> = (0..labels.len()).filter(|i| round.contains(&labels[*i])).map(tick).collect();
        if kept.len() >= 2 {
            return kept;
        }
    }
    let stride = labels.len().div_ceil(count.max(1));
    (0..labels.len()).step_by(stride).map(tick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(series: impl IntoIterator<Item = Series>) -> String {
        let chart = LineChart::new("t", Axis::linear("epoch"), Axis::log("norm"));
        series.into_iter().fold(chart, LineChart::series).to_svg()
    }

    #[test]
    fn nothing_to_draw_is_said() {
        assert!(LineChart::new("t", Axis::linear("x"), Axis::linear("y")).to_svg().contains(">no data<"));
        let svg = chart([Series::new("lost", [(0.0, f64::NAN), (1.0, f64::INFINITY)])]);
        assert!(svg.contains(">no finite value<") && svg.contains(">diverged at epoch 0<"));
    }

    #[test]
    fn a_gap_is_a_gap_and_the_end_is_a_divergence() {
        let heal = Series::new("heals", [(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 2.0)]);
        let svg = chart([heal.clone()]);
        assert!(!svg.contains("diverged"));
        let path = svg.lines().find(|l| l.contains("stroke-linejoin")).unwrap();
        assert_eq!(path.matches('M').count(), 2);
        let dies = Series::new("dies", [(0.0, 1.0), (1.0, 2.0), (7.0, f64::INFINITY), (8.0, f64::NAN)]);
        assert!(chart([heal, dies]).contains(">diverged at epoch 7<"));
    }

    #[test]
    fn zeros_on_a_log_axis_are_marked_and_explained() {
        let svg = chart([Series::new("a", [(0.0, 1.0), (1.0, 0.1), (2.0, 0.0), (3.0, 0.0)])]);
        assert!(svg.contains("have no logarithm"));
        assert!(!svg.contains("diverged"));
        assert!(!chart([Series::new("a", [(0.0, 1.0), (1.0, 0.1)])]).contains("have no logarithm"));
    }

    #[test]
    fn one_name_has_one_colour_in_all_panels() {
        let line = |name: &str| Series::new(name, [(0.0, 1.0), (1.0, 2.0)]);
        let chart = LineChart::new("t", Axis::linear("x"), Axis::linear("y"))
            .panel(Panel::new("one").series(line("a")).series(line("b")))
            .panel(Panel::new("two").series(line("b")).series(line("c")));
        assert_eq!(chart.categories(&chart.panels[1]), [1, 2]);
        assert_eq!(chart.key_entries().len(), 3);
    }

    #[test]
    fn points_that_cannot_be_placed_are_counted() {
        let chart = LineChart::new("t", Axis::log("step"), Axis::linear("y"));
        let svg = chart.series(Series::new("a", [(0.0, 1.0), (1.0, 2.0), (10.0, 3.0)])).to_svg();
        assert!(svg.contains("left out: 1."));
    }

    #[test]
    fn panels_say_which_line_diverged_first() {
        let dies = |name: &str, at: f64| Series::new(name, [(1.0, 1.0), (at, f64::NAN)]);
        let svg = LineChart::new("t", Axis::linear("layer"), Axis::log("norm"))
            .panel(Panel::new("one").series(dies("a", 3.0)))
            .panel(Panel::new("two").series(dies("a", 4.0)).series(dies("b", 5.0)))
            .to_svg();
        assert!(svg.contains("✕ a diverged at layer 3<"));
        assert!(svg.contains("✕ a diverged at layer 4,"), "{svg}");
    }

    #[test]
    fn names_at_line_ends_never_overlap_and_stay_in_order() {
        let labels = [(10.0, 16.0), (10.0, 29.0), (11.0, 16.0), (95.0, 16.0), (99.0, 16.0)];
        let centres = spread(&labels, 0.0, 100.0);
        for i in 1..labels.len() {
            assert!(
                centres[i] - centres[i - 1] >= (labels[i].1 + labels[i - 1].1) / 2.0 - 1e-9,
                "{centres:?}"
            );
        }
        assert!(centres[0] >= 8.0 && centres[4] <= 92.0, "{centres:?}");
        assert_eq!(spread(&[(50.0, 16.0)], 0.0, 100.0), [50.0]);
    }

    #[test]
    fn thinning_keeps_extremes_and_ends() {
        let points: Vec<(f64, f64)> =
            (0..10_000).map(|i| (f64::from(i) / 1000.0, f64::from(i * 7919 % 1009))).collect();
        let thinned = thin(&points);
        assert!(thinned.len() <= 4 * 21);
        let range =
            |p: &[(f64, f64)]| p.iter().fold((f64::MAX, f64::MIN), |r, q| (r.0.min(q.1), r.1.max(q.1)));
        assert_eq!(range(&thinned), range(&points));
        assert_eq!((thinned[0], thinned.last()), (points[0], points.last()));
        assert_eq!(thin(&points[..2]), points[..2]);
    }

    #[test]
    fn counted_axes_show_round_numbers() {
        let labels: Vec<String> = (1..=100).map(|i| i.to_string()).collect();
        let ticks: Vec<String> = index_ticks(&labels, 5).into_iter().map(|t| t.label).collect();
        assert_eq!(ticks, ["20", "40", "60", "80", "100"]);
        let names: Vec<String> = ["embed", "a", "b", "c", "head"].map(String::from).to_vec();
        assert_eq!(index_ticks(&names, 5).len(), 5);
        assert_eq!(index_ticks(&names, 3).len(), 2 + 1);
        assert!(index_ticks(&[], 3).is_empty());
    }

    #[test]
    fn the_same_data_gives_the_same_bytes() {
        let series = || {
            (0..9).map(|k| {
                Series::new(&format!("s{k}"), (0..50).map(move |i| (f64::from(i), f64::from(i * k).exp())))
            })
        };
        assert_eq!(chart(series()), chart(series()));
    }

    #[test]
    fn shares_stand_on_each_other() {
        let stack = Series::stacked(&[1.0, 2.0], &[("skip", &[0.75, 0.5]), ("branch", &[0.25, 0.5])]);
        assert_eq!(stack[0].band, [(0.0, 0.75), (0.0, 0.5)]);
        assert_eq!(stack[1].band, [(0.75, 1.0), (0.5, 1.0)]);
        assert_eq!(stack[1].points, [(1.0, 1.0), (2.0, 1.0)]);
    }

    #[test]
    #[should_panic(expected = "the band of \"a\" has 1 pairs for 2 points")]
    fn a_band_of_another_length_is_refused() {
        let _ = Series::new("a", [(0.0, 1.0), (1.0, 1.0)]).band([(0.0, 1.0)]);
    }
}
