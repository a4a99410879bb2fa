//! The report: a question a section, every network beside the others.

use limpid::autograd::format_bytes;
use limpid::report::{Report, Section, Table, scale};

use crate::Run;
use crate::figures::{Drawn, Figures, by_length};
use crate::measure::{Audit, Block, Composite, SAMPLES, Shares};
use crate::settings::Settings;

fn number(value: Option<f64>) -> String {
    value.map_or("–".into(), scale::number)
}

fn percent(share: Option<f64>) -> String {
    share.map_or("–".into(), |share| format!("{} %", scale::number(100.0 * share)))
}

pub fn report(settings: &Settings, runs: &[Run], figures: &Figures) -> String {
    let command = settings.command();
    let moments: Vec<&str> = runs[0].audits.iter().map(|audit| audit.moment).collect();
    let section = |title: &str, prose: &str| Section::new(title).prose(prose).command(&command);
    let with = |section: Section, drawn: &[Drawn], caption: &str| {
        drawn.iter().fold(section, |section, d| {
            let caption =
                if d.moment.is_empty() { caption.into() } else { format!("{caption}, {}.", d.moment) };
            section.multiples(d.moment, d.multiples.clone(), &caption)
        })
    };
    let gradients = section(
        "How far the gradient gets",
        "The norm of the loss's gradient by each layer's weight. A row is a layer, the first one on top; a column is an \
         epoch. Where a column fades towards the top, the first layers hardly learn.",
    );
    let gradients =
        with(gradients, std::slice::from_ref(&figures.gradients), "One colour scale for all networks.")
            .table("Gradient norms", gradient_table(runs));

    let lengths = section(
        "How many branches the gradient crosses",
        "A path from the loss back to the first block goes, at each block, either by the skip connection or through \
         the branch. All paths that cross k branches together carry a part of the gradient; its signed share is the part \
         along the whole gradient, and the shares sum to 1. A share above 1 means that longer and shorter paths work against \
         each other.\n\nThis takes the gradient apart at the point where the network stands now. It does not say what \
         a network without some of its branches would do.",
    );
    let lengths =
        with(lengths, &figures.spectrum, "Signed share by path length").table("Shares", length_table(runs));

    let shares = section(
        "Skip, branch or control",
        "The gradient that arrives at a block's input is a sum: what comes by the skip connection, what comes \
         through the branch, and what comes through the connection's coefficients (control), where these are computed from the \
         stream. Signed shares sum to 1 in every block. Norms of the three would not.",
    );
    let shares = with(shares, &figures.shares, "Signed share by way").table("Shares", share_table(runs));

    let composite = section(
        "What the streams hand on by themselves",
        "The composite map takes the state before the first block to the state behind block l without crossing a \
         branch. Its gain, forward the largest absolute row sum and backward the largest absolute column sum, says how far \
         it can amplify. Gain alone is blind: a map that has mixed all streams into their mean has gain 1 too. So \
         beside it stand the second singular value σ₂ and the second eigenvalue |λ₂|: they fall towards 0 when streams collapse \
         into one.\n\nWith one stream there is a gain and no σ₂. Where a norm or a gate acts on the stream, the map \
         differs between channels: spread in the table says by how much, and what is shown is its mean.",
    );
    let composite = with(composite, &figures.composite, "Gain, and beside it what is left of differences")
        .table("Composite maps", composite_table(runs));

    let cosines = section(
        "Do the streams stay apart?",
        "The mean cosine between two streams behind each block. 1 means that all have become one. Streams start as copies of \
         one embedding, at 1.",
    );
    let cosines =
        with(cosines, &figures.cosines, "Cosine between streams").table("Cosines", cosine_table(runs));

    let jacobians = section(
        "How each branch stretches",
        &format!(
            "The singular values of the Jacobian of each branch: the factors by which it stretches a small change of what \
             it reads. They are exact up to a width of 128 (one vector–Jacobian product for each row, then a singular value \
             decomposition), the mean over {SAMPLES} training points. Wider networks show the largest only, found by power \
             iteration; the table says which."
        ),
    );
    let jacobians = with(
        jacobians,
        &figures.jacobians,
        "Singular values of the branch Jacobian; jacobians.csv has them all",
    )
    .table("Singular values", jacobian_table(runs));

    let memory = section(
        "What the tape holds",
        "A step of training keeps the values that the derivative rules will read. The line adds them up along the tape, \
         operation by operation, for one batch; a storage that several values share counts once. Parameters and inputs \
         are not the tape's.",
    );
    let memory = with(
        memory,
        std::slice::from_ref(&figures.memory),
        "Bytes held, summed along the tape. memory.csv has every node.",
    )
    .table("Bytes by part of a block, mean over blocks", memory_table(runs));

    let boundary = section(
        "What was learned",
        "The probability of each class over the plane. Dots are a quarter of all points.",
    );
    let boundary = with(
        boundary,
        std::slice::from_ref(&figures.boundary),
        "Two moons, as each network sees them. boundary.csv has the grid.",
    )
    .table("Accuracy", accuracy_table(runs));

    let title = match runs {
        [run] => format!("Audit of {}", run.variant()),
        _ => format!("Audit of {} ways to join layers", runs.len()),
    };
    let a = &settings.arguments;
    let lead = format!(
        "Where does the gradient of a network with {} layers of width {} come from, and what does each connection do to it? \
         The same points, the same seed; only the way the layers are joined differs. {}",
        a.depth,
        a.width,
        match a.epochs {
            0 => "Nothing was trained.".to_string(),
            epochs => format!("Measured before and after {epochs} epochs of training on two moons."),
        }
    ) + "\n\nIn the table, ∇ is the norm of a layer's weight gradient; skip, branch and control are the mean shares over all \
         blocks; gain, σ₂ and |λ₂| are of the composite map through all of them (≈: of its mean over channels, which \
         differ); held is what a block keeps for the derivative.";
    let mut report = Report::new(&title).lead(&lead).summary(summary(runs));
    if runs.len() > 1 {
        report = report.choose("Networks (none ticked: all)", runs.iter().map(|run| run.variant().name()));
    }
    if moments.len() > 1 {
        report = report.choose_one("Figures", moments.clone(), moments.len() - 1);
    }
    report = [gradients, lengths, shares, composite, cosines, jacobians, memory]
        .into_iter()
        .fold(report, Report::section);
    if let Some(loss) = &figures.loss {
        let section = section(
            "Loss",
            "Mean cross-entropy: of each epoch's batches, and of the points kept apart. ln 2 ≈ 0.693 is a coin toss.",
        );
        let section = with(section, std::slice::from_ref(loss), "Training and validation loss.")
            .table("Losses", loss_table(runs));
        report = report.section(section);
    }
    let tapes = Section::new("The tape of each network").prose(
        "A tape is the program that one batch ran: a line for each operation, with the bytes it holds, its scope and the \
         source line that recorded it, and below it the norm of the gradient there. Operands are marked with the edge they \
         come by: ↷ skip, ⑂ branch, ∿ control. The files tapes/*.txt have values and derivative rules too; tapes/*.dot is for \
         Graphviz, tapes/*.json for programs.",
    );
    let tapes = runs.iter().fold(tapes, |section, run| section.part(part(run)));
    report.section(boundary).section(tapes.command(&command)).to_html()
}

