"""Stores to test, each empty and with a run of its own."""

import uuid

import pytest

from tests.redis_server import NEEDS_REDIS, RedisServer
from tf_importance import stores


@pytest.fixture(autouse=True)
def _seeded():
    """Nothing here is of Keras, and to begin its session anew takes longer than a test."""


@pytest.fixture(scope="session")
def redis_server():
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(params=["memory", pytest.param("redis", marks=NEEDS_REDIS)])
def opened(request):
    """A function from a role to a store; all of them meet in the same run."""
    name = uuid.uuid4().hex
    made = []

    def open_store(role="tester", **options):
        if request.param == "memory":
            made.append(stores.MemoryStore(name, role))
        else:
            server = request.getfixturevalue("redis_server")
            made.append(stores.RedisStore(server.url, name, role, **options))
        return made[-1]

    yield open_store
    for store in made:
        store.close()
    open_store().clear()
