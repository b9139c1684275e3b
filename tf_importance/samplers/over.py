"""A sampler around another one."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tf_importance.draws import Draws, Seen
from tf_importance.samplers.base import Gather, Sampler, refuse_other


class Over(Sampler):
    """Draws by a sampler that has the memory, and shares all of its state.

    Args:
        memory: any sampler that learns between blocks.
    Raises:
        TypeError: memory is no sampler.
        ValueError: it follows the training, or draws by another sampler itself.
    """

    def __init__(self, memory: Sampler) -> None:
        refuse_other(memory, "a sampler of tfi.samplers to draw by", "memory")
        if memory.follows_training or isinstance(memory, Over):
            raise ValueError(
                f"memory must be a sampler with a memory of its own, such as RAIS(), for a "
                f"{type(self).__name__}; got a {type(memory).__name__}."
            )
        if memory.moves_logits:
            raise ValueError(
                f"{type(self).__name__} draws by weights, and correction='log_odds' has none; give "
                "correction='weights'."
            )
        super().__init__()
        self.memory = memory
        self.num_examples = memory.num_examples
        self.may_draw_ahead, self.has_limits = memory.may_draw_ahead, memory.has_limits
        self.averages_statistics = memory.averages_statistics
        self.is_biased, self.is_normalized = memory.is_biased, memory.is_normalized
        self.journal, self.gain = memory.journal, memory.gain
        self.seed, self.position, self.datasets = memory.seed, memory.position, memory.datasets
        self.spans_processes = memory.spans_processes
        self._model = lambda: memory._model()

    @property
    def replicas(self) -> int:
        return self.memory.replicas

    @replicas.setter
    def replicas(self, count: int) -> None:
        self.memory.replicas = count

    def build(self, num_examples: int) -> None:
        self.memory.build(num_examples)
        super().build(num_examples)

    def bind(self, model) -> None:
        self.memory.bind(model)

    def attach(self, gather: Gather) -> None:
        self.memory.attach(gather)

    def tend(self) -> None:
        self.memory.tend()

    def expect(self, batches: int) -> None:
        self.memory.expect(batches)

    def end(self) -> None:
        self.memory.end()

    def check_batch_size(self, batch_size: int) -> None:
        self.memory.check_batch_size(self.row_size(batch_size))

    def largest_block(self, batch_size: int) -> int:
        return self.memory.largest_block(self.row_size(batch_size))

    def remember(self, draws: Draws, seen: Seen) -> None:
        self.memory.remember(draws, seen)

    def _remember_kinds(self, draws: Draws, seen: Seen, sizes: Mapping[int, int]) -> None:
        """Remember batches that differ in size.

        Args:
            sizes: b of those kinds of batches that memory is told of.
        """
        for kind, size in sizes.items():
            parts = draws.of_kind(kind, seen, size)

            def told(parts=parts) -> None:
                self.memory.remember(*parts)

            tf.cond(tf.shape(parts[0].kinds)[0] > 0, told, lambda: None)

    def logs(self):
        return self.memory.logs()
