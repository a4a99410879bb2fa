//! What is kept for the backward pass, and what is computed again? A deep stack of mHC blocks under six plans.
//!
//! ```text
//! cargo run --release --example recompute
//! ```
//!
//! Read `policies.rs` for what is compared and `measure.rs` for how; the rest is arguments, a table and files.

mod files;
mod measure;
mod network;
mod policies;
mod settings;
mod table;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use limpid::Tape;
use limpid::autograd::Profile;
use limpid::autograd::plan::{Front, Plan, PlanError};
use limpid::tensor::set_threads;

use network::{Network, Text};
use settings::Settings;

/// Why the program ends early: a line for the terminal, and its exit code.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// Something the user gave is not as it has to be.
    fn input(message: impl ToString) -> Failure {
        Failure { message: message.to_string(), code: 2 }
    }

    /// Something is not as it was promised.
    fn found(message: impl ToString) -> Failure {
        Failure { message: message.to_string(), code: 1 }
    }
}

fn main() -> ExitCode {
    match Settings::from_command_line().map_err(Failure::input).and_then(|settings| run(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            let line: Vec<&str> = message.lines().map(str::trim).collect();
            eprintln!("recompute: {}", line.join("; "));
            ExitCode::from(code)
        }
    }
}

fn run(settings: &Settings) -> Result<(), Failure> {
    let a = &settings.arguments;
    let policies = policies::policies(settings.every);
    let named = |option: &str, name: &str| {
        let names = policies.iter().map(|policy| policy.name()).chain(a.budget.as_ref().map(|_| "budget"));
        let names: Vec<&str> = names.collect();
        let expected = || format!("--{option}: expected one of {}, found {name:?}", names.join(", "));
        names.iter().position(|known| *known == name).ok_or_else(|| Failure::input(expected()))
    };
    let shown = a.plan.as_ref().map(|name| named("plan", name)).transpose()?;
    let parted: Option<Vec<usize>> =
        a.diff.as_ref().map(|names| names.iter().map(|name| named("diff", name)).collect()).transpose()?;

    set_threads(a.threads).map_err(Failure::input)?;
    let network = Network::new(&settings.sizes);
    let text = Text::random(a.tokens).map_err(Failure::input)?;
    let program = |tape: &Tape| -> Result<_, PlanError> {
        let loss = network.loss(tape, &text);
        let mut plans = policies::plans(tape, loss, &policies)?;
        let front = settings.budget.map(|_| tape.front(loss)).transpose()?;
        if let (Some(front), Some(budget)) = (&front, settings.budget) {
            plans.push(front.within(budget)?);
        }
        Ok((plans, front))
    };
    let (plans, front) = program(&Tape::dry()).map_err(Failure::input)?;
    if let Some(index) = shown {
        return say(&plans[index].to_string());
    }
    if let Some([a, b]) = parted.as_deref() {
        return say(&plans[*a].diff(&plans[*b]).to_string());
    }
    compare(settings, &network, &text, &plans, front.as_ref())
}

/// Runs the network under every plan.
fn compare(
    settings: &Settings,
    network: &Network,
    text: &Text,
    plans: &[Plan],
    front: Option<&Front>,
) -> Result<(), Failure> {
    let a = &settings.arguments;
    files::prepare(a).map_err(Failure::input)?;
    files::write(settings, plans, front).map_err(Failure::input)?;
    let say = |text: &str| if a.quiet { Ok(()) } else { say(text) };
    say(&format!("{}\n\n", settings.network()))?;
    let measurement = measure::measure(network, text, plans, a.rounds).map_err(Failure::found)?;
    if let Some(path) = &a.json {
        let record = files::record(settings, plans, &measurement);
        files::text(path, &format!("{record:#}\n")).map_err(Failure::input)?;
    }
    say(&table::table(plans, &measurement, a.rounds))?;
    // The one about what this network is made of.
    for plan in plans.iter().filter(|plan| plan.policy() == "connections") {
        say(&format!("\n{}", plan.summary()))?;
    }
    if a.profile {
        let profiles = measure::profiles(network, text, plans).map_err(Failure::found)?;
        let named: Vec<(&str, &Profile)> = plans.iter().map(Plan::policy).zip(&profiles).collect();
        Profile::write(&named, &a.out).map_err(Failure::input)?;
        named.iter().try_for_each(|(name, profile)| say(&format!("\n{name}: {profile}")))?;
    }
    say(&format!("\nWritten to {0}; open {0}/memory.svg in a browser.\n", a.out.display()))?;
    match &table::failures(plans, &measurement.rows)[..] {
        [] => Ok(()),
        failures => Err(Failure::found(failures.join("\n"))),
    }
}

/// Prints, as long as somebody reads it.
fn say(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::found(format!("standard output: {e}"))),
        _ => Ok(()),
    }
}
