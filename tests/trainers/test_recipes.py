"""The tasks and their configs: they parse, start and make their steps, on made-up examples."""

from __future__ import annotations

import copy
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import tf_importance as tfi
from tests import resolved_flags
from trainers import (
    compare,
    datasets,
    fine_tuning,
    help,
    image_classification,
    issgd,
    rare_classes,
    sequence_classification,
    short,
    variance_ablation,
    void,
)
from trainers import flags as trainer_flags
from trainers import variance_reduction as reduction
from trainers.flags import GROUPS

TASKS = {
    "fine_tuning": fine_tuning.train,
    "image_classification": image_classification.train,
    "sequence_classification": sequence_classification.train,
}
CONFIGS = sorted(path for task in TASKS for path in pathlib.Path("configs", task).glob("*.cfg"))
# With flags of their own: tests/trainers/test_issgd.py, test_ablation.py.
PROGRAMS = {
    "fine_tuning": fine_tuning,
    "sequence_classification": sequence_classification,
    "issgd": issgd,
    "variance_ablation": variance_ablation,
}
ABLATIONS = sorted(pathlib.Path("configs/variance_ablation").glob("*.cfg"))
DELEGATED = sorted(pathlib.Path("configs/issgd").glob("*.cfg"))
FIGURES = sorted(pathlib.Path("configs/figures").glob("*.cfg"))
# Of a trainer of image classification, too.
BY_MEMORY = sorted(pathlib.Path("configs/rais").glob("*.cfg"))
# Nets that take most of a minute to compile, and what stands for them but in the uniform configs.
SHALLOW = {"wide_resnet": "wide_resnet_10_1", "resnet50": "wide_resnet_10_1"}
# What no page shows is drawn here; .ci/commands runs all that pages show.
DRAWN = {"issgd_figure2a_svhn"}
RESOLVED = json.loads(pathlib.Path("tests/resolved_flags.json").read_text("utf-8"))
PAGES = "".join(page.read_text("utf-8") for page in sorted(pathlib.Path("docs").glob("*.md")))
# One of each kind, in every test run; all others by `make test-slow`.
STARTED = {
    "fine_tuning/cifar10_second_half_loss",
    "image_classification/mnist_katyusha",
    "image_classification/mnist_scsg",
    "issgd/mnist",
    "sequence_classification/permuted_mnist_upper_bound",
    "variance_ablation/mnist_uniform",
}


def _name(config: pathlib.Path) -> str:
    return f"{config.parent.name}/{config.stem}"


# What decides which code a config runs; others are numbers.
KINDS = (
    *("dataset", "net", "optimizer", "augment", "follow_gain", "tau_threshold", "weights"),
    *("scorer", "repeatable", "jit"),
)
GIVEN = ("presample_size", "clip_norm", "weight_decay", "momentum", "time_budget", "steps")


def _values(config: pathlib.Path) -> set[tuple]:
    """What a config says, as far as code depends on it: (trainer, flag, value)."""
    trainer = _trainer(config)
    of_trainer = RESOLVED[trainer]
    said = {**of_trainer["defaults"], **of_trainer["configs"][str(config)]}
    found = {(trainer, name, str(said.get(name))) for name in KINDS}
    found |= {(trainer, name, bool(said.get(name))) for name in GIVEN}
    method = tuple(said.get(name) for name in ("sampling", "switch", "variance_reduction"))
    schedule = str(said.get("schedule")).partition(":")[0], said.get("step_schedule")
    return found | {(trainer, "method", method), (trainer, "schedule", schedule)}


def _trainer(config: pathlib.Path) -> str:
    return config.parent.name if config.parent.name in PROGRAMS else "image_classification"


def _started() -> list:
    """Configs that have together each value of each flag; in every run those of STARTED."""
    every = [*CONFIGS, *BY_MEMORY, *DELEGATED, *ABLATIONS]
    chosen = [config for config in every if _name(config) in STARTED]
    covered = set().union(*map(_values, chosen))
    while True:
        best = max(every, key=lambda config: len(_values(config) - covered))
        if not _values(best) - covered:
            break
        chosen.append(best)
        covered |= _values(best)
    return [
        pytest.param(one, id=_name(one), marks=() if _name(one) in STARTED else pytest.mark.slow)
        for one in chosen
    ]


def _rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: "/".join(path.parts[1:]))
def test_every_config_says_its_command_and_result_and_parses(settings_of, config):
    text = config.read_text()
    assert f"python -m trainers.{config.parent.name}" in text
    assert f"--flagfile={config}" in text, "the header must show the command"
    assert "Expected" in text
    settings = settings_of(f"--flagfile={config}")
    assert settings.dataset in config.stem and settings.dataset in datasets.SOURCES
    method = "gain" if settings.switch == "gain" else settings.sampling
    if settings.variance_reduction != reduction.NONE:
        method = settings.variance_reduction
    assert method in config.stem


