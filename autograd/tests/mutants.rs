//! The check of the check: every mistake that can be made in a rule by one edit is noticed.

use limpid_autograd::check::{Check, Score};
use limpid_autograd::ops::elementwise::where_;
use limpid_autograd::{Cotangents, Needs, Op, Pullback, Pushforward, Var};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{Activation, DType, Inferred, Map, Meta, Result, Tensor};

fn uniform(shape: &[usize], low: f64, high: f64, seed: u64) -> Tensor {
    Tensor::random(Distribution::Uniform { low, high }, shape, DType::F64, Key::new(seed)).unwrap()
}

fn normal(shape: &[usize], seed: u64) -> Tensor {
    Tensor::random(Distribution::Normal { mean: 0.0, std: 1.0 }, shape, DType::F64, Key::new(seed)).unwrap()
}

fn positive(shape: &[usize], seed: u64) -> Tensor {
    uniform(shape, 0.3, 2.0, seed)
}

fn ints(values: &[i64], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape)
}

type Function = for<'t> fn(&[Var<'t>]) -> Var<'t>;

#[test]
fn explore() {
    let table: Vec<(&str, Function, Vec<Vec<Tensor>>)> = vec![
        ("tanh", |x| x[0].tanh(), vec![vec![normal(&[2, 3], 1)], vec![normal(&[3, 3], 1)]]),
        (
            "mul",
            |x| x[0] * x[1],
            vec![
                vec![normal(&[2, 3], 1), normal(&[3], 2)],
                vec![normal(&[3, 3], 1), normal(&[3, 3], 2)],
                vec![normal(&[3, 3], 1), normal(&[3, 1], 2)],
            ],
        ),
        (
            "sub",
            |x| x[0] - x[1],
            vec![vec![normal(&[2, 3], 1), normal(&[3], 2)], vec![normal(&[3, 3], 1), normal(&[3, 3], 2)]],
        ),
        (
            "div",
            |x| x[0] / x[1],
            vec![vec![normal(&[2, 3], 1), positive(&[3], 2)], vec![normal(&[3, 3], 1), positive(&[3, 3], 2)]],
        ),
        (
            "matmul",
            |x| x[0].matmul(x[1]),
            vec![
                vec![normal(&[2, 3], 1), normal(&[3, 4], 2)],
                vec![normal(&[3, 3], 1), normal(&[3, 3], 2)],
                vec![normal(&[2, 3, 3], 1), normal(&[3, 3], 2)],
            ],
        ),
        ("softmax", |x| x[0].softmax(1), vec![vec![normal(&[2, 3], 1)], vec![normal(&[3, 3], 1)]]),
        (
            "layer_norm",
            |x| x[0].layer_norm(x[1], x[2], 1e-3),
            vec![
                vec![normal(&[2, 4], 1), positive(&[4], 2), normal(&[4], 3)],
                vec![normal(&[4, 4], 1), positive(&[4], 2), normal(&[4], 3)],
            ],
        ),
        (
            "linear",
            |x| x[0].linear(x[1], Some(x[2]), Activation::Tanh),
            vec![
                vec![normal(&[2, 3], 1), normal(&[4, 3], 2), normal(&[4], 3)],
                vec![normal(&[3, 3], 1), normal(&[3, 3], 2), normal(&[3], 3)],
            ],
        ),
        (
            "gather",
            |x| x[0].gather(1, x[1]),
            vec![
                vec![normal(&[3, 5], 1), ints(&[4, 0, 0, 2, 1, 1], &[3, 2])],
                vec![normal(&[3, 3], 1), ints(&[2, 0, 0, 2, 1, 1, 0, 1, 2], &[3, 3])],
            ],
        ),
        (
            "scatter_add",
            |x| x[0].scatter_add(1, x[1], x[2]),
            vec![
                vec![normal(&[3, 5], 1), ints(&[4, 0, 0, 2, 1, 1], &[3, 2]), normal(&[3, 2], 2)],
                vec![normal(&[3, 3], 1), ints(&[2, 0, 0, 2, 1, 1, 0, 1, 2], &[3, 3]), normal(&[3, 3], 2)],
            ],
        ),
        ("cumsum", |x| x[0].cumsum(1), vec![vec![normal(&[2, 3], 1)], vec![normal(&[3, 3], 1)]]),
        ("logsumexp", |x| x[0].logsumexp(&[1]), vec![vec![normal(&[2, 3], 1)], vec![normal(&[3, 3], 1)]]),
        (
            "pow",
            |x| x[0].pow(x[1]),
            vec![vec![positive(&[2, 3], 1), normal(&[3], 2)], vec![positive(&[3, 3], 1), normal(&[3, 3], 2)]],
        ),
        (
            "where",
            |x| where_(x[0], x[1], x[2]),
            vec![
                vec![
                    Tensor::from_vec(vec![true, false, false, true, true, false], [2, 3]),
                    normal(&[2, 3], 1),
                    normal(&[3], 2),
                ],
                vec![
                    Tensor::from_vec(vec![true, false, false, true, true, false, true, true, false], [3, 3]),
                    normal(&[3, 3], 1),
                    normal(&[3, 3], 2),
                ],
            ],
        ),
        ("max", |x| x[0].max(&[1]), vec![vec![normal(&[2, 3], 1)], vec![normal(&[3, 3], 1)]]),
        ("prod", |x| x[0].prod(&[1]), vec![vec![normal(&[2, 5], 1)], vec![normal(&[3, 3], 1)]]),
        (
            "maximum",
            |x| x[0].maximum(x[1]),
            vec![vec![normal(&[2, 3], 1), normal(&[3], 4)], vec![normal(&[3, 3], 1), normal(&[3, 3], 3)]],
        ),
        (
            "rms_norm",
            |x| x[0].rms_norm(x[1], 1e-3),
            vec![vec![normal(&[2, 4], 1), positive(&[4], 2)], vec![normal(&[4, 4], 1), positive(&[4], 2)]],
        ),
        ("log_softmax", |x| x[0].log_softmax(1), vec![vec![normal(&[2, 3], 1)], vec![normal(&[3, 3], 1)]]),
        (
            "cross_entropy",
            |x| x[0].cross_entropy(x[1]),
            vec![vec![normal(&[3, 5], 1), ints(&[4, 0, 2], &[3])]],
        ),
        ("slice", |x| x[0].slice(1, 1, 3, 1), vec![vec![normal(&[3, 4], 1)]]),
    ];
    let table: Vec<_> = table.into_iter().chain(more()).collect();
    let mut all = Score::default();
    for (name, f, cases) in table {
        let start = std::time::Instant::now();
        let mut whole = Score::default();
        for inputs in cases {
            whole.merge(&Check::new().score(f, &inputs).unwrap_or_else(|report| panic!("{name}: {report}")));
        }
        println!("{name} {:?}: {whole}", start.elapsed());
        all.merge(&whole);
    }
    println!("{all}");
}

fn more() -> Vec<(&'static str, Function, Vec<Vec<Tensor>>)> {
    vec![
        (
            "pow at 0",
            |x| {
                x[0].pow(
                    x[0].tape().constant(&Tensor::from_vec(
                        vec![2.0, 3.0, 0.0, 1.5, 0.0, 2.0, 1.0, 2.5, 3.0],
                        [3, 3],
                    )),
                )
            },
            vec![vec![Tensor::from_vec(vec![0.0, 1.5, 0.0, 0.5, 0.7, 1.1, 0.0, 0.9, 0.0], [3, 3])]],
        ),
        (
            "0 to the",
            |x| {
                x[0].tape()
                    .constant(&Tensor::from_vec(vec![0.0, 1.5, 0.0, 0.5, 0.7, 1.1, 0.0, 0.9, 0.0], [3, 3]))
                    .pow(x[0])
            },
            vec![vec![positive(&[3, 3], 1)]],
        ),
    ]
}
