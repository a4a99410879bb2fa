//! Writes what limpid computes from a two-moons run's weights, for another framework to be compared with:
//! `grid_logits DIR` reads `DIR/{variant}.safetensors` and writes `DIR/{variant}.logits.npy`, `[441, 2]`, the logits on
//! the grid −2, −1.8 … 2 squared (first coordinate slowest) in the network's own coordinates.

use std::f64::consts::FRAC_1_SQRT_2;
use std::path::Path;

use limpid_autograd::Tape;
use limpid_nn::residual::{Connection, Gated, Identity, Plain, Scaled};
use limpid_nn::{Init, LoadRules, Mlp, MlpConfig, Module};
use limpid_tensor::{DType, Tensor, io::npy};

type Connect = fn(&Init) -> Box<dyn Connection>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("expected the folder of a run as the only argument")?;
    let config = MlpConfig::default();
    let variants: [(&str, Connect); 4] = [
        ("plain", |_| Box::new(Plain)),
        ("residual", |_| Box::new(Identity)),
        ("scaled", |_| Box::new(Scaled::new(FRAC_1_SQRT_2))),
        ("gated", |init| Box::new(Gated::new(init, MlpConfig::default().width))),
    ];
    let at = |i: usize| (i as f64 - 10.0) / 5.0;
    let grid: Vec<f64> = (0..441).flat_map(|i| [at(i / 21), at(i % 21)]).collect();
    let grid = Tensor::from_f64(&grid, [441, 2], DType::F32);
    for (name, connect) in variants {
        let mut model = Mlp::new(&Init::new(0), config, connect);
        let path = Path::new(&folder).join(format!("{name}.safetensors"));
        LoadRules::new().load_file(&mut model, path)?;
        let tape = Tape::inference();
        let logits = model.forward(tape.constant(&grid)).value()?;
        npy::save(Path::new(&folder).join(format!("{name}.logits.npy")), &logits)?;
    }
    Ok(())
}
