//! Where a classifier changes its mind.

use super::cells;
use super::frame::{self, Frame, Grid, Heading, Height, Plot};
use super::multiples::Multiples;
use super::palette::{self, SURFACE, TEXT};
use super::scale::Scale;
use super::svg::{Element, Path};

/// Tints between certainty of one class and of the other. Even, so that the boundary lies between two of them.
const TINTS: usize = 12;
/// Tinted cells per pixel of a panel.
const RESOLUTION: f64 = 0.5;

/// A classifier of two classes on a rectangle of the plane.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundaryPanel {
    title: String,
    caption: String,
    x: (f64, f64),
    y: (f64, f64),
    width: usize,
    height: usize,
    probability: Vec<f64>,
    points: Vec<(f64, f64, usize)>,
}

impl BoundaryPanel {
    /// The probability of class 1 on a grid that spans `x` and `y` with its outermost values on the edges: row by
    /// row, `width` values each, from the smallest y to the largest.
    ///
    /// # Panics
    /// If the grid is less than 2 × 2, has not width × height values, or spans nothing.
    #[track_caller]
    pub fn new(
        title: &str,
        x: (f64, f64),
        y: (f64, f64),
        width: usize,
        probability: Vec<f64>,
    ) -> BoundaryPanel {
        let n = probability.len();
        assert!(
            width >= 2 && n >= 2 * width && n.is_multiple_of(width),
            "boundary panel {title:?}: {n} values are no grid of rows of {width}, at least 2 × 2"
        );
        assert!(x.0 < x.1 && y.0 < y.1, "boundary panel {title:?} spans nothing: x {x:?}, y {y:?}");
        let (title, caption, points) = (title.into(), String::new(), Vec::new());
        BoundaryPanel { title, caption, x, y, width, height: n / width, probability, points }
    }

    /// With a few words below the title: how good it is.
    pub fn caption(mut self, caption: &str) -> BoundaryPanel {
        self.caption = caption.into();
        self
    }

    /// With data points (x, y, class). Those outside the rectangle are counted at the foot.
    ///
    /// # Panics
    /// If a class is neither 0 nor 1.
    #[track_caller]
    pub fn points(mut self, points: impl IntoIterator<Item = (f64, f64, usize)>) -> BoundaryPanel {
        for point in points {
            assert!(point.2 < 2, "boundary panel {:?}: a point of class {}, not 0 or 1", self.title, point.2);
            self.points.push(point);
        }
        self
    }

    /// The probability at a fraction of the width and height from the lower left corner, bilinear between grid values.
    fn sample(&self, x: f64, y: f64) -> f64 {
        let split = |t: f64, n: usize| {
            let place = t.clamp(0.0, 1.0) * (n - 1) as f64;
            let cell = (place as usize).min(n - 2);
            (cell, place - cell as f64)
        };
        let ((i, u), (j, v)) = (split(x, self.width), split(y, self.height));
        let row = |j: usize| {
            let (a, b) = (self.probability[j * self.width + i], self.probability[j * self.width + i + 1]);
            a + (b - a) * u
        };
        row(j) + (row(j + 1) - row(j)) * v
    }

    /// Where a point lies in the rectangle, from 0 to 1 each way.
    fn place(&self, &(x, y, _): &(f64, f64, usize)) -> Option<(f64, f64)> {
        let (x, y) = ((x - self.x.0) / (self.x.1 - self.x.0), (y - self.y.0) / (self.y.1 - self.y.0));
        ((0.0..=1.0).contains(&x) && (0.0..=1.0).contains(&y)).then_some((x, y))
    }

