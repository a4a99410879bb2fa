//! What is no plan, and what is no planned program: refused with the names of both sides.

use limpid_autograd::plan::{Plan, PlanError, Policy, Select};
use limpid_autograd::{Edge, Error, Tape, Var};
use limpid_nn::residual::{Identity, Residual};
use limpid_nn::{
    Activation, BatchNorm1d, Dropout, Init, LayerNorm, Linear, Module, Parameters, Sequential, commit_updates,
};
use limpid_tensor::{DType, Tensor};

use crate::bits::{self, Bits};

fn init() -> Init {
    Init::new(2).with_dtype(DType::F64)
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F64)
}

/// `depth` residual blocks over `[batch, 4]`.
fn network<'t>(tape: &'t Tape, depth: usize, batch: usize) -> Var<'t> {
    let x = tape.variable(&ones(&[batch, 4]));
    let y = (0..depth).fold(x, |x, i| {
        let linear = Linear::new(&init().enter(i), 4, 4, Activation::Tanh);
        let branch = Sequential::new(vec![
            Box::new(LayerNorm::new(&init().enter(i), 4)),
            Box::new(linear),
            Box::new(Dropout::new(0.5)),
        ]);
        tape.scope(format_args!("blocks.{i}"), || Residual { connection: Identity, branch }.forward(x))
    });
    y.named("features").sum(&[])
}

fn plan(policy: &Policy) -> Result<Plan, PlanError> {
    let dry = Tape::dry();
    dry.plan(network(&dry, 3, 2), policy)
}

#[track_caller]
fn selects_nothing(policy: &Policy, expected: &str) {
    let error = plan(policy).expect_err("a rule selects nothing");
    assert!(matches!(error, PlanError::SelectsNothing { .. }));
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_misspelt_scope() {
    selects_nothing(
        &Policy::saving("mine").recompute(Select::scope("blocks.1/brnch")),
        "policy \"mine\": the rule \"recompute scope blocks.1/brnch\" selects no value; \
         the nearest scopes to \"blocks.1/brnch\" are \"blocks.1/branch\", \"blocks.0/branch\", \"blocks.2/branch\"",
    );
}

#[test]
fn a_misspelt_operation() {
    selects_nothing(
        &Policy::recomputing("mine").save(Select::op("layernorm")),
        "policy \"mine\": the rule \"save op layernorm\" selects no value; \
         the nearest operations to \"layernorm\" are \"layer_norm\", \"linear\", \"affine\"",
    );
}

#[test]
fn a_misspelt_name() {
    selects_nothing(
        &Policy::recomputing("mine").save(Select::name("feature")),
        "policy \"mine\": the rule \"save name feature\" selects no value; \
         the nearest names to \"feature\" are \"features\"",
    );
}

#[test]
fn an_edge_that_is_not_there() {
    selects_nothing(
        &Policy::saving("mine").recompute(Select::edge(Edge::Control)),
        "policy \"mine\": the rule \"recompute taken by a control edge\" selects no value; \
         of 20 values; edges: skip, branch",
    );
}

#[test]
fn a_rule_that_selects_leaves_alone() {
    let leaves = Select::when("leaves", |candidate| candidate.op.is_none());
    selects_nothing(
        &Policy::saving("mine").recompute(leaves),
        "policy \"mine\": the rule \"recompute leaves\" selects no value; what it selects are leaves, or views, which go by what they show",
    );
}

#[test]
fn a_predicate_within_a_scope_that_is_there() {
    let select = Select::scope("blocks.1").and(Select::op("softmax")).or(Select::scope("block.9"));
    selects_nothing(
        &Policy::saving("mine").recompute(select),
        "policy \"mine\": the rule \"recompute scope blocks.1 and op softmax or scope block.9\" selects no value; \
         the nearest operations to \"softmax\" are \"sum\", \"affine\", \"linear\"; \
         the nearest scopes to \"block.9\" are \"blocks.0\", \"blocks.1\", \"blocks.2\"",
    );
}

#[test]
fn a_preset_that_does_not_apply() {
    let dry = Tape::dry();
    let chain = dry.variable(&ones(&[3])).sin().exp().sum(&[]);
    let error = dry.plan(chain, &Policy::connections(2)).unwrap_err().to_string();
    assert!(error.ends_with("selects no value; of 4 values; edges: none is marked"), "{error}");
}

/// A layer with statistics, on a batch of three.
fn normalised<'t>(model: &BatchNorm1d, tape: &'t Tape) -> Var<'t> {
    let x = Tensor::linspace(0.0, 1.0, 6, DType::F64).reshape([3, 2]).unwrap();
    let y = tape.scope("norm", || model.forward(tape.variable(&x)));
    let y = tape.scope("again", || model.forward(y.sin()));
    (y * y * y).sum(&[])
}

#[test]
fn an_effect_is_not_repeated() {
    let model = BatchNorm1d::new(&init(), 2);
    let dry = Tape::dry();
    let loss = normalised(&model, &dry);
    let policy = Policy::saving("mine").recompute(Select::op("update"));
    let error = dry.plan(loss, &policy).unwrap_err();
    let update = (0..dry.len()).map(|i| dry.at(i)).find(|var| var.site().op == "update").unwrap();
    assert_eq!(update.site().scope, "norm");
    assert_eq!(
        error.to_string(),
        format!(
            "{}: it cannot be computed again (recompute op update), because it is an effect and happens once; save it",
            update.site()
        )
    );
    // The rule need not name it.
    let everything = Policy::saving("mine").recompute(Select::scope("**"));
    assert!(matches!(dry.plan(loss, &everything), Err(PlanError::Effect { .. })));
}

