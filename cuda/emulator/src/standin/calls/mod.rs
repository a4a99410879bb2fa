//! The driver's functions, as C sees them. Each file has those of one chapter of its manual.

mod capture;
mod device;
mod error;
mod event;
mod launch;
mod memory;
mod module;
mod stream;

use super::trampoline::Function;

/// Makes functions of the driver: each counts its call, may be made to fail, and answers a number.
macro_rules! functions {
    ($(fn $name:ident($driver:ident $(, $argument:ident: $type:ty)* $(,)?) $body:block)*) => {
        $(
            #[allow(non_snake_case, reason = "the names are the driver's")]
            extern "C" fn $name($($argument: $type),*) -> std::ffi::c_int {
                $crate::standin::driver::enter(
                    stringify!($name),
                    |$driver: &mut $crate::standin::driver::Driver| -> $crate::standin::status::Answer { $body },
                )
            }
        )*

        /// The functions of this file.
        pub(super) fn functions() -> Vec<$crate::standin::trampoline::Function> {
            vec![$($crate::standin::trampoline::Function {
                name: stringify!($name),
                address: $name as *const (),
            }),*]
        }
    };
}
pub(crate) use functions;

/// All functions of the driver that there are.
pub(super) fn all() -> Vec<Function> {
    let chapters = [
        capture::functions,
        device::functions,
        error::functions,
        event::functions,
        launch::functions,
        memory::functions,
        module::functions,
        stream::functions,
    ];
    chapters.into_iter().flat_map(|functions| functions()).collect()
}
