//! A tensor as text.
