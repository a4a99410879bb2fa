//! Every connection by its name, and what a network needs around its branches to use it.

use std::fmt;
use std::str::FromStr;

use limpid_autograd::ops::sinkhorn::Sinkhorn;

use super::{
    AttnRes, Connection, Delta, DropPath, DynamicHyperConnection, Expand, Gated, HyperConnection, Identity,
    IdentityHc, Interpolated, LayerScale, Mhc, MhcLite, Placement, Plain, PostNorm, ReZero, Reduce, ResiDual,
    ResiDualRead, Scaled, SigmoidRead, Start, deep_norm_gain,
};
use crate::error::Error;
use crate::init::Init;
use crate::module::Module;

/// A way to join the blocks of a network.
///
/// ```
/// use limpid_nn::residual::Variant;
/// assert_eq!("mhc-lite".parse::<Variant>()?, Variant::MhcLite);
/// assert!(Variant::MhcLite.has_streams());
/// let error = "mhclite".parse::<Variant>().unwrap_err().to_string();
/// assert!(error.starts_with("variant: expected one of plain, residual, "), "{error}");
/// # Ok::<(), limpid_nn::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Variant {
    /// [`Plain`].
    Plain,
    /// [`Identity`].
    Residual,
    /// [`Scaled`] by 1/√2.
    Scaled,
    /// [`Scaled`] by 1/L.
    CompleteP,
    /// [`ReZero`].
    ReZero,
    /// [`LayerScale`].
    LayerScale,
    /// [`Gated`].
    Gated,
    /// [`Interpolated`].
    Interpolated,
    /// [`DropPath`].
    DropPath,
    /// [`Euler`](super::Euler): one block, L steps.
    Euler,
    /// [`Identity`] around a branch with a norm in front.
    PreNorm,
    /// [`Identity`] around a branch between two norms.
    PeriNorm,
    /// [`PostNorm`].
    PostNorm,
    /// [`PostNorm::deep_norm`].
    DeepNorm,
    /// [`ResiDual`].
    ResiDual,
    /// [`Delta`].
    Delta,
    /// [`AttnRes`].
    AttnRes,
    /// [`HyperConnection`].
    Hc,
    /// [`DynamicHyperConnection`].
    HcDynamic,
    /// [`Mhc`].
    Mhc,
    /// [`MhcLite`].
    MhcLite,
    /// [`IdentityHc`].
    IdentityHc,
}

/// What variants have to be told beyond the size of the network. Each reads what concerns it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct VariantConfig {
    /// n, for those that have a choice; 4 by default.
    pub streams: usize,
    /// How [`Mhc`] makes its mix; 20 steps by default.
    pub sinkhorn: Sinkhorn,
    /// Where [`Mhc`], [`MhcLite`] and [`IdentityHc`] start.
    pub start: Start,
    /// The probability with which the last block is dropped by [`DropPath`]; 0.1 by default.
    pub drop: f64,
    /// The time that [`Euler`](super::Euler) steps to; 1 by default.
    pub until: f64,
}

impl Default for VariantConfig {
    fn default() -> VariantConfig {
        VariantConfig {
            streams: 4,
            sinkhorn: Sinkhorn::default(),
            start: Start::default(),
            drop: 0.1,
            until: 1.0,
        }
    }
}

/// What a network needs around its branches: made by [`Variant::wiring`].
pub struct Wiring {
    /// From the embedding `[.., C]` to the state that blocks work on. `None`: they work on the embedding.
    pub enter: Option<Box<dyn Module>>,
    /// One for each block that has weights of its own.
    pub connections: Vec<Box<dyn Connection>>,
    /// How often the blocks are gone through, with the same weights.
    pub steps: usize,
    /// Where the norms of a branch go.
    pub placement: Placement,
    /// What the initial weights of a branch are multiplied by.
    pub gain: f64,
    /// From the state back to `[.., C]`. `None`: there is nothing to do.
    pub leave: Option<Box<dyn Module>>,
}

impl Wiring {
    /// One stream, branches as they are, each block joined once.
    pub fn new(connections: Vec<Box<dyn Connection>>) -> Wiring {
        let (steps, placement, gain) = (1, Placement::None, 1.0);
        Wiring { enter: None, connections, steps, placement, gain, leave: None }
    }
}

