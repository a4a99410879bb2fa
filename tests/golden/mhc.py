"""Writes mhc.json: one block with manifold-constrained hyper-connections, as PyTorch computes and differentiates it.

The Rust suite reads the file and needs no Python. To make it again:

    python -m pip install torch numpy
    python mhc.py

The equations are those of arXiv 2512.24880 (Eq. 3, 7-9), written out below with PyTorch's elementary operations; the
derivatives are PyTorch's own. All is f64. Numbers are drawn from numpy's PCG64 with SEED. The scale of phi is such that
logits have about the deviation that a case names; alpha is drawn about 1, so that nothing about phi is hidden behind the
0.01 that training starts from. The gradients are those of sum(y * g).
"""

import json
import pathlib
import platform

import numpy
import torch

SEED = 251224880
generator = numpy.random.Generator(numpy.random.PCG64(SEED))
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)


def normal(*shape, std=1.0):
    return torch.from_numpy(numpy.asarray(generator.standard_normal(shape) * std))


def written(tensor):
    return {"shape": list(tensor.shape), "data": tensor.detach().reshape(-1).tolist()}


def sinkhorn(logits, steps):
    """M_0 = exp(H), then columns and rows divided by their sums, in this order."""
    m = torch.exp(logits)
    for _ in range(steps):
        m = m / m.sum(dim=-2, keepdim=True)
        m = m / m.sum(dim=-1, keepdim=True)
    return m


def block(x, w, eps, steps):
    """x: [..., n, C] -> [..., n, C], with F(u) = tanh(u W^T + c)."""
    n = x.shape[-2]
    v = x.flatten(-2)
    r = torch.sqrt((v * v).mean(dim=-1, keepdim=True) + eps)

    def logits(name):
        return w[f"{name}.alpha"] * (v @ w[f"{name}.phi"]) / r

    read = torch.sigmoid(logits("pre") + w["pre.bias"])
    write = 2 * torch.sigmoid(logits("post") + w["post.bias"])
    mix = sinkhorn(logits("res").unflatten(-1, (n, n)) + w["res.bias"], steps)
    u = (read.unsqueeze(-1) * x).sum(dim=-2)
    f = torch.tanh(u @ w["weight"].T + w["bias"])
    return mix @ x + write.unsqueeze(-1) * f.unsqueeze(-2)


def case(lead, n, channels, steps, std, eps=1e-6):
    def projection(name, *shape):
        count = int(numpy.prod(shape))
        return {
            f"{name}.phi": normal(n * channels, count, std=std / (n * channels) ** 0.5),
            f"{name}.alpha": 1 + normal(std=0.2),
            f"{name}.bias": normal(*shape, std=std),
        }

    weights = {
        **projection("pre", n),
        **projection("post", n),
        **projection("res", n, n),
        "weight": normal(channels, channels, std=channels**-0.5),
        "bias": normal(channels, std=0.3),
    }
    weights = {name: value.clone().requires_grad_() for name, value in weights.items()}
    x = normal(*lead, n, channels).requires_grad_()
    y = block(x, weights, eps, steps)
    g = normal(*y.shape)
    (y * g).sum().backward()
    return {
        "steps": steps,
        "eps": eps,
        "x": written(x),
        "weights": {name: written(value) for name, value in weights.items()},
        "result": written(y),
        "cotangent": written(g),
        "gradient": written(x.grad),
        "gradients": {name: written(value.grad) for name, value in weights.items()},
    }


cases = [
    case([3], 1, 4, 20, 1.0),
    case([2], 2, 3, 1, 1.0),
    case([2], 2, 3, 20, 3.0),
    case([4], 3, 5, 3, 0.1),
    case([3], 4, 6, 20, 1.0),
    case([2, 2], 4, 3, 3, 3.0),
    case([], 4, 4, 20, 0.1, eps=1e-20),
    case([2], 8, 2, 20, 1.0),
]
versions = {"torch": torch.__version__, "numpy": numpy.__version__, "python": platform.python_version()}
path = pathlib.Path(__file__).with_name("mhc.json")
with open(path, "w") as file:
    head = {"made_by": "mhc.py", "seed": SEED, "versions": versions}
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    file.write(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
print(f"{len(cases)} cases, {path.stat().st_size} bytes")
