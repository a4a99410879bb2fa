//! Wrong derivatives, many of which shipped in public code: each is caught, and `docs/specimens.md` shows the message.

use std::fmt;

use limpid_autograd::{Cotangents, Needs, Op, Pullback, Pushforward, Tape, Var};
use limpid_tensor::{Inferred, Meta, Result, Tensor};

use super::*;

mod everyday;
mod shipped;
mod sinkhorn;

/// A function, with a rule that somebody wrote for it.
struct Specimen {
    name: &'static str,
    function: Function,
    needs: fn(&[bool]) -> Needs,
    vjp: for<'a, 't> fn(&Pullback<'a, 't>) -> Cotangents<'t>,
}

impl fmt::Debug for Specimen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}()", self.name)
    }
}

impl Op for Specimen {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let tape = Tape::dry();
        let x: Vec<Var> = x.iter().map(|m| tape.constant(&Tensor::zeros(&m.shape, m.dtype))).collect();
        Ok((self.function)(&x).meta())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        let tape = Tape::inference();
        let x: Vec<Var> = x.iter().map(|x| tape.constant(x)).collect();
        Ok((self.function)(&x).value().expect("the specimens compute"))
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        (self.needs)(tracked)
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        (self.vjp)(at)
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        let x: Vec<Var> = (0..at.arity()).map(|i| at.x(i)).collect();
        at.through((self.function)(&x))
    }
}

/// A program with something wrong in it, and what must be said of it.
struct Exhibit {
    /// What the page calls it.
    name: &'static str,
    inputs: Vec<Tensor>,
    program: Function,
    /// How the message begins: with the verdict, and the operation to blame.
    verdict: &'static str,
    /// What else it says.
    says: &'static [&'static str],
}

impl Exhibit {
    fn message(&self) -> String {
        check(self.program, &self.inputs).to_string()
    }
}

#[track_caller]
fn alone<'t>(x: &[Var<'t>], specimen: Specimen) -> Var<'t> {
    x[0].tape().record(specimen, x)
}

/// Numbers that are short to print.
fn short(shape: &[usize], seed: u64) -> Tensor {
    let numbers = normal(shape, seed).to_f64_vec().unwrap();
    Tensor::from_vec(numbers.iter().map(|x| (x * 100.0).round() / 100.0).collect::<Vec<f64>>(), shape)
}

fn exhibits() -> impl Iterator<Item = Exhibit> {
    [everyday::exhibits(), sinkhorn::exhibits(), shipped::exhibits()].into_iter().flatten()
}

/// What is said of one of them.
pub fn message(name: &str) -> String {
    let exhibit = exhibits().find(|exhibit| exhibit.name == name);
    exhibit.unwrap_or_else(|| panic!("there is no specimen {name:?}")).message()
}

#[test]
fn each_is_caught_and_the_page_shows_how() {
    let (mut printed, mut wrong) = (Vec::new(), Vec::new());
    for exhibit in exhibits() {
        let message = exhibit.message();
        let mut missing: Vec<&str> =
            exhibit.says.iter().copied().filter(|expected| !message.contains(expected)).collect();
        missing.extend((!message.starts_with(exhibit.verdict)).then_some(exhibit.verdict));
        if !missing.is_empty() {
            wrong.push(format!("{}: expected {missing:?} in\n{message}", exhibit.name));
        }
        printed.push((exhibit.name, message));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    printed.push(("variances", shipped::variances()));
    page::compare("specimens.md", &printed);
}
