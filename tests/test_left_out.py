"""What the end of a run says of tests that were left out."""

from tests.conftest import left_out
from tests.redis_server import NEEDS_REDIS

REDIS = f"Skipped: {NEEDS_REDIS.kwargs['reason']}"


def test_what_is_lacking_is_said_once_with_the_number_of_tests_and_the_command():
    (line,) = left_out([REDIS, "Skipped: Keras 2 multiplies", REDIS])
    assert line == (
        "Left out for want of redis-server: 2 tests. To run them: apt-get install redis-server"
    )


def test_each_thing_has_its_line_and_other_reasons_have_none():
    assert left_out(["Skipped: needs TensorFlow Addons", "Skipped: a sum (of all) counts"]) == []
    lines = left_out([REDIS, "Skipped: needs openssl (apt-get install openssl)"])
    assert ["openssl" in line for line in lines] == [True, False]