@pytest.mark.parametrize("config", FIGURES, ids=lambda path: path.stem)
def test_every_figure_compares_configs_of_one_task(config):
    text = config.read_text()
    assert f"python -m trainers.compare --flagfile={config}" in text and "Expected" in text
    given = {line[2:].partition("=")[0] for line in text.splitlines() if line.startswith("--")}
    values = flags.FlagValues()
    for flag in flags.FLAGS.get_flags_for_module(compare):
        values[flag.name] = copy.deepcopy(flag)
    values(["compare", f"--flagfile={config}"])
    curves = [pathlib.Path(curve) for curve in values.curves]
    assert set(curves) <= {*CONFIGS, *DELEGATED} and len(set(curves)) == len(curves) > 1
    assert {curve.parent.name for curve in curves} == {values.task}
    assert {"curves", "out", "task", "seeds"} <= given
    # Of the two sizes of one figure one is enough.
    assert config.stem in {*DRAWN, "issgd_figure2b_svhn"} or str(config) in PAGES


def test_each_value_of_each_flag_is_started():
    started = [param.values[0] for param in _started()]
    assert STARTED <= {_name(config) for config in started}
    every = [*CONFIGS, *BY_MEMORY, *DELEGATED, *ABLATIONS]
    assert set().union(*map(_values, started)) == set().union(*map(_values, every))


@pytest.mark.parametrize("config", _started())
def test_configs_start_step_and_record(parser_of, config):
    trainer = PROGRAMS.get(config.parent.name, image_classification)
    define = getattr(trainer, "define", trainer_flags.define)
    settings = parser_of(define)(f"--flagfile={config}", "--short")
    short.shrink(settings)
    if settings.net in SHALLOW and "uniform" not in config.stem:
        settings["net"].value = SHALLOW[settings.net]
    path, model = trainer.train(settings)
    rows = _rows(path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(np.isfinite(weights).all() for weights in model.get_weights())
    # After two steps ResNet-50's moving statistics have hardly moved, and its outputs by them may
    # be beyond any float.
    assert settings.net == "resnet50" or np.isfinite(rows[-1]["train_loss"])
    if settings.clip_norm:
        assert model.optimizer.global_clipnorm == settings.clip_norm
    if settings.sampling in tfi.scorers.BY_NAME and settings.switch == "tau":
        # The second batch may have left the pipeline before the first evaluation.
        assert max(row["importance"] for row in rows[1:]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DRAWN))
def test_figures_are_drawn(name, tmp_path):
    """With the first and the last curve: the test above makes the steps of each."""
    config = pathlib.Path("configs/figures", f"{name}.cfg")
    given = re.search("^--curves=(.*)$", config.read_text(), flags=re.MULTILINE)[1].split(",")
    command = [sys.executable, "-m", "trainers.compare", f"--flagfile={config}", "--short"]
    command.append(f"--curves={given[0]},{given[-1]}")
    command.append(f"--out={tmp_path / 'out'}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out-short" / "comparison.png").stat().st_size > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svrg", "katyusha", "scsg"])
def test_variance_reduction_by_flag_resumes(settings_of, name):
    arguments = [
        "--sampling=uniform",
        f"--variance_reduction={name}",
        "--net=linear",
        "--batch_size=16",
        "--epochs_per_batch_gradient=0.05",
        *(["--large_batch=64"] if name == "scsg" else []),
        "--evaluations=2",
        "--steps=6",
    ]
    path, model = image_classification.train(settings_of(*arguments))
    rows = _rows(path)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] and rows[-1]["tau"] is None
    # 0.05 · 1437 / 16 steps.
    assert model.inner_steps == 4 and int(tf.convert_to_tensor(model.remaining)) == 2
    _, restored = image_classification.train(settings_of(*arguments))
    for one, other in zip(restored.weights, model.weights):
        np.testing.assert_array_equal(tf.convert_to_tensor(one), tf.convert_to_tensor(other))


def test_steps_between_snapshots_are_epochs():
    assert reduction.inner_steps(2, 50_000, 128) == 781
    assert reduction.inner_steps(0.001, 1000, 128) == 1


