//! What a kernel takes of a multiprocessor, as its compiler says: registers, shared memory, spills.

use std::fmt;

use crate::module::{Cubin, Family};

/// The architectures that every kernel is compiled for: A100, H100 and H200, B200.
pub const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100"];

/// What one kernel takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resources {
    /// The kernel's name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory of a block, without what a launch asks for.
    pub shared: u32,
    /// Bytes of a thread's stack: arrays that are indexed by what is not known at compile time.
    pub stack: u32,
    /// Bytes that registers were spilled to and loaded from memory for want of registers.
    pub spilled: u32,
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Resources { kernel, registers, shared, stack, spilled } = self;
        write!(f, "{kernel}: {registers} registers, {shared} B shared, {stack} B stack, {spilled} B spilled")
    }
}

/// What the compiler says of a family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// What each kernel takes, by name. Some families have kernels for some architectures alone.
    pub kernels: Vec<Resources>,
    /// Its warnings, and where it says that speed is lost: that products of four warps wait for each other, for one.
    pub warnings: Vec<String>,
}

impl Family {
    /// Compiles the family for an architecture and says what the compiler says of it.
    ///
    /// # Errors
    /// The compiler's message, or why there is no compiler.
    pub fn resources(&self, architecture: &str) -> Result<Said, String> {
        let Cubin { log, .. } = self.compile(architecture, &["--ptxas-options=-v"])?;
        let mut kernels = parse(&log);
        kernels.sort_by(|a, b| a.kernel.cmp(&b.kernel));
        Ok(Said { kernels, warnings: warnings(&log) })
    }
}

/// The lines that are no description but a complaint:
///
/// ```text
/// ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to …
/// ptxas info    : (C7517) warpgroup.wait is injected in around line 1426 by compiler to allow use of registers …
/// ```
fn warnings(log: &str) -> Vec<String> {
    let is_numbered = |line: &str| {
        let number = line.split_once("(C").and_then(|(_, rest)| rest.split_once(')'));
        number.is_some_and(|(number, _)| number.parse::<u32>().is_ok())
    };
    let is_one = |line: &&str| {
        let words = line.to_lowercase();
        is_numbered(line) || ["warning", "advisory", "performance"].iter().any(|word| words.contains(word))
    };
    log.lines().filter(is_one).map(|line| line.trim().to_string()).collect()
}

/// Reads what `ptxas -v` writes:
///
/// ```text
/// ptxas info    : Compiling entry function 'exp_f32' for 'sm_90a'
/// ptxas info    : Function properties for exp_f32
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 26 registers, used 1 barriers, 1024 bytes smem
/// ```
fn parse(log: &str) -> Vec<Resources> {
    let mut all: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or(rest).to_string();
            all.push(Resources { kernel, registers: 0, shared: 0, stack: 0, spilled: 0 });
        }
        let Some(last) = all.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            // Functions that the kernel calls have lines of their own, behind the kernel's.
            last.stack = last.stack.max(before(line, " bytes stack frame"));
            last.spilled += before(line, " bytes spill stores") + before(line, " bytes spill loads");
        }
        if line.contains(" registers") && line.contains("Used ") {
            last.registers = before(line, " registers");
            last.shared = before(line, " bytes smem");
        }
    }
    all
}

/// The number that stands before some words; 0 if they do not stand there.
fn before(line: &str, words: &str) -> u32 {
    let Some((front, _)) = line.split_once(words) else { return 0 };
    let start = front.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| i + 1);
    front[start..].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_words_are_read() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'sum_f32' for 'sm_90a'
ptxas info    : Function properties for sum_f32
    0 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 26 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compile time = 4.2 ms
ptxas info    : Compiling entry function 'pow_f64' for 'sm_90a'
ptxas info    : Function properties for pow_f64
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 8 bytes cumulative stack size
ptxas info    : Function properties for reduced_argument
    40 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for pow
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        let all = parse(log);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].to_string(), "sum_f32: 26 registers, 1024 B shared, 0 B stack, 16 B spilled");
        assert_eq!(all[1].to_string(), "pow_f64: 40 registers, 0 B shared, 40 B stack, 12 B spilled");
        assert_eq!(warnings(log), [""; 0]);
    }

    #[test]
    fn complaints_are_told_from_descriptions() {
        let lost = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
                    insufficient register resources for the wgmma pipeline in the function 'wgmma_128x256_kk_bf16'";
        let waits = "ptxas info    : (C7517) warpgroup.wait is injected in around line 1426 by compiler to allow use of \
                     registers defined by GMMA in function 'wgmma_128x256_kk_bf16'";
        let log = format!(
            "ptxas info    : 0 bytes gmem\n{lost}\n{waits}\nptxas info    : Used 26 registers\nptxas warning : Unresolved extern\n\
             map.cu(3): warning #177-D: variable \"x\" was declared but never referenced"
        );
        assert_eq!(
            warnings(&log),
            [
                lost,
                waits,
                "ptxas warning : Unresolved extern",
                "map.cu(3): warning #177-D: variable \"x\" was declared but never referenced"
            ]
        );
    }
}
