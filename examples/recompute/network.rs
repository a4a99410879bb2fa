//! Which network is it? A deep stack of mHC blocks that predicts the next token.

use limpid::nn::losses::{Reduction, cross_entropy};
use limpid::nn::residual::{Expand, Mhc, Normed, Placement, Reduce, Residual, Start};
use limpid::nn::{Activation, Init, Initializer, Linear, Module, Parameter, Parameters, RmsNorm};
use limpid::tensor::rng::{Distribution, Key};
use limpid::{DType, Tape, Tensor, Var, tensor};

/// How many tokens there are.
const VOCABULARY: usize = 256;

/// What a network is made of.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// L, residual blocks.
    pub depth: usize,
    /// n.
    pub streams: usize,
    /// C.
    pub width: usize,
    /// In one batch.
    pub tokens: usize,
    pub dtype: DType,
    /// Of the branches.
    pub activation: Activation,
}

/// ```text
/// tokens → embedding → n streams → L blocks → mean of the streams → norm → head → cross-entropy
/// ```
///
/// The branch of a block is `activation(W·norm(x) + b)`.
pub struct Network {
    embedding: Parameter,
    enter: Expand,
    blocks: Vec<Residual<Mhc, Normed<Linear>>>,
    norm: RmsNorm,
    head: Linear,
}

impl Network {
    pub fn new(sizes: &Sizes) -> Network {
        let &Sizes { depth, streams, width, dtype, activation, .. } = sizes;
        let init = Init::new(0).with_dtype(dtype);
        let block = |layer: usize| {
            let init = init.enter("blocks").enter(layer);
            let branch = Linear::new(&init, width, width, activation);
            Residual {
                connection: Mhc::new(&init, width, streams, layer, Start::default()),
                branch: Normed::new(&init, width, Placement::Pre, branch),
            }
        };
        Network {
            embedding: init.weight("embedding", [VOCABULARY, width], Initializer::Normal { std: 1.0 }),
            enter: Expand::copies(streams),
            blocks: (0..depth).map(block).collect(),
            norm: RmsNorm::new(&init.enter("norm"), width),
            head: Linear::new(&init.enter("head"), width, VOCABULARY, Activation::Identity),
        }
    }

    /// The mean cross-entropy of what follows each token.
    pub fn loss<'t>(&self, tape: &'t Tape, text: &Text) -> Var<'t> {
        let tokens = tape.constant(&text.tokens);
        let embedded = tape.scope("embedding", || self.embedding.on(tape).index_select(0, tokens));
        let mut state = tape.scope("enter", || self.enter.forward(embedded));
        for (layer, block) in self.blocks.iter().enumerate() {
            state = tape.scope(format_args!("block.{layer}"), || block.forward(state));
        }
        tape.scope("leave", || {
            let logits = self.head.forward(self.norm.forward(Reduce::Mean.forward(state)));
            cross_entropy(logits, tape.constant(&text.next), Reduction::Mean)
        })
    }
}

impl Parameters for Network {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.embedding);
        self.enter.visit(f);
        self.blocks.iter().for_each(|block| block.visit(f));
        self.norm.visit(f);
        self.head.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.embedding);
        self.enter.visit_mut(f);
        self.blocks.iter_mut().for_each(|block| block.visit_mut(f));
        self.norm.visit_mut(f);
        self.head.visit_mut(f);
    }
}

/// Tokens, and after each the one that follows.
pub struct Text {
    tokens: Tensor,
    next: Tensor,
}

impl Text {
    /// So many random tokens.
    pub fn random(tokens: usize) -> tensor::Result<Text> {
        let evenly = Distribution::Uniform { low: 0.0, high: VOCABULARY as f64 };
        let drawn = Tensor::random(evenly, [tokens + 1], DType::F64, Key::new(0).fold_str("text"))?;
        let drawn: Vec<i64> = drawn.to_f64_vec()?.into_iter().map(|token| token as i64).collect();
        let of = |range: &[i64]| Tensor::from_vec(range.to_vec(), [tokens]);
        Ok(Text { tokens: of(&drawn[..tokens]), next: of(&drawn[1..]) })
    }
}
