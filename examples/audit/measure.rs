//! Everything that is measured of one network at one moment, from the tape of one batch.
//!
//! Nothing here knows a variant. Blocks are found by the scopes that every block records in (`layers.3/read`, `branch`,
//! `mix`, `write`, `coefficients`), routes by the marks on edges, streams by the shape of the state.

use limpid::Tensor;
use limpid::autograd::{
    Degree, Grading, JacobianSpectrum, Ledger, Matrix, Method, Route, Tape, Var, format_bytes,
};
use limpid::nn::gradient_norms;
use serde_json::Value;

use crate::Failure;
use crate::network::{Data, Network, loss};
use crate::settings::BATCH;

/// Paths that cross more branches than this share one coefficient of the spectrum.
pub const CAP: usize = 32;
/// Of how many samples the Jacobians are computed.
pub const SAMPLES: usize = 2;

/// One network at one moment.
pub struct Audit {
    /// `before training` or `after training`.
    pub moment: &'static str,
    pub loss: f64,
    /// By linear layer: the norm of its weight's gradient.
    pub weight_norms: Vec<f64>,
    pub blocks: Vec<Block>,
    /// The gradient by the state that enters the first block, by how many branches its paths cross.
    pub spectrum: Vec<Term>,
    /// `‖Σ terms − gradient‖ / ‖gradient‖` of the spectrum: rounding; `None` if the gradient is 0.
    pub spectrum_error: Option<f64>,
    pub nodes: Vec<Node>,
    /// What the tape says it holds for the derivative, leaves not counted.
    pub held: usize,
}

/// One hidden block.
pub struct Block {
    /// Its scope: `layers.3`, or `step.2/layers.1` where the blocks are gone through more than once.
    pub scope: String,
    /// The norm of the gradient by the state that enters it.
    pub gradient_norm: Option<f64>,
    /// How much of that gradient came by which way; `None` where it is 0.
    pub shares: Option<Shares>,
    /// Of the map from the state that enters the first block to the one that leaves this one.
    pub composite: Composite,
    /// Of the branch: its Jacobian's singular values, the largest first, mean over samples.
    pub jacobian: Vec<f64>,
    pub jacobian_method: String,
    /// The bytes that the block keeps for the derivative.
    pub saved: usize,
}

/// Signed shares of a gradient; they sum to 1 up to rounding.
#[derive(Clone, Copy)]
pub struct Shares {
    pub skip: f64,
    pub branch: f64,
    pub control: f64,
    /// By no marked edge, or by several ways that only addends further up tell apart.
    pub other: f64,
}

impl Shares {
    pub const NAMES: [&str; 4] = ["skip", "branch", "control", "other"];

    pub fn values(self) -> [f64; 4] {
        [self.skip, self.branch, self.control, self.other]
    }
}

/// A composite map, in the mean over samples.
pub struct Composite {
    pub streams: usize,
    /// The largest absolute row sum, and column sum.
    pub forward_gain: f64,
    pub backward_gain: f64,
    /// The second singular value and the second largest |eigenvalue|; `None` with one stream.
    pub sigma_2: Option<f64>,
    pub lambda_2: Option<f64>,
    /// The mean cosine between the streams of the state that leaves the block; `None` with one stream, or if one is 0.
    pub cosine: Option<f64>,
    /// The largest |row sum − 1| and |column sum − 1|.
    pub row_error: f64,
    pub column_error: f64,
    /// How far channels differ in the map; above rounding, the map acts on channels too.
    pub spread: f64,
}

/// One coefficient of the path-length spectrum.
pub struct Term {
    /// How many branches its paths cross.
    pub branches: Degree,
    /// Whether they also cross a coefficient's edge.
    pub through_control: bool,
    pub norm: f64,
    pub cosine: Option<f64>,
    pub share: Option<f64>,
}

/// A node of the tape.
pub struct Node {
    pub op: String,
    pub scope: String,
    /// The bytes that it holds; a storage that several hold counts for the first.
    pub bytes: usize,
}

