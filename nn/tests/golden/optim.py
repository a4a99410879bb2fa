"""Writes optim.json: what PyTorch's optimisers make of two small parameters in five steps, in float64.

    python optim.py

Every case lists its options under PyTorch's names, the learning rate of each step, and the parameters after each.
"""

import json
from pathlib import Path

import torch

WEIGHT = [[0.5, -1.25, 2.0], [0.0, 3.5e-3, -40.0]]
BIAS = [1.0, -1e-6]
RATES = [0.1, 0.1, 0.05, 0.2, 0.01]

CASES = [
    ("sgd", {}),
    ("sgd", {"weight_decay": 0.1}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.8, "weight_decay": 0.05}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("sgd", {"momentum": 0.7, "nesterov": True, "weight_decay": 0.3}),
    ("adam", {}),
    ("adam", {"betas": [0.8, 0.95], "eps": 1e-3}),
    ("adam", {"weight_decay": 0.2}),
    ("adam", {"betas": [0.0, 0.5], "eps": 0.1, "weight_decay": 0.01}),
    ("adamw", {}),
    ("adamw", {"weight_decay": 0.5}),
    ("adamw", {"betas": [0.7, 0.9], "eps": 1e-2, "weight_decay": 0.1}),
]
CLASSES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def gradients():
    """Five pairs of gradients over many orders of magnitude, with exact zeros among them."""
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for _ in RATES:
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        weight = draw(2, 3) * 10.0 ** draw(2, 3)
        weight[1, 0] = 0.0
        pairs.append((weight, draw(2)))
    return pairs


def trajectory(name, options, pairs):
    weight = torch.tensor(WEIGHT, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(BIAS, dtype=torch.float64, requires_grad=True)
    optimizer = CLASSES[name]([weight, bias], lr=RATES[0], foreach=False, **options)
    steps = []
    for rate, (weight.grad, bias.grad) in zip(RATES, pairs):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        steps.append({"weight": weight.flatten().tolist(), "bias": bias.tolist()})
    return steps


def main():
    pairs = gradients()
    golden = {
        "torch": torch.__version__,
        "rates": RATES,
        "weight": sum(WEIGHT, []),
        "bias": BIAS,
        "gradients": [{"weight": w.flatten().tolist(), "bias": b.tolist()} for w, b in pairs],
        "cases": [
            {"optimizer": name, "options": options, "steps": trajectory(name, options, pairs)}
            for name, options in CASES
        ],
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(golden, indent=1) + "\n")


main()
