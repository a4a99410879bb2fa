//! Figures and reports: plain numbers in, one SVG or HTML text out.
//!
//! | question | figure |
//! |---|---|
//! | how does a quantity change, in one run or several? | [`LineChart`], one panel |
//! | how does it change along the depth, and over time? | [`LineChart`] with [`Panel`]s, lines [`Series::sequential`] |
//! | what is it in every layer at every epoch? | [`HeatMap`] |
//! | what is the whole made of? | [`LineChart`] with [`Series::stacked`] |
//! | what has the classifier learned? | [`Boundary`] |
//!
//! A figure is SVG text that stands alone: fonts of the reader's system, colours for a light and a dark page, a title
//! and a description for those who hear it. [`Report`] puts figures, words, numbers and commands into one
//! HTML file that loads nothing and runs nothing. The same data gives the same bytes.
//!
//! Numbers that are not finite are never dropped in silence: a line that leaves them is marked where it ends, a cell is
//! hatched, and the description counts them.

mod boundary;
mod cells;
mod chart;
mod frame;
mod heatmap;
mod html;
pub mod palette;
pub mod scale;
pub mod svg;

pub use boundary::{Boundary, BoundaryPanel};
pub use chart::{Axis, LineChart, Panel, Series};
pub use heatmap::{HeatMap, HeatPanel};
pub use html::{Report, Section, Table};
