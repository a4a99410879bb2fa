//! Connections between streams: a state X `[.., n, C]` is read, `a·X`, and written, `A·X + bᵀ ⊗ F`, by coefficients that are
//! computed from it.
//!
//! X is used three times in a block, so three shares make up X̄: `Aᵀ·G` from the write, `aᵀ ⊗ H` from the read, and that of
//! what the coefficients are computed from. Written out and added they would be as many states. So the rules of
//! [`StreamWrite`] and [`StreamRead`] leave theirs as the products they are (`Terms`), and the rule of [`StreamProject`],
//! the last of the three to run, adds up all of them in one pass. What nobody has taken up is computed when its state's own
//! rule is about to run.
//!
//! Coefficients, φ and sums are f32 where the state is bf16.

use limpid_tensor::{DType, Fused, Handed, Inferred, Meta, Reduce, Result, Shape, Tensor};
use smallvec::{SmallVec, smallvec};

use crate::op::{Cotangents, Needs, Op, Pullback};
use crate::ops::fused;
use crate::ops::movement::concat;
use crate::ops::together::Together;
use crate::shared::Shared;
use crate::var::{Edge, Var};

/// `(v·φ₁, …, v·φₖ)/r` and r, side by side, with v = vec(X) and r = √(mean(v²) + ε): X `[.., n, C]`, φ `[nC, mᵢ]` →
/// `[.., Σmᵢ + 1]`.
///
/// With `q = p̄/r` of the cotangent (p̄, r̄) of (p, r): `v̄ = φ·q + v·(r̄ − ⟨p̄, p⟩/r)/(nC·r)`, `φ̄ = Σ v ⊗ q` over tokens.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StreamProject {
    /// Added to the mean square.
    pub eps: f64,
}

/// `a·X`: X `[.., n, C]`, a `[.., n]` → `[.., C]`. With the cotangent H of the result, `X̄ = aᵀ ⊗ H` and `ā = X·H`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StreamRead;

/// `A·X + bᵀ ⊗ F`: X `[.., n, C]`, F `[.., C]`, A `[.., n, n]`, b `[.., n]` → `[.., n, C]`. With the cotangent G of the result,
/// `X̄ = Aᵀ·G`, `F̄ = b·G`, `Ā = G·Xᵀ`, `b̄ = G·F`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StreamWrite;

/// The vjp of [`StreamProject`], with what others have left at X: result `of` of [`Fused::StreamProjectBackward`].
#[derive(Clone, Debug)]
struct ProjectBackward {
    handed: Handed,
    of: usize,
    together: Shared<Together>,
}

/// ā of [`StreamRead`]: X and H.
#[derive(Clone, Copy, Debug)]
struct ReadBackward;

/// F̄, Ā or b̄ of [`StreamWrite`]: X, F, b and G.
#[derive(Clone, Debug)]
struct WriteBackward {
    of: usize,
    together: Shared<Together>,
}

/// `Aᵀ·G + aᵀ ⊗ H`: G and A, H and a.
#[derive(Clone, Copy, Debug)]
struct StreamCotangent(Handed);

/// Shares in the cotangent of a state that have not been computed, in the order in which they were left: G and A of a write,
/// H and a of a read.
#[derive(Clone, Default, Debug)]
pub(crate) struct Terms(SmallVec<[(Left, [Tensor; 2]); 2]>);

/// Who left a share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    Write,
    Read,
}

/// One of them, as its rule has it.
#[derive(Clone, Copy)]
pub(crate) enum Term<'t> {
    /// `Aᵀ·G`.
    Written {
        /// G.
        g: Var<'t>,
        /// A.
        mix: Var<'t>,
    },
    /// `aᵀ ⊗ H`.
    Read {
        /// H.
        h: Var<'t>,
        /// a.
        a: Var<'t>,
    },
}

