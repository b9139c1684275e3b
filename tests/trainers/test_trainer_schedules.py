"""Learning-rate schedules as functions of progress."""

from __future__ import annotations

import numpy as np
import pytest

from trainers import schedules

_GRID = np.linspace(0, 1, 11)


@pytest.mark.parametrize("text", [*schedules.BY_NAME, "0.4:0.2,0.8:0.04"])
def test_every_schedule_starts_at_1_and_never_rises(text):
    schedule = schedules.parse(text)
    factors = [schedule(progress) for progress in _GRID]
    assert factors[0] == 1
    assert np.all(np.diff(factors) <= 0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_decays_pass_one_half_on_the_way_to_0_and_stay_there(name):
    schedule = schedules.parse(name)
    assert schedule(0.5) == pytest.approx(0.5)
    assert schedule(1.0) == schedule(1.2) == pytest.approx(0)


def test_pieces_change_at_their_progress_in_any_order():
    schedule = schedules.parse("0.8:0.04,0.4:0.2")
    assert [schedule(p) for p in (0, 0.39, 0.4, 0.79, 0.8, 1)] == [1, 1, 0.2, 0.2, 0.04, 0.04]


@pytest.mark.parametrize("text", ["exponential", "0.4", "0.4:", "1.4:0.2", "0.4:-1", "0.4:nan", ""])
def test_what_is_no_schedule_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="constant, linear, cosine.*0.4:0.2,0.8:0.04"):
        schedules.parse(text)
