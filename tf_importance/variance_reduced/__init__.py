"""SVRG, Katyusha and SCSG: variance reduction by snapshots, the baselines that do not sample."""

from tf_importance.variance_reduced.katyusha import Katyusha
from tf_importance.variance_reduced.scsg import SCSG
from tf_importance.variance_reduced.svrg import SVRG

__all__ = ["SCSG", "SVRG", "Katyusha"]
