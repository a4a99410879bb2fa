"""Checks what a default depth sweep left, by the standard library alone: its rows, and the claims made of it.

    python tests/golden/check_depth_sweep.py FOLDER

FOLDER: where `cargo run --release --example depth_sweep` wrote.
"""

import csv
import json
import math
import pathlib
import statistics
import sys
import xml.etree.ElementTree

DEPTHS = [5, 10, 20, 50, 100, 200]
VARIANTS = ["plain", "residual", "hc", "mhc"]


def check_files(folder):
    record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert record["settings"]["depths"] == DEPTHS and record["settings"]["variants"] == VARIANTS, record["settings"]
    for name in ("accuracy.svg", "gradients.svg", "composite.svg"):
        assert xml.etree.ElementTree.parse(folder / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert (folder / "report.html").read_text(encoding="utf-8").count("<svg") >= 3
    seeds = record["settings"]["seeds"]
    with open(folder / "sweep.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = [(int(row["depth"]), row["variant"], int(row["seed"])) for row in rows]
    assert keys == [(d, v, s) for d in DEPTHS for v in VARIANTS for s in seeds], keys
    return seeds, dict(zip(keys, rows))


def main(folder):
    seeds, rows = check_files(folder)

    def numbers(depth, variant, column):
        cells = [rows[depth, variant, seed][column] for seed in seeds]
        return [float(cell) for cell in cells if cell]

    for variant in VARIANTS:
        for depth in DEPTHS:
            accuracy = numbers(depth, variant, "val_accuracy")
            words = f"{statistics.median(accuracy):.3f}" if accuracy else "–"
            print(f"{variant:9} {depth:4} layers: accuracy {words}, diverged {len(seeds) - len(accuracy)}/{len(seeds)}")

    # plain: the gradient that reaches the second layer falls tenfold with every ten layers, and nothing is learned.
    for seed in seeds:
        for shallow, deep in zip(DEPTHS[1:], DEPTHS[2:]):
            before, after = (float(rows[d, "plain", seed]["grad_second_before"]) for d in (shallow, deep))
            # At 200 layers it is too small for an f32.
            assert before > 0 and (after == 0 or after <= before * 10 ** (-(deep - shallow) / 10)), (seed, shallow, deep)
    assert all(a >= 0.9 for a in numbers(5, "plain", "val_accuracy"))
    for depth in DEPTHS[1:]:
        assert all(0.45 <= a <= 0.55 for a in numbers(depth, "plain", "val_accuracy")), depth
    # The others learn at 20 layers.
    for variant in VARIANTS[1:]:
        assert statistics.median(numbers(20, variant, "val_accuracy")) >= 0.9, variant

    # hc: with its mix perturbed, the composite gain grows with depth. mhc: rows sum to 1, so it cannot.
    gains = [statistics.median(numbers(d, "hc", "perturbed_forward")) for d in DEPTHS]
    print("hc, perturbed, forward gain: ", " ".join(f"{gain:.3g}" for gain in gains))
    assert gains == sorted(gains) and gains[-1] > 10 * gains[0], gains
    # With the default seeds, as the README has them.
    if seeds == [0, 1, 2]:
        assert abs(gains[0] / 1.82 - 1) < 0.1 and abs(gains[-1] / 33.0 - 1) < 0.1, gains
    for seed in seeds:
        assert float(rows[50, "hc", seed]["perturbed_forward"]) > float(rows[5, "hc", seed]["perturbed_forward"]), seed
    worst = 0.0
    for depth in DEPTHS:
        for column in ("perturbed_forward", "learned_forward"):
            worst = max([worst] + [abs(gain - 1) for gain in numbers(depth, "mhc", column)])
        assert all(gain < 1.1 for gain in numbers(depth, "mhc", "perturbed_backward")), depth
    print(f"mhc, largest deviation of a forward gain from 1: {worst:.1e}")
    assert worst < 1e-5
    apart = [statistics.median(numbers(d, "mhc", "perturbed_sigma2")) for d in DEPTHS]
    print("mhc, perturbed, σ₂:          ", " ".join(f"{value:.3f}" for value in apart))
    assert apart == sorted(apart, reverse=True) and 0 < apart[-1] and apart[0] < 1, apart
    if seeds == [0, 1, 2]:
        assert abs(apart[0] - 0.996) < 0.002 and abs(apart[-1] - 0.764) < 0.02, apart
    assert all(math.isfinite(float(row["perturbed_forward"])) for row in rows.values() if row["perturbed_forward"])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
