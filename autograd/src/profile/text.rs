//! A profile to read: as a table, as JSON, and as a trace for a viewer.

use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

use limpid_tensor::io::write_atomically;

use crate::json::string;
use crate::ledger::last_chars;
use crate::profile::{Lane, Profile, Row};

/// So many operations, and so many places, are shown one by one.
const SHOWN: usize = 16;

/// A time in milliseconds.
fn ms(time: Duration) -> String {
    format!("{:.3}", 1e3 * time.as_secs_f64())
}

/// A path with the numbers of layers left open: `layers.3/branch` is `layers.*/branch`.
fn kind_of_place(path: &str) -> String {
    let component = |component: &str| match component.rsplit_once('.') {
        Some((name, number)) if number.parse::<u64>().is_ok() => format!("{name}.*"),
        _ => component.to_string(),
    };
    path.split('/').map(component).collect::<Vec<_>>().join("/")
}

/// The first rows, and the others as one.
fn shown(mut rows: Vec<Row>) -> Vec<Row> {
    if rows.len() <= SHOWN {
        return rows;
    }
    let rest = rows.split_off(SHOWN - 1);
    let name = format!("{} more", rest.len());
    rows.extend(rest.into_iter().reduce(|a, b| a.with(&b)).map(|sum| Row { name, ..sum }));
    rows
}

impl Row {
    fn with(mut self, other: &Row) -> Row {
        self.calls += other.calls;
        self.time += other.time;
        self.share += other.share;
        self.by_lane.iter_mut().zip(&other.by_lane).for_each(|(sum, time)| *sum += *time);
        self.flops += other.flops;
        self.bytes += other.bytes;
        self
    }

    fn to_json(&self) -> String {
        let [forward, backward, recompute, other] = self.by_lane.map(|time| time.as_nanos());
        format!(
            "{{\"name\":{},\"calls\":{},\"ns\":{},\"forward_ns\":{forward},\"backward_ns\":{backward},\
             \"recompute_ns\":{recompute},\"other_ns\":{other},\"flops\":{},\"bytes\":{}}}",
            string(&self.name),
            self.calls,
            self.time.as_nanos(),
            self.flops,
            self.bytes
        )
    }

    /// A line of the table by kind of work or by operation.
    fn line(&self) -> String {
        let each = 1e6 * self.time.as_secs_f64() / self.calls.max(1) as f64;
        let speed = self.gflops_per_second().map_or("–".into(), |speed| format!("{speed:.2}"));
        format!(
            "{:<35} {:>7} {:>10} {:>5.1} {each:>9.2} {speed:>8}",
            last_chars(&self.name, 35),
            self.calls,
            ms(self.time),
            100.0 * self.share
        )
    }
}

/// Three tables, the largest time first: by kind of work, with what lies between and the sum; by operation; and by scope,
/// where numbers of layers are left open.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wall, between) = (self.wall(), self.between());
        let rule = "─".repeat(79);
        let log = self.finished();
        let (Some(first), Some(last)) = (log.steps.first(), log.steps.last()) else {
            return writeln!(f, "no step was profiled");
        };
        let (count, mean) = (log.steps.len(), ms(wall / log.steps.len() as u32));
        match count {
            1 => writeln!(f, "step {}: {mean} ms", first.number)?,
            _ => writeln!(f, "{count} steps, {} to {}: {mean} ms each", first.number, last.number)?,
        }
        let header = |name| {
            format!("\n{name:<35} {:>7} {:>10} {:>5} {:>9} {:>8}", "calls", "ms", "%", "µs each", "GFLOP/s")
        };
        let sum = |name: &str, time: Duration| {
            let share = 100.0 * time.as_secs_f64() / wall.as_secs_f64().max(1e-9);
            format!("{name:<43} {:>10} {share:>5.1}", ms(time))
        };
        writeln!(f, "{}\n{rule}", header("kind of work"))?;
        for row in self.by_lane() {
            writeln!(f, "{}", row.line())?;
        }
        writeln!(f, "{}", sum("between: recording, dropping, the program", between))?;
        writeln!(f, "{}", sum("all", wall))?;

        writeln!(f, "{}\n{rule}", header("operation"))?;
        for row in shown(self.by_op()) {
            writeln!(f, "{}", row.line())?;
        }

        let [a, b, c, d] = Lane::ALL.map(Lane::name);
        writeln!(f, "\n{:<28} {:>9} {:>5} {a:>8} {b:>8} {c:>9} {d:>6}\n{rule}", "scope", "ms", "%")?;
        for row in shown(log.rows(|event| kind_of_place(&log.place(event)))) {
            let name = if row.name.is_empty() { "outside of scopes" } else { &row.name };
            let [a, b, c, d] = row.by_lane.map(|time| format!("{:.2}", 1e3 * time.as_secs_f64()));
            let (time, share) = (ms(row.time), 100.0 * row.share);
            let name = last_chars(name, 28);
            writeln!(f, "{name:<28} {time:>9} {share:>5.1} {a:>8} {b:>8} {c:>9} {d:>6}")?;
        }
        Ok(())
    }
}

