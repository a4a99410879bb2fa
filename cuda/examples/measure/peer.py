"""PyTorch beside limpid: what limpid.json names, timed by the same rules on the same card.

    python3 peer.py limpid.json pytorch.json

Every name that PyTorch has an operation for becomes a row: limpid's time, PyTorch's, and how many times as long PyTorch
takes. If limpid was emulated, PyTorch runs on the CPU, to see that everything runs, not how fast.
"""

import json
import math
import re
import sys
import time

import torch
from torch import nn
from torch.nn import functional

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "tf32": torch.float32}
# Bytes that pass before the same operands come again, so that no cache has them any more.
ROTATION = 512 << 20
BATCH = 128
# What a row counts, the rate made of it, and its unit in counts a microsecond.
RATES = [("bytes", "gigabytes_per_second", 1e3), ("operations", "teraflops_per_second", 1e6)]


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
        """Microseconds of a repetition, and half of what lies between the samples, as a part of them."""
        for _ in range(3):  # what is compiled is compiled in the first, and captured in the next
            self.sample(queue, 1)
        repetitions = 1
        while (took := self.sample(queue, repetitions)) < self.shortest:
            repetitions = math.ceil(repetitions * min(max(1.2 * self.shortest / max(took, 1e-9), 1.5), 16))
        each = sorted(self.sample(queue, repetitions) / repetitions * 1e6 for _ in range(self.samples))
        median = each[len(each) // 2]
        return median, (each[-1] - each[0]) / 2 / median


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
        return torch.randn(shape, device=self.device).to(kind)


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


def training(device, layers, compiled):
    network = Network(layers).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    x, labels = torch.randn(BATCH, 2, device=device), torch.randint(2, [BATCH], device=device)

    def loss():
        return functional.cross_entropy(network(x), labels)

    update = optimizer.step
    if compiled:
        loss = torch.compile(loss, mode="reduce-overhead")
        update = torch.compile(update)

    def step():
        loss().backward()
        update()
        optimizer.zero_grad()

    return step


# What each name means here: a pattern, and what makes of its groups (operands, function), or (None, what is queued).


def copy(device, size):
    elements = int(size) // 4
    return Operands(device, ([elements], torch.float32)), torch.clone


def of_rows(compute, parameters=0):
    def make(device, dtype, rows, columns):
        rows, columns, dtype = int(rows), int(columns), DTYPES[dtype]
        others = [([columns], dtype)] * parameters
        return Operands(device, ([rows, columns], dtype), *others), compute

    return make


def cross_entropy(device, dtype, rows, columns):
    rows, columns = int(rows), int(columns)
    operands = Operands(device, ([rows, columns], DTYPES[dtype]), ([rows], columns))
    return operands, lambda x, labels: functional.cross_entropy(x, labels, reduction="none")


def add(device, dtype, rows, columns):
    shape = [int(rows), int(columns)]
    return Operands(device, (shape, DTYPES[dtype]), (shape, DTYPES[dtype])), torch.add


def gather(device, dtype, rows, columns):
    rows, columns = int(rows), int(columns)
    operands = Operands(device, ([rows, columns], DTYPES[dtype]), ([rows], rows))
    return operands, lambda x, index: x.index_select(0, index)


def matmul(device, dtype, n):
    shape = [int(n), int(n)]

    def multiply(a, b):
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        y = a @ b
        torch.backends.cuda.matmul.allow_tf32 = False
        return y

    return Operands(device, (shape, DTYPES[dtype]), (shape, DTYPES[dtype])), multiply


def normalise(device, backward, matrices, steps):
    steps = int(steps)
    x = torch.randn(int(matrices), 4, 4, device=device, requires_grad=bool(backward))
    compute = torch.compile(sinkhorn, mode="reduce-overhead")
    if not backward:
        return None, lambda: compute(x, steps)
    cotangent = torch.randn_like(x)
    # The forward pass is part of it: limpid's backward kernel makes that again too.
    return None, lambda: torch.autograd.grad(compute(x, steps), x, cotangent)


def step(device, layers, how):
    return None, training(device, int(layers), how == "as a graph")


def norm(function):
    return lambda x, *parameters: function(x, x.shape[-1:], *parameters)


OF_ROWS = r" (\w+) \[(\d+), (\d+)\]"
MEANINGS = [
    (r"copy by the driver, (\d+) bytes", copy),
    ("transpose" + OF_ROWS, of_rows(lambda x: x.view(x.shape[1], x.shape[0]).t().contiguous())),
    ("exp" + OF_ROWS, of_rows(torch.exp)),
    ("add" + OF_ROWS, add),
    ("sum" + OF_ROWS + ", rows", of_rows(lambda x: x.sum(1))),
    ("sum" + OF_ROWS + ", columns", of_rows(lambda x: x.sum(0))),
    ("sum" + OF_ROWS + ", everything", of_rows(torch.sum)),
    ("cumsum" + OF_ROWS + ", rows", of_rows(lambda x: x.cumsum(1))),
    ("argsort" + OF_ROWS + ", rows", of_rows(lambda x: x.argsort(dim=1, stable=True))),
    ("softmax" + OF_ROWS, of_rows(lambda x: x.softmax(1))),
    ("log_softmax" + OF_ROWS, of_rows(lambda x: x.log_softmax(1))),
    ("cross_entropy" + OF_ROWS, cross_entropy),
    ("layer_norm" + OF_ROWS, of_rows(norm(functional.layer_norm), 2)),
    ("rms_norm" + OF_ROWS, of_rows(norm(getattr(functional, "rms_norm", None)), 1)),
    ("gather" + OF_ROWS + ", whole rows", gather),
    (r"matmul (\w+) (\d+)", matmul),
    (r"sinkhorn( backward)? f32, (\d+) of 4×4, (\d+) steps", normalise),
    (r"step of (\d+) layers, residual, (.*)", step),
]


def meaning(name):
    for pattern, make in MEANINGS:
        if found := re.fullmatch(pattern, name):
            return make, found.groups()
    return None


def measure(clock, row):
    make, groups = meaning(row["name"])
    operands, compute = make(clock.device, *groups)
    queue = in_turns(operands, compute, row.get("bytes", ROTATION)) if operands else compute
    return clock.time(queue)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        limpid = json.load(file)
    if not limpid["is_emulated"] and not torch.cuda.is_available():
        sys.exit("peer: PyTorch finds no card")
    clock = Clock("cpu", 0, 1) if limpid["is_emulated"] else Clock("cuda", 0.02, 7)
    torch.backends.cuda.matmul.allow_tf32 = False
    name = torch.cuda.get_device_name() if clock.device == "cuda" else "the CPU: these times say nothing"
    print(f"PyTorch {torch.__version__} on {name}\n")
    print(f"{'µs':<49} {'limpid':>12} {'PyTorch':>12} {'±':>6} {'ratio':>9}\n{'─' * 92}")
    rows = []
    for row in limpid["rows"]:
        if "error" in row or meaning(row["name"]) is None:
            continue
        try:
            microseconds, spread = measure(clock, row)
        except Exception as error:  # one operation that PyTorch refuses does not end the table
            rows.append({"name": row["name"], "error": str(error)})
            print(f"{row['name']:<49} FAILED: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        ratio = microseconds / row["microseconds"]
        rows.append({"name": row["name"], "microseconds": microseconds, "spread": spread, "limpid": row["microseconds"]})
        for work, rate, unit in RATES:
            if work in row:
                rows[-1][rate] = row[work] / microseconds / unit
        print(f"{row['name']:<49} {row['microseconds']:>12.2f} {microseconds:>12.2f} {spread:>6.1%} {ratio:>9.2f}", flush=True)
    print("\nratio: how many times as long PyTorch takes. Sinkhorn and the step as a graph are torch.compile's.")
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump({"by": f"PyTorch {torch.__version__}", "device": name, "rows": rows}, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
