//! Operations that launch the chosen kernels: are the results right, and what did each launch do?

use std::sync::{Arc, Mutex};

use limpid_cuda::{Cuda, emulated};
use limpid_emulator::{Event, Finding, Shape, Traffic, Warp};
use limpid_tensor::{Device, Tensor};
use serde_json::{Value, json};

use crate::demos::{self, Demo, Distance};
use crate::{Arguments, fits, write_json};

/// What the emulator saw of one launch.
struct Seen {
    kernel: String,
    shape: Shape,
    accesses: u64,
    findings: Vec<Finding>,
    traffic: Vec<Traffic>,
    events: Vec<Event>,
}

/// Runs what launches the chosen kernels. `false` if a result is wrong or something was found.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let check = arguments.check || arguments.trace.is_some();
    let is_emulated = check || arguments.emulate;
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let stand_in = match is_emulated {
        false => None,
        true => {
            let config = emulated::Config { check, ..Default::default() };
            let stand_in = emulated::install(config).map_err(|error| error.to_string())?;
            emulated::keep_apart(check);
            stand_in.watch(arguments.trace.map(|(block, warp)| Warp { block, warp }));
            let seen = seen.clone();
            stand_in.observe(move |launched| {
                let report = launched.report;
                let one = Seen {
                    kernel: launched.kernel.to_string(),
                    shape: launched.shape,
                    accesses: report.accesses,
                    findings: report.findings.clone(),
                    traffic: report.traffic.clone(),
                    events: report.events.clone(),
                };
                seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(one);
            });
            Some(stand_in)
        }
    };
    let cuda = Cuda::new(0).map_err(|error| format!("{error}; --emulate needs no card"))?;
    let device = cuda.device();
    let pattern = arguments.kernel.as_deref().unwrap_or("*");
    let (mut shown, mut wrong, mut found) = (0, 0, 0);
    let mut all = Vec::new();
    let chosen = demos::all().into_iter().filter(|demo| demo.name.contains(&arguments.only));
    let (runnable, others): (Vec<Demo>, Vec<Demo>) = chosen.partition(|demo| demo.runs_on(cuda));
    others.iter().for_each(|demo| println!("{:<46} not on this card", demo.name));
    for demo in runnable {
        let expected = demo.run(&Device::cpu()).map_err(|error| error.to_string())?;
        if expected.iter().any(|y| y.elements() > arguments.up_to) {
            continue;
        }
        let take = || std::mem::take(&mut *seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let mut first: Option<Vec<Tensor>> = None;
        let mut same_bits = true;
        let mut launches = Vec::new();
        for seed in 1..=arguments.seeds.max(1) {
            if let Some(stand_in) = stand_in {
                stand_in.set_seed(seed);
                // It is the same in every order, and counting takes longer than checking.
                stand_in.count_traffic(check && seed == 1);
            }
            let results = demo.run(&device).map_err(|error| format!("{}: {error}", demo.name))?;
            let of_seed = take();
            // Only a first run tells whether the chosen kernels are in it.
            if is_emulated && !of_seed.iter().any(|one| fits(&one.kernel, pattern)) {
                break;
            }
            match &first {
                None => (first, launches) = (Some(results), of_seed),
                Some(first) => {
                    same_bits &= first.iter().zip(&results).all(|(a, b)| demos::bits(a) == demos::bits(b));
                    launches.extend(of_seed.into_iter().filter(|one| !one.findings.is_empty()));
                }
            }
        }
        let Some(results) = first else { continue };
        launches.retain(|one| fits(&one.kernel, pattern));
        let distance = demo.distance(&results, &expected);
        let is_right = distance.is_allowed() && same_bits;
        shown += 1;
        wrong += usize::from(!is_right);
        found += launches.iter().map(|one| one.findings.len()).sum::<usize>();
        print(&demo, distance, same_bits, arguments, &launches);
        all.push(as_json(&demo, distance, same_bits, &launches));
    }
    if shown == 0 {
        return Err(format!(
            "no operation{} launches a kernel called {pattern}; without arguments all are listed",
            match &*arguments.only {
                "" => String::new(),
                only => format!(" whose name contains {only:?}"),
            }
        ));
    }
    let operations = if shown == 1 { "operation" } else { "operations" };
    println!("{shown} {operations}, {wrong} wrong, {found} findings");
    write_json(&arguments.json, &json!(all))?;
    Ok(wrong == 0 && found == 0)
}

