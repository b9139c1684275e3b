"""The delegated way: other processes score, a store holds the scores, a master trains by them."""

from tf_importance.distributed.description import describe
from tf_importance.distributed.master import Master
from tf_importance.distributed.mirror import Staleness
from tf_importance.distributed.monitors import Monitor, covariances
from tf_importance.distributed.peer import Peer
from tf_importance.distributed.shared import SharedScores
from tf_importance.distributed.smoothing import Constant, TargetEntropy, entropy
from tf_importance.distributed.worker import Worker, working

__all__ = [
    "Constant",
    "Master",
    "Monitor",
    "Peer",
    "SharedScores",
    "Staleness",
    "TargetEntropy",
    "Worker",
    "covariances",
    "describe",
    "entropy",
    "working",
]
