"""How far is the gradient of a drawn batch from that of all? (K&F 2018, section 4.1)

Of B images with gradients G_i at the net as it is, b are drawn with each proposal, and
‖G_B − G_b‖₂ is measured, G_B = mean_i G_i and G_b = mean_j w_j G_j, w_j = 1/(B g_j). All passes
are in inference mode, as those of the exact norms have to be: one image has no batch statistics.
"""

from __future__ import annotations

import json
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import tf_importance as tfi
from tf_importance import losses

UNIFORM = "uniform"
# What figure 1 compares, the ideal last.
PROPOSALS = (UNIFORM, "loss", "upper_bound", "gradient_norm")
_CHUNK = 128


class Measurement(NamedTuple):
    """What one look at the net gives.

    Attributes:
        distances: [draws] of ‖G_B − G_b‖₂ by proposal.
        probabilities: [B] by proposal.
    """

    distances: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]


class Ablation:
    """Measures the proposals on the same images whenever it is called; adds to ablation.jsonl.

    Args:
        model: the compiled ISModel that is trained.
        images: [B, …] inputs. labels: [B].
        batch_size: b, drawn each time.
        draws: how often.
        seed: of the draws.
    """

    def __init__(
        self, model: tfi.ISModel, images, labels, batch_size: int, draws: int, seed: int
    ) -> None:
        self._model = model
        self._images = tf.convert_to_tensor(images)
        self._labels = tf.convert_to_tensor(labels)
        self._batch_size = batch_size
        self._draws = draws
        self._seed = seed
        self._gradient = tf.function(self._weighted_sum, reduce_retracing=True)
        self._exact = tf.function(
            lambda x, y: tfi.scorers.gradient_norm(model, x, y), reduce_retracing=True
        )

    def __call__(self) -> Measurement:
        """Measure all proposals at the weights as they are."""
        size = len(self._labels)
        everything = self._mean(tf.range(size), tf.ones([size]))
        proposals = self.proposals()
        distances = {name: self._distances(everything, proposals[name]) for name in PROPOSALS}
        return Measurement(
            {name: np.array(found) for name, found in distances.items()},
            {name: proposal.numpy() for name, proposal in proposals.items()},
        )

    def proposals(self) -> dict[str, tf.Tensor]:
        """Each proposal: [B]."""
        found = {UNIFORM: tf.ones([len(self._labels)])}
        for name in ("loss", "upper_bound"):
            scorer = tfi.scorers.BY_NAME[name]
            found[name] = self._scores(lambda x, y, scorer=scorer: scorer(self._model, x, y))
        found["gradient_norm"] = self._scores(self._exact)
        return {name: tfi.proposals.normalize(scores) for name, scores in found.items()}

    def _scores(self, scorer) -> tf.Tensor:
        parts = [
            scorer(self._images[start : start + _CHUNK], self._labels[start : start + _CHUNK])
            for start in range(0, len(self._labels), _CHUNK)
        ]
        return tf.concat(parts, axis=0)

    def _distances(self, everything: tf.Tensor, proposal: tf.Tensor) -> list[float]:
        found = []
        for number in range(self._draws):
            draw = tfi.proposals.multinomial(proposal, self._batch_size, [self._seed, number])
            drawn = self._mean(draw.indices, draw.weights)
            found.append(float(tf.norm(everything - drawn)))
        return found

    def _mean(self, indices: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """mean_j w_j G_j of the images at these indices, as one vector."""
        total = 0.0
        for start in range(0, len(indices), _CHUNK):
            part = indices[start : start + _CHUNK]
            images, labels = tf.gather(self._images, part), tf.gather(self._labels, part)
            total += self._gradient(images, labels, weights[start : start + _CHUNK])
        return total / len(indices)

    def _weighted_sum(self, images, labels, weights) -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = self._model(images, training=False)
            per_example = losses.per_example_losses(self._model.objective, labels, outputs)
            total = tf.reduce_sum(weights * per_example)
        gradients = tape.gradient(total, self._model.trainable_variables)
        return tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)


def append(path: pathlib.Path, step: int, measurement: Measurement) -> None:
    """Add a line to ablation.jsonl.

    Args:
        path: the run's directory. step: number of updates. measurement: what to write.
    """
    row = {
        "step": step,
        "distances": {name: found.tolist() for name, found in measurement.distances.items()},
        "probabilities": {
            name: found.tolist() for name, found in measurement.probabilities.items()
        },
    }
    with (path / "ablation.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
