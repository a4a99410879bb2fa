//! Tables of numbers as colours.

use super::cells;
use super::chart::{Axis, index_ticks};
use super::frame::{self, Frame, Grid, Heading, Height, Plot, SMALL};
use super::multiples::Multiples;
use super::palette::{self, AXIS, MUTED, TEXT};
use super::scale::{Scale, number};
use super::svg::{self, Element, Path, text_width};

/// Shades between the ends of the colour bar: as many as an eye tells apart, and few enough that neighbours merge.
const SHADES: usize = 64;
/// The colour bar.
const BAR: (f64, f64) = (200.0, 10.0);

/// A table of numbers with names for its rows (from the top) and columns.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatPanel {
    title: String,
    caption: String,
    rows: Vec<String>,
    columns: Vec<String>,
    values: Vec<f64>,
}

impl HeatPanel {
    /// A table, its values row by row.
    ///
    /// # Panics
    /// If there are not rows × columns values.
    #[track_caller]
    pub fn new(title: &str, rows: &[String], columns: &[String], values: Vec<f64>) -> HeatPanel {
        let (r, c, n) = (rows.len(), columns.len(), values.len());
        assert_eq!(n, r * c, "heat map panel {title:?} has {n} values for {r} rows × {c} columns");
        HeatPanel {
            title: title.into(),
            caption: String::new(),
            rows: rows.into(),
            columns: columns.into(),
            values,
        }
    }

    /// With a few words below the title.
    pub fn caption(mut self, caption: &str) -> HeatPanel {
        self.caption = caption.into();
        self
    }
}

/// What a cell shows. Ordered, so that the order of the drawing is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shade {
    /// A place on the colour bar.
    Bar(usize),
    /// Zero, on a logarithmic bar.
    Zero,
    /// NaN, infinite, or negative on a logarithmic bar.
    None,
}

/// Panels of coloured cells that share one colour bar.
///
/// Cells without a place on the bar are hatched, and exact zeros on a logarithmic one left empty. A table with more
/// columns or rows than the panel has pixels is drawn in blocks of cells: their mean on the scale of the bar, hatched if
/// any of them is.
///
/// ```
/// use limpid::report::{Axis, HeatMap, HeatPanel};
/// let names = |n: usize| (1..=n).map(|i| i.to_string()).collect::<Vec<_>>();
/// let values = (0..6).map(|i| 10f64.powi(-i)).collect();
/// let svg = HeatMap::new("Gradient norm", "epoch", "layer", Axis::log("‖∂L/∂W‖"))
///     .panel(HeatPanel::new("plain", &names(2), &names(3), values))
///     .to_svg();
/// assert!(svg.contains("<title>Gradient norm</title>"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    title: String,
    subtitle: String,
    x_label: String,
    y_label: String,
    value: Axis,
    panels: Vec<HeatPanel>,
    notes: Vec<String>,
}

