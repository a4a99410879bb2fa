//! Which way did a part of a gradient come?
//!
//! A gradient reaches a value x by every path from the result back to x. All of them pass the result; the nearest value to x
//! that all of them pass is where they last were one. What an addend crossed since then says which way it came. In a
//! residual block this nearest value is the block's output x', and the addends at its input come by the skip path,
//! through the branch, or through a coefficient, whatever else lies inside and however blocks are nested.
//!
//! The nearest common values form a tree (the dominator tree of the reversed program: K. D. Cooper, T. J. Harvey and
//! K. Kennedy, *A Simple, Fast Dominance Algorithm*, 2001), which a backward sweep builds as it goes. Ancestors are found
//! by jump pointers (E. W. Myers, *An applicative random-access stack*, 1983) in logarithmic time.

use std::fmt;

use crate::var::Edge;

/// By which kind of edge an addend of a gradient came, of the edges that every path to it crosses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Route {
    /// By the identity path of a connection, and across no branch.
    Skip,
    /// Across a branch's write.
    Branch,
    /// Through a coefficient: a gate, a mixing matrix.
    Control,
    /// Across no marked edge.
    Interior,
    /// Some paths cross a marked edge that others do not; the addends further up tell them apart.
    Mixed,
}

impl Route {
    /// In the order of columns in print.
    pub const ALL: [Route; 5] = [Route::Skip, Route::Branch, Route::Control, Route::Interior, Route::Mixed];
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Route::Skip => "skip",
            Route::Branch => "branch",
            Route::Control => "control",
            Route::Interior => "interior",
            Route::Mixed => "mixed",
        })
    }
}

/// The kinds of marked edges that every path of a bundle crosses, and those that some path crosses, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Crossed {
    every: u8,
    some: u8,
}

const SKIP: u8 = 1;
const BRANCH: u8 = 2;
const CONTROL: u8 = 4;

impl Crossed {
    const NOTHING: Crossed = Crossed { every: 0, some: 0 };

    fn edge(edge: Edge) -> Crossed {
        let bit = match edge {
            Edge::Interior => 0,
            Edge::Skip => SKIP,
            Edge::Branch => BRANCH,
            Edge::Control => CONTROL,
        };
        Crossed { every: bit, some: bit }
    }

    /// Paths made of one of these and one of `next`.
    fn then(self, next: Crossed) -> Crossed {
        Crossed { every: self.every | next.every, some: self.some | next.some }
    }

    /// These paths and `other` ones.
    fn or(self, other: Crossed) -> Crossed {
        Crossed { every: self.every & other.every, some: self.some | other.some }
    }

    pub fn route(self) -> Route {
        match self {
            Crossed { every, .. } if every & CONTROL != 0 => Route::Control,
            Crossed { every, .. } if every & BRANCH != 0 => Route::Branch,
            Crossed { every: SKIP, some: SKIP } => Route::Skip,
            Crossed { some: 0, .. } => Route::Interior,
            _ => Route::Mixed,
        }
    }
}

/// A value's place in the tree.
#[derive(Clone, Copy)]
struct Place {
    depth: u32,
    /// The nearest value that all paths from the result pass, and what they cross from there.
    parent: u32,
    to_parent: Crossed,
    /// An ancestor further up, chosen so that going up takes logarithmic time.
    jump: u32,
    to_jump: Crossed,
}

/// The tree of nearest common values, for a sweep that starts at one result.
pub(crate) struct Routes {
    places: Vec<Option<Place>>,
}

impl Routes {
    /// For a sweep back from node `y`.
    pub fn from(y: u32) -> Routes {
        let mut places = vec![None; y as usize + 1];
        let itself = Crossed::NOTHING;
        places[y as usize] = Some(Place { depth: 0, parent: y, to_parent: itself, jump: y, to_jump: itself });
        Routes { places }
    }

    /// Places node `x`, to which something came from each of `from`, by that edge. What each crossed since they last
    /// were one.
    pub fn place(&mut self, x: u32, from: &[(u32, Edge)]) -> Vec<Crossed> {
        let parent = from.iter().map(|&(id, _)| id).reduce(|a, b| self.nearest_common(a, b));
        let Some(parent) = parent else { return Vec::new() };
        let crossed: Vec<Crossed> =
            from.iter().map(|&(id, edge)| self.crossed(parent, id).then(Crossed::edge(edge))).collect();
        let to_parent = crossed.iter().copied().reduce(Crossed::or).unwrap_or(Crossed::NOTHING);
        let above = self.at(parent);
        let further = self.at(above.jump);
        // Jumps double in length as the digits of a skew binary number do.
        let (jump, to_jump) = match above.depth - further.depth == further.depth - self.at(further.jump).depth
        {
            true => (further.jump, to_parent.then(above.to_jump).then(further.to_jump)),
            false => (parent, to_parent),
        };
        self.places[x as usize] = Some(Place { depth: above.depth + 1, parent, to_parent, jump, to_jump });
        crossed
    }

