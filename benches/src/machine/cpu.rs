//! What the processor says of itself.

use std::fs;

/// Its name, and the sizes of its caches in bytes.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    pub name: String,
    /// Of one core's first level for data, its second level, and the last level.
    pub caches: [usize; 3],
    /// Processors that this program may use.
    pub threads: usize,
}

impl Cpu {
    /// As Linux has it; where a size is not known, that of a common processor.
    pub fn detect() -> Cpu {
        let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = information.lines().find_map(|line| line.strip_prefix("model name"));
        let name = name.map(|rest| rest.trim_start_matches([' ', '\t', ':']).trim());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Cpu {
            name: name.unwrap_or("a processor without a name").to_string(),
            caches: caches().unwrap_or([32 << 10, 1 << 20, 32 << 20]),
            threads,
        }
    }
}

fn caches() -> Option<[usize; 3]> {
    let mut sizes = [None; 3];
    for index in 0..8 {
        let read = |what: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}");
            Some(fs::read_to_string(path).ok()?.trim().to_string())
        };
        let Some(kind) = read("type") else { break };
        let level: usize = read("level")?.parse().ok()?;
        if kind != "Instruction" && (1..=3).contains(&level) {
            let text = read("size")?;
            let kib: usize = text.strip_suffix('K')?.parse().ok()?;
            sizes[level - 1] = Some(kib << 10);
        }
    }
    let [first, second, last] = sizes;
    Some([first?, second?, last.or(second)?])
}