/// The program in every form.
pub struct TapeTexts {
    /// With gradients, for reading on a page.
    pub short: String,
    /// With values, gradients and rules.
    pub text: String,
    pub dot: String,
    pub json: String,
}

/// Audits `network` on the first training points.
pub fn audit(
    network: &Network,
    data: &Data,
    seed: u64,
    moment: &'static str,
) -> Result<(Audit, TapeTexts), Failure> {
    let tape = Tape::new().with_seed(seed);
    let loss = loss(&tape, &network.model, &data.first(BATCH));
    let memory = tape.memory();
    let nodes = held_by_node(&tape)?;
    let (gradients, ledger) = tape.backward_with_ledger(loss)?;
    let texts = texts(&tape, &ledger);

    let Places { entry, blocks } = Places::on(&tape);
    let spectrum = spectrum(&tape, loss, entry)?;
    let jacobians = jacobians(network, data, seed)?;
    let mut found = Vec::new();
    for (i, place) in blocks.iter().enumerate() {
        let inside = format!("{}/", place.scope);
        found.push(Block {
            gradient_norm: ledger.norm(place.input.index()),
            shares: shares(&tape, &ledger, place)?,
            composite: composite(&tape, entry, place.output, network.variant.has_streams())?,
            jacobian: means(&jacobians[i].samples),
            jacobian_method: method(&jacobians[i]),
            saved: nodes.iter().filter(|n| n.scope.starts_with(&inside)).map(|n| n.bytes).sum(),
            scope: place.scope.clone(),
        });
    }
    let audit = Audit {
        moment,
        loss: loss.item()?,
        weight_norms: network.of_layers(&gradient_norms(&network.model, &gradients)?),
        blocks: found,
        spectrum_error: spectrum.1,
        spectrum: spectrum.0,
        nodes,
        held: memory.needed + memory.other,
    };
    Ok((audit, texts))
}

fn texts(tape: &Tape, ledger: &Ledger) -> TapeTexts {
    let program = tape.program().with_gradients(ledger);
    let full = program.with_statistics().with_rules();
    TapeTexts {
        short: program.to_string(),
        text: full.to_string(),
        dot: program.to_dot(),
        json: program.with_statistics().to_json(),
    }
}

/// Where the blocks of a network are on its tape.
struct Places<'t> {
    /// The state that enters the first block.
    entry: Var<'t>,
    blocks: Vec<Place<'t>>,
}

struct Place<'t> {
    scope: String,
    input: Var<'t>,
    branch_input: Var<'t>,
    branch_output: Var<'t>,
    output: Var<'t>,
}

/// The parts of a block, as scopes.
const PARTS: [&str; 4] = ["coefficients", "read", "branch", "write"];

impl<'t> Places<'t> {
    /// A part's result is the last node recorded in its scope. A read that changes nothing records none: the branch sees
    /// the state itself.
    fn on(tape: &'t Tape) -> Places<'t> {
        let mut entry = tape.at(0);
        let mut blocks: Vec<Place<'t>> = Vec::new();
        let mut state = entry;
        for node in (0..tape.len()).map(|i| tape.at(i)) {
            let path = node.site().scope;
            let components: Vec<&str> = path.split('/').collect();
            if components[0] == "layers.0" {
                (entry, state) = (node, node);
            }
            let part = components.iter().position(|c| PARTS.contains(c));
            let Some(part) = part.filter(|&at| at > 0 && components[at - 1].starts_with("layers.")) else {
                continue;
            };
            let scope = components[..part].join("/");
            if blocks.last().is_none_or(|block| block.scope != scope) {
                let input = state;
                blocks.push(Place { scope, input, branch_input: input, branch_output: input, output: input });
            }
            let Some(block) = blocks.last_mut() else { continue };
            match components[part] {
                "read" => block.branch_input = node,
                "branch" => block.branch_output = node,
                "write" => (block.output, state) = (node, node),
                _ => {}
            }
        }
        Places { entry, blocks }
    }
}

/// The bytes each operation's result holds. Leaves hold what is not the tape's.
fn held_by_node(tape: &Tape) -> Result<Vec<Node>, Failure> {
    let unreadable = |what: &str| Failure { message: format!("the tape's JSON has no {what}"), code: 1 };
    let json: Value = serde_json::from_str(&tape.program().to_json())
        .map_err(|error| Failure { message: format!("the tape's JSON: {error}"), code: 1 })?;
    let nodes = json["nodes"].as_array().ok_or_else(|| unreadable("nodes"))?;
    let mut held = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let scope = node["scope"].as_str().ok_or_else(|| unreadable("scope"))?.to_string();
        let own = node["storage"].as_u64() == Some(i as u64);
        let (op, bytes) = match node["op"].as_str() {
            Some(op) => (op, if own { node["bytes"].as_u64().unwrap_or(0) as usize } else { 0 }),
            None => (node["name"].as_str().unwrap_or("leaf"), 0),
        };
        held.push(Node { op: op.to_string(), scope, bytes });
    }
    Ok(held)
}

