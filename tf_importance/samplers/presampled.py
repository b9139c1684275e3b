"""Memory and fresh scores together: pre-samples that a sampler draws, rescored by the step."""

from __future__ import annotations

import tensorflow as tf

from tf_importance import fresh, proposals
from tf_importance.arguments import positive_integer
from tf_importance.draws import Draws, Seen
from tf_importance.marks import Drawing
from tf_importance.samplers.base import COMPARED, Sampler
from tf_importance.samplers.over import Over
from tf_importance.samplers.uniform import Uniform


class Fresh(Over):
    """Draw B examples by a memory's p; the step scores them as the net is now, and draws b of them.

    g_j ∝ w_j Ĝ_j + c mean(w Ĝ), w_j = 1/(n p_j), and the weights multiply: w_j/(B g_j), unbiased
    still. All B scores go back to the memory. A pre-sample of a uniform sampler gains at most B/b
    of a uniform batch; one that a memory has chosen can gain more.

    Args:
        presample_size: B, at least b.
        over: the sampler that draws the pre-samples; `Uniform` by default.
        smoothing: c ≥ 0: no weight of the second draw exceeds (1 + c)/c.
        resampling: of the second draw, as in `importance_sample`.
        scorer: `(model, x, y) -> [B]`; by default the model's.
    Raises:
        TypeError, ValueError: an argument is out of range.
    """

    def __init__(
        self,
        presample_size: int,
        over: Sampler | None = None,
        *,
        smoothing: float = 0.2,
        resampling: str | proposals.Resampling = "systematic",
        scorer=None,
    ) -> None:
        self.presample_size = positive_integer("presample_size", presample_size)
        self.smoothing = proposals.checked_smoothing(smoothing, 0.0)
        self.resample = proposals.resampling_of(resampling)
        # In a function: a tf.Module takes what it holds for a part of its checkpoints.
        self.scorer = lambda: scorer
        super().__init__(Uniform() if over is None else over)
        # A pre-sample has statistics of its own.
        self.averages_statistics = False
        self._batch_size = 0

    def row_size(self, batch_size: int) -> int:
        if self.presample_size < batch_size:
            raise ValueError(
                "presample_size must be at least batch_size; got "
                f"{self.presample_size} and {batch_size}."
            )
        return self.presample_size

    def sizes(self, batch_size: int) -> list[int]:
        """B; and b of the uniform batches among them, where there are any (`COMPARED`)."""
        presample = self.row_size(batch_size)
        return [presample, batch_size] if self.compares else [presample]

    def plan(self, batches: int, size: int, seed=None) -> Draws:
        return self.memory.plan(batches, self.row_size(size), seed)

    def _count(self, draws: Draws) -> None:
        drawn = tf.reduce_sum(tf.cast(tf.not_equal(draws.kinds, COMPARED), tf.float32))
        self.model.count(drawn=drawn, uniform=draws.kinds.shape[0] - drawn)

    def _are_drawn(self, draws: Draws) -> tf.Tensor:
        # All but those to be compared with; in a memory's first pass these would leave examples
        # out of it.
        if self.memory.is_compared:
            return super()._are_drawn(draws)
        return tf.not_equal(draws.kinds, COMPARED)

    @property
    def compares(self) -> bool:
        """As for all, but where nothing tells a pre-sample from a batch."""
        return super().compares and self.presample_size != self._batch_size

    def remember(self, draws: Draws, seen: Seen) -> None:
        if not self.compares:
            super().remember(draws, seen)
            return
        sizes = {0: self.presample_size, COMPARED: self._batch_size}
        self._remember_kinds(draws, seen, sizes)

    def drawing(self, batch_size: int) -> Drawing:
        return Drawing(
            model=self.model,
            loss=self.model.objective.loss,
            sampler=self.memory,
            fresh=self.way(self.model, batch_size),
            row_size=self.row_size(batch_size),
        )

    def way(self, model, batch_size: int) -> fresh.Way:
        """How the step draws b from a pre-sample."""
        scorer = self.scorer()
        score = fresh.Score(model.scorer if scorer is None else scorer, model)
        self._batch_size = batch_size
        return fresh.Way(score, self.smoothing, self.resample, batch_size)
