//! A report that is one file: no network, no script, readable on paper, on a phone and in the dark.
//!
//! What a reader chooses to see is decided by style sheet alone: a rule for each choice hides what belongs to another.

use std::fmt::Write;

use super::multiples::Multiples;
use super::svg::escape;

/// Rows of text under headers.
///
/// ```
/// use limpid::report::Table;
/// let table = Table::new(["variant", "loss"]).row(["plain", "0.69"]).row(["residual", "0.02"]);
/// assert_eq!(table.rows().len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new<S: Into<String>>(headers: impl IntoIterator<Item = S>) -> Table {
        Table { headers: headers.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// With one more row. Its first cell names it.
    ///
    /// # Panics
    /// If it has not as many cells as there are headers.
    #[track_caller]
    pub fn row<S: Into<String>>(mut self, cells: impl IntoIterator<Item = S>) -> Table {
        let row: Vec<String> = cells.into_iter().map(Into::into).collect();
        let (found, expected) = (row.len(), self.headers.len());
        assert_eq!(found, expected, "a row of {found} cells in a table of {expected} columns");
        self.rows.push(row);
        self
    }

    /// The rows.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// The table as HTML, named for those who do not see it. Columns of numbers stand flush right.
    fn to_html(&self, name: &str, choices: &Choices) -> String {
        let numeric: Vec<bool> = (0..self.headers.len())
            .map(|column| column > 0 && self.rows.iter().all(|row| is_quantity(&row[column])))
            .collect();
        let class = |column: usize| if numeric[column] { " class=\"number\"" } else { "" };
        let mut html = format!(
            "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{0}\"><table><caption class=\"unseen\">{0}</caption>\n<thead><tr>",
            escape(name)
        );
        for (column, header) in self.headers.iter().enumerate() {
            let _ = write!(html, "<th scope=\"col\"{}>{}</th>", class(column), escape(header));
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            let _ = write!(html, "<tr{}>", choices.mark(row.iter().take(3).map(String::as_str)));
            for (column, cell) in row.iter().enumerate() {
                let _ = match column {
                    0 => write!(html, "<th scope=\"row\">{}</th>", escape(cell)),
                    _ => write!(html, "<td{}>{}</td>", class(column), escape(cell)),
                };
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div>\n");
        html
    }
}

/// Whether a cell is a number, perhaps with a unit, or stands for a missing one.
fn is_quantity(cell: &str) -> bool {
    let cell = cell.trim_start_matches(['-', '−', '+', '±', '<', '>', '≈', ' ']);
    cell.starts_with(|c: char| c.is_ascii_digit()) || ["", "–", "—", "∞", "NaN", "inf"].contains(&cell)
}

/// One finding: words, a figure, its numbers, and how to make it again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    title: String,
    prose: String,
    figures: Vec<Figure>,
    tables: Vec<(String, Table)>,
    listings: Vec<(String, String)>,
    command: String,
    parts: Vec<Section>,
}

/// A figure and its caption.
#[derive(Clone, Debug, PartialEq)]
enum Figure {
    Whole { svg: String, caption: String },
    Multiples { about: String, multiples: Multiples, caption: String },
}

impl Section {
    /// A section with its title.
    pub fn new(title: &str) -> Section {
        Section { title: title.into(), ..Section::default() }
    }

    /// With words before the figure: plain text, paragraphs apart by an empty line.
    pub fn prose(mut self, prose: &str) -> Section {
        self.prose = prose.into();
        self
    }

    /// With a figure, SVG text of this module's making (it is not escaped), and its caption.
    pub fn figure(mut self, svg: &str, caption: &str) -> Section {
        self.figures.push(Figure::Whole { svg: svg.into(), caption: caption.into() });
        self
    }

    /// With a figure of small panels and its caption. A reader who has [chosen](Report::choose) sees the panels with a
    /// chosen title, and the whole figure only if what it is `about` is chosen, or is no choice.
    pub fn multiples(mut self, about: &str, multiples: Multiples, caption: &str) -> Section {
        let (about, caption) = (about.into(), caption.into());
        self.figures.push(Figure::Multiples { about, multiples, caption });
        self
    }

    /// With the numbers behind it, folded away until asked for. Rows with a choice among their first three cells are
    /// shown when it is chosen.
    pub fn table(mut self, title: &str, table: Table) -> Section {
        self.tables.push((title.into(), table));
        self
    }

    /// With a text in lines, folded away until asked for: a program, a log.
    pub fn listing(mut self, title: &str, text: &str) -> Section {
        self.listings.push((title.into(), text.into()));
        self
    }

    /// With the command that makes it again.
    pub fn command(mut self, command: &str) -> Section {
        self.command = command.into();
        self
    }

    /// With a section inside it, folded away until asked for. If its title is a choice, it is shown when that is chosen.
    pub fn part(mut self, part: Section) -> Section {
        self.parts.push(part);
        self
    }

    fn to_html(&self, anchor: &str, choices: &Choices) -> String {
        format!(
            "<section aria-labelledby=\"{anchor}\">\n<h2 id=\"{anchor}\">{}</h2>\n{}</section>\n",
            escape(&self.title),
            self.content(choices)
        )
    }

    fn content(&self, choices: &Choices) -> String {
        let mut html = paragraphs(&self.prose);
        for figure in &self.figures {
            figure.to_html(&self.title, choices, &mut html);
        }
        for (title, table) in &self.tables {
            let (name, table) = (escape(title), table.to_html(title, choices));
            let _ = write!(html, "<details>\n<summary>{name}</summary>\n{table}</details>\n");
        }
        for (title, text) in &self.listings {
            let (name, text) = (escape(title), escape(text));
            let _ = write!(
                html,
                "<details>\n<summary>{name}</summary>\n<pre class=\"listing\" role=\"region\" tabindex=\"0\" \
                 aria-label=\"{name}\"><code>{text}</code></pre>\n</details>\n"
            );
        }
        for part in &self.parts {
            let _ = write!(
                html,
                "<details class=\"part\"{}>\n<summary><h3>{}</h3></summary>\n{}</details>\n",
                choices.mark([part.title.as_str()]),
                escape(&part.title),
                part.content(choices)
            );
        }
        if !self.command.is_empty() {
            let _ = writeln!(
                html,
                "<p class=\"again\">Make it again:</p>\n<pre tabindex=\"0\"><code>{}</code></pre>",
                escape(&self.command)
            );
        }
        html
    }
}

impl Figure {
    /// Written to the end of `html`; without a caption it is named after its section.
    fn to_html(&self, section: &str, choices: &Choices, html: &mut String) {
        let (Figure::Whole { caption, .. } | Figure::Multiples { caption, .. }) = self;
        let name = escape(if caption.is_empty() { section } else { caption });
        let mut words = escape(caption);
        match self {
            Figure::Whole { svg, .. } => {
                let _ = write!(
                    html,
                    "<figure>\n<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{name}\">\n{svg}</div>\n"
                );
            }
            Figure::Multiples { about, multiples, .. } => {
                let _ = write!(
                    html,
                    "<figure{} aria-label=\"{name}\">\n<div class=\"key\">\n{}</div>\n<div class=\"panels\">\n",
                    choices.mark([about.as_str()]),
                    multiples.key
                );
                for (title, svg) in &multiples.panels {
                    let _ = write!(html, "<div{}>\n{svg}</div>\n", choices.mark([title.as_str()]));
                }
                html.push_str("</div>\n");
                let notes = [&multiples.axes].into_iter().chain(&multiples.notes);
                words =
                    [words].into_iter().chain(notes.map(|note| escape(note))).collect::<Vec<_>>().join(" ");
            }
        }
        if !words.is_empty() {
            let _ = writeln!(html, "<figcaption>{}</figcaption>", words.trim_start());
        }
        html.push_str("</figure>\n");
    }
}

/// One thing that a reader can choose among.
#[derive(Clone, Debug, PartialEq)]
struct Choice {
    label: String,
    names: Vec<String>,
    /// Of several names at most one can be chosen, and this one is at first; otherwise any, and none at first.
    first: Option<usize>,
}

/// Everything that a reader can choose; names are numbered through.
#[derive(Clone, Debug, Default, PartialEq)]
struct Choices(Vec<Choice>);

impl Choices {
    fn names(&self) -> impl Iterator<Item = &String> {
        self.0.iter().flat_map(|choice| &choice.names)
    }

    /// The attribute of an element that is about these, as far as they can be chosen.
    fn mark<'a>(&self, about: impl IntoIterator<Item = &'a str>) -> String {
        let number = |name: &str| self.names().position(|choice| choice == name);
        let numbers: Vec<String> =
            about.into_iter().filter_map(number).map(|number| number.to_string()).collect();
        if numbers.is_empty() { String::new() } else { format!(" data-of=\"{}\"", numbers.join(" ")) }
    }

    /// The rules that hide what is not chosen.
    fn style(&self) -> String {
        let mut style = String::new();
        let mut next = 0;
        for (k, choice) in self.0.iter().enumerate() {
            let numbers = next..next + choice.names.len();
            next = numbers.end;
            for i in numbers.clone() {
                let _ = writeln!(
                    style,
                    "body:has(#choice{k} :checked):not(:has(#c{i}:checked)) [data-of~=\"{i}\"]{{display:none}}"
                );
            }
        }
        style
    }

    /// The boxes to tick. The method of the form keeps it from going anywhere.
    fn to_html(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let mut html = "<form class=\"choose\" method=\"dialog\" aria-label=\"What to show\">\n".to_string();
        let mut next = 0;
        for (k, Choice { label, names, first }) in self.0.iter().enumerate() {
            let label = escape(label);
            let kind = if first.is_some() { "radio" } else { "checkbox" };
            let mut boxes = String::new();
            for (i, name) in (next..).zip(names) {
                let checked = if *first == Some(i - next) { " checked" } else { "" };
                let name = escape(name);
                let _ = writeln!(
                    boxes,
                    "<label><input type=\"{kind}\" name=\"choice{k}\" id=\"c{i}\"{checked}>{name}</label>"
                );
            }
            next += names.len();
            let fieldset = |reset: &str| {
                format!(
                    "<fieldset id=\"choice{k}\"><legend class=\"unseen\">{label}</legend>\n{boxes}{reset}</fieldset>\n"
                )
            };
            html.push_str(&match first {
                Some(_) => fieldset(""),
                None => {
                    let reset = "<button type=\"reset\">Show all</button>\n";
                    format!("<details><summary>{label}</summary>\n{}</details>\n", fieldset(reset))
                }
            });
        }
        html.push_str("</form>\n");
        html
    }
}

