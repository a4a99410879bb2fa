//! Panics that are findings: a rule that panics is wrong, and that is said once, where it belongs.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// From now on panics are printed only outside of [`quietly`].
pub fn print_unexpected_panics_only() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !EXPECTED.get() {
            print(panic);
        }
    }));
}

/// Runs what may panic and notices it itself.
pub fn quietly<T>(f: impl FnOnce() -> T) -> T {
    EXPECTED.set(true);
    let result = f();
    EXPECTED.set(false);
    result
}

/// What `f` says, a panic as an error.
pub fn caught<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    quietly(|| catch_unwind(AssertUnwindSafe(f))).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("panicked: {}", message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("")))
    })
}
