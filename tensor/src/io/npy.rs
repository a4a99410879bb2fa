//! numpy's file for one array.
//!
//! `\x93NUMPY`, two version bytes, the header's length (2 bytes in version 1.0, 4 in 2.0 and 3.0), the header, the
//! elements. The header is a Python dict such as `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`,
//! padded so that the elements start at a multiple of 64. Specification: `numpy.lib.format`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::{byte_count, into_checked_tensor, write_atomically, write_elements};
use crate::{DType, Error, HostBuffer, Result, Shape, Tensor};

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The four element types both sides have.
const DESCRIPTIONS: [(DType, &str); 4] =
    [(DType::F32, "<f4"), (DType::F64, "<f8"), (DType::I64, "<i8"), (DType::Bool, "|b1")];

/// Writes a tensor of f32, f64, i64 or bool as npy version 1.0; `numpy.load` opens it.
///
/// The same tensor gives the same bytes. The file is replaced [atomically](super::write_atomically).
///
/// ```
/// use limpid_tensor::{Tensor, io::npy};
/// # fn main() -> limpid_tensor::Result<()> {
/// let path = std::env::temp_dir().join(format!("limpid-{}.npy", std::process::id()));
/// npy::save(&path, &Tensor::from_vec(vec![1.0f32, 2.0], [2, 1]))?;
/// assert_eq!(npy::load(&path)?.to_vec::<f32>()?, [1.0, 2.0]);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Format`] for bf16, which npy has no name for, or a shape of thousands of axes. [`Error::Io`] if the
/// system refuses, [`Error::Device`] if the tensor cannot be read.
pub fn save(path: impl AsRef<Path>, x: &Tensor) -> Result<()> {
    let path = path.as_ref();
    let header = header(x).map_err(|(expected, found)| Error::format(path, expected, found))?;
    write_atomically(path, |out| {
        out.write_all(&header)?;
        write_elements(out, x)
    })
}

/// Reads an array of f32, f64, i64 or bool, little-endian, from npy version 1.0, 2.0 or 3.0. An array in Fortran
/// order becomes a permuted view.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is not such an array, saying what it is.
pub fn load(path: impl AsRef<Path>) -> Result<Tensor> {
    let path = path.as_ref();
    let open = || {
        let file = File::open(path)?;
        Ok((file.metadata()?.len(), file))
    };
    let (length, file) = open().map_err(|e| Error::io(path, e))?;
    read(path, BufReader::new(file), length)
}

