"""What is predicted of a net and its data, as numbers and in words."""

from __future__ import annotations

from typing import NamedTuple

# Below this a prediction is within its own error of no speedup at all.
_WORTHWHILE = 1.1
# The mean square of a stratum is known to about a third by so many of its examples.
_ENOUGH = 16
SCORES, STRATA = "scores", "strata"


class Prediction(NamedTuple):
    """What a way to draw batches of b would do.

    Attributes:
        batch_size: b.
        presample_size: B, from which scores draw a batch; b for strata, which score nothing.
        gain: r, progress of a step over that of a uniform one, its learning rate times r.
        cost: seconds of a step over those of a uniform one, without overlap; what a sampler does
            beside scoring, which shows where a step takes a millisecond, is not counted.
        by: "scores", of pre-samples; or "strata".
    """

    batch_size: int
    presample_size: int
    gain: float
    cost: float
    by: str = SCORES

    @property
    def speedup(self) -> float:
        """Predicted progress per second over uniform sampling: gain/cost."""
        return self.gain / self.cost

    @property
    def advice(self) -> str:
        """How to draw so, in words."""
        if self.by == STRATA:
            return (
                f"Draw by strata, sampler=tfi.samplers.Stratified() or strata=… of a stream, in "
                f"batches of {self.batch_size}"
            )
        return (
            f"Draw {self.batch_size} from pre-samples of {self.presample_size}, with a learning "
            "rate that follows the gain"
        )


class Strata(NamedTuple):
    """The strata that were found among the examples.

    Attributes:
        number: how many.
        rarest: how many of the examples are of the one that has the fewest.
    """

    number: int
    rarest: int


class GainEstimate(NamedTuple):
    """The numbers of `estimate_gain`; it prints as a table.

    Attributes:
        examples: how many were measured.
        tau: τ, the factor by which importance sampling raises the effective batch size.
        effective_sample_size: 1/τ², the share of the examples that carry the gradient.
        noise_scale: (U − A)/A, the batch size at which noise and mean gradient are equal.
        predictions: for each size asked for: by scores, and by strata where there are some.
        loss: the mean loss of these examples, by their weights.
        steps: how many steps a copy of the net was trained for before.
        later: the same after more steps.
        strata: those of the examples; None where there are none.
        missed: numbers of steps that there was no time for.
    """

    examples: int
    tau: float
    effective_sample_size: float
    noise_scale: float
    predictions: tuple[Prediction, ...]
    loss: float = float("nan")
    steps: int = 0
    later: tuple[GainEstimate, ...] = ()
    strata: Strata | None = None
    missed: tuple[int, ...] = ()

    @property
    def best(self) -> Prediction:
        """The prediction of the largest speedup."""
        return max(self.predictions, key=lambda prediction: prediction.speedup)

    @property
    def recommendation(self) -> str:
        """What to do, in a sentence or two."""
        later = max(self.later, key=lambda one: one.best.speedup, default=None)
        pays_later = later is not None and later.best.speedup >= _WORTHWHILE
        if self.best.speedup >= _WORTHWHILE:
            said = f"{self.best.advice}: about {self.best.speedup:.1f} times as fast."
        elif later is not None and pays_later and later.best.by == STRATA:
            # They score nothing before.
            said = f"{later.best.advice}: not faster yet, but nothing is scored."
        else:
            said = f"{self._uniformly} A Gain switch finds out when that changes."
        if later is not None and pays_later:
            said += (
                f" After {_steps(later.steps)}, at a loss of {later.loss:.3g}, it would be "
                f"{later.best.speedup:.1f} times as fast{self._other_way(later.best)}."
            )
        elif later is not None:
            said += f" It would not be after {_steps(self.later[-1].steps)} either."
        return said + self._no_time + self._doubt

    @property
    def _uniformly(self) -> str:
        """Why no way is worth it."""
        if self.strata is None:
            none = "importance sampling would not"
        else:
            none = "neither strata nor scores would"
        return f"Train uniformly for now: {none} be faster at any of these sizes."

    def _other_way(self, later: Prediction) -> str:
        """How a later prediction draws, where what is said of now is something else."""
        pays_now = self.best.speedup >= _WORTHWHILE
        if later.by == STRATA:
            return " by strata" if pays_now and self.best.by != STRATA else ""
        if pays_now and self.best.by == later.by:
            return ""
        return f" by {later.batch_size} drawn from pre-samples of {later.presample_size}"

    @property
    def _no_time(self) -> str:
        """That not all steps were made, where some were not."""
        if not self.missed:
            return ""
        steps = " and ".join(f"{count:,}" for count in self.missed)
        return f" There was no time for {steps} steps: give it more, seconds=…."

    @property
    def _doubt(self) -> str:
        """That a stratum has too few examples, where one has."""
        if self.strata is None or self.strata.rarest >= _ENOUGH:
            return ""
        return (
            f" The rarest stratum has {self.strata.rarest} of these examples, too few to be sure "
            "of its gradients: measure more, examples=…, and give it the time, seconds=…."
        )

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        tables = [one._table() for one in (self, *self.later)]
        return "\n\n".join([*tables, self.recommendation])

    def _table(self) -> str:
        after = f"after {_steps(self.steps)}, " if self.steps else ""
        lines = [
            f"{after}loss {self.loss:.3g}, {self.examples} examples: τ {self.tau:.2f}, effective "
            f"sample size {self.effective_sample_size:.0%}, noise scale {self.noise_scale:.0f}",
        ]
        if self.strata is not None:
            part = self.strata.rarest / self.examples
            lines.append(f"{self.strata.number} strata, the rarest {part:.2g} of the examples")
        lines += ["", f"{'by':<7}{'b':>6} {'B':>6} {'gain':>6} {'cost':>6} {'speedup':>8}"]
        for p in self.predictions:
            presample = "" if p.by == STRATA else p.presample_size
            lines.append(
                f"{p.by:<7}{p.batch_size:>6} {presample:>6} "
                f"{p.gain:>6.2f} {p.cost:>6.2f} {p.speedup:>8.2f}"
            )
        return "\n".join(lines)


def _steps(count: int) -> str:
    return f"{count:,} step" + ("s" if count > 1 else "")