@pytest.mark.parametrize(
    "task, arguments, message",
    [
        ("image_classification", ["--variance_reduction=saga"], "none, svrg, katyusha, scsg; got"),
        (
            "image_classification",
            ["--variance_reduction=svrg"],
            "svrg draws uniformly.*upper_bound",
        ),
        ("image_classification", ["--alpha=0.5"], "--alpha does nothing with --sampling=upper"),
        (
            "image_classification",
            ["--sampling=rais", "--tau_threshold=always"],
            "--tau_threshold does nothing with --sampling=rais; leave it out, or give "
            "--sampling=gradient_norm or loss or upper_bound",
        ),
        (
            "image_classification",
            ["--switch=gain", "--tau_threshold=2"],
            "--tau_threshold does nothing with --switch=gain",
        ),
        ("image_classification", ["--gain_ceiling=2"], "does nothing without --follow_gain"),
        ("image_classification", ["--large_batch=64"], "--large_batch is for --variance_r.*=scsg"),
        (
            "image_classification",
            ["--sampling=uniform", "--variance_reduction=svrg", "--growth_rate=2"],
            "--growth_rate is for --variance_reduction=scsg; got --variance_reduction=svrg",
        ),
        (
            "image_classification",
            ["--sampling=uniform", "--variance_reduction=svrg", "--step_schedule=budget"],
            "--step_schedule=budget does nothing with --variance_reduction or",
        ),
        *(
            ("image_classification", ["--sampling=uniform", flag], f"{flag.partition('=')[0]} does")
            for flag in ("--presample_size=64", "--switch=gain", "--follow_gain")
        ),
        (
            "image_classification",
            ["--sampling=rais", "--resampling=systematic"],
            "--resampling does nothing with --sampling=rais",
        ),
        (
            "image_classification",
            ["--schedule=linear", "--step_schedule=constant"],
            "--schedule=linear does nothing with --step_schedule=constant",
        ),
        ("image_classification", ["--data_dir=/lost"], "--data_dir=/lost is no directory; make it"),
        ("image_classification", ["--weights=imagenet"], "--weights=imagenet is for trainers."),
        ("fine_tuning", ["--weights=lost.keras"], "--weights=lost.keras is no file"),
        ("sequence_classification", ["--dataset=digits"], r"shape \(8, 8, 1\), no sequences"),
    ],
)
def test_wrong_flags_are_refused_with_the_remedy(settings_of, task, arguments, message):
    with pytest.raises(ValueError, match=message):
        TASKS[task](settings_of("--steps=1", *arguments))


def test_no_config_gives_a_flag_that_does_nothing():
    for config in sorted(pathlib.Path("configs").rglob("*.cfg")):
        trainer = resolved_flags.trainer_of(config)
        values = resolved_flags.values(trainer, f"--flagfile={config}")
        if trainer == "rare_classes":
            rare_classes.checked(values)
        elif trainer != "compare":
            void.refuse(values)
        if trainer not in ("compare", "fine_tuning", "rare_classes"):
            void.refuse_weights(values)


def test_help_teaches():
    command = [sys.executable, "-m", "trainers.fine_tuning", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Katharopoulos" in shown or "K&F" in shown
    titles = [line for line in shown.splitlines() if line in {f"{title}:" for title in GROUPS}]
    assert titles == [f"{title}:" for title in GROUPS]
    assert "--[no]dry_run: Print the flags" in shown
    assert "--batch_size: b, examples in a step. Default: 32. (a positive integer)" in shown


def test_help_has_each_flag_once():
    values = flags.FlagValues()
    trainer_flags.define(values)
    flags.DEFINE_integer("added", 3, "Of the program.", flag_values=values)
    shared = values.get_flags_for_module(trainer_flags.__name__)
    for flag in [*shared, values["added"]]:
        values.register_key_flag_for_module("program", flag)
    shown = help.text(values, "program", "What it does.")
    assert shown.startswith(
        "What it does.\n\nOf this program:\n  --added: Of the program. Default: 3."
    )
    found = re.findall(r"^  --(?:\[no\])?(\w+):", shown, flags=re.MULTILINE)
    assert sorted(found) == sorted(["added", *(flag.name for flag in shared)])
    assert {*found} - {"added"} == {name for names in GROUPS.values() for name in names}


def test_a_flag_that_does_not_exist_is_refused(settings_of, tmp_path):
    (tmp_path / "wrong.cfg").write_text("--bath_size=3\n")
    with pytest.raises(Exception, match="Unknown command line flag 'bath_size'"):
        settings_of(f"--flagfile={tmp_path / 'wrong.cfg'}")


def test_halves_have_each_class_once_and_count_from_0(data_dir):
    labels = {}
    for half in ("first", "second"):
        data = datasets.load(f"digits_{half}_half", data_dir)
        labels[half] = np.array([label for _, label in data.train.as_numpy_iterator()])
        assert data.num_classes == 5 and data.num_train == len(labels[half])
        assert set(labels[half]) == set(range(5))
    whole = datasets.load("digits", data_dir)
    counts = np.bincount([label for _, label in whole.train.as_numpy_iterator()])
    np.testing.assert_array_equal(np.concatenate([np.bincount(labels[h]) for h in labels]), counts)


def test_sequences_are_the_pixels_in_one_fixed_order(data_dir):
    image, _ = next(datasets.load("digits", data_dir).train.as_numpy_iterator())
    sequence, _ = next(datasets.load("permuted_digits", data_dir).train.as_numpy_iterator())
    order = np.random.RandomState(0).permutation(64)
    np.testing.assert_array_equal(sequence, image.reshape(64, 1)[order])
    assert list(order[:4]) == [45, 29, 43, 61], "the permutation must never change"


def test_pooled_sequences_average_squares():
    image = np.random.default_rng(0).uniform(size=(8, 4, 1)).astype(np.float32)
    sequence = datasets.permuted.as_sequence(tf.constant(image), pool=2)
    squares = image.reshape(4, 2, 2, 2, 1).mean(axis=(1, 3)).reshape(8, 1)
    np.testing.assert_allclose(sequence, squares[datasets.permuted.permutation(8)], rtol=1e-6)