/// A page of findings in one file that refers to nothing outside itself.
///
/// ```
/// use limpid::report::{Axis, LineChart, Report, Section, Series, Table};
/// let losses = [(0.0, 0.69), (1.0, 0.12), (2.0, 0.03)];
/// let figure = LineChart::new("Loss", Axis::linear("epoch"), Axis::log("loss")).series(Series::new("residual", losses));
/// let html = Report::new("Two moons, twenty layers")
///     .lead("What a skip connection does to a gradient.")
///     .summary(Table::new(["variant", "final loss"]).row(["residual", "0.03"]))
///     .section(Section::new("Loss").figure(&figure.to_svg(), "Loss per epoch").command("cargo run --example two_moons"))
///     .to_html();
/// assert!(html.starts_with("<!doctype html>"));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    title: String,
    lead: String,
    summary: Option<Table>,
    sections: Vec<Section>,
    choices: Choices,
}

impl Report {
    /// A report without content.
    pub fn new(title: &str) -> Report {
        Report { title: title.into(), ..Report::default() }
    }

    /// With the finding in a sentence or two, below the title: plain text.
    pub fn lead(mut self, lead: &str) -> Report {
        self.lead = lead.into();
        self
    }

    /// With a table that says it all.
    pub fn summary(mut self, table: Table) -> Report {
        self.summary = Some(table);
        self
    }

