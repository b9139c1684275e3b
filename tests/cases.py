"""Which cases of a test `make test` runs; `make test-slow` runs the others."""

from collections.abc import Iterable

import pytest


def quick(cases: Iterable, *kept):
    """The cases, those that are not kept marked slow: many alike, of which few are enough here."""
    cases = list(cases)
    missing = [one for one in kept if one not in cases]
    assert not missing, f"no cases: {missing}"
    return [one if one in kept else pytest.param(one, marks=pytest.mark.slow) for one in cases]
