"""Algorithm 1 of Katharopoulos & Fleuret 2018 for softmax regression, NumPy and float64.

Line by line, with the readings that the library documents: the decision is made once for a
group of B examples, τ's average is bias-corrected, and under importance sampling τ comes from
the drawn batch by its weights. The draws are given, so that only the algorithm is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from tests.reference.equations import softmax


class Step(NamedTuple):
    """What a step left behind."""

    tau: float
    drawn: bool


class SoftmaxRegression:
    """θ: a kernel [features, classes] and a bias [classes]."""

    def __init__(self, kernel, bias) -> None:
        self.kernel = np.array(kernel, np.float64)
        self.bias = np.array(bias, np.float64)

    def deltas(self, x, y):
        """∂L/∂z = softmax(z) − y, [batch, classes]."""
        onehot = np.eye(self.bias.size)[np.asarray(y)]
        return softmax(x.astype(np.float64) @ self.kernel + self.bias) - onehot

    def sgd_step(self, x, y, weights, learning_rate) -> None:
        deltas = self.deltas(x, y) * np.asarray(weights, np.float64)[:, None] / len(y)
        self.kernel -= learning_rate * x.astype(np.float64).T @ deltas
        self.bias -= learning_rate * deltas.sum(axis=0)


def train(
    net: SoftmaxRegression,
    groups: Iterable[tuple[np.ndarray, np.ndarray]],
    batch_size: int,
    tau_threshold: float,
    tau_decay: float,
    learning_rate: float,
    draw: Callable[[int, np.ndarray], np.ndarray],
) -> list[Step]:
    """Run Algorithm 1 on groups of B examples.

    Args:
        draw: `(group number, proposal [B]) -> indices [b]`.
    """
    average, correction, tau, steps = 0.0, 1.0, 0.0, []

    def update_tau(scores, weights):
        nonlocal average, correction
        estimate = np.sqrt(np.mean(weights * scores**2)) / np.mean(weights * scores)
        average = tau_decay * average + (1 - tau_decay) * estimate
        correction *= tau_decay
        return average / (1 - correction)

    for number, (x, y) in enumerate(groups):
        if tau > tau_threshold:
            scores = np.linalg.norm(net.deltas(x, y), axis=1)
            g = scores / scores.sum()
            indices = draw(number, g)
            weights = 1 / (len(g) * g[indices])
            x, y = x[indices], y[indices]
            drawn_scores = np.linalg.norm(net.deltas(x, y), axis=1)
            net.sgd_step(x, y, weights, learning_rate)
            tau = update_tau(drawn_scores, weights)
            steps.append(Step(tau, True))
        else:
            for start in range(0, len(y), batch_size):
                part = slice(start, start + batch_size)
                ones = np.ones(len(y[part]))
                scores = np.linalg.norm(net.deltas(x[part], y[part]), axis=1)
                net.sgd_step(x[part], y[part], ones, learning_rate)
                tau = update_tau(scores, ones)
                steps.append(Step(tau, False))
    return steps