    /// With one more section.
    pub fn section(mut self, section: Section) -> Report {
        self.sections.push(section);
        self
    }

    /// With a choice of what to show: any of `names`; all if none is ticked. It applies to every panel and every part with
    /// such a title, and every row of a table with such a cell among its first three.
    ///
    /// ```
    /// use limpid::report::{Report, Table};
    /// let table = Table::new(["variant", "loss"]).row(["plain", "0.69"]).row(["residual", "0.02"]);
    /// let html = Report::new("Loss").summary(table).choose("Networks", ["plain", "residual"]).to_html();
    /// assert!(html.contains("<tr data-of=\"1\"><th scope=\"row\">residual</th>"));
    /// ```
    pub fn choose<S: Into<String>>(self, label: &str, names: impl IntoIterator<Item = S>) -> Report {
        self.with_choice(label, names, None)
    }

    /// With a choice of what to show: one of `names`, the one at position `first` to begin with.
    pub fn choose_one<S: Into<String>>(
        self,
        label: &str,
        names: impl IntoIterator<Item = S>,
        first: usize,
    ) -> Report {
        self.with_choice(label, names, Some(first))
    }

    fn with_choice<S: Into<String>>(
        mut self,
        label: &str,
        names: impl IntoIterator<Item = S>,
        first: Option<usize>,
    ) -> Report {
        let (label, names) = (label.into(), names.into_iter().map(Into::into).collect());
        self.choices.0.push(Choice { label, names, first });
        self
    }

