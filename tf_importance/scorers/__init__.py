"""Scorers: how important is each example? `(model, x, y) -> [B]` non-negative float32."""

from tf_importance.scorers import norms
from tf_importance.scorers.base import OutputScorer, Scorer
from tf_importance.scorers.gradient_norm import gradient_norm
from tf_importance.scorers.loss import loss
from tf_importance.scorers.upper_bound import upper_bound

BY_NAME = {"upper_bound": upper_bound, "loss": loss, "gradient_norm": gradient_norm}

__all__ = ["BY_NAME", "OutputScorer", "Scorer", "gradient_norm", "loss", "norms", "upper_bound"]
