"""The papers' switch: draw while τ is above a threshold."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

import tensorflow as tf

from tf_importance import arguments, compat, variance
from tf_importance.switches.base import Always, Never, Setting, Switch

_THRESHOLDS: dict[str, Callable[[int, int], float]] = {
    "guaranteed": variance.guaranteed_threshold,
    "break_even": variance.break_even_threshold,
    "presample_break_even": variance.presample_break_even_threshold,
}


class Tau(Switch):
    """Draw while τ, the equivalent batch increase, is above a threshold (Algorithm 1).

    Args:
        threshold: a number; or "guaranteed", the paper's (B + 3b)/(3b); "break_even", its square
            root; "presample_break_even", the same with the pre-sample's own noise counted.
    Raises:
        ValueError: threshold is no such name, negative or not finite.
    """

    def __init__(self, threshold: float | str = "guaranteed") -> None:
        super().__init__(name="tau_switch")
        if isinstance(threshold, str) and threshold not in _THRESHOLDS:
            names = ("always", "never", *sorted(_THRESHOLDS))
            raise ValueError(
                f"the threshold of τ must be a number or one of {', '.join(map(repr, names))}; got "
                f"{threshold!r}.{arguments.meant(threshold, names)}"
            )
        if not isinstance(threshold, str):
            number = isinstance(threshold, numbers.Real) and math.isfinite(threshold)
            number = number and not isinstance(threshold, bool)
            if not number or threshold < 0:
                raise ValueError(
                    "the threshold of τ must be finite and not negative; got "
                    f"{arguments.named(threshold)}. To draw always or never, give "
                    "tau_threshold='always' or 'never', or switch=tfi.switches.Always() or Never()."
                )
        self._threshold = threshold

    def choose(self, setting: Setting) -> tf.Tensor:
        threshold = self.threshold(max(setting.presample_sizes), setting.batch_size)
        return tf.cast(compat.value(setting.model.tau) > threshold, tf.int32)

    def why_off(self, setting: Setting) -> str:
        tau = float(tf.convert_to_tensor(compat.value(setting.model.tau)))
        threshold = self.threshold(max(setting.presample_sizes), setting.batch_size)
        return f"τ was {tau:.2f} at the end, and drawing begins above {threshold:.2f}"

    def threshold(self, presample_size: int, batch_size: int) -> float:
        """τ_th for sizes B and b."""
        if isinstance(self._threshold, str):
            return _THRESHOLDS[self._threshold](presample_size, batch_size)
        return float(self._threshold)


def named(tau_threshold: float | str | None) -> Switch:
    """The switch that a `tau_threshold` stands for."""
    if isinstance(tau_threshold, str) and tau_threshold in ("always", "never"):
        return Always() if tau_threshold == "always" else Never()
    return Tau("guaranteed" if tau_threshold is None else tau_threshold)