impl Profile {
    /// The profile as one JSON object: `steps` (`number` and `ns`), `wall_ns`, `between_ns`, and rows `lanes`, `operations` and
    /// `scopes`, each with `name`, `calls`, its own time as `ns` and by kind of work (`forward_ns`, `backward_ns`,
    /// `recompute_ns`, `other_ns`), `flops` and `bytes`. Times are in nanoseconds.
    pub fn to_json(&self) -> String {
        let rows = |rows: Vec<Row>| rows.iter().map(Row::to_json).collect::<Vec<_>>().join(",\n");
        let log = self.finished();
        let step = |step: &super::Step| format!("{{\"number\":{},\"ns\":{}}}", step.number, step.took);
        format!(
            "{{\"steps\":[{}],\"wall_ns\":{},\"between_ns\":{},\n\"lanes\":[\n{}],\n\"operations\":[\n{}],\n\
             \"scopes\":[\n{}]}}\n",
            log.steps.iter().map(step).collect::<Vec<_>>().join(","),
            self.wall().as_nanos(),
            self.between().as_nanos(),
            rows(self.by_lane()),
            rows(self.by_op()),
            rows(self.by_scope())
        )
    }

    /// The profile in the trace-event format of Chrome and Perfetto: a complete event for each piece of work, scope and pass, in
    /// a thread for each kind of work, with `scope`, `flops`, `bytes` and its own time among its arguments. Steps are in the
    /// thread `other`.
    pub fn trace_json(&self) -> String {
        trace(&[("limpid", self)])
    }

    /// Writes `profile.json`, an object with [each profile](Profile::to_json) under its name, and `trace.json`, a
    /// [trace](Profile::trace_json) with a process for each, into a folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(profiles: &[(&str, &Profile)], folder: &Path) -> limpid_tensor::Result<()> {
        let object = |(name, profile): &(&str, &Profile)| format!("{}:{}", string(name), profile.to_json());
        let all: Vec<String> = profiles.iter().map(object).collect();
        let files = [("profile.json", format!("{{{}}}\n", all.join(","))), ("trace.json", trace(profiles))];
        for (name, content) in files {
            write_atomically(folder.join(name), |out| out.write_all(content.as_bytes()))?;
        }
        Ok(())
    }
}

/// Microseconds with all their digits.
fn us(nanoseconds: u64) -> String {
    format!("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000)
}

fn trace(profiles: &[(&str, &Profile)]) -> String {
    let mut events = Vec::new();
    for (process, (name, profile)) in (1..).zip(profiles) {
        let named = |what: &str, thread: usize, name: &str| {
            format!(
                "{{\"ph\":\"M\",\"pid\":{process},\"tid\":{thread},\"name\":\"{what}\",\"args\":{{\"name\":{}}}}}",
                string(name)
            )
        };
        events.push(named("process_name", 0, name));
        for lane in Lane::ALL {
            events.push(named("thread_name", lane as usize, lane.name()));
        }
        let log = profile.finished();
        let complete = |name: &str, lane: Lane, begun: u64, took: u64, arguments: &str| {
            format!(
                "{{\"ph\":\"X\",\"pid\":{process},\"tid\":{},\"name\":{},\"ts\":{},\"dur\":{},\"args\":{{{arguments}}}}}",
                lane as usize,
                string(name),
                us(begun),
                us(took)
            )
        };
        for step in &log.steps {
            events.push(complete(&format!("step {}", step.number), Lane::Other, step.begun, step.took, ""));
        }
        for event in &log.events {
            let mut arguments = format!("\"own_us\":{},\"scope\":{}", us(event.own()), string(&event.scope));
            if event.bytes > 0 {
                let _ = write!(arguments, ",\"flops\":{},\"bytes\":{}", event.flops, event.bytes);
            }
            events.push(complete(&event.name(), event.lane, event.begun, event.took, &arguments));
        }
    }
    format!("{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}\n]}}\n", events.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_layers_are_left_open_and_nothing_else() {
        for (path, expected) in [
            ("layers.3/branch", "layers.*/branch"),
            ("step.2/layers.10", "step.*/layers.*"),
            ("a.b/v1.x", "a.b/v1.x"),
            ("2024", "2024"),
            ("", ""),
        ] {
            assert_eq!(kind_of_place(path), expected);
        }
    }

    #[test]
    fn microseconds_keep_every_nanosecond() {
        assert_eq!([us(0), us(7), us(1_234_050)], ["0.000", "0.007", "1234.050"]);
    }
}
