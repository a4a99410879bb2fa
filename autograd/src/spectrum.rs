//! How much of a gradient crosses how many branches?
//!
//! Graded backpropagation: the cotangent is a polynomial in z and w. A branch edge multiplies it by z, a control edge by w,
//! skip and interior edges leave it. The coefficient of `z^k·w^j` is then the exact gradient through all paths that cross
//! k branches and j coefficients: in a residual network of L blocks all `C(L, k)` of them at once. (A. Veit,
//! M. Wilber and S. Belongie, *Residual Networks Behave Like Ensembles of Relatively Shallow Networks*, arXiv 1605.06431,
//! sampled such paths.)

use std::collections::BTreeMap;
use std::fmt;

use limpid_tensor::{Meta, Tensor};
use smallvec::SmallVec;

use crate::backward::{Flow, Paths};
use crate::cotangent::{Cotangent, Load, Loads, Pending, Pulled};
use crate::error::Result;
use crate::part::Part;
use crate::tape::Tape;
use crate::var::{Edge, Var};

/// Which paths a [spectrum](Tape::spectrum) tells apart.
///
/// A pass holds one cotangent for each degree that occurs: at most `L + 1` of a value above L branches if only branches are
/// counted, `(L + 1)²` if controls are counted too, and each runs the rules again. Degrees above a cap share one
/// coefficient, so a cap of K bounds this by K + 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grading {
    branches: Option<usize>,
    controls: Option<usize>,
}

impl Grading {
    /// By the number of branches; controls are not counted.
    pub const BRANCHES: Grading = Grading { branches: Some(usize::MAX - 1), controls: None };
    /// By the number of controls; branches are not counted.
    pub const CONTROLS: Grading = Grading { branches: None, controls: Some(usize::MAX - 1) };
    /// By both.
    pub const BOTH: Grading = Grading { branches: Some(usize::MAX - 1), controls: Some(usize::MAX - 1) };

    /// The same with one shared coefficient for all that cross more than `cap` branches, if they are counted.
    pub fn branches_up_to(self, cap: usize) -> Grading {
        Grading { branches: self.branches.map(|earlier| earlier.min(cap)), ..self }
    }

    /// The same with one shared coefficient for all that cross more than `cap` controls, if they are counted.
    pub fn controls_up_to(self, cap: usize) -> Grading {
        Grading { controls: self.controls.map(|earlier| earlier.min(cap)), ..self }
    }

    /// The coefficient to which a term of coefficient `from` belongs behind `edge`.
    fn behind(self, from: Bucket, edge: Edge) -> Bucket {
        let raised = |bucket: usize, cap: Option<usize>| cap.map_or(0, |cap| (bucket + 1).min(cap + 1));
        match edge {
            Edge::Interior | Edge::Skip => from,
            Edge::Branch => Bucket { branches: raised(from.branches, self.branches), ..from },
            Edge::Control => Bucket { controls: raised(from.controls, self.controls), ..from },
        }
    }
}

/// How often a path crosses edges of one kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Degree {
    /// As often as this.
    Exactly(usize),
    /// More often than the cap that was chosen.
    MoreThan(usize),
    /// It was not counted.
    Any,
}

impl Degree {
    fn of(bucket: usize, cap: Option<usize>) -> Degree {
        match cap {
            None => Degree::Any,
            Some(cap) if bucket > cap => Degree::MoreThan(cap),
            Some(_) => Degree::Exactly(bucket),
        }
    }
}

impl fmt::Display for Degree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Degree::Exactly(k) => f.pad(&k.to_string()),
            Degree::MoreThan(k) => f.pad(&format!(">{k}")),
            Degree::Any => f.pad("any"),
        }
    }
}

/// One coefficient: the gradient through all paths of its degree.
#[derive(Clone, Debug)]
pub struct Term {
    /// How many branches these paths cross.
    pub branches: Degree,
    /// How many controls.
    pub controls: Degree,
    /// Of the value's shape and dtype.
    pub gradient: Tensor,
    /// How much of the whole gradient it is.
    pub part: Part,
}