impl HeatMap {
    /// A figure without panels. The labels say what columns, rows and colours are.
    pub fn new(title: &str, x_label: &str, y_label: &str, value: Axis) -> HeatMap {
        HeatMap {
            title: title.into(),
            subtitle: String::new(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            value,
            panels: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// With a sentence below the title: what to see.
    pub fn subtitle(mut self, subtitle: &str) -> HeatMap {
        self.subtitle = subtitle.into();
        self
    }

    /// With one more panel.
    pub fn panel(mut self, panel: HeatPanel) -> HeatMap {
        self.panels.push(panel);
        self
    }

    /// With a note at the foot.
    pub fn note(mut self, note: &str) -> HeatMap {
        self.notes.push(note.into());
        self
    }

    /// The figure as an SVG file.
    pub fn to_svg(&self) -> String {
        let mut frame = Frame::new(&self.title, &self.subtitle);
        self.bar(&mut frame);
        let height = if self.panels.len() <= 1 { 0.4 } else { 0.92 };
        let block = self.draw(&mut frame, &self.panels, height, (&self.x_label, &self.y_label));
        frame.finish(&self.all_notes(block), &self.description(&self.panels))
    }

    /// The same figure as one small SVG text per panel, on the same scale, for a [`Section`](super::Section) that places
    /// them as the page allows.
    pub fn to_multiples(&self) -> Multiples {
        let mut block = (1, 1);
        let mut panels = Vec::new();
        for panel in &self.panels {
            let shown = std::slice::from_ref(panel);
            let mut frame = Frame::small(&format!("{}: {}", self.title, panel.title));
            let drawn = self.draw(&mut frame, shown, 0.6, ("", ""));
            block = (block.0.max(drawn.0), block.1.max(drawn.1));
            panels.push((panel.title.clone(), frame.finish(&[], &self.description(shown))));
        }
        let mut key = Frame::small(&format!("{}: what the colours are", self.title));
        self.bar(&mut key);
        Multiples {
            title: self.title.clone(),
            axes: format!("Down: {}. Across: {}.", self.y_label, self.x_label),
            key: key.finish(&[], &self.description(&[])),
            panels,
            notes: self.all_notes(block),
        }
    }

    /// The scale of the colours, for all panels.
    fn scale(&self) -> Scale {
        self.value.scale(self.panels.iter().flat_map(|p| p.values.iter().copied()))
    }

    /// Draws some of the panels; how many columns and rows went into one cell at most.
    fn draw(
        &self,
        frame: &mut Frame,
        shown: &[HeatPanel],
        height: f64,
        (x_label, y_label): (&str, &str),
    ) -> (usize, usize) {
        let scale = self.scale();
        let headings: Vec<Heading> = match shown.is_empty() {
            true => vec![Heading::default()],
            false => shown.iter().map(HeatPanel::heading).collect(),
        };
        // Row names are written once for a row of panels if all have the same.
        let shared = shown.windows(2).all(|w| w[0].rows == w[1].rows);
        let room = match headings.len() {
            _ if shared => 150.0,
            2 => 90.0,
            _ => 60.0,
        };
        let rows = || shown.iter().flat_map(|p| &p.rows).map(|name| svg::shorten(name, room, SMALL));
        let left = frame::gutter(rows().collect::<Vec<_>>().iter().map(String::as_str));
        let between = if shared { 22.0 } else { left + 16.0 };
        let plots = frame.grid(&Grid {
            headings: &headings,
            left,
            between,
            // Half of the last column's name may stand beyond the plot.
            right: 16.0,
            height: Height::Relative(height),
            x_label,
            y_label,
        });
        let mut block = (1, 1);
        for (plot, panel) in plots.iter().zip(shown) {
            let drawn = panel.draw(frame, plot, &scale, (plot.first || !shared).then_some(room));
            block = (block.0.max(drawn.0), block.1.max(drawn.1));
        }
        if shown.is_empty() {
            frame.empty(&plots[0], "no data");
        }
        block
    }

    fn all_notes(&self, block: (usize, usize)) -> Vec<String> {
        let mut notes = self.notes.clone();
        if block != (1, 1) {
            let mean = if self.value.log { "geometric mean" } else { "mean" };
            let (columns, rows) = block;
            notes.push(format!("Drawn in blocks of up to {columns} columns × {rows} rows: the {mean}."));
        }
        notes
    }

    /// The colour bar, and what the cells without a place on it look like.
    fn bar(&self, frame: &mut Frame) {
        let scale = self.scale();
        let mut values = self.panels.iter().flat_map(|p| &p.values);
        let zero = values.clone().any(|v| shade(&scale, *v) == Shade::Zero);
        let none = values.any(|v| shade(&scale, *v) == Shade::None);
        let label = svg::shorten(&self.value.full_label(), frame.inner(), SMALL);
        frame.y += 20.0;
        let (mut x, mut y) = (frame.margin, frame.y);
        frame.push(Element::text(x, y, SMALL, MUTED, &label));
        x += text_width(&label, SMALL) + 20.0;
        // A long label has a line of its own.
        if x + BAR.0 + 250.0 > frame.width {
            (x, y) = (frame.margin, y + 24.0);
        }
        let mut bar = Element::group().attribute("shape-rendering", "crispEdges");
        let width = BAR.0 / SHADES as f64;
        for i in 0..SHADES {
            let colour = palette::sequential(i as f64 / (SHADES - 1) as f64);
            bar.push(Element::rect(x + i as f64 * width, y - BAR.1, width + 0.5, BAR.1).fill(colour));
        }
        frame.push(bar);
        let mut marks = Path::new();
        for tick in scale.ticks(4) {
            let at = x + tick.position * BAR.0;
            marks.polyline([(at, y), (at, y + 4.0)]);
            frame.push(Element::text(at, y + 17.0, SMALL, MUTED, &tick.label).anchor("middle"));
        }
        if !marks.is_empty() {
            frame.push(Element::path(marks).stroke(AXIS, 1.0));
        }
        x += BAR.0 + 32.0;
        if zero {
            frame.push(Element::rect(x, y - BAR.1, 18.0, BAR.1).stroke(AXIS, 1.0));
            frame.push(Element::text(x + 24.0, y, SMALL, TEXT, "0"));
            x += 52.0;
        }
        if none && x + 24.0 + 150.0 > frame.width {
            (x, y) = (frame.margin, y + 34.0);
        }
        if none {
            let mut lines = Path::new();
            cells::hatch(&mut lines, x, y - BAR.1, 18.0, BAR.1);
            frame.push(cells::hatched(lines));
            frame.push(Element::rect(x, y - BAR.1, 18.0, BAR.1).stroke(AXIS, 1.0));
            let word = if self.value.log { "not a positive number" } else { "not finite" };
            frame.push(Element::text(x + 24.0, y, SMALL, TEXT, word));
        }
        frame.y = y + 22.0;
    }

    fn description(&self, shown: &[HeatPanel]) -> String {
        let mut text =
            format!("{}: {} down, {} across.", self.value.full_label(), self.y_label, self.x_label);
        for p in shown {
            let finite = || p.values.iter().copied().filter(|v| v.is_finite());
            let (low, high) =
                (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
            match low <= high {
                true => text.push_str(&format!(" {}: {} to {}", p.title, number(low), number(high))),
                false => text.push_str(&format!(" {}: no finite value", p.title)),
            }
            let lost = p.values.len() - finite().count();
            text.push_str(&if lost == 0 { ".".into() } else { format!(", {lost} not finite.") });
        }
        text
    }
}

fn shade(scale: &Scale, value: f64) -> Shade {
    match scale.position(value) {
        Some(p) => Shade::Bar((p.clamp(0.0, 1.0) * (SHADES - 1) as f64).round() as usize),
        None if scale.is_log() && value == 0.0 => Shade::Zero,
        None => Shade::None,
    }
}

impl HeatPanel {
    fn heading(&self) -> Heading {
        Heading { title: self.title.clone(), caption: self.caption.clone(), alert: String::new() }
    }

    /// Draws the cells and the names around them; how many columns and rows went into one cell.
    fn draw(&self, frame: &mut Frame, plot: &Plot, scale: &Scale, row_room: Option<f64>) -> (usize, usize) {
        let (width, height) = (self.columns.len(), self.rows.len());
        if self.values.is_empty() {
            frame.empty(plot, "no data");
            frame.border(plot);
            return (1, 1);
        }
        let block = (width.div_ceil(plot.width as usize), height.div_ceil(plot.height as usize));
        let (w, h) = (width.div_ceil(block.0), height.div_ceil(block.1));
        let merged = cells::merge(w, h, |x, y| self.block_shade(scale, block, x, y));
        let unit = (plot.width * block.0 as f64 / width as f64, plot.height * block.1 as f64 / height as f64);
        let place = format!("scale({:.5} {:.5})", unit.0, unit.1);
        let mut grid =
            Element::group().attribute("transform", &place).attribute("shape-rendering", "crispEdges");
        let mut lines = Path::new();
        for (shade, blocks) in &merged {
            match shade {
                Shade::Bar(i) => {
                    let colour = palette::sequential(*i as f64 / (SHADES - 1) as f64);
                    grid.push(Element::path(cells::path(blocks)).fill(colour));
                }
                Shade::Zero => {}
                Shade::None => {
                    for &(x, y, w, h) in blocks {
                        let (x, y) = (plot.x + x as f64 * unit.0, plot.y + y as f64 * unit.1);
                        let right = (x + w as f64 * unit.0).min(plot.x + plot.width);
                        let bottom = (y + h as f64 * unit.1).min(plot.y + plot.height);
                        cells::hatch(&mut lines, x, y, right - x, bottom - y);
                    }
                }
            }
        }
        // The last block may stand for fewer cells than the others: a nested viewport cuts it to its share.
        frame.push(plot.viewport().child(grid));
        if !lines.is_empty() {
            frame.push(cells::hatched(lines));
        }
        frame.border(plot);
        self.names(frame, plot, row_room);
        block
    }

    fn block_shade(&self, scale: &Scale, block: (usize, usize), x: usize, y: usize) -> Shade {
        let (width, height) = (self.columns.len(), self.rows.len());
        let (mut sum, mut count, mut zero) = (0.0, 0.0, false);
        for row in y * block.1..height.min((y + 1) * block.1) {
            for column in x * block.0..width.min((x + 1) * block.0) {
                let value = self.values[row * width + column];
                match (scale.position(value), shade(scale, value)) {
                    (_, Shade::None) => return Shade::None,
                    (Some(p), _) => (sum, count) = (sum + p, count + 1.0),
                    (None, _) => zero = true,
                }
            }
        }
        if zero { Shade::Zero } else { Shade::Bar((sum / count * (SHADES - 1) as f64).round() as usize) }
    }

    fn names(&self, frame: &mut Frame, plot: &Plot, row_room: Option<f64>) {
        let column_room = plot.width.min(90.0);
        let widest = self.columns.iter().map(|c| text_width(c, SMALL)).fold(0.0, f64::max).min(column_room);
        let mut columns = index_ticks(&self.columns, (plot.width / (widest + 14.0)).max(1.0) as usize);
        columns.iter_mut().for_each(|tick| tick.label = svg::shorten(&tick.label, column_room, SMALL));
        let mut names = index_ticks(&self.rows, (plot.height / 20.0) as usize);
        for tick in &mut names {
            tick.position = 1.0 - tick.position;
            tick.label = svg::shorten(&tick.label, row_room.unwrap_or(0.0), SMALL);
        }
        frame.ticks(&Plot { first: row_room.is_some(), ..*plot }, &columns, &names);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (1..=n).map(|i| i.to_string()).collect()
    }

    fn map(values: Vec<f64>, rows: usize, value: Axis) -> String {
        let columns = names(values.len() / rows);
        HeatMap::new("t", "epoch", "layer", value)
            .panel(HeatPanel::new("p", &names(rows), &columns, values))
            .to_svg()
    }

    #[test]
    fn what_is_not_a_number_is_hatched_and_zero_is_told_apart() {
        let clean = map(vec![1.0, 0.1, 0.01, 0.001], 2, Axis::log("v"));
        assert!(!clean.contains("not a positive number"));
        let lost = map(vec![1.0, f64::NAN, 0.0, 0.001], 2, Axis::log("v"));
        assert!(lost.contains(">not a positive number<") && lost.contains(">0<"));
        assert!(lost.contains("1 not finite"));
        assert!(map(vec![1.0, f64::INFINITY], 1, Axis::linear("v")).contains(">not finite<"));
    }

    #[test]
    fn equal_numbers_nothing_and_no_panel_draw() {
        assert!(map(vec![3.0; 6], 2, Axis::log("v")).contains("<svg"));
        assert!(map(vec![0.0; 6], 2, Axis::linear("v")).contains("<svg"));
        assert!(map(vec![f64::NAN; 6], 2, Axis::log("v")).contains("no finite value"));
        assert!(HeatMap::new("t", "", "", Axis::log("v")).to_svg().contains(">no data<"));
        let empty = HeatPanel::new("p", &[], &names(3), vec![]);
        assert!(HeatMap::new("t", "", "", Axis::log("v")).panel(empty).to_svg().contains(">no data<"));
    }

    #[test]
    fn a_lost_value_among_thousands_stays_visible() {
        let mut values = vec![1.0; 5000];
        values.extend([0.5; 5000]);
        let whole = map(values.clone(), 2, Axis::linear("v"));
        assert!(whole.contains("Drawn in blocks of up to") && !whole.contains("not finite<"));
        values[1234] = f64::NAN;
        let panel = HeatPanel::new("p", &names(2), &names(5000), values);
        let scale = Scale::linear([0.5, 1.0]);
        assert_eq!(panel.block_shade(&scale, (10, 1), 123, 0), Shade::None);
        assert_eq!(panel.block_shade(&scale, (10, 1), 122, 0), Shade::Bar(SHADES - 1));
        assert_eq!(panel.block_shade(&scale, (10, 2), 122, 0), Shade::Bar((SHADES - 1).div_ceil(2)));
    }

    #[test]
    #[should_panic(expected = "heat map panel \"p\" has 3 values for 2 rows × 2 columns")]
    fn a_table_with_a_hole_is_refused() {
        HeatPanel::new("p", &names(2), &names(2), vec![0.0; 3]);
    }
}
