"""JAX: everything compiled, the layers of a network by lax.scan."""

import jax
import jax.numpy as np
from contestant import Skip, factors, layers, points, serve, spread
from jax import lax


def array(*arguments):
    return np.asarray(spread(*arguments))


def step(width, batch):
    weights, biases = zip(*layers(int(width)))
    features, labels = map(np.asarray, points(int(batch)))
    parameters = {
        "first": (np.asarray(weights[0]), np.asarray(biases[0])),
        "hidden": (np.stack(weights[1:-1]), np.stack(biases[1:-1])),
        "last": (np.asarray(weights[-1]), np.asarray(biases[-1])),
    }

    def linear(x, layer):
        weight, bias = layer
        return x @ weight.T + bias

    def loss_of(parameters):
        x = jax.nn.relu(linear(features, parameters["first"]))
        x, _ = lax.scan(lambda x, layer: (x + jax.nn.relu(linear(x, layer)), None), x, parameters["hidden"])
        logits = linear(x, parameters["last"])
        chosen = np.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -chosen.mean()

    def squares(gradients):
        one = jax.tree.map(lambda g: np.sum(g * g), (gradients["first"], gradients["last"]))
        many = jax.tree.map(lambda g: np.sum(g * g, axis=tuple(range(1, g.ndim))), gradients["hidden"])
        return np.concatenate([np.atleast_1d(s) for s in jax.tree.leaves((one, many))])

    def update(parameters, velocity):
        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        of_each = squares(gradients)
        total = np.sqrt(of_each.sum())
        scale = np.minimum(1.0 / total, 1.0)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + scale * g, velocity, gradients)
        parameters = jax.tree.map(lambda p, v: p - 1e-4 * v, parameters, velocity)
        return parameters, velocity, loss, np.sqrt(of_each), total

    update = jax.jit(update, donate_argnums=(0, 1))
    state = [parameters, jax.tree.map(np.zeros_like, parameters)]

    def run():
        *state[:], loss, norms, total = update(*state)
        norms = jax.device_get(norms)
        return float(loss), float(total)

    return run


def normalised(logits):
    def both(p, _):
        p = p / p.sum(-2, keepdims=True)
        return p / p.sum(-1, keepdims=True), None

    p = np.exp(logits - lax.stop_gradient(logits.max((-2, -1), keepdims=True)))
    return lax.scan(both, p, None, length=20)[0]


def differentiated(f, cotangent, *operands):
    @jax.jit
    def both(*operands):
        y, pull = jax.vjp(f, *operands)
        return y, pull(cotangent)

    def run():
        y, gradients = jax.block_until_ready(both(*operands))
        return y, gradients[0]

    return run


def sinkhorn(matrices):
    shape = (int(matrices), 4, 4)
    return differentiated(normalised, array(shape, -1.0, 1.0, 1), array(shape, -2.0, 2.0, 0))


def mhc(tokens, channels, n=4):
    tokens, channels = int(tokens), int(channels)
    shape = (tokens, n, channels)
    widths = [n, n, n * n]
    phi = np.concatenate([array((n * channels, w), -0.035, 0.035, i) for i, w in enumerate(widths, 1)], axis=1)

    def connect(x, phi, alpha, bias):
        v = x.reshape(tokens, n * channels)
        r = np.sqrt((v * v).mean(1, keepdims=True) + 1e-6)
        h = (v @ phi / r) * np.repeat(alpha, np.array(widths), total_repeat_length=sum(widths)) + bias
        a, b, mix = np.split(h, [n, 2 * n], axis=1)
        read = np.einsum("tn,tnc->tc", jax.nn.sigmoid(a), x)
        mixed = np.einsum("tmn,tnc->tmc", normalised(mix.reshape(tokens, n, n)), x)
        return mixed + 2.0 * jax.nn.sigmoid(b)[:, :, None] * read[:, None, :]

    x, cotangent = array(shape, -1.0, 1.0, 10), array(shape, -1.0, 1.0, 11)
    return differentiated(connect, cotangent, x, phi, np.ones(3), np.zeros(sum(widths)))


def tape(_):
    raise Skip("compiles a program, and so has no tape")


def computed(f, *operands):
    f = jax.jit(f)
    return lambda: (jax.block_until_ready(f(*operands)),)


def matmul(m, k, n, turned):
    (a, turn_a), (b, turn_b) = ((np.asarray(x), turn) for x, turn in factors(m, k, n, turned))
    return computed(lambda a, b: (a.T if turn_a else a) @ (b.T if turn_b else b), a, b)


def function(f):
    return lambda count: computed(f, array((int(count),), 0.1, 1.1, 0))


def softmax(rows, columns):
    return computed(lambda x: jax.nn.softmax(x, axis=1), array((int(rows), int(columns)), -2.0, 2.0, 0))


def layernorm(rows, columns):
    rows, columns = int(rows), int(columns)

    def norm(x, gamma, beta):
        mean = x.mean(1, keepdims=True)
        variance = np.square(x - mean).mean(1, keepdims=True)
        return (x - mean) * lax.rsqrt(variance + 1e-5) * gamma + beta

    gamma, beta = array((columns,), 0.5, 1.5, 1), array((columns,), -0.5, 0.5, 2)
    return computed(norm, array((rows, columns), -2.0, 2.0, 0), gamma, beta)


functions = {"exp": np.exp, "tanh": np.tanh, "sigmoid": jax.nn.sigmoid, "erf": lax.erf, "log": np.log}
serve(
    {"step": step, "sinkhorn": sinkhorn, "mhc": mhc, "tape": tape, "matmul": matmul, "softmax": softmax, "layernorm": layernorm}
    | {name: function(f) for name, f in functions.items()}
)
