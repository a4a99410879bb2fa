//! One subject through everything: smooth cases, kinks, conventions, extremes, narrow dtypes, mutants.

use std::collections::BTreeMap;
use std::time::Instant;

use limpid::autograd::check::case::{Case, Values, View};
use limpid::autograd::check::{Report, Score, Tier, Verdict};
use limpid::{DType, Tape};

use crate::beyond::{self, Tally};
use crate::mutants;
use crate::quiet::{caught, quietly};
use crate::subject::{Group, Subject};
use crate::ulps::{self, Ulps, ulps};

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Random cases of an operation; a module gets a tenth.
    pub cases: usize,
    pub seed: u64,
    /// Cases at which mutants are looked at before they count as survivors; 0 leaves them out.
    pub mutant_cases: usize,
}

/// What is known about one subject.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: &'static str,
    pub group: Group,
    pub smooth: Tally,
    pub kinks: Option<Tally>,
    pub convention: Option<Tally>,
    pub extremes: Option<Tally>,
    /// Cases, and those that passed, by layout and tier.
    pub tiers: BTreeMap<(&'static str, Tier), [usize; 2]>,
    /// Why smooth cases were inconclusive.
    pub doubts: Vec<String>,
    /// The median slope of the Taylor remainders and of those of the gradient, and the worst adjoint error.
    pub slopes: [Option<f64>; 2],
    pub adjoint: f64,
    pub ulps: [Ulps; 2],
    /// What is wrong with the narrow kernels.
    pub narrow: Vec<String>,
    pub score: Score,
    pub seconds: f64,
}

/// What kind of layout a case's operands have.
pub fn layout(case: &Case) -> &'static str {
    let views = case.operands.iter().map(|o| &o.views[..]).max_by_key(|views| views.len()).unwrap_or(&[]);
    match views {
        [] => "contiguous",
        [View::Permute(_)] => "permuted",
        [View::Slice { .. }] => "sliced",
        [View::Flip(_)] => "flipped",
        [View::Expand(_)] => "expanded",
        [View::Offset(_)] => "offset",
        _ => "two views",
    }
}

fn median(mut x: Vec<f64>) -> Option<f64> {
    x.sort_by(f64::total_cmp);
    x.get(x.len() / 2).copied()
}

/// Runs a subject; `progress` is told of every case.
pub fn measure(subject: &Subject, effort: &Effort, progress: &dyn Fn(usize)) -> Row {
    let start = Instant::now();
    let cases = match subject.group {
        Group::Op => effort.cases,
        Group::Module => effort.cases.div_ceil(10),
    };
    let mut row = Row {
        name: subject.name,
        group: subject.group,
        smooth: Tally::default(),
        kinks: None,
        convention: None,
        extremes: None,
        tiers: BTreeMap::new(),
        doubts: Vec::new(),
        slopes: [None; 2],
        adjoint: 0.0,
        ulps: Default::default(),
        narrow: Vec::new(),
        score: Score::default(),
        seconds: 0.0,
    };
    let mut slopes = [Vec::new(), Vec::new()];
    let look = &mut |case: &Case, report: &Report| {
        progress(1);
        for outcome in &report.tiers {
            let cell = row.tiers.entry((layout(case), outcome.tier)).or_default();
            cell[0] += 1;
            cell[1] += usize::from(outcome.findings.is_empty() && outcome.doubts.is_empty());
        }
        for (slopes, tier) in slopes.iter_mut().zip([Tier::Taylor, Tier::Curvature]) {
            slopes.extend(report.tier(tier).and_then(|outcome| outcome.measured("slope")));
        }
        let adjoint = report.tier(Tier::Adjoint).and_then(|outcome| outcome.measured("adjoint to"));
        row.adjoint = row.adjoint.max(adjoint.unwrap_or(0.0));
    };
    let survey = quietly(|| subject.smooth.run_each(cases, effort.seed, look));
    row.slopes = slopes.map(median);
    row.smooth = Tally {
        cases: survey.cases,
        passed: survey.passed,
        inconclusive: survey.inconclusive.len(),
        failure: (!survey.failed.is_empty()).then(|| survey.to_string()),
    };
    row.doubts = survey.inconclusive.iter().map(|(case, reason)| format!("{reason}, at {case}")).collect();

    let fewer = cases.div_ceil(5);
    if let Some(kinks) = &subject.kinks {
        let mut tally = Tally::default();
        let look = &mut |_: &Case, report: &Report| {
            tally.cases += 1;
            tally.passed += usize::from(report.passed());
            tally.inconclusive += usize::from(matches!(report.verdict, Verdict::Inconclusive(_)));
        };
        let survey = quietly(|| kinks.run_each(fewer, effort.seed, look));
        tally.failure = (!survey.failed.is_empty()).then(|| survey.to_string());
        row.kinks = Some(tally);
    }
    if let Some(convention) = &subject.convention {
        let mut tally = Tally::default();
        for i in 0..fewer as u64 {
            let case = convention.property.case(effort.seed, i);
            let result = caught(|| beyond::convention(convention, &case, &Tape::new()));
            tally.count(&case, result);
        }
        row.convention = Some(tally);
    }
    if subject.extremes {
        let mut tally = Tally::default();
        for i in 0..fewer as u64 {
            let case = subject.smooth.case(effort.seed, i);
            for values in [Values::Saturated, Values::Tiny, Values::Huge] {
                let operands = beyond::with_values(&case, values);
                let result = caught(|| beyond::extreme(&subject.smooth, &case, &operands));
                if let Some(result) = result.transpose() {
                    tally.count(&case, result.map_err(|what| format!("{what}, {values} values")));
                }
            }
        }
        row.extremes = Some(tally);
    }
    for (worst, dtype) in row.ulps.iter_mut().zip([DType::F32, DType::BF16]) {
        let limit = match subject.group {
            Group::Op => ulps::LIMIT,
            // A module composes operations, and what they add up to may cancel: it has only to be a number.
            Group::Module => f64::MAX,
        };
        let mut failure = None;
        for i in 0..fewer as u64 {
            let case = subject.smooth.case(effort.seed, i);
            let result = caught(|| ulps(&subject.smooth, &case, dtype).map_err(|e| e.to_string()));
            let found = result.and_then(|found| {
                *worst = worst.max(found);
                let far = found.value.max(found.gradient);
                if far <= limit { Ok(()) } else { Err(format!("{far:.0} ulps off (at most {limit})")) }
            });
            if let Err(what) = found {
                failure.get_or_insert(format!("in {dtype}: {what}, at {case}"));
            }
        }
        row.narrow.extend(failure);
    }
    if effort.mutant_cases > 0 {
        row.score = mutants::score(subject, effort.seed, effort.mutant_cases);
    }
    row.seconds = start.elapsed().as_secs_f64();
    row
}
