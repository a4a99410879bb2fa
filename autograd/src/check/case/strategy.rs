//! Every generator as a `proptest` strategy: it shrinks as it does here, on the numbers that were drawn.

use std::fmt;

use limpid_tensor::rng::Key;
use proptest::prelude::Rng;
use proptest::strategy::{NewTree, Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::draw::{Draw, Drawn, Shrink};

impl<T: fmt::Debug + 'static> Strategy for Drawn<T> {
    type Tree = Tree<T>;
    type Value = T;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Self> {
        let mut draw = Draw::random(Key::new(runner.rng().next_u64()));
        self.draw(&mut draw);
        let numbers = draw.drawn();
        Ok(Tree { drawn: self.clone(), shrink: Shrink::new(numbers.clone()), current: numbers })
    }
}

/// The numbers behind a value, and the way to smaller ones.
#[derive(Debug)]
pub struct Tree<T> {
    drawn: Drawn<T>,
    shrink: Shrink,
    current: Vec<u32>,
}

impl<T: fmt::Debug + 'static> Tree<T> {
    fn advance(&mut self) -> bool {
        match self.shrink.next() {
            Some(numbers) => {
                self.current = numbers;
                true
            }
            None => {
                self.current = self.shrink.best().to_vec();
                false
            }
        }
    }
}

impl<T: fmt::Debug + 'static> ValueTree for Tree<T> {
    type Value = T;

    fn current(&self) -> T {
        self.drawn.draw(&mut Draw::of(self.current.clone()))
    }

    fn simplify(&mut self) -> bool {
        if self.current != self.shrink.best() {
            let mut draw = Draw::of(self.current.clone());
            self.drawn.draw(&mut draw);
            self.shrink.keep(draw.drawn());
        }
        self.advance()
    }

    fn complicate(&mut self) -> bool {
        self.advance()
    }
}
