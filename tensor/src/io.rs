//! Tensors in files: npy and safetensors.
