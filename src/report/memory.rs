//! How much memory does a run take, from its first step to its last?

use limpid_autograd::plan::{Front, Moment, Plan, Point, Step};

use super::chart::{Axis, LineChart, Series};

/// Of how many steps a line shows the least and the most.
const COLUMNS: usize = 300;

/// Memory over the steps of a run, forward and backward, a line for each plan under the name given with it.
///
/// A step is a value computed, a value computed again, or a derivative rule that has run; its height is the most that is
/// held meanwhile. So the highest point of a line is its plan's [peak](limpid_autograd::plan::Totals::peak), and a plan that computes more again
/// has a longer line. Inputs and parameters do not count. A line ends at what is left: gradients and the result. Of long
/// runs a line keeps some 600 points, its highest and lowest among them.
///
/// ```
/// use limpid::autograd::plan::Policy;
/// use limpid::report::memory_over_time;
/// use limpid::{DType, Tape, Tensor, Var};
/// let dry = Tape::dry();
/// let x = dry.variable(&Tensor::ones([1000], DType::F32));
/// let loss = (0..64).fold(x, |x: Var<'_>, _| x.exp()).sum(&[]);
/// let everything = dry.plan(loss, &Policy::everything())?;
/// let blocks = dry.plan(loss, &Policy::blocks(8))?;
/// let chart = memory_over_time(&[("everything", &everything), ("one in eight", &blocks)]);
/// assert!(chart.to_svg().contains("the backward pass begins"));
/// # Ok::<(), limpid::autograd::plan::PlanError>(())
/// ```
pub fn memory_over_time(plans: &[(&str, &Plan)]) -> LineChart {
    let highest = plans.iter().map(|(_, plan)| plan.totals().peak).max().unwrap_or(0);
    let (unit, bytes) = unit(highest);
    let chart = LineChart::new(
        "Memory over the run",
        Axis::linear("steps: values computed, computed again, and derivative rules"),
        Axis::linear(&format!("memory / {unit}")),
    );
    let line = |(name, plan): &(&str, &Plan)| {
        Series::new(name, thinned(&over_steps(plan)).into_iter().map(|(step, held)| (step, held / bytes)))
    };
    let chart = plans.iter().map(line).fold(chart, LineChart::series);
    // Plans of one program compute the same values once, and so begin together.
    let begin = |plan: &Plan| plan.moments()[..plan.backward_begins()].iter().filter(|m| is_step(m)).count();
    let mut begins: Vec<usize> = plans.iter().map(|(_, plan)| begin(plan)).collect();
    begins.dedup();
    match begins[..] {
        [at] => chart.mark(at as f64, "the backward pass begins"),
        _ => chart,
    }
}

/// The operations that the plans of a [`Front`] repeat, in % of a forward pass, over the bytes of their peak, and the bound
/// below which no plan can be. For a chain the two are one line.
///
/// ```
/// use limpid::report::bytes_and_operations;
/// use limpid::{DType, Tape, Tensor, Var};
/// let dry = Tape::dry();
/// let x = dry.variable(&Tensor::ones([1000], DType::F32));
/// let front = dry.front((0..64).fold(x, |x: Var<'_>, _| x.exp()).sum(&[]))?;
/// assert!(bytes_and_operations(&front).to_svg().contains("exact"));
/// # Ok::<(), limpid::autograd::plan::PlanError>(())
/// ```
pub fn bytes_and_operations(front: &Front) -> LineChart {
    let highest = front.points().last().map_or(0, |point| point.peak);
    let (unit, bytes) = unit(highest);
    let line = |name: &str, repeated: &dyn Fn(&Point) -> u64| {
        let percent = |point: &Point| 100.0 * repeated(point) as f64 / front.flops().max(1) as f64;
        let at = |point| (point, percent(point));
        Series::new(name, front.points().iter().map(at).map(|(point, y)| (point.peak as f64 / bytes, y)))
    };
    let chart = LineChart::new(
        "Bytes and operations",
        Axis::linear(&format!("peak memory / {unit}")),
        Axis::linear("operations computed again / % of a forward pass"),
    );
    match front.is_exact() {
        true => chart.series(line("every plan (exact)", &|point| point.extra_flops)),
        false => chart
            .series(line("plans found", &|point| point.extra_flops))
            .series(line("no plan is below", &|point| point.bound)),
    }
}

