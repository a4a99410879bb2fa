//! From addresses in a library to places in the source, with binutils' `addr2line`.

use std::collections::HashMap;
use std::process::Command;

use crate::Program;
use crate::report::Place;

/// The files of the emulator itself, whose functions are no places of a kernel.
const OWN_FILES: [&str; 3] = ["emulate.h", "emulate_ptx.h", "runtime.cpp"];

impl Program {
    /// The places of return addresses in the library. Those that were not asked for before cost one call of
    /// `addr2line` together.
    pub(crate) fn places_of(&self, addresses: &[usize]) -> HashMap<usize, Place> {
        let mut known = self.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut unknown: Vec<usize> =
            addresses.iter().copied().filter(|address| !known.contains_key(address)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        if !unknown.is_empty() {
            let found = self.look_up(&unknown).unwrap_or_default().into_iter().chain(std::iter::repeat(None));
            for (address, place) in unknown.into_iter().zip(found) {
                known.insert(address, place.unwrap_or_else(unknown_place));
            }
        }
        addresses.iter().map(|address| (*address, known[address].clone())).collect()
    }

    /// One place for each address; `None`: `addr2line` does not run.
    fn look_up(&self, addresses: &[usize]) -> Option<Vec<Option<Place>>> {
        // A return address is that of the instruction after the call.
        let offsets =
            addresses.iter().map(|address| format!("{:#x}", address.wrapping_sub(self.image().start + 1)));
        let output =
            Command::new("addr2line").args(["-afiC", "-e"]).arg(&self.path).args(offsets).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text.lines().collect();
        let is_start = |line: &str| line.starts_with("0x");
        let groups = lines.split(|line| is_start(line)).skip(1);
        Some(groups.map(place_of_frames).collect())
    }
}

fn unknown_place() -> Place {
    Place { file: "?".to_string(), line: 0, function: "?".to_string(), caller: None }
}

/// The place of pairs of lines, a function and a position, from the innermost frame to the outermost.
fn place_of_frames(frames: &[&str]) -> Option<Place> {
    let mut place = None;
    for frame in frames.chunks_exact(2).rev() {
        let (path, line) = frame[1].rsplit_once(':')?;
        let file = path.rsplit('/').next().unwrap_or(path);
        // "12 (discriminator 3)"
        let line = line.split(' ').next().unwrap_or_default().parse().unwrap_or(0);
        if OWN_FILES.contains(&file) && place.is_some() {
            continue;
        }
        let function = function_name(frame[0]);
        place = Some(Place { file: file.to_string(), line, function, caller: place.map(Box::new) });
    }
    place.filter(|place| place.line != 0)
}

/// `reduce_warp<32, float, Sum>` of `float reduce_warp<32, float, Sum>(float, Sum)`: without the type that it returns
/// and those that it takes.
fn function_name(signature: &str) -> String {
    let mut depth = 0;
    let (mut start, mut end) = (0, signature.len());
    let bytes = signature.as_bytes();
    for (i, byte) in bytes.iter().enumerate() {
        match byte {
            b'<' => depth += 1,
            b'>' => depth -= 1,
            b' ' if depth == 0 => start = i + 1,
            b'(' if depth == 0 && !signature[..i].ends_with("operator") => {
                end = i;
                break;
            }
            _ => {}
        }
    }
    signature[start.min(end)..end].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_types() {
        assert_eq!(function_name("sum_f32(float const*, int)"), "sum_f32");
        assert_eq!(
            function_name("float reduce_warp<32, float, Sum>(float, Sum)"),
            "reduce_warp<32, float, Sum>"
        );
        assert_eq!(function_name("Sum::operator()(float) const"), "Sum::operator()");
        assert_eq!(function_name("main"), "main");
    }

    #[test]
    fn frames_of_the_emulator_are_left_out() {
        let frames = [
            "atomicAdd<float>",
            "/x/emulate.h:10",
            "tail(int)",
            "/x/a.cu:4 (discriminator 2)",
            "k()",
            "/x/a.cu:9",
        ];
        let place = place_of_frames(&frames).expect("known lines");
        assert_eq!(place.to_string(), "a.cu:4 in tail, called at a.cu:9 in k");
        assert!(place.is_in("a.cu", 9) && place.outermost().line == 9);
    }

    #[test]
    fn unknown_lines_are_no_place() {
        assert_eq!(place_of_frames(&["??", "??:0"]), None);
    }
}
