//! What one thread of this processor does at most: operations in registers, bytes to and from each level of memory.

mod bandwidth;
mod cpu;
mod peak;

use limpid_tensor::DType;
use serde_json::{Value, json};

use crate::Work;

pub use bandwidth::Transfer;
pub use peak::compute;

/// The names of the levels of memory.
const LEVELS: [&str; 4] = ["L1", "L2", "L3", "memory"];

/// What one thread does at most.
#[derive(Clone, Debug)]
pub struct Machine {
    cpu: cpu::Cpu,
    /// Operations a second in f32 and f64.
    peak: [f64; 2],
    /// The instructions that did them.
    instructions: &'static str,
    /// Numbers (f32) that all arithmetic instructions of a second work on.
    instructed: f64,
    /// Bytes a second within each level of [`LEVELS`].
    transfers: [Transfer; 4],
}

/// Which of the machine's limits a kernel meets first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// Operations.
    Operations,
    /// Arithmetic instructions.
    Instructions,
    /// Bytes, in this level of memory.
    Bytes(&'static str),
}

/// The shortest time that a kernel can take.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What bounds it.
    pub bound: Bound,
    /// That time.
    pub seconds: f64,
}

impl Machine {
    /// Measures it, in a few seconds. Other programs can only make it seem slower, so that the best of all samples counts.
    pub fn measure() -> Machine {
        const SAMPLES: usize = 15;
        let cpu = cpu::Cpu::detect();
        let (peak, instructions) = peak::measure(SAMPLES);
        let instructed = peak::measure_instructions(SAMPLES);
        let [first, second, last] = cpu.caches;
        // A shared last level is not one program's alone: an eighth of it is likely to stay.
        let within = [first / 2, second / 2, (last / 8).max(2 * second), 4 * last];
        let transfers = within.map(|bytes| bandwidth::measure(bytes, if bytes > last { 5 } else { SAMPLES }));
        Machine { cpu, peak, instructions, instructed, transfers }
    }

    /// The larger of each limit: what two measurements at different times have found.
    pub fn or(self, other: Machine) -> Machine {
        let peak = [0, 1].map(|i| self.peak[i].max(other.peak[i]));
        let transfers = [0, 1, 2, 3].map(|i| {
            let (a, b) = (self.transfers[i], other.transfers[i]);
            Transfer { read: a.read.max(b.read), copy: a.copy.max(b.copy), triad: a.triad.max(b.triad) }
        });
        Machine { peak, transfers, instructed: self.instructed.max(other.instructed), ..self }
    }

    /// Operations a second in a float dtype; bf16 is computed in f32.
    pub fn peak(&self, dtype: DType) -> f64 {
        self.peak[usize::from(dtype == DType::F64)]
    }

    /// The shortest time for this work: its bytes in the level of memory that holds all of them, its operations, or the
    /// instructions that they are made of.
    pub fn limit(&self, work: Work, dtype: DType) -> Limit {
        let bytes = work.read + work.written;
        let [first, second, last] = self.cpu.caches.map(|bytes| bytes as f64);
        let level = [first, second, last / 2.0].iter().take_while(|&&size| bytes > size).count();
        let Transfer { read, copy, triad } = self.transfers[level];
        let rate = match work.read / work.written.max(1.0) {
            ratio if ratio > 10.0 => read,
            ratio if ratio > 1.5 => copy.max(triad),
            _ => copy,
        };
        let limits = [
            Limit { bound: Bound::Bytes(LEVELS[level]), seconds: bytes / rate },
            Limit { bound: Bound::Operations, seconds: work.flops / self.peak(dtype) },
            Limit { bound: Bound::Instructions, seconds: work.instructions / self.instructed },
        ];
        limits.into_iter().reduce(|a, b| if b.seconds > a.seconds { b } else { a }).expect("there are three")
    }

    /// The limits as a table of at most 80 columns.
    pub fn table(&self) -> String {
        let [first, second, last] = self.cpu.caches.map(|bytes| bytes >> 10);
        let [f32_peak, f64_peak] = self.peak.map(|rate| rate / 1e9);
        let mut text = format!(
            "{}, {} processors; caches {first} KiB, {second} KiB, {} MiB\n\
             one thread, {}: {f32_peak:.0} GFLOP/s in f32, {f64_peak:.0} in f64;\n\
             instructions of any kind, for {:.0} numbers (f32) a ns\n\n\
             {:<8} {:>12} {:>12} {:>12}\n",
            self.cpu.name,
            self.cpu.threads,
            last >> 10,
            self.instructions,
            self.instructed / 1e9,
            "GB/s",
            "read",
            "copy",
            "triad"
        );
        for (level, Transfer { read, copy, triad }) in LEVELS.iter().zip(self.transfers) {
            let [read, copy, triad] = [read, copy, triad].map(|rate| rate / 1e9);
            text += &format!("{level:<8} {read:>12.1} {copy:>12.1} {triad:>12.1}\n");
        }
        text
    }

    /// The limits, in bytes and operations a second.
    pub fn to_json(&self) -> Value {
        let transfers: Vec<Value> = LEVELS
            .iter()
            .zip(self.transfers)
            .map(|(level, t)| json!({ "level": level, "read": t.read, "copy": t.copy, "triad": t.triad }))
            .collect();
        json!({
            "processor": self.cpu.name,
            "processors": self.cpu.threads,
            "caches": self.cpu.caches,
            "instructions": self.instructions,
            "flops_f32": self.peak[0],
            "flops_f64": self.peak[1],
            "instructed_f32": self.instructed,
            "transfers": transfers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let transfer = |rate: f64| Transfer { read: 4.0 * rate, copy: 2.0 * rate, triad: 3.0 * rate };
        Machine {
            cpu: cpu::Cpu { name: "a processor".into(), caches: [1000, 10_000, 1_000_000], threads: 1 },
            peak: [100.0, 50.0],
            instructions: "none",
            instructed: 10.0,
            transfers: [1000.0, 100.0, 10.0, 1.0].map(transfer),
        }
    }

    #[test]
    fn the_slower_of_moving_and_computing_is_the_limit() {
        let work = Work { read: 400.0, written: 400.0, flops: 1000.0, instructions: 0.0 };
        let Limit { bound, seconds } = machine().limit(work, DType::F32);
        assert_eq!((bound, seconds), (Bound::Operations, 10.0));
        assert_eq!(machine().limit(work, DType::F64).seconds, 20.0);
        let Limit { bound, seconds } = machine().limit(Work { instructions: 200.0, ..work }, DType::F32);
        assert_eq!((bound, seconds), (Bound::Instructions, 20.0));
        let Limit { bound, seconds } = machine().limit(Work { flops: 10.0, ..work }, DType::F32);
        assert_eq!((bound, seconds), (Bound::Bytes("L1"), 800.0 / 2000.0));
    }

    #[test]
    fn bytes_move_in_the_level_that_holds_them_all() {
        for (bytes, level, rate) in [
            (999.0, "L1", 4000.0),
            (1001.0, "L2", 400.0),
            (400_000.0, "L3", 40.0),
            (600_000.0, "memory", 4.0),
        ] {
            let Limit { bound, seconds } =
                machine().limit(Work { read: bytes, ..Work::default() }, DType::F32);
            assert_eq!((bound, seconds), (Bound::Bytes(level), bytes / rate));
        }
    }
}
