"""Writes held.json: how many bytes PyTorch holds for the backward pass of a few networks.

The Rust suite reads the file and needs no Python. To make it again:

    python -m pip install torch
    python held.py

Every network takes 128 points with two numbers to two logits, in f32, through 20 linear layers of width 64 and a
cross-entropy. It is written as a person would write it: modules of torch.nn, functions of torch, nothing compiled. The
forward pass runs in training mode. A hook on what autograd saves (torch.autograd.graph.saved_tensors_hooks) is given every
tensor that an operation keeps for its derivative; their storages are counted, each once however many views of it are
saved, and kept alive while counting so that no address comes twice. Not counted are the storages of parameters, of the
points and of the labels, and the values that only the caller refers to, the loss and the logits.

For each network the file also has the shapes of its parameters, in order, and in evaluation mode the logits of the first
four points, with weights and points that the reader of the file can draw too (`drawn`): who gets the same logits has the
same network.
"""

import functools
import json
import pathlib
import platform

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

BATCH, WIDTH, DEPTH, STREAMS, STEPS, DROP, EPS = 128, 64, 20, 4, 20, 0.1, 1e-6
torch.set_num_threads(1)


def drawn(place, shape):
    """Numbers in ±√(6/m), m being the largest axis: the upper 24 bits of SplitMix64, whose state is 2³²·place + index."""
    mask = 2**64 - 1

    def number(index):
        z = (place << 32) + index + 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return ((z ^ z >> 31) >> 40) / 2**23 - 1

    bound = (6 / max(shape, default=1)) ** 0.5
    count = torch.Size(shape).numel()
    numbers = [bound * number(index) for index in range(count)]
    return torch.tensor(numbers, dtype=torch.float64).float().reshape(shape)


class Network(nn.Module):
    """A first layer, blocks, a last layer."""

    def __init__(self, block):
        super().__init__()
        self.first = nn.Linear(2, WIDTH)
        self.blocks = nn.ModuleList([block() for _ in range(DEPTH - 2)])
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return torch.relu(self.linear(x))


class Residual(Plain):
    def forward(self, x):
        return x + torch.relu(self.linear(x))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        g = torch.sigmoid(self.gate(x))
        return (1 - g) * x + g * torch.relu(self.linear(x))


class PreNorm(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.activation = activation
        self.dropout = nn.Dropout(DROP)

    def forward(self, x):
        return x + self.dropout(self.activation(self.linear(self.norm(x))))


def gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


class DynamicHyperConnection(nn.Module):
    """arXiv 2409.19606, Eq. 3-5 and 10-13; A is held as the matrix that multiplies the streams from the left."""

    def __init__(self):
        super().__init__()
        self.read = nn.Parameter(torch.ones(STREAMS))
        self.write = nn.Parameter(torch.ones(STREAMS))
        self.mix = nn.Parameter(torch.eye(STREAMS))
        self.dynamic_read = nn.Parameter(torch.zeros(WIDTH))
        self.dynamic_write = nn.Parameter(torch.zeros(WIDTH))
        self.dynamic_mix = nn.Parameter(torch.zeros(WIDTH, STREAMS))
        self.scale = nn.Parameter(torch.tensor(0.01))
        self.write_scale = nn.Parameter(torch.tensor(0.01))
        self.norm = nn.RMSNorm(WIDTH, eps=EPS)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        y = x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + EPS)
        read = self.read + self.scale * torch.tanh(y @ self.dynamic_read)
        write = self.write + self.write_scale * torch.tanh(y @ self.dynamic_write)
        mix = self.mix + self.scale * torch.tanh(y @ self.dynamic_mix).transpose(-2, -1)
        u = (read.unsqueeze(-1) * x).sum(dim=-2)
        f = torch.relu(self.linear(self.norm(u)))
        return mix @ x + write.unsqueeze(-1) * f.unsqueeze(-2)


def sinkhorn(logits):
    """M_0 = exp(H), then columns and rows divided by their sums, in this order."""
    m = torch.exp(logits)
    for _ in range(STEPS):
        m = m / m.sum(dim=-2, keepdim=True)
        m = m / m.sum(dim=-1, keepdim=True)
    return m


def checkpointed_sinkhorn(logits):
    """The same, keeping the logits alone: its steps are made again in the backward pass."""
    return checkpoint(sinkhorn, logits, use_reentrant=False)


class Projection(nn.Module):
    """alpha·(v·phi)/r + bias, as in mhc.py."""

    def __init__(self, *shape):
        super().__init__()
        self.phi = nn.Parameter(torch.zeros(STREAMS * WIDTH, torch.Size(shape).numel()))
        self.alpha = nn.Parameter(torch.tensor(0.01))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, v, r):
        return (self.alpha * (v @ self.phi) / r).unflatten(-1, self.bias.shape) + self.bias


def flat(x):
    v = x.flatten(-2)
    return v, torch.sqrt((v * v).mean(dim=-1, keepdim=True) + EPS)


