//! Tensors of other programs find their places in a model, or it is said why not.

use std::collections::BTreeMap;

use limpid_nn::{Error, LoadRules, Parameters, save_weights, state_dict};
use limpid_tensor::{DType, Tensor};

use crate::mlp::Mlp;

/// The model's tensors under their own names.
fn tensors(model: &Mlp) -> BTreeMap<String, Tensor> {
    state_dict(model).into_iter().collect()
}

fn renamed(tensors: BTreeMap<String, Tensor>, name: impl Fn(&str) -> String) -> BTreeMap<String, Tensor> {
    tensors.into_iter().map(|(path, x)| (name(&path), x)).collect()
}

#[test]
fn a_state_dict_is_in_the_order_of_the_model_and_loads_into_another() {
    let (source, mut target) = (Mlp::new(DType::F32, 1), Mlp::new(DType::F32, 2));
    let names: Vec<String> = state_dict(&source).into_iter().map(|(name, _)| name).collect();
    let expected = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "norm.mean"];
    assert_eq!(names, expected);
    let report = LoadRules::new().load(&mut target, &tensors(&source)).unwrap();
    assert_eq!(report.loaded, expected);
    assert!(report.is_complete());
    assert_eq!(report.to_string(), "5 tensors loaded");
    assert_eq!(target.bits(), source.bits());
}

#[test]
fn weights_go_through_a_file() {
    let path = std::env::temp_dir().join(format!("limpid-{}-weights.safetensors", std::process::id()));
    let (source, mut target) = (Mlp::new(DType::F64, 1), Mlp::new(DType::F64, 2));
    save_weights(&path, &source, &[("width".to_string(), "8".to_string())].into()).unwrap();
    LoadRules::new().load_file(&mut target, &path).unwrap();
    assert_eq!(target.bits(), source.bits());
    assert_eq!(limpid_tensor::io::safetensors::load(&path).unwrap().metadata["width"], "8");

    let error = LoadRules::new().load_file(&mut Mlp::new(DType::F32, 2), &path).unwrap_err().to_string();
    let start = format!(
        "{}: 0 tensors loaded; layers.0.weight: expected f32[2, 8], found f64[2, 8]; ",
        path.display()
    );
    assert!(error.starts_with(&start), "{error}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn names_are_stripped_renamed_transposed_and_cast() {
    let (source, mut target) = (Mlp::new(DType::F64, 1), Mlp::new(DType::F32, 2));
    let mut foreign = renamed(tensors(&source), |path| match path.strip_prefix("layers.") {
        Some(rest) => format!("module.net.{}", rest.replace("weight", "w").replace("bias", "b")),
        None => "running".into(), // without the prefix
    });
    for name in ["module.net.0.w", "module.net.1.w"] {
        let transposed = foreign[name].transpose(0, 1);
        foreign.insert(name.into(), transposed);
    }
    let rules = LoadRules::new()
        .strip_prefix("module.")
        .rename("net.{}.w", "layers.{}.weight")
        .rename("net.{}.{}", "layers.{}.{}ias")
        .rename("running", "norm.mean")
        .transpose("*.weight")
        .allow_cast();
    let report = rules.load(&mut target, &foreign).unwrap();
    assert_eq!(report.loaded.len(), 5);
    let rounded: Vec<u64> =
        source.bits().into_iter().map(|b| f64::from(f64::from_bits(b) as f32).to_bits()).collect();
    assert_eq!(target.bits(), rounded);
}

#[test]
fn strict_loading_lists_everything_and_changes_nothing() {
    let (source, mut target) = (Mlp::new(DType::F32, 1), Mlp::new(DType::F32, 2));
    let mut foreign = tensors(&source);
    foreign.remove("layers.0.bias");
    foreign.insert("head".into(), Tensor::scalar(1.0f32));
    foreign.insert("layers.1.weight".into(), Tensor::zeros([8], DType::F32));
    foreign.insert("norm.mean".into(), Tensor::scalar(0i64));
    let before = target.bits();
    let error = LoadRules::new().load(&mut target, &foreign).unwrap_err();
    let expected = "2 tensors loaded; missing: layers.0.bias; unexpected: head; layers.1.weight: expected f32[8, 1], \
                    found f32[8]; norm.mean: expected f32[], found i64[]";
    assert_eq!(error.to_string(), format!("state dict: {expected}"));
    assert!(matches!(error, Error::Load { .. }));
    assert_eq!(target.bits(), before);
    let error = LoadRules::new().allow_cast().load(&mut target, &foreign).unwrap_err().to_string();
    assert!(error.contains("norm.mean: expected f32[], found i64[]"), "integers are not cast: {error}");

    let report = LoadRules::new().lenient().load(&mut target, &foreign).unwrap();
    assert_eq!(report.to_string(), expected);
    let same = |path: &str| {
        target.get(path).value().to_f64_vec().unwrap() == source.get(path).value().to_f64_vec().unwrap()
    };
    let loaded: Vec<&str> =
        target.parameters().into_iter().map(|p| p.path()).filter(|path| same(path)).collect();
    assert_eq!(loaded, ["layers.0.weight", "layers.1.bias", "norm.mean"], "norm.mean is 0 in both");
}

#[test]
fn rules_that_apply_to_nothing_are_errors_with_what_is_near() {
    let (source, mut target) = (Mlp::new(DType::F32, 1), Mlp::new(DType::F32, 2));
    let mut message = |rules: LoadRules, foreign| rules.load(&mut target, &foreign).unwrap_err().to_string();
    let near = "such as layers.0.weight, layers.1.weight";
    let found = message(LoadRules::new().rename("layer.{}.weight", "layers.{}.weight"), tensors(&source));
    assert!(found.starts_with(&format!("rename: expected a pattern that takes a name, {near}")), "{found}");
    assert!(found.ends_with("found layer.{}.weight"), "{found}");
    let found = message(LoadRules::new().transpose("layer.*.weight"), tensors(&source));
    assert!(
        found.starts_with(&format!("transpose: expected a pattern that matches a parameter, {near}")),
        "{found}"
    );
    let found = message(LoadRules::new().strip_prefix("laiers."), tensors(&source));
    assert!(found.starts_with("strip_prefix: expected a prefix of a name, such as layers."), "{found}");

    let twice =
        renamed(tensors(&source), |path| path.replace("layers.0.bias", "b").replace("norm.mean", "c"));
    let found = message(LoadRules::new().rename("b", "x").rename("c", "x"), twice);
    assert_eq!(found, "rename: expected one tensor for each name, found b and c for x");
}

#[test]
#[should_panic(expected = "rename: a.{}.b has 1 {}, c.{}.{} has 2")]
fn both_sides_of_a_renaming_have_as_many_holes() {
    let _ = LoadRules::new().rename("a.{}.b", "c.{}.{}");
}
