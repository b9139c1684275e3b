"""Image classification by importance sampling (Katharopoulos & Fleuret 2018, section 4.2).

    python -m trainers.image_classification --out=runs/digits --time_budget=10
    python -m trainers.image_classification --out=runs/mnist \\
        --flagfile=configs/image_classification/mnist_upper_bound.cfg

--out then holds metrics.jsonl (a line for each evaluation), run.json (flags, versions, commit),
curves.png, saved_model/ (the net alone), tensorboard/ and checkpoints/; with RAIS priorities.npz,
the examples drawn most and least often. The same command
continues a run that was killed, from its last evaluation.
"""

from __future__ import annotations

import pathlib

import keras
from absl import app, flags

from reports import curves
from trainers import datasets, nets, remembered, runner
from trainers import flags as trainer_flags
from trainers.evaluation import Evaluator
from trainers.sampling import Sampled, sampled


def train(settings: flags.FlagValues) -> tuple[pathlib.Path, keras.Model]:
    """Data, net, fit.

    Args:
        settings: parsed flags of `trainers.flags`.
    Returns:
        The run's directory and the fitted model.
    """
    keras.utils.set_random_seed(settings.seed)
    data = datasets.load(settings.dataset, settings.data_dir)
    net = nets.build(settings.net, data.image_shape, data.num_classes)
    prepared: Sampled = sampled(settings, net, data)
    on_train = Evaluator(net, datasets.fixed_subset(data, settings.train_examples))
    path = runner.fit(settings, prepared, on_train, Evaluator(net, data.test))
    remembered.write_priorities(path / "priorities.npz", prepared.model, data)
    return path, prepared.model


def main(_) -> None:
    trainer_flags.log_warnings_only()
    path, model = train(flags.FLAGS)
    # What Keras prints about the exported signature goes to the log.
    keras.utils.disable_interactive_logging()
    model.export(str(path / "saved_model"))
    run = curves.read(path)
    curves.draw({run.label: [run]}, path / "curves.png")
    print(curves.markdown({run.label: [run]}))


if __name__ == "__main__":
    trainer_flags.define(flags.FLAGS)
    flags.adopt_module_key_flags(trainer_flags)
    app.run(main)
