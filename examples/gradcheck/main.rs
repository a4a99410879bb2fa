//! Every derivative in this project, checked: operations and modules, on random operands of every layout and kind of
//! value, and the check itself by mutants of every rule.

mod beyond;
mod measure;
mod modules;
mod mutants;
mod ops;
mod quiet;
mod subject;
mod table;
mod ulps;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use limpid::autograd::check::Tier;
use serde_json::{Value, json};

use measure::{Effort, Row};
use subject::{Group, Subject};

/// Checks every derivative: operations, losses and modules.
///
/// Each is tried on random shapes, layouts and values in f64: forward against reverse mode, Taylor remainders, the whole
/// Jacobian, second order; at kinks against what is agreed; at extreme values for NaN; in f32 and bf16 against f64; and by
/// mutants of its rules, all of which the check must notice.
#[derive(Parser, Debug)]
#[command(name = "gradcheck", version, max_term_width = 80)]
struct Arguments {
    /// Only this row, by its name in the table; may be given several times
    #[arg(long, value_name = "NAME")]
    op: Vec<String>,
    /// Random cases of each operation; a module gets a tenth
    #[arg(long, default_value_t = 1000, value_name = "N")]
    cases: usize,
    /// Seed of the cases
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Small cases at which every mutant is tried until one kills it (0: no mutants)
    #[arg(long, default_value_t = 24, value_name = "N")]
    mutants: usize,
    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Write everything found to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Cases that once failed: lines `name: case`, as a failure prints them.
const REGRESSIONS: &str = include_str!("regressions.txt");

fn catalogue(only: &[String]) -> Vec<Subject> {
    let mut all = ops::ops();
    all.extend(modules::modules());
    all.retain(|subject| only.is_empty() || only.iter().any(|name| name == subject.name));
    all.into_iter().map(|subject| subject.with_regressions(REGRESSIONS)).collect()
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("gradcheck: {message}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything passed.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let start = Instant::now();
    let names: Vec<&str> = catalogue(&[]).iter().map(|subject| subject.name).collect();
    if let Some(unknown) = arguments.op.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("--op: expected one of {}, found {unknown:?}", names.join(", ")));
    }
    if arguments.cases == 0 {
        return Err("--cases: expected at least 1, found 0".into());
    }
    // One tensor thread each: the cases are small, and the threads are used for rows.
    limpid::tensor::set_threads(1).map_err(|e| e.to_string())?;
    quiet::print_unexpected_panics_only();
    let effort = Effort { cases: arguments.cases, seed: arguments.seed, mutant_cases: arguments.mutants };
    let threads =
        arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let rows = measured(&arguments.op, &effort, threads.max(1));
    let seconds = start.elapsed().as_secs_f64();

    print!("{}", table::tables(&rows));
    let failures = || rows.iter().flat_map(failures_of);
    failures().for_each(|failure| println!("{failure}"));
    for (name, doubt) in rows.iter().flat_map(|row| row.doubts.iter().map(|doubt| (row.name, doubt))) {
        println!("inconclusive: {name}: {doubt}");
    }
    let record = record(&rows, seconds);
    let count = |key: &str| record.pointer(key).and_then(Value::as_u64).unwrap_or(0);
    println!(
        "{} ops and modules, {} cases: {} pass, {} fail, {} inconclusive;\n{} at kinks, ties and extreme values: {} \
         pass, {} fail, {} inconclusive;\n{} of {} mutants killed, {} excluded, {} survive; {seconds:.0} s",
        count("/ops"),
        count("/cases"),
        count("/pass"),
        count("/fail"),
        count("/inconclusive"),
        count("/beyond/cases"),
        count("/beyond/pass"),
        count("/beyond/fail"),
        count("/beyond/inconclusive"),
        count("/killed"),
        count("/mutants"),
        count("/excluded"),
        count("/survivors"),
    );
    if let Some(path) = &arguments.json {
        let text = format!("{record:#}\n");
        limpid::tensor::io::write_atomically(path, |file| file.write_all(text.as_bytes()))
            .map_err(|e| e.to_string())?;
    }
    // More than one in a hundred that cannot be decided is no answer.
    let decided = count("/inconclusive") * 100 <= count("/cases");
    let no_failure = count("/fail") + count("/beyond/fail") == 0 && failures().next().is_none();
    Ok(decided && no_failure && count("/survivors") == 0)
}

