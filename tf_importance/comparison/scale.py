"""How much time a loss is worth: uniform sampling's own runs of several lengths are the scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Beyond uniform sampling's own runs, of a half to twice the budget, a time would be a guess.
LEAST, MOST = 0.25, 4.0
# A loss that falls by less over all lengths says nothing of time.
_FALLS = 0.02


class Scale(NamedTuple):
    """Uniform sampling's median losses by time in budgets, both in logarithms, falling."""

    times: tuple[float, ...]
    losses: tuple[float, ...]

    def time_to(self, loss: float) -> float:
        """What uniform sampling needs for a loss; within a quarter and four budgets.

        Between its own medians along a line, beyond them along that through the first and last.
        """
        if not math.isfinite(loss):
            return LEAST
        wanted = math.log(max(loss, 1e-30))
        slope = (self.losses[-1] - self.losses[0]) / (self.times[-1] - self.times[0])
        if wanted > self.losses[0]:
            time = self.times[0] + (wanted - self.losses[0]) / slope
        elif wanted < self.losses[-1]:
            time = self.times[-1] + (wanted - self.losses[-1]) / slope
        else:
            time = float(np.interp(-wanted, [-one for one in self.losses], self.times))
        return math.exp(min(max(time, math.log(LEAST)), math.log(MOST)))


def of_uniform(losses: Mapping[float, Sequence[float]]) -> Scale | None:
    """None where the loss does not fall with time.

    Args:
        losses: by time in budgets, of each run.
    """
    times = sorted(losses)
    medians = [float(np.median(losses[time])) for time in times]
    # A longer run that ended higher, as one that overfits, is as good as a shorter one.
    falling = np.minimum.accumulate(medians)
    if len(times) < 2 or not (0 < falling[-1] < (1 - _FALLS) * falling[0] < math.inf):
        return None
    return Scale(tuple(np.log(times).tolist()), tuple(np.log(falling).tolist()))
