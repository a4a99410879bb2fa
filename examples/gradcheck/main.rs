//! Every derivative in this project, checked: operations and modules, on random operands of every layout.

mod beyond;
mod measure;
mod modules;
mod mutants;
mod ops;
mod subject;
mod ulps;

fn main() {
    let _ = limpid::tensor::set_threads(1);
    mutants::silence_mutants();
    let mut all = limpid::autograd::check::Score::default();
    let effort = measure::Effort { cases: if std::env::args().nth(2).is_some() { 4 } else { 60 }, seed: 0, mutant_cases: std::env::args().nth(2).map_or(0, |n| n.parse().unwrap()) };
    let only: Option<String> = std::env::args().nth(1);
    for s in ops::ops().into_iter().chain(modules::modules()) {
        if only.as_ref().is_some_and(|o| o != s.name && o != "all") {
            continue;
        }
        let row = measure::measure(&s, &effort, &|_| ());
        println!(
            "{:24} {:4}/{:4} inc {:3} | k {:?} | c {:?} | e {:?} | {:.2?} {:.2?} {:.0e} | f32 {:.1} {:.1} bf16 {:.1} {:.1} | {:.2}s",
            row.name,
            row.smooth.passed,
            row.smooth.cases,
            row.smooth.inconclusive,
            row.kinks.as_ref().map(|t| (t.cases, t.passed, t.inconclusive)),
            row.convention.as_ref().map(|t| (t.cases, t.passed)),
            row.extremes.as_ref().map(|t| (t.cases, t.passed)),
            row.slopes[0],
            row.slopes[1],
            row.adjoint,
            row.f32.value,
            row.f32.gradient,
            row.bf16.value,
            row.bf16.gradient,
            row.seconds
        );
        for f in [&Some(row.smooth.clone()), &row.kinks, &row.convention, &row.extremes]
            .into_iter()
            .flatten()
            .filter_map(|t| t.failure.clone())
        {
            println!("{f}");
        }
        all.merge(&row.score);
        if effort.mutant_cases > 0 { println!("{}", row.score); }
        for d in row.doubts.iter().take(2) {
            println!("   ? {d}");
        }
    }
    println!("{all}");
}
