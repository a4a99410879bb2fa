//! The run-time compiler's functions, as C sees them: g++ compiles what NVRTC would.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};

use super::clock::Handle;
use super::driver::words;
use super::image::Image;
use super::installed;
use super::mistake::Mistake;
use super::pointer::{InOut, Many, Out, Text};
use super::trampoline::Function;
use crate::{Build, Source, compile};

/// The version that is stood in for.
const VERSION: (c_int, c_int) = (13, 0);
/// Architectures that kernels may be compiled for, which makes no difference here.
const ARCHITECTURES: [c_int; 4] = [80, 90, 100, 120];

/// An error of the compiler, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Failure(c_int);

impl Failure {
    const INVALID_INPUT: Failure = Failure(3);
    const INVALID_PROGRAM: Failure = Failure(4);
    const COMPILATION: Failure = Failure(6);
    const INTERNAL_ERROR: Failure = Failure(11);

    fn words(number: c_int) -> &'static std::ffi::CStr {
        match number {
            0 => c"NVRTC_SUCCESS",
            3 => c"NVRTC_ERROR_INVALID_INPUT",
            4 => c"NVRTC_ERROR_INVALID_PROGRAM",
            6 => c"NVRTC_ERROR_COMPILATION",
            11 => c"NVRTC_ERROR_INTERNAL_ERROR",
            _ => c"NVRTC_ERROR unknown",
        }
    }
}

type Answer<T = ()> = Result<T, Failure>;

/// A text to compile, and what came of it.
struct Unit {
    name: String,
    text: String,
    headers: Vec<(String, String)>,
    log: String,
    image: Option<Image>,
}

/// Texts by their handles. Apart from the driver, since compiling takes long.
#[derive(Default)]
struct Units {
    units: BTreeMap<Handle, Unit>,
    last: Handle,
}

static UNITS: Mutex<Units> = Mutex::new(Units { units: BTreeMap::new(), last: 0 });

fn units() -> MutexGuard<'static, Units> {
    UNITS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Units {
    fn get(&self, handle: Handle) -> Answer<&Unit> {
        self.units.get(&handle).ok_or(Failure::INVALID_PROGRAM)
    }
}

/// Answers a call, as [`driver::enter`](super::driver::enter) does, but without holding the driver.
fn enter(name: &'static str, body: impl FnOnce() -> Answer) -> c_int {
    let Some(stand_in) = installed() else { return Failure::INTERNAL_ERROR.0 };
    {
        let mut driver = stand_in.lock();
        *driver.calls.entry(name).or_default() += 1;
        if let Some(code) = driver.failures.remove(name) {
            return code;
        }
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(answer) => answer.map_or_else(|failure| failure.0, |()| 0),
        Err(panic) => {
            let broken = Mistake::Broken { function: name.to_string(), message: words(&*panic) };
            stand_in.lock().report(broken);
            Failure::INTERNAL_ERROR.0
        }
    }
}

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[allow(non_snake_case, reason = "the names are the compiler's")]
            extern "C" fn $name($($argument: $type),*) -> c_int {
                enter(stringify!($name), || -> Answer { $body })
            }
        )*

        /// All functions of the compiler that there are, but for the one that does not answer a number.
        fn numbered_functions() -> Vec<Function> {
            vec![$(Function { name: stringify!($name), address: $name as *const () }),*]
        }
    };
}

