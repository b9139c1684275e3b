"""Samplers with memory in the trainer: runs, resumed runs, schedules, nets, data, reports."""

from __future__ import annotations

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from reports import curves, epochs_equivalent, priorities
from trainers import augmentation, datasets, image_classification, nets, remembered, step_schedules
from trainers.datasets import rotated_mnist

_CONFIGS = sorted(pathlib.Path("configs/rais").glob("*.cfg"))


def _rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", remembered.BY_NAME)
def test_a_run_of_each_sampler_records_gain_and_effective_step(settings_of, name):
    path, model = image_classification.train(
        settings_of(
            f"--sampling={name}",
            "--batch_size=16",
            "--net=linear",
            "--steps=4",
            "--evaluations=2",
            "--step_schedule=constant",
            "--follow_gain",
        )
    )
    rows = _rows(path)
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[-1]["gain"] > 0 and rows[-1]["objective"] >= rows[-1]["train_loss"]
    assert rows[-1]["effective_step"] == pytest.approx(float(model.schedule.following))
    assert rows[-1]["epoch"] == pytest.approx(4 * 16 / 1437)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--switch=tau", "--switch=gain"])
def test_memory_takes_fresh_scores_and_a_switch(settings_of, how):
    path, model = image_classification.train(
        settings_of(
            "--sampling=rais",
            "--presample_size=48",
            how,
            "--batch_size=16",
            "--net=linear",
            "--augment=turn",
            "--steps=96",
            "--evaluations=2",
            "--step_schedule=constant",
            "--follow_gain",
        )
    )
    assert [row["step"] for row in _rows(path)] == [0, 48, 96]
    # A Gain switch has memory draw from its 80th step on, to time it.
    remembered_ones, least = int(model.sampler.recent.count), 0
    if how == "--switch=tau":
        # All but what the steps on the last blocks have seen.
        least = 48 * 90
    assert least < remembered_ones <= 48 * 96


@pytest.mark.slow
@pytest.mark.parametrize("switched", [True, False])
def test_each_batch_has_changes_of_its_own(switched, settings_of):
    settings = settings_of("--sampling=rais", "--batch_size=8", "--augment=turn", "--repeatable")
    data = datasets.load("digits")
    layers = [keras.layers.Flatten(), keras.layers.Dense(10)]
    model = tfi.ISModel(keras.Sequential([keras.Input(data.image_shape), *layers]))
    sampler = remembered.sampler(settings, data, model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(tfi.schedules.GainAdapted(0.1)), loss, sampler=sampler)
    image = tf.fill(data.image_shape, 0.5) * tf.range(8.0)[:, tf.newaxis, tf.newaxis] / 8
    alike = tf.data.Dataset.from_tensors((image, 0)).repeat(data.num_train)
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=1.0) if switched else None
    train = remembered.batches(settings, data._replace(train=alike), model, None, switch)
    kinds = {images.numpy().tobytes() for images, _, _ in train.take(5)}
    assert len(kinds) == 5, "turned by the same angles"


