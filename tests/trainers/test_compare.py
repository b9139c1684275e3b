"""The main job."""

from __future__ import annotations

import subprocess
import sys

from reports import curves
from trainers import compare


def test_a_grid_gives_every_curve_the_same_learning_rates():
    found = compare.variants(["configs/a.cfg", "configs/b.cfg"], ["0.1", "0.2"])
    assert [variant.label for variant in found] == ["a, 0.1", "a, 0.2", "b, 0.1", "b, 0.2"]
    assert found[3].arguments == ("--flagfile=configs/b.cfg", "--learning_rate=0.2")


def test_curves_take_turns_and_swap_places():
    a, b = compare.variants(["a.cfg", "b.cfg"])
    assert compare.in_turns([a, b], 3) == [(a, 0), (b, 0), (b, 1), (a, 1), (a, 2), (b, 2)]


def test_the_flags_of_a_run_are_its_flagfiles_with_overrides(tmp_path):
    (tmp_path / "curve.cfg").write_text("# comment\n--net=cnn\n--learning_rate=0.5\n")
    (variant,) = compare.variants([str(tmp_path / "curve.cfg")])
    values = compare.settings(variant, "--seed=7")
    assert (values.net, values.learning_rate, values.seed) == ("cnn", 0.5, 7)


def test_the_main_job_prints_a_table_and_what_it_shows(data_dir, tmp_path):
    common = f"--net=linear\n--batch_size=16\n--steps=4\n--evaluations=2\n--data_dir={data_dir}\n"
    for name in ("uniform", "upper_bound"):
        (tmp_path / f"{name}.cfg").write_text(f"{common}--sampling={name}\n")
    command = [sys.executable, "-m", "trainers.compare", "--seeds=2", f"--out={tmp_path / 'out'}"]
    command.append(f"--curves={tmp_path / 'uniform.cfg'},{tmp_path / 'upper_bound.cfg'}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "upper_bound, seed 1" in done.stdout and "100/100" in done.stdout
    assert "| uniform     | 2 " in done.stdout
    assert "train loss of upper_bound against uniform: " in done.stdout
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 0
    assert (tmp_path / "out" / "upper_bound" / "1" / "metrics.jsonl").exists()


def test_the_best_of_the_grid_is_each_curves_own():
    found = {}
    losses = {"a": [0.3, 0.1, float("nan")], "b": [0.2, 0.4, 0.3]}
    for variant in compare.variants(["a.cfg", "b.cfg"], ["1", "2", "3"]):
        curve, number = variant.label.split(", ")
        row = {"train_loss": losses[curve][int(number) - 1]}
        found[variant] = curves.Run(variant.label, {}, [{"train_loss": 0.0}, row])
    assert [variant.label for variant in compare.best_of_grid(found)] == ["a, 2", "b, 1"]
