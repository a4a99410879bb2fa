//! Every connection as a block, with weights drawn so that nothing about it is special.

use limpid_autograd::Var;
use limpid_autograd::ops::sinkhorn::Sinkhorn;
use limpid_nn::residual::{
    AttnRes, Connection, Delta, DropPath, DynamicHyperConnection, Gated, HyperConnection, Identity,
    IdentityHc, Interpolated, LayerScale, Mhc, MhcLite, Plain, PostNorm, ReZero, ResiDual, Residual, Scaled,
    Start,
};
use limpid_nn::{Activation, Init, Linear, Parameters};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Stop, Tensor};

pub type Block = Residual<Box<dyn Connection>, Linear>;

/// A connection, and what its state looks like.
pub struct Case {
    pub name: &'static str,
    pub connection: Box<dyn Connection>,
    /// `None`: the state is `[.., C]`.
    pub streams: Option<usize>,
}

pub fn init() -> Init {
    Init::new(1).with_dtype(DType::F64)
}

pub fn values(v: Var<'_>) -> Vec<f64> {
    v.value().unwrap().to_vec().unwrap()
}

pub fn normal(shape: &[usize], std: f64, key: Key) -> Tensor {
    Tensor::random(Distribution::Normal { mean: 0.0, std }, shape, DType::F64, key).unwrap()
}

/// Those whose state is `[.., C]`.
pub fn one_stream(channels: usize) -> Vec<Case> {
    let init = init().enter("connection");
    let connections: Vec<(&'static str, Box<dyn Connection>)> = vec![
        ("plain", Box::new(Plain)),
        ("residual", Box::new(Identity)),
        ("scaled", Box::new(Scaled::new(0.25))),
        ("rezero", Box::new(ReZero::new(&init))),
        ("layerscale", Box::new(LayerScale::new(&init, channels, 30))),
        ("gated", Box::new(Gated::new(&init, channels))),
        ("interpolated", Box::new(Interpolated::new(&init))),
        ("droppath", Box::new(DropPath::new(0.3))),
        ("post-norm", Box::new(PostNorm::new(&init, channels))),
        ("deepnorm", Box::new(PostNorm::deep_norm(&init, channels, 18))),
        ("delta", Box::new(Delta::new(&init, channels))),
    ];
    connections.into_iter().map(|(name, connection)| Case { name, connection, streams: None }).collect()
}

/// Those whose state is `[.., n, C]`, as far as they can have n streams.
pub fn with_streams(n: usize, channels: usize, sinkhorn_steps: usize) -> Vec<Case> {
    let (init, start) = (init().enter("connection"), Start::default());
    let sinkhorn = Sinkhorn { stop: Stop::Steps(sinkhorn_steps), ..Sinkhorn::default() };
    let mut connections: Vec<(&'static str, Box<dyn Connection>)> = vec![
        ("hc", Box::new(HyperConnection::new(&init, n, 1))),
        ("hc-dynamic", Box::new(DynamicHyperConnection::new(&init, channels, n, 1))),
        ("mhc", Box::new(Mhc { sinkhorn, ..Mhc::new(&init, channels, n, 1, start) })),
        ("identity-hc", Box::new(IdentityHc::new(&init, channels, n, 1, start))),
        ("attnres", Box::new(AttnRes::new(&init, channels))),
    ];
    if n <= 4 {
        connections.push(("mhc-lite", Box::new(MhcLite::new(&init, channels, n, 1, start))));
    }
    if n == 2 {
        connections.push(("resi-dual", Box::new(ResiDual::new(&init, channels))));
    }
    connections.into_iter().map(|(name, connection)| Case { name, connection, streams: Some(n) }).collect()
}

impl Case {
    /// Around a linear layer with a tanh, all weights drawn so that logits have about this deviation.
    pub fn block(self, channels: usize, std: f64, seed: u64) -> Block {
        let branch = Linear::new(&init().enter("branch"), channels, channels, Activation::Tanh);
        let mut block = Residual { connection: self.connection, branch };
        block.connection.visit_mut(&mut |parameter| {
            let shape = parameter.value().shape().to_vec();
            let (path, key) = (parameter.path(), Key::new(seed).fold_str(parameter.path()));
            let about_one =
                path.ends_with("alpha") || path.ends_with("scale") || path.contains("norm.weight");
            let fan = if path.ends_with("phi") { (shape[0] as f64).sqrt() } else { 1.0 };
            let drawn = normal(&shape, if about_one { 0.2 } else { std / fan }, key).to_vec::<f64>().unwrap();
            let shifted = drawn.into_iter().map(|v| if about_one { 1.0 + v } else { v }).collect();
            parameter.set_value(Tensor::from_vec(shifted, &shape[..]));
        });
        // The logits of the only mix or weight that there is for one stream change nothing.
        if self.streams == Some(1) {
            for pattern in ["*.res.*", "*.query"] {
                let _ = block.set_frozen(pattern, true);
            }
        }
        block
    }

    pub fn state(&self, batch: &[usize], channels: usize, seed: u64) -> Tensor {
        let shape: Vec<usize> = batch.iter().copied().chain(self.streams).chain([channels]).collect();
        normal(&shape, 1.0, Key::new(seed).fold_str("state"))
    }
}
