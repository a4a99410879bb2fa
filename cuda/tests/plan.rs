//! What a plan of recomputation launches: the states behind several blocks come back in one pass over them.

mod emulated;

use std::sync::{Arc, Mutex};

use emulated::{device, findings, is_card, stand_in};
use limpid_autograd::plan::{Policy, Step};
use limpid_autograd::{Tape, Var};
use limpid_nn::{Init, Mlp, MlpConfig, Module, Parameters, residual::Variant, residual::VariantConfig};
use limpid_tensor::{DType, Device, Tensor};

/// Six blocks of mHC with four streams of eight channels.
fn network(on: &Device) -> Mlp {
    let config = MlpConfig { depth: 8, width: 8, ..MlpConfig::default() };
    let mut model = Mlp::of_variant(&Init::new(3), config, Variant::Mhc, &VariantConfig::default()).unwrap();
    model.move_to(on).unwrap();
    model
}

fn loss<'t>(tape: &'t Tape, model: &Mlp, points: &Tensor) -> Var<'t> {
    let y = model.forward(tape.constant(points));
    (y * y).mean(&[])
}

/// The bits of every parameter's gradient.
fn gradients(tape: &Tape, model: &Mlp, points: &Tensor) -> Vec<Vec<u32>> {
    let gradients = tape.backward(loss(tape, model, points)).unwrap();
    let bits = |x: &Tensor| x.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    model.parameters().into_iter().map(|p| bits(gradients.of_parameter(p.id()).unwrap())).collect()
}

/// One state in four is kept, of the seven before, between and behind six blocks: the last two come back together, and later
/// three. Each is compared with the hash of what was dropped, and the device's bytes with the plan's.
#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn states_behind_several_blocks_come_back_in_one_launch() {
    let on = device();
    let model = network(&on);
    let numbers: Vec<f64> = (0..2 * 16).map(|i| (f64::from(i) * 0.37).sin() * 2.0).collect();
    let points = Tensor::from_f64(&numbers, [16, 2], DType::F32).to(&on).unwrap();
    let expected = gradients(&Tape::new().with_device(on.clone()), &model, &points);
    assert!(expected.iter().flatten().any(|&bits| f32::from_bits(bits) != 0.0));
    for policy in [Policy::connections(4), Policy::connections(4).one_by_one()] {
        let dry = Tape::dry().with_device(on.clone());
        let plan = dry.plan(loss(&dry, &model, &points), &policy).unwrap();
        let written = |step: Step| plan.site(step.node()).op == "stream_write";
        let again = plan.moments().iter().map(|moment| moment.step);
        let again = again.filter(|&step| matches!(step, Step::Recompute(_)) && written(step)).count();
        assert_eq!(again, 5);

        let launches: Arc<Mutex<Vec<String>>> = Arc::default();
        if !is_card() {
            let seen = launches.clone();
            stand_in().observe(move |launched| {
                seen.lock().expect("nobody panics with it").push(launched.kernel.to_string());
            });
        }
        let tape = Tape::new().with_device(on.clone()).with_plan(&plan);
        assert_eq!(gradients(&tape, &model, &points), expected, "other bits than without a plan");
        let receipt = tape.receipt().unwrap();
        assert_eq!(receipt.differences(&plan), [""; 0]);
        assert!(receipt.verified.values >= again, "{receipt}");
        assert_eq!(findings(), [""; 0]);
        if is_card() {
            continue;
        }
        stand_in().stop_observing();
        let launches = launches.lock().expect("nobody panics with it");
        let count = |kernel: &str| launches.iter().filter(|name| *name == kernel).count();
        let [together, alone] = ["connection_recompute_4_f32", "connection_write_4_f32"].map(count);
        assert_eq!((together, alone), (2, 6), "of two and of three, and six forward");
    }
}
