//! What every figure has around its plots: title, key, a row or two of panels, axis titles, notes.

use super::palette::{AXIS, GRID, MUTED, TEXT};
use super::scale::Tick;
use super::svg::{self, Element, Path, text_width};

/// Of a figure that stands alone.
const WIDTH: f64 = 880.0;
const MARGIN: f64 = 24.0;
/// Of one of many small panels, and of their key: what fits beside two more on a page, and alone on a phone.
const SMALL_WIDTH: f64 = 310.0;
const SMALL_MARGIN: f64 = 4.0;
/// Of tick labels, captions and keys.
pub(super) const SMALL: f64 = 12.0;
/// Between a plot's edge and its tick labels.
const TICK_GAP: f64 = 8.0;

/// A figure under construction, from the top down.
pub(super) struct Frame {
    title: String,
    body: Element,
    pub(super) width: f64,
    pub(super) margin: f64,
    /// Where the next thing goes.
    pub(super) y: f64,
}

/// The words over one panel.
#[derive(Clone, Debug, Default)]
pub(super) struct Heading {
    pub(super) title: String,
    pub(super) caption: String,
    /// Something that must not be overlooked.
    pub(super) alert: String,
}

/// How panels of one size are laid out.
pub(super) struct Grid<'a> {
    pub(super) headings: &'a [Heading],
    /// Room for tick labels left of the first column, and left of every other one.
    pub(super) left: f64,
    pub(super) between: f64,
    /// Room for labels right of the last column.
    pub(super) right: f64,
    pub(super) height: Height,
    pub(super) x_label: &'a str,
    pub(super) y_label: &'a str,
}

/// How tall a panel is.
#[derive(Clone, Copy)]
pub(super) enum Height {
    /// As high as this.
    Fixed(f64),
    /// As high as it is wide times this.
    Relative(f64),
}

/// The rectangle of the page that one panel draws in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plot {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    /// Whether it stands in the first column: only there are shared labels written.
    pub(super) first: bool,
}

impl Plot {
    /// The point of the page for a position, (0, 0) being the lower left corner.
    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x + x * self.width, self.y + (1.0 - y) * self.height)
    }

    /// A coordinate system of its own with the origin in the upper left corner, that nothing sticks out of.
    pub(super) fn viewport(&self) -> Element {
        let Plot { x, y, width, height, .. } = *self;
        Element::new("svg").number("x", x).number("y", y).number("width", width).number("height", height)
    }

    fn bottom(&self) -> f64 {
        self.y + self.height
    }
}

/// How many columns `count` panels stand in: at most four, and rows as equal as can be.
fn columns(count: usize) -> usize {
    let rows = count.div_ceil(4).max(1);
    count.div_ceil(rows).max(1)
}

impl Frame {
    pub(super) fn new(title: &str, subtitle: &str) -> Frame {
        let body = Element::group();
        let mut frame = Frame { title: title.into(), body, width: WIDTH, margin: MARGIN, y: MARGIN };
        for line in svg::wrap(title, frame.inner(), 18.0) {
            frame.y += 18.0;
            frame.push(Element::text(MARGIN, frame.y, 18.0, TEXT, &line).attribute("font-weight", "600"));
            frame.y += 5.0;
        }
        frame.paragraph(subtitle, 13.5);
        frame.y += 8.0;
        frame
    }

    /// A small figure without words of its own: the page around it has them. The title is for those who hear it.
    pub(super) fn small(title: &str) -> Frame {
        let (width, margin) = (SMALL_WIDTH, SMALL_MARGIN);
        Frame { title: title.into(), body: Element::group(), width, margin, y: 0.0 }
    }

    /// The width between the margins.
    pub(super) fn inner(&self) -> f64 {
        self.width - 2.0 * self.margin
    }

    /// How wide one of `count` panels is, the rest being what labels need in the whole row.
    pub(super) fn panel_width(&self, count: usize, left: f64, between: f64, right: f64) -> f64 {
        let columns = columns(count) as f64;
        (self.inner() - left - right - between * (columns - 1.0)) / columns
    }

    fn paragraph(&mut self, text: &str, size: f64) {
        for line in svg::wrap(text, self.inner(), size) {
            self.y += size + 4.0;
            self.push(Element::text(self.margin, self.y, size, MUTED, &line));
        }
    }

