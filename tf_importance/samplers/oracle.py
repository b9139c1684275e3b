"""O-SGD: importance sampling by the exact norms of all examples (Johnson & Guestrin, section 3)."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_importance import compat, fresh, losses, proposals, scorers, variance
from tf_importance.arguments import positive_integer
from tf_importance.draws import Draws, Seen
from tf_importance.samplers.base import Draw, Sampler, Turn, from_all


class Oracle(Sampler):
    """Draw by p_i = ‖∇f_i‖ / Σ_j ‖∇f_j‖ of the net as it is now  (Proposition 3.1).

    Before each batch all n examples are passed forward and backward, so this is a yardstick for
    small nets and not a way to train. The gain ratio is exact too, eq. 6 by eq. 5: ‖∇f̄‖² and
    ‖∇F‖² are computed in the same passes, regularization included in F. All of it in inference
    mode. Where no norm is positive, or one is not finite, examples are drawn uniformly.

    Args:
        num_examples: n.
        model: the compiled ISModel in training.
        scorer: exact norms, `(model, x, y) -> [b]`.
        scored_at_once: examples in one forward pass.
    """

    # By the norms of one step ago an example of a small norm then and a large one now would come
    # with a weight that nothing bounds: such a step can destroy the net.
    may_draw_ahead = False
    # It knows the gain.
    is_compared = False
    serves_replicas = False

    def __init__(
        self,
        num_examples: int,
        model: keras.Model,
        *,
        scorer: scorers.Scorer = scorers.gradient_norm,
        scored_at_once: int = 512,
    ) -> None:
        fresh.check_scorer(scorer)
        super().__init__(num_examples)
        self._chunk = positive_integer("scored_at_once", scored_at_once)
        # In functions: as attributes, model and scorer would become part of its checkpoints.
        self._model = lambda: model
        self._scorer = lambda x, y: scorer(model, x, y)

    def largest_block(self, batch_size: int) -> int:
        return 1

    def _draw(self, turn: Turn) -> Draw:
        norms, gradients = self._exact()
        self.gain.ratio.assign(self._exact_gain(norms, gradients, turn.size))
        return from_all(norms, turn)

    def learn(self, draws: Draws, seen: Seen) -> None:
        """It knows, and need not learn."""

    def _exact(self) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """All norms [n], and the gradient of the mean loss, a tensor for each variable."""
        model, n, chunk = self._model(), self.num_examples, self._chunk
        variables = [compat.value(variable) for variable in model.trainable_variables]
        chunks = -(-n // chunk)

        def body(number, norms, gradients):
            indices = tf.range(number * chunk, tf.minimum((number + 1) * chunk, n))
            inputs, labels = self.gather(tf.cast(indices, tf.int64))
            scores = tf.cast(self._scorer(inputs, labels), tf.float32)
            newest = _summed_gradient(model, inputs, labels)
            added = [mine + other for mine, other in zip(gradients, newest)]
            return number + 1, norms.write(number, scores), added

        norms = tf.TensorArray(tf.float32, chunks, infer_shape=False, element_shape=[None])
        zeros = [tf.zeros_like(variable) for variable in variables]
        _, norms, gradients = tf.while_loop(
            lambda number, *_: number < chunks, body, (0, norms, zeros), parallel_iterations=1
        )
        return tf.ensure_shape(norms.concat(), [n]), [gradient / n for gradient in gradients]

    def _exact_gain(self, norms, gradients, size: int) -> tf.Tensor:
        mean_square = _square(gradients)
        objective_square = _square(
            [mine + other for mine, other in zip(gradients, _penalty_gradient(self._model()))]
        )
        ratio = variance.exact_gain_ratio(norms, mean_square, objective_square, size)
        return tf.where(proposals.usable(norms) & tf.math.is_finite(ratio), ratio, 1.0)


def _summed_gradient(model, inputs, labels) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        outputs = model(inputs, training=False)
        loss = tf.reduce_sum(losses.per_example_losses(model.objective, labels, outputs))
    return _dense(tape, loss, model.trainable_variables)


def _penalty_gradient(model) -> list[tf.Tensor]:
    """Of the regularization losses, which are functions of the weights alone."""
    with tf.GradientTape() as tape:
        penalties = [tf.cast(penalty, tf.float32) for penalty in model.losses]
        total = tf.add_n(penalties) if penalties else tf.constant(0.0)
    return _dense(tape, total, model.trainable_variables)


def _dense(tape: tf.GradientTape, target, variables) -> list[tf.Tensor]:
    gradients = tape.gradient(target, variables)
    return [
        tf.zeros(variable.shape)
        if gradient is None
        else tf.cast(tf.convert_to_tensor(gradient), tf.float32)
        for gradient, variable in zip(gradients, variables)
    ]


def _square(gradients: list[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([tf.reduce_sum(gradient**2) for gradient in gradients])