impl<'t> Term<'t> {
    /// Whose it is, and the operands it is made of.
    pub fn parts(self) -> (Left, [Var<'t>; 2]) {
        match self {
            Term::Written { g, mix } => (Left::Write, [g, mix]),
            Term::Read { h, a } => (Left::Read, [h, a]),
        }
    }

    /// The share, computed.
    #[track_caller]
    pub(crate) fn value(self) -> Var<'t> {
        let (left, x) = self.parts();
        x[0].tape().record(StreamCotangent(left.alone()), &x)
    }
}

impl Left {
    fn alone(self) -> Handed {
        Handed { written: self == Left::Write, read: self == Left::Read }
    }
}

impl Terms {
    pub fn push(&mut self, left: Left, parts: [Tensor; 2]) {
        self.0.push((left, parts));
    }

    /// What they are made of, if one kernel can take all of them up: a write's, a read's, or one of each in this order.
    pub fn operands(&self) -> Option<(Handed, SmallVec<[Tensor; 4]>)> {
        let handed = match self.0[..] {
            [(left, _)] => left.alone(),
            [(Left::Write, _), (Left::Read, _)] => Handed { written: true, read: true },
            _ => return None,
        };
        Some((handed, self.0.iter().flat_map(|(_, parts)| parts.clone()).collect()))
    }

    /// Their sum, added in order.
    pub fn sum(self) -> Result<Option<Tensor>> {
        let share = |handed: Handed, x: &[Tensor]| {
            StreamCotangent(handed).forward(&x.iter().collect::<SmallVec<[&Tensor; 4]>>())
        };
        if let Some((handed, x)) = self.operands() {
            return share(handed, &x).map(Some);
        }
        let mut sum: Option<Tensor> = None;
        for (left, parts) in self.0 {
            let next = share(left.alone(), &parts)?;
            match &mut sum {
                None => sum = Some(next),
                Some(sum) => sum.add_in_place(&next)?,
            }
        }
        Ok(sum)
    }
}

/// f32 for bf16, else the dtype itself.
fn wide(dtype: DType) -> DType {
    if dtype == DType::BF16 { DType::F32 } else { dtype }
}