    pub(super) fn push(&mut self, element: Element) {
        self.body.push(element);
    }

    /// A key: a label, then each swatch (drawn right of the origin, 18 wide, centred on y = 0) with its name, in as
    /// many rows as it takes.
    pub(super) fn key(&mut self, label: &str, entries: Vec<(Element, String)>) {
        if entries.is_empty() {
            return;
        }
        self.y += 20.0;
        let mut x = self.margin;
        if !label.is_empty() {
            self.push(Element::text(x, self.y, SMALL, MUTED, label));
            x += text_width(label, SMALL) + 14.0;
        }
        for (swatch, name) in entries {
            let name = svg::shorten(&name, self.inner() - 24.0, SMALL);
            let width = 24.0 + text_width(&name, SMALL);
            if x + width > self.width - self.margin && x > self.margin {
                self.y += 20.0;
                x = self.margin;
            }
            let place = format!("translate({} {})", svg::coordinate(x), svg::coordinate(self.y - 4.0));
            self.push(Element::group().attribute("transform", &place).child(swatch));
            self.push(Element::text(x + 24.0, self.y, SMALL, TEXT, &name));
            x += width + 18.0;
        }
        self.y += 6.0;
    }

    /// Lays the panels out below what is there, writes their headings and the titles of the axes, and goes
    /// on below them.
    pub(super) fn grid(&mut self, grid: &Grid<'_>) -> Vec<Plot> {
        let columns = columns(grid.headings.len());
        let left = grid.left + if grid.y_label.is_empty() { 0.0 } else { 22.0 };
        let width = self.panel_width(grid.headings.len(), left, grid.between, grid.right);
        let height = match grid.height {
            Height::Fixed(height) => height,
            Height::Relative(ratio) => width * ratio,
        };
        let mut plots = Vec::new();
        let top = self.y;
        for (row, headings) in grid.headings.chunks(columns).enumerate() {
            self.y += if row == 0 { 14.0 } else { 22.0 };
            let lines: Vec<Vec<Element>> = headings.iter().map(|h| h.lines(width)).collect();
            let tallest = lines.iter().map(Vec::len).max().unwrap_or(0) as f64 * 17.0;
            for (column, lines) in lines.into_iter().enumerate() {
                let x = self.margin + left + column as f64 * (width + grid.between);
                for (i, line) in lines.into_iter().enumerate() {
                    let y = self.y + 17.0 * i as f64 + 11.0;
                    let place = format!("translate({} {})", svg::coordinate(x), svg::coordinate(y));
                    self.push(line.attribute("transform", &place));
                }
                plots.push(Plot { x, y: self.y + tallest + 6.0, width, height, first: column == 0 });
            }
            self.y += tallest + 6.0 + height + 22.0;
        }
        if !grid.x_label.is_empty() {
            self.y += 16.0;
            let centre = (left + self.width - grid.right) / 2.0;
            let label = svg::shorten(grid.x_label, 2.0 * (centre - self.margin), 13.0);
            self.push(Element::text(centre, self.y, 13.0, MUTED, &label).anchor("middle"));
        }
        if !grid.y_label.is_empty() {
            let from = plots.first().map_or(top, |p| p.y);
            let to = plots.last().map_or(self.y, Plot::bottom);
            let turn = format!(
                "translate({} {}) rotate(-90)",
                svg::coordinate(self.margin + 10.0),
                svg::coordinate((from + to) / 2.0)
            );
            // A label longer than the plots are high is set smaller, down to what can still be read.
            let size = (13.0 * (to - from + 20.0) / text_width(grid.y_label, 13.0)).clamp(10.0, 13.0);
            let label = svg::shorten(grid.y_label, to - from + 20.0, size);
            let text =
                Element::text(0.0, 0.0, size, MUTED, &label).anchor("middle").attribute("transform", &turn);
            self.push(text);
        }
        self.y += 4.0;
        plots
    }