    fn at(&self, id: u32) -> Place {
        self.places[id as usize].expect("a cotangent comes only from where one has arrived")
    }

    fn nearest_common(&self, mut a: u32, mut b: u32) -> u32 {
        let (depth_a, depth_b) = (self.at(a).depth, self.at(b).depth);
        a = self.ancestor(a, depth_b);
        b = self.ancestor(b, depth_a);
        while a != b {
            let (at_a, at_b) = (self.at(a), self.at(b));
            (a, b) = if at_a.jump != at_b.jump { (at_a.jump, at_b.jump) } else { (at_a.parent, at_b.parent) };
        }
        a
    }

    /// The ancestor at this depth, or the node itself if it is not deeper.
    fn ancestor(&self, mut id: u32, depth: u32) -> u32 {
        while self.at(id).depth > depth {
            let place = self.at(id);
            id = if self.at(place.jump).depth >= depth { place.jump } else { place.parent };
        }
        id
    }

    /// What the paths from an ancestor to `id` cross.
    fn crossed(&self, ancestor: u32, mut id: u32) -> Crossed {
        let depth = self.at(ancestor).depth;
        let mut crossed = Crossed::NOTHING;
        while id != ancestor {
            let place = self.at(id);
            let jumps = self.at(place.jump).depth >= depth;
            (id, crossed) = match jumps {
                true => (place.jump, crossed.then(place.to_jump)),
                false => (place.parent, crossed.then(place.to_parent)),
            };
        }
        crossed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Edge::{Branch, Control, Interior, Skip};

    fn routes(crossed: Vec<Crossed>) -> Vec<Route> {
        crossed.into_iter().map(Crossed::route).collect()
    }

    #[test]
    fn a_nested_block_does_not_hide_the_outer_one() {
        // 6 = 0 + outer branch(5), 5 = 1 + inner branch(3), 1 = f(0), 3 = f(1): node 1 is a stream inside the branch.
        let mut tree = Routes::from(6);
        assert_eq!(routes(tree.place(5, &[(6, Branch)])), [Route::Branch]);
        assert_eq!(routes(tree.place(3, &[(5, Branch)])), [Route::Branch]);
        assert_eq!(routes(tree.place(1, &[(5, Skip), (3, Interior)])), [Route::Skip, Route::Branch]);
        assert_eq!(routes(tree.place(0, &[(6, Skip), (1, Interior)])), [Route::Skip, Route::Branch]);
    }

    #[test]
    fn a_coefficient_is_control_and_what_feeds_two_ways_is_mixed() {
        // 9 = mix(8) + b·branch(7); 6 = coefficients of 5; 4 = f(3) is the branch; 5 and 4 read 3, 3 = norm(0).
        let mut tree = Routes::from(9);
        tree.place(8, &[(9, Skip)]);
        tree.place(7, &[(9, Branch)]);
        assert_eq!(routes(tree.place(6, &[(9, Control), (8, Control)])), [Route::Control; 2]);
        tree.place(5, &[(6, Interior)]);
        tree.place(4, &[(7, Interior)]);
        assert_eq!(routes(tree.place(3, &[(5, Interior), (4, Interior)])), [Route::Control, Route::Branch]);
        assert_eq!(routes(tree.place(0, &[(8, Skip), (3, Interior)])), [Route::Skip, Route::Mixed]);
    }

    #[test]
    fn jumps_find_what_single_steps_find() {
        // A random program of 300 nodes; each node's addends come from up to three later ones.
        let (n, mut state) = (300u32, 7u64);
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let mut tree = Routes::from(n);
        // The set of nodes on every path to a node, and the bits on every and on some path from each, step by step.
        let mut passed: Vec<Vec<(u32, Crossed)>> = vec![Vec::new(); n as usize + 1];
        passed[n as usize] = vec![(n, Crossed::NOTHING)];
        for x in (0..n).rev() {
            let from: Vec<(u32, Edge)> = (0..=draw(3))
                .map(|_| {
                    let later = x + 1 + draw(u64::from((n - x).min(9))) as u32;
                    (later, [Interior, Skip, Branch, Control][draw(4) as usize])
                })
                .collect();
            let found = tree.place(x, &from);
            let nearest = passed[from[0].0 as usize]
                .iter()
                .filter(|(id, _)| from.iter().all(|(f, _)| passed[*f as usize].iter().any(|(p, _)| p == id)))
                .map(|(id, _)| *id)
                .min()
                .unwrap();
            let since = |f: u32| passed[f as usize].iter().find(|(p, _)| *p == nearest).unwrap().1;
            let expected: Vec<Crossed> =
                from.iter().map(|&(f, edge)| since(f).then(Crossed::edge(edge))).collect();
            assert_eq!(found, expected, "node {x}");
            let all = expected.iter().copied().reduce(Crossed::or).unwrap();
            let mut mine: Vec<(u32, Crossed)> =
                passed[nearest as usize].iter().map(|&(id, crossed)| (id, crossed.then(all))).collect();
            mine.push((x, Crossed::NOTHING));
            passed[x as usize] = mine;
        }
    }
}
