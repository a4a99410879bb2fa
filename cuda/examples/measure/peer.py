"""PyTorch beside limpid: what limpid.json names, timed by the same rules on the same card.

    python3 peer.py limpid.json pytorch.json

`measure --peer peer.py` runs it and puts its times into its own table. Every name that PyTorch has an operation for becomes a
row: the microseconds of PyTorch's operation, and where there are several of them in a row, also as torch.compile makes
them. If limpid was emulated, PyTorch runs on the CPU, to see that everything runs, not how fast.
"""

import json
import math
import re
import sys
import time

import torch
from torch import nn
from torch.nn import functional

DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "i64": torch.int64,
    "bool": torch.bool,
}
# Bytes that pass before the same operands come again, so that no cache has them any more.
ROTATION = 512 << 20
BATCH = 128
# What torch.compile is told.
COMPILER = {"mode": "reduce-overhead"}


class Clock:
    """The host's clock around many repetitions and one wait; the median of the samples."""

    def __init__(self, device, shortest, samples):
        self.device, self.shortest, self.samples = device, shortest, samples

    def sample(self, queue, repetitions):
        start = time.perf_counter()
        for _ in range(repetitions):
            queue()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def time(self, queue):
        """Microseconds of a repetition."""
        for _ in range(3):  # what is compiled is compiled in the first, and captured in the next
            self.sample(queue, 1)
        repetitions = 1
        while (took := self.sample(queue, repetitions)) < self.shortest:
            repetitions = math.ceil(repetitions * min(max(1.2 * self.shortest / max(took, 1e-9), 1.5), 16))
        each = sorted(self.sample(queue, repetitions) / repetitions * 1e6 for _ in range(self.samples))
        return each[len(each) // 2]


def in_turns(operands, compute, bytes_moved):
    """Queues `compute` for one set of operands after the other; results stay until it is their set's turn again."""
    turns = min(max(math.ceil(ROTATION / max(bytes_moved, 1)), 1), 64) if operands.device == "cuda" else 1
    sets = [operands() for _ in range(turns)]
    results, turn = [None] * turns, 0

    def queue():
        nonlocal turn
        results[turn] = None
        results[turn] = compute(*sets[turn])
        turn = (turn + 1) % turns

    return queue


class Operands:
    """Draws operands on a device: of each (shape, dtype), or of (shape, n) indices below n."""

    def __init__(self, device, *what):
        self.device, self.what = device, what

    def __call__(self):
        return [self.draw(shape, kind) for shape, kind in self.what]

    def draw(self, shape, kind):
        if isinstance(kind, int):
            return torch.randint(kind, shape, device=self.device)
        if kind == torch.bool:
            return torch.randn(shape, device=self.device) > 0
        if kind == torch.int64:
            return torch.randint(1000, shape, device=self.device)
        return (torch.rand(shape, device=self.device) + 0.5).to(kind)


def sinkhorn(x, steps):
    k = torch.exp(x - x.amax(-2, keepdim=True))
    for _ in range(steps):
        k = k / k.sum(-2, keepdim=True)
        k = k / k.sum(-1, keepdim=True)
    return k


class Network(nn.Module):
    """The residual network of the two-moons experiment."""

    def __init__(self, layers, width=64):
        super().__init__()
        sizes = [2] + [width] * (layers - 1) + [2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x):
        first, *blocks, last = self.layers
        x = torch.relu(first(x))
        for block in blocks:
            x = x + torch.relu(block(x))
        return last(x)


class Projection(nn.Module):
    """alpha·(v·phi)/r + bias: coefficients from all streams at once."""

    def __init__(self, inputs, bias, phi_std=0.02):
        super().__init__()
        self.phi = nn.Parameter(torch.randn(inputs, bias.numel()) * phi_std)
        self.alpha = nn.Parameter(torch.tensor(0.01))
        self.bias = nn.Parameter(bias)

    def forward(self, v, r):
        return (self.alpha * (v @ self.phi) / r).unflatten(-1, self.bias.shape) + self.bias


def flat(x):
    v = x.flatten(-2)
    return v, (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class Connected(nn.Module):
    """A block of mHC: x' = A·x + b ⊗ h(a·x), A by 20 steps of Sinkhorn."""

    def __init__(self, width, streams, layer):
        super().__init__()
        gate = torch.where(torch.arange(streams) == layer % streams, 1.0, -1.0)
        self.pre, self.post = (Projection(width * streams, gate.clone()) for _ in range(2))
        self.res = Projection(width * streams, -8.0 * (1 - torch.eye(streams)))
        self.branch = nn.Linear(width, width)

    def forward(self, x):
        v, r = flat(x)
        a, b = torch.sigmoid(self.pre(v, r)), 2 * torch.sigmoid(self.post(v, r))
        mix = sinkhorn(self.res(v, r), 20)
        h = torch.relu(self.branch((a.unsqueeze(-1) * x).sum(-2)))
        return mix @ x + b.unsqueeze(-1) * h.unsqueeze(-2)


class StreamNetwork(nn.Module):
    """The mHC network of the two-moons experiment."""

    def __init__(self, layers, width=64, streams=4):
        super().__init__()
        self.first, self.last, self.streams = nn.Linear(2, width), nn.Linear(width, 2), streams
        self.blocks = nn.ModuleList(Connected(width, streams, i) for i in range(layers - 2))
        self.leave = Projection(width * streams, torch.full([streams], -math.log(streams - 1)), 0.0)

    def forward(self, x):
        x = torch.relu(self.first(x)).unsqueeze(-2).repeat(1, self.streams, 1)
        for block in self.blocks:
            x = block(x)
        a = torch.sigmoid(self.leave(*flat(x)))
        return self.last((a.unsqueeze(-1) * x).sum(-2))


def training(device, network, compiled):
    network = network.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    x, labels = torch.randn(BATCH, 2, device=device), torch.randint(2, [BATCH], device=device)

    def loss():
        return functional.cross_entropy(network(x), labels)

    update = optimizer.step
    if compiled:
        loss = torch.compile(loss, **COMPILER)
        update = torch.compile(update, **{name: of for name, of in COMPILER.items() if name != "mode"})

    def step():
        loss().backward()
        update()
        optimizer.zero_grad()

    return step


# What each name means here: a pattern, and what makes of its groups (operands, function), or, where torch.compile is worth
# asking, (None, what makes what is queued, given whether it is to be compiled).


def copy(device, size):
    elements = int(size) // 4
    return Operands(device, ([elements], torch.float32)), torch.clone


def of_rows(compute, parameters=0):
    def make(device, dtype, rows, columns):
        rows, columns, dtype = int(rows), int(columns), DTYPES[dtype]
        others = [([columns], dtype)] * parameters
        return Operands(device, ([rows, columns], dtype), *others), compute

    return make


def transpose(device, dtype, rows, columns):
    operands = Operands(device, ([int(columns), int(rows)], DTYPES[dtype]))
    return operands, lambda x: x.t().contiguous()


def cast(device, source, target, n):
    return Operands(device, ([int(n)], DTYPES[source])), lambda x: x.to(DTYPES[target])


def draw(function):
    def make(device, dtype, n):
        y = torch.empty(int(n), dtype=DTYPES[dtype], device=device)
        return Operands(device), lambda: function(y)

    return make


def cross_entropy(device, dtype, rows, columns):
    rows, columns = int(rows), int(columns)
    operands = Operands(device, ([rows, columns], DTYPES[dtype]), ([rows], columns))
    return operands, lambda x, labels: functional.cross_entropy(x, labels, reduction="none")


ONE = {
    "abs": torch.abs, "cos": torch.cos, "erf": torch.erf, "exp": torch.exp, "expm1": torch.expm1, "log": torch.log,
    "log1p": torch.log1p, "neg": torch.neg, "recip": torch.reciprocal, "relu": torch.relu, "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid, "sign": torch.sign, "sin": torch.sin, "softplus": functional.softplus, "sqrt": torch.sqrt,
    "tanh": torch.tanh, "not": torch.logical_not,
}  # fmt: skip
TWO = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow, "maximum": torch.maximum,
    "minimum": torch.minimum, "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt,
    "ge": torch.ge, "and": torch.logical_and, "or": torch.logical_or,
}  # fmt: skip


def elementwise(device, name, dtype, rows, columns):
    shape, dtype = [int(rows), int(columns)], DTYPES[dtype]
    if name == "where":
        return Operands(device, (shape, torch.bool), (shape, dtype), (shape, dtype)), torch.where
    if name in ONE:
        return Operands(device, (shape, dtype)), ONE[name]
    return Operands(device, (shape, dtype), (shape, dtype)), TWO[name]


def broadcast(device, name, dtype, rows, columns, other):
    rows, columns, dtype = int(rows), int(columns), DTYPES[dtype]
    small = [columns] if other == "row" else [rows, 1]
    return Operands(device, ([rows, columns], dtype), (small, dtype)), torch.add if name == "add" else torch.mul


def gather(device, dtype, rows, columns):
    rows, columns = int(rows), int(columns)
    operands = Operands(device, ([rows, columns], DTYPES[dtype]), ([rows], rows))
    return operands, lambda x, index: x.index_select(0, index)


def scatter_add(device, dtype, rows, columns, words):
    rows, columns, words, dtype = int(rows), int(columns), int(words), DTYPES[dtype]
    operands = Operands(device, ([words, columns], dtype), ([rows], words), ([rows, columns], dtype))
    return operands, lambda base, index, x: base.index_add(0, index, x)


def matmul(device, dtype, n):
    shape = [int(n), int(n)]

    def multiply(a, b):
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        y = a @ b
        torch.backends.cuda.matmul.allow_tf32 = False
        return y

    return Operands(device, (shape, DTYPES[dtype]), (shape, DTYPES[dtype])), multiply


def compiled_if(is_compiled, function):
    return torch.compile(function, **COMPILER) if is_compiled else function


def normalise(device, backward, dtype, matrices, side, steps):
    side, steps = int(side), int(steps)

    def make(is_compiled):
        shape = [int(matrices), side, side]
        x = torch.randn(shape, device=device).to(DTYPES[dtype]).requires_grad_(bool(backward))
        compute = compiled_if(is_compiled, lambda x: sinkhorn(x, steps))
        if not backward:
            return lambda: compute(x)
        cotangent = torch.randn_like(x)
        # The forward pass is part of it: limpid's backward kernel makes that again too.
        return lambda: torch.autograd.grad(compute(x), x, cotangent)

    return None, make


def connection(device, dtype, tokens, streams, channels):
    tokens, n, c = int(tokens), int(streams), int(channels)

    def make(is_compiled):
        x, f = (torch.randn(shape, device=device).to(DTYPES[dtype]) for shape in ([tokens, n, c], [tokens, c]))
        a, b, mix = (torch.randn(shape, device=device) for shape in ([tokens, n], [tokens, n], [tokens, n, n]))
        phi = torch.randn(n * c, n * n + 2 * n, device=device)

        def compute(x, f):
            wide = x.float()
            v, r = flat(wide)
            read = (a.unsqueeze(-1) * wide).sum(-2)
            written = mix @ wide + b.unsqueeze(-1) * f.float().unsqueeze(-2)
            return (v @ phi) / r, read.to(x.dtype), written.to(x.dtype)

        compute = compiled_if(is_compiled, compute)
        return lambda: compute(x, f)

    return None, make


def step(device, layers, variant, how):
    network = StreamNetwork if variant == "mhc" else Network
    if how == "one by one":
        return Operands(device), training(device, network(int(layers)), False)
    return None, lambda is_compiled: training(device, network(int(layers)), is_compiled)


def norm(function):
    return lambda x, *parameters: function(x, x.shape[-1:], *parameters)


OF_ROWS = r" (\w+) \[(\d+), (\d+)\]"
MEANINGS = [
    (r"copy by the driver, (\d+) bytes", copy),
    ("transpose" + OF_ROWS, transpose),
    (r"cast (\w+) to (\w+) \[(\d+)\]", cast),
    (f"({'|'.join([*ONE, *TWO, 'where'])})" + OF_ROWS, elementwise),
    ("(add|multiply)" + OF_ROWS + " and a (row|column)", broadcast),
    ("sum" + OF_ROWS + ", rows", of_rows(lambda x: x.sum(1))),
    ("sum" + OF_ROWS + ", columns", of_rows(lambda x: x.sum(0))),
    ("sum" + OF_ROWS + ", everything", of_rows(torch.sum)),
    ("max" + OF_ROWS + ", rows", of_rows(lambda x: x.amax(1))),
    ("min" + OF_ROWS + ", rows", of_rows(lambda x: x.amin(1))),
    ("prod" + OF_ROWS + ", rows", of_rows(lambda x: x.prod(1))),
    ("argmax" + OF_ROWS + ", rows", of_rows(lambda x: x.argmax(1))),
    ("cumsum" + OF_ROWS + ", rows", of_rows(lambda x: x.cumsum(1))),
    ("cumsum" + OF_ROWS + ", columns", of_rows(lambda x: x.cumsum(0))),
    ("argsort" + OF_ROWS + ", rows", of_rows(lambda x: x.argsort(dim=1, stable=True))),
    ("softmax" + OF_ROWS, of_rows(lambda x: x.softmax(1))),
    ("log_softmax" + OF_ROWS, of_rows(lambda x: x.log_softmax(1))),
    ("cross_entropy" + OF_ROWS, cross_entropy),
    ("layer_norm" + OF_ROWS, of_rows(norm(functional.layer_norm), 2)),
    ("rms_norm" + OF_ROWS, of_rows(norm(getattr(functional, "rms_norm", None)), 1)),
    ("gather" + OF_ROWS + ", whole rows", gather),
    ("scatter_add" + OF_ROWS + r" to (\d+) rows", scatter_add),
    (r"uniform (\w+) \[(\d+)\]", draw(lambda y: y.uniform_())),
    (r"normal (\w+) \[(\d+)\]", draw(lambda y: y.normal_())),
    (r"matmul (\w+) (\d+)", matmul),
    (r"sinkhorn( backward)? (\w+), (\d+) of (\d+)×\d+, (\d+) steps", normalise),
    (r"connection, forward (\w+) \[(\d+), (\d+), (\d+)\]", connection),
    (r"step of (\d+) layers, (residual|mhc), (.*)", step),
]


def meaning(name):
    for pattern, make in MEANINGS:
        if found := re.fullmatch(pattern, name):
            return make, found.groups()
    return None


def measure(clock, row):
    """The microseconds of a row, by how it is written."""
    make, groups = meaning(row["name"])
    operands, compute = make(clock.device, *groups)
    if operands:
        return {"eager": clock.time(in_turns(operands, compute, row.get("bytes", ROTATION)))}
    times = {"eager": clock.time(compute(False))}
    try:
        times["compiled"] = clock.time(compute(True))
    except Exception as error:  # what cannot be compiled has a time all the same
        times["error"] = str(error)
    return times


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        limpid = json.load(file)
    if not limpid["is_emulated"] and not torch.cuda.is_available():
        sys.exit("peer: PyTorch finds no card")
    clock = Clock("cpu", 0, 1) if limpid["is_emulated"] else Clock("cuda", 0.02, 7)
    if limpid["is_emulated"]:
        # Nothing is made of the graph that was traced, which would take minutes.
        COMPILER.clear()
        COMPILER["backend"] = "eager"
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = []
    for row in limpid["rows"]:
        if "error" in row or meaning(row["name"]) is None:
            continue
        try:
            times = measure(clock, row)
        except Exception as error:  # one operation that PyTorch refuses does not end the table
            times = {"error": str(error)}
        rows.append({"name": row["name"], **times})
        print(f"PyTorch: {row['name']}: {times}", file=sys.stderr, flush=True)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump({"by": f"PyTorch {torch.__version__}", "rows": rows}, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