fn widened(v: Var<'_>) -> Var<'_> {
    v.cast(wide(v.dtype()))
}

/// The axes before n and C of a state, and those.
fn state(x: &Meta) -> std::result::Result<(&[usize], usize, usize), String> {
    match &x.shape[..] {
        [lead @ .., n, channels] if x.dtype.is_float() => Ok((lead, *n, *channels)),
        _ => Err(format!("expected streams [.., n, C] of floats, found {x}")),
    }
}

/// An error unless an operand has this shape and dtype.
fn expect(
    what: &str,
    x: &Meta,
    lead: &[usize],
    own: &[usize],
    dtype: DType,
) -> std::result::Result<(), String> {
    let expected = Meta { shape: lead.iter().chain(own).copied().collect(), dtype };
    if *x == expected { Ok(()) } else { Err(format!("{what} must be {expected}, found {x}")) }
}

/// All tokens as rows: `[.., n, C]` → `[tokens, nC]`.
fn rows(x: Var<'_>) -> Var<'_> {
    let shape = x.shape();
    let (lead, own) = shape.split_at(shape.len() - 2);
    x.reshape([lead.iter().product(), own[0] * own[1]])
}

/// r of each row, `[tokens, 1]`.
fn root_mean_square(v: Var<'_>, eps: f64) -> Var<'_> {
    let mean = (v * v).reduce_axes(Reduce::Sum, &[1]) * (1.0 / v.shape()[1] as f64);
    (mean + eps).sqrt()
}

impl Op for StreamProject {
    fn name(&self) -> &'static str {
        "stream_project"
    }

    fn attributes(&self) -> String {
        format!("ε={}", self.eps)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let (lead, n, channels) = state(x[0])?;
        let (inputs, dtype) = (n * channels, wide(x[0].dtype));
        let mut columns = 0;
        for phi in &x[1..] {
            match phi.shape[..] {
                [rows, own] if rows == inputs && phi.dtype == dtype => columns += own,
                _ => return Err(format!("φ for streams {} must be {dtype}[{inputs}, m], found {phi}", x[0])),
            }
        }
        Ok(Meta { shape: lead.iter().copied().chain([columns + 1]).collect(), dtype })
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::StreamProject { eps: self.eps }, x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        all(tracked.len()).or(Needs::OUTPUT)
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let (handed, others) = at.take_terms(0);
        let kernel = Fused::StreamProjectBackward(handed);
        let wanted = (0..at.arity()).map(|i| at.wants(i)).collect();
        let together = Shared::holding(Together::new(at, kernel, wanted));
        let x: SmallVec<[Var<'t>; 8]> =
            (0..at.arity()).map(|i| at.x(i)).chain([at.y(), at.g()]).chain(others).collect();
        at.each(|of| {
            let part = ProjectBackward { handed, of, together: together.clone() };
            at.g().tape().record(part, &x)
        })
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let v = rows(widened(x[0]));
        let r = root_mean_square(v, self.eps);
        let products = x[1..].iter().map(|&phi| v.matmul(phi) / r);
        let all: SmallVec<[Var<'t>; 4]> = products.chain([r]).collect();
        let (y, shape) = (concat(&all, 1), x[0].shape());
        let own = y.shape()[1];
        Some(y.reshape(shape[..shape.len() - 2].iter().copied().chain([own]).collect::<Shape>()))
    }

    fn flops(&self, x: &[&Meta], y: &Meta) -> u64 {
        2 * (x[0].shape.elements() * y.shape[y.shape.len() - 1]) as u64
    }
}

/// What the rule of [`StreamProject`] works with, by rows.
struct Projected<'a, 't> {
    v: Var<'t>,
    phi: &'a [Var<'t>],
    /// p̄/r for each φ.
    q: SmallVec<[Var<'t>; 4]>,
    y: Var<'t>,
    g: Var<'t>,
    r: Var<'t>,
}

impl<'a, 't> Projected<'a, 't> {
    fn new(x: Var<'t>, phi: &'a [Var<'t>], y: Var<'t>, g: Var<'t>) -> Projected<'a, 't> {
        let by_rows = |v: Var<'t>| {
            let shape = v.shape();
            let (&columns, lead) = shape.split_last().expect("infer has seen to the rank");
            v.reshape([lead.iter().product(), columns])
        };
        let (y, g) = (by_rows(y), by_rows(g));
        let m = y.shape()[1] - 1;
        let r = y.slice(1, m, m + 1, 1);
        let mut from = 0;
        let mut columns = |phi: &Var<'t>| {
            let width = phi.shape()[1];
            from += width;
            g.slice(1, from - width, from, 1) / r
        };
        Projected { v: rows(widened(x)), phi, q: phi.iter().map(&mut columns).collect(), y, g, r }
    }

    /// φ̄ᵢ.
    fn of_phi(&self, i: usize) -> Var<'t> {
        self.v.transpose(0, 1).matmul(self.q[i])
    }

    /// v̄.
    fn of_v(&self) -> Var<'t> {
        let (numbers, m) = (self.v.shape()[1], self.y.shape()[1] - 1);
        let products = self.q.iter().zip(self.phi).map(|(q, phi)| q.matmul(phi.transpose(0, 1)));
        let first = |v: Var<'t>| v.slice(1, 0, m, 1);
        let along = (first(self.g) * first(self.y)).reduce_axes(Reduce::Sum, &[1]);
        let scale = (self.g.slice(1, m, m + 1, 1) - along / self.r) / (self.r * numbers as f64);
        products.chain([self.v * scale]).reduce(|a, b| a + b).expect("there is one")
    }
}

/// `Aᵀ·G + aᵀ ⊗ H`, in the dtype of coefficients. `None` if there is neither.
fn handed_on<'t>(handed: Handed, x: &[Var<'t>]) -> Option<Var<'t>> {
    let (written, read) = x.split_at(if handed.written { 2 } else { 0 });
    let written = handed.written.then(|| written[1].transpose(-2, -1).matmul(widened(written[0])));
    let read = handed.read.then(|| {
        let (h, a) = (widened(read[0]), read[1]);
        a.unsqueeze(a.shape().len()) * h.unsqueeze(h.shape().len() - 1)
    });
    written.into_iter().chain(read).reduce(|a, b| a + b)
}

