"""The papers' equations, transcribed literally in NumPy and float64."""

from __future__ import annotations

import itertools

import numpy as np


def tau(scores) -> float:
    """(1 − ‖g − u‖² / Σg²)^(−1/2), eq. 26 as printed, from scores."""
    g = np.asarray(scores, np.float64)
    g = g / g.sum()
    return float((1 - np.sum((g - 1 / len(g)) ** 2) / np.sum(g**2)) ** -0.5)


def variance_reduction(gradients) -> float:
    """E_u‖G‖² − E_g‖w G‖² (eq. 22) of gradients [B, d], with g ∝ ‖G‖."""
    gradients = np.asarray(gradients, np.float64)
    norms = np.linalg.norm(gradients, axis=1)
    g = norms / norms.sum()
    weighted = gradients / (len(g) * g)[:, None]
    uniform = np.mean(np.sum(gradients**2, axis=1))
    return float(uniform - np.sum(g * np.sum(weighted**2, axis=1)))


def softmax(z):
    z = np.asarray(z, np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def enumerate_draws(proposal, size):
    """Every ordered draw of `size` indices with replacement, and its probability."""
    proposal = np.asarray(proposal, np.float64)
    for indices in itertools.product(range(len(proposal)), repeat=size):
        indices = np.array(indices)
        yield indices, float(np.prod(proposal[indices]))


def systematic_draws(proposal, size):
    """Every systematic draw, and its probability: u between the points where a draw changes."""
    cumulative = np.cumsum(np.asarray(proposal, np.float64))
    cumulative /= cumulative[-1]
    edges = {0.0, 1.0}
    for k in range(size):
        edges |= {u for u in cumulative * size - k if 0 < u < 1}
    edges = sorted(edges)
    for low, high in zip(edges, edges[1:]):
        points = ((low + high) / 2 + np.arange(size)) / size
        yield np.searchsorted(cumulative, points, side="right"), high - low
