"""The trainer, end to end on the digits."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from trainers import image_classification, remembered, run_directory, sampling
from trainers.evaluation import Evaluator

needs_addons = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_addons") is None, reason="needs TensorFlow Addons"
)
_KEYS = (
    "step seconds train_loss train_error test_loss test_error objective tau ess importance "
    "max_weight fallbacks gain outliers usable rare_share learning_rate epoch "
    "effective_step"
).split()


def _rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(set(sampling.NAMES) - set(remembered.BY_NAME)))
def test_a_run_of_each_sampling_records_every_metric(settings_of, name):
    threshold = [] if name == "uniform" else ["--tau_threshold=always"]
    path, _ = image_classification.train(
        settings_of(
            f"--sampling={name}",
            "--batch_size=8",
            *threshold,
            "--net=linear",
            "--steps=6",
            "--evaluations=3",
        )
    )
    rows = _rows(path)
    assert [list(row) for row in rows] == [_KEYS] * 4
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert 0 <= rows[-1]["test_error"] <= 1
    shares = [row["importance"] for row in rows[1:]]
    assert shares == [0.0 if name == "uniform" else 1.0] * 3


@pytest.mark.slow
@pytest.mark.parametrize("presample", ["--presample_size=auto", "--draws_per_presample=2"])
def test_a_run_by_the_gain(settings_of, presample):
    """The rate follows the schedule of the budget and the gain, up to the ceiling."""
    path, model = image_classification.train(
        settings_of(
            "--switch=gain",
            "--follow_gain",
            "--step_schedule=budget",
            "--schedule=linear",
            "--gain_ceiling=2",
            "--learning_rate=0.5",
            presample,
            "--batch_size=4",
            "--net=linear",
            "--steps=300",
            "--evaluations=3",
        )
    )
    rows = _rows(path)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert 0 < rows[2]["learning_rate"] < rows[1]["learning_rate"] < 0.5
    assert np.isfinite(rows[-1]["gain"]) and rows[-1]["effective_step"] > 0
    assert int(model.switch.presamples) > 0


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--presample_size=many"], "a number or auto; got 'many'"),
        (["--presample_size=auto"], "give switch="),
        (["--follow_gain"], "needs a --step_schedule"),
    ],
)
def test_wrong_gain_flags_are_refused(settings_of, wrong, message):
    with pytest.raises(ValueError, match=message):
        image_classification.train(settings_of(*wrong, "--steps=1", "--net=linear"))


def test_run_json_says_what_the_run_was(settings_of):
    path, _ = image_classification.train(settings_of("--net=linear", "--steps=1", "--seed=5"))
    run = json.loads((path / "run.json").read_text())
    assert run["flags"]["net"] == "linear" and run["seed"] == run["flags"]["seed"] == 5
    assert {"tensorflow", "keras", "tf_importance", "python"} == set(run["versions"])
    assert "commit" in run and run["command"]
    assert list((path / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_repeatable_run_repeats_exactly(settings_of, tmp_path):
    arguments = ("--steps=8", "--evaluations=2", "--repeatable", "--batch_size=8")
    histories = []
    for name in ("a", "b"):
        path, _ = image_classification.train(
            settings_of(*arguments, "--tau_threshold=1.0", f"--out={tmp_path / name}")
        )
        histories.append([row | {"seconds": None} for row in _rows(path)])
    assert histories[0] == histories[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    ["--optimizer=Adam", pytest.param("--optimizer=tfa:LAMB", marks=needs_addons)],
)
@pytest.mark.parametrize("name", ["uniform", "upper_bound"])
def test_a_killed_run_goes_on(settings_of, monkeypatch, name, optimizer):
    arguments = (f"--sampling={name}", optimizer, "--learning_rate=0.01", "--net=linear")
    arguments += ("--steps=8", "--evaluations=4", "--batch_size=8")
    with monkeypatch.context() as patch:
        evaluate, calls = Evaluator.__call__, []

        def killed(self):
            calls.append(self)
            if len(calls) > 6:  # two evaluators, at the steps 0, 2, 4
                raise KeyboardInterrupt
            return evaluate(self)

        patch.setattr(Evaluator, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            image_classification.train(settings_of(*arguments))
    path, _ = image_classification.train(settings_of(*arguments))
    rows = _rows(path)
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8]
    assert np.all(np.diff([row["seconds"] for row in rows]) >= 0)
    assert rows[3]["train_loss"] < rows[2]["train_loss"]


def test_a_complete_run_is_restored_and_left_alone(settings_of):
    arguments = ("--optimizer=Adam", "--steps=3", "--batch_size=8", "--net=linear")
    path, model = image_classification.train(settings_of(*arguments))
    rows = _rows(path)
    _, restored = image_classification.train(settings_of(*arguments))
    assert _rows(path) == rows
    for mine, theirs in (
        ([*restored.net.weights, restored.tau], [*model.net.weights, model.tau]),
        (list(restored.optimizer.variables), list(model.optimizer.variables)),
    ):
        assert len(mine) == len(theirs) > 0
        for one, other in zip(mine, theirs):
            np.testing.assert_array_equal(tf.convert_to_tensor(one), tf.convert_to_tensor(other))


def test_a_directory_with_another_run_is_refused(settings_of):
    image_classification.train(settings_of("--net=linear", "--steps=1"))
    with pytest.raises(ValueError, match="other flags: --steps=1 there, 2 now"):
        image_classification.train(settings_of("--net=linear", "--steps=2"))


def test_a_directory_that_another_process_writes_is_refused(settings_of, tmp_path):
    path, settings = tmp_path / "run", settings_of("--net=linear", "--steps=1")
    path.mkdir()
    (path / "run.json").write_text("{}")
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); "
    command = [sys.executable, "-c", hold + "print(flush=True); input()", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="is being written by another process; wait"):
            run_directory.remove(path)
        (path / "run.json").unlink()
        with pytest.raises(ValueError, match="is being written by another process; wait"):
            image_classification.train(settings)
        assert list(path.iterdir()) == []
        other.communicate(b"\n")
    image_classification.train(settings)
    run_directory.remove(path)
    assert not path.exists()


def test_a_directory_with_other_files_is_refused(settings_of, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        image_classification.train(settings_of("--steps=1", f"--out={tmp_path}"))


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--out=", "give --out"),
        ("--net=transformer", "known are linear"),
        ("--net=wide_mpl", "Did you mean 'wide_mlp'"),
        ("--dataset=imagenet", "known are digits"),
        ("--dataset=minst", "Did you mean 'mnist'"),
        ("--optimizer=Adan", "Did you mean 'adam'"),
        ("--sampling=hardest", "--sampling must be one of uniform.*got 'hardest'"),
        ("--tau_threshold=high", "break_even.*got 'high'"),
        ("--schedule=exponential", "constant, linear, cosine"),
        ("--train_examples=0", "train_examples=0: 0 is not a positive integer"),
        ("--batch_size=0", "batch_size=0: 0 is not a positive integer"),
        ("--steps=-1", "steps=-1: -1 is not a positive integer"),
        ("--learning_rate=-1", "--learning_rate must be positive and finite"),
        ("--learning_rate=nan", "--learning_rate must be positive and finite"),
        ("--momentum=1.5", "momentum=1.5"),
        ("--clip_norm=-1", "clip_norm=-1"),
    ],
)
def test_a_wrong_flag_is_refused_with_the_known_values(settings_of, argument, message):
    with pytest.raises((ValueError, flags.Error), match=message):
        image_classification.train(settings_of("--steps=1", argument))


def test_only_a_budget_of_steps_is_repeatable(settings_of):
    with pytest.raises(ValueError, match="--repeatable needs --steps and no --time_budget"):
        image_classification.train(settings_of("--repeatable", "--time_budget=1"))


@needs_addons
def test_augmentation_and_optimizer_of_tensorflow_addons_train(settings_of):
    path, _ = image_classification.train(
        settings_of("--optimizer=tfa:LAMB", "--augment=tfa:rotate", "--steps=2", "--net=linear")
    )
    assert _rows(path)[-1]["step"] == 2


@pytest.mark.slow
def test_the_command_leaves_a_plot_and_a_saved_model(data_dir, tmp_path):
    command = [sys.executable, "-m", "trainers.image_classification", f"--data_dir={data_dir}"]
    # The net of the digits' comparison, whose runs take 8 s.
    command += ["--net=wide_mlp", "--momentum=0.9", "--batch_size=16", "--steps=40"]
    command += ["--sampling=upper_bound", f"--out={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train loss" in done.stdout
    assert (tmp_path / "run" / "curves.png").stat().st_size > 0
    served = tf.saved_model.load(str(tmp_path / "run" / "saved_model"))
    net = keras.saving.load_model(tmp_path / "run" / "net.keras", compile=False)
    x = np.random.default_rng(0).random([3, 8, 8, 1], np.float32)
    np.testing.assert_allclose(served.serve(x), net(x, training=False), rtol=1e-5)
    # Four nets of 4.5 MB: a SavedModel, net.keras, and in the checkpoint momentum, too.
    assert sum(one.stat().st_size for one in (tmp_path / "run").rglob("*")) < 20e6


@pytest.mark.slow
@pytest.mark.parametrize("sampling_name", ["uniform", "loss", "upper_bound"])
def test_the_digits_configs_start(settings_of, sampling_name):
    config = f"configs/image_classification/digits_{sampling_name}.cfg"
    path, _ = image_classification.train(settings_of(f"--flagfile={config}", "--steps=2"))
    assert _rows(path)[-1]["step"] == 2


def test_a_run_that_does_not_fit_the_disk_is_refused_before_it_begins(monkeypatch, tmp_path):
    net = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000, use_bias=False)])
    for free, room in ((35e6, True), (33e6, False)):
        usage = types.SimpleNamespace(free=int(free))
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        out = tmp_path / "not" / "there"
        if room:
            said = run_directory.space(out, net)
            assert said == "A run takes up to 34 MB there; 35 MB are free."
        else:
            with pytest.raises(ValueError, match="takes up to 34 MB, and at .* there are 33 MB"):
                run_directory.space(out, net)
