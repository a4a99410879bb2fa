//! Drawing cases at random, and making a failing one smaller.
//!
//! A generator is a function of small numbers. Drawing chooses them at random; shrinking makes them smaller, one at a
//! time, and runs the generator again, so that what comes out is always a case that it could have drawn.

use std::fmt;
use std::ops::RangeInclusive;
use std::rc::Rc;

use limpid_tensor::DType;
use limpid_tensor::rng::Key;

use super::{Case, Operand, Values, View};

/// Where a generator gets its numbers from. Numbers shrink towards 0, so 0 should stand for what is simplest.
#[derive(Clone, Debug)]
pub struct Draw {
    numbers: Vec<u32>,
    next: usize,
    key: Option<Key>,
}

impl Draw {
    /// Random numbers.
    pub fn random(key: Key) -> Draw {
        Draw { numbers: Vec::new(), next: 0, key: Some(key) }
    }

    /// These numbers, then zeros.
    pub fn of(numbers: Vec<u32>) -> Draw {
        Draw { numbers, next: 0, key: None }
    }

    /// The numbers that were drawn.
    pub(in crate::check) fn drawn(mut self) -> Vec<u32> {
        self.numbers.truncate(self.next);
        self.numbers
    }

    /// A number below `n`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let i = self.next;
        self.next += 1;
        if i == self.numbers.len() {
            self.numbers.push(self.key.map_or(0, |key| key.bits(i as u64) as u32));
        }
        // A number that was drawn for a wider range comes down into this one.
        self.numbers[i] = (self.numbers[i] as usize % n) as u32;
        self.numbers[i] as usize
    }

    /// True once in `n` times; it shrinks to false.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// One of several, the first being the simplest.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// A shape of small sizes that differ, but for those that are 1, and for its last two in one case of four: square
    /// matrices are where a transposed operand does not show in the shape, and other matrices where it does.
    pub fn shape(&mut self, ranks: RangeInclusive<usize>) -> Vec<usize> {
        let rank = ranks.start() + self.below(ranks.end() - ranks.start() + 1);
        let mut shape = self.sizes(rank);
        if rank >= 2 && self.one_in(4) {
            shape[rank - 2] = shape[rank - 1];
        }
        shape
    }

    /// `n` small sizes, none 0, different but for those that are 1; the more there are the smaller.
    pub fn sizes(&mut self, n: usize) -> Vec<usize> {
        let mut pool = match n {
            0..=2 => vec![2, 3, 4, 5],
            3 => vec![2, 3, 4],
            _ => vec![2, 3],
        };
        let mut sizes = Vec::with_capacity(n);
        for _ in 0..n {
            let one = pool.is_empty() || self.below(6) == 0;
            sizes.push(if one { 1 } else { pool.remove(self.below(pool.len())) });
        }
        sizes
    }

    /// A shape that broadcasts to `shape`: without some leading axes, and with some sizes 1.
    pub fn broadcasts_to(&mut self, shape: &[usize]) -> Vec<usize> {
        let missing = self.below(3).min(shape.len());
        let ones = self.below(1 << shape.len());
        let kept = shape.iter().enumerate().skip(missing);
        kept.map(|(axis, &n)| if ones >> axis & 1 == 1 { 1 } else { n }).collect()
    }

    /// The views of a layout.
    pub fn views(&mut self, layouts: Layouts) -> Vec<View> {
        let views = match layouts {
            Layouts::Contiguous => 0,
            _ => self.below(3),
        };
        (0..views).map(|_| self.view(layouts)).collect()
    }

    fn view(&mut self, layouts: Layouts) -> View {
        match self.below(if layouts == Layouts::Any { 6 } else { 5 }) {
            0 => View::Offset(1 + self.below(5)),
            1 | 2 => View::Permute(1 + self.below(119)),
            3 => View::Slice {
                axis: self.below(5),
                before: self.below(3),
                after: self.below(3),
                step: 1 + self.below(3),
            },
            4 => View::Flip(self.below(5)),
            _ => View::Expand(self.below(5)),
        }
    }

    /// Operands of these shapes. All are of one dtype and one kind of values; no two hold the same interior values.
    pub fn operands(&mut self, shapes: Vec<Vec<usize>>, looks: &Looks) -> Vec<Operand> {
        let (dtype, values) = (self.pick(&looks.dtypes), self.pick(&looks.values));
        let operand = |(i, shape): (usize, Vec<usize>)| Operand {
            shape,
            views: self.views(looks.layouts),
            dtype,
            values,
            // Another residue for each, so that the interior values of no two are the same.
            seed: self.below(1 << 16) as u64 * 4 + i as u64,
        };
        shapes.into_iter().enumerate().map(operand).collect()
    }

    /// Indices below `n`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn indices(&mut self, shape: Vec<usize>, n: usize) -> Operand {
        assert!(n > 0, "indices: there is nothing to choose from");
        let views = self.views(Layouts::Dense);
        let seed = self.below(1 << 16) as u64;
        Operand { shape, views, dtype: DType::I64, values: Values::Below(n), seed }
    }

    /// A case of these operands, with six numbers to choose from.
    pub fn case(&mut self, operands: Vec<Operand>) -> Case {
        Case { operands, choices: (0..6).map(|_| self.below(1 << 16) as u16).collect() }
    }
}

