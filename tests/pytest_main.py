"""Runs the test file that a Bazel py_test is named after: its `main`."""

import os
import sys

import pytest

if __name__ == "__main__":
    # An editable install lends out modules that the target does not declare: take its finder away.
    sys.meta_path = [
        finder
        for finder in sys.meta_path
        if not getattr(finder, "__module__", "").startswith("__editable__")
    ]
    test = os.environ["TEST_TARGET"].removeprefix("//").replace(":", "/")
    sys.exit(pytest.main([f"{test}.py", "-p", "no:cacheprovider", *sys.argv[1:]]))
