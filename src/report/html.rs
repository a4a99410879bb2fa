//! A report that is one file: no network, no script, readable on paper, on a phone and in the dark.

use std::fmt::Write;

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
    fn to_html(&self, name: &str) -> String {
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
            html.push_str("<tr>");
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
    figures: Vec<(String, String)>,
    tables: Vec<(String, Table)>,
    command: String,
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
        self.figures.push((svg.into(), caption.into()));
        self
    }

    /// With the numbers behind it, folded away until asked for.
    pub fn table(mut self, title: &str, table: Table) -> Section {
        self.tables.push((title.into(), table));
        self
    }

    /// With the command that makes it again.
    pub fn command(mut self, command: &str) -> Section {
        self.command = command.into();
        self
    }

    fn to_html(&self, anchor: &str) -> String {
        let mut html = format!(
            "<section aria-labelledby=\"{anchor}\">\n<h2 id=\"{anchor}\">{}</h2>\n",
            escape(&self.title)
        );
        html.push_str(&paragraphs(&self.prose));
        for (svg, caption) in &self.figures {
            let name = escape(if caption.is_empty() { &self.title } else { caption });
            let _ = write!(
                html,
                "<figure>\n<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{name}\">\n{svg}</div>\n"
            );
            if !caption.is_empty() {
                let _ = writeln!(html, "<figcaption>{}</figcaption>", escape(caption));
            }
            html.push_str("</figure>\n");
        }
        for (title, table) in &self.tables {
            let _ = write!(
                html,
                "<details>\n<summary>{}</summary>\n{}</details>\n",
                escape(title),
                table.to_html(title)
            );
        }
        if !self.command.is_empty() {
            let _ = writeln!(
                html,
                "<p class=\"again\">Make it again:</p>\n<pre tabindex=\"0\"><code>{}</code></pre>",
                escape(&self.command)
            );
        }
        html.push_str("</section>\n");
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

    /// The report as an HTML file.
    pub fn to_html(&self) -> String {
        let title = escape(&self.title);
        // The policy makes the browser itself refuse to load or run anything.
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
             <a class=\"skip\" href=\"#content\">Skip to content</a>\n<header>\n<h1>{title}</h1>\n"
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
        html.push_str("<main id=\"content\">\n");
        if let Some(table) = &self.summary {
            html.push_str("<section aria-labelledby=\"summary\">\n<h2 id=\"summary\">Summary</h2>\n");
            html.push_str(&table.to_html("Summary"));
            html.push_str("</section>\n");
        }
        for (anchor, section) in anchors.iter().zip(&self.sections) {
            html.push_str(&section.to_html(anchor));
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
figure svg{display:block;width:100%;min-width:44rem;height:auto}
figcaption{color:var(--muted);font-size:.9375rem;max-width:42rem;margin-top:.5rem}
table{border-collapse:collapse;font-size:.9375rem}
th,td{padding:.4rem 1.5rem .4rem 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:500;position:sticky;top:0;background:var(--page)}
tbody th{font-weight:600}
.number{text-align:right}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
details{margin:1rem 0}
details .wide{max-height:28rem;overflow:auto;margin-top:.75rem}
summary{cursor:pointer;color:var(--link)}
.again{color:var(--muted);font-size:.9375rem;margin:1.25rem 0 .4rem}
pre{margin:0;padding:.75rem 1rem;overflow-x:auto;background:var(--tint);border-radius:6px;font:.875rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace}
@media print{body{max-width:none;padding:0}nav,.skip{display:none}section,figure{break-inside:avoid}.wide{overflow:visible}figure svg{min-width:0}}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Axis, HeatMap, HeatPanel, LineChart, Series};

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
        let void = ["meta", "!doctype"];
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