/// Every operand.
fn all(x: usize) -> Needs {
    Needs::inputs(&(0..x).collect::<SmallVec<[usize; 8]>>())
}

impl Op for ProjectBackward {
    fn name(&self) -> &'static str {
        "stream_project_backward"
    }

    fn attributes(&self) -> String {
        format!("result={}", self.of)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let (own, others) = x.split_at(x.len() - self.handed.operands());
        let [x, phi @ .., y, g] = own else { return Err("expected X, φ, y and ȳ".into()) };
        let operands: SmallVec<[&Meta; 4]> = [*x].into_iter().chain(phi.iter().copied()).collect();
        let result = StreamProject { eps: 0.0 }.infer(&operands)?;
        for (what, found) in [("y", y), ("ȳ", g)] {
            if **found != result {
                return Err(format!("{what} must be {result}, found {found}"));
            }
        }
        if self.handed != Handed::default() && StreamCotangent(self.handed).infer(others)? != **x {
            return Err(format!("what was handed on must be for streams {x}"));
        }
        Ok(own[self.of].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        self.together.result(self.of, self, x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        all(tracked.len())
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let (own, others) = x.split_at(x.len() - self.handed.operands());
        let [x, phi @ .., y, g] = own else { unreachable!("recorded with these operands") };
        let projected = Projected::new(*x, phi, *y, *g);
        if self.of > 0 {
            return Some(projected.of_phi(self.of - 1));
        }
        let v = projected.of_v().reshape(x.shape());
        let sum = handed_on(self.handed, others).map_or(v, |others| others + v);
        Some(sum.cast(x.dtype()))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        let y = x[x.len() - 2 - self.handed.operands()];
        2 * (x[0].shape.elements() * y.shape[y.shape.len() - 1]) as u64
    }
}

impl Op for StreamRead {
    fn name(&self) -> &'static str {
        "stream_read"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let (lead, n, channels) = state(x[0])?;
        expect("a", x[1], lead, &[n], wide(x[0].dtype))?;
        Ok(Meta { shape: lead.iter().copied().chain([channels]).collect(), dtype: x[0].dtype })
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::StreamRead, x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        Needs::inputs(&[1]).when(tracked[0]).or(Needs::inputs(&[0]).when(tracked[1]))
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let of_x = |at: &Pullback<'_, 't>| at.leave(0, Term::Read { h: at.g(), a: at.x(1) });
        let of_a = |at: &Pullback<'_, 't>| at.g().tape().record(ReadBackward, &[at.x(0), at.g()]);
        smallvec![at.wants(0).then(|| of_x(at)).flatten(), at.wants(1).then(|| of_a(at))]
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let row = x[1].unsqueeze(x[1].shape().len() - 1);
        Some(row.matmul(widened(x[0])).squeeze(-2).cast(x[0].dtype()))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        2 * x[0].shape.elements() as u64
    }
}

impl Op for ReadBackward {
    fn name(&self) -> &'static str {
        "stream_read_backward"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let (lead, n, channels) = state(x[0])?;
        expect("H", x[1], lead, &[channels], x[0].dtype)?;
        Ok(Meta { shape: lead.iter().copied().chain([n]).collect(), dtype: wide(x[0].dtype) })
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::StreamReadBackward, x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        all(tracked.len())
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(products(x[0], x[1]))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        2 * x[0].shape.elements() as u64
    }
}

/// `X·H` over channels: `[.., n, C]` and `[.., C]` → `[.., n]`.
fn products<'t>(x: Var<'t>, h: Var<'t>) -> Var<'t> {
    widened(x).matmul(widened(h).unsqueeze(h.shape().len())).squeeze(-1)
}