    /// The report as an HTML file.
    pub fn to_html(&self) -> String {
        let title = escape(&self.title);
        // The policy makes the browser itself refuse to load or run anything.
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <title>{title}</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n\
             <a class=\"skip\" href=\"#content\">Skip to content</a>\n<header>\n<h1>{title}</h1>\n",
            self.choices.style()
        );
        html.push_str(&paragraphs(&self.lead).replace("<p>", "<p class=\"lead\">"));
        html.push_str("</header>\n");
        let anchors = anchors(self.sections.iter().map(|s| s.title.as_str()));
        if self.sections.len() > 1 {
            html.push_str("<nav aria-label=\"Contents\"><ol>\n");
            if self.summary.is_some() {
                html.push_str("<li><a href=\"#summary\">Summary</a></li>\n");
            }
            for (anchor, section) in anchors.iter().zip(&self.sections) {
                let _ = writeln!(html, "<li><a href=\"#{anchor}\">{}</a></li>", escape(&section.title));
            }
            html.push_str("</ol></nav>\n");
        }
        html.push_str(&self.choices.to_html());
        html.push_str("<main id=\"content\">\n");
        if let Some(table) = &self.summary {
            html.push_str("<section aria-labelledby=\"summary\">\n<h2 id=\"summary\">Summary</h2>\n");
            html.push_str(&table.to_html("Summary", &self.choices));
            html.push_str("</section>\n");
        }
        for (anchor, section) in anchors.iter().zip(&self.sections) {
            html.push_str(&section.to_html(anchor, &self.choices));
        }
        html.push_str("</main>\n</body>\n</html>\n");
        html
    }
}

fn paragraphs(text: &str) -> String {
    let blocks = text.split("\n\n").map(str::trim).filter(|block| !block.is_empty());
    blocks.map(|block| format!("<p>{}</p>\n", escape(block))).collect()
}

/// A name for each section that a link can point to: its title's letters, with a number where that is taken.
fn anchors<'a>(titles: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut taken: Vec<String> = vec!["summary".into(), "content".into()];
    for title in titles {
        let letters: String = title.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let words: Vec<&str> = letters.split('-').filter(|word| !word.is_empty()).collect();
        let name = if words.is_empty() { "section".into() } else { words.join("-").to_lowercase() };
        let mut anchor = name.clone();
        let mut copy = 2;
        while taken.contains(&anchor) {
            anchor = format!("{name}-{copy}");
            copy += 1;
        }
        taken.push(anchor);
    }
    taken.split_off(2)
}