/// Everything before the elements, or (expected, found).
fn header(x: &Tensor) -> Result<Vec<u8>, (String, String)> {
    let (_, description) = DESCRIPTIONS.iter().find(|(dtype, _)| *dtype == x.dtype()).ok_or_else(|| {
        let found = format!("{}, which npy has no dtype for; cast it first", x.meta());
        ("a tensor of f32, f64, i64 or bool".to_string(), found)
    })?;
    let shape = match x.shape()[..] {
        [n] => format!("({n},)"),
        ref sizes => format!("({})", sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    };
    let dict = format!("{{'descr': '{description}', 'fortran_order': False, 'shape': {shape}, }}");
    let start = MAGIC.len() + 4;
    let padded = (start + dict.len() + 1).next_multiple_of(64) - start;
    let length = u16::try_from(padded).map_err(|_| {
        ("a shape that a header of 65535 bytes can hold".to_string(), format!("{} axes", x.shape().len()))
    })?;
    let mut header = [&MAGIC[..], &[1, 0], &length.to_le_bytes(), dict.as_bytes()].concat();
    header.resize(start + padded - 1, b' ');
    header.push(b'\n');
    Ok(header)
}

/// As [`load`], from anything that yields `length` bytes; nothing larger than that is allocated.
fn read(path: &Path, mut source: impl Read, length: u64) -> Result<Tensor> {
    let format = |expected: &str, found: String| Error::format(path, expected, found);
    let mut rest = length;
    let mut take = |n: u64, what: &str| {
        if n > rest {
            return Err(format(&format!("{n} bytes of {what}"), format!("{rest} bytes left in the file")));
        }
        rest -= n;
        let mut bytes = vec![0; n as usize];
        source.read_exact(&mut bytes).map_err(|e| Error::io(path, e))?;
        Ok(bytes)
    };
    let magic = take(8, "npy magic and version")?;
    if magic[..6] != MAGIC[..] {
        return Err(format(
            "an npy file, which starts with \\x93NUMPY",
            magic[..6].escape_ascii().to_string(),
        ));
    }
    let width = match magic[6..] {
        [1, 0] => 2,
        [2 | 3, 0] => 4,
        _ => return Err(format("npy version 1.0, 2.0 or 3.0", format!("version {}.{}", magic[6], magic[7]))),
    };
    let digits = take(width, "header length")?;
    let size = digits.iter().rev().fold(0, |size, &byte| size << 8 | u64::from(byte));
    let text = take(size, "header")?;
    let text = String::from_utf8(text)
        .map_err(|e| format("a header in UTF-8", e.into_bytes().escape_ascii().to_string()))?;
    let header = Header::parse(&text)
        .map_err(|found| format("a dict of descr, fortran_order and shape in the header", found))?;
    let Some(&(dtype, _)) = DESCRIPTIONS.iter().find(|(_, name)| *name == header.descr) else {
        return Err(format(
            "dtype '<f4', '<f8', '<i8' or '|b1' (f32, f64, i64, bool)",
            described(&header.descr),
        ));
    };

    // In Fortran order the first axis varies fastest: the elements are those of the reversed shape.
    let mut stored = header.shape;
    if header.fortran_order {
        stored.reverse();
    }
    let Some(bytes) = byte_count(&stored, dtype) else {
        return Err(format("an array that fits in memory", format!("{dtype}{}", Shape::from(stored))));
    };
    if bytes as u64 != rest {
        let expected = format!("{bytes} bytes of elements, {dtype}{} as stored", Shape::from(stored));
        return Err(format(&expected, format!("{rest}")));
    }
    let mut buffer = HostBuffer::new(bytes);
    source.read_exact(buffer.as_mut::<u8>()).map_err(|e| Error::io(path, e))?;
    let tensor = into_checked_tensor(buffer, Shape::from(stored), dtype)
        .map_err(|found| format("bool elements, bytes 0 or 1", found))?;
    if header.fortran_order {
        let reversed: Vec<usize> = (0..tensor.shape().len()).rev().collect();
        return Ok(tensor.permute(&reversed));
    }
    Ok(tensor)
}

/// A dtype description with what it means, where that is plain: `'<i4' (i32)`.
fn described(descr: &str) -> String {
    let order = if descr.starts_with('>') { "big-endian " } else { "" };
    let kind = descr.trim_start_matches(['<', '>', '=', '|']);
    let bytes = |at: usize| kind.get(at..).and_then(|n| n.parse::<u16>().ok());
    let meaning = match (kind.chars().next(), bytes(1)) {
        (Some(letter @ ('f' | 'i' | 'u')), Some(n @ 1..=16)) => format!("{letter}{}", 8 * n),
        (Some('c'), Some(n @ 1..=32)) => format!("complex of {} bits", 8 * n),
        (Some('U' | 'S'), _) => "text".to_string(),
        (Some('O'), _) => "Python objects".to_string(),
        (Some('V'), _) => "raw bytes".to_string(),
        _ => return format!("'{descr}'"),
    };
    format!("'{descr}' ({order}{meaning})")
}

/// What an npy header says.
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads the dict; the error is what was found in its place.
    fn parse(text: &str) -> Result<Header, String> {
        let mut literal = Literal { rest: text };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        literal.expect('{')?;
        while !literal.eat('}') {
            let key = literal.string()?;
            literal.expect(':')?;
            match key {
                "descr" if literal.peek() == Some('[') => return Err("a structured dtype".to_string()),
                "descr" => descr = Some(literal.string()?.to_string()),
                "fortran_order" => fortran_order = Some(literal.boolean()?),
                "shape" => shape = Some(literal.tuple()?),
                other => return Err(format!("the key '{}'", other.escape_debug())),
            }
            if !literal.eat(',') {
                literal.expect('}')?;
                break;
            }
        }
        if literal.peek().is_some() {
            return Err(literal.found());
        }
        let missing = |key: &str| format!("no {key}");
        Ok(Header {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// The few Python literals a header is made of.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.rest = &self.rest[c.len_utf8()..];
        }
        found
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.eat(c) { Ok(()) } else { Err(format!("{} where '{c}' should be", self.found())) }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.eat('\'') { '\'' } else { self.expect('"').map(|()| '"')? };
        let (string, rest) = self.rest.split_once(quote).ok_or("a string without an end")?;
        self.rest = rest;
        Ok(string)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.peek();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(format!("{} where True or False should be", self.found()))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut sizes = Vec::new();
        self.expect('(')?;
        while !self.eat(')') {
            self.peek();
            let digits = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (number, rest) = self.rest.split_at(digits);
            sizes.push(number.parse().map_err(|_| format!("{} where a size should be", self.found()))?);
            self.rest = rest;
            if !self.eat(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(sizes)
    }

    /// The start of what is left, for a message.
    fn found(&self) -> String {
        match self.rest.chars().take(16).collect::<String>() {
            nothing if nothing.is_empty() => "the end of the header".to_string(),
            start => format!("'{}'", start.escape_debug()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Directory;
    use super::*;
    use crate::rng::Key;

    /// The bytes numpy 2.4 wrote: version and length, the dict padded to 128 bytes in all, the elements.
    fn numpy(version: &[u8], dict: &str, elements: &[u8]) -> Vec<u8> {
        let mut bytes = [b"\x93NUMPY", version, dict.as_bytes()].concat();
        bytes.resize(127, b' ');
        bytes.push(b'\n');
        [&bytes, elements].concat()
    }

    const V1: &[u8] = b"\x01\x00v\x00";
    const V2: &[u8] = b"\x02\x00t\x00\x00\x00";
    const V3: &[u8] = b"\x03\x00t\x00\x00\x00";

    /// `[[1, 2, 3], [4, 5, 6.5]]` in f32.
    fn matrix() -> Vec<u8> {
        let elements = b"\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40\0\0\xa0\x40\0\0\xd0\x40";
        numpy(V1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", elements)
    }

    fn parse(bytes: &[u8]) -> Result<Tensor> {
        read(Path::new("x.npy"), bytes, bytes.len() as u64)
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = parse(bytes).expect_err("must be refused");
        assert!(matches!(error, Error::Format { .. }), "{error:?}");
        error.to_string()
    }

    fn written(x: &Tensor) -> Vec<u8> {
        let mut bytes = header(x).unwrap();
        write_elements(&mut bytes, x).unwrap();
        bytes
    }

    #[test]
    fn what_numpy_wrote_is_read_and_written_the_same() {
        let x = parse(&matrix()).unwrap();
        assert_eq!(x.meta().to_string(), "f32[2, 3]");
        assert_eq!(x.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]);
        assert_eq!(written(&x), matrix());

        let dict = "{'descr': '<i8', 'fortran_order': False, 'shape': (), }";
        let scalar = numpy(V1, dict, &(-7i64).to_le_bytes());
        let x = parse(&scalar).unwrap();
        assert_eq!((x.meta().to_string().as_str(), x.item().unwrap()), ("i64[]", -7.0));
        assert_eq!(written(&x), scalar);

        let mask = numpy(V1, "{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }", &[1, 0, 1]);
        let x = parse(&mask).unwrap();
        assert_eq!(x.to_vec::<bool>().unwrap(), [true, false, true]);
        assert_eq!(written(&x), mask);

        let empty = numpy(V1, "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 3), }", &[]);
        let x = parse(&empty).unwrap();
        assert_eq!(x.meta().to_string(), "f64[0, 3]");
        assert_eq!(written(&x), empty);
    }

    #[test]
    fn versions_2_and_3_are_read() {
        let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
        for version in [V2, V3] {
            let x = parse(&numpy(version, dict, b"\0\0\0\x3f\0\0\0\x80")).unwrap();
            let bits: Vec<u32> = x.to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect();
            assert_eq!(bits, [0.5f32.to_bits(), (-0.0f32).to_bits()]);
        }
    }

    #[test]
    fn fortran_order_is_a_permuted_view() {
        let elements: Vec<u8> =
            [1.0f64, 4.0, 2.0, 5.0, 3.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let dict = "{'descr': '<f8', 'fortran_order': True, 'shape': (2, 3), }";
        let x = parse(&numpy(V1, dict, &elements)).unwrap();
        assert_eq!(x.meta().to_string(), "f64[2, 3]");
        assert_eq!(x.layout().strides(), [1, 2]);
        assert_eq!(x.to_vec::<f64>().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        // Written in row-major order, as every tensor is.
        let y = parse(&written(&x)).unwrap();
        assert!(y.layout().is_contiguous());
        assert_eq!(y.to_vec::<f64>().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn other_dtypes_are_named() {
        let with = |descr: &str| {
            numpy(V1, &format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (2,), }}"), &[0; 8])
        };
        assert!(refusal(&with("'<i4'")).contains("found '<i4' (i32)"));
        assert!(refusal(&with("'<f2'")).contains("found '<f2' (f16)"));
        assert!(refusal(&with("'>f4'")).contains("found '>f4' (big-endian f32)"));
        assert!(refusal(&with("'<c8'")).contains("found '<c8' (complex of 64 bits)"));
        assert!(refusal(&with("'|O'")).contains("(Python objects)"));
        assert!(refusal(&with("[('a', '<f4'), ('b', '<i8')]")).contains("found a structured dtype"));
        let bf16 = Tensor::zeros([2], DType::BF16);
        let error = save("unwritten.npy", &bf16).unwrap_err().to_string();
        assert!(error.contains("found bf16[2], which npy has no dtype for; cast it first"), "{error}");
    }

    #[test]
    fn foreign_and_damaged_files_say_what_was_found() {
        let with = |dict: &str| numpy(V1, dict, &[0; 8]);
        assert!(refusal(b"").contains("found 0 bytes left in the file"));
        assert!(refusal(b"step,loss\n1,0.5\n").contains("found step,l"));
        assert!(refusal(b"\x93NUMPY\x04\x00v\x00").contains("found version 4.0"));
        assert!(refusal(&with("{'descr': '<f4', 'shape': (2,), }")).contains("found no fortran_order"));
        assert!(refusal(&with("['<f4', False, (2,)]")).contains("where '{' should be"));
        let shape =
            |shape: &str| with(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"));
        assert!(refusal(&shape("(3,)")).contains("expected 12 bytes of elements, f32[3] as stored, found 8"));
        assert!(refusal(&shape("(1,)")).contains("expected 4 bytes of elements"));
        assert!(refusal(&shape("(-2,)")).contains("where a size should be"));
        assert!(refusal(&shape("(99999999999, 99999999999)")).contains("an array that fits in memory"));
        assert!(refusal(&shape("(0, 99999999999, 99999999999)")).contains("an array that fits in memory"));
        let truth = numpy(V1, "{'descr': '|b1', 'fortran_order': False, 'shape': (1,), }", &[2]);
        assert!(refusal(&truth).contains("found the byte 2"));
        let deep = Tensor::zeros(vec![1; 30_000], DType::F32);
        assert!(save("unwritten.npy", &deep).unwrap_err().to_string().contains("found 30000 axes"));
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = matrix();
        for end in 0..whole.len() {
            refusal(&whole[..end]);
        }
        refusal(&[&whole[..], &[0]].concat());
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let whole = matrix();
        for trial in 0..50_000 {
            let key = Key::new(1).fold(trial);
            let mut damaged = whole.clone();
            for flip in 0..1 + key.bits(0) % 3 {
                // Mostly in the header, where the structure is.
                let at = key.bits(1 + 2 * flip) as usize % 100;
                damaged[at] = key.bits(2 + 2 * flip) as u8;
            }
            if let Ok(x) = parse(&damaged) {
                assert_eq!(x.meta().bytes(), 24);
            }
        }
    }

    #[test]
    fn a_file_comes_back_and_a_missing_one_is_named() {
        let directory = Directory::new("npy");
        let path = directory.file("x.npy");
        let x = Tensor::from_vec((0..60).map(f64::from).collect(), [3, 4, 5]);
        save(&path, &x.slice(0, 1, 3, 1)).unwrap();
        let y = load(&path).unwrap();
        assert_eq!(y.meta().to_string(), "f64[2, 4, 5]");
        assert_eq!(y.to_vec::<f64>().unwrap(), (20..60).map(f64::from).collect::<Vec<_>>());
        let error = load(directory.file("none.npy")).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("none.npy")), "{error:?}");
        let error = load(directory.file("")).unwrap_err();
        assert!(matches!(error, Error::Io { .. } | Error::Format { .. }), "a directory: {error:?}");
    }
}