/// Every row, measured by so many threads, in the order of the catalogue.
fn measured(only: &[String], effort: &Effort, threads: usize) -> Vec<Row> {
    let subjects = catalogue(only);
    let modules = subjects.iter().filter(|s| s.group == Group::Module).count();
    let total = (subjects.len() - modules) * effort.cases + modules * effort.cases.div_ceil(10);
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} cases, {elapsed}, {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // Functions are not shared between threads: each makes its own catalogue.
                let subjects = catalogue(only);
                loop {
                    // The modules, last in the table and longest to check, first.
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(subject) = subjects.len().checked_sub(i + 1).map(|i| &subjects[i]) else {
                        break;
                    };
                    bar.set_message(subject.name);
                    let row = measure::measure(subject, effort, &|cases| bar.inc(cases as u64));
                    if let Ok(mut rows) = rows.lock() {
                        rows.push((i, row));
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut rows = rows.into_inner().unwrap_or_default();
    rows.sort_by_key(|(i, _)| std::cmp::Reverse(*i));
    rows.into_iter().map(|(_, row)| row).collect()
}

/// What is wrong with a row, as it was found.
fn failures_of(row: &Row) -> Vec<String> {
    let all = [Some(&row.smooth), row.kinks.as_ref(), row.convention.as_ref(), row.extremes.as_ref()];
    let narrow = row.narrow.iter();
    all.into_iter()
        .flatten()
        .filter_map(|t| t.failure.as_ref())
        .chain(narrow)
        .map(|f| format!("{}: {f}", row.name))
        .collect()
}

/// Everything found, as JSON. The counts at the top are those of the smooth cases; `beyond` are those at kinks, ties and
/// extreme values.
fn record(rows: &[Row], seconds: f64) -> Value {
    let score = table::score(rows);
    let survivors = table::survivors(&score);
    let excluded: Vec<Value> = score
        .equivalent()
        .filter_map(|name| Some(json!({ "mutant": name, "why": mutants::reason(name)? })))
        .collect();
    let sum = |f: &dyn Fn(&Row) -> usize| rows.iter().map(f).sum::<usize>();
    let beyond = |f: &dyn Fn(&beyond::Tally) -> usize| {
        let tallies = |row: &Row| [row.kinks.clone(), row.convention.clone(), row.extremes.clone()];
        rows.iter().flat_map(tallies).flatten().map(|tally| f(&tally)).sum::<usize>()
    };
    json!({
        "ops": rows.len(),
        "cases": sum(&|row| row.smooth.cases),
        "pass": sum(&|row| row.smooth.passed),
        "fail": sum(&|row| row.smooth.failed()),
        "inconclusive": sum(&|row| row.smooth.inconclusive),
        "beyond": {
            "cases": beyond(&|t| t.cases),
            "pass": beyond(&|t| t.passed),
            "fail": beyond(&|t| t.failed()),
            "inconclusive": beyond(&|t| t.inconclusive),
        },
        "mutants": score.mutants(),
        "killed": score.killed(),
        "survivors": survivors.len(),
        "excluded": excluded.len(),
        "seconds": seconds,
        "survivor_names": survivors.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "exclusions": excluded,
        "rows": rows.iter().map(row_record).collect::<Vec<_>>(),
    })
}

fn row_record(row: &Row) -> Value {
    let tally = |t: &beyond::Tally| json!({ "cases": t.cases, "pass": t.passed, "inconclusive": t.inconclusive, "fail": t.failed(), "failure": t.failure });
    let ulps = |u: ulps::Ulps| json!({ "value": u.value, "gradient": u.gradient });
    let tiers: Vec<Value> = row
        .tiers
        .iter()
        .map(|((layout, tier), [cases, passed])| {
            json!({ "dtype": "f64", "layout": layout, "tier": tier.to_string(), "cases": cases, "pass": passed })
        })
        .collect();
    let by = |tier: Tier| row.score.killed_by(tier).0;
    json!({
        "name": row.name,
        "group": if row.group == Group::Op { "op" } else { "module" },
        "smooth": tally(&row.smooth),
        "kinks": row.kinks.as_ref().map(tally),
        "ties": row.convention.as_ref().map(tally),
        "extremes": row.extremes.as_ref().map(tally),
        "inconclusive": row.doubts,
        "slope": row.slopes[0],
        "slope_of_the_gradient": row.slopes[1],
        "adjoint_to": row.adjoint,
        "ulps": { "f32": ulps(row.ulps[0]), "bf16": ulps(row.ulps[1]), "wrong": row.narrow },
        "tiers": tiers,
        "mutants": row.score.mutants(),
        "killed": row.score.killed(),
        "killed_by": {
            "contract": by(Tier::Contract),
            "adjoint": by(Tier::Adjoint),
            "taylor": by(Tier::Taylor),
            "jacobian": by(Tier::Jacobian),
            "second order": by(Tier::Curvature),
        },
        "seconds": row.seconds,
    })
}
