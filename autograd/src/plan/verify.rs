//! Is a value that comes back the value that was dropped?

use std::time::{Duration, Instant};

use limpid_tensor::{DType, Device, Element, Layout, Result, Tensor, bf16};
use xxhash_rust::xxh3::xxh3_64;

/// How values that come back are compared with what was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// Not at all.
    Off,
    /// By a 64-bit hash of each 4 KiB of them (XXH3), taken when they are dropped.
    #[default]
    Hash,
    /// Bit by bit, with a copy taken when they are dropped. The copies do not count as memory of the tape.
    Full,
}

/// The bytes that share a hash.
const BLOCK: usize = 4096;

/// What is remembered of a value that was dropped.
pub(crate) enum Print {
    /// A view of what comes back is as good as that, if it is one and looks at the same elements.
    View(Layout),
    Hashes(Vec<u64>),
    Bytes(Vec<u8>),
}

/// What verifying a run took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// How many values came back and were compared.
    pub values: usize,
    /// Their bytes.
    pub bytes: usize,
    /// The time that hashes, copies and comparisons took.
    pub time: Duration,
}

impl Print {
    /// Of a value about to be dropped; nothing if it is not to be verified.
    pub fn take(value: &Tensor, is_view: bool, how: Verify, cost: &mut Verified) -> Result<Option<Print>> {
        let begun = Instant::now();
        let print = match how {
            Verify::Off => return Ok(None),
            _ if is_view => Print::View(value.layout().clone()),
            Verify::Hash => {
                Print::Hashes(with_bytes(value, |bytes| bytes.chunks(BLOCK).map(xxh3_64).collect())?)
            }
            Verify::Full => Print::Bytes(with_bytes(value, <[u8]>::to_vec)?),
        };
        cost.time += begun.elapsed();
        Ok(Some(print))
    }

    /// What differs in the value that came back, if something does. If it is a view, `shown` is what it should show.
    pub fn drift(
        &self,
        value: &Tensor,
        shown: Option<&Tensor>,
        cost: &mut Verified,
    ) -> Result<Option<String>> {
        let begun = Instant::now();
        cost.values += 1;
        let size = value.dtype().size();
        let found = match self {
            Print::View(_) if shown.map(|shown| shown.storage().id()) != Some(value.storage().id()) => {
                Some("it is no longer a view of what it is computed from".to_string())
            }
            Print::View(layout) => (layout != value.layout())
                .then(|| "it is a view of other elements of what it is computed from".to_string()),
            Print::Hashes(hashes) => with_bytes(value, |bytes| {
                cost.bytes += bytes.len();
                let differ = |(block, hash): (&[u8], &u64)| xxh3_64(block) != *hash;
                let differing: Vec<usize> = bytes
                    .chunks(BLOCK)
                    .zip(hashes)
                    .enumerate()
                    .filter_map(|(i, pair)| differ(pair).then_some(i))
                    .collect();
                let &first = differing.first()?;
                let (start, end) = (first * BLOCK / size, ((first + 1) * BLOCK).min(bytes.len()) / size);
                Some(format!(
                    "{} of {} blocks of 4 KiB differ, the first is block {first}, elements {start}..{end}",
                    differing.len(),
                    hashes.len()
                ))
            })?,
            Print::Bytes(before) => with_bytes(value, |bytes| {
                cost.bytes += bytes.len();
                let elements = || before.chunks(size).zip(bytes.chunks(size)).enumerate();
                let (first, (was, is)) = elements().find(|(_, (was, is))| was != is)?;
                let count = elements().filter(|(_, (was, is))| was != is).count();
                let (was, is) = (bits(was, value.dtype()), bits(is, value.dtype()));
                Some(format!(
                    "{count} of {} elements differ, the first is element {first} (block {}), which was {was} and is {is}",
                    value.elements(),
                    first * size / BLOCK
                ))
            })?,
        };
        cost.time += begun.elapsed();
        Ok(found)
    }
}

/// The bytes of a value's elements in row-major order.
fn with_bytes<R>(value: &Tensor, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
    let value = value.to(&Device::cpu())?.contiguous()?;
    let size = value.dtype().size();
    let bytes = value.storage().host().expect("it is on the CPU");
    let start = if value.elements() == 0 { 0 } else { value.layout().offset() * size };
    Ok(look(&bytes[start..start + value.elements() * size]))
}

/// One element as its bits and as a number.
fn bits(bytes: &[u8], dtype: DType) -> String {
    // Copied into a word, because a slice of bytes need not be aligned.
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let word = [i64::from_ne_bytes(word)];
    let element = &i64::to_bytes(&word)[..bytes.len()];
    let number = match dtype {
        DType::F32 => f32::from_bytes(element)[0].to_f64(),
        DType::F64 => f64::from_bytes(element)[0],
        DType::BF16 => bf16::from_bytes(element)[0].to_f64(),
        DType::I64 => word[0] as f64,
        DType::Bool => f64::from(element[0]),
    };
    let hex: String =
        word[0].to_be_bytes()[8 - bytes.len()..].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{hex} ({number:?})")
}
