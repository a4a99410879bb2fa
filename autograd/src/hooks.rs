//! Looking at values and cotangents as they come by.
//!
//! A hook looks and changes nothing: what changes a value or a gradient is an operation, which stands on the tape. No
//! borrow of the tape is held while a hook runs, so it may record, print and differentiate; neither what it records nor
//! what derivative rules record is shown to hooks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use limpid_tensor::Tensor;

use crate::cotangent::Cotangent;
use crate::error::Result;
use crate::glob::Glob;
use crate::tape::{Tape, set_while_alive};
use crate::var::Var;

type Look = Rc<dyn for<'t> Fn(Var<'t>, &Tensor)>;

/// Who wants to see what.
#[derive(Default)]
pub(crate) struct Hooks {
    forward: RefCell<Vec<(Glob, Look)>>,
    backward: RefCell<Vec<(Glob, Look)>>,
    suspended: Cell<bool>,
}

impl Hooks {
    /// While the result lives, no hook sees anything.
    pub fn suspend(&self) -> impl Drop + '_ {
        set_while_alive(&self.suspended, true)
    }

    fn is_idle(&self, hooks: &RefCell<Vec<(Glob, Look)>>) -> bool {
        self.suspended.get() || hooks.borrow().is_empty()
    }
}

impl Tape {
    /// Calls `look` with every value as soon as it is computed, of nodes whose path matches `pattern`. A node's path is its
    /// scope and the operation's name, `layers.3/write/add`, or a leaf's name. Patterns are
    /// [`Glob`]s.
    ///
    /// Hooks stay with the tape when it is [cleared](Tape::clear). They do not see values that are computed again.
    ///
    /// ```
    /// use std::cell::RefCell;
    /// use std::rc::Rc;
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let seen = Rc::new(RefCell::new(Vec::new()));
    /// let log = seen.clone();
    /// tape.on_forward("block.*/tanh", move |var, value| {
    ///     log.borrow_mut().push((var.site().scope, value.item().unwrap()))
    /// });
    /// let x = tape.variable(&Tensor::scalar(0.0f64));
    /// let y = tape.scope("block.0", || x.tanh());
    /// tape.scope("block.1", || y.tanh() + 1.0);
    /// assert_eq!(*seen.borrow(), [("block.0".into(), 0.0), ("block.1".into(), 0.0)]);
    /// ```
    pub fn on_forward(&self, pattern: &str, look: impl for<'t> Fn(Var<'t>, &Tensor) + 'static) {
        self.hooks.forward.borrow_mut().push((Glob::new(pattern), Rc::new(look)));
    }

    /// Calls `look` with every gradient as soon as it is complete, of nodes whose path matches `pattern` (as for
    /// [`on_forward`](Tape::on_forward)), in every pass of [`backward`](Tape::backward), [`grad`](Tape::grad) and
    /// [`vjp`](Tape::vjp), with books or without. Passes that take gradients apart, as for a spectrum or a Jacobian per
    /// sample, are not shown.
    ///
    /// ```
    /// use std::cell::Cell;
    /// use std::rc::Rc;
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let largest = Rc::new(Cell::new(0.0));
    /// let log = largest.clone();
    /// tape.on_backward("**", move |_, gradient| log.set(gradient.item().unwrap().abs().max(log.get())));
    /// let x = tape.variable(&Tensor::scalar(3.0f64));
    /// tape.backward(x * x)?;
    /// assert_eq!(largest.get(), 6.0);
    /// # Ok::<(), limpid_autograd::Error>(())
    /// ```
    pub fn on_backward(&self, pattern: &str, look: impl for<'t> Fn(Var<'t>, &Tensor) + 'static) {
        self.hooks.backward.borrow_mut().push((Glob::new(pattern), Rc::new(look)));
    }

    /// Shows the value of a node just computed.
    pub(crate) fn show_value(&self, id: u32) {
        if self.hooks.is_idle(&self.hooks.forward) {
            return;
        }
        let value = self.nodes.borrow()[id as usize].value.clone();
        if let Some(value) = value {
            self.show(&self.hooks.forward, id, &value);
        }
    }

    /// Shows the whole cotangent of a node.
    pub(crate) fn show_cotangent(&self, id: u32, cotangent: &Cotangent<'_>) -> Result<()> {
        if self.hooks.is_idle(&self.hooks.backward) {
            return Ok(());
        }
        match cotangent {
            Cotangent::Value(value) => self.show(&self.hooks.backward, id, value),
            // On a dry tape there is nothing to see.
            Cotangent::Node(_) if self.is_dry() => {}
            Cotangent::Node(var) => self.show(&self.hooks.backward, id, &self.value(*var)?),
        }
        Ok(())
    }

    fn show(&self, hooks: &RefCell<Vec<(Glob, Look)>>, id: u32, value: &Tensor) {
        let site = self.site(id);
        let path = if site.scope.is_empty() { site.op } else { format!("{}/{}", site.scope, site.op) };
        let looking: Vec<Look> = {
            let hooks = hooks.borrow();
            hooks.iter().filter(|(glob, _)| glob.matches(&path)).map(|(_, look)| look.clone()).collect()
        };
        // What a hook records belongs where the node does, also while a backward pass is elsewhere.
        let scope = self.nodes.borrow()[id as usize].scope;
        let _back = self.return_to_scope();
        self.scopes.borrow_mut().enter(scope);
        let _alone = self.hooks.suspend();
        looking.iter().for_each(|look| look(self.var(id), value));
    }
}
