//! First and second derivatives of every connection, by its state and all of its weights: for every number of streams that
//! it supports, every number of Sinkhorn steps, and logits from nearly equal to sharp.
//!
//! The grid has 129 cells, and each cell 20 points that pass: a batch shape, a layout in memory and a number of channels, with all
//! weights drawn. `cargo test` asks each cell for [`USUAL`], which takes half a minute on one core;
//! `LIMPID_CHECK_SEEDS=20` for all of them. Each test prints what its part showed.

use std::collections::BTreeMap;
use std::fmt;

use limpid_autograd::check::case::{Draw, Looks, Values};
use limpid_autograd::check::{Check, Report, Verdict};
use limpid_nn::{Parameters, forward_with};
use limpid_tensor::Tensor;
use limpid_tensor::rng::Key;

use crate::blocks::{Block, Case, one_stream, with_streams};

/// Points of each cell that are to pass in a usual run.
const USUAL: u64 = 1;

/// The deviation of what softmaxes, Sinkhorn steps and sigmoids are given, and of every other weight.
const DEVIATIONS: [f64; 3] = [0.1, 1.0, 3.0];

/// Of the connections of [`blocks`](crate::blocks), one with its settings.
#[derive(Clone, Copy, Debug)]
struct Cell {
    name: &'static str,
    streams: Option<usize>,
    /// Of Sinkhorn.
    steps: Option<usize>,
    std: f64,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.streams.map_or(Ok(()), |n| write!(f, " n={n}"))?;
        self.steps.map_or(Ok(()), |t| write!(f, " T={t}"))?;
        write!(f, " std={}", self.std)
    }
}

/// The cells of these connections, of all that there are.
fn cells(streams: &[Option<usize>], wanted: impl Fn(&str) -> bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &streams in streams {
        let cases = streams.map_or_else(|| one_stream(3), |n| with_streams(n, 3, 1));
        for name in cases.iter().map(|case| case.name).filter(|name| wanted(name)) {
            let steps: &[Option<usize>] = if name == "mhc" { &[Some(1), Some(3), Some(20)] } else { &[None] };
            for &steps in steps {
                cells.extend(DEVIATIONS.map(|std| Cell { name, streams, steps, std }));
            }
        }
    }
    cells
}

impl Cell {
    fn case(self, channels: usize) -> Case {
        let cases = match self.streams {
            None => one_stream(channels),
            Some(n) => with_streams(n, channels, self.steps.unwrap_or(1)),
        };
        cases.into_iter().find(|case| case.name == self.name).expect("cells are made of cases")
    }

    /// The block and the state of a point.
    fn point(self, seed: u64) -> (Block, Tensor) {
        let mut draw = Draw::random(Key::new(seed).fold_str(&self.to_string()));
        // A norm makes two channels ±1, whatever they are.
        let normed = matches!(self.name, "post-norm" | "deepnorm" | "resi-dual");
        let channels = if normed { 3 } else { 2 } + draw.below(2);
        let batch = match (self.name, self.streams) {
            // So many samples are never all dropped.
            ("droppath", _) => draw.pick(&[vec![8], vec![8, 1]]),
            (_, None | Some(1 | 2)) => {
                draw.pick(&[vec![], vec![1], vec![2], vec![3], vec![2, 1], vec![1, 2]])
            }
            _ => draw.pick(&[vec![], vec![1], vec![2], vec![1, 1]]),
        };
        let shape = batch.iter().copied().chain(self.streams).chain([channels]).collect();
        let state = draw.operands(vec![shape], &Looks::from(Values::Normal(1.0)).dense())[0].tensor();
        (self.case(channels).block(channels, self.std, seed), state)
    }

    fn check(self, seed: u64) -> Report {
        let (block, state) = self.point(seed);
        let mut at = vec![state];
        at.extend(block.parameters().into_iter().filter(|p| p.is_trainable()).map(|p| p.value().clone()));
        Check::new().seed(seed).run(|x| forward_with(&block, x[0], &x[1..]), &at)
    }
}

/// What the points of some cells showed.
#[derive(Default)]
struct Survey {
    cells: usize,
    points: usize,
    passed: usize,
    /// By connection and reason, without its numbers.
    undecided: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Survey {
    fn of(cells: &[Cell]) -> Survey {
        let seeds = match std::env::var("LIMPID_CHECK_SEEDS") {
            Ok(text) => text.parse().expect("LIMPID_CHECK_SEEDS is a number"),
            Err(_) => USUAL,
        };
        let mut survey = Survey { cells: cells.len(), ..Survey::default() };
        for &cell in cells {
            // Points that rounding leaves undecided are drawn again; of hc-dynamic with one stream and large weights half are.
            let (mut passed, mut draws) = (0, 1..=3 * seeds + 1);
            while passed < seeds
                && let Some(seed) = draws.next()
            {
                survey.points += 1;
                let report = cell.check(seed);
                match &report.verdict {
                    Verdict::Pass => passed += 1,
                    Verdict::Inconclusive(reason) => {
                        let kind: String = reason.chars().take_while(|c| !c.is_ascii_digit()).collect();
                        let key = format!("{}, std {}: {}", cell.name, cell.std, kind.trim_end());
                        *survey.undecided.entry(key).or_default() += 1;
                    }
                    Verdict::Fail(_) => survey.wrong.push(format!("{cell}, point {seed}\n{report}")),
                }
            }
            survey.passed += passed as usize;
            if passed < seeds {
                survey.wrong.push(format!("{cell}: only {passed} of {seeds} points pass"));
            }
        }
        survey
    }

    /// No derivative is wrong, and each cell has as many points that pass as are asked for. Where a weight hardly matters
    /// (sharp or nearly equal logits) rounding can hide what is wrong with its gradient, and the check says so; not often.
    fn expect_right(&self, what: &str) {
        println!("{what}: {self}");
        assert!(self.wrong.is_empty(), "{what}: {self}\n{}", self.wrong.join("\n"));
    }
}

impl fmt::Display for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let undecided: usize = self.undecided.values().sum();
        let Survey { cells, points, passed, wrong, .. } = self;
        write!(
            f,
            "{cells} cells, {points} points: {passed} pass, {} wrong, {undecided} undecided",
            wrong.len()
        )?;
        for (reason, count) in &self.undecided {
            write!(f, "\n  {count} × {reason} …")?;
        }
        Ok(())
    }
}

#[test]
fn one_stream_is_right() {
    Survey::of(&cells(&[None], |_| true)).expect_right("one stream");
}

#[test]
fn streams_without_sinkhorn_are_right() {
    let streams = [1, 2, 4].map(Some);
    Survey::of(&cells(&streams, |name| name != "mhc")).expect_right("1, 2 and 4 streams without Sinkhorn");
}

#[test]
fn eight_streams_without_sinkhorn_are_right() {
    Survey::of(&cells(&[Some(8)], |name| name != "mhc")).expect_right("8 streams without Sinkhorn");
}

#[test]
fn up_to_four_streams_with_sinkhorn_are_right() {
    let streams = [1, 2, 4].map(Some);
    Survey::of(&cells(&streams, |name| name == "mhc")).expect_right("1, 2 and 4 streams with Sinkhorn");
}

#[test]
fn eight_streams_with_sinkhorn_are_right() {
    Survey::of(&cells(&[Some(8)], |name| name == "mhc")).expect_right("8 streams with Sinkhorn");
}