/// The gradient by the state that enters the first block, taken apart by path length. With the relative difference
/// between the sum of its terms and the gradient of an ordinary pass.
fn spectrum(tape: &Tape, loss: Var<'_>, entry: Var<'_>) -> Result<(Vec<Term>, Option<f64>), Failure> {
    let grading = Grading::BOTH.branches_up_to(CAP).controls_up_to(0);
    let spectrum = tape.spectrum(loss, &[entry], grading)?.swap_remove(0);
    let one = Tensor::full(loss.shape(), 1.0, loss.dtype());
    let gradient = match tape.vjp_with_ledger(loss, &one, &[entry])?.0.swap_remove(0) {
        Some(gradient) => gradient.to_f64_vec()?,
        None => Vec::new(),
    };
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let sum = spectrum.sum()?;
    let off = length(&mut sum.iter().zip(&gradient).map(|(s, g)| s - g));
    let norm = length(&mut gradient.iter().copied());
    let terms = spectrum.terms.into_iter().map(|term| Term {
        branches: term.branches,
        through_control: term.controls != Degree::Exactly(0),
        norm: term.part.norm,
        cosine: term.part.cosine,
        share: term.part.share,
    });
    Ok((terms.collect(), (norm > 0.0).then(|| off / norm)))
}

/// By which ways the gradient came to the state that enters a block.
fn shares(tape: &Tape, ledger: &Ledger, place: &Place<'_>) -> Result<Option<Shares>, Failure> {
    if let Some(fan_in) = ledger.fan_in(place.input) {
        let share = |route| fan_in.by(route).map_or(Some(0.0), |part| part.share);
        let [skip, branch, control, interior, mixed] = Route::ALL.map(share);
        let all =
            || Some(Shares { skip: skip?, branch: branch?, control: control?, other: interior? + mixed? });
        return Ok(all());
    }
    if ledger.norm(place.input.index()).is_none_or(|norm| norm == 0.0) {
        return Ok(None);
    }
    // What is not a sum came by one way only. Any cotangent, handed back through this block alone, shows which.
    let ones = Tensor::full(place.output.shape(), 1.0, place.output.dtype());
    let grading = Grading::BOTH.branches_up_to(0).controls_up_to(0);
    let through = tape.spectrum_of_vjp(place.output, &ones, &[place.input], grading)?.swap_remove(0);
    let none = Shares { skip: 0.0, branch: 0.0, control: 0.0, other: 0.0 };
    Ok(through.terms.first().map(|term| match (term.branches, term.controls) {
        (_, Degree::MoreThan(_)) => Shares { control: 1.0, ..none },
        (Degree::MoreThan(_), _) => Shares { branch: 1.0, ..none },
        _ => Shares { skip: 1.0, ..none },
    }))
}

