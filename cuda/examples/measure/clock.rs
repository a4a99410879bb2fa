//! How long queued work takes: the host's clock around many repetitions and one wait.

use std::time::{Duration, Instant};

use limpid_cuda::Cuda;
use limpid_tensor::{Error, Result};

/// Repetitions that one graph holds: enough that queueing it takes less time than running it.
const IN_A_GRAPH: usize = 32;

/// How times are taken.
pub struct Clock {
    cuda: &'static Cuda,
    /// The shortest sample: so long that waiting and reading the clock, some 20 µs, are a thousandth of it.
    pub shortest: Duration,
    pub samples: u64,
}

/// How long one repetition takes.
pub struct Time {
    /// The median of the samples.
    pub microseconds: f64,
    /// Half of what lies between the shortest and the longest, as a part of the median.
    pub spread: f64,
    /// Repetitions in a sample.
    pub repetitions: usize,
}

impl Clock {
    pub fn of_card(cuda: &'static Cuda, samples: u64) -> Clock {
        Clock { cuda, shortest: Duration::from_millis(20), samples }
    }

    /// Emulated times say nothing, so that one sample of one repetition will do.
    pub fn of_emulator(cuda: &'static Cuda) -> Clock {
        Clock { cuda, shortest: Duration::ZERO, samples: 1 }
    }

    /// The time of what `queue` queues.
    pub fn time<E: From<Error>>(&self, mut queue: impl FnMut() -> Result<(), E>) -> Result<Time, E> {
        let mut sample = |repetitions: usize| -> Result<Duration, E> {
            let start = Instant::now();
            for _ in 0..repetitions {
                queue()?;
            }
            self.cuda.synchronize()?;
            Ok(start.elapsed())
        };
        // The first compiles kernels and finds memory.
        sample(1)?;
        let mut repetitions = 1;
        loop {
            let took = sample(repetitions)?;
            if took >= self.shortest {
                break;
            }
            let short_by = self.shortest.as_secs_f64() / took.as_secs_f64().max(1e-9);
            repetitions = (repetitions as f64 * (1.2 * short_by).clamp(1.5, 16.0)).ceil() as usize;
        }
        let each = |took: Duration| took.as_secs_f64() * 1e6 / repetitions as f64;
        let mut samples =
            (0..self.samples).map(|_| Ok(each(sample(repetitions)?))).collect::<Result<Vec<f64>, E>>()?;
        samples.sort_by(f64::total_cmp);
        let (first, last) = (samples[0], samples[samples.len() - 1]);
        let microseconds = samples[samples.len() / 2];
        Ok(Time { microseconds, spread: (last - first) / 2.0 / microseconds, repetitions })
    }

    /// The time of what `queue` queues, without that of queueing it: many repetitions are captured and replayed.
    pub fn time_captured<E: From<Error>>(&self, mut queue: impl FnMut() -> Result<(), E>) -> Result<Time, E> {
        // Kernels cannot be compiled while a graph is captured.
        queue()?;
        let repeat = || (0..IN_A_GRAPH).try_for_each(|_| queue());
        let (mut graph, ()) = self.cuda.capture(repeat)?;
        let time = self.time(|| graph.replay().map_err(E::from))?;
        let each = IN_A_GRAPH as f64;
        Ok(Time {
            microseconds: time.microseconds / each,
            repetitions: time.repetitions * IN_A_GRAPH,
            ..time
        })
    }
}
