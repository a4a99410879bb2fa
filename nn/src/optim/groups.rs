//! Which weights are treated how.

use std::collections::BTreeMap;

use crate::module::matches;
use crate::{Error, Parameters, Result, Role};
use limpid_autograd::glob::nearest;

/// How an optimiser treats a weight.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Group {
    /// λ in the optimiser's formula.
    pub weight_decay: f64,
    /// The learning rate of the step is multiplied by this.
    pub rate_scale: f64,
}

impl Default for Group {
    /// No decay, the rate as it is.
    fn default() -> Group {
        Group { weight_decay: 0.0, rate_scale: 1.0 }
    }
}

/// Which weights are treated how: patterns over their paths, of which the first that matches decides, and a default
/// for those that none matches. `*` stands for any run of characters, dots among them. The default's decay leaves out
/// what is made [without it](crate::Parameter::without_decay), such as the coefficients of a connection.
///
/// ```
/// use limpid_nn::optim::{Adam, Group, Groups};
/// let plain = Group::default();
/// let groups = Groups::new(Group { weight_decay: 0.01, ..plain })
///     .with("*.bias", plain)
///     .with("layers.*.gate.*", Group { rate_scale: 0.1, ..plain });
/// let optimizer = Adam::adamw().with_groups(groups);
/// ```
///
/// Weights are kept from learning altogether by [`Parameters::set_frozen`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Groups {
    default: Group,
    patterns: Vec<(String, Group)>,
    missing_allowed: bool,
}

impl Groups {
    /// Every weight is treated alike.
    pub fn new(default: Group) -> Groups {
        Groups { default, ..Groups::default() }
    }

    /// Adds a pattern, to be asked after those before it.
    pub fn with(mut self, pattern: impl Into<String>, group: Group) -> Groups {
        self.patterns.push((pattern.into(), group));
        self
    }

    /// Leaves a trainable weight without a gradient as it is, where that would be an error: for a loss that is meant
    /// to reach a part of the model only.
    pub fn allow_missing_gradients(mut self) -> Groups {
        self.missing_allowed = true;
        self
    }

    pub(super) fn missing_allowed(&self) -> bool {
        self.missing_allowed
    }

    /// The group of every weight, frozen ones among them: freezing one must not turn a pattern into an error.
    #[track_caller]
    pub(super) fn resolve(&self, model: &dyn Parameters) -> Result<BTreeMap<String, Group>> {
        let defaults = [("default", &self.default)];
        for (name, group) in self.patterns.iter().map(|(p, g)| (p.as_str(), g)).chain(defaults) {
            for (what, value) in [("weight decay", group.weight_decay), ("rate scale", group.rate_scale)] {
                if !(value >= 0.0 && value.is_finite()) {
                    let found = format!("{value} for parameter group {name}");
                    return Err(Error::argument(what, "a finite number from 0", found));
                }
            }
        }
        let weights = || model.parameters().into_iter().filter(|p| p.role() == Role::Weight);
        let mut groups = BTreeMap::new();
        let mut used = vec![false; self.patterns.len()];
        for weight in weights() {
            let first = self.patterns.iter().position(|(pattern, _)| matches(pattern, weight.path()));
            let weight_decay = if weight.decays() { self.default.weight_decay } else { 0.0 };
            let group = first.map_or(Group { weight_decay, ..self.default }, |i| self.patterns[i].1);
            if let Some(i) = first {
                used[i] = true;
            }
            let twice = groups.insert(weight.path().to_owned(), group);
            assert!(
                twice.is_none(),
                "two weights have the path {}: what is remembered of them would mix",
                weight.path()
            );
        }
        let Some(unused) = used.iter().position(|used| !used) else { return Ok(groups) };
        let pattern = &self.patterns[unused].0;
        let (expected, found) = match weights().any(|weight| matches(pattern, weight.path())) {
            true => (
                "a pattern that takes a weight".to_owned(),
                format!("{pattern}, all of whose weights an earlier pattern takes"),
            ),
            false => {
                let near = nearest(pattern, weights().map(|weight| weight.path()));
                (format!("a pattern that matches a weight, such as {}", near.join(", ")), pattern.clone())
            }
        };
        Err(Error::argument("parameter group", expected, found))
    }
}

#[cfg(test)]
mod tests {
    use limpid_tensor::{DType, Tensor};

    use super::*;
    use crate::Parameter;

    struct Weights(Vec<Parameter>);

    impl Parameters for Weights {
        fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
            self.0.iter().for_each(f)
        }
        fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
            self.0.iter_mut().for_each(f)
        }
    }

    fn model() -> Weights {
        let parameter = |path: &str, role| Parameter::new(path, Tensor::zeros([1], DType::F32), role);
        let paths = ["layers.0.weight", "layers.0.bias", "layers.0.gate.bias", "head.weight"];
        let weights = paths.into_iter().map(|path| parameter(path, Role::Weight));
        Weights(weights.chain([parameter("norm.mean", Role::Buffer)]).collect())
    }

    fn decay(weight_decay: f64) -> Group {
        Group { weight_decay, ..Group::default() }
    }

    #[test]
    fn the_first_pattern_that_matches_decides() {
        let groups = Groups::new(decay(1.0)).with("*.gate.*", decay(2.0)).with("*.bias", decay(3.0));
        let found = groups.resolve(&model()).unwrap();
        let decays: Vec<_> = found.iter().map(|(path, group)| (path.as_str(), group.weight_decay)).collect();
        let expected = [
            ("head.weight", 1.0),
            ("layers.0.bias", 3.0),
            ("layers.0.gate.bias", 2.0),
            ("layers.0.weight", 1.0),
        ];
        assert_eq!(decays, expected);
    }

    #[test]
    fn a_pattern_that_takes_nothing_is_an_error() {
        let error = |groups: Groups| groups.resolve(&model()).unwrap_err().to_string();
        assert_eq!(
            error(Groups::default().with("layer.*.bias", decay(0.0))),
            "parameter group: expected a pattern that matches a weight, such as layers.0.bias, layers.0.gate.bias, \
             layers.0.weight, found layer.*.bias"
        );
        assert_eq!(
            error(Groups::default().with("*.bias", decay(0.0)).with("*.gate.*", decay(1.0))),
            "parameter group: expected a pattern that takes a weight, found *.gate.*, all of whose weights an earlier \
             pattern takes"
        );
        assert!(
            error(Groups::default().with("norm.*", decay(0.0))).ends_with("found norm.*"),
            "buffers have no group"
        );
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            let found = format!("expected a finite number from 0, found {bad} for parameter group default");
            assert_eq!(error(Groups::new(decay(bad))), format!("weight decay: {found}"));
        }
    }

    #[test]
    fn freezing_a_weight_does_not_empty_its_pattern() {
        let mut model = model();
        model.set_frozen("head.*", true).unwrap();
        assert!(Groups::default().with("head.*", decay(0.0)).resolve(&model).is_ok());
    }

    #[test]
    #[should_panic(expected = "two weights have the path layers.0.weight")]
    fn paths_are_unique() {
        let mut model = model();
        model.0.push(model.0[0].clone());
        let _ = Groups::default().resolve(&model);
    }
}
