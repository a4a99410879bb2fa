//! How times are taken: samples of many repetitions each, so that reading the clock costs nothing.
//!
//! Where the system tells, a time is that of the processor: what this program computes for, all its threads together. What
//! it waits for other programs does not count, so that a busy machine can still be measured on. On an idle machine and with
//! one thread it is the time that passes.

use std::time::Duration;

/// How long one repetition takes, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// The shortest sample: the one that other programs on the machine disturbed least.
    pub shortest: f64,
    /// The middle one.
    pub median: f64,
}

/// Times `run` by so many samples, each at least as long as `sample`.
pub fn time(samples: usize, sample: Duration, mut run: impl FnMut()) -> Time {
    let repetitions = repetitions(sample, &mut run);
    let mut seconds: Vec<f64> = (0..samples.max(1)).map(|_| seconds_each(repetitions, &mut run)).collect();
    seconds.sort_by(f64::total_cmp);
    Time { shortest: seconds[0], median: seconds[seconds.len() / 2] }
}

/// So many repetitions that they take about `sample` or longer.
pub fn repetitions(sample: Duration, run: &mut impl FnMut()) -> usize {
    let mut count = 1;
    loop {
        let took = seconds_each(count, run) * count as f64;
        if took >= sample.as_secs_f64() {
            return count;
        }
        let short_by = sample.as_secs_f64() / took.max(1e-9);
        count = (count as f64 * (1.1 * short_by).clamp(1.5, 16.0)).ceil() as usize;
    }
}

/// The seconds that one of `count` repetitions takes.
pub fn seconds_each(count: usize, run: &mut impl FnMut()) -> f64 {
    let start = now();
    for _ in 0..count {
        run();
    }
    (now() - start).as_secs_f64() / count as f64
}

/// The time for which the threads of this program have computed.
#[cfg(unix)]
pub fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec to write to.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "this system counts a process's time");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The time that has passed since it was first asked for.
#[cfg(not(unix))]
pub fn now() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}