fn is_step(moment: &Moment) -> bool {
    !matches!(moment.step, Step::Drop(_))
}

/// The unit that a number of bytes is best read in, and how many of them it is.
fn unit(bytes: usize) -> (&'static str, f64) {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let fits = units.into_iter().find(|(_, unit)| bytes >= *unit);
    fits.map_or(("B", 1.0), |(name, unit)| (name, unit as f64))
}

/// Of each step, counted from 1: the most held while it happens. Around them: nothing at 0, and what is left.
fn over_steps(plan: &Plan) -> Vec<(f64, f64)> {
    let steps = plan.moments().iter().filter(|moment| is_step(moment));
    let mut points = vec![(0.0, 0.0)];
    points.extend((1..).zip(steps).map(|(step, moment)| (f64::from(step), moment.peak as f64)));
    let left = plan.moments().last().map_or(0, |moment| moment.held);
    points.push((points.len() as f64, left as f64));
    points
}

/// The first and the last point, and of each of so many stretches between them the lowest and the highest.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let [first, between @ .., last] = points else { return points.to_vec() };
    let mut kept = vec![*first];
    for stretch in between.chunks(between.len().div_ceil(COLUMNS).max(1)) {
        let by_height = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut ends: Vec<(f64, f64)> = [stretch.iter().min_by(by_height), stretch.iter().max_by(by_height)]
            .into_iter()
            .flatten()
            .copied()
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        ends.dedup();
        kept.extend(ends);
    }
    kept.push(*last);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpid_autograd::plan::{Every, Policy};
    use limpid_autograd::{Tape, Var};
    use limpid_tensor::{DType, Tensor};

    /// A chain so long that its lines are thinned.
    fn plan(policy: &Policy) -> Plan {
        let tape = Tape::dry();
        let x = tape.variable(&Tensor::ones([1000], DType::F32));
        let loss = (0..2000).fold(x, |x: Var<'_>, _| x.exp()).sum(&[]);
        tape.plan(loss, policy).unwrap()
    }

    #[test]
    fn a_line_is_short_and_as_high_as_the_plan() {
        for policy in [Policy::everything(), Policy::blocks(Every::Root), Policy::blocks(7)] {
            let plan = plan(&policy);
            let (all, few) = (over_steps(&plan), thinned(&over_steps(&plan)));
            assert!(all.len() > 4000 && few.len() <= 2 * COLUMNS + 2, "{} of {}", few.len(), all.len());
            let highest = few.iter().map(|point| point.1).fold(0.0, f64::max);
            assert_eq!(highest, plan.totals().peak as f64);
            assert!(few.windows(2).all(|pair| pair[0].0 < pair[1].0));
            // The gradient of x, and the loss.
            assert_eq!(few.last(), Some(&(all.len() as f64 - 1.0, 4004.0)));
        }
    }

    #[test]
    fn what_is_computed_again_makes_a_line_longer() {
        let (everything, nothing) = (plan(&Policy::everything()), plan(&Policy::blocks(Every::Root)));
        let longer = over_steps(&nothing).len() - over_steps(&everything).len();
        assert_eq!(longer, nothing.totals().recomputed);
    }

    #[test]
    fn a_few_points_are_all_kept() {
        assert_eq!(thinned(&[]), []);
        let points: Vec<(f64, f64)> = (0..50).map(|i| (f64::from(i), f64::from(i * 7 % 10))).collect();
        assert_eq!(thinned(&points), points);
    }

    #[test]
    fn units_follow_the_size() {
        assert_eq!([0, 2000, 3 << 20, 5 << 30].map(unit).map(|u| u.0), ["B", "KiB", "MiB", "GiB"]);
    }

    #[test]
    fn the_axis_has_the_unit_and_programs_that_begin_apart_no_mark() {
        let long = plan(&Policy::everything());
        let tape = Tape::dry();
        let short = tape.variable(&Tensor::ones([4], DType::F32)).exp().sum(&[]);
        let short = tape.plan(short, &Policy::everything()).unwrap();
        let svg = memory_over_time(&[("long", &long), ("short", &short)]).to_svg();
        assert!(svg.contains("memory / MiB") && !svg.contains("the backward pass begins"));
        assert!(memory_over_time(&[]).to_svg().contains("no data"));
    }
}
