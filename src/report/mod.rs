//! Figures and reports: plain numbers in, one SVG or HTML text out.
//!
//! | question | figure |
//! |---|---|
//! | how does a quantity change, in one run or several? | [`LineChart`], one panel |
//! | how does it change along the depth, and over time? | [`LineChart`] with [`Panel`]s, lines [`Series::sequential`] |
//! | what is it in every layer at every epoch? | [`HeatMap`] |
//! | what is the whole made of? | [`LineChart`] with [`Series::stacked`] |
//! | what has the classifier learned? | [`Boundary`] |
//! | how much memory does a plan take, step by step? | [`memory_over_time`] |
//! | how many operations buy how many bytes? | [`bytes_and_operations`] |
//!
//! A figure is SVG text that stands alone: fonts of the reader's system, colours for a light and a dark page, a title
//! and a description for those who hear it. [`Report`] puts figures, words, numbers and commands into one
//! HTML file that loads nothing and runs nothing. The same data gives the same bytes. A figure of many panels stands in a
//! report as [`Multiples`]: small ones on one scale, as many beside each other as the page is wide.
//!
//! Numbers that are not finite are never dropped in silence: a line that leaves them is marked where it ends, a cell is
//! hatched, and the description counts them.

mod boundary;
mod cells;
mod chart;
mod frame;
mod heatmap;
mod html;
mod memory;
mod multiples;
pub mod palette;
pub mod scale;
pub mod svg;

pub use boundary::{Boundary, BoundaryPanel};
pub use chart::{Axis, LineChart, Panel, Series};
pub use heatmap::{HeatMap, HeatPanel};
pub use html::{Report, Section, Table};
pub use memory::{bytes_and_operations, memory_over_time};
pub use multiples::Multiples;

#[cfg(test)]
mod tests {
    use super::svg::text_width;
    use super::*;

    /// Where each line of text stands: left, top, right, bottom (turned text is left out).
    fn boxes(svg: &str) -> Vec<(String, [f64; 4])> {
        let mut found = Vec::new();
        let mut origins = vec![(0.0, 0.0)];
        for tag in svg.split('<').skip(1) {
            let attribute =
                |name: &str| tag.split(&format!(" {name}=\"")).nth(1).and_then(|r| r.split('"').next());
            let number = |name: &str| attribute(name).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
            let moved = attribute("transform").and_then(|t| t.strip_prefix("translate("));
            let shift = moved.map_or((0.0, 0.0), |t| {
                let mut numbers =
                    t.split([' ', ')']).map(|v| v.parse().expect("a translation is two numbers"));
                (numbers.next().unwrap_or(0.0), numbers.next().unwrap_or(0.0))
            });
            let (x0, y0) = *origins.last().expect("the root group is open");
            let origin = (x0 + shift.0, y0 + shift.1);
            if tag.starts_with("g>") || tag.starts_with("g ") {
                origins.push(origin);
            } else if tag.starts_with("/g") {
                origins.pop();
            } else if tag.starts_with("text") && !tag.contains("rotate") {
                let content = tag.split_once('>').map_or("", |(_, c)| c);
                let size = number("font-size");
                let width = text_width(content, size);
                let start = match attribute("text-anchor") {
                    Some("middle") => width / 2.0,
                    Some("end") => width,
                    _ => 0.0,
                };
                let (x, y) = (origin.0 + number("x") - start, origin.1 + number("y"));
                found.push((content.to_string(), [x, y - 0.75 * size, x + width, y + 0.2 * size]));
            }
        }
        found
    }

    fn assert_legible(svg: &str) {
        let view = svg.split("viewBox=\"0 0 ").nth(1).and_then(|r| r.split('"').next()).expect("a view box");
        let (width, height) = view.split_once(' ').expect("two sizes");
        let (width, height): (f64, f64) =
            (width.parse().expect("a width"), height.parse().expect("a height"));
        let boxes = boxes(svg);
        assert!(boxes.len() > 3);
        for (i, (a, [left, top, right, bottom])) in boxes.iter().enumerate() {
            assert!(
                *left >= 0.0 && *top >= 0.0 && *right <= width && *bottom <= height,
                "{a:?} leaves the page"
            );
            for (b, [l, t, r, d]) in &boxes[..i] {
                assert!(right <= l || r <= left || bottom <= t || d <= top, "{a:?} lies on {b:?}");
            }
        }
    }