    /// The line of probability ½ by marching squares: where it crosses a cell's sides, joined.
    fn contour(&self, plot: &Plot) -> Path {
        let mut path = Path::new();
        let at = |i: usize, j: usize| self.probability[j * self.width + i] - 0.5;
        for j in 0..self.height - 1 {
            for i in 0..self.width - 1 {
                // Counter-clockwise from the lower left.
                let corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)];
                let values = corners.map(|(i, j)| at(i, j));
                if values.iter().any(|v| !v.is_finite()) {
                    continue;
                }
                let mut crossings = Vec::with_capacity(4);
                for side in 0..4 {
                    let (a, b) = (values[side], values[(side + 1) % 4]);
                    if (a < 0.0) != (b < 0.0) {
                        let t = a / (a - b);
                        let (p, q) = (corners[side], corners[(side + 1) % 4]);
                        let between = |p: usize, q: usize, n: usize| {
                            (p as f64 + (q as f64 - p as f64) * t) / (n - 1) as f64
                        };
                        crossings
                            .push(plot.at(between(p.0, q.0, self.width), between(p.1, q.1, self.height)));
                    }
                }
                // Four crossings, one a side, are a saddle: its middle decides whether a line cuts off the lower
                // right corner (sides 0 and 1) or the lower left one (sides 3 and 0).
                if crossings.len() == 4 && (values.iter().sum::<f64>() < 0.0) == (values[1] < 0.0) {
                    crossings.rotate_right(1);
                }
                for piece in crossings.chunks_exact(2) {
                    path.polyline([piece[0], piece[1]]);
                }
            }
        }
        path
    }

    fn draw(&self, frame: &mut Frame, plot: &Plot) {
        let (w, h) = ((plot.width * RESOLUTION) as usize, (plot.height * RESOLUTION) as usize);
        let tints = cells::merge(w, h, |x, y| {
            let p = self.sample((x as f64 + 0.5) / w as f64, 1.0 - (y as f64 + 0.5) / h as f64);
            p.is_finite().then(|| ((p.clamp(0.0, 1.0) * TINTS as f64) as usize).min(TINTS - 1))
        });
        let unit = (plot.width / w as f64, plot.height / h as f64);
        let place = format!("scale({:.5} {:.5})", unit.0, unit.1);
        let mut field =
            Element::group().attribute("transform", &place).attribute("shape-rendering", "crispEdges");
        let mut lines = Path::new();
        for (tint, blocks) in &tints {
            match tint {
                Some(tint) => {
                    let ink = palette::diverging((*tint as f64 + 0.5) / TINTS as f64);
                    field.push(Element::path(cells::path(blocks)).fill(ink));
                }
                None => {
                    for &(x, y, w, h) in blocks {
                        let (x, y) = (plot.x + x as f64 * unit.0, plot.y + y as f64 * unit.1);
                        cells::hatch(&mut lines, x, y, w as f64 * unit.0, h as f64 * unit.1);
                    }
                }
            }
        }
        frame.push(plot.viewport().child(field));
        if !lines.is_empty() {
            frame.push(cells::hatched(lines));
        }
        let contour = self.contour(plot);
        if !contour.is_empty() {
            frame.push(Element::path(contour).stroke(TEXT, 1.6).attribute("stroke-linecap", "round"));
        }
        for class in 0..2 {
            let mut dots = Path::new();
            for (x, y) in self.points.iter().filter(|p| p.2 == class).filter_map(|p| self.place(p)) {
                let (x, y) = plot.at(x, y);
                dots.dot(x, y);
            }
            if !dots.is_empty() {
                points(dots, class).into_iter().for_each(|layer| frame.push(layer));
            }
        }
    }
}

/// Data points with a thin rim of the page's colour; the classes differ in shape as well as in colour.
fn points(dots: Path, class: usize) -> [Element; 2] {
    let (cap, size) = [("round", 4.6), ("square", 3.8)][class];
    let layer = |ink, size| Element::path(dots.clone()).stroke(ink, size).attribute("stroke-linecap", cap);
    [layer(SURFACE, size + 1.4), layer(palette::category(class), size)]
}

/// Panels of decision boundaries: tinted by the probability of class 1, a line where it is ½, data points by class.
///
/// ```
/// use limpid::report::{Boundary, BoundaryPanel};
/// let probability = (0..9).map(|i| f64::from(i % 3) / 2.0).collect(); // grows from left to right
/// let panel = BoundaryPanel::new("plain", (-1.0, 1.0), (-1.0, 1.0), 3, probability)
///     .caption("accuracy 100 %")
///     .points([(-0.5, 0.0, 0), (0.5, 0.0, 1)]);
/// let svg = Boundary::new("Decision boundary", ["left", "right"]).panel(panel).to_svg();
/// assert!(svg.contains(">accuracy 100 %<"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Boundary {
    title: String,
    subtitle: String,
    classes: [String; 2],
    panels: Vec<BoundaryPanel>,
    notes: Vec<String>,
}

impl Boundary {
    /// A figure without panels, and the names of the classes.
    pub fn new(title: &str, classes: [&str; 2]) -> Boundary {
        let (subtitle, panels, notes) = (String::new(), Vec::new(), Vec::new());
        Boundary { title: title.into(), subtitle, classes: classes.map(String::from), panels, notes }
    }

