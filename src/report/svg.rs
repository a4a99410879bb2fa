//! SVG text, element by element.
//!
//! The figures use neither identifiers nor custom properties: a colour that differs between light and dark pages
//! is a class named after its two values, so any number of figures can stand in one HTML page, and a renderer
//! that knows no media queries still draws the light one.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::palette::{Ink, SURFACE};

/// Text made safe for element content and quoted attributes of XML and HTML. Characters that XML 1.0 cannot
/// contain become U+FFFD.
///
/// ```
/// assert_eq!(limpid::report::svg::escape("a < \"b\" & c"), "a &lt; &quot;b&quot; &amp; c");
/// ```
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A coordinate with at most two decimals and no trailing zeros, the same text on every machine.
///
/// # Panics
/// If it is not finite: no viewer could place it.
///
/// ```
/// use limpid::report::svg::coordinate;
/// assert_eq!([1.0, 2.5, -0.001, 1.0 / 3.0].map(coordinate), ["1", "2.5", "0", "0.33"]);
/// ```
#[track_caller]
pub fn coordinate(value: f64) -> String {
    assert!(value.is_finite(), "an SVG coordinate must be finite, found {value}");
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// An element with its attributes and children, already text.
#[derive(Clone, Debug)]
pub struct Element {
    name: &'static str,
    attributes: String,
    children: String,
    inks: BTreeSet<Ink>,
}

impl Element {
    /// An element without attributes or children.
    pub fn new(name: &'static str) -> Element {
        Element { name, attributes: String::new(), children: String::new(), inks: BTreeSet::new() }
    }

    /// A group.
    pub fn group() -> Element {
        Element::new("g")
    }

    /// A line of text whose baseline starts (or ends, or is centred; see [`Element::anchor`]) at a point.
    pub fn text(x: f64, y: f64, size: f64, ink: Ink, content: &str) -> Element {
        let mut element =
            Element::new("text").number("x", x).number("y", y).number("font-size", size).fill(ink);
        element.children = escape(content);
        element
    }

    /// A rectangle.
    pub fn rect(x: f64, y: f64, width: f64, height: f64) -> Element {
        Element::new("rect").number("x", x).number("y", y).number("width", width).number("height", height)
    }

    /// A path. It has no outline until it gets a [`Element::stroke`], and is filled unless it has one.
    pub fn path(path: Path) -> Element {
        Element::new("path").attribute("d", &path.0)
    }

    /// The element with one more attribute.
    ///
    /// # Panics
    /// If it has one of that name: an SVG file with an attribute twice does not open.
    #[track_caller]
    pub fn attribute(mut self, name: &str, value: &str) -> Element {
        let twice = self.attributes.contains(&format!(" {name}=\""));
        assert!(!twice, "<{}> has two attributes {name}", self.name);
        // Writing to a String cannot fail.
        let _ = write!(self.attributes, " {name}=\"{}\"", escape(value));
        self
    }

    /// The element with one more attribute that is a number.
    #[track_caller]
    pub fn number(self, name: &str, value: f64) -> Element {
        self.attribute(name, &coordinate(value))
    }

    /// The element filled with a colour. An element takes either a fill or a stroke.
    pub fn fill(self, ink: impl Into<Ink>) -> Element {
        self.paint("fill", ink.into())
    }

    /// The element outlined with a colour, and not filled.
    pub fn stroke(self, ink: impl Into<Ink>, width: f64) -> Element {
        self.attribute("fill", "none").paint("stroke", ink.into()).number("stroke-width", width)
    }

    fn paint(mut self, property: &str, ink: Ink) -> Element {
        if ink.light == ink.dark {
            return self.attribute(property, &ink.light.to_string());
        }
        self.inks.insert(ink);
        self.attribute("class", &class(ink)).attribute(property, "currentColor")
    }

    /// Text that is centred on its point (`middle`) or ends at it (`end`).
    pub fn anchor(self, anchor: &str) -> Element {
        self.attribute("text-anchor", anchor)
    }

    /// The element with one more child.
    pub fn child(mut self, child: Element) -> Element {
        self.push(child);
        self
    }

    /// Adds a child.
    pub fn push(&mut self, child: Element) {
        let Element { name, attributes, children, inks } = child;
        let _ = match children.is_empty() {
            true => write!(self.children, "<{name}{attributes}/>"),
            false => write!(self.children, "<{name}{attributes}>{children}</{name}>"),
        };
        self.children.push('\n');
        self.inks.extend(inks);
    }
}

/// The class of a two-faced colour: its name is its meaning.
fn class(ink: Ink) -> String {
    format!("k{}-{}", ink.light, ink.dark).replace('#', "")
}

/// The outline of a shape: the `d` of a path.
#[derive(Clone, Debug, Default)]
pub struct Path(String);

impl Path {
    /// An empty path.
    pub fn new() -> Path {
        Path::default()
    }

    /// Whether nothing was drawn yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Starts a new piece at a point.
    pub fn move_to(&mut self, x: f64, y: f64) {
        let _ = write!(self.0, "M{} {}", coordinate(x), coordinate(y));
    }

    /// A straight line to a point.
    pub fn line_to(&mut self, x: f64, y: f64) {
        let _ = write!(self.0, "L{} {}", coordinate(x), coordinate(y));
    }

    /// A line through all points.
    pub fn polyline(&mut self, points: impl IntoIterator<Item = (f64, f64)>) {
        for (i, (x, y)) in points.into_iter().enumerate() {
            if i == 0 { self.move_to(x, y) } else { self.line_to(x, y) }
        }
    }

    /// A polygon through all points.
    pub fn polygon(&mut self, points: impl IntoIterator<Item = (f64, f64)>) {
        self.polyline(points);
        self.0.push('Z');
    }

    /// A rectangle.
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64) {
        let (w, h) = (coordinate(width), coordinate(height));
        let _ = write!(self.0, "M{} {}h{w}v{h}h-{w}z", coordinate(x), coordinate(y));
    }

    /// A dot: a piece of no length, which a stroke with round or square caps makes visible.
    pub fn dot(&mut self, x: f64, y: f64) {
        let _ = write!(self.0, "M{} {}h0", coordinate(x), coordinate(y));
    }
}

