"""Writes ops.json: inputs, results and gradients of operations in f64, as PyTorch computes them.

The Rust suite reads the file and needs no Python. To make it again:

    python -m pip install torch numpy
    python generate.py

The numbers are drawn from numpy's PCG64 with SEED, so that the same versions (they are written into the file) give the
same file. For each case with operands x and results y the gradient is that of sum(y * g), g being the cotangent given in
the file. Where limpid's documented convention differs from PyTorch's, this script says so, and computes what limpid
promises from PyTorch's own operations:

- max and min over axes: ties share the gradient evenly (torch.amax does; torch.max with a dim gives it to one).
- maximum and minimum of two: a tie halves the gradient (PyTorch does too).
- clamp: the derivative on a bound is 1 (in this PyTorch it is 0 there).
- var in two passes: torch.var is off by 2e-12 where the mean is 1e4 times the spread (rational arithmetic says so).
- topk and sort: of equal elements the first comes first (stable=True).
"""

import json
import pathlib
import platform

import numpy
import torch
import torch.nn.functional as F

SEED = 20240229
generator = numpy.random.Generator(numpy.random.PCG64(SEED))
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
cases = []


def normal(*shape):
    return torch.from_numpy(generator.standard_normal(shape))


def positive(*shape):
    return torch.from_numpy(generator.uniform(0.2, 3.0, shape))


def unit(*shape):
    return torch.from_numpy(generator.uniform(-0.9, 0.9, shape))


def integers(high, *shape):
    return torch.from_numpy(generator.integers(0, high, shape))


def written(tensor):
    dtype = "i64" if tensor.dtype == torch.int64 else "f64"
    return {"shape": list(tensor.shape), "dtype": dtype, "data": tensor.detach().reshape(-1).tolist()}


def case(name, function, *operands):
    """Records results and gradients of a function of tensors; integer operands are constants."""
    x = [o.clone().requires_grad_(o.is_floating_point()) for o in operands]
    results = function(*x)
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    floats = [y for y in results if y.is_floating_point()]
    cotangents = [normal(*y.shape) for y in floats]
    sum((y * g).sum() for y, g in zip(floats, cotangents)).backward()
    gradients = [v.grad if v.grad is not None else torch.zeros_like(v) for v in x if v.requires_grad]
    cases.append({
        "name": name,
        "operands": [written(o) for o in operands],
        "results": [written(y) for y in results],
        "cotangents": [written(g) for g in cotangents],
        "gradients": [written(g) for g in gradients],
    })


# Functions of one element.
wide = torch.linspace(-4.0, 4.0, 23)
for name, function, x in [
    ("neg", torch.neg, normal(5)),
    ("abs", torch.abs, torch.tensor([-1.5, 0.0, 2.0])),
    ("sign", torch.sign, torch.tensor([-1.5, 0.0, 2.0])),
    ("exp", torch.exp, wide),
    ("expm1", torch.expm1, torch.cat([wide, wide * 1e-6])),
    ("log", torch.log, positive(7)),
    ("log1p", torch.log1p, torch.cat([positive(5), unit(5), unit(5) * 1e-6])),
    ("sqrt", torch.sqrt, positive(7)),
    ("rsqrt", torch.rsqrt, positive(7)),
    ("recip", torch.reciprocal, positive(7)),
    ("sin", torch.sin, wide * 5),
    ("cos", torch.cos, wide * 5),
    ("tanh", torch.tanh, wide),
    ("sigmoid", torch.sigmoid, wide * 5),
    ("erf", torch.erf, wide),
    ("softplus", lambda x: F.softplus(x, threshold=1e9), wide * 5),
    ("relu", F.relu, torch.tensor([-1.5, 0.0, 2.0])),
    ("leaky_relu", lambda x: F.leaky_relu(x, 0.1), normal(7)),
    ("elu", lambda x: F.elu(x, 0.7), wide),
    ("powf", lambda x: x**2.7, positive(7)),
    ("powf_integer", lambda x: x**3, normal(7)),
    ("powf_negative", lambda x: x**-1.3, positive(7)),
    ("clamp", lambda x: torch.where(x.abs() <= 1.0, x, x.clamp(-1.0, 1.0)), torch.tensor([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])),
    ("gelu", F.gelu, wide),
    ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), wide),
    ("silu", F.silu, wide * 3),
    ("glu", F.glu, normal(3, 8)),
    ("swiglu", lambda x: x[:, :4] * F.silu(x[:, 4:]), normal(3, 8)),
    ("geglu", lambda x: x[:, :4] * F.gelu(x[:, 4:]), normal(3, 8)),
    ("reglu", lambda x: x[:, :4] * F.relu(x[:, 4:]), normal(3, 8)),
]:
    case(name, function, x)

