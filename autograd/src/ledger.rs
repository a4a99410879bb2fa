//! Where does a gradient come from, addend by addend?

use std::cell::RefCell;
use std::fmt;

use limpid_tensor::Tensor;
use smallvec::{SmallVec, smallvec};

use crate::backward::{Flow, Gradients, Paths};
use crate::cotangent::{Cotangent, Load, Loads, Pending};
use crate::error::Result;
use crate::part::{Part, norm, percent};
use crate::route::{Route, Routes};
use crate::tape::Tape;
use crate::var::{Edge, Var};

/// What one backward pass added up, and from where: made by [`Tape::backward_with_ledger`] and
/// [`Tape::vjp_with_ledger`].
///
/// Displayed, it has a line for every join, the values at which a gradient comes together by different routes: in a
/// residual network the stream before each block, with the signed shares of skip, branch and control.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Every value whose gradient is a sum, in the order of the tape.
    pub fan_ins: Vec<FanIn>,
    /// The norm of the gradient at every node that the pass reached.
    norms: Vec<Option<f64>>,
}

/// A value whose gradient is a sum.
#[derive(Clone, PartialEq, Debug)]
pub struct FanIn {
    /// Its position on the tape.
    pub node: usize,
    /// Its name, or `%` and its position.
    pub label: String,
    /// The scope that all addends come from: of the stream before a block, that block.
    pub scope: String,
    /// The norm of the gradient.
    pub norm: f64,
    /// `‖Σcᵢ − c‖`, the sum in f64: how far rounding, and a dtype narrower than f64, took the gradient from its addends.
    pub rounding: f64,
    /// In the order in which they were added.
    pub addends: Vec<Addend>,
    /// The addends of each route together, routes that do not occur left out.
    pub routes: Vec<(Route, Part)>,
}

/// One of the cotangents that make up a gradient.
#[derive(Clone, PartialEq, Debug)]
pub struct Addend {
    /// The position of the operation that handed it back.
    pub from: usize,
    /// Which of its operands the value is.
    pub operand: usize,
    /// Its name.
    pub op: String,
    /// Its scope.
    pub scope: String,
    /// The mark on that operand.
    pub edge: Edge,
    /// By which way it came since all paths to the value were one.
    pub route: Route,
    /// How much of the gradient it is.
    pub part: Part,
}

impl FanIn {
    /// Whether different routes meet here.
    pub fn is_join(&self) -> bool {
        self.routes.len() > 1
    }

    /// What came by one route, if anything did.
    pub fn by(&self, route: Route) -> Option<Part> {
        self.routes.iter().find(|(r, _)| *r == route).map(|(_, part)| *part)
    }
}

impl Ledger {
    /// The fan-ins at which different routes meet.
    pub fn joins(&self) -> impl Iterator<Item = &FanIn> {
        self.fan_ins.iter().filter(|fan_in| fan_in.is_join())
    }

    /// The fan-in of a value, if its gradient is a sum.
    pub fn fan_in(&self, var: Var<'_>) -> Option<&FanIn> {
        let at = self.fan_ins.binary_search_by_key(&var.index(), |fan_in| fan_in.node).ok()?;
        Some(&self.fan_ins[at])
    }

    /// The norm of the gradient at the node at this position, if the pass reached it.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::scalar(1.0f64));
    /// let norm = |layers: usize| {
    ///     let y = (0..layers).fold(x, |x, _| x * 0.5);
    ///     tape.backward_with_ledger(y).unwrap().1.norm(x.index()).unwrap()
    /// };
    /// assert_eq!(norm(5), 0.03125);
    /// assert!((norm(50) - 8.9e-16).abs() < 0.1e-16);
    /// ```
    pub fn norm(&self, node: usize) -> Option<f64> {
        *self.norms.get(node)?
    }
}