#[test]
fn statistics_are_updated_once_whatever_is_computed_again() {
    let run = |planned: bool| {
        let mut model = BatchNorm1d::new(&init(), 2);
        let dry = Tape::dry();
        let plan = dry.plan(normalised(&model, &dry), &Policy::nothing()).unwrap();
        let tape = if planned { Tape::new().with_plan(&plan) } else { Tape::new() };
        let gradients = tape.backward(normalised(&model, &tape)).unwrap();
        if planned {
            assert_eq!(tape.receipt().unwrap().differences(&plan), Vec::<String>::new());
            assert!(plan.totals().recomputed > 10);
        }
        commit_updates(&tape, &mut model);
        assert_eq!(model.num_batches_tracked.value().item().unwrap(), 2.0, "the layer is used twice");
        let values: Vec<Bits> = model.parameters().into_iter().map(|p| Bits::of(p.value())).collect();
        (values, bits::gradients(&model, &gradients))
    };
    assert_eq!(run(true), run(false));
}

#[track_caller]
fn off_plan<'t>(tape: &'t Tape, loss: Var<'t>) -> String {
    let error = tape.backward(loss).expect_err("it is another program");
    assert!(matches!(error, Error::OffPlan { .. }), "{error}");
    assert_eq!(loss.value().unwrap_err().to_string(), error.to_string());
    assert!(tape.receipt().is_none());
    error.to_string()
}

/// The message: what was recorded, what was planned.
#[track_caller]
fn parts(message: &str) -> (&str, &str) {
    message.split_once(": the plan has another program: ").expect("it names both")
}

#[test]
fn a_network_of_another_depth() {
    let plan = plan(&Policy::nothing()).unwrap();
    let message = |depth| {
        let tape = Tape::new().with_plan(&plan);
        off_plan(&tape, network(&tape, depth, 2))
    };
    let fewer = message(2);
    let (found, expected) = parts(&fewer);
    assert!(found.starts_with(&format!("sum at {}:", file!())), "{fewer}");
    assert!(expected.contains(" is 2.weight() of f64[4], 2.weight in blocks.2/branch/0 at "), "{fewer}");
    let more = message(4);
    let (found, expected) = parts(&more);
    assert!(found.starts_with("3.weight in blocks.3/branch/0 at "), "{more}");
    assert!(expected.contains(&format!(") of f64[1, 1], sum at {}:", file!())), "{more}");
}

#[test]
fn a_batch_of_another_size() {
    let plan = plan(&Policy::nothing()).unwrap();
    let tape = Tape::new().with_plan(&plan);
    let message = off_plan(&tape, network(&tape, 3, 5));
    let (found, expected) = parts(&message);
    assert!(
        found.starts_with("leaf at ") && expected.starts_with("%0 is leaf() of f64[2, 4], leaf at "),
        "{message}"
    );
}

#[test]
fn evaluation_instead_of_training() {
    let plan = plan(&Policy::nothing()).unwrap();
    let tape = Tape::new().with_training(false).with_plan(&plan);
    let message = off_plan(&tape, network(&tape, 3, 2));
    assert!(
        parts(&message)
            .1
            .contains("bernoulli() of bool[2, 4] without a gradient, bernoulli in blocks.0/branch/2 at "),
        "{message}"
    );
}

#[test]
fn a_weight_that_has_been_thawed() {
    let mut model = Sequential::new(vec![
        Box::new(Linear::new(&init().enter("first"), 4, 4, Activation::Tanh)),
        Box::new(Linear::new(&init().enter("second"), 4, 4, Activation::Tanh)),
    ]);
    let loss =
        |model: &Sequential, tape: &Tape| model.forward(tape.constant(&ones(&[2, 4]))).sum(&[]).index();
    model.set_frozen("first.*", true).unwrap();
    let dry = Tape::dry();
    let plan = dry.plan(dry.at(loss(&model, &dry)), &Policy::nothing()).unwrap();
    model.set_frozen("first.*", false).unwrap();
    let tape = Tape::new().with_plan(&plan);
    let message = off_plan(&tape, tape.at(loss(&model, &tape)));
    let (found, expected) = parts(&message);
    assert!(found.starts_with("first.weight in 0 at "), "{message}");
    assert!(
        expected.starts_with("%1 is first.weight() of f64[4, 4] without a gradient, first.weight in 0 at "),
        "{message}"
    );
}

#[test]
fn a_program_that_ends_early_follows_no_plan_to_its_end() {
    let dry = Tape::dry();
    let x = dry.variable(&ones(&[]));
    let plan = dry.plan(x.sin().exp().tanh(), &Policy::nothing()).unwrap();
    let tape = Tape::new().with_plan(&plan);
    let x = tape.variable(&ones(&[]));
    let gradients = tape.backward(x.sin().exp()).unwrap();
    let unplanned = Tape::new();
    let y = unplanned.variable(&ones(&[]));
    let expected = unplanned.backward(y.sin().exp()).unwrap();
    assert_eq!(Bits::of(gradients.of(x).unwrap()), Bits::of(expected.of(y).unwrap()));
    assert!(tape.receipt().is_none());
}