/// The gradient of one value, told apart by the paths it takes: from [`Tape::spectrum`].
///
/// It decomposes the gradient at the point where the program ran, that is, its linearisation there; it does not say what
/// would become of the network without a branch.
#[derive(Clone, Debug)]
pub struct Spectrum {
    /// The coefficients, in order of degree; those that no path has are left out.
    pub terms: Vec<Term>,
    meta: Meta,
}

impl Spectrum {
    /// The coefficient of these degrees, if a path has them.
    pub fn term(&self, branches: Degree, controls: Degree) -> Option<&Term> {
        self.terms.iter().find(|term| term.branches == branches && term.controls == controls)
    }

    /// The sum of all coefficients in f64, row-major: the gradient.
    ///
    /// # Errors
    /// If a device could not hand out a coefficient.
    pub fn sum(&self) -> limpid_tensor::Result<Vec<f64>> {
        let mut sum = vec![0.0; self.meta.shape.elements()];
        for term in &self.terms {
            sum.iter_mut().zip(term.gradient.to_f64_vec()?).for_each(|(sum, v)| *sum += v);
        }
        Ok(sum)
    }
}

/// A line per coefficient.
impl fmt::Display for Spectrum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "branches controls  gradient through all paths that cross so many ({})", self.meta)?;
        for term in &self.terms {
            writeln!(f, "{:>8} {:>8}  {}", term.branches, term.controls, term.part)?;
        }
        Ok(())
    }
}

impl Tape {
    /// The gradient of a scalar by each of `xs`, told apart by how many branches, and controls, its paths cross. `xs` may
    /// be any values: parameters, the input, the stream before each layer.
    ///
    /// ```
    /// use limpid_autograd::{Degree, Grading, Tape};
    /// use limpid_tensor::Tensor;
    /// // Five blocks x + F(x) with F' = 0.1. The gradient is 1.1⁵, of which 1 crosses no branch ("1 + 0.1" would stop
    /// // after one branch), 5·0.1 one, 10·0.01 two, and so on.
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::scalar(1.0f64));
    /// let y = (0..5).fold(x, |x, _| x.skip() + (x * 0.1).branch());
    /// let spectrum = &tape.spectrum(y, &[x], Grading::BRANCHES)?[0];
    /// for (k, expected) in [1.0, 0.5, 0.1, 0.01, 0.0005, 0.00001].into_iter().enumerate() {
    ///     let term = spectrum.term(Degree::Exactly(k), Degree::Any).unwrap();
    ///     assert!((term.gradient.item()? - expected).abs() < 1e-15);
    /// }
    /// assert!((spectrum.sum()?[0] - 1.61051).abs() < 1e-15);
    /// // Without skip paths all there is crosses five branches: 0.1⁵.
    /// let y = (0..5).fold(x, |x, _| (x * 0.1).branch() * 1.0);
    /// let plain = &tape.spectrum(y, &[x], Grading::BRANCHES)?[0];
    /// assert_eq!((plain.terms.len(), plain.terms[0].branches), (1, Degree::Exactly(5)));
    /// assert!((plain.terms[0].gradient.item()? - 1e-5).abs() < 1e-19);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If `y` does not have exactly one element.
    #[track_caller]
    pub fn spectrum<'t>(&'t self, y: Var<'t>, xs: &[Var<'t>], grading: Grading) -> Result<Vec<Spectrum>> {
        self.expect_scalar("spectrum", y);
        self.spectrum_of_vjp(y, &self.value_like(y, 1.0)?, xs, grading)
    }

    /// [`spectrum`](Tape::spectrum) of `gᵀ·∂y/∂x`.
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If `g` does not have `y`'s shape and dtype.
    #[track_caller]
    pub fn spectrum_of_vjp<'t>(
        &'t self,
        y: Var<'t>,
        g: &Tensor,
        xs: &[Var<'t>],
        grading: Grading,
    ) -> Result<Vec<Spectrum>> {
        self.expect_cotangent("spectrum", y, &g.meta());
        let first = (Bucket::default(), Cotangent::of(g.clone()));
        let seed = Graded { coefficients: BTreeMap::from([first]), grading };
        let found = self.carry(y, seed, xs, Paths::All)?;
        xs.iter().zip(found).map(|(&x, graded)| self.spectrum_from(x, graded)).collect()
    }

    fn spectrum_from(&self, x: Var<'_>, graded: Option<Graded<'_>>) -> Result<Spectrum> {
        let meta = self.meta(x);
        let mut spectrum = Spectrum { terms: Vec::new(), meta };
        let Some(Graded { coefficients, grading }) = graded else { return Ok(spectrum) };
        let mut total = vec![0.0; spectrum.meta.shape.elements()];
        let mut numbers = Vec::new();
        for cotangent in coefficients.values() {
            let values = self.numbers(x.id, cotangent)?;
            total.iter_mut().zip(&values).for_each(|(total, value)| *total += value);
            numbers.push(values);
        }
        for ((bucket, cotangent), values) in coefficients.into_iter().zip(numbers) {
            let Some(gradient) = cotangent.into_value() else { continue };
            spectrum.terms.push(Term {
                branches: Degree::of(bucket.branches, grading.branches),
                controls: Degree::of(bucket.controls, grading.controls),
                gradient,
                part: Part::of(&values, &total),
            });
        }
        Ok(spectrum)
    }
}