# Functions of two, broadcast.
case("add", torch.add, normal(2, 1, 3), normal(4, 1))
case("sub", torch.sub, normal(2, 1, 3), normal(4, 1))
case("mul", torch.mul, normal(2, 1, 3), normal(4, 1))
case("div", torch.div, normal(2, 1, 3), positive(4, 1))
case("pow", torch.pow, positive(2, 1, 3), normal(4, 1))
case("number_minus_and_over", lambda x: (2.5 - x) + 3.0 / x, positive(5))
case("maximum", torch.maximum, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 1.0]))
case("minimum", torch.minimum, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 1.0]))
case("where_positive", lambda c, a, b: torch.where(c > 0, a, b), normal(3, 4), normal(4), normal(3, 1))

# Reductions.
case("sum", lambda x: x.sum((0, 2)), normal(2, 3, 4))
case("mean", lambda x: x.mean((0, 2)), normal(2, 3, 4))
case("var", lambda x: x.var((0, 2), correction=1), normal(2, 3, 4))
case("var_of_a_large_mean", lambda x: (x - x.mean(1, keepdim=True)).square().mean(1), normal(2, 9) + 1e4)
case("prod", lambda x: x.prod(1), normal(3, 5))
case("prod_with_zeros", lambda x: x.prod(1), torch.tensor([[2.0, 0.0, 3.0], [0.0, 0.0, 5.0], [1.0, 2.0, 3.0]]))
ties = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [0.0, -1.0, 7.0, 2.0]])
case("max_with_ties", lambda x: x.amax(1), ties)
case("min_with_ties", lambda x: x.amin((0, 1)), torch.cat([ties, ties]))
case("logsumexp", lambda x: x.logsumexp((0, 2)), normal(2, 3, 4) * 5)
case("logsumexp_of_large", lambda x: x.logsumexp(0), torch.tensor([1000.0, 1001.0, 990.0]))
case("cumsum", lambda x: x.cumsum(1), normal(2, 5, 3))

# Movements.
case("permute", lambda x: x.permute(2, 0, 1), normal(2, 3, 4))
case("expand", lambda x: x.expand(3, 2, 4), normal(2, 1))
case("slice", lambda x: x[:, 1:8:3], normal(2, 9))
case("select", lambda x: x.select(1, 2), normal(2, 4, 3))
case("flip", lambda x: x.flip(1), normal(2, 4, 3))
case("pad", lambda x: F.pad(x, (1, 2), value=0.5), normal(2, 3))
case("concat", lambda a, b: torch.cat([a, b], 1), normal(2, 3), normal(2, 4))
case("stack", lambda a, b: torch.stack([a, b], 1), normal(2, 3), normal(2, 3))
case("tril", lambda x: x.tril(1), normal(2, 4, 5))
case("triu", lambda x: x.triu(-1), normal(2, 4, 5))

# Indices.
case("gather", lambda x, i: x.gather(1, i), normal(3, 5), integers(5, 3, 4))
case("index_select", lambda x, i: x.index_select(0, i), normal(4, 3), integers(4, 6))
case("scatter_add", lambda x, i, s: x.scatter_add(1, i, s), normal(3, 5), integers(5, 3, 7), normal(3, 7))
case("sort", lambda x: torch.sort(x, dim=1, stable=True), normal(3, 6))
case("sort_descending_with_ties", lambda x: torch.sort(x, dim=1, stable=True, descending=True), ties)
case("topk", lambda x: torch.topk(x, 3, dim=1), normal(3, 7))
case("topk_smallest", lambda x: torch.topk(x, 2, dim=0, largest=False), normal(5, 3))

