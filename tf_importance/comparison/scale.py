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
    points: list[tuple[float, float]] = []
    for time, found in sorted(losses.items()):
        loss = float(np.median(found))
        # A longer run that ended no lower, as one that overfits, says nothing of how long a lower
        # loss takes.
        if not points or loss < points[-1][1]:
            points.append((time, loss))
    times, falling = (np.array(part) for part in zip(*points))
    if len(points) < 2 or not (0 < falling[-1] < (1 - _FALLS) * falling[0] < math.inf):
        return None
    return Scale(tuple(np.log(times).tolist()), tuple(np.log(falling).tolist()))
