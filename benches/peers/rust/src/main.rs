//! Contestants in Rust: answers run.py line by line, as limpid's own does.

#[cfg(feature = "burn")]
mod in_burn;
#[cfg(feature = "candle")]
mod in_candle;
mod numbers;
#[cfg(feature = "products")]
mod products;

use std::io::{BufRead, Write};
use std::time::Duration;

/// Does the work once; returns its results if they are asked for.
pub type Workload = Box<dyn FnMut(bool) -> Vec<Vec<f32>>>;

fn main() {
    let contestant = std::env::args().nth(1).unwrap_or_default();
    let prepare: fn(&[&str]) -> Option<Workload> = match contestant.as_str() {
        #[cfg(feature = "candle")]
        "candle" => |parts| in_candle::workload(parts).expect("candle can do it"),
        #[cfg(feature = "burn")]
        "burn" => in_burn::workload,
        #[cfg(feature = "products")]
        "gemm" => products::gemm,
        #[cfg(feature = "products")]
        "faer" => products::faer,
        _ => panic!("expected candle, burn, gemm or faer, found {contestant:?}"),
    };
    let mut prepared: Option<(Workload, Option<usize>)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("run.py writes lines");
        let (request, argument) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = match (request, &mut prepared) {
            ("prepare", prepared) => {
                *prepared = None;
                let parts: Vec<&str> = argument.split('-').collect();
                *prepared = prepare(&parts).map(|run| (run, None));
                if prepared.is_some() { "ok".into() } else { format!("skip {contestant} has no {argument}") }
            }
            ("check", Some((run, _))) => {
                let mean_square = |x: &Vec<f32>| {
                    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / x.len() as f64
                };
                run(true).iter().map(mean_square).sum::<f64>().to_string()
            }
            ("time", Some((run, count))) => {
                let sample: f64 = argument.parse().expect("run.py writes seconds");
                let count = *count.get_or_insert_with(|| repetitions(run, sample));
                seconds_each(run, count).to_string()
            }
            _ => panic!("expected prepare, check or time, found {line:?}"),
        };
        println!("{answer}");
        std::io::stdout().flush().expect("run.py reads answers");
    }
}

/// So many runs that they take about `sample` seconds or longer.
fn repetitions(run: &mut Workload, sample: f64) -> usize {
    let mut count = 1;
    loop {
        let took = seconds_each(run, count) * count as f64;
        if took >= sample {
            return count;
        }
        count = (count as f64 * (1.1 * sample / took.max(1e-9)).clamp(1.5, 16.0)).ceil() as usize;
    }
}

/// The processor's time that one of `count` runs takes, all threads together.
fn seconds_each(run: &mut Workload, count: usize) -> f64 {
    let start = now();
    for _ in 0..count {
        run(false);
    }
    (now() - start).as_secs_f64() / count as f64
}

fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