impl Variant {
    /// Every variant, from the simplest on.
    pub const ALL: [Variant; 22] = [
        Variant::Plain,
        Variant::Residual,
        Variant::Scaled,
        Variant::CompleteP,
        Variant::ReZero,
        Variant::LayerScale,
        Variant::Gated,
        Variant::Interpolated,
        Variant::DropPath,
        Variant::Euler,
        Variant::PreNorm,
        Variant::PeriNorm,
        Variant::PostNorm,
        Variant::DeepNorm,
        Variant::ResiDual,
        Variant::Delta,
        Variant::AttnRes,
        Variant::Hc,
        Variant::HcDynamic,
        Variant::Mhc,
        Variant::MhcLite,
        Variant::IdentityHc,
    ];

    /// Its name on a command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Residual => "residual",
            Variant::Scaled => "scaled",
            Variant::CompleteP => "complete-p",
            Variant::ReZero => "rezero",
            Variant::LayerScale => "layerscale",
            Variant::Gated => "gated",
            Variant::Interpolated => "interpolated",
            Variant::DropPath => "droppath",
            Variant::Euler => "euler",
            Variant::PreNorm => "pre-norm",
            Variant::PeriNorm => "peri-norm",
            Variant::PostNorm => "post-norm",
            Variant::DeepNorm => "deepnorm",
            Variant::ResiDual => "resi-dual",
            Variant::Delta => "delta",
            Variant::AttnRes => "attnres",
            Variant::Hc => "hc",
            Variant::HcDynamic => "hc-dynamic",
            Variant::Mhc => "mhc",
            Variant::MhcLite => "mhc-lite",
            Variant::IdentityHc => "identity-hc",
        }
    }

    /// What a block computes with the branch h, for figures and tables.
    pub fn formula(self) -> &'static str {
        match self {
            Variant::Plain => "x' = h",
            Variant::Residual => "x' = x + h",
            Variant::Scaled => "x' = x + h/√2",
            Variant::CompleteP => "x' = x + h/L",
            Variant::ReZero => "x' = x + α·h",
            Variant::LayerScale => "x' = x + λ∘h",
            Variant::Gated => "x' = (1−g)·x + g·h",
            Variant::Interpolated => "x' = (1−σ(s))·x + σ(s)·h",
            Variant::DropPath => "x' = x + m·h/(1−p)",
            Variant::Euler => "x' = x + Δt·h, one h",
            Variant::PreNorm => "x' = x + h(norm x)",
            Variant::PeriNorm => "x' = x + norm h(norm x)",
            Variant::PostNorm => "x' = norm(x + h)",
            Variant::DeepNorm => "x' = norm(α·x + h)",
            Variant::ResiDual => "x' = norm(x + h), d' = d + h",
            Variant::Delta => "x' = x + β(v − kᵀx)k",
            Variant::AttnRes => "x' = [x; h(a·x)], a = softmax",
            Variant::Hc => "x' = A·x + b⊗h(a·x)",
            Variant::HcDynamic => "x' = A(x)·x + b(x)⊗h(a(x)·x)",
            Variant::Mhc => "x' = SK·x + 2σ⊗h(σ·x)",
            Variant::MhcLite => "x' = ΣpₖPₖ·x + 2σ⊗h(σ·x)",
            Variant::IdentityHc => "x' = x + 2σ⊗h(σ·x)",
        }
    }

    /// Whether its state is `[.., n, C]`, between an entrance and an exit.
    pub fn has_streams(self) -> bool {
        use Variant::*;
        matches!(self, ResiDual | AttnRes | Hc | HcDynamic | Mhc | MhcLite | IdentityHc)
    }

    /// Whether a, b and A are all there is to it, so that the composite map of a network is the product of the A's. The
    /// others say in their documentation what it is.
    pub fn is_algebraic(self) -> bool {
        use Variant::*;
        !matches!(self, PostNorm | DeepNorm | ResiDual | Delta | AttnRes)
    }

    /// What a network of `blocks` blocks over a stream of `channels` channels needs. `place(0)` is where the entrance has its
    /// parameters, `place(i)` block i, counted from 1, and `place(blocks + 1)` the exit.
    ///
    /// Connections with streams are made as published, around branches with a norm in front. Hyper-connections leave by
    /// the mean rather than the sum of the streams, so that where there is no norm behind it they still begin as exactly
    /// the network that [`PreNorm`](Variant::PreNorm) is.
    ///
    /// # Errors
    /// If the variant cannot have as many streams, or `drop` is no probability.
    ///
    /// # Panics
    /// If a number of the configuration makes no sense otherwise.
    pub fn wiring(
        self,
        channels: usize,
        blocks: usize,
        config: &VariantConfig,
        place: impl Fn(usize) -> Init,
    ) -> Result<Wiring, Error> {
        let n = config.streams;
        let most = if self == Variant::MhcLite { 4 } else { usize::MAX };
        if n == 0 || n > most {
            let expected = if n == 0 { "at least 1".into() } else { format!("at most {most} for {self}") };
            return Err(Error::argument("streams", expected, n));
        }
        if !(0.0..=1.0).contains(&config.drop) {
            return Err(Error::argument("drop", "a probability", config.drop));
        }
        let distinct = if self == Variant::Euler { blocks.min(1) } else { blocks };
        let connection = |i: usize| self.connection(&place(i), channels, i, blocks, config);
        let mut wiring = Wiring::new((1..=distinct).map(connection).collect());
        if self == Variant::Euler {
            wiring.steps = blocks;
        }
        if self == Variant::DeepNorm && blocks > 0 {
            wiring.gain = deep_norm_gain(blocks);
        }
        wiring.placement = match self {
            Variant::PeriNorm => Placement::Peri,
            Variant::ResiDual => Placement::None,
            _ if self == Variant::PreNorm || self.has_streams() => Placement::Pre,
            _ => Placement::None,
        };
        let exit = place(blocks + 1);
        let (copies, leave): (usize, Box<dyn Module>) = match self {
            Variant::ResiDual => (2, Box::new(ResiDualRead::new(&exit, channels))),
            Variant::AttnRes => (1, Box::new(AttnRes::new(&exit, channels))),
            Variant::Hc | Variant::HcDynamic => (n, Box::new(Reduce::Mean)),
            Variant::Mhc | Variant::MhcLite | Variant::IdentityHc => {
                (n, Box::new(SigmoidRead::new(&exit, channels, n)))
            }
            _ => return Ok(wiring),
        };
        wiring.enter = Some(Box::new(Expand::copies(copies)));
        wiring.leave = Some(leave);
        Ok(wiring)
    }

    /// The connection of block i, counted from 1, of a network.
    fn connection(
        self,
        init: &Init,
        channels: usize,
        i: usize,
        blocks: usize,
        config: &VariantConfig,
    ) -> Box<dyn Connection> {
        let &VariantConfig { streams: n, start, sinkhorn, drop, until } = config;
        match self {
            Variant::Plain => Box::new(Plain),
            Variant::Residual | Variant::PreNorm | Variant::PeriNorm => Box::new(Identity),
            Variant::Scaled => Box::new(Scaled::one_over_sqrt_2()),
            Variant::CompleteP => Box::new(Scaled::complete_p(blocks, 1.0)),
            Variant::ReZero => Box::new(ReZero::new(init)),
            Variant::LayerScale => Box::new(LayerScale::new(init, channels, blocks)),
            Variant::Gated => Box::new(Gated::new(init, channels)),
            Variant::Interpolated => Box::new(Interpolated::new(init)),
            Variant::DropPath => Box::new(DropPath::linear(i, blocks, drop)),
            Variant::Euler => Box::new(Scaled::euler(blocks, until)),
            Variant::PostNorm => Box::new(PostNorm::new(init, channels)),
            Variant::DeepNorm => Box::new(PostNorm::deep_norm(init, channels, blocks)),
            Variant::ResiDual => Box::new(ResiDual::new(init, channels)),
            Variant::Delta => Box::new(Delta::new(init, channels)),
            Variant::AttnRes => Box::new(AttnRes::new(init, channels)),
            Variant::Hc => Box::new(HyperConnection::new(init, n, i - 1)),
            Variant::HcDynamic => Box::new(DynamicHyperConnection::new(init, channels, n, i - 1)),
            Variant::Mhc => Box::new(Mhc { sinkhorn, ..Mhc::new(init, channels, n, i - 1, start) }),
            Variant::MhcLite => Box::new(MhcLite::new(init, channels, n, i - 1, start)),
            Variant::IdentityHc => Box::new(IdentityHc::new(init, channels, n, i - 1, start)),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Variant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Variant, Error> {
        Variant::ALL.into_iter().find(|variant| variant.name() == text).ok_or_else(|| {
            let names = Variant::ALL.map(Variant::name).join(", ");
            Error::argument("variant", format!("one of {names}"), text)
        })
    }
}