/// A whole SVG file: `content` on a page of its own colour, with a title and a description that a screen reader
/// speaks.
pub fn document(width: f64, height: f64, title: &str, description: &str, content: Element) -> String {
    let page = Element::rect(0.0, 0.0, width, height).fill(SURFACE);
    let figure = Element::group().child(page).child(content);
    let (mut light, mut dark) = (String::new(), String::new());
    for &ink in &figure.inks {
        let _ = write!(light, ".{}{{color:{}}}", class(ink), ink.light);
        let _ = write!(dark, ".{}{{color:{}}}", class(ink), ink.dark);
    }
    let (w, h) = (coordinate(width), coordinate(height));
    let (title, description) = (escape(title), escape(description));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"img\" \
         aria-label=\"{title}\" font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', \
         Arial, sans-serif\" style=\"font-variant-numeric:tabular-nums\">\n<title>{title}</title>\n\
         <desc>{description}</desc>\n<style>{light}@media (prefers-color-scheme:dark){{{dark}}}</style>\n{}</svg>\n",
        figure.children
    )
}

/// An estimate of how wide a line of text is, a little on the safe side: the exact width depends on the reader's
/// font. In the unit of `size`.
pub fn text_width(text: &str, size: f64) -> f64 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | 'f' | 't' | 'r' | 'I' | ' ' | '.' | ',' | ':' | ';' | '!' | '|' | '\'' | '('
        | ')' => 0.34,
        '⁰' | '¹' | '²' | '³' | '⁴' | '⁵' | '⁶' | '⁷' | '⁸' | '⁹' | '⁻' => 0.40,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '—' | '→' => 0.90,
        'A'..='Z' | '×' | '‖' | '∂' => 0.68,
        c if c.is_ascii() || c.is_alphanumeric() && u32::from(c) < 0x1100 => 0.57,
        '\u{2000}'..='\u{2bff}' => 0.70,
        c if u32::from(c) < 0x1100 => 0.60,
        _ => 1.05,
    };
    text.chars().map(em).sum::<f64>() * size
}

/// Text that is at most `width` wide (by [`text_width`]): what is too long loses its end to an ellipsis.
///
/// ```
/// use limpid::report::svg::shorten;
/// assert_eq!(shorten("block3/attention/query", 90.0, 12.0), "block3/attenti…");
/// assert_eq!(shorten("block3", 90.0, 12.0), "block3");
/// ```
pub fn shorten(text: &str, width: f64, size: f64) -> String {
    if text_width(text, size) <= width {
        return text.into();
    }
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        if text_width(&kept, size) + text_width("…", size) > width {
            kept.pop();
            break;
        }
    }
    kept + "…"
}

/// Text broken between words into lines of at most `width` (by [`text_width`]). A word longer than a line is
/// [shortened](shorten).
pub fn wrap(text: &str, width: f64, size: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line)
                if text_width(line, size) + text_width(" ", size) + text_width(word, size) <= width =>
            {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(shorten(word, width, size)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::palette::{Rgb, TEXT, category};

    #[test]
    fn nothing_typed_by_a_person_becomes_markup() {
        let hostile = "</text><script>alert('x')</script>&\"\u{0}";
        let svg = document(
            10.0,
            10.0,
            hostile,
            hostile,
            Element::group().child(Element::text(0.0, 0.0, 9.0, TEXT, hostile)),
        );
        assert!(!svg.contains("<script"));
        assert!(!svg.contains('\u{0}'));
        assert_eq!(svg.matches("&lt;script&gt;").count(), 4); // label, title, desc, text
    }

    #[test]
    fn a_two_faced_colour_is_a_class_and_a_plain_one_an_attribute() {
        let dot = |ink: Ink| Element::rect(0.0, 0.0, 1.0, 1.0).fill(ink);
        let svg = document(
            1.0,
            1.0,
            "",
            "",
            Element::group().child(dot(category(0))).child(dot(Rgb::hex(0x123456).into())),
        );
        assert!(svg.contains("class=\"k0064a8-3f8fd8\" fill=\"currentColor\""));
        assert!(svg.contains("fill=\"#123456\""));
        let (light, dark) = svg.split_once("@media (prefers-color-scheme:dark)").unwrap();
        assert!(light.contains(".k0064a8-3f8fd8{color:#0064a8}"));
        assert!(dark.contains(".k0064a8-3f8fd8{color:#3f8fd8}"));
    }

    #[test]
    #[should_panic(expected = "<rect> has two attributes fill")]
    fn an_element_has_one_paint() {
        let _ = Element::rect(0.0, 0.0, 1.0, 1.0).fill(TEXT).stroke(TEXT, 1.0);
    }

    #[test]
    #[should_panic(expected = "an SVG coordinate must be finite, found NaN")]
    fn a_coordinate_that_is_no_number_is_refused() {
        coordinate(f64::NAN);
    }

    #[test]
    fn wrapping_keeps_every_word_in_order() {
        let text = "the gradient that reaches the first layer, divided by the one at the last";
        let lines = wrap(text, 120.0, 12.0);
        assert!(lines.len() > 2);
        assert_eq!(lines.join(" "), text);
        assert!(lines.iter().all(|l| text_width(l, 12.0) <= 120.0));
        assert!(wrap("", 10.0, 12.0).is_empty());
    }
}