    /// Horizontal grid lines, the bottom axis and the labels of both.
    pub(super) fn axes(&mut self, plot: &Plot, x: &[Tick], y: &[Tick]) {
        let (mut lines, mut axis) = (Path::new(), Path::new());
        for tick in y {
            lines.polyline([plot.at(0.0, tick.position), plot.at(1.0, tick.position)]);
        }
        axis.polyline([plot.at(0.0, 0.0), plot.at(1.0, 0.0)]);
        if !lines.is_empty() {
            self.push(Element::path(lines).stroke(GRID, 1.0));
        }
        self.push(Element::path(axis).stroke(AXIS, 1.0));
        self.ticks(plot, x, y);
    }

    /// Marks and labels below a plot, and in the first column labels left of it.
    pub(super) fn ticks(&mut self, plot: &Plot, x: &[Tick], y: &[Tick]) {
        let mut marks = Path::new();
        for tick in x {
            let (across, bottom) = plot.at(tick.position, 0.0);
            marks.polyline([(across, bottom), (across, bottom + 4.0)]);
            self.push(Element::text(across, bottom + 18.0, SMALL, MUTED, &tick.label).anchor("middle"));
        }
        for tick in y.iter().filter(|_| plot.first) {
            let (left, height) = plot.at(0.0, tick.position);
            self.push(Element::text(left - TICK_GAP, height + 4.0, SMALL, MUTED, &tick.label).anchor("end"));
        }
        if !marks.is_empty() {
            self.push(Element::path(marks).stroke(AXIS, 1.0));
        }
    }

    /// A thin line around a plot.
    pub(super) fn border(&mut self, plot: &Plot) {
        self.push(Element::rect(plot.x, plot.y, plot.width, plot.height).stroke(AXIS, 1.0));
    }

    /// A word in the middle of a plot that has nothing to show.
    pub(super) fn empty(&mut self, plot: &Plot, message: &str) {
        let (x, y) = plot.at(0.5, 0.5);
        self.push(Element::text(x, y, SMALL, MUTED, message).anchor("middle"));
    }

    /// The finished file, with notes at its foot.
    pub(super) fn finish(mut self, notes: &[String], description: &str) -> String {
        if !notes.is_empty() {
            self.y += 4.0;
        }
        for note in notes {
            self.paragraph(note, SMALL);
        }
        svg::document(self.width, (self.y + self.margin).ceil(), &self.title, description, self.body)
    }
}

impl Heading {
    fn lines(&self, width: f64) -> Vec<Element> {
        let line = |text: String, size: f64, ink| Element::text(0.0, 0.0, size, ink, &text);
        let titles = svg::wrap(&self.title, width, 14.0).into_iter();
        let captions = svg::wrap(&self.caption, width, SMALL).into_iter();
        let alerts = svg::wrap(&self.alert, width, SMALL).into_iter();
        titles
            .map(|t| line(t, 14.0, TEXT).attribute("font-weight", "600"))
            .chain(captions.map(|t| line(t, SMALL, MUTED)))
            .chain(alerts.map(|t| line(t, SMALL, TEXT).attribute("font-weight", "600")))
            .collect()
    }
}

/// The room that tick labels need left of a plot.
pub(super) fn gutter<'a>(labels: impl IntoIterator<Item = &'a str>) -> f64 {
    labels.into_iter().map(|label| text_width(label, SMALL)).fold(0.0, f64::max) + TICK_GAP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_fill_rows_evenly() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13].map(columns), [1, 1, 2, 3, 4, 3, 3, 4, 4, 3, 4, 4]);
    }

    #[test]
    fn panels_neither_overlap_nor_leave_the_page() {
        for count in 1..=9 {
            let headings = vec![Heading { title: "a".into(), ..Heading::default() }; count];
            let mut frame = Frame::new("t", "");
            let grid = Grid {
                headings: &headings,
                left: 40.0,
                between: 20.0,
                right: 10.0,
                height: Height::Fixed(100.0),
                x_label: "x",
                y_label: "y",
            };
            let plots = frame.grid(&grid);
            assert_eq!(plots.len(), count);
            for (i, a) in plots.iter().enumerate() {
                assert!(a.x >= MARGIN + 40.0 && a.x + a.width <= WIDTH - MARGIN - 10.0 + 1e-9);
                assert!(a.bottom() < frame.y);
                for b in &plots[..i] {
                    let apart = b.x + b.width < a.x || a.x + a.width < b.x || b.bottom() < a.y;
                    assert!(apart, "{count}: {a:?} {b:?}");
                }
            }
        }
    }
}
