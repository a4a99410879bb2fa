//! What one thread of this machine can do, and how much of it each kernel uses.

use std::time::Duration;

use limpid_bench::{Bound, Case, Failure, Limit, Machine, cases, clock};
use limpid_tensor::{HostMemory, set_threads};
use serde_json::{Value, json};

const HELP: &str = "\
Measures this machine's peak and bandwidths with one thread, then every kernel
beside the shortest time that either allows.

Usage: roofline [--json] [FILTER]...

  FILTER   only kernels whose group or name contains one of these
  --json   machine and rows as JSON, in seconds, bytes and operations
  --help   this";

const LEGEND: &str = "\
Times are the shortest of several samples. GB/s: each element of operands and
results once. Bound: what forbids to be faster, the peak in f32 or f64, the
bandwidth of the level of memory that holds operands and results, or (instr) the
arithmetic instructions of a function of elements or rows, in its loops for
AVX-512. Of it: the part that is used. Limits are measured by simple loops: a
kernel that asks for its operands ahead, or writes in their place as an
optimiser does, can pass them by a few per cent, and by more in the caches.";

fn main() -> Result<(), Failure> {
    let (mut as_json, mut filters) = (false, Vec::new());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--json" => as_json = true,
            "--help" | "-h" => {
                println!("{HELP}");
                return Ok(());
            }
            option if option.starts_with('-') => {
                return Err(format!("expected a filter, --json or --help, found {option}").into());
            }
            _ => filters.push(argument),
        }
    }
    set_threads(1)?;
    let wanted = |case: &Case| {
        let name = format!("{} {}", case.group, case.name);
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let before = Machine::measure();
    let mut rows = Vec::new();
    for case in cases::all().into_iter().filter(wanted) {
        let mut prepared = case.prepare()?;
        let time = clock::time(7, Duration::from_millis(10), || prepared.run());
        rows.push((case, prepared.work, time));
        HostMemory::release_pool();
    }
    // What the machine could not do while it was busy with something else, it may have shown by now.
    let machine = before.or(Machine::measure());
    if as_json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(case, work, time)| {
                let Limit { bound, seconds } = machine.limit(*work, case.dtype);
                json!({
                    "group": case.group, "name": case.name, "seconds": time.shortest, "median": time.median,
                    "read": work.read, "written": work.written, "flops": work.flops, "instructions": work.instructions,
                    "bound": name(bound), "bound_seconds": seconds, "of_bound": seconds / time.shortest,
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "machine": machine.to_json(), "rows": rows }))?);
        return Ok(());
    }
    println!("{}", machine.table());
    println!("{:<42} {:>9} {:>8} {:>10} {:>7}", "", "time", "G/s", "bound", "of it");
    let mut group = "";
    for (case, work, time) in rows {
        if case.group != group {
            group = case.group;
            println!("{:─<80}", format!("{group} "));
        }
        let Limit { bound, seconds } = machine.limit(work, case.dtype);
        let rate = match bound {
            Bound::Operations => work.flops / time.shortest,
            Bound::Bytes(_) | Bound::Instructions => (work.read + work.written) / time.shortest,
        };
        println!(
            "{:<42} {:>9} {:>8.1} {:>10} {:>5.0} %",
            case.name,
            duration(time.shortest),
            rate / 1e9,
            name(bound),
            100.0 * seconds / time.shortest
        );
    }
    println!("\n{LEGEND}");
    Ok(())
}

fn name(bound: Bound) -> String {
    match bound {
        Bound::Operations => "FLOP/s".into(),
        Bound::Instructions => "instr".into(),
        Bound::Bytes(level) => format!("B/s {level}"),
    }
}

/// Seconds in three digits.
fn duration(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}
