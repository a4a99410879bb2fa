#!/usr/bin/env python3
"""Times the same work in limpid and in other frameworks, in turns, with one thread each.

Each contestant is a process that waits to be asked. A round asks every one of them for a sample of a workload, one after
the other; a ratio compares two samples of one round, so that whatever else the machine does meets both. Times are the
processor's: what a process computes, all its threads together. Before it is timed each contestant's result is compared.

limpid is built by this command. Contestants that are not installed are named and left out: PyTorch and JAX are looked for in the
Python that runs this (--python), those in Rust are built with --build-rust, which takes minutes.
"""

import argparse
import json
import os
import pathlib
import re
import select
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
LARGE = 1 << 24
WORKLOADS = [
    "step-64-128",
    "step-256-512",
    "step-1024-512",
    "deep-20-64-128",
    "deep-1000-64-128",
    "tape-record",
    "tape-differentiate",
    "sinkhorn-32768",
    "mhc-4096-256",
    *(f"matmul-{n}-{n}-{n}-nn" for n in [64, 128, 256, 512, 1024]),
    "matmul-128-64-64-nt",
    "matmul-128-64-64-nn",
    "matmul-64-128-64-tn",
    "matmul-512-1024-1024-nt",
    "matmul-1024-512-1024-tn",
    *(f"{name}-{count}" for name in ["exp", "log", "tanh", "sigmoid", "erf"] for count in [1 << 14, LARGE]),
    f"softmax-{LARGE // 1024}-1024",
    f"layernorm-{LARGE // 1024}-1024",
]
# What a run moves or computes, by the first part of a workload's name: for the rate in the last column.
RATES = {
    "matmul": lambda m, k, n, _: (2 * int(m) * int(k) * int(n), "GFLOP/s"),
    "step": lambda width, batch: (6 * int(batch) * (18 * int(width) ** 2 + 4 * int(width)), "GFLOP/s"),
    "deep": lambda depth, *_: (int(depth), "layers/s"),
    "tape": lambda _: (10_000, "nodes/ns"),
    **{name: lambda count: (8 * int(count), "GB/s") for name in ["exp", "log", "tanh", "sigmoid", "erf"]},
    **{name: lambda rows, columns: (8 * int(rows) * int(columns), "GB/s") for name in ["softmax", "layernorm"]},
}
ENVIRONMENT = {
    **{name: "1" for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"]},
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    # Large results reuse memory, as limpid's do: else the system clears their pages at every call.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
}
# Seconds after which a contestant is taken for one that stands still, as burn's tape does with one thread.
PATIENCE = 120


class Gone(Exception):
    """A contestant has ended, and what it said last."""


class Contestant:
    def __init__(self, name, command, processor):
        self.name, self.command, self.processor = name, command, processor
        self.process = self.errors = None

    def ask(self, line):
        if self.process is None:
            self.errors = open(f"/tmp/peers-{os.getpid()}-{self.name}", "w+", encoding="utf-8")
            os.unlink(self.errors.name)
            pin = (lambda: os.sched_setaffinity(0, {self.processor})) if hasattr(os, "sched_setaffinity") else None
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env=os.environ | ENVIRONMENT,
                preexec_fn=pin,
            )
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            # One line for one: nothing else can be waiting in a buffer.
            if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
                self.process.kill()
                self.process.wait()
                self.process = None
                raise Gone(f"no answer within {PATIENCE} s")
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["no word"]
            self.process = None
            raise Gone(said[-1])
        return answer.strip()


def build(command, directory):
    subprocess.run(command, cwd=directory, check=True, stdout=sys.stderr)


def target(directory):
    """Where Cargo puts what it builds there."""
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    found = subprocess.run(command, cwd=directory, check=True, stdout=subprocess.PIPE, text=True).stdout
    return pathlib.Path(json.loads(found)["target_directory"]) / "release"


def contestants(arguments):
    """Those that are there, and why the others are not."""
    there, missing = {}, {}
    if arguments.limpid is None:
        # Cargo's own settings for a release, as the others have them.
        build(["cargo", "build", "--profile", "bench", "-p", "limpid-bench", "--bin", "contestant"], HERE.parent)
    limpid = arguments.limpid or str(target(HERE.parent) / "contestant")
    there["limpid"] = ([limpid], "")
    # The same steps of training, whose tape is written once.
    there["replayed"] = ([limpid, "replay"], "")
    # What the operations of the matrix products take in registers: nobody can be faster.
    there["peak"] = ([limpid, "peak"], "")
    for other in arguments.also:
        name, _, path = other.partition("=")
        there[name] = ([path], "")
    for name, module, command in [
        ("pytorch", "torch", ["pytorch.py"]),
        ("compiled", "torch", ["pytorch.py", "compile"]),
        ("jax", "jax", ["in_jax.py"]),
        ("numpy", "numpy", ["in_numpy.py"]),
    ]:
        # Its number is asked for without importing it, which takes seconds.
        probe = [arguments.python, "-c", f"from importlib.metadata import version; print(version('{module}'))"]
        found = subprocess.run(probe, capture_output=True, text=True, check=False)
        if found.returncode:
            missing[name] = f"{arguments.python} has no {module}"
        else:
            there[name] = ([arguments.python, str(HERE / command[0]), *command[1:]], found.stdout.strip())
    rust = HERE / "rust"
    if arguments.build_rust:
        build(["cargo", "build", "--release"], rust)
    binary = target(rust) / "peers"
    lock = rust / "Cargo.lock"
    locked = lock.read_text(encoding="utf-8") if lock.exists() else ""
    for name, package in [("candle", "candle-core"), ("burn", "burn"), ("gemm", "gemm"), ("faer", "faer")]:
        version = re.search(rf'name = "{package}"\nversion = "(.*)"', locked)
        if binary.exists() and version:
            there[name] = ([str(binary), name], version[1])
        else:
            missing[name] = "not built; --build-rust builds it"
    return there, missing