impl Tape {
    /// [`backward`](Tape::backward), keeping books: the same gradients, bit for bit, and what each was added up from.
    ///
    /// All addends of a gradient are held until it is complete, and each is measured in f64.
    ///
    /// ```
    /// use limpid_autograd::{Route, Tape};
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::scalar(1.0f64));
    /// let y = tape.scope("block", || x.skip() + (x * 0.25).branch());
    /// let (gradients, ledger) = tape.backward_with_ledger(y)?;
    /// assert_eq!(gradients.of(x).unwrap().item()?, 1.25);
    /// let at_x = ledger.fan_in(x).unwrap();
    /// assert_eq!(at_x.by(Route::Skip).unwrap().share, Some(0.8));
    /// assert_eq!(at_x.by(Route::Branch).unwrap().share, Some(0.2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`backward`](Tape::backward).
    ///
    /// # Panics
    /// As [`backward`](Tape::backward).
    #[track_caller]
    pub fn backward_with_ledger(&self, loss: Var<'_>) -> Result<(Gradients, Ledger)> {
        let books = RefCell::new(Books::from(loss));
        self.expect_scalar("backward_with_ledger", loss);
        let gradients = self.backward_carrying(
            loss,
            || self.value_like(loss, 1.0),
            |seed| Booked::seed(seed, &books),
            |booked| booked.only().cotangent,
        )?;
        Ok((gradients, books.into_inner().closed()))
    }

    /// `gᵀ·∂y/∂x` for each of `xs` as values, `None` where `y` does not depend on one, and the books of that pass.
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If `g` does not have `y`'s shape and dtype.
    #[track_caller]
    pub fn vjp_with_ledger<'t>(
        &'t self,
        y: Var<'t>,
        g: &Tensor,
        xs: &[Var<'t>],
    ) -> Result<(Vec<Option<Tensor>>, Ledger)> {
        self.expect_cotangent("vjp_with_ledger", y, &g.meta());
        let books = RefCell::new(Books::from(y));
        let seed = Booked::seed(Cotangent::of(g.clone()), &books);
        let carried = self.carry(y, seed, xs, Paths::All)?;
        let values = carried.into_iter().map(|booked| booked?.only().cotangent.into_value());
        Ok((values.collect(), books.into_inner().closed()))
    }
}

/// A cotangent that remembers what it was added up from until it is handed on.
#[derive(Clone)]
struct Booked<'b, 't> {
    addends: SmallVec<[Arrival<'t>; 1]>,
    books: &'b RefCell<Books>,
}

#[derive(Clone)]
struct Arrival<'t> {
    /// The operation it came from, and by which operand; `None` for the cotangent that the pass began with.
    from: Option<(u32, usize, Edge)>,
    cotangent: Cotangent<'t>,
}

impl<'b, 't> Booked<'b, 't> {
    fn seed(cotangent: Cotangent<'t>, books: &'b RefCell<Books>) -> Self {
        Booked { addends: smallvec![Arrival { from: None, cotangent }], books }
    }

    /// The one cotangent, of what has been handed on.
    fn only(mut self) -> Arrival<'t> {
        self.addends.pop().expect("a load has at least one addend")
    }
}

impl<'t> Load<'t> for Booked<'_, 't> {
    fn plus(mut self, other: Self, _tape: &'t Tape) -> Result<Self> {
        self.addends.extend(other.addends);
        Ok(self)
    }

    fn arrived(self, tape: &'t Tape, id: u32) -> Result<Self> {
        let Booked { addends, books } = self;
        let mut cotangents = addends.iter().map(|arrival| Ok(arrival.cotangent.clone()));
        let sum =
            cotangents.by_ref().reduce(|a, b| tape.add(a?, b?)).expect("a load has at least one addend")?;
        drop(cotangents);
        let total = sum.arrived(tape, id)?;
        books.borrow_mut().enter(tape, id, &addends, &total)?;
        Ok(Booked::seed(total, books))
    }

    fn pulled(
        self,
        tape: &'t Tape,
        id: u32,
        flow: &Flow,
        _pending: &Pending<Self>,
        out: &mut Loads<Self>,
    ) -> Result<()> {
        let books = self.books;
        tape.pull(id, self.only().cotangent, flow, None, &mut |pulled| {
            let from = Some((id, pulled.position, pulled.operand.edge));
            let arrival = Arrival { from, cotangent: pulled.cotangent };
            out.push((pulled.operand.id, Booked { addends: smallvec![arrival], books }))
        })
    }
}

/// The ledger while the pass runs.
struct Books {
    ledger: Ledger,
    routes: Routes,
}

impl Books {
    fn from(y: Var<'_>) -> Books {
        let ledger = Ledger { fan_ins: Vec::new(), norms: vec![None; y.index() + 1] };
        Books { ledger, routes: Routes::from(y.id) }
    }

    fn closed(mut self) -> Ledger {
        self.ledger.fan_ins.reverse();
        self.ledger
    }

