"""Importance sampling for training deep nets in TensorFlow 2 and Keras."""

from tf_importance import layers, proposals, scorers, variance, variance_reduced
from tf_importance.model import ISModel
from tf_importance.presampling import importance_sample

__version__ = "0.1.0"

__all__ = [
    "ISModel",
    "importance_sample",
    "layers",
    "proposals",
    "scorers",
    "variance",
    "variance_reduced",
]
