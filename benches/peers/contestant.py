"""What every contestant in Python has in common: answering run.py line by line, and the operands that all make alike.

A contestant is a table from the first part of a workload's name to a function of its other parts, which returns a function that
does the work once and returns its results as arrays. One that returns None, or raises Skip, does not take part.
"""

import sys
import time

import numpy


class Skip(Exception):
    """Why a contestant does not take part in a workload."""


def spread(shape, low, high, label):
    """f32s over low..high by position: benches/src/numbers.rs has the formula."""
    count = int(numpy.prod(shape))
    with numpy.errstate(over="ignore"):
        h = numpy.arange(count, dtype=numpy.uint32) * numpy.uint32(2654435761)
        h += numpy.uint32(2246822519) * numpy.uint32(label + 1)
        h ^= h >> numpy.uint32(15)
        h *= numpy.uint32(2146121005)
        h ^= h >> numpy.uint32(13)
    return (low + (high - low) * (h.astype(numpy.float64) / 2.0**32)).astype(numpy.float32).reshape(shape)


def layers(width, depth=20):
    """Weights and biases of the network, as benches/src/networks.rs has them."""
    sizes = [(2, width)] + [(width, width)] * (depth - 2) + [(width, 2)]
    for i, (inputs, outputs) in enumerate(sizes):
        bound = inputs**-0.5
        yield spread((outputs, inputs), -bound, bound, i), spread((outputs,), -bound, bound, 1000 + i)


def points(batch):
    """Features and labels of one batch."""
    return spread((batch, 2), -2.0, 2.0, 2000), numpy.arange(batch) % 2


def factors(m, k, n, turned):
    """The factors of a matrix product, each as it lies in memory and whether it is to be transposed."""
    shapes = [(int(m), int(k)), (int(k), int(n))]
    for label, (shape, turn) in enumerate(zip(shapes, turned)):
        yield spread(shape[::-1] if turn == "t" else shape, -1.0, 1.0, label), turn == "t"


def check(results):
    """The sum of the results' mean squares."""
    return sum(float(numpy.mean(numpy.square(numpy.asarray(x, dtype=numpy.float64)))) for x in results)


def seconds_each(run, count):
    """The processor's time that one of `count` runs takes, all threads together."""
    start = time.process_time()
    for _ in range(count):
        run()
    return (time.process_time() - start) / count


def repetitions(run, seconds):
    """So many runs that they take about so long or longer."""
    count = 1
    while (took := seconds_each(run, count) * count) < seconds:
        count = int(count * min(max(1.1 * seconds / max(took, 1e-9), 1.5), 16)) + 1
    return count


def serve(workloads):
    """Answers until there are no more questions."""
    run = count = None
    for line in sys.stdin:
        request, _, argument = line.strip().partition(" ")
        if request == "prepare":
            run = count = None
            name, *rest = argument.split("-")
            try:
                run = workloads[name](*rest) if name in workloads else None
                answer = "ok" if run else f"skip has no {name}"
            except Skip as why:
                answer = f"skip {why}"
        elif request == "check":
            answer = repr(check(run()))
        else:
            if count is None:
                count = repetitions(run, float(argument))
            answer = repr(seconds_each(run, count))
        print(answer, flush=True)
