//! Norms around the branches of variants that leave them open.

use std::cell::RefCell;

use clap::ValueEnum;
use limpid::Var;
use limpid::nn::residual::{Coefficient, Coefficients, Connection, Normed, Placement, Variant};
use limpid::nn::{Init, Mlp, MlpConfig, Module, Parameter, Parameters};

use crate::Failure;
use crate::settings::Settings;

/// Where the norms of a branch go.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Norm {
    /// Where the variant has them.
    None,
    /// In front of the branch.
    Pre,
    /// In front of it and behind it.
    Peri,
    /// Behind the addition.
    Post,
}

impl Norm {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Norm::None => "none",
            Norm::Pre => "pre",
            Norm::Peri => "peri",
            Norm::Post => "post",
        }
    }

    /// The variants that can have it. The others put norms in places of their own, use one branch many times, or take
    /// its result for a direction.
    pub fn variants(self) -> &'static [Variant] {
        use Variant::*;
        match self {
            Norm::None => &Variant::ALL,
            Norm::Pre | Norm::Peri => {
                &[Plain, Residual, Scaled, CompleteP, ReZero, LayerScale, Gated, Interpolated, DropPath]
            }
            Norm::Post => &[Residual],
        }
    }

    /// The variant of the catalogue that a variant with this norm is, if it is one.
    fn catalogued(self, variant: Variant) -> Option<Variant> {
        match (self, variant) {
            (Norm::None, variant) => Some(variant),
            (Norm::Pre, Variant::Residual) => Some(Variant::PreNorm),
            (Norm::Peri, Variant::Residual) => Some(Variant::PeriNorm),
            (Norm::Post, _) => Some(Variant::PostNorm),
            (Norm::Pre | Norm::Peri, _) => None,
        }
    }

    /// What a block computes, for figures and tables.
    pub fn formula(self, variant: Variant) -> String {
        match (self.catalogued(variant), self) {
            (Some(variant), _) => variant.formula().into(),
            (None, Norm::Peri) => format!("{}, h = norm F(norm x)", variant.formula()),
            (None, _) => format!("{}, h = F(norm x)", variant.formula()),
        }
    }
}

/// The network of one variant under these settings.
pub fn network(settings: &Settings, variant: Variant, seed: u64) -> Result<Mlp, Failure> {
    let a = &settings.arguments;
    let config = MlpConfig {
        width: a.width,
        depth: a.depth,
        activation: settings.activation,
        initial: settings.initial,
        branch_dtype: settings.branch_dtype,
        ..MlpConfig::default()
    };
    let init = Init::new(seed);
    if let Some(variant) = a.norm.catalogued(variant) {
        return Ok(Mlp::of_variant(&init, config, variant, &settings.of_variants)?);
    }
    let placement = if a.norm == Norm::Peri { Placement::Peri } else { Placement::Pre };
    let place = |i: usize| init.enter("layers").enter(i);
    let wiring = variant.wiring(a.width, config.blocks(), &settings.of_variants, place)?;
    let connections = RefCell::new(wiring.connections.into_iter());
    Ok(Mlp::new(&init, config, |place| {
        let connection = connections.borrow_mut().next().expect("there is a connection for every block");
        Box::new(WithNorms(Normed::new(place, a.width, placement, connection)))
    }))
}

/// A connection whose branch is normed: what it reads, and with [`Placement::Peri`] what it writes.
struct WithNorms(Normed<Box<dyn Connection>>);

impl Parameters for WithNorms {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.0.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.0.visit_mut(f);
    }
}

impl Connection for WithNorms {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        self.0.branch.coefficients(x)
    }

    fn read<'t>(&self, x: Var<'t>, a: Coefficient<'t>) -> Var<'t> {
        let read = self.0.branch.read(x, a);
        self.0.before.as_ref().map_or(read, |norm| norm.forward(read))
    }

    fn write<'t>(&self, x: Var<'t>, output: Var<'t>, by: &Coefficients<'t>) -> Var<'t> {
        let output = self.0.after.as_ref().map_or(output, |norm| norm.forward(output));
        self.0.branch.write(x, output, by)
    }
}