def seconds(value):
    for unit, scale in [("ns", 1e9), ("µs", 1e6), ("ms", 1e3)]:
        if value * scale < 1000:
            return f"{value * scale:.3g} {unit}"
    return f"{value:.3g} s"


def rate(workload, value):
    name, *parts = workload.split("-")
    if name not in RATES:
        return ""
    work, unit = RATES[name](*parts)
    if unit == "nodes/ns":
        return f"{value / work * 1e9:.0f} ns a node"
    if unit == "layers/s":
        return f"{value / work * 1e6:.0f} µs a layer"
    return f"{work / value / 1e9:.1f} {unit}"


def compete(workload, taking_part, arguments):
    """Prepares everybody, compares their results, and times them in turns."""
    ready, rows = [], []
    expected = None
    for one in taking_part:
        try:
            answer = one.ask(f"prepare {workload}")
            if answer.startswith("skip"):
                continue
            answer = one.ask("check")
            if answer == "none":
                ready.append(one)
                continue
            value = float(answer)
        except Gone as said:
            rows.append({"contestant": one.name, "failed": str(said)})
            continue
        expected = value if expected is None else expected
        if not abs(value - expected) <= 2e-3 * abs(expected):
            rows.append({"contestant": one.name, "failed": f"another result: {value:.6g}, expected {expected:.6g}"})
            continue
        ready.append(one)
    samples = {one.name: [] for one in ready}
    # The first sample finds out how many runs make one, and is not counted.
    for turn in range(arguments.rounds + 1):
        for one in ready:
            took = float(one.ask(f"time {arguments.seconds}"))
            if turn:
                samples[one.name].append(took)
    for name, times in samples.items():
        row = {"contestant": name, "seconds": statistics.median(times), "samples": times}
        if "limpid" in samples and name != "limpid":
            ratios = sorted(theirs / ours for theirs, ours in zip(times, samples["limpid"]))
            row |= {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
        rows.append(row)
    return rows


def line(label, row, workload):
    if "failed" in row:
        return f"{label:<25}{row['contestant']:<10}{row['failed']}"[:80]
    ratio = f"{row['ratio']:>7.2f}  {row['least']:>5.2f}–{row['most']:<5.2f}" if "ratio" in row else " " * 20
    return f"{label:<25}{row['contestant']:<10}{seconds(row['seconds']):>9}{ratio:<21} {rate(workload, row['seconds']):>14}".rstrip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="only those whose name starts so")
    parser.add_argument("--only", metavar="NAME,…", help="only these contestants, limpid among them or not")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.1, help="of a sample, about (%(default)s)")
    parser.add_argument("--python", default=sys.executable, help="the Python that has PyTorch and JAX (this one)")
    parser.add_argument("--limpid", metavar="PATH", help="a contestant that is built already, instead of building it")
    parser.add_argument("--also", metavar="NAME=PATH", action="append", default=[], help="another build of it, as a contestant of its own")
    parser.add_argument("--build-rust", action="store_true", help="build candle, burn, gemm and faer first")
    parser.add_argument("--processor", type=int, default=0, help="the number of the processor that all share (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write every sample")
    parser.add_argument("--list", action="store_true", help="name the workloads")
    arguments = parser.parse_args()
    wanted = [w for w in WORKLOADS if not arguments.workloads or w.startswith(tuple(arguments.workloads))]
    if arguments.list or not wanted:
        print("\n".join(WORKLOADS))
        return
    there, missing = contestants(arguments)
    names = arguments.only.split(",") if arguments.only else list(there)
    taking_part = [Contestant(name, there[name][0], arguments.processor) for name in names if name in there]
    print("  ".join(f"{one.name} {there[one.name][1]}".strip() for one in taking_part))
    for name in names if arguments.only else missing:
        if name not in there:
            print(f"left out: {name}: {missing.get(name, 'no such contestant')}")
    print(f"\n{'':<35}{'time':>9}{'ratio':>7}  {'least–most':<12} {'rate':>14}\n{'─' * 80}")
    results = {}
    for workload in wanted:
        results[workload] = compete(workload, taking_part, arguments)
        for i, row in enumerate(results[workload]):
            print(line("" if i else workload, row, workload), flush=True)
        if arguments.json:
            versions = {one.name: there[one.name][1] for one in taking_part}
            with open(arguments.json, "w", encoding="utf-8") as file:
                json.dump({"versions": versions, "workloads": results}, file, indent=1)
    print("\nratio: how many times as long as limpid it takes, the median of the rounds.")


if __name__ == "__main__":
    main()