impl Op for StreamWrite {
    fn name(&self) -> &'static str {
        "stream_write"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let (lead, n, channels) = state(x[0])?;
        let dtype = wide(x[0].dtype);
        expect("F", x[1], lead, &[channels], x[0].dtype)?;
        expect("A", x[2], lead, &[n, n], dtype)?;
        expect("b", x[3], lead, &[n], dtype)?;
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::StreamWrite, x)
    }

    fn chain(&self) -> Option<Fused> {
        Some(Fused::StreamWrites)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        let of_x = Needs::inputs(&[2]).when(tracked[0]);
        if tracked[2] {
            return of_x.or(Needs::inputs(&[0, 1, 3]));
        }
        of_x.or(Needs::inputs(&[3]).when(tracked[1])).or(Needs::inputs(&[1]).when(tracked[3]))
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let (tape, g) = (at.g().tape(), at.g());
        let of_x = at.wants(0).then(|| at.leave(0, Term::Written { g, mix: at.x(2) })).flatten();
        let mut cotangents: Cotangents<'t> = smallvec![of_x];
        if at.wants(2) {
            let wanted = (1..4).map(|i| at.wants(i)).collect();
            let together = Shared::holding(Together::new(at, Fused::StreamWriteBackward, wanted));
            let x = [at.x(0), at.x(1), at.x(3), g];
            let part = |of| tape.record(WriteBackward { of, together: together.clone() }, &x);
            cotangents.extend((0..3).map(|of| at.wants(of + 1).then(|| part(of))));
        } else {
            // The others by themselves, with the same bits: they read G and one more each.
            cotangents.push(at.wants(1).then(|| tape.record(StreamRead, &[g, at.x(3)])));
            cotangents.push(None);
            cotangents.push(at.wants(3).then(|| tape.record(ReadBackward, &[g, at.x(1)])));
        }
        cotangents
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let (f, b) = (widened(x[1]), x[3]);
        let written = b.unsqueeze(b.shape().len()) * f.unsqueeze(f.shape().len() - 1);
        Some((x[2].matmul(widened(x[0])) + written).cast(x[0].dtype()))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        let n = x[3].shape[x[3].shape.len() - 1];
        2 * (x[0].shape.elements() * (n + 1)) as u64
    }
}

impl Op for WriteBackward {
    fn name(&self) -> &'static str {
        "stream_write_backward"
    }

    fn attributes(&self) -> String {
        format!("result={}", self.of)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let (lead, n, channels) = state(x[0])?;
        expect("F", x[1], lead, &[channels], x[0].dtype)?;
        expect("b", x[2], lead, &[n], wide(x[0].dtype))?;
        expect("G", x[3], lead, &[n, channels], x[0].dtype)?;
        Ok(Fused::StreamWriteBackward.results(x)[self.of].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        self.together.result(self.of, self, x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        all(tracked.len())
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let &[x, f, b, g] = x else { unreachable!("recorded with these operands") };
        Some(match self.of {
            0 => b.unsqueeze(b.shape().len() - 1).matmul(widened(g)).squeeze(-2).cast(f.dtype()),
            1 => widened(g).matmul(widened(x).transpose(-2, -1)),
            _ => products(g, f),
        })
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        let n = x[2].shape[x[2].shape.len() - 1];
        match self.of {
            1 => 2 * (x[0].shape.elements() * n) as u64,
            _ => 2 * x[0].shape.elements() as u64,
        }
    }
}

impl Op for StreamCotangent {
    fn name(&self) -> &'static str {
        "stream_cotangent"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let (written, read) = x.split_at(if self.0.written { 2 } else { 0 });
        let of_read = match read {
            [h, a] => match (&h.shape[..], &a.shape[..]) {
                ([lead @ .., channels], [others @ .., n]) if lead == others && a.dtype == wide(h.dtype) => {
                    Some(Meta { shape: lead.iter().chain([n, channels]).copied().collect(), dtype: h.dtype })
                }
                _ => return Err(format!("expected H [.., C] and a [.., n], found {h} and {a}")),
            },
            _ => None,
        };
        if let [g, mix] = written {
            let (lead, n, _) = state(g)?;
            expect("A", mix, lead, &[n, n], wide(g.dtype))?;
            if of_read.as_ref().is_some_and(|of_read| of_read != *g) {
                return Err(format!("what was read must be of streams {g}"));
            }
        }
        Ok(of_read.unwrap_or_else(|| written[0].clone()))
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::StreamCotangent(self.0), x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        all(tracked.len())
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(handed_on(self.0, x)?.cast(x[0].dtype()))
    }

    fn flops(&self, x: &[&Meta], y: &Meta) -> u64 {
        let n = if self.0.written { x[1].shape[x[1].shape.len() - 1] } else { 0 };
        2 * (y.shape.elements() * (n + usize::from(self.0.read))) as u64
    }
}

