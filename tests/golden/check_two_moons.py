"""Checks what two-moons runs left, by the standard library alone: files that open, and numbers that show the effect.

    python tests/golden/check_two_moons.py DEFAULT HE ARTICLE

DEFAULT: the folder of a default run with --seeds N; HE: of --init he; ARTICLE: of --recipe article.
"""

import csv
import json
import math
import pathlib
import struct
import sys
import xml.etree.ElementTree
from html.parser import HTMLParser

VARIANTS = ["plain", "residual", "scaled", "gated"]
VOID = {"meta", "br", "hr", "img", "input"}


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """Every element is closed in order and nothing is fetched."""

    def __init__(self, path):
        super().__init__()
        self.open = []
        self.figures = 0
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, f"{path}: not closed: {self.open}"
        assert self.figures >= 3, f"{path}: {self.figures} figures"

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            assert name not in ("src", "href", "xlink:href") or value.startswith(("#", "data:")), (tag, name, value)
        self.figures += tag == "svg"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


def check_files(folder):
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for key in ("settings", "seed", "version", "hash", "command", "results"):
        assert key in run, (folder, key)
    epochs = {result["variant"]: result["epochs"] for result in run["results"]}
    depth = run["settings"]["depth"]
    norms, metrics = rows(folder / "gradient_norms.csv"), rows(folder / "metrics.csv")
    assert len(norms) == depth * sum(epochs.values()) and len(metrics) == sum(epochs.values()), folder
    assert all(math.isfinite(float(row["grad_norm"])) for row in norms), folder
    for row in metrics:
        assert all(math.isfinite(float(row[key])) for key in ("train_loss", "val_loss", "val_accuracy")), row
    for name in ("gradient_norms.svg", "loss.svg", "boundary.svg"):
        assert xml.etree.ElementTree.parse(folder / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    Page(folder / "report.html")
    for variant in epochs:
        content = (folder / f"{variant}.safetensors").read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        for i in range(depth):
            assert header[f"layers.{i}.weight"]["dtype"] == header[f"layers.{i}.bias"]["dtype"] == "F32"
    return run


def check_default(folder):
    table = rows(folder / "seeds.csv")
    seeds = sorted({int(row["seed"]) for row in table})
    assert [(row["variant"], int(row["seed"])) for row in table] == [(v, s) for s in seeds for v in VARIANTS]
    for row in table:
        who = f"{row['variant']}, seed {row['seed']}"
        accuracy = float(row["val_accuracy"])
        ratio = float(row["first_step_grad_norm_last"]) / float(row["first_step_grad_norm_layer_1"])
        print(f"{who:17} accuracy {accuracy:.3f}, first step's gradient norm last / second layer {ratio:.1e}")
        if row["variant"] == "plain":
            assert 0.45 <= accuracy <= 0.55 and ratio >= 1e4, who
        else:
            assert accuracy >= 0.94 and ratio < 1e4, who
    for seed in seeds:
        check_files(folder / f"seed-{seed}")


def check_he(folder):
    (plain,) = check_files(folder)["results"]
    print(f"plain, --init he  accuracy {plain['val_accuracy']:.3f}")
    assert plain["variant"] == "plain" and plain["val_accuracy"] >= 0.9


def check_article(folder):
    run = check_files(folder)
    residual = next(result for result in run["results"] if result["variant"] == "residual")
    diverged = residual["diverged"]
    print(f"residual, --recipe article: {diverged}")
    assert diverged["epoch"] >= 0 and diverged["step"] >= 0 and " in layers." in diverged["cause"]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    default, he, article = map(pathlib.Path, sys.argv[1:])
    check_default(default)
    check_he(he)
    check_article(article)
