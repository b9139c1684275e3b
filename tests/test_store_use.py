"""What a run asks of its store, against sums by hand."""

import pytest

from benchmarks.store_use import Constants, Line, Scale, Use, expected, through

NOTHING = Line(Use(), Use())
FREE = Constants(Use(), NOTHING, Use(), *[NOTHING] * 5)
# Two workers, 4,096 shards of 1,000 examples, a round of 2,048 seconds: nobody waits.
SCALE = Scale(4_096_000, 2, 1e6, 1_000, 1_000.0, 10.0, 4.0, 1e12)


def test_a_line_goes_through_its_points():
    line = through({8: Use(received=26.0, seconds=3.0), 2: Use(received=8.0, seconds=1.5)})
    assert line.at(8) == Use(26.0, 0.0, 0.0, 3.0) and line.at(0) == Use(2.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "constants, wanted",
    [
        (FREE._replace(idle=Use(seconds=0.1)), Use(seconds=0.1)),
        # Two shards a second, each 5 + 1,000 · 12 bytes.
        (FREE._replace(shard=Line(Use(5.0, commands=3), Use(12.0))), Use(24_010.0, commands=6)),
        (FREE._replace(report=Use(7.0)), Use(14.0)),
        # A fourth of a pull each second, 8,000 scores in each.
        (FREE._replace(pull=Line(Use(sent=8.0), Use(sent=12.0))), Use(sent=2.0 + 24_000.0)),
        (FREE._replace(publication=Line(Use(10.0), Use(1.0))), Use(1.0 + 1e5)),
        # Each worker takes each publication.
        (FREE._replace(parameters=Line(Use(), Use(sent=1.0))), Use(sent=2e5)),
    ],
)
def test_each_call_counts_as_often_as_it_is_made(constants, wanted):
    found = expected(SCALE, constants)
    assert found.use == pytest.approx(wanted, rel=1e-3)
    assert found.idle == pytest.approx(0, abs=1e-3) and found.store_bytes == 12 * 4_096_000 + 3e6


def test_of_a_narrow_line_half_is_for_the_parameters():
    narrow = SCALE._replace(line_bytes=1e5)
    assert narrow.published_seconds == 2 * 2 * 1e6 / 1e5
    constants = FREE._replace(
        shard=Line(Use(commands=1.0), Use()), parameters=Line(Use(), Use(sent=1.0))
    )
    use = expected(narrow, constants).use
    assert use.sent == pytest.approx(1e5 / 2)
    # One shard a second in place of two.
    assert use.commands == pytest.approx(1.0)


def test_no_more_is_pulled_than_there_is():
    few = SCALE._replace(examples=2_000, pull_seconds=100.0)
    use = expected(few, FREE._replace(pull=Line(Use(), Use(sent=12.0)))).use
    assert use.sent == pytest.approx(2_000 * 12 / 100)
