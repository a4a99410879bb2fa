//! Training, from gradients to files.

mod checkpoint;
mod gradients;
mod mlp;
mod optim;
mod replay;
mod state_dict;
mod step_allocations;