/// The map from `entry` to `state` that crosses no branch and no control edge.
///
/// A state that grows by a stream with every block is compared in the streams that were there at the entry.
fn composite<'t>(
    tape: &'t Tape,
    entry: Var<'t>,
    state: Var<'t>,
    has_streams: bool,
) -> Result<Composite, Failure> {
    let shape = entry.shape();
    let streams = if has_streams { shape[shape.len() - 2] } else { 1 };
    let kept = if state.shape() == shape { state } else { state.slice(-2, 0, streams, 1) };
    let map = tape.stream_map(kept, entry, streams)?;
    let mean = |f: &dyn Fn(&Matrix) -> f64| map.samples.iter().map(f).sum::<f64>() / map.samples.len() as f64;
    let worst = |rows: bool| {
        let sum = |m: &Matrix, i: usize| -> f64 {
            (0..streams).map(|j| if rows { m.at(i, j) } else { m.at(j, i) }).sum()
        };
        let off = |m: &Matrix| (0..streams).map(|i| (sum(m, i) - 1.0).abs()).fold(0.0, largest);
        map.samples.iter().map(off).fold(0.0, largest)
    };
    let cosines = if has_streams { tape.stream_cosines(state)? } else { Vec::new() };
    let cosines: Vec<f64> = cosines.into_iter().flatten().collect();
    let several = streams > 1;
    Ok(Composite {
        streams,
        forward_gain: mean(&Matrix::row_gain),
        backward_gain: mean(&Matrix::column_gain),
        sigma_2: several.then(|| mean(&|m| m.singular_values()[1])),
        lambda_2: several.then(|| mean(&|m| m.eigenvalue_moduli()[1])),
        cosine: (!cosines.is_empty()).then(|| cosines.iter().sum::<f64>() / cosines.len() as f64),
        row_error: worst(true),
        column_error: worst(false),
        spread: map.spread,
    })
}

/// The larger of two, NaN if one is.
fn largest(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Of every branch, on the first samples.
fn jacobians(network: &Network, data: &Data, seed: u64) -> Result<Vec<JacobianSpectrum>, Failure> {
    let tape = Tape::new().with_seed(seed);
    loss(&tape, &network.model, &data.first(SAMPLES));
    let places = Places::on(&tape).blocks;
    let of = |place: &Place<'_>| tape.jacobian_spectrum(place.branch_output, place.branch_input, 1);
    Ok(places.iter().map(of).collect::<limpid::autograd::Result<_>>()?)
}

fn means(samples: &[Vec<f64>]) -> Vec<f64> {
    let count = samples.iter().map(Vec::len).min().unwrap_or(0);
    (0..count).map(|i| samples.iter().map(|s| s[i]).sum::<f64>() / samples.len() as f64).collect()
}

fn method(spectrum: &JacobianSpectrum) -> String {
    match spectrum.method {
        Method::Exact { .. } => format!("{}, {} samples", spectrum.method, spectrum.samples.len()),
        Method::PowerIteration { .. } => format!("{}: the largest only", spectrum.method),
    }
}

impl Composite {
    /// Whether it is a map between streams alone, the same for every channel, up to rounding.
    pub fn is_of_streams(&self) -> bool {
        self.spread <= 1e-3 * (1.0 + self.forward_gain)
    }
}

impl Audit {
    /// The mean of the blocks' shares; `None` if no block has any.
    pub fn mean_shares(&self) -> Option<Shares> {
        let all: Vec<[f64; 4]> = self.blocks.iter().filter_map(|b| Some(b.shares?.values())).collect();
        let mean = |i: usize| all.iter().map(|shares| shares[i]).sum::<f64>() / all.len() as f64;
        let [skip, branch, control, other] = [0, 1, 2, 3].map(mean);
        (!all.is_empty()).then_some(Shares { skip, branch, control, other })
    }

    /// The map through all blocks.
    pub fn composite(&self) -> Option<&Composite> {
        self.blocks.last().map(|block| &block.composite)
    }

    /// What a block keeps for the derivative, in the mean.
    pub fn saved_per_block(&self) -> Option<usize> {
        let sum: usize = self.blocks.iter().map(|block| block.saved).sum();
        sum.checked_div(self.blocks.len())
    }

    /// What the tape holds, as a person reads it.
    pub fn held_text(&self) -> String {
        format_bytes(self.held)
    }
}