const STYLE: &str = "\
:root{--page:#fff;--text:#1c2127;--muted:#5b6470;--line:#dde1e6;--tint:#f5f6f8;--link:#0b62a8}
@media (prefers-color-scheme:dark){:root{--page:#0f1318;--text:#e8ebef;--muted:#9aa4b0;--line:#2c343e;--tint:#171c23;--link:#6cb6f0}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:clamp(1.25rem,4vw,3.5rem) clamp(1rem,4vw,2rem) 5rem;max-width:62rem;background:var(--page);color:var(--text);font:1.0625rem/1.6 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;font-variant-numeric:tabular-nums}
h1,h2{line-height:1.2;text-wrap:balance;letter-spacing:-.01em}
h1{font-size:clamp(1.75rem,5vw,2.5rem);margin:0 0 .75rem}
h2{font-size:1.375rem;margin:0 0 .75rem}
p{max-width:42rem;margin:0 0 1rem;text-wrap:pretty}
.lead{font-size:1.1875rem;color:var(--muted)}
section{margin-top:3.5rem}
nav ol{margin:1.5rem 0 0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.5rem}
a{color:var(--link);text-underline-offset:.2em}
:focus-visible{outline:2px solid var(--link);outline-offset:3px}
.skip{position:absolute;left:-100vw}
.skip:focus{left:1rem;top:.5rem}
figure{margin:.5rem 0 1.5rem}
.wide{overflow-x:auto}
figure>.wide{margin:0 calc(-1*clamp(1rem,4vw,1.5rem))}
figure svg{display:block;width:100%;height:auto}
.wide>svg{min-width:44rem}
.key svg{max-width:21rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1.25rem 1rem;margin-top:.75rem}
figcaption{color:var(--muted);font-size:.9375rem;max-width:42rem;margin-top:.5rem}
table{border-collapse:separate;border-spacing:0;font-size:.9375rem}
th,td{padding:.4rem 1.5rem .4rem 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:500;position:sticky;top:0;background:var(--page)}
tbody th{font-weight:600;position:sticky;left:0;background:var(--page)}
.number{text-align:right}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
details{margin:1rem 0}
details .wide{max-height:28rem;overflow:auto;margin-top:.75rem}
summary{cursor:pointer;color:var(--link)}
.part{border-top:1px solid var(--line);margin:0;padding:.6rem 0}
.part[open]{padding-bottom:1.5rem}
h3{display:inline;font-size:1.0625rem;margin:0}
.listing{max-height:28rem;overflow:auto;margin-top:.75rem}
.choose{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;align-items:center;gap:.25rem 1.5rem;margin:1.5rem 0 0;padding:.5rem 0;background:var(--page);border-bottom:1px solid var(--line);font-size:.9375rem}
.choose details{margin:0}
.choose details[open]{width:100%}
.choose details fieldset{max-height:50vh;overflow:auto;padding:.5rem 0}
fieldset{border:0;margin:0;padding:0;min-width:0;display:flex;flex-wrap:wrap;gap:.25rem 1rem}
label{display:inline-flex;align-items:center;gap:.4rem;min-height:1.75rem;white-space:nowrap}
input{margin:0;width:1rem;height:1rem;accent-color:var(--link)}
button{font:inherit;color:var(--link);background:none;border:1px solid var(--line);border-radius:6px;padding:.15rem .75rem;cursor:pointer}
h2,.part{scroll-margin-top:4rem}
.again{color:var(--muted);font-size:.9375rem;margin:1.25rem 0 .4rem}
pre{margin:0;padding:.75rem 1rem;overflow-x:auto;background:var(--tint);border-radius:6px;font:.875rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace}
@media print{body{max-width:none;padding:0}nav,.skip,.choose{display:none}section,figure{break-inside:avoid}.wide{overflow:visible}figure svg{min-width:0}}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Axis, HeatMap, HeatPanel, LineChart, Panel, Series};

    fn report() -> String {
        let figure = LineChart::new("Loss", Axis::linear("epoch"), Axis::log("loss"))
            .series(Series::new("a", [(0.0, 1.0), (1.0, f64::NAN)]));
        let names: Vec<String> = vec!["1".into(), "2".into()];
        let map = HeatMap::new("Norm", "epoch", "layer", Axis::log("norm")).panel(HeatPanel::new(
            "a",
            &names,
            &names,
            vec![1.0, 0.0, f64::NAN, 1e-9],
        ));
        Report::new("A <title> & more")
            .lead("First.\n\nSecond.")
            .summary(Table::new(["variant", "loss"]).row(["plain", "0.7"]).row(["residual", "NaN"]))
            .section(
                Section::new("Loss")
                    .prose("Words <b>not bold</b>.")
                    .figure(&figure.to_svg(), "The loss")
                    .table("Losses", Table::new(["epoch", "loss"]).row(["0", "1"]))
                    .command("run --lr 0.1 > out"),
            )
            .section(Section::new("Loss").figure(&map.to_svg(), ""))
            .to_html()
    }

    /// Every element that opens closes, in order.
    fn assert_balanced(html: &str) {
        let void = ["meta", "!doctype", "input"];
        let mut open: Vec<&str> = Vec::new();
        for tag in html.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("a tag ends");
            let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().expect("a tag has a name");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') && !void.contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "never closed: {open:?}");
    }

    #[test]
    fn the_page_is_well_formed() {
        assert_balanced(&report());
        assert_balanced(&Report::default().to_html());
    }

    #[test]
    fn the_page_refers_to_nothing_outside_itself() {
        let html = report().replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for reference in
            ["http:", "https:", "//", "src=", "url(", "@import", "<link", "<script", "<iframe", "data:"]
        {
            assert!(!html.contains(reference), "{reference}");
        }
        let anchors: Vec<&str> = html.split("href=\"").skip(1).filter_map(|r| r.split('"').next()).collect();
        assert_eq!(anchors, ["#content", "#summary", "#loss", "#loss-2"]);
        assert!(anchors.iter().all(|a| html.contains(&format!("id=\"{}\"", &a[1..]))));
    }

    #[test]
    fn the_page_has_the_parts_a_reader_navigates_by() {
        let html = report();
        for part in [
            "<h1>A &lt;title&gt; &amp; more</h1>",
            "<main id=",
            "<nav aria-label",
            "<figcaption>The loss</figcaption>",
        ] {
            assert_eq!(html.matches(part).count(), 1, "{part}");
        }
        assert_eq!(html.matches("<p class=\"lead\">").count(), 2);
        assert_eq!(html.matches("<details>\n<summary>Losses</summary>").count(), 1);
        assert!(html.contains("<code>run --lr 0.1 &gt; out</code>"));
        assert!(html.contains("Words &lt;b&gt;not bold&lt;/b&gt;."));
        assert!(
            html.contains("<td class=\"number\">0.7</td>") && html.contains("<th scope=\"row\">plain</th>")
        );
        // Identifiers are unique although every figure is inside the page.
        let mut ids: Vec<&str> = html.split(" id=\"").skip(1).filter_map(|r| r.split('"').next()).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn what_can_be_chosen_is_marked_wherever_it_stands() {
        let panel = |name: &str| Panel::new(name).series(Series::new("loss", [(0.0, 1.0), (1.0, 2.0)]));
        let chart = LineChart::new("Loss", Axis::linear("epoch"), Axis::log("loss"));
        let multiples = chart.panel(panel("a")).panel(panel("b")).note("A note.").to_multiples();
        let html = Report::new("t")
            .choose("Networks", ["a", "b"])
            .choose_one("Moment", ["before", "after"], 1)
            .section(
                Section::new("Loss")
                    .multiples("after", multiples, "Losses.")
                    .table(
                        "Losses",
                        Table::new(["name", "moment", "loss"]).row(["b", "before", "1"]).row(["c", "d", "a"]),
                    )
                    .part(Section::new("b").prose("Alone.").listing("Program", "x < y\nz")),
            )
            .to_html();
        assert_balanced(&html);
        for part in [
            "<figure data-of=\"3\" aria-label=\"Losses.\">",
            "<div data-of=\"0\">\n<svg",
            "<div data-of=\"1\">\n<svg",
            "<tr data-of=\"1 2\"><th scope=\"row\">b</th>",
            "<tr data-of=\"0\"><th scope=\"row\">c</th>",
            "<details class=\"part\" data-of=\"1\">\n<summary><h3>b</h3></summary>\n<p>Alone.</p>",
            "<code>x &lt; y\nz</code>",
            "<figcaption>Losses. Up: loss (log scale). Across: epoch. A note.</figcaption>",
            "<input type=\"checkbox\" name=\"choice0\" id=\"c1\">b</label>",
            "<input type=\"radio\" name=\"choice1\" id=\"c3\" checked>after</label>",
            "body:has(#choice1 :checked):not(:has(#c2:checked)) [data-of~=\"2\"]{display:none}",
        ] {
            assert_eq!(html.matches(part).count(), 1, "{part}");
        }
        // A page without choices has no trace of them.
        let plain = report();
        assert!(!plain.contains("data-of") && !plain.contains("<form") && !plain.contains(":has("));
    }

    #[test]
    fn anchors_are_never_shared() {
        let titles = ["Summary", "Loss", "loss!", "—", "Größe & Maß"];
        assert_eq!(anchors(titles.into_iter()), ["summary-2", "loss", "loss-2", "section", "größe-maß"]);
    }

    #[test]
    #[should_panic(expected = "a row of 1 cells in a table of 2 columns")]
    fn a_short_row_is_refused() {
        let _ = Table::new(["a", "b"]).row(["x"]);
    }
}
