"""Samplers with memory: what earlier visits to an example saw decides how often it is drawn."""

from tf_importance.samplers.base import Draw, Sampler, Turn, Visit, check, refuse_other
from tf_importance.samplers.inclusion import Inclusion, InfoBatch
from tf_importance.samplers.maintenance import with_maintenance
from tf_importance.samplers.oracle import Oracle
from tf_importance.samplers.presampled import Fresh
from tf_importance.samplers.proportional import Proportional
from tf_importance.samplers.rais import RAIS
from tf_importance.samplers.rank_based import RankBased, selection_pressure
from tf_importance.samplers.stratified import Stratified
from tf_importance.samplers.switched import Switched
from tf_importance.samplers.uniform import Uniform

__all__ = [
    "Draw",
    "Fresh",
    "Inclusion",
    "InfoBatch",
    "Oracle",
    "Proportional",
    "RAIS",
    "RankBased",
    "Sampler",
    "Stratified",
    "Switched",
    "Turn",
    "Uniform",
    "Visit",
    "check",
    "refuse_other",
    "selection_pressure",
    "with_maintenance",
]
