"""The gain ratio, estimated while training (Johnson & Guestrin 2018, section 4.4)."""

from __future__ import annotations

import tensorflow as tf

from tf_importance import variance


class GainEstimator(tf.Module):
    """r̂ of eq. 7 from exponential averages of its three moments.

    The averages start at 0; their common factor 1 − (1−α)^t cancels in the ratio. Under
    uniform weights r̂ is 1 exactly.

    Args:
        smoothing: α in (0, 1], the newest batch's share.
    Attributes:
        moments: [3] the averages of E‖g_U1‖², E‖g_R1‖² and E‖g_R‖².
        ratio: variable, r̂; 1 at first.
    Raises:
        ValueError: smoothing is out of range.
    """

    def __init__(self, smoothing: float = 0.01) -> None:
        super().__init__(name="gain")
        if not 0 < smoothing <= 1:
            raise ValueError(f"gain_smoothing must be in (0, 1]; got {smoothing}.")
        self._smoothing = smoothing
        self.moments = tf.Variable(tf.zeros([3]), trainable=False, name="moments")
        self.ratio = tf.Variable(1.0, trainable=False, name="ratio")

    def learn(self, rows: tf.Tensor, batch_size: tf.Tensor) -> None:
        """Take up batches in their order; those that are not finite are left out.

        Args:
            rows: [M, 3] of each, with f_i its losses and w_i = 1/(n p_i): mean(w ‖∇f‖²),
                mean(w² ‖∇f‖²), and ‖g_R‖² of its weighted mean gradient.
            batch_size: b.
        """
        known = tf.reduce_all(tf.math.is_finite(rows), axis=1)
        # How many counted batches come after each.
        counted = tf.cast(known, tf.float32)
        after = tf.cumsum(counted, exclusive=True, reverse=True)
        shares = tf.where(known, self._smoothing * (1 - self._smoothing) ** after, 0.0)
        newest = tf.where(known[:, tf.newaxis], rows, 0.0)
        kept = (1 - self._smoothing) ** tf.reduce_sum(counted)
        moments = kept * self.moments + tf.linalg.matvec(newest, shares, transpose_a=True)
        self.moments.assign(moments)
        self.ratio.assign(variance.gain_ratio(moments[0], moments[1], moments[2], batch_size))
