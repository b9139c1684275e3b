"""Exact per-example gradient norms: a registry, and a file per family of layers."""

# Importing a family registers its handlers.
from tf_importance.scorers.norms import (  # noqa: F401
    activations,
    addons,
    convolutional,
    dense,
    embedding,
    normalization,
    recurrent,
    wrappers,
)
from tf_importance.scorers.norms.contributions import Contribution, Direct, Outer, Rows
from tf_importance.scorers.norms.dense import unbroadcast
from tf_importance.scorers.norms.gradient_norms import per_example_gradient_norms
from tf_importance.scorers.norms.plan import Coverage, coverage
from tf_importance.scorers.norms.recording import Recorder
from tf_importance.scorers.norms.registry import register

__all__ = [
    "Contribution",
    "Coverage",
    "Direct",
    "Outer",
    "Recorder",
    "Rows",
    "coverage",
    "per_example_gradient_norms",
    "register",
    "unbroadcast",
]
