"""Importance sampling for training deep nets in TensorFlow 2 and Keras."""

from tf_importance import (
    comparison,
    distributed,
    gain,
    layers,
    proposals,
    reporting,
    robust,
    samplers,
    schedules,
    scorers,
    stores,
    switches,
    variance,
    variance_reduced,
)
from tf_importance.comparison import compare
from tf_importance.estimate import estimate_gain
from tf_importance.mixing import stratified
from tf_importance.model import ISModel
from tf_importance.reporting import Recorder, report
from tf_importance.scorers.norms import per_example_gradient_norms
from tf_importance.source import history_sample
from tf_importance.stream import importance_sample

__version__ = "0.1.0.dev0"

__all__ = [
    "ISModel",
    "Recorder",
    "compare",
    "comparison",
    "distributed",
    "estimate_gain",
    "gain",
    "history_sample",
    "importance_sample",
    "layers",
    "per_example_gradient_norms",
    "proposals",
    "report",
    "reporting",
    "robust",
    "samplers",
    "schedules",
    "scorers",
    "stores",
    "stratified",
    "switches",
    "variance",
    "variance_reduced",
]
