"""SVRG, Katyusha and SCSG, transcribed from their papers in NumPy and float64.

`gradient(w, batch)` is the mean gradient over the examples of a batch of indices; each step
takes the next of `batches`. All return the iterates, the first one included: [steps + 1, d].
"""

from __future__ import annotations

import numpy as np


def svrg(gradient, start, everything, batches, learning_rate, m):
    """Johnson & Zhang 2013, figure 1, option I."""
    batches = iter(batches)
    iterates = [np.asarray(start, np.float64)]
    try:
        while True:
            snapshot = iterates[-1]
            mu = gradient(snapshot, everything)
            for _ in range(m):
                batch, w = next(batches), iterates[-1]
                direction = gradient(w, batch) - gradient(snapshot, batch) + mu
                iterates.append(w - learning_rate * direction)
    except StopIteration:
        return np.array(iterates)


def katyusha(gradient, start, everything, batches, learning_rate, m, tau_1, tau_2, sigma):
    """Allen-Zhu 2017, algorithm 1, with learning_rate = 1/(3L); tau_1 a function of the stage s.

    The sequence y, by option I; x, z and the snapshots stay inside.
    """
    batches = iter(batches)
    y = z = snapshot = np.asarray(start, np.float64)
    iterates, stage = [y], 0
    try:
        while True:
            mu = gradient(snapshot, everything)
            tau = tau_1(stage)
            alpha = learning_rate / tau
            of_stage = []
            for _ in range(m):
                batch = next(batches)
                x = tau * z + tau_2 * snapshot + (1 - tau - tau_2) * y
                direction = mu + gradient(x, batch) - gradient(snapshot, batch)
                z = z - alpha * direction
                y = x - learning_rate * direction
                of_stage.append(y)
                iterates.append(y)
            theta = (1 + alpha * sigma) ** np.arange(m)
            snapshot = theta @ np.array(of_stage) / theta.sum()
            stage += 1
    except StopIteration:
        return np.array(iterates)


def scsg(gradient, start, large_batches, batches, learning_rate, steps):
    """Lei et al. 2017, algorithm 1, with the drawn large batches and numbers of steps given."""
    batches = iter(batches)
    iterates = [np.asarray(start, np.float64)]
    try:
        for large, number in zip(large_batches, steps):
            snapshot = iterates[-1]
            g = gradient(snapshot, large)
            for _ in range(number):
                batch, w = next(batches), iterates[-1]
                nu = gradient(w, batch) - gradient(snapshot, batch) + g
                iterates.append(w - learning_rate * nu)
    except StopIteration:
        pass
    return np.array(iterates)


def sgd(gradient, start, batches, learning_rate):
    """Plain steps."""
    iterates = [np.asarray(start, np.float64)]
    for batch in batches:
        iterates.append(iterates[-1] - learning_rate * gradient(iterates[-1], batch))
    return np.array(iterates)
