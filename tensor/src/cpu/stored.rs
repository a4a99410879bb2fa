//! The type an element is computed in, where that differs from the one it is stored in.

use bytemuck::Pod;
use half::bf16;

use super::copy::{round_to_bf16, widen_bf16};

/// What an element in memory is computed as: itself, but bf16 as f32.
pub(super) trait Stored: Pod + Send + Sync {
    /// The type computed in.
    type Wide: Pod + PartialOrd + Send + Sync;
    /// The exact value.
    fn load(self) -> Self::Wide;
    /// The nearest element.
    fn store(v: Self::Wide) -> Self;
}

impl Stored for f32 {
    type Wide = f32;
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }
    #[inline(always)]
    fn store(v: f32) -> f32 {
        v
    }
}

impl Stored for f64 {
    type Wide = f64;
    #[inline(always)]
    fn load(self) -> f64 {
        self
    }
    #[inline(always)]
    fn store(v: f64) -> f64 {
        v
    }
}

impl Stored for i64 {
    type Wide = i64;
    #[inline(always)]
    fn load(self) -> i64 {
        self
    }
    #[inline(always)]
    fn store(v: i64) -> i64 {
        v
    }
}

impl Stored for bf16 {
    type Wide = f32;
    #[inline(always)]
    fn load(self) -> f32 {
        widen_bf16(self)
    }
    #[inline(always)]
    fn store(v: f32) -> bf16 {
        round_to_bf16(v)
    }
}
