"""Log-odds correction: batches of strata without weights, and logits moved in the loss instead.

Of examples of which class k is drawn a_k = s_k/π_k times as often as it is there, the log odds of
class k over class j are log a_k − log a_j larger than those of all examples. With

    ℓ(y, z + log a)   in place of   w ℓ(y, z),  w = 1/a_y

the net learns, as z, the log odds of the data as they are (King & Zeng 2001, "prior correction";
Fithian & Hastie 2014). Consistent where the net can be right, and not unbiased: where it cannot be,
it is right for the batches' proportions and not for the data's. In theory its variance is smaller
than that of weights (Wang, Zhang & Wang 2021).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_importance.arguments import named

_BINARY = keras.losses.BinaryCrossentropy
_SPARSE = keras.losses.SparseCategoricalCrossentropy
_ONE_HOT = keras.losses.CategoricalCrossentropy


def shift(loss: Any, outputs: Any, classes: np.ndarray, odds: np.ndarray) -> tf.Tensor:
    """What is added to the logits: log a_k, of one logit log a_1 − log a_0.

    Args:
        loss: as compiled. outputs: the net's, [b, C].
        classes: [S] numbers of the strata, which are labels; of one-hot ones label + 1.
        odds: [S] a.
    Returns:
        [C] float32, 0 for classes that are not there.
    Raises:
        ValueError: for this loss, or these strata, it would not be right.
    """
    if not isinstance(loss, (_BINARY, _SPARSE, _ONE_HOT)) or not _of_logits(loss):
        raise ValueError(
            "correction='log_odds' moves logits, in a loss keras.losses.BinaryCrossentropy, "
            "SparseCategoricalCrossentropy or CategoricalCrossentropy with from_logits=True; got "
            f"{named(loss)}. Give one of these, or correction='weights', which is right for any "
            "loss."
        )
    count = getattr(outputs, "shape", [None])[-1]
    if tf.nest.is_nested(outputs) or outputs.shape.rank != 2:
        raise ValueError(
            "correction='log_odds' is for a net with one output of shape [batch, classes]; got "
            f"{tf.nest.map_structure(lambda part: part.shape, outputs)}. Give correction='weights'."
        )
    classes = np.asarray(classes) - isinstance(loss, _ONE_HOT)
    known = 2 if isinstance(loss, _BINARY) else count
    one_logit_each = not isinstance(loss, _BINARY) or count == 1
    if not one_logit_each or classes.min() < 0 or classes.max() >= known:
        raise ValueError(
            "correction='log_odds' needs strata that are the classes of the logits; got strata "
            f"{classes.tolist()[:20]} and {count} logits under {type(loss).__name__}. Give "
            "correction='weights'."
        )
    moved = np.zeros(known)
    moved[classes] = np.log(odds)
    return tf.constant(moved if count == known else moved[1:] - moved[:1], tf.float32)


def _of_logits(loss: keras.losses.Loss) -> bool:
    return bool(loss.get_config().get("from_logits"))