fn print(demo: &Demo, distance: Distance, same_bits: bool, arguments: &Arguments, launches: &[Seen]) {
    let agreement = match distance.roundings {
        0.0 => "the CPU's bits".into(),
        d if !distance.is_allowed() => format!("WRONG, {d:.1} roundings off, allowed {}", distance.allowed),
        d if d < 0.1 => "less than 0.1 roundings off".into(),
        d => format!("{d:.1} roundings off"),
    };
    let order = match (arguments.seeds, same_bits) {
        (0..=1, _) => String::new(),
        (seeds, true) => format!(", the same bits in {seeds} orders"),
        (seeds, false) => format!(", NOT THE SAME BITS in {seeds} orders"),
    };
    println!("{:<46} {agreement}{order}", demo.name);
    for one in launches {
        let [x, y, z] = one.shape.grid;
        let blocks: Vec<String> = [x, y, z].iter().filter(|&&n| n > 1).map(u32::to_string).collect();
        let blocks = if blocks.is_empty() { "1".into() } else { blocks.join("×") };
        print!("    {:<32} {blocks} × {} threads", one.kernel, one.shape.block.iter().product::<u32>());
        println!("{}", if one.accesses > 0 { format!(", {} accesses", one.accesses) } else { String::new() });
        if arguments.kernel.as_deref().is_some_and(|kernel| kernel != "*") {
            for traffic in &one.traffic {
                println!("        {}", line_of(traffic));
            }
            for event in &one.events {
                println!(
                    "        lane {:2} {} at {}:{}",
                    event.lane, event.what, event.place.file, event.place.line
                );
            }
        }
        for finding in &one.findings {
            println!("        {finding}");
        }
    }
}

/// `map.cu:121  global loads   2 requests  14.0 sectors (best 13.8)`
fn line_of(traffic: &Traffic) -> String {
    let mut place = &traffic.place;
    // The line of the file itself, not of the header whose function it calls.
    while let Some(caller) = place.caller.as_deref().filter(|_| place.file.ends_with(".cuh")) {
        place = caller;
    }
    let memory = if traffic.shared { "shared" } else { "global" };
    let direction = if traffic.write { "stores" } else { "loads" };
    let unit = if traffic.shared { "passes" } else { "sectors" };
    let line = format!("{}:{}", place.file, place.line);
    let (requests, each, best) = (traffic.requests, traffic.per_request(), traffic.ideal());
    format!("{line:<18} {memory} {direction:<6} {requests:>5} requests, {each:.1} {unit} (best {best:.1})")
}

fn as_json(demo: &Demo, distance: Distance, same_bits: bool, launches: &[Seen]) -> Value {
    let launches: Vec<Value> = launches
        .iter()
        .map(|one| {
            let findings: Vec<String> = one.findings.iter().map(ToString::to_string).collect();
            let traffic = one.traffic.iter().map(|traffic| {
                json!({
                    "line": traffic.place.to_string(), "shared": traffic.shared, "write": traffic.write,
                    "requests": traffic.requests, "cost": traffic.cost, "bytes": traffic.bytes,
                })
            });
            json!({
                "kernel": one.kernel, "grid": one.shape.grid, "threads": one.shape.block,
                "dynamic_shared": one.shape.dynamic_shared, "accesses": one.accesses, "findings": findings,
                "traffic": traffic.collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "operation": demo.name, "roundings": distance.roundings, "same_bits": same_bits, "launches": launches })
}