fn summary(runs: &[Run]) -> Table {
    let table = Table::new([
        "variant",
        "accuracy",
        "loss",
        "∇ first",
        "∇ last",
        "skip",
        "branch",
        "control",
        "gain →",
        "gain ←",
        "σ₂",
        "|λ₂|",
        "cosine",
        "held a block",
        "formula",
    ]);
    runs.iter().fold(table, |table, run| {
        let audit = run.last();
        let shares = audit.mean_shares().map(Shares::values);
        let share = |k: usize| {
            shares
                .map_or("–".into(), |s| format!("{:.0} %", (100.0 * s[k]).round() + 0.0).replace('-', "−"))
        };
        let c = audit.composite();
        let (accuracy, loss) = outcome(run);
        table.row([
            run.variant().name().to_string(),
            accuracy,
            loss,
            number(audit.weight_norms.first().copied()),
            number(audit.weight_norms.last().copied()),
            share(0),
            share(1),
            share(2),
            of_map(c, |c| Some(c.forward_gain)),
            of_map(c, |c| Some(c.backward_gain)),
            of_map(c, |c| c.sigma_2),
            of_map(c, |c| c.lambda_2),
            number(c.and_then(|c| c.cosine)),
            audit.saved_per_block().map_or("–".into(), format_bytes),
            run.variant().formula().to_string(),
        ])
    })
}

