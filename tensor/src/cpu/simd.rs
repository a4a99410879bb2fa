//! Compiling a loop for the widest vectors the processor has.
//!
//! Nothing here changes a result: the loops are ordinary Rust, which never contracts a multiplication and an
//! addition (what is fused is written `mul_add`), and whose order of operations does not depend on the register width.

/// Instruction sets a loop is compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Level {
    /// What every processor of the target has.
    Baseline,
    /// 256-bit vectors and fused multiply-adds.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The best level of this processor.
    #[inline]
    fn detect() -> Level {
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512vl")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512dq")
            {
                return Level::Avx512;
            }
            if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                return Level::Avx2;
            }
        }
        Level::Baseline
    }

    /// The level to compute at.
    #[inline]
    pub(super) fn current() -> Level {
        #[cfg(test)]
        if let Some(level) = tests::FORCED.get() {
            return level;
        }
        Level::detect()
    }
}

/// Runs `f`, compiled for the widest vectors this processor has. For that `f` and what it calls must be inlined: mark them
/// `#[inline(always)]`. What it computes does not depend on the vectors: Rust fuses and reorders nothing by itself.
///
/// ```
/// let (x, mut y) = ([1.0f32, 2.0, 3.0], [0.5f32; 3]);
/// limpid_tensor::widest(
///     #[inline(always)]
///     || y.iter_mut().zip(&x).for_each(|(y, x)| *y += 2.0 * x),
/// );
/// assert_eq!(y, [2.5, 4.5, 6.5]);
/// ```
#[inline(always)]
pub fn widest<R>(f: impl FnOnce() -> R) -> R {
    match Level::current() {
        Level::Baseline => f(),
        // SAFETY: the level says that the processor has these features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(f) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(f) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(super) fn avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
pub(super) fn avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        pub static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// Computes something once at each level this processor has.
    pub fn at_every_level<R>(f: impl Fn() -> R) -> Vec<(Level, R)> {
        let mut levels = vec![Level::Baseline];
        #[cfg(target_arch = "x86_64")]
        levels.extend(match Level::detect() {
            Level::Baseline => &[][..],
            Level::Avx2 => &[Level::Avx2],
            Level::Avx512 => &[Level::Avx2, Level::Avx512],
        });
        levels
            .into_iter()
            .map(|level| {
                FORCED.set(Some(level));
                let result = f();
                FORCED.set(None);
                (level, result)
            })
            .collect()
    }
}
