//! Named tensors and text metadata in one file: the safetensors format.
//!
//! The length of the header in 8 bytes, the header (JSON: each name's dtype, shape and place), the elements.
//! Reading goes through the `safetensors` crate, which checks that the places tile the file. Writing does not: the
//! crate keeps metadata in a hash map, so that the same tensors would not always give the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ::safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};

use super::{byte_count, into_checked_tensor, write_atomically, write_elements};
use crate::{DType, Error, HostBuffer, Result, Shape, Tensor};

/// The header's entry for metadata, which therefore no tensor can be called.
const METADATA: &str = "__metadata__";

/// The dtypes a file can hold.
const DTYPES: [DType; 5] = [DType::F32, DType::F64, DType::BF16, DType::I64, DType::Bool];

/// A dtype as the format names it.
fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::Bool => Dtype::BOOL,
    }
}

/// What a file held.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The text that was stored beside them.
    pub metadata: BTreeMap<String, String>,
}

/// Writes named tensors and metadata.
///
/// The bytes depend on the names, tensors and metadata alone, not on their order: wider dtypes come first, so that
/// every tensor is aligned, then names in order. The file is replaced [atomically](super::write_atomically).
///
/// ```
/// use limpid_tensor::{Tensor, io::safetensors};
/// # fn main() -> limpid_tensor::Result<()> {
/// let path = std::env::temp_dir().join(format!("limpid-{}.safetensors", std::process::id()));
/// let metadata = [("step".to_string(), "7".to_string())].into();
/// safetensors::save(&path, [("layer.weight", Tensor::scalar(2.5f32))], &metadata)?;
/// let loaded = safetensors::load(&path)?;
/// assert_eq!(loaded.tensors["layer.weight"].item()?, 2.5);
/// assert_eq!(loaded.metadata["step"], "7");
/// # std::fs::remove_file(&path).unwrap();
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Io`] if the system refuses, [`Error::Device`] if a tensor cannot be read.
///
/// # Panics
/// If two tensors have one name, or one is called `__metadata__`.
#[track_caller]
pub fn save<S: Into<String>>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (S, Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> = tensors.into_iter().map(|(name, x)| (name.into(), x)).collect();
    tensors.sort_by(|(a, x), (b, y)| y.dtype().size().cmp(&x.dtype().size()).then_with(|| a.cmp(b)));
    let header = header(&tensors, metadata);
    write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        tensors.iter().try_for_each(|(_, x)| write_elements(out, x))
    })
}

/// The JSON header, padded with spaces so that the elements start at a multiple of 8.
#[track_caller]
fn header(tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> String {
    let mut entries: BTreeMap<&str, Value> = BTreeMap::new();
    if !metadata.is_empty() {
        entries.insert(METADATA, json!(metadata));
    }
    let mut start = 0;
    for (name, x) in tensors {
        assert!(
            name != METADATA,
            "save: a tensor cannot be called {METADATA}, the format's name for metadata"
        );
        let end = start + x.meta().bytes();
        let entry = json!({ "dtype": stored(x.dtype()).to_string(), "shape": x.shape()[..], "data_offsets": [start, end] });
        assert!(entries.insert(name, entry).is_none(), "save: two tensors are called {name}");
        start = end;
    }
    // Sorted before it becomes a Map, whose order depends on a feature of serde_json.
    let entries: Map<String, Value> =
        entries.into_iter().map(|(name, entry)| (name.to_string(), entry)).collect();
    let mut header = Value::Object(entries).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    header
}

/// Reads every tensor of a file, to the CPU.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is not a safetensors file, is damaged, or
/// holds a dtype other than F32, F64, BF16, I64 and BOOL.
pub fn load(path: impl AsRef<Path>) -> Result<Loaded> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    parse(path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Loaded> {
    let foreign = |e| Error::format(path, "a safetensors file", format!("{} bytes with {e}", bytes.len()));
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(foreign)?;
    let views = SafeTensors::deserialize(bytes).map_err(foreign)?;
    let mut loaded = Loaded::default();
    for (name, view) in views.iter() {
        let tensor = to_tensor(&view).map_err(|(expected, found)| {
            Error::format(path, format!("{expected} in tensor {name:?}"), found)
        })?;
        loaded.tensors.insert(name.to_string(), tensor);
    }
    loaded.metadata.extend(header.metadata().clone().unwrap_or_default());
    Ok(loaded)
}

/// Copies the elements, or says (expected, found).
fn to_tensor(view: &TensorView) -> Result<Tensor, (&'static str, String)> {
    let Some(dtype) = DTYPES.into_iter().find(|&dtype| stored(dtype) == view.dtype()) else {
        return Err(("dtype F32, F64, BF16, I64 or BOOL", view.dtype().to_string()));
    };
    let shape = Shape::from(view.shape());
    if byte_count(&shape, dtype) != Some(view.data().len()) {
        return Err(("a shape that fits in memory", format!("{dtype}{shape}")));
    }
    let mut buffer = HostBuffer::new(view.data().len());
    buffer.as_mut::<u8>().copy_from_slice(view.data());
    into_checked_tensor(buffer, shape, dtype).map_err(|found| ("bool elements, bytes 0 or 1,", found))
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::tests::Directory;
    use super::*;
    use crate::rng::Key;

    fn metadata() -> BTreeMap<String, String> {
        let text = [("step", "12"), ("épocas", "3"), ("config", "{\"width\": 8}"), ("a", ""), ("z", "\n")];
        text.map(|(k, v)| (k.to_string(), v.to_string())).into()
    }

    fn tensors() -> Vec<(String, Tensor)> {
        let named = [
            ("mask", Tensor::from_vec(vec![true, false, true], [3])),
            ("block0/weight", Tensor::from_vec(vec![1.5f32, -0.0, f32::INFINITY, 4.0], [2, 2])),
            ("half", Tensor::from_vec(vec![bf16::from_f32(0.5); 3], [3, 1])),
            ("step", Tensor::scalar(i64::MIN)),
            ("moment \"2\"", Tensor::from_vec(vec![1e-300f64, 2.0], [2])),
            ("none", Tensor::zeros([0, 4], DType::F64)),
        ];
        named.map(|(name, x)| (name.to_string(), x)).into()
    }

    fn bytes_of(x: &Tensor) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_elements(&mut bytes, x).unwrap();
        bytes
    }

    /// The bytes of a saved file.
    fn saved(directory: &Directory, tensors: Vec<(String, Tensor)>) -> Vec<u8> {
        let path = directory.file("x.safetensors");
        save(&path, tensors, &metadata()).unwrap();
        fs::read(path).unwrap()
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = parse(Path::new("x.safetensors"), bytes).expect_err("must be refused");
        assert!(matches!(error, Error::Format { .. }), "{error:?}");
        error.to_string()
    }

    /// A file of one tensor with this header entry.
    fn file(entry: &str, elements: &[u8]) -> Vec<u8> {
        let header = format!("{{\"w\":{entry}}}");
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), elements].concat()
    }

    #[test]
    fn every_dtype_comes_back_bit_for_bit() {
        let directory = Directory::new("safetensors");
        let path = directory.file("x.safetensors");
        save(&path, tensors(), &metadata()).unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.metadata, metadata());
        assert_eq!(loaded.tensors.len(), tensors().len());
        for (name, x) in tensors() {
            let y = &loaded.tensors[&name];
            assert_eq!((y.meta(), bytes_of(y)), (x.meta(), bytes_of(&x)), "{name}");
        }
        assert!(matches!(load(directory.file("none")), Err(Error::Io { .. })));
    }

    #[test]
    fn the_same_tensors_in_any_order_give_the_same_bytes() {
        let directory = Directory::new("safetensors-order");
        let bytes = saved(&directory, tensors());
        for trial in 0..20 {
            let order = Key::new(trial).permutation(tensors().len());
            assert_eq!(saved(&directory, order.iter().map(|&i| tensors().swap_remove(i)).collect()), bytes);
        }
        // The elements start aligned, and each tensor lies at a multiple of its element's size.
        let (header, places) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!((8 + header) % 8, 0);
        for info in places.tensors().values() {
            assert_eq!(info.data_offsets.0 % (info.dtype.bitsize() / 8), 0);
        }
    }

    #[test]
    fn a_view_is_written_as_it_reads() {
        let directory = Directory::new("safetensors-view");
        let x = Tensor::from_vec(vec![1i64, 2, 3, 4, 5, 6], [2, 3]);
        let views =
            [("t", x.transpose(0, 1)), ("flip", x.flip(1)), ("wide", x.slice(0, 1, 2, 1).expand([2, 3]))];
        save(directory.file("x"), views.clone(), &BTreeMap::new()).unwrap();
        let loaded = load(directory.file("x")).unwrap();
        for (name, view) in views {
            assert_eq!(
                loaded.tensors[name].to_vec::<i64>().unwrap(),
                view.to_vec::<i64>().unwrap(),
                "{name}"
            );
            assert!(loaded.tensors[name].layout().is_contiguous());
        }
    }

    #[test]
    fn what_the_reference_implementation_wrote_is_read() {
        let x: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![2], &x).unwrap();
        let text = [("format".to_string(), "pt".to_string())].into();
        let bytes = ::safetensors::serialize([("w", view)], Some(text)).unwrap();
        let loaded = parse(Path::new("x"), &bytes).unwrap();
        assert_eq!(loaded.tensors["w"].to_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(loaded.metadata["format"], "pt");
        let directory = Directory::new("safetensors-reference");
        let path = directory.file("x");
        save(&path, loaded.tensors, &loaded.metadata).unwrap();
        // Only the order of the keys inside an entry differs.
        let written = fs::read(path).unwrap();
        let sorted = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.sort_unstable();
            bytes
        };
        assert_eq!(sorted(&written), sorted(&bytes));
    }

    #[test]
    fn foreign_and_damaged_files_say_what_was_found() {
        assert!(
            refusal(b"")
                .contains("x.safetensors: expected a safetensors file, found 0 bytes with header too small")
        );
        assert!(refusal(b"step,loss\n1,0.5\n").contains("found 16 bytes with"));
        let f16 = file(r#"{"dtype":"F16","shape":[1],"data_offsets":[0,2]}"#, &[0; 2]);
        assert!(
            refusal(&f16).contains("expected dtype F32, F64, BF16, I64 or BOOL in tensor \"w\", found F16")
        );
        let truth = file(r#"{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}"#, &[7]);
        assert!(refusal(&truth).contains("found the byte 7"));
        let short = file(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, &[0; 4]);
        assert!(refusal(&short).contains("found 66 bytes with invalid shape"));
        let huge = file(r#"{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}"#, &[]);
        assert!(refusal(&huge).contains("a shape that fits in memory"));
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = saved(&Directory::new("safetensors-truncated"), tensors());
        for end in 0..whole.len() {
            refusal(&whole[..end]);
        }
        refusal(&[&whole[..], &[0]].concat());
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let whole = saved(&Directory::new("safetensors-damaged"), tensors());
        for trial in 0..20_000 {
            let key = Key::new(2).fold(trial);
            let mut damaged = whole.clone();
            for flip in 0..1 + key.bits(0) % 3 {
                let at = key.bits(1 + 2 * flip) as usize % damaged.len();
                damaged[at] = key.bits(2 + 2 * flip) as u8;
            }
            if let Ok(loaded) = parse(Path::new("x"), &damaged) {
                assert!(loaded.tensors.values().all(|x| x.to_f64_vec().is_ok()));
            }
        }
    }

    #[test]
    #[should_panic(expected = "two tensors are called w")]
    fn one_name_twice_is_a_mistake() {
        let x = Tensor::scalar(1.0f32);
        let _ = save("unwritten", [("w", x.clone()), ("w", x)], &BTreeMap::new());
    }

    #[test]
    #[should_panic(expected = "cannot be called __metadata__")]
    fn the_name_of_metadata_is_taken() {
        let _ = save("unwritten", [(METADATA, Tensor::scalar(1.0f32))], &BTreeMap::new());
    }
}