# Products.
case("matmul", torch.matmul, normal(2, 1, 3, 4), normal(5, 4, 2))
case("matmul_vectors", torch.matmul, normal(4), normal(4))
case("matmul_matrix_vector", torch.matmul, normal(2, 3, 4), normal(4))
case("matmul_vector_matrix", torch.matmul, normal(3), normal(2, 3, 4))
for spec, *shapes in [
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("ij->ji", (3, 4)),
    ("ii->", (4, 4)),
    ("bii->bi", (2, 3, 3)),
    ("i,j->ij", (3,), (4,)),
    ("ijk,jl,kl->il", (2, 3, 4), (3, 5), (4, 5)),
    ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)),
]:
    case("einsum " + spec, lambda *x: torch.einsum(spec, *x), *(normal(*shape) for shape in shapes))

# Fused operations.
case("linear", F.linear, normal(2, 3, 4), normal(5, 4), normal(5))
case("linear_relu", lambda x, w, b: F.relu(F.linear(x, w, b)), normal(3, 4), normal(5, 4), normal(5))
case("linear_tanh", lambda x, w, b: torch.tanh(F.linear(x, w, b)), normal(3, 4), normal(5, 4), normal(5))
case("linear_sigmoid", lambda x, w, b: torch.sigmoid(F.linear(x, w, b)), normal(3, 4), normal(5, 4), normal(5))
case("softmax", lambda x: x.softmax(-1), normal(3, 7) * 3)
case("softmax_of_the_first_axis", lambda x: x.softmax(0), normal(3, 4) * 3)
case("log_softmax", lambda x: x.log_softmax(-1), normal(3, 7) * 3)
case("cross_entropy", lambda x, y: F.cross_entropy(x, y, reduction="none"), normal(6, 4) * 3, integers(4, 6))
case("layer_norm", lambda x, g, b: F.layer_norm(x, (6,), g, b, 1e-5), normal(2, 3, 6), normal(6), normal(6))


def rms_norm(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


case("rms_norm", rms_norm, normal(2, 3, 6), normal(6))


def batch_norm_train(x, gain, bias):
    mean, variance = torch.zeros(4), torch.ones(4)
    y = F.batch_norm(x, mean, variance, gain, bias, training=True, momentum=0.1, eps=1e-5)
    return y, mean, variance


case("batch_norm_train", batch_norm_train, normal(7, 4), normal(4), normal(4))
case(
    "batch_norm_evaluate",
    lambda x, m, v, g, b: F.batch_norm(x, m.detach(), v.detach(), g, b, training=False, eps=1e-5),
    normal(7, 4), normal(4), positive(4), normal(4), normal(4),
)


def attention(q, k, v):
    return ((q @ k.transpose(-2, -1) / 2.0).softmax(-1)) @ v


case("attention", attention, normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 6))


def mlp(x, labels, *parameters):
    """Four linear layers with three kinds of activation between them, and the mean cross-entropy."""
    weights, biases = parameters[::2], parameters[1::2]
    h = x
    for i, activation in enumerate([torch.tanh, F.gelu, F.relu, None]):
        h = F.linear(h, weights[i], biases[i])
        h = activation(h) if activation else h
    return F.cross_entropy(h, labels)


sizes = [2, 8, 7, 6, 3]
parameters = []
for fan_in, fan_out in zip(sizes, sizes[1:]):
    parameters += [normal(fan_out, fan_in) / fan_in**0.5, normal(fan_out) * 0.1]
case("mlp", mlp, normal(9, 2), integers(3, 9), *parameters)

path = pathlib.Path(__file__).with_name("ops.json")
versions = {"torch": torch.__version__, "numpy": numpy.__version__, "python": platform.python_version()}
with open(path, "w") as file:
    head = {"made_by": "generate.py", "seed": SEED, "versions": versions}
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    file.write(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
print(f"{len(cases)} cases, {path.stat().st_size} bytes")
