//! Every residual connection: its algebra, its edges, its derivatives, where it starts, and the networks made of it.

mod algebra;
mod blocks;
mod edges;
mod extremes;
mod fused;
mod gradients;
mod grid;
mod identities;
mod network;
mod start;
mod symmetry;