@pytest.mark.slow
def test_a_repeatable_run_goes_on_exactly_after_a_kill(settings_of, tmp_path):
    arguments = [
        *("--sampling=rais", "--net=linear", "--batch_size=128", "--augment=turn"),
        *("--step_schedule=constant", "--learning_rate=0.2", "--follow_gain", "--repeatable"),
    ]

    def run(name, steps):
        out = f"--out={tmp_path / name}"
        return image_classification.train(
            settings_of(*arguments, f"--steps={steps}", "--evaluations=4", out)
        )

    path, whole = run("whole", 48)
    # Keep what a kill after the second evaluation would have left.
    killed, _ = run("killed", 24)
    described = json.loads((killed / "run.json").read_text())
    described["flags"]["steps"] = 48
    (killed / "run.json").write_text(json.dumps(described))
    _, resumed = run("killed", 48)
    assert whole.sampler.uncertainty_set.numpy().any()
    for mine, theirs in zip(whole.sampler.variables, resumed.sampler.variables):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(whole.net.get_weights(), resumed.net.get_weights()):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("config", _CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_its_command_and_result_and_parses(settings_of, config):
    text = config.read_text()
    assert f"--flagfile={config}" in text and "Expected" in text
    settings = settings_of(f"--flagfile={config}")
    assert config.stem.startswith(f"{settings.dataset}_{settings.net}_{settings.sampling}")
    assert settings.follow_gain == (settings.sampling != "uniform")


# Schedules, nets, augmentation, data ----------------------------------------------------------


def test_step_schedules_are_those_of_the_paper():
    rate = step_schedules.parse("inverse_sqrt:100", 0.34, 10, False)
    steps = np.array([0, 1, 900])
    np.testing.assert_allclose([rate(t) for t in steps], 3.4 / np.sqrt(100 + steps), rtol=1e-6)
    rate = step_schedules.parse("per_epoch:0.8", 0.15, 10, False)
    np.testing.assert_allclose([rate(t) for t in (9, 10, 25)], [0.15, 0.12, 0.096], rtol=1e-5)
    assert step_schedules.parse("none", 0.1, 10, False) is None
    assert isinstance(step_schedules.parse("constant", 0.1, 10, True), tfi.schedules.GainAdapted)


@pytest.mark.parametrize("text", ["linear", "inverse_sqrt", "per_epoch:high", ""])
def test_what_is_no_step_schedule_is_refused(text):
    with pytest.raises(ValueError, match="inverse_sqrt:OFFSET.*got"):
        step_schedules.parse(text, 0.1, 10, False)
    with pytest.raises(ValueError, match="--follow_gain needs a --step_schedule"):
        step_schedules.parse("none", 0.1, 10, True)


def test_nets_have_the_papers_layers():
    def weighted(name, shape):
        net = nets.build(name, shape, 10)
        kinds = (keras.layers.Conv2D, keras.layers.Dense)
        layers = [layer for layer in net.layers if isinstance(layer, kinds)]
        shortcuts = [x for x in layers if getattr(x, "kernel_size", None) == (1, 1)]
        return net, len(layers) - len(shortcuts)

    lenet, depth = weighted("lenet", (28, 28, 1))
    # LeCun et al. 1998 with its third convolution as a dense layer, all maps connected.
    assert depth == 5 and lenet.count_params() == 61_706
    squares = sum(np.sum(weight**2) for weight in lenet.get_weights())
    penalty = sum(float(tf.convert_to_tensor(loss)) for loss in lenet.losses)
    assert penalty == pytest.approx(2.5e-4 / 2 * squares, rel=1e-4)
    cnn, depth = weighted("rotation_cnn", (28, 28, 1))
    assert depth == 7 and 2e4 < cnn.count_params() < 3e4  # about 25k, Cohen & Welling, table 1
    resnet, depth = weighted("resnet18", (32, 32, 3))
    assert depth == 18 and 1.1e7 < resnet.count_params() < 1.12e7


def test_turning_by_nothing_keeps_the_image_and_by_half_inverts_it(monkeypatch):
    image = np.random.default_rng(0).random([9, 9, 1]).astype(np.float32)
    for angle, expected in ((0.0, image), (np.pi, image[::-1, ::-1])):
        monkeypatch.setattr(
            tf.random, "stateless_uniform", lambda *_, angle=angle: tf.constant(angle, tf.float32)
        )
        turned = augmentation.turn(tf.constant(image), tf.constant([0, 0]))
        np.testing.assert_allclose(turned, expected, atol=1e-4)


@pytest.fixture
def few_digits(monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, [60, 28, 28, 1]).astype(np.uint8)
    monkeypatch.setattr(rotated_mnist, "TRAIN_SIZE", 40)
    monkeypatch.setattr(rotated_mnist, "TEST_SIZE", 15)
    monkeypatch.setattr(rotated_mnist, "mnist", lambda data_dir: (images, np.arange(60) % 10))
    return images


def test_rotated_mnist_is_made_of_mnist_alike_each_time(few_digits, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    found = [datasets.load("rotated_mnist", str(tmp_path / name)) for name in "ab"]
    pairs = [list(data.train.as_numpy_iterator()) for data in found]
    assert found[0].num_train == len(pairs[0]) == 40
    assert len(list(found[0].test)) == 15 and found[0].image_shape == (28, 28, 1)
    for (image, label), (other, same) in zip(*pairs):
        np.testing.assert_array_equal(image, other)
        assert label == same
    originals = {image.tobytes() for image in few_digits}
    assert not any((255 * image).astype(np.uint8).tobytes() in originals for image, _ in pairs[0])


def test_rotation_turns_an_image_about_its_centre():
    image = np.random.default_rng(0).integers(0, 255, [28, 28, 1]).astype(np.uint8)
    turned = rotated_mnist.rotated(image, 90)
    np.testing.assert_array_equal(turned[..., 0], np.rot90(image[..., 0]))


def test_rotated_mnist_is_read_from_the_original_files(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [5, 28, 28])
    for name in rotated_mnist._FILES.values():
        columns = pixels.transpose(0, 2, 1).reshape(5, 784) / 255
        np.savetxt(tmp_path / name, np.concatenate([columns, np.arange(5)[:, None]], axis=1))
    images, labels = rotated_mnist._read(tmp_path / rotated_mnist._FILES["train"])
    np.testing.assert_array_equal(images[..., 0], pixels)
    np.testing.assert_array_equal(labels, np.arange(5))
    (tmp_path / "wrong.amat").write_text("1 2 3\n")
    with pytest.raises(ValueError, match=r"784 pixels.*\(1, 3\)"):
        rotated_mnist._read(tmp_path / "wrong.amat")


# Reports --------------------------------------------------------------------------------------


def _run(label, seed, gain, rate):
    rows = [
        {
            "step": step,
            "epoch": step / 20,
            "seconds": rate * step,
            "effective_step": gain * step,
            "objective": 1 / (1 + gain * step) + 0.01 * seed,
            "test_error": 0.1,
            "test_loss": 0.2,
        }
        for step in range(0, 101, 20)
    ]
    return curves.Run(label, {"batch_size": 5}, rows)


RESULTS = {
    "uniform": [_run("uniform", seed, 1, 1.0) for seed in range(3)],
    "rais": [_run("rais", seed, 2, 1.1) for seed in range(3)],
}


def test_epochs_equivalent_gain_and_overhead():
    rais, uniform = RESULTS["rais"], RESULTS["uniform"]
    np.testing.assert_allclose(epochs_equivalent.epochs_equivalent(rais), [0, 2, 4, 6, 8, 10])
    np.testing.assert_allclose(epochs_equivalent.speed_up(rais)[1], 100)
    np.testing.assert_allclose(epochs_equivalent.overhead(rais, uniform)[1], 10)
    found = epochs_equivalent.band(rais, "objective")
    values = np.array([0.0, 0.01, 0.02])
    np.testing.assert_allclose(found.error, 1.96 * values.std(ddof=1) / np.sqrt(3))
    assert epochs_equivalent.epochs_to(rais, "objective", uniform[1].last["objective"]) == 3
    assert np.isnan(epochs_equivalent.epochs_to(uniform, "objective", 0.0))


def test_the_report_leaves_table_and_figures(tmp_path):
    directories = []
    for label, runs in RESULTS.items():
        for seed, run in enumerate(runs):
            directory = tmp_path / label / str(seed)
            directory.mkdir(parents=True)
            (directory / "run.json").write_text(json.dumps({"flags": run.flags}))
            lines = "".join(json.dumps(row) + "\n" for row in run.rows)
            (directory / "metrics.jsonl").write_text(lines)
            directories.append(str(directory))
    epochs_equivalent.main([str(tmp_path / "out"), *directories])
    assert "| rais | 3 | 0.01498 ± 0.01 |" in (tmp_path / "out" / "table1.md").read_text()
    for name in ("learning_curves.png", "epochs_equivalent.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_the_picture_of_rare_and_frequent_examples(settings_of, tmp_path):
    path, model = image_classification.train(
        settings_of("--sampling=rais", "--net=linear", "--batch_size=256", "--steps=20")
    )
    examples = priorities.read(path)
    assert np.all(np.diff(examples["visits"]) >= 0)
    assert examples["visits"][-1] == model.sampler.visits.numpy().max()
    assert np.all(examples["confused"] != examples["labels"])
    priorities.draw([path], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0
    with pytest.raises(FileNotFoundError, match="--sampling=rais"):
        priorities.read(tmp_path)
