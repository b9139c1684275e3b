"""Budget, clock and the callbacks that follow them, all by a clock that the test turns."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from trainers import callbacks, schedules
from trainers.budget import Budget, Stopwatch, clock


class Clock:
    """Shows what it was told."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Run:
    """Drives callbacks as `fit` does: tracing takes 50 s, a step 1 s, an evaluation 100 s."""

    def __init__(self, budget: Budget, evaluations: int = 4, schedule: str = "constant") -> None:
        self.clock, self.reported, self.rates = Clock(), [], []
        self.course = callbacks.Course(budget, Stopwatch(now=self.clock))
        self.model = SimpleNamespace(
            stop_training=False,
            reset_metrics=lambda: None,
            optimizer=SimpleNamespace(learning_rate=None),
        )
        rate = callbacks.LearningRate(self.course, 0.5, schedules.parse(schedule))
        evaluate = callbacks.Evaluate(self.course, evaluations, self._report)
        self.callbacks = [self.course, rate, evaluate]

    def fit(self) -> None:
        for callback in self.callbacks:
            callback.set_model(self.model)
            callback.on_train_begin()
        self.clock.time += 50
        while not self.model.stop_training:
            for callback in self.callbacks:
                callback.on_train_batch_begin(0)
            self.rates.append(self.model.optimizer.learning_rate)
            self.clock.time += 1
            for callback in self.callbacks:
                callback.on_train_batch_end(0, {})

    def _report(self, logs) -> None:
        self.clock.time += 100
        self.reported.append((self.course.step, self.course.seconds))


def test_seconds_leave_out_evaluations_and_the_first_step():
    run = Run(Budget(seconds=8))
    run.fit()
    assert run.course.step == 9 and run.course.seconds == 8
    assert run.reported == [(0, 0), (3, 2), (5, 4), (7, 6), (9, 8)]


def test_steps_end_a_run_exactly():
    run = Run(Budget(steps=8))
    run.fit()
    assert [step for step, _ in run.reported] == [0, 2, 4, 6, 8]


def test_whichever_is_spent_first_ends_a_run():
    for budget in (Budget(seconds=5, steps=100), Budget(seconds=100, steps=6)):
        run = Run(budget)
        run.fit()
        assert run.course.step == 6


def test_a_budget_shorter_than_a_step_still_makes_one_and_says_so(caplog):
    run = Run(Budget(seconds=0.01))
    run.fit()
    assert run.course.step == 2 and run.reported[-1] == (2, 1)
    assert "shorter than one step" in caplog.text


def test_the_learning_rate_follows_the_clock_under_a_time_budget():
    run = Run(Budget(seconds=10), schedule="0.5:0.1")
    run.fit()
    assert run.rates == [0.5] * 6 + [0.05] * 5


def test_the_learning_rate_follows_the_steps_under_a_budget_of_steps():
    run = Run(Budget(steps=4), schedule="linear")
    run.fit()
    assert run.rates == [0.5, 0.375, 0.25, 0.125]


def test_a_resumed_run_spends_what_is_left():
    run = Run(Budget(steps=8))
    run.course.resume(step=5, seconds=4.0)
    run.fit()
    assert run.reported[0][0] == 6 and run.course.step == 8


def test_processor_time_stands_still_while_others_work():
    now = clock("process")
    before, wall = now(), time.perf_counter()
    time.sleep(0.05)
    assert now() - before < time.perf_counter() - wall


def test_an_unknown_clock_is_refused():
    with pytest.raises(ValueError, match="--clock must be one of wall, process; got 'sun'"):
        clock("sun")


@pytest.mark.parametrize(
    "limits", [{}, {"seconds": 0}, {"steps": 0}, {"seconds": -1.0}, {"seconds": float("nan")}]
)
def test_a_budget_without_a_positive_limit_is_refused(limits):
    with pytest.raises(ValueError, match="--time_budget" if "steps" not in limits else "--steps"):
        Budget(**limits)


def test_no_evaluation_at_all_is_refused():
    with pytest.raises(ValueError, match="--evaluations must be at least 1; got 0"):
        Run(Budget(steps=1), evaluations=0)