    /// Enters what arrived at node `id`.
    fn enter(&mut self, tape: &Tape, id: u32, addends: &[Arrival<'_>], total: &Cotangent<'_>) -> Result<()> {
        let total = tape.numbers(id, total)?;
        self.ledger.norms[id as usize] = Some(norm(&total));
        let came: SmallVec<[(u32, Edge); 1]> =
            addends.iter().filter_map(|a| a.from.map(|(id, _, edge)| (id, edge))).collect();
        let crossed = self.routes.place(id, &came);
        if came.len() < 2 {
            return Ok(());
        }
        let mut sum = vec![0.0; total.len()];
        let mut entries = Vec::new();
        let mut by_route: Vec<(Route, Vec<f64>)> = Vec::new();
        for (arrival, crossed) in addends.iter().zip(crossed) {
            let Some((from, operand, edge)) = arrival.from else { continue };
            let (values, route) = (tape.numbers(id, &arrival.cotangent)?, crossed.route());
            add_to(&mut sum, &values);
            let part = Part::of(&values, &total);
            match by_route.iter_mut().find(|(r, _)| *r == route) {
                Some((_, together)) => add_to(together, &values),
                None => by_route.push((route, values)),
            }
            let site = tape.site(from);
            let (op, scope) = (site.op, site.scope);
            entries.push(Addend { from: from as usize, operand, op, scope, edge, route, part });
        }
        let in_order = Route::ALL.iter().filter_map(|route| by_route.iter().find(|(r, _)| r == route));
        sum.iter_mut().zip(&total).for_each(|(sum, total)| *sum -= total);
        self.ledger.fan_ins.push(FanIn {
            node: id as usize,
            label: tape.label(id),
            scope: common_scope(entries.iter().map(|addend| addend.scope.as_str())),
            norm: norm(&total),
            rounding: norm(&sum),
            routes: in_order.map(|(route, values)| (*route, Part::of(values, &total))).collect(),
            addends: entries,
        });
        Ok(())
    }
}

fn add_to(sum: &mut [f64], values: &[f64]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// The innermost scope around all of these.
fn common_scope<'a>(mut scopes: impl Iterator<Item = &'a str>) -> String {
    let mut common: Vec<&str> = scopes.next().map_or(Vec::new(), |first| first.split('/').collect());
    for scope in scopes {
        let same = common.iter().zip(scope.split('/')).take_while(|(a, b)| *a == b).count();
        common.truncate(same);
    }
    common.join("/")
}

/// A line per join: the block, the gradient's norm at its input, and the signed shares of skip, branch, control and the
/// rest.
impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<23} {:>9}  {:>9} {:>8} {:>8} {:>8} {:>8}",
            "between", "at", "norm", "skip", "branch", "control", "other"
        )?;
        for join in self.joins() {
            let share = |route| join.by(route).and_then(|part| part.share);
            let other: Vec<f64> = [Route::Interior, Route::Mixed].into_iter().filter_map(share).collect();
            let other = (!other.is_empty()).then(|| other.iter().sum());
            write!(
                f,
                "{:<23} {:>9}  {:>9.3e}",
                last_chars(&join.scope, 23),
                last_chars(&join.label, 9),
                join.norm
            )?;
            if join.norm == 0.0 {
                writeln!(f, " the gradient is 0: no shares")?;
                continue;
            }
            for share in [share(Route::Skip), share(Route::Branch), share(Route::Control), other] {
                write!(f, " {}", percent(share))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The value, and a line per addend, with its scope inside that of all.
impl fmt::Display for FanIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let between = if self.scope.is_empty() { String::new() } else { format!(" into {}", self.scope) };
        writeln!(f, "{}{between}", self.label)?;
        writeln!(f, "  norm {:.3e}, rounding {:.1e}", self.norm, self.rounding)?;
        for addend in &self.addends {
            let inside = addend.scope.strip_prefix(self.scope.as_str()).unwrap_or(&addend.scope);
            let from = format!("%{} {} {}", addend.from, addend.op, inside.trim_start_matches('/'));
            writeln!(f, "  {:<8} {:<22} {}", addend.route, last_chars(from.trim_end(), 22), addend.part)?;
        }
        Ok(())
    }
}

/// A text in at most `width` columns: if it is too long, its end.
pub(crate) fn last_chars(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_string();
    }
    std::iter::once('…').chain(text.chars().skip(count + 1 - width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_scope_is_whole_components() {
        assert_eq!(common_scope(["layers.1/read", "layers.1/mix"].into_iter()), "layers.1");
        assert_eq!(common_scope(["layers.1/read", "layers.10/mix"].into_iter()), "");
        assert_eq!(common_scope(["a/b", "a/b"].into_iter()), "a/b");
        assert_eq!(common_scope(std::iter::empty()), "");
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        assert_eq!(last_chars("layers.12/branch", 8), "…/branch");
        assert_eq!(last_chars("short", 8), "short");
    }
}