/// A number of a composite map; after ≈ if channels differ and it is of their mean.
fn of_map(map: Option<&Composite>, f: impl Fn(&Composite) -> Option<f64>) -> String {
    let Some((map, value)) = map.and_then(|map| Some((map, f(map)?))) else { return "–".into() };
    format!("{}{}", if map.is_of_streams() { "" } else { "≈ " }, scale::number(value))
}

/// Validation accuracy and loss, or that there is none.
fn outcome(run: &Run) -> (String, String) {
    let (loss, accuracy) = run.network.evaluation;
    match &run.network.divergence {
        Some((epoch, ..)) => (format!("– (diverged in epoch {})", epoch + 1), "–".into()),
        None => (format!("{accuracy:.3}"), format!("{loss:.4}")),
    }
}

fn accuracy_table(runs: &[Run]) -> Table {
    let table = Table::new(["variant", "validation accuracy", "validation loss"]);
    runs.iter().fold(table, |table, run| {
        let (accuracy, loss) = outcome(run);
        table.row([run.variant().name().to_string(), accuracy, loss])
    })
}

fn gradient_table(runs: &[Run]) -> Table {
    let epochs = runs.iter().map(|run| run.network.epochs.len()).max().unwrap_or(0);
    let headers = ["variant", "layer", "start"].map(String::from).into_iter();
    let mut table = Table::new(headers.chain((1..=epochs).map(|epoch| format!("epoch {epoch}"))));
    for run in runs {
        for layer in 0..run.network.layers.len() {
            let mut row = vec![run.variant().name().to_string(), layer.to_string()];
            row.push(scale::number(run.audits[0].weight_norms[layer]));
            row.extend(
                (0..epochs).map(|epoch| {
                    number(run.network.epochs.get(epoch).map(|epoch| epoch.gradient_norms[layer]))
                }),
            );
            table = table.row(row);
        }
    }
    table
}

/// A row for each network, moment and whatever `rows` gives.
fn by_moment(runs: &[Run], headers: &[&str], rows: impl Fn(&Audit) -> Vec<Vec<String>>) -> Table {
    let mut table = Table::new(["variant", "moment"].iter().chain(headers).copied());
    for run in runs {
        for audit in &run.audits {
            for row in rows(audit) {
                let name = [run.variant().name().to_string(), audit.moment.to_string()];
                table = table.row(name.into_iter().chain(row));
            }
        }
    }
    table
}

fn length_table(runs: &[Run]) -> Table {
    by_moment(runs, &["branches crossed", "share", "of it through a coefficient"], |audit| {
        let row = |(k, (all, control)): (usize, (f64, f64))| {
            vec![k.to_string(), percent(Some(all)), percent(Some(control))]
        };
        by_length(audit).into_iter().enumerate().map(row).collect()
    })
}

fn blocks(audit: &Audit, row: impl Fn(&Block) -> Vec<String>) -> Vec<Vec<String>> {
    let numbered = |(i, block): (usize, _)| [i.to_string()].into_iter().chain(row(block)).collect();
    (1..).zip(&audit.blocks).map(numbered).collect()
}

fn share_table(runs: &[Run]) -> Table {
    by_moment(runs, &["block", "gradient norm", "skip", "branch", "control", "other"], |audit| {
        blocks(audit, |block| {
            let shares = (0..4).map(|k| percent(block.shares.map(|s| s.values()[k])));
            [number(block.gradient_norm)].into_iter().chain(shares).collect()
        })
    })
}