impl<'t> Var<'t> {
    /// `v·φ₁/r, …, v·φₖ/r` of streams `[.., n, C]`, with v = vec(X) and r = √(mean(v²) + ε): φ `[nC, mᵢ]` → `[.., mᵢ]` each. One
    /// pass over the streams computes all of them.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![3.0f64, 4.0, 0.0, 5.0], [2, 2]));
    /// let phi = tape.variable(&Tensor::ones([4, 1], DType::F64));
    /// let y = x.stream_project(&[phi], 0.0)[0];
    /// assert_eq!(y.value()?.to_vec::<f64>()?, [12.0 / 12.5f64.sqrt()]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If the shapes are not these, or φ is not of X's dtype (f32 for bf16).
    #[track_caller]
    pub fn stream_project(self, phi: &[Var<'t>], eps: f64) -> Vec<Var<'t>> {
        let x: SmallVec<[Var<'t>; 4]> = [self].into_iter().chain(phi.iter().copied()).collect();
        let y = self.tape().record(StreamProject { eps }, &x);
        let mut from = 0;
        let mut columns = |phi: &Var<'t>| {
            let width = phi.shape()[1];
            from += width;
            y.slice(-1, from - width, from, 1)
        };
        phi.iter().map(&mut columns).collect()
    }

    /// `a·X` of streams X `[.., n, C]`: a `[n]` or `[.., n]` → `[.., C]`.
    ///
    /// # Panics
    /// If the shapes are not these, or a is not of X's dtype (f32 for bf16).
    #[track_caller]
    pub fn stream_read(self, a: Var<'t>) -> Var<'t> {
        let shape = self.shape();
        let a = per_token(a, &shape, 1);
        self.tape().record(StreamRead, &[self, a])
    }

    /// `A·X + bᵀ ⊗ F` of streams X `[.., n, C]`: F `[.., C]`, A `[n, n]` or `[.., n, n]`, b `[n]` or `[.., n]` → `[.., n, C]`.
    ///
    /// # Panics
    /// If the shapes are not these, F is not of X's dtype, or A or b is not (f32 for bf16).
    #[track_caller]
    pub fn stream_write(self, f: Var<'t>, mix: Var<'t>, b: Var<'t>) -> Var<'t> {
        let shape = self.shape();
        let (mix, b) = (per_token(mix, &shape, 2), per_token(b, &shape, 1));
        self.tape().record(StreamWrite, &[self, f, mix, b])
    }
}

/// A coefficient of `own` axes for each token of streams of this shape, keeping the mark it carries.
#[track_caller]
fn per_token<'t>(c: Var<'t>, streams: &Shape, own: usize) -> Var<'t> {
    let of_c = c.shape();
    if of_c.len() != own || streams.len() <= 2 {
        return c;
    }
    let lead = &streams[..streams.len() - 2];
    let shape: Shape = lead.iter().chain(&of_c[..]).copied().collect();
    Var { edge: c.edge, ..Var { edge: Edge::Interior, ..c }.expand(shape) }
}