/// A coefficient's place: the degrees, those above a cap as one more than it, those not counted as 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Bucket {
    branches: usize,
    controls: usize,
}

/// A cotangent as a polynomial.
#[derive(Clone)]
struct Graded<'t> {
    coefficients: BTreeMap<Bucket, Cotangent<'t>>,
    grading: Grading,
}

impl<'t> Graded<'t> {
    fn add(&mut self, tape: &'t Tape, bucket: Bucket, cotangent: Cotangent<'t>) -> Result<()> {
        let sum = match self.coefficients.remove(&bucket) {
            Some(earlier) => tape.add(earlier, cotangent)?,
            None => cotangent,
        };
        self.coefficients.insert(bucket, sum);
        Ok(())
    }
}

impl<'t> Load<'t> for Graded<'t> {
    fn plus(mut self, other: Self, tape: &'t Tape) -> Result<Self> {
        for (bucket, cotangent) in other.coefficients {
            self.add(tape, bucket, cotangent)?;
        }
        Ok(self)
    }

    fn arrived(mut self, tape: &'t Tape, id: u32) -> Result<Self> {
        for cotangent in self.coefficients.values_mut() {
            *cotangent = tape.narrowed(cotangent.clone(), id)?;
        }
        Ok(self)
    }

    /// The rule is linear in the cotangent, so it takes the coefficients one by one.
    fn pulled(
        self,
        tape: &'t Tape,
        id: u32,
        flow: &Flow,
        _pending: &Pending<Self>,
        loads: &mut Loads<Self>,
    ) -> Result<()> {
        let grading = self.grading;
        let mut positions: SmallVec<[usize; 3]> = SmallVec::new();
        for (bucket, cotangent) in self.coefficients {
            let mut all: SmallVec<[Pulled<'t>; 3]> = SmallVec::new();
            tape.pull(id, cotangent, flow, None, &mut |pulled| all.push(pulled))?;
            for pulled in all {
                let i = positions.iter().position(|p| *p == pulled.position).unwrap_or_else(|| {
                    positions.push(pulled.position);
                    loads.push((pulled.operand.id, Graded { coefficients: BTreeMap::new(), grading }));
                    positions.len() - 1
                });
                loads[i].1.add(tape, grading.behind(bucket, pulled.operand.edge), pulled.cotangent)?;
            }
        }
        Ok(())
    }
}
