"""Sequence classification by importance sampling (K&F 2018, section 4.4).

    python -m trainers.sequence_classification --out=runs/sequence --time_budget=60
    python -m trainers.sequence_classification --out=runs/permuted_mnist \\
        --flagfile=configs/sequence_classification/permuted_mnist_upper_bound.cfg

Images, pixel by pixel in a fixed random order, by an LSTM: permuted_digits (64 steps, no
download), permuted_mnist (784), permuted_mnist_196 and _49 (averaged to fewer pixels first).
--out holds what `trainers.image_classification` says.
"""

from __future__ import annotations

from absl import flags

from trainers import flags as trainer_flags
from trainers import nets, program, recipe, void


def train(settings: flags.FlagValues) -> recipe.Trained:
    """Data, net, fit.

    Args:
        settings: parsed flags of `trainers.flags`; --dataset has to be one of sequences.
    Returns:
        The run's directory and the fitted model.
    Raises:
        ValueError: the data set has no sequences.
    """
    void.refuse_weights(settings)
    data = recipe.load(settings)
    if len(data.image_shape) != 2:
        raise ValueError(
            f"--dataset={settings.dataset} has inputs of shape {data.image_shape}, no sequences "
            "[steps, channels]; give permuted_digits, permuted_mnist or another permuted one."
        )
    net = nets.build(settings.net, data.image_shape, data.num_classes)
    return recipe.fit(settings, data, net)


if __name__ == "__main__":
    trainer_flags.define(flags.FLAGS)
    flags.adopt_module_key_flags(trainer_flags)
    flags.FLAGS.set_default("dataset", "permuted_digits")
    flags.FLAGS.set_default("net", "lstm")
    program.run(recipe.command(train))
