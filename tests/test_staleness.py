"""The simulation of staleness against what can be said without it."""

import numpy as np
import pytest

from benchmarks import staleness


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_with_publications_all_the_time_ages_are_spread_over_a_round(workers):
    """A shard is a round old before it is scored again: its age is uniform over the round."""
    system = staleness.System(100_000, 500, workers, 10_000, 1e-3, pull_seconds=0.01)
    round_seconds = 10.0 / workers
    seen = staleness.simulate(system)
    wanted = round_seconds * np.array([0.1, 0.5, 0.9]) + 500 / 10_000
    np.testing.assert_allclose(seen.seconds, wanted, rtol=0.1)
    assert seen.idle < 0.01


def test_workers_that_are_done_wait_for_the_next_publication():
    system = staleness.System(1_000, 100, 10, 1_000, 2.0, pull_seconds=0.01)
    seen = staleness.simulate(system, 40.0)
    assert seen.idle == pytest.approx(0.95, abs=0.02)
    assert seen.seconds[1] == pytest.approx(1.0, abs=0.15)
    # Negative control: half the workers idle less.
    assert staleness.simulate(system._replace(workers=5), 40.0).idle < seen.idle - 0.03


def test_parameters_that_take_long_make_scores_older():
    system = staleness.System(100_000, 100, 4, 10_000, 1.0, pull_seconds=0.03)
    slow = staleness.simulate(system._replace(parameter_seconds=0.5), 60.0)
    assert slow.seconds[1] > staleness.simulate(system, 60.0).seconds[1] + 0.05
