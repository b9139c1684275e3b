"""The trainer of rare classes and its ladder."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from benchmarks import ladder
from trainers import rare_classes, short
from trainers.rare_sampling import METHODS

CONFIGS = sorted(pathlib.Path("configs/rare_classes").glob("*.cfg"))
_FAST = ("flights_late_strata", "cifar10_long_tail_strata")


def _parsed(parser_of, *arguments: str):
    settings = parser_of(rare_classes.define)(*arguments)
    if settings.short:
        short.shrink(settings)
    return settings


def _rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=config.stem, marks=() if config.stem in _FAST else pytest.mark.slow)
        for config in CONFIGS
    ],
)
def test_configs_start_step_and_record(parser_of, config):
    path, model = rare_classes.train(_parsed(parser_of, f"--flagfile={config}", "--short"))
    rows = _rows(path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    for name in ("train", "validation", "test"):
        assert all(np.isfinite(row[f"{name}_loss"]) for row in rows)
        assert 0 <= rows[-1][f"{name}_average_precision"] <= 1
        assert 0 <= rows[-1][f"{name}_calibration_error"] <= 1
    assert all(np.isfinite(weights).all() for weights in model.get_weights())
    found = json.loads((path / "reliability.json").read_text())
    (bins,) = found.values()
    assert sum(bins["weight"]) == pytest.approx(1)
    assert (path / "reliability.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes(parser_of, method):
    common = [f"--method={method}", "--dataset=digits", "--net=mlp_128", "--rare_class=3"]
    common += ["--share=0.05", "--batch_size=16", "--evaluations=2"]
    if "scored" in method or method in ("switched_strata", "streamed_strata"):
        common += ["--presample_size=32"]
    if method in ("switched_strata", "streamed_strata"):
        common += ["--follow_gain"]
    path, _ = rare_classes.train(_parsed(parser_of, *common, "--steps=16"))
    before = _rows(path)
    assert before[-1]["test_loss"] < before[0]["test_loss"]
    rare_classes.train(_parsed(parser_of, *common, "--steps=16"))
    assert _rows(path) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method=smote"], "--method must be one of uniform, class_weights.*'smote'"),
        (["--sampling=uniform"], "--sampling is of other trainers; here --method decides"),
        (["--rare_share=1"], "--rare_share must be between 0 and 1; got 1"),
        (["--gamma=-1"], "--gamma must not be negative; got -1"),
        (["--method=stata"], "got 'stata'.* Did you mean 'strata'"),
        (["--dataset=flight_late"], "got 'flight_late'.* Did you mean 'flights_late'"),
        (["--rare_share=0.1"], "--rare_share does nothing with --method=strata; .*down_sampled or"),
        (["--gamma=1"], "--gamma does nothing with --method=strata; .*--method=focal"),
        (["--presample_size=64"], "--presample_size does nothing with --method=strata"),
        (["--kept=0.4"], "--kept is of other trainers"),
        (["--rare_class=3"], "--rare_class does nothing with --dataset=flights_late"),
        (["--dataset=digits", "--split=rows"], "--split does nothing with --dataset=digits"),
        (["--dataset=digits", "--long_tail=9", "--rare_class=3"], "with --long_tail; leave one of"),
        (["--data_dir=/lost"], "--data_dir=/lost is no directory; make it first"),
    ],
)
def test_wrong_flags_are_refused_with_the_remedy(parser_of, arguments, message):
    with pytest.raises(ValueError, match=message):
        rare_classes.train(_parsed(parser_of, "--steps=1", *arguments))


# The benchmark ----------------------------------------------------------------------------------


PLAN = ladder.Plan(own={"down_sampled": (0.25, 0.1, 0.5)})


class Made:
    """Runs whose losses are a function of what they are; counts them."""

    def __init__(self, loss) -> None:
        self.count, self._loss = 0, loss

    def __call__(self, method, steps, seed, choice) -> ladder.Run:
        self.count += 1
        loss = self._loss(method, steps, choice)
        return ladder.Run(method, steps, seed, *choice, loss, loss, 1 / (1 + loss), 0.0, 0.0)


def _from_best(rate: float, best: float) -> float:
    return abs(np.log(rate / best))


@pytest.mark.parametrize("best", ladder.RATES)
def test_the_best_rate_is_found_from_anywhere(tmp_path, best):
    for start in ladder.RATES:
        made = Made(lambda method, steps, choice: 1 + _from_best(choice.rate, best))
        runs = ladder.Runs(tmp_path / f"{best}_{start}.jsonl", made)
        assert ladder.tuned(runs, "uniform", 250, ladder.Choice(start), PLAN).rate == best


def test_a_share_is_chosen_too(tmp_path):
    made = Made(lambda method, steps, choice: 1 + abs(choice.own - 0.1))
    runs = ladder.Runs(tmp_path / "runs.jsonl", made)
    found = ladder.tuned(runs, "down_sampled", 250, ladder.Choice(1e-3), PLAN)
    assert found.own == 0.1


def test_a_method_climbs_until_it_is_as_good_and_no_run_is_made_twice(tmp_path):
    def loss(method, steps, choice):
        faster = 4 if method == "strata" else 1
        return 1000 / (faster * steps) + 0.01 * _from_best(choice.rate, 1e-3)

    made = Made(loss)
    runs = ladder.Runs(tmp_path / "runs.jsonl", made)
    uniform = ladder.climbed(runs, "uniform", None, PLAN)
    assert [one.steps for one in uniform] == list(ladder.LADDER)
    target = ladder.target_of(uniform)
    assert target.steps == 4000
    strata = ladder.climbed(runs, "strata", target, PLAN)
    assert [one.steps for one in strata] == [250, 500, 1000]
    found = ladder.costs({"uniform": uniform, "strata": strata}, 0.5)
    assert found["strata"]["cost"] == 1000 and found["uniform"]["cost"] == 4000
    # What was broken off before it was as good says nothing.
    assert "strata" not in ladder.costs({"uniform": uniform, "strata": strata[:2]}, 0.5)
    before = made.count
    again = ladder.Runs(tmp_path / "runs.jsonl", made)
    assert ladder.climbed(again, "strata", target, PLAN) == strata and made.count == before


def test_a_baseline_that_overfits_is_stopped_early():
    def one(steps, loss, precision):
        choice = ladder.Choice(1e-3)
        return ladder.Rung(steps, choice, loss, (0, 1), precision, (0, 1), 0.0, 0.0)

    rungs = [one(1000, 0.5, 0.7), one(2000, 0.4, 0.8), one(4000, 0.6, 0.9), one(8000, 0.1, 0.95)]
    found = ladder.target_of(rungs)
    assert (found.steps, found.loss, found.average_precision) == (2000, 0.4, 0.9)
    assert ladder.costs({"uniform": rungs}, 0.0)["uniform"]["cost"] == 2000
    assert ladder.costs({"uniform": rungs}, 0.0)["uniform"]["cost_of_precision"] == 4000


def test_what_never_gets_there_counts_as_the_whole_ladder_and_scores_cost():
    def one(steps, loss, scored):
        choice = ladder.Choice(1e-3)
        return ladder.Rung(steps, choice, loss, (loss, loss), 0.5, (0.5, 0.5), 0.0, scored)

    rungs = [one(250, 2.0, 1.0), one(500, 1.0, 1.0)]
    assert ladder.cost(rungs, lambda rung: rung.loss <= 1, 0.5) == (750, True)
    assert ladder.cost(rungs, lambda rung: rung.loss < 1, 0.5) == (8000, False)