    /// With a sentence below the title: what to see.
    pub fn subtitle(mut self, subtitle: &str) -> Boundary {
        self.subtitle = subtitle.into();
        self
    }

    /// With one more panel.
    pub fn panel(mut self, panel: BoundaryPanel) -> Boundary {
        self.panels.push(panel);
        self
    }

    /// With a note at the foot.
    pub fn note(mut self, note: &str) -> Boundary {
        self.notes.push(note.into());
        self
    }

    /// The figure as an SVG file.
    pub fn to_svg(&self) -> String {
        let mut frame = Frame::new(&self.title, &self.subtitle);
        frame.key("", self.key_entries());
        // A panel alone need not fill the page.
        let right = if self.panels.len() <= 1 { 320.0 } else { 6.0 };
        self.draw(&mut frame, &self.panels, right, ("x₁", "x₂"));
        frame.finish(&self.all_notes(), &self.description(&self.panels))
    }

    /// The same figure as one small SVG text per panel, for a [`Section`](super::Section) that places them as the page
    /// allows.
    pub fn to_multiples(&self) -> Multiples {
        let mut panels = Vec::new();
        for panel in &self.panels {
            let shown = std::slice::from_ref(panel);
            let mut frame = Frame::small(&format!("{}: {}", self.title, panel.title));
            self.draw(&mut frame, shown, 6.0, ("", ""));
            panels.push((panel.title.clone(), frame.finish(&[], &self.description(shown))));
        }
        let mut key = Frame::small(&format!("{}: what the colours are", self.title));
        key.key("", self.key_entries());
        Multiples {
            title: self.title.clone(),
            axes: "Across: x₁. Up: x₂.".into(),
            key: key.finish(&[], &self.description(&[])),
            panels,
            notes: self.all_notes(),
        }
    }

    fn draw(&self, frame: &mut Frame, shown: &[BoundaryPanel], right: f64, (x_label, y_label): (&str, &str)) {
        let headings: Vec<Heading> = match shown.is_empty() {
            true => vec![Heading::default()],
            false => shown.iter().map(BoundaryPanel::heading).collect(),
        };
        let all =
            |axis: fn(&BoundaryPanel) -> (f64, f64)| shown.windows(2).all(|w| axis(&w[0]) == axis(&w[1]));
        let shared = all(|p| p.y);
        let ticks = |range: (f64, f64), count| Scale::linear([range.0, range.1]).ticks(count);
        let y_labels: Vec<String> = shown.iter().flat_map(|p| ticks(p.y, 5)).map(|tick| tick.label).collect();
        let left = frame::gutter(y_labels.iter().map(String::as_str));
        // As high as the plane is, where all panels show the same part of it.
        let shape = shown.first().map_or(1.0, |p| (p.y.1 - p.y.0) / (p.x.1 - p.x.0));
        let ratio = if shared && all(|p| p.x) { shape.clamp(0.5, 1.25) } else { 1.0 };
        let plots = frame.grid(&Grid {
            headings: &headings,
            left,
            between: if shared { 22.0 } else { left + 16.0 },
            right,
            height: Height::Relative(ratio),
            x_label,
            y_label,
        });
        if shown.is_empty() {
            frame.empty(&plots[0], "no data");
        }
        for (plot, panel) in plots.iter().zip(shown) {
            panel.draw(frame, plot);
            let plot = Plot { first: plot.first || !shared, ..*plot };
            frame.ticks(&plot, &ticks(panel.x, 5), &ticks(panel.y, 5));
            frame.border(&plot);
        }
    }

    fn all_notes(&self) -> Vec<String> {
        let points = self.panels.iter().flat_map(|panel| panel.points.iter().map(|point| panel.place(point)));
        let lost = points.filter(Option::is_none).count();
        let mut notes = self.notes.clone();
        if lost > 0 {
            notes.push(format!("Points outside the panels, left out: {lost}."));
        }
        notes
    }