class Mhc(nn.Module):
    """arXiv 2512.24880, Eq. 3 and 7-9."""

    def __init__(self, sinkhorn):
        super().__init__()
        self.pre = Projection(STREAMS)
        self.post = Projection(STREAMS)
        self.res = Projection(STREAMS, STREAMS)
        self.sinkhorn = sinkhorn
        self.norm = nn.RMSNorm(WIDTH, eps=EPS)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        v, r = flat(x)
        read = torch.sigmoid(self.pre(v, r))
        write = 2 * torch.sigmoid(self.post(v, r))
        mix = self.sinkhorn(self.res(v, r))
        u = (read.unsqueeze(-1) * x).sum(dim=-2)
        f = torch.relu(self.linear(self.norm(u)))
        return mix @ x + write.unsqueeze(-1) * f.unsqueeze(-2)


class MeanOfStreams(nn.Module):
    def forward(self, x):
        return x.mean(dim=-2)


class SigmoidRead(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = Projection(STREAMS)

    def forward(self, x):
        return (torch.sigmoid(self.read(*flat(x))).unsqueeze(-1) * x).sum(dim=-2)


class Streams(nn.Module):
    """A network whose blocks work on copies of what the first layer gives."""

    def __init__(self, block, leave):
        super().__init__()
        self.first = nn.Linear(2, WIDTH)
        self.blocks = nn.ModuleList([block() for _ in range(DEPTH - 2)])
        self.leave = leave()
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = torch.relu(self.first(x)).unsqueeze(-2).expand(-1, STREAMS, -1)
        for block in self.blocks:
            x = block(x)
        return self.last(self.leave(x))


class Held:
    """The storages that operations save, but for `others`."""

    def __init__(self, others):
        self.others = {tensor.untyped_storage().data_ptr() for tensor in others}
        self.first = {}  # by address of the storage, the first tensor on it: it keeps the storage alive

    def pack(self, tensor):
        address = tensor.untyped_storage().data_ptr()
        if address not in self.others:
            self.first.setdefault(address, tensor)
        return tensor

    def bytes(self):
        return sum(tensor.untyped_storage().nbytes() for tensor in self.first.values())

    def by_shape(self):
        kinds = {}
        for tensor in self.first.values():
            key = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
            kinds.setdefault(key, []).append(tensor.untyped_storage().nbytes())
        kinds = sorted(kinds.items(), key=lambda kind: -sum(kind[1]))
        return [
            {"dtype": dtype, "shape": shape, "storages": len(sizes), "bytes": sum(sizes)}
            for (dtype, shape), sizes in kinds
        ]


def measured(name, model):
    parameters = list(model.parameters())
    with torch.no_grad():
        for place, parameter in enumerate(parameters, start=1):
            parameter.copy_(drawn(place, parameter.shape))
    points, labels = drawn(0, (BATCH, 2)), torch.arange(BATCH) % 2
    with torch.no_grad():
        logits = model.eval()(points)[:4].flatten().tolist()
    model.train()
    held = Held([*parameters, points, labels])
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda tensor: tensor):
        F.cross_entropy(model(points), labels)
    print(f"{name:<24} {held.bytes():>10} bytes in {len(held.first):>4} storages")
    return {
        "name": name,
        "parameters": [list(parameter.shape) for parameter in parameters],
        "logits": logits,
        "bytes": held.bytes(),
        "storages": len(held.first),
        "by_shape": held.by_shape(),
    }


networks = {
    "plain": lambda: Network(Plain),
    "residual": lambda: Network(Residual),
    "gated": lambda: Network(Gated),
    "pre-norm, tanh": lambda: Network(functools.partial(PreNorm, torch.tanh)),
    "pre-norm, elu": lambda: Network(functools.partial(PreNorm, F.elu)),
    "pre-norm, gelu": lambda: Network(functools.partial(PreNorm, F.gelu)),
    "pre-norm, gelu_tanh": lambda: Network(functools.partial(PreNorm, gelu_tanh)),
    "pre-norm, silu": lambda: Network(functools.partial(PreNorm, F.silu)),
    "hc-dynamic": lambda: Streams(DynamicHyperConnection, MeanOfStreams),
    "mhc": lambda: Streams(functools.partial(Mhc, sinkhorn), SigmoidRead),
    "mhc, checkpointed": lambda: Streams(functools.partial(Mhc, checkpointed_sinkhorn), SigmoidRead),
}
head = {
    "made_by": "held.py",
    "versions": {"torch": torch.__version__, "python": platform.python_version()},
    "sizes": {"batch": BATCH, "width": WIDTH, "depth": DEPTH, "streams": STREAMS, "steps": STEPS, "drop": DROP},
}
lines = [json.dumps(measured(name, make()), separators=(",", ":")) for name, make in networks.items()]
path = pathlib.Path(__file__).with_name("held.json")
path.write_text(json.dumps(head)[:-1] + ', "networks": [\n' + ",\n".join(lines) + "\n]}\n")
