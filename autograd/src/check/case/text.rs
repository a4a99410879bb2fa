//! A case as a line of text: `f64[2,3] interior 7 permute(1); i64[2] below(3) 0 | 4 0`.
//!
//! Operands are separated by semicolons: dtype and shape, kind of values, their seed, then the views. The choices
//! follow a bar.

use std::fmt;
use std::str::FromStr;

use limpid_tensor::DType;

use super::{Case, Operand, Values, View};

/// A line that is no case.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{part:?} in a case: expected {expected}")]
pub struct CaseError {
    part: String,
    expected: &'static str,
}

const DTYPES: [DType; 5] = [DType::F32, DType::F64, DType::BF16, DType::I64, DType::Bool];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operands: Vec<String> = self.operands.iter().map(Operand::to_string).collect();
        write!(f, "{} |", operands.join("; "))?;
        self.choices.iter().try_for_each(|choice| write!(f, " {choice}"))
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        write!(f, "{}[{}] {} {}", self.dtype, sizes.join(","), self.values, self.seed)?;
        self.views.iter().try_for_each(|view| write!(f, " {view}"))
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            View::Permute(number) => write!(f, "permute({number})"),
            View::Slice { axis, before, after, step } => write!(f, "slice({axis},{before},{after},{step})"),
            View::Flip(axis) => write!(f, "flip({axis})"),
            View::Expand(axis) => write!(f, "expand({axis})"),
            View::Offset(skip) => write!(f, "offset({skip})"),
        }
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Values::Normal(std) => write!(f, "normal({std})"),
            Values::Below(n) => write!(f, "below({n})"),
            // The names of the others have no arguments.
            other => write!(f, "{}", format!("{other:?}").to_lowercase()),
        }
    }
}

fn error(part: &str, expected: &'static str) -> CaseError {
    CaseError { part: part.into(), expected }
}

/// `name(1,2)` as its name and arguments.
fn call(text: &str) -> Result<(&str, Vec<f64>), CaseError> {
    let Some((name, rest)) = text.split_once('(') else { return Ok((text, Vec::new())) };
    let inside = rest.strip_suffix(')').ok_or_else(|| error(text, "a closing parenthesis"))?;
    let number = |part: &str| part.trim().parse().map_err(|_| error(text, "numbers in the parentheses"));
    Ok((name, inside.split(',').map(number).collect::<Result<_, _>>()?))
}

impl FromStr for Case {
    type Err = CaseError;

    fn from_str(line: &str) -> Result<Case, CaseError> {
        let (operands, choices) = line.split_once('|').unwrap_or((line, ""));
        let choice = |part: &str| part.parse().map_err(|_| error(part, "a choice, a number below 65536"));
        Ok(Case {
            operands: operands.split(';').map(str::parse).collect::<Result<_, _>>()?,
            choices: choices.split_whitespace().map(choice).collect::<Result<_, _>>()?,
        })
    }
}

impl FromStr for Operand {
    type Err = CaseError;

    fn from_str(text: &str) -> Result<Operand, CaseError> {
        let mut words = text.split_whitespace();
        let mut word = |expected| words.next().ok_or_else(|| error(text, expected));
        let meta = word("a dtype and shape such as f64[2,3]")?;
        let (dtype, sizes) = meta
            .strip_suffix(']')
            .and_then(|meta| meta.split_once('['))
            .ok_or_else(|| error(meta, "a dtype and shape such as f64[2,3]"))?;
        let values = word("a kind of values such as interior")?.parse()?;
        let seed = word("a seed")?;
        let size = |part: &str| part.trim().parse().map_err(|_| error(meta, "sizes in the brackets"));
        Ok(Operand {
            shape: sizes.split(',').filter(|s| !s.trim().is_empty()).map(size).collect::<Result<_, _>>()?,
            dtype: DTYPES
                .into_iter()
                .find(|d| d.to_string() == dtype)
                .ok_or_else(|| error(dtype, "f32, f64, bf16, i64 or bool"))?,
            values,
            seed: seed.parse().map_err(|_| error(seed, "a seed, a whole number"))?,
            views: words.map(str::parse).collect::<Result<_, _>>()?,
        })
    }
}

impl FromStr for View {
    type Err = CaseError;

    fn from_str(text: &str) -> Result<View, CaseError> {
        let (name, arguments) = call(text)?;
        let whole = |&n: &f64| (n >= 0.0 && n.fract() == 0.0).then_some(n as usize);
        let numbers: Vec<usize> = arguments.iter().map_while(whole).collect();
        match (name, &numbers[..]) {
            ("permute", &[number]) => Ok(View::Permute(number)),
            ("slice", &[axis, before, after, step]) if step > 0 => {
                Ok(View::Slice { axis, before, after, step })
            }
            ("flip", &[axis]) => Ok(View::Flip(axis)),
            ("expand", &[axis]) => Ok(View::Expand(axis)),
            ("offset", &[skip]) => Ok(View::Offset(skip)),
            _ => Err(error(
                text,
                "permute(n), slice(axis,before,after,step), flip(axis), expand(axis) or offset(n)",
            )),
        }
    }
}

impl FromStr for Values {
    type Err = CaseError;

    fn from_str(text: &str) -> Result<Values, CaseError> {
        use Values::*;
        let plain = [Interior, Positive, Saturated, Ties, NearKink, Huge, Tiny, Special, Nan, Simplex];
        let (name, arguments) = call(text)?;
        match (name, &arguments[..]) {
            ("normal", &[std]) => Ok(Normal(std)),
            ("below", &[n]) if n >= 1.0 => Ok(Below(n as usize)),
            _ => plain
                .into_iter()
                .find(|values| values.to_string() == text)
                .ok_or_else(|| error(text, "a kind of values such as interior, ties, normal(3) or below(4)")),
        }
    }
}