    fn key_entries(&self) -> Vec<(Element, String)> {
        let mut entries = Vec::new();
        for (class, name) in self.classes.iter().enumerate() {
            let mut dot = Path::new();
            dot.dot(12.0, 0.0);
            let swatch = points(dot, class).into_iter().fold(Element::group(), Element::child);
            entries.push((swatch, name.clone()));
        }
        let mut line = Path::new();
        line.polyline([(0.0, 0.0), (18.0, 0.0)]);
        entries.push((Element::path(line).stroke(TEXT, 1.6), "probability ½".into()));
        if self.panels.iter().any(|p| p.probability.iter().any(|v| !v.is_finite())) {
            let mut lines = Path::new();
            cells::hatch(&mut lines, 0.0, -5.0, 18.0, 10.0);
            entries.push((cells::hatched(lines), "not finite".into()));
        }
        entries
    }

    fn description(&self, shown: &[BoundaryPanel]) -> String {
        let mut text = format!("Two classes, {} and {}.", self.classes[0], self.classes[1]);
        for p in shown {
            text.push_str(&format!(" {}: {} points. {}", p.title, p.points.len(), p.caption));
        }
        text
    }
}

impl BoundaryPanel {
    fn heading(&self) -> Heading {
        Heading { title: self.title.clone(), caption: self.caption.clone(), alert: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLOT: Plot = Plot { x: 0.0, y: 0.0, width: 100.0, height: 100.0, first: true };

    fn panel(width: usize, probability: Vec<f64>) -> BoundaryPanel {
        BoundaryPanel::new("p", (0.0, 1.0), (0.0, 1.0), width, probability)
    }

    #[test]
    fn the_contour_lies_where_the_probability_is_a_half() {
        // p = x: the line x = ½, in two pieces because the grid has two rows of cells.
        let straight = panel(3, (0..9).map(|i| f64::from(i % 3) * 0.4).collect()).contour(&PLOT);
        assert_eq!(format!("{straight:?}"), "Path(\"M62.5 100L62.5 50M62.5 50L62.5 0\")");
        assert!(panel(2, vec![0.1; 4]).contour(&PLOT).is_empty());
        assert!(panel(2, vec![f64::NAN, 1.0, 0.0, 0.0]).contour(&PLOT).is_empty());
    }

    #[test]
    fn a_saddle_is_cut_according_to_its_middle() {
        // Corners lower left and upper right are high. A high middle joins them: each line cuts off a low corner.
        let cut = |high: f64, low: f64| format!("{:?}", panel(2, vec![high, low, low, high]).contour(&PLOT));
        let joined = cut(1.0, 0.25);
        // The low corner at the lower right (100, 100) is cut off by one piece near it.
        assert_eq!(joined, "Path(\"M66.67 100L100 66.67M33.33 0L0 33.33\")");
        // A low middle joins the low corners: each line cuts off a high corner.
        assert_eq!(cut(0.75, 0.0), "Path(\"M0 66.67L33.33 100M100 33.33L66.67 0\")");
    }

    #[test]
    fn sampling_is_exact_on_the_grid_and_linear_between() {
        let p = panel(2, vec![0.0, 1.0, 0.5, 0.5]);
        assert_eq!(
            [p.sample(0.0, 0.0), p.sample(1.0, 0.0), p.sample(0.0, 1.0), p.sample(0.5, 0.5)],
            [0.0, 1.0, 0.5, 0.5]
        );
    }

    #[test]
    fn what_is_not_finite_is_hatched_and_named() {
        let figure = |p| Boundary::new("t", ["a", "b"]).panel(panel(2, p)).to_svg();
        assert!(figure(vec![f64::NAN; 4]).contains(">not finite<"));
        assert!(!figure(vec![0.5; 4]).contains(">not finite<"));
        assert!(Boundary::new("t", ["a", "b"]).to_svg().contains(">no data<"));
    }

    #[test]
    fn points_outside_are_left_out_and_counted() {
        let with = |points: Vec<(f64, f64, usize)>| {
            Boundary::new("t", ["a", "b"]).panel(panel(2, vec![0.2; 4]).points(points)).to_svg()
        };
        let dots = |svg: String| svg.matches("h0").count();
        let none = dots(with(vec![]));
        assert_eq!(dots(with(vec![(0.5, 0.5, 0), (0.2, 0.2, 1)])), none + 4);
        let outside = with(vec![(1.5, 0.5, 0), (f64::NAN, 0.2, 1)]);
        assert!(outside.contains("left out: 2."));
        assert_eq!(dots(outside), none);
    }

    #[test]
    #[should_panic(expected = "5 values are no grid of rows of 2")]
    fn a_ragged_grid_is_refused() {
        panel(2, vec![0.0; 5]);
    }
}
