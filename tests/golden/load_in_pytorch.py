"""Loads a two-moons run's weights into a PyTorch network by name and compares the logits with limpid's.

    cargo run --release --example two_moons
    cargo run --release -p limpid-tests --example grid_logits -- out/two_moons
    python tests/golden/load_in_pytorch.py out/two_moons

The network is written here from the formulas of the connections, not from limpid's code. Its parameters have limpid's
names, so that load_state_dict takes the file as it is.
"""

import math
import pathlib
import sys

import numpy
import torch
from safetensors.torch import load_file
from torch import nn

CONNECTIONS = {
    "plain": lambda layer, x, h: h,
    "residual": lambda layer, x, h: x + h,
    "scaled": lambda layer, x, h: x + h / math.sqrt(2),
    "gated": lambda layer, x, h: torch.lerp(x, h, torch.sigmoid(layer.gate(x))),
}


class Network(nn.Module):
    def __init__(self, variant, depth=20, width=64):
        super().__init__()
        self.connect = CONNECTIONS[variant]
        sizes = [2] + [width] * (depth - 1) + [2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        if variant == "gated":
            for layer in self.layers[1:-1]:
                layer.gate = nn.Linear(width, width)

    def forward(self, x):
        first, *blocks, last = self.layers
        x = torch.relu(first(x))
        for layer in blocks:
            x = self.connect(layer, x, torch.relu(nn.functional.linear(x, layer.weight, layer.bias)))
        return last(x)


def main(folder):
    axis = (numpy.arange(21) - 10) / 5
    grid = torch.tensor([(a, b) for a in axis for b in axis], dtype=torch.float32)
    wrong = []
    for variant in CONNECTIONS:
        weights = load_file(folder / f"{variant}.safetensors")
        network = Network(variant)
        network.load_state_dict(weights, strict=True)
        with torch.no_grad():
            theirs = network(grid).double().numpy()
            exact = network.double()(grid.double()).numpy()
        ours = numpy.load(folder / f"{variant}.logits.npy")
        assert ours.dtype == numpy.float32 and ours.shape == theirs.shape, (ours.dtype, ours.shape)
        scale = numpy.abs(exact).max()
        error, rounding = numpy.abs(ours - exact).max() / scale, numpy.abs(theirs - exact).max() / scale
        # Two f32 programs of 20 layers differ by their rounding; a wrong formula or name by orders of magnitude more.
        good = error < 1e-5
        print(
            f"{variant:9} {len(weights)} tensors by name; largest difference from f64, relative: "
            f"limpid {error:.1e}, PyTorch {rounding:.1e}{'' if good else '  TOO LARGE'}"
        )
        if not good:
            wrong.append(variant)
    if wrong:
        sys.exit(f"logits differ: {', '.join(wrong)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
