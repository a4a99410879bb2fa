//! A block whose addition is part of its last product is the block that it stands for.

use limpid_autograd::{FanIn, Grading, Spectrum, Tape, Var};
use limpid_nn::residual::{FusedResidual, Identity, Residual};
use limpid_nn::{Activation, Init, LayerNorm, Linear, Module, Parameter, Parameters, Sequential};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use crate::blocks::{init, normal};

const WIDTH: usize = 5;

/// What a branch has before its last layer: nothing, a norm, or a layer and a norm.
fn front(init: &Init, layers: usize) -> Sequential {
    let norm = || -> Box<dyn Module> { Box::new(LayerNorm::new(&init.enter("norm"), WIDTH)) };
    let hidden = || -> Box<dyn Module> {
        Box::new(Linear::new(&init.enter("hidden"), WIDTH, WIDTH, Activation::Tanh))
    };
    Sequential::new(match layers {
        0 => vec![],
        1 => vec![norm()],
        _ => vec![hidden(), norm()],
    })
}

fn last(init: &Init, bias: bool) -> Linear {
    let last = Linear::new(&init.enter("last"), WIDTH, WIDTH, Activation::Identity);
    if bias { last } else { last.without_bias() }
}

fn plain(init: &Init, layers: usize, bias: bool) -> Box<dyn Module> {
    let branch = Sequential::new(vec![Box::new(front(init, layers)), Box::new(last(init, bias))]);
    Box::new(Residual { connection: Identity, branch })
}

fn fused(init: &Init, layers: usize, bias: bool) -> Box<dyn Module> {
    Box::new(FusedResidual { branch: front(init, layers), last: last(init, bias) })
}

/// Everything that a backward pass says of a network: the loss, gradients, books and spectra.
struct Said {
    loss: f64,
    gradients: Vec<Vec<f64>>,
    norms: Vec<f64>,
    fan_ins: Vec<FanIn>,
    spectra: Vec<Spectrum>,
    /// The gradient of half the squared gradient of the input.
    second: Vec<f64>,
    forward: Vec<f64>,
}

/// Three blocks, the first used again at the end, so that its weights' gradients are sums.
fn said(blocks: &[Box<dyn Module>], x: &Tensor) -> Said {
    let tape = Tape::new();
    let x = tape.variable(x);
    let mut states = vec![x];
    for (i, block) in blocks.iter().chain([&blocks[0]]).enumerate() {
        states.push(tape.scope(format!("layers.{i}"), || block.forward(states[i])));
    }
    let y = *states.last().unwrap();
    let loss = (y.sin() * y).mean(&[]);
    let parameters: Vec<&Parameter> = blocks.iter().flat_map(|block| block.parameters()).collect();
    let wanted: Vec<Var<'_>> = states.iter().copied().chain(parameters.iter().map(|p| p.on(&tape))).collect();
    let (gradients, ledger) = tape.backward_with_ledger(loss).unwrap();
    let of_parameters = parameters.iter().map(|p| gradients.of_parameter(p.id()).unwrap());
    let gradients = [gradients.of(x).unwrap()].into_iter().chain(of_parameters);
    let gradients = gradients.map(|g| g.to_vec::<f64>().unwrap()).collect();
    let spectra = tape.spectrum(loss, &wanted, Grading::BRANCHES).unwrap();
    let one = tape.constant(&Tensor::ones([3, WIDTH], DType::F64));
    let forward = tape.jvp(y, &[(x, one)]).unwrap().value().unwrap().to_vec::<f64>().unwrap();
    let g = tape.grad(loss, &[x]).unwrap()[0];
    let second = tape.grad((g * g).sum(&[]) * 0.5, &[x]).unwrap()[0];
    Said {
        loss: loss.item().unwrap(),
        gradients,
        norms: wanted.iter().map(|v| ledger.norm(v.index()).unwrap()).collect(),
        fan_ins: ledger.fan_ins,
        spectra,
        second: second.value().unwrap().to_vec::<f64>().unwrap(),
        forward,
    }
}

#[test]
fn gradients_ledger_and_spectrum_are_those_of_the_block_it_stands_for() {
    let x = normal(&[3, WIDTH], 1.0, Key::new(5));
    for layers in [0, 1, 2] {
        for bias in [true, false] {
            let blocks = |make: fn(&Init, usize, bool) -> Box<dyn Module>| -> Vec<Box<dyn Module>> {
                (0..3).map(|i| make(&init().enter(i), layers, bias)).collect()
            };
            let (whole, fused) = (said(&blocks(plain), &x), said(&blocks(fused), &x));
            let what = format!("{layers} layers, bias {bias}");
            assert_eq!(whole.loss.to_bits(), fused.loss.to_bits(), "{what}");
            assert_eq!(whole.gradients, fused.gradients, "{what}");
            assert_eq!(whole.norms, fused.norms, "{what}");
            assert_eq!(whole.forward, fused.forward, "{what}");
            assert_eq!(whole.second, fused.second, "{what}");
            assert_eq!(whole.fan_ins.len(), fused.fan_ins.len(), "{what}");
            for (a, b) in whole.fan_ins.iter().zip(&fused.fan_ins) {
                assert_eq!(
                    (a.norm, &a.routes, a.rounding),
                    (b.norm, &b.routes, b.rounding),
                    "{what}\n{a}\n{b}"
                );
                let addends = |fan_in: &FanIn| -> Vec<_> {
                    fan_in.addends.iter().map(|addend| (addend.route, addend.part)).collect()
                };
                assert_eq!(addends(a), addends(b), "{what}\n{a}\n{b}");
                if layers > 0 {
                    assert_eq!(a.scope, b.scope, "{what}");
                }
            }
            for (a, b) in whole.spectra.iter().zip(&fused.spectra) {
                let terms = |spectrum: &Spectrum| -> Vec<_> {
                    let terms = spectrum.terms.iter();
                    terms.map(|t| (t.branches, t.gradient.to_f64_vec().unwrap())).collect()
                };
                assert_eq!(terms(a), terms(b), "{what}");
                assert!(!a.terms.is_empty());
            }
            // From the first state none to all four branches are crossed; the last block's weights are behind one more.
            assert_eq!(whole.spectra[0].terms.len(), 5, "{what}");
        }
    }
}

#[test]
fn every_operand_of_the_product_enters_by_a_branch_edge() {
    let block = fused(&init(), 1, true);
    let tape = Tape::new();
    block.forward(tape.variable(&normal(&[2, WIDTH], 1.0, Key::new(1))));
    let program = tape.program().to_string();
    assert_eq!((program.matches('↷').count(), program.matches('⑂').count()), (1, 3), "{program}");
    let adds = program.lines().filter(|line| line.contains("add")).count();
    assert_eq!(adds, 1, "the product adds, nothing else does:\n{program}");
}

#[test]
#[should_panic(expected = "must be without activation, found tanh")]
fn a_last_layer_with_an_activation_panics() {
    let last = Linear::new(&init(), WIDTH, WIDTH, Activation::Tanh);
    let tape = Tape::new();
    FusedResidual { branch: Activation::Relu, last }
        .forward(tape.variable(&Tensor::ones([2, WIDTH], DType::F64)));
}

#[test]
#[should_panic(expected = "linear_add in write: the product is f64[2, 1], what it is added to f64[2, 5]")]
fn a_branch_does_not_broadcast_over_its_stream() {
    let last = Linear::new(&init(), WIDTH, 1, Activation::Identity);
    let tape = Tape::new();
    FusedResidual { branch: Activation::Relu, last }
        .forward(tape.variable(&Tensor::ones([2, WIDTH], DType::F64)));
}
