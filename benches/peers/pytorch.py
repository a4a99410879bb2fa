"""PyTorch, one operation at a time, or with the argument `compile` by way of torch.compile."""

import sys

import torch
from contestant import Skip, factors, layers, points, serve, spread
from torch.nn import functional

torch.set_num_threads(1)
COMPILED = sys.argv[1:] == ["compile"]
compiled = torch.compile if COMPILED else lambda f: f


def tensor(*arguments):
    return torch.from_numpy(spread(*arguments))


def eager_only(make):
    def of(*parts):
        if COMPILED:
            raise Skip("is one operation, compiled or not")
        return make(*parts)

    return of


def step(width, batch):
    parameters = [torch.from_numpy(p).requires_grad_() for pair in layers(int(width)) for p in pair]
    features, labels = map(torch.from_numpy, points(int(batch)))
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, foreach=True)

    @compiled
    def loss_of(features, labels, *parameters):
        pairs = list(zip(parameters[::2], parameters[1::2]))
        x = functional.relu(functional.linear(features, *pairs[0]))
        for pair in pairs[1:-1]:
            x = x + functional.relu(functional.linear(x, *pair))
        return functional.cross_entropy(functional.linear(x, *pairs[-1]), labels)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(features, labels, *parameters)
        loss.backward()
        gradients = [p.grad for p in parameters]
        norms = torch.stack(torch._foreach_norm(gradients))
        total = norms.norm()
        torch._foreach_mul_(gradients, torch.clamp(1.0 / total, max=1.0))
        optimizer.step()
        written_down = norms.tolist()
        assert len(written_down) == len(parameters)
        return loss.item(), total.item()

    return run


def normalised(logits):
    p = torch.exp(logits - logits.detach().amax((-2, -1), keepdim=True))
    for _ in range(20):
        p = p / p.sum(-2, keepdim=True)
        p = p / p.sum(-1, keepdim=True)
    return p


def sinkhorn(matrices):
    shape = (int(matrices), 4, 4)
    logits, cotangent = tensor(shape, -2.0, 2.0, 0).requires_grad_(), tensor(shape, -1.0, 1.0, 1)
    compute = compiled(normalised)

    def run():
        p = compute(logits)
        return p.detach(), *torch.autograd.grad(p, logits, cotangent)

    return run


def mhc(tokens, channels, n=4):
    tokens, channels = int(tokens), int(channels)
    shape = (tokens, n, channels)
    x, cotangent = tensor(shape, -1.0, 1.0, 10).requires_grad_(), tensor(shape, -1.0, 1.0, 11)
    widths = [n, n, n * n]
    # One product with all three, as one would write it.
    phi = torch.cat([tensor((n * channels, w), -0.035, 0.035, i) for i, w in enumerate(widths, 1)], dim=1).requires_grad_()
    alpha, bias = torch.ones(3, requires_grad=True), torch.zeros(sum(widths), requires_grad=True)
    repeats = torch.tensor(widths)

    @compiled
    def connect(x, phi, alpha, bias):
        v = x.flatten(1)
        r = (v.square().mean(1, keepdim=True) + 1e-6).sqrt()
        h = (v @ phi / r) * alpha.repeat_interleave(repeats, output_size=bias.shape[0]) + bias
        a, b, mix = h.split(widths, dim=1)
        read = (a.sigmoid().unsqueeze(1) @ x).squeeze(1)
        mixed = normalised(mix.view(-1, n, n)) @ x
        return mixed + (2.0 * b.sigmoid()).unsqueeze(2) * read.unsqueeze(1)

    def run():
        y = connect(x, phi, alpha, bias)
        return y.detach(), torch.autograd.grad(y, [x, phi, alpha, bias], cotangent)[0]

    return run


@eager_only
def tape(what, nodes=10_000):
    x = torch.full((), 1e-4, requires_grad=True)

    def chain():
        h = x
        for _ in range(nodes):
            h = h + x
        return h

    if what == "record":
        return lambda: (chain().item(),)
    return lambda: torch.autograd.grad(chain(), x)


@eager_only
def matmul(m, k, n, turned):
    a, b = (torch.from_numpy(x).t() if turn else torch.from_numpy(x) for x, turn in factors(m, k, n, turned))
    y = torch.empty(a.shape[0], b.shape[1])
    return lambda: (torch.mm(a, b, out=y),)


def function(f):
    @eager_only
    def of(count):
        x = tensor((int(count),), 0.1, 1.1, 0)
        y = torch.empty_like(x)
        return lambda: (f(x, out=y),)

    return of


@eager_only
def softmax(rows, columns):
    x = tensor((int(rows), int(columns)), -2.0, 2.0, 0)
    return lambda: (x.softmax(1),)


@eager_only
def layernorm(rows, columns):
    rows, columns = int(rows), int(columns)
    x, gamma, beta = tensor((rows, columns), -2.0, 2.0, 0), tensor((columns,), 0.5, 1.5, 1), tensor((columns,), -0.5, 0.5, 2)
    return lambda: (functional.layer_norm(x, (columns,), gamma, beta),)


functions = {name: function(getattr(torch, name)) for name in ["exp", "tanh", "sigmoid", "erf", "log"]}
serve(
    {"step": step, "sinkhorn": sinkhorn, "mhc": mhc, "tape": tape, "matmul": matmul, "softmax": softmax, "layernorm": layernorm}
    | functions
)
