"""The ablation of section 4.1: the measurement and its report."""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl import flags

import tf_importance as tfi
from reports import ablation as report
from trainers import ablation, variance_ablation
from trainers import flags as trainer_flags

NAMES = ("uniform", "loss", "upper_bound", "gradient_norm")


@pytest.fixture
def measured():
    """A linear net, whose gradients are known: G_i = x_i (x_i·w − y_i) 2."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 3)) * rng.lognormal(size=(200, 1))).astype(np.float32)
    y = rng.normal(size=(200, 1)).astype(np.float32)
    net = keras.Sequential([keras.layers.Input([3]), keras.layers.Dense(1, use_bias=False)])
    model = tfi.ISModel(net)
    model.compile("sgd", "mse")
    w = net.get_weights()[0]
    gradients = 2 * (x @ w - y) * x
    measure = ablation.Ablation(model, x, y, batch_size=20, draws=400, seed=0)
    return measure, gradients, (x @ w - y)[:, 0]


@pytest.mark.slow
def test_the_proposals_are_those_of_the_scores(measured):
    measure, gradients, errors = measured
    found = measure().probabilities
    norms = np.linalg.norm(gradients, axis=1)
    for name, scores in {
        "uniform": np.ones(200),
        "loss": errors**2,
        "upper_bound": np.abs(errors),
        "gradient_norm": norms,
    }.items():
        np.testing.assert_allclose(found[name], scores / scores.sum(), rtol=2e-4)


@pytest.mark.slow
def test_the_mean_squared_distance_is_the_variance_of_a_batch(measured):
    measure, gradients, _ = measured
    looked = measure()
    mean = gradients.mean(axis=0)
    for name in NAMES:
        g = looked.probabilities[name].astype(np.float64)
        weighted = gradients / (len(g) * g)[:, None]
        variance = g @ np.sum((weighted - mean) ** 2, axis=1) / 20
        squares = looked.distances[name] ** 2
        z = (squares.mean() - variance) / (squares.std() / np.sqrt(len(squares)))
        assert abs(z) < 4, name
    # Negative control: the weights matter.
    drawn = {name: looked.distances[name].mean() for name in NAMES}
    assert drawn["gradient_norm"] < 0.8 * drawn["uniform"]


@pytest.mark.parametrize("config", sorted(pathlib.Path("configs/variance_ablation").glob("*.cfg")))
def test_its_configs_look_at_equal_parts(config):
    values = flags.FlagValues()
    variance_ablation.define(values)
    values(["trainer", f"--flagfile={config}"])
    assert values.steps % values.evaluations == 0 and values.images == 1024
    assert values.sampling == "uniform"


@pytest.mark.slow
def test_a_run_looks_at_every_evaluation_and_the_report_reads_it(data_dir, tmp_path):
    paths = []
    for seed in (0, 1):
        values = flags.FlagValues()
        variance_ablation.define(values)
        arguments = ["--net=linear", "--sampling=uniform", "--steps=4", "--evaluations=2"]
        arguments += ["--images=30", "--drawn=5", "--draws=3", f"--data_dir={data_dir}"]
        values(["trainer", *arguments, f"--seed={seed}", f"--out={tmp_path / str(seed)}"])
        assert trainer_flags.of_run(values)["images"] == 30
        paths.append(variance_ablation.train(values)[0])
    runs = [report.read(path) for path in paths]
    assert runs[0].steps.tolist() == [0, 2, 4]
    assert runs[0].distances["loss"].shape == (3, 3)
    assert runs[0].probabilities["loss"].shape == (3, 30)
    rows = report.write(runs, tmp_path / "report")
    assert [row["proposal"] for row in rows] == ["loss", "upper_bound", "gradient_norm"]
    assert rows[-1]["over_ideal"] == pytest.approx(1) and rows[-1]["squared_error"] == 0


def _stored(path: pathlib.Path, factor: float) -> pathlib.Path:
    path.mkdir()
    rows = []
    for step in (0, 3000, 3000, 6000):
        ideal, even = [0.7, 0.2, 0.1], [1 / 3] * 3
        rows.append(
            {
                "step": step,
                "distances": {
                    "uniform": [2.0, 2.0],
                    "loss": [2.0 * factor, 4.0 * factor],
                    "upper_bound": [1.1, 1.1],
                    "gradient_norm": [1.0, 1.0],
                },
                "probabilities": {
                    "uniform": even,
                    "loss": even,
                    "upper_bound": [0.6, 0.3, 0.1],
                    "gradient_norm": ideal,
                },
            }
        )
    (path / "ablation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_report_is_right_stable_and_needs_no_tensorflow(tmp_path):
    runs = [str(_stored(tmp_path / name, factor)) for name, factor in (("a", 1.0), ("b", 1.2))]
    files = []
    for out in (tmp_path / "one", tmp_path / "two"):
        command = [sys.executable, "-m", "reports.ablation", str(out), *runs]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "| upper_bound" in done.stdout
        files.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert files[0] == files[1]
    assert sorted(files[0]) == sorted(
        [
            f"{name}.{kind}"
            for name in ("gradient_distance", "probabilities")
            for kind in ("png", "svg")
        ]
        + ["table.csv", "table.md"]
    )
    loss, bound, _ = csv.DictReader((tmp_path / "one" / "table.csv").open())
    assert float(loss["distance"]) == pytest.approx(1.65) and loss["runs"] == "2"
    assert float(bound["over_ideal"]) == pytest.approx(1.1)
    # Three looks, the repeated one counted once, of two errors of 0.1.
    assert float(bound["squared_error"]) == pytest.approx(3 * 0.02)
    code = "import sys, reports.ablation; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_directory_of_another_trainer_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="trainers.variance_ablation writes it"):
        report.read(tmp_path)
