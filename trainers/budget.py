"""How long a run may take, and how much of that is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# Wall-clock time is what the papers equal. On a machine that others use as well, the processor
# time of one's own threads is what repeats.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}


def clock(name: str) -> Callable[[], float]:
    """A clock by name.

    Raises:
        ValueError: unknown name.
    """
    if name not in CLOCKS:
        raise ValueError(f"--clock must be one of {', '.join(CLOCKS)}; got {name!r}.")
    return CLOCKS[name]


@dataclass(frozen=True)
class Budget:
    """Seconds of training, steps, or both: the run ends with whichever is spent first.

    Attributes:
        seconds: positive, or None for no limit.
        steps: positive, or None for no limit.
    Raises:
        ValueError: neither limit, or one that is not positive.
    """

    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is None and self.steps is None:
            raise ValueError("a run needs an end: give --time_budget (seconds), --steps or both.")
        for name, value in (("--time_budget", self.seconds), ("--steps", self.steps)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {value}.")

    def __str__(self) -> str:
        limits = (
            f"{self.seconds:g} s" if self.seconds is not None else "",
            f"{self.steps:,} steps" if self.steps is not None else "",
        )
        return " or ".join(filter(None, limits))

    def progress(self, seconds: float, steps: int) -> float:
        """The fraction that is spent, at least 1 at the end.

        Args:
            seconds: of training until now.
            steps: made until now.
        """
        of_seconds = seconds / self.seconds if self.seconds is not None else 0.0
        of_steps = steps / self.steps if self.steps is not None else 0.0
        return max(of_seconds, of_steps)


class Stopwatch:
    """Counts seconds between `start` and `stop`.

    Args:
        seconds: what it shows at first.
        now: the clock, in seconds.
    """

    def __init__(self, seconds: float = 0.0, now: Callable[[], float] = time.perf_counter) -> None:
        self._counted = seconds
        self.now = now
        self._started: float | None = None

    @property
    def running(self) -> bool:
        return self._started is not None

    @property
    def seconds(self) -> float:
        """Seconds counted until now."""
        if self._started is None:
            return self._counted
        return self._counted + self.now() - self._started

    def start(self) -> None:
        """Count on."""
        if self._started is None:
            self._started = self.now()

    def stop(self) -> None:
        """Count no further until `start`."""
        self._counted = self.seconds
        self._started = None
