"""NumPy, whose matrix products are OpenBLAS's."""

import numpy
from contestant import factors, serve, spread


def matmul(m, k, n, turned):
    a, b = (x.T if turn else x for x, turn in factors(m, k, n, turned))
    y = numpy.empty((a.shape[0], b.shape[1]), dtype=numpy.float32)
    return lambda: (numpy.matmul(a, b, out=y),)


def function(f):
    def of(count):
        x = spread((int(count),), 0.1, 1.1, 0)
        y = numpy.empty_like(x)
        return lambda: (f(x, out=y),)

    return of


serve({"matmul": matmul} | {name: function(getattr(numpy, name)) for name in ["exp", "tanh", "log"]})