functions! {
    fn nvrtcVersion(major: Out<c_int>, minor: Out<c_int>) {
        put(major, VERSION.0)?;
        put(minor, VERSION.1)
    }

    fn nvrtcGetNumSupportedArchs(count: Out<c_int>) {
        put(count, ARCHITECTURES.len() as c_int)
    }

    fn nvrtcGetSupportedArchs(architectures: Out<c_int>) {
        architectures.set_all(&ARCHITECTURES).map_err(|_| Failure::INVALID_INPUT)
    }

    fn nvrtcCreateProgram(
        program: Out<Handle>,
        text: Text,
        name: Text,
        headers: c_int,
        header_texts: Many<Text>,
        header_names: Many<Text>,
    ) {
        let count = usize::try_from(headers).map_err(|_| Failure::INVALID_INPUT)?;
        if count > 0 && (header_texts.is_null() || header_names.is_null()) {
            return Err(Failure::INVALID_INPUT);
        }
        let header = |(name, text): (&Text, &Text)| Some((name.read()?, text.read()?));
        let (names, texts) = (header_names.take(count), header_texts.take(count));
        let headers: Option<Vec<_>> = names.iter().zip(&texts).map(header).collect();
        let unit = Unit {
            name: name.read().filter(|name| !name.is_empty()).unwrap_or_else(|| "default_program".to_string()),
            text: text.read().ok_or(Failure::INVALID_INPUT)?,
            headers: headers.ok_or(Failure::INVALID_INPUT)?,
            log: String::new(),
            image: None,
        };
        let mut units = units();
        units.last += 1;
        let handle = units.last;
        units.units.insert(handle, unit);
        put(program, handle)
    }

    fn nvrtcDestroyProgram(program: InOut<Handle>) {
        let removed = units().units.remove(&program.get().ok_or(Failure::INVALID_PROGRAM)?);
        program.out().set(0).map_err(|_| Failure::INVALID_INPUT)?;
        removed.map(|_| ()).ok_or(Failure::INVALID_PROGRAM)
    }

    fn nvrtcCompileProgram(program: Handle, count: c_int, options: Many<Text>) {
        let count = usize::try_from(count).map_err(|_| Failure::INVALID_INPUT)?;
        let options: Vec<String> = options.take(count).into_iter().filter_map(Text::read).collect();
        let mut unit = units().units.remove(&program).ok_or(Failure::INVALID_PROGRAM)?;
        let compiled = unit.compile(&options);
        units().units.insert(program, unit);
        compiled
    }

    fn nvrtcGetCUBINSize(program: Handle, bytes: Out<usize>) {
        put(bytes, units().get(program)?.bytes()?.len())
    }

    fn nvrtcGetCUBIN(program: Handle, image: Out<u8>) {
        image.set_all(&units().get(program)?.bytes()?).map_err(|_| Failure::INVALID_INPUT)
    }

    fn nvrtcGetPTXSize(program: Handle, bytes: Out<usize>) {
        put(bytes, units().get(program)?.bytes()?.len())
    }

    fn nvrtcGetPTX(program: Handle, image: Out<u8>) {
        image.set_all(&units().get(program)?.bytes()?).map_err(|_| Failure::INVALID_INPUT)
    }

    fn nvrtcGetProgramLogSize(program: Handle, bytes: Out<usize>) {
        put(bytes, units().get(program)?.log.len() + 1)
    }

    fn nvrtcGetProgramLog(program: Handle, log: Out<u8>) {
        let text = format!("{}\0", units().get(program)?.log);
        log.set_all(text.as_bytes()).map_err(|_| Failure::INVALID_INPUT)
    }
}

extern "C" fn error_words(number: c_int) -> *const c_char {
    Failure::words(number).as_ptr()
}

/// All functions of the compiler that there are.
pub(super) fn all() -> Vec<Function> {
    let mut functions = numbered_functions();
    functions.push(Function { name: "nvrtcGetErrorString", address: error_words as *const () });
    functions
}

fn put<T>(place: Out<T>, value: T) -> Answer {
    place.set(value).map_err(|_| Failure::INVALID_INPUT)
}

impl Unit {
    fn compile(&mut self, options: &[String]) -> Answer {
        let stand_in = installed().ok_or(Failure::INTERNAL_ERROR)?;
        let (build, cache) = {
            let driver = stand_in.lock();
            (if driver.config.check { Build::Checked } else { Build::Fast }, driver.config.cache.clone())
        };
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, text)| (&name[..], &text[..])).collect();
        let defines = defines(options);
        let source = Source { name: &self.name, text: &self.text, headers: &headers, defines: &defines };
        let compiled = compile(&source, build, &cache);
        match compiled {
            Ok(library) => {
                self.log.clear();
                self.image = Image::of(&library);
                self.image.as_ref().map(|_| ()).ok_or(Failure::INTERNAL_ERROR)
            }
            Err(error) => {
                self.log = error.to_string().replace('\0', "");
                self.image = None;
                Err(Failure::COMPILATION)
            }
        }
    }

    fn bytes(&self) -> Answer<Vec<u8>> {
        self.image.as_ref().map(Image::bytes).ok_or(Failure::INVALID_PROGRAM)
    }
}

/// The macros among the options: `-DX=1`, `-D X=1`, `--define-macro=X=1`, `--define-macro X=1`.
fn defines(options: &[String]) -> Vec<String> {
    let mut defines = Vec::new();
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let joined = option
            .strip_prefix("--define-macro=")
            .or(option.strip_prefix("-D").filter(|rest| !rest.is_empty()));
        match joined {
            Some(define) => defines.push(define.to_string()),
            None if option == "-D" || option == "--define-macro" => defines.extend(options.next().cloned()),
            None => {}
        }
    }
    defines
}

#[cfg(test)]
mod tests {
    use super::defines;

    #[test]
    fn macros_are_found_in_all_their_forms() {
        let options = [
            "-DA=1",
            "--std=c++17",
            "-D",
            "B",
            "--define-macro=C=x y",
            "--define-macro",
            "D=2",
            "-arch=sm_90",
        ];
        assert_eq!(defines(&options.map(String::from)), ["A=1", "B", "C=x y", "D=2"]);
    }
}