/// Which layouts are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layouts {
    /// All of them: permuted, sliced, flipped, offset, expanded, two at once, or contiguous.
    Any,
    /// Those in which no element is repeated.
    Dense,
    /// None but row-major order.
    Contiguous,
}

/// What drawn operands look like apart from their shapes: f64, interior and of any layout unless said otherwise.
#[derive(Clone, PartialEq, Debug)]
pub struct Looks {
    /// One of these.
    pub dtypes: Vec<DType>,
    /// One of these kinds of values.
    pub values: Vec<Values>,
    /// One of these layouts for each operand.
    pub layouts: Layouts,
}

impl Default for Looks {
    fn default() -> Self {
        Looks::from(Values::Interior)
    }
}

impl From<Values> for Looks {
    fn from(values: Values) -> Looks {
        Looks { dtypes: vec![DType::F64], values: vec![values], layouts: Layouts::Any }
    }
}

impl Looks {
    /// Without repeated elements: for functions with kinks where two are equal.
    pub fn dense(self) -> Looks {
        Looks { layouts: Layouts::Dense, ..self }
    }
}

/// Something that can be drawn.
pub struct Drawn<T>(Rc<dyn Fn(&mut Draw) -> T>);

impl<T> Clone for Drawn<T> {
    fn clone(&self) -> Self {
        Drawn(self.0.clone())
    }
}

impl<T> fmt::Debug for Drawn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Drawn<{}>", std::any::type_name::<T>())
    }
}

impl<T: 'static> Drawn<T> {
    /// What `f` makes of the numbers it draws.
    pub fn new(f: impl Fn(&mut Draw) -> T + 'static) -> Drawn<T> {
        Drawn(Rc::new(f))
    }

    /// One of them.
    pub fn draw(&self, draw: &mut Draw) -> T {
        self.0(draw)
    }

    /// `f` of one of them.
    pub fn map<R: 'static>(self, f: impl Fn(T) -> R + 'static) -> Drawn<R> {
        Drawn::new(move |draw| f(self.draw(draw)))
    }
}

/// Small shapes of these ranks, without axes of size 0. See [`Draw::shape`].
pub fn shapes(ranks: RangeInclusive<usize>) -> Drawn<Vec<usize>> {
    Drawn::new(move |draw| draw.shape(ranks.clone()))
}

/// Cases of one operand.
pub fn one(shapes: Drawn<Vec<usize>>, looks: impl Into<Looks>) -> Drawn<Case> {
    broadcastable(1, shapes, looks)
}

/// Cases of `n` operands whose shapes broadcast together to one of `shapes`. A single operand has that shape.
pub fn broadcastable(n: usize, shapes: Drawn<Vec<usize>>, looks: impl Into<Looks>) -> Drawn<Case> {
    let looks = looks.into();
    Drawn::new(move |draw| {
        let shape = shapes.draw(draw);
        let shapes = match n {
            1 => vec![shape],
            _ => (0..n).map(|_| draw.broadcasts_to(&shape)).collect(),
        };
        let operands = draw.operands(shapes, &looks);
        draw.case(operands)
    })
}

/// Cases of two operands of a matrix product: `[…, m, k]` and `[…, k, n]`, with leading axes that broadcast. The sizes
/// differ, or (one case in four) the matrices are square.
pub fn factors(looks: impl Into<Looks>) -> Drawn<Case> {
    let looks = looks.into();
    Drawn::new(move |draw| {
        let mut sizes = draw.sizes(3);
        if draw.one_in(4) {
            sizes = vec![sizes[0]; 3];
        }
        let ranks = draw.below(3);
        let lead = draw.sizes(ranks + 2)[2..].to_vec();
        let (mut a, mut b) = (draw.broadcasts_to(&lead), draw.broadcasts_to(&lead));
        a.extend([sizes[0], sizes[1]]);
        b.extend([sizes[1], sizes[2]]);
        let operands = draw.operands(vec![a, b], &looks);
        draw.case(operands)
    })
}

/// The way down from a failing case: numbers that are smaller, one after the other.
#[derive(Clone, Debug)]
pub(in crate::check) struct Shrink {
    /// The smallest that fails so far.
    best: Vec<u32>,
    at: usize,
    step: u32,
    progressed: bool,
}

impl Shrink {
    pub fn new(failing: Vec<u32>) -> Shrink {
        Shrink { best: failing, at: 0, step: 0, progressed: false }
    }

    /// The next to try; `None` when nothing smaller fails.
    pub fn next(&mut self) -> Option<Vec<u32>> {
        loop {
            if self.at >= self.best.len() {
                if !std::mem::take(&mut self.progressed) {
                    return None;
                }
                (self.at, self.step) = (0, 0);
                continue;
            }
            let now = self.best[self.at];
            let smaller = [0, now / 2, now.saturating_sub(1)].get(self.step as usize).copied();
            match smaller {
                None => (self.at, self.step) = (self.at + 1, 0),
                Some(smaller) => {
                    self.step += 1;
                    let repeated = self.step > 1 && smaller == 0;
                    if smaller < now && !repeated {
                        let mut numbers = self.best.clone();
                        numbers[self.at] = smaller;
                        return Some(numbers);
                    }
                }
            }
        }
    }

    /// The last one tried fails too.
    pub fn keep(&mut self, failing: Vec<u32>) {
        self.best = failing;
        self.step = 0;
        self.progressed = true;
    }

    pub fn best(&self) -> &[u32] {
        &self.best
    }
}