fn composite_table(runs: &[Run]) -> Table {
    let headers = [
        "block",
        "streams",
        "gain forward",
        "gain backward",
        "σ₂",
        "|λ₂|",
        "row sums off 1 by",
        "column sums",
        "spread",
    ];
    by_moment(runs, &headers, |audit| {
        blocks(audit, |block| {
            let c = &block.composite;
            vec![
                c.streams.to_string(),
                number(Some(c.forward_gain)),
                number(Some(c.backward_gain)),
                number(c.sigma_2),
                number(c.lambda_2),
                number(Some(c.row_error)),
                number(Some(c.column_error)),
                number(Some(c.spread)),
            ]
        })
    })
}

fn cosine_table(runs: &[Run]) -> Table {
    by_moment(runs, &["block", "cosine between streams"], |audit| {
        blocks(audit, |block| vec![number(block.composite.cosine)])
    })
}

fn jacobian_table(runs: &[Run]) -> Table {
    by_moment(runs, &["block", "largest", "median", "smallest", "how"], |audit| {
        blocks(audit, |block| {
            let values = &block.jacobian;
            let whole = values.len() > 1;
            let of_all = |value: Option<&f64>| number(value.copied().filter(|_| whole));
            vec![
                number(values.first().copied()),
                of_all(values.get(values.len() / 2)),
                of_all(values.last()),
                block.jacobian_method.clone(),
            ]
        })
    })
}

fn memory_table(runs: &[Run]) -> Table {
    const PARTS: [&str; 4] = ["coefficients", "read", "branch", "write"];
    let mut table =
        Table::new(["variant"].iter().chain(&PARTS).chain(&["a block", "whole tape", "nodes"]).copied());
    for run in runs {
        let audit = run.last();
        let count = audit.blocks.len().max(1);
        let part = |name: &str| {
            let inside = |scope: &str| scope.starts_with("layers.") || scope.starts_with("step.");
            let of = |scope: &str| inside(scope) && scope.split('/').any(|component| component == name);
            let bytes: usize = audit.nodes.iter().filter(|n| of(&n.scope)).map(|n| n.bytes).sum();
            format_bytes(bytes / count)
        };
        let mut row = vec![run.variant().name().to_string()];
        row.extend(PARTS.map(part));
        row.push(audit.saved_per_block().map_or("–".into(), format_bytes));
        row.extend([audit.held_text(), audit.nodes.len().to_string()]);
        table = table.row(row);
    }
    table
}

fn loss_table(runs: &[Run]) -> Table {
    let mut table =
        Table::new(["variant", "epoch", "training loss", "validation loss", "validation accuracy"]);
    for run in runs {
        for (i, epoch) in (1..).zip(&run.network.epochs) {
            let i: usize = i;
            table = table.row([
                run.variant().name().to_string(),
                i.to_string(),
                format!("{:.4}", epoch.train_loss),
                format!("{:.4}", epoch.validation_loss),
                format!("{:.3}", epoch.validation_accuracy),
            ]);
        }
    }
    table
}

/// What there is of one network alone.
fn part(run: &Run) -> Section {
    let mut prose = format!("{}\n\n", run.variant().formula());
    if let Some((epoch, step, cause)) = &run.network.divergence {
        prose += &format!("Training diverged in epoch {}, step {step}: {cause}.\n\n", epoch + 1);
    }
    for audit in &run.audits {
        prose += &format!("Loss {} {:.4}", audit.moment, audit.loss);
        if let Some(error) = audit.spectrum_error {
            let error = scale::number(error);
            prose += &format!("; the path lengths sum to the gradient up to {error} of its norm");
        }
        prose += ".\n\n";
    }
    let (nodes, held) = (run.last().nodes.len(), run.last().held_text());
    Section::new(run.variant().name())
        .prose(&prose)
        .listing(&format!("Tape: {nodes} nodes hold {held}"), &run.tape.short)
}