    fn assert_multiples_legible(multiples: &Multiples, count: usize) {
        assert_eq!(multiples.panels.len(), count);
        multiples.panels.iter().for_each(|(_, svg)| assert_legible(svg));
        let sizes =
            |svg: &str| svg.split("viewBox=\"").nth(1).and_then(|r| r.split(' ').nth(2).map(str::to_string));
        assert!(multiples.panels.iter().all(|(_, svg)| sizes(svg) == sizes(&multiples.key)));
    }

    fn names(n: usize) -> Vec<String> {
        (1..=n).map(|i| i.to_string()).collect()
    }

    const LONG: &str = "encoder/block17/hyperconnection/read with words enough for more than a line or two";

    #[test]
    fn no_text_of_a_line_chart_lies_on_another_or_leaves_the_page() {
        for count in [1, 2, 3, 5, 8, 9] {
            for lines in [1, 4, 12, 40] {
                for scale in [1e-300, 1e-7, 1.0, 3e8] {
                    let series = |k: usize| {
                        let end = if k % 3 == 1 { f64::NAN } else { scale };
                        let points = [(0.0, scale), (1.0, scale * 0.5f64.powi(k as i32)), (99.0, end)];
                        Series::new(&format!("{} {k}", if k.is_multiple_of(2) { LONG } else { "η" }), points)
                    };
                    let panel = |i: usize| {
                        (0..lines)
                            .map(series)
                            .fold(Panel::new(if i == 0 { LONG } else { "a" }).caption(LONG), Panel::series)
                    };
                    for y in [Axis::log(LONG), Axis::linear("y")] {
                        let chart = LineChart::new(LONG, Axis::linear("epoch"), y)
                            .subtitle(LONG)
                            .note(LONG)
                            .mark(f64::from(count as u32) * 12.0, if lines > 4 { LONG } else { "now" })
                            .key("key");
                        let chart = (0..count).map(panel).fold(chart, LineChart::panel);
                        assert_legible(&chart.to_svg());
                        assert_multiples_legible(&chart.to_multiples(), count);
                    }
                }
            }
        }
    }

    #[test]
    fn no_text_of_a_heat_map_lies_on_another_or_leaves_the_page() {
        for count in [1, 2, 4, 7] {
            for (rows, columns) in [(1, 1), (20, 100), (100, 3), (3, 1000)] {
                for long in [false, true] {
                    let mut row_names = names(rows);
                    let mut column_names = names(columns);
                    if long {
                        row_names[rows / 2] = LONG.into();
                        column_names[columns / 2] = LONG.into();
                    }
                    let mut panel = |i: usize| {
                        let values = (0..rows * columns)
                            .map(|j| if j == 1 { f64::NAN } else { (j % 7) as f64 * 1e-9 });
                        // Rows of other names in one panel: then each panel has its own.
                        if i == 2 {
                            row_names[0] = "other".into();
                        }
                        HeatPanel::new(LONG, &row_names, &column_names, values.collect()).caption("a")
                    };
                    let map = HeatMap::new("t", "epoch", "layer", Axis::log(if long { LONG } else { "v" }));
                    let map = (0..count).map(&mut panel).fold(map, HeatMap::panel);
                    assert_legible(&map.to_svg());
                    assert_multiples_legible(&map.to_multiples(), count);
                }
            }
        }
    }

    #[test]
    fn no_text_of_a_boundary_lies_on_another_or_leaves_the_page() {
        for count in 1..=6 {
            let panel = |i: usize| {
                let high = if i == 1 { 1e-5 } else { 2.0 };
                BoundaryPanel::new(LONG, (-1.0, 2.5), (-1.0, high), 2, vec![0.0, 0.2, f64::NAN, 1.0])
                    .points([(0.0, 0.0, 0)])
            };
            let figure = (0..count).map(panel).fold(Boundary::new("t", [LONG, "b"]), Boundary::panel);
            assert_legible(&figure.to_svg());
            assert_multiples_legible(&figure.to_multiples(), count);
        }
    }
}
