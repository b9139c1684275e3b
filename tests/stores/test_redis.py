"""What a real Redis server does to a run, and what the run's processes then say."""

import json
import logging
import shutil
import subprocess
import traceback

import numpy as np
import pytest
import redis

from tests.redis_server import NEEDS_REDIS, RedisServer
from tf_importance import stores
from tf_importance.stores import Description, Message, RedisStore, open_store

pytestmark = NEEDS_REDIS

DESCRIPTION = Description(100, model="m", shard_size=32)
SECRET = "s3cr%2Fet"


@pytest.fixture(scope="module")
def locked():
    server = RedisServer("--requirepass", "s3cr/et")
    yield server
    server.close()


@pytest.fixture
def store(redis_server):
    made = RedisStore(redis_server.url, "faults", "master", chunk=1000)
    made.clear()
    made.create(DESCRIPTION)
    yield made
    made.clear()


@pytest.fixture
def raw(redis_server):
    with redis.Redis(port=redis_server.port) as client:
        yield client


def message(shard=0, version=1, store=None):
    return Message(shard, np.ones(4, np.float32), version, store.now(), np.arange(4))


# Credentials ----------------------------------------------------------------------------------


def test_the_right_password_opens_by_every_kind_of_url(locked):
    urls = (
        f"redis://:{SECRET}@127.0.0.1:{locked.port}/0",
        f"redis://default:{SECRET}@127.0.0.1:{locked.port}",
        f"unix://default:{SECRET}@{locked.socket}",
        f"unix://{locked.socket}?password={SECRET}",
    )
    for url in urls:
        assert open_store(url, "urls", "master").create(DESCRIPTION).description == DESCRIPTION


@pytest.mark.parametrize("kind", ["wrong", "user", "none", "unreachable", "option", "invalid"])
def test_no_error_and_no_log_shows_a_credential(locked, kind, caplog):
    caplog.set_level(logging.DEBUG)
    url = {
        "wrong": f"redis://:WRONG{SECRET}@127.0.0.1:{locked.port}",
        "user": f"redis://topsecretuser:WRONG{SECRET}@127.0.0.1:{locked.port}",
        "none": f"redis://127.0.0.1:{locked.port}",
        "unreachable": f"redis://topsecretuser:{SECRET}@127.0.0.1:1",
        "option": f"unix://{locked.socket}?password=WRONG{SECRET}",
        "invalid": f"redis://topsecretuser:{SECRET}@127.0.0.1:port/x",
    }[kind]
    expected = {"unreachable": stores.Unreachable, "invalid": ValueError}
    with pytest.raises(expected.get(kind, stores.Unauthorized), match="^worker: ") as caught:
        open_store(url, role="worker").join(DESCRIPTION)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "127.0.0.1" in shown or locked.socket in shown
    assert not [secret for secret in (SECRET, "s3cr", "topsecretuser") if secret in shown]


@pytest.mark.parametrize("character", ["/", "@", "?", "#", " ", ":", "'", "@:/?#@ x"])
@pytest.mark.parametrize("scheme", ["redis", "http"])
def test_passwords_that_were_not_encoded_are_not_shown_either(character, scheme, caplog):
    caplog.set_level(logging.DEBUG)
    url = f"{scheme}://topuser:s3cr{character}tail@127.0.0.1:1/0"
    with pytest.raises((ValueError, stores.Unreachable)) as caught:
        opened = open_store(url, role="worker")
        assert "s3cr" not in repr(opened) and "tail" not in repr(opened)
        opened.join(DESCRIPTION)
    shown = "".join(traceback.format_exception(caught.value)[-1:]) + caplog.text
    assert not [secret for secret in ("s3cr", "tail", "topuser") if secret in shown], shown


def test_options_that_are_secrets_are_not_shown():
    url = "rediss://h:1/0?ssl_password=s3cr&ssl_ca_certs=file&password=tail"
    shown = stores.without_credentials(f"a --store={url} b")
    assert shown == "a --store=rediss://h:1/0?ssl_password=***&ssl_ca_certs=file&password=*** b"


def test_a_user_without_permissions_is_told_which_keys(locked):
    admin = redis.Redis(port=locked.port, password="s3cr/et")
    admin.acl_setuser("reader", True, passwords=["+pw"], keys=["tfi:*"], commands=["+@read"])
    with pytest.raises(stores.Unauthorized, match=r"allow this user .*tfi:\{default\}:\*"):
        open_store(f"redis://reader:pw@127.0.0.1:{locked.port}", role="peer").create(DESCRIPTION)


def test_tls(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl (apt-get install openssl)")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += f" -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout {key}"
    subprocess.run([*command.split(), "-out", certificate], check=True, capture_output=True)
    files = f"--tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {certificate}"
    probe = RedisServer()
    probe.close()
    options = f"--tls-port {probe.port} {files} --tls-auth-clients no"
    server = RedisServer(*options.split())
    try:
        url = f"rediss://127.0.0.1:{probe.port}/0?ssl_ca_certs={certificate}"
        assert open_store(url).create(DESCRIPTION).description == DESCRIPTION
        with pytest.raises(stores.Unreachable, match="(?i)certificate"):
            open_store(f"rediss://127.0.0.1:{probe.port}/0").create(DESCRIPTION)
    finally:
        server.close()


# Memory ---------------------------------------------------------------------------------------


def test_out_of_memory_leaves_everything_as_it_was(store, raw):
    fence = store.take_over()
    store.publish(b"before" * 500, fence)
    store.write([message(store=store)])
    raw.config_set("maxmemory-policy", "noeviction")
    raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 200_000)
    try:
        with pytest.raises(stores.OutOfMemory, match="^master: .*no room.*Raise its maxmemory"):
            store.publish(b"after" * 200_000, fence)
        raw.config_set("maxmemory", 1)
        with pytest.raises(stores.OutOfMemory):
            store.write([message(1, 2, store=store)])
    finally:
        raw.config_set("maxmemory", 0)
    assert store.parameters() == (1, b"before" * 500)
    assert store.changes().shards == [0] and not store.read([1])[0]["version"].any()
    assert len(raw.keys("*parameters:*")) == 3, "chunks of the failed publication are gone"
    assert store.publish(b"after", fence) == 2 and store.write([message(1, 2, store=store)]) == 4


def test_a_server_that_takes_no_writes_for_now_is_waited_for(store, raw):
    raw.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(stores.Unreachable, match="^master: .*for now"):
            store.write([message(store=store)])
    finally:
        raw.replicaof("NO", "ONE")
    assert store.write([message(store=store)]) == 4


# Restarts -------------------------------------------------------------------------------------


def test_a_killed_server_comes_back_empty_or_as_it_was():
    for options, kept in (((), False), (("--appendonly", "yes", "--appendfsync", "always"), True)):
        server = RedisServer(*options)
        try:
            store = RedisStore(server.url, "r", "worker")
            store.create(DESCRIPTION)
            version = store.publish(b"x" * 100, store.take_over())
            store.write([message(2, version, store=store)])
            before = store.changes()
            server.kill()
            with pytest.raises(stores.Unreachable, match="^worker: .*redis-server --port"):
                store.changes(before.mark)
            server.start()
            if kept:
                assert store.parameters() == (1, b"x" * 100)
                # All is named again: what this server knows may be less than was seen.
                assert store.changes(before.mark).shards == [2]
                assert store.write([message(2, version, store=store)]) == 4, "a later time"
            else:
                with pytest.raises(stores.NoRun):
                    store.changes(before.mark)
        finally:
            server.close()


@pytest.mark.parametrize("remembered", [None, b"1"])
def test_a_server_that_forgot_its_master_supersedes_nobody(store, raw, remembered):
    """As one that comes back from its disk with what it knew some seconds ago."""
    key = "tfi:{faults}:fence"
    fence = store.take_over()
    store.publish(b"a", fence)
    raw.set(key, remembered) if remembered else raw.delete(key)
    assert store.publish(b"b", fence) == 2
    raw.set(key, remembered) if remembered else raw.delete(key)
    assert store.take_over() > fence
    with pytest.raises(stores.Superseded):
        store.publish(b"c", fence)


def test_a_run_that_was_deleted_halfway_leaves_nothing_to_the_next(store, raw):
    store.publish(b"y" * 2500, store.take_over())
    store.write([message(store=store)])
    assert store.lease("w", 1, 3600.0) is not None
    store.report("w", {"scored": 1.0})
    raw.delete("tfi:{faults}:run")
    store.create(DESCRIPTION)
    assert store.parameters() is None and store.changes().shards == [] and store.reports() == {}
    assert not np.concatenate(store.read(range(4)))["version"].any()
    assert {store.lease("w", 1, 3600.0).shard for _ in range(4)} == {0, 1, 2, 3}
    assert not raw.keys("*parameters:*")


def test_a_server_that_forgot_its_scripts_gets_them_again(store, raw):
    raw.script_flush()
    assert store.write([message(store=store), message(1, store=store)]) == 8
    raw.script_flush()
    assert store.lease("w", 1, 1.0) is not None


# What is not ours -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"text", {"foo": "bar"}, {"magic": "tf_importance", "id": "1"}])
def test_a_foreign_run_is_refused_and_left_alone(redis_server, raw, value):
    key = "tfi:{foreign}:run"
    raw.hset(key, mapping=value) if isinstance(value, dict) else raw.set(key, value)
    before = raw.dump(key)
    store = RedisStore(redis_server.url, "foreign", "worker")
    for start in (store.create, store.join):
        with pytest.raises(stores.Foreign, match="^worker: .*not of tf_importance's format"):
            start(DESCRIPTION)
    assert raw.dump(key) == before
    raw.delete(key)


@pytest.mark.parametrize(
    "change",
    [
        *({"description": b"[" * 100_000}, {"description": b"[]"}, {"description": b"{}"}),
        {"description": b'{"format": 1, "num_examples": 1e999, "shard_size": 0}'},
        *({"created": created} for created in (b"nan", b"inf", b"-1", b"x", b"1e300")),
        *({"id": b"\xff"}, {"magic": b"other"}),
    ],
)
def test_a_run_that_makes_no_sense_is_foreign(redis_server, raw, store, change):
    raw.hset("tfi:{faults}:run", mapping=change)
    with pytest.raises(stores.Foreign, match="^worker: "):
        RedisStore(redis_server.url, "faults", "worker").join(DESCRIPTION)


def test_lists_and_reports_that_make_no_sense_are_foreign(store, raw):
    for name, ask in (("changes", store.changes), ("waiting", lambda: store.lease("w", 9, 1.0))):
        raw.zadd("tfi:{faults}:" + name, {b"99": -1 if name == "waiting" else 7})
        raw.set("tfi:{faults}:count", 9)
        with pytest.raises(stores.Foreign, match="list of shards"):
            ask()
    raw.zadd("tfi:{faults}:changes", {b"text": 8})
    with pytest.raises(stores.Foreign, match="list of shards"):
        store.changes()
    for text in (b"[" * 100_000, b"5", b'{"per_second": 1}', b'{"time": "x"}', b'{"time": [1]}'):
        raw.hset("tfi:{faults}:reports", "w", text)
        with pytest.raises(stores.Foreign, match="a report"):
            store.reports()


@pytest.mark.parametrize("change", [{"version": 2**32}, {"version": -1}, {"chunks": 10**12}])
def test_pointers_that_make_no_sense_are_refused(store, raw, change):
    store.publish(b"y" * 2500, store.take_over())
    raw.hset("tfi:{faults}:parameters", mapping=change)
    with pytest.raises((stores.Corrupt, stores.Foreign), match="^master: "):
        store.parameters()


def test_another_format_version_is_refused(redis_server, raw, store):
    text = json.loads(raw.hget("tfi:{faults}:run", "description"))
    raw.hset("tfi:{faults}:run", "description", json.dumps({**text, "format": 2, "new": 1}))
    other = RedisStore(redis_server.url, "faults", "worker")
    with pytest.raises(stores.Mismatch, match="^worker: .*of format 2, and this is 1"):
        other.join(DESCRIPTION)


@pytest.mark.parametrize(
    "value", [b"", b"short", b"TFIS" + bytes(12 + 12 * 32), b"\0" * (16 + 12 * 32), ["list"]]
)
def test_a_shard_that_is_not_the_formats_is_refused_and_left_alone(store, raw, value):
    key = "tfi:{faults}:scores:1"
    raw.rpush(key, *value) if isinstance(value, list) else raw.set(key, value)
    before = raw.dump(key)
    with pytest.raises(stores.Foreign, match="^master: the shard 1 there"):
        store.write([message(1, store=store)])
    if isinstance(value, bytes):
        with pytest.raises(stores.Foreign, match="^master: the shard 1 there"):
            store.read([0, 1])
    assert raw.dump(key) == before


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "pointer"])
def test_harmed_parameters_are_never_used(store, raw, harm):
    fence = store.take_over()
    store.publish(b"y" * 2500, fence)
    keys = sorted(raw.keys("tfi:{faults}:parameters:*"))
    if harm == "cut":
        raw.set(keys[1], raw.get(keys[1])[:500])
    elif harm == "changed":
        raw.setrange(keys[0], 5, b"z")
    elif harm == "gone":
        raw.delete(keys[2])
    else:
        raw.hset("tfi:{faults}:parameters", "size", "many")
    with pytest.raises((stores.Corrupt, stores.Foreign), match="^master: "):
        store.parameters()
    if harm != "pointer":
        assert store.publish(b"z" * 10, fence) == 2 and store.parameters().blob == b"z" * 10


@pytest.mark.parametrize("kept, left", [(0, 1), (2500, 1), (5000, 2), (7499, 2), (10**9, 4)])
def test_former_parameters_take_no_more_than_they_may(store, raw, monkeypatch, kept, left):
    monkeypatch.setattr("tf_importance.stores.redis._FORMER_BYTES", kept)
    fence, pointers = store.take_over(), []
    for number in range(5):
        store.publish(bytes([number]) * 2500, fence)
        pointers.append(raw.hgetall("tfi:{faults}:parameters"))
    assert len(raw.keys("tfi:{faults}:parameters:*")) == 3 * (1 + left)
    assert all(raw.pttl(key) == -1 for key in raw.keys("tfi:{faults}:parameters:*"))
    # Who began to read those before the last ones comes to an end.
    raw.hset("tfi:{faults}:parameters", mapping=pointers[-2])
    assert store.parameters() == (4, bytes([3]) * 2500)


def test_who_reads_while_parameters_are_published_reads_them_whole(store, monkeypatch):
    """A publication between any two chunks."""
    monkeypatch.setattr("tf_importance.stores.redis._FORMER_BYTES", 0)
    fence, get, versions = store.take_over(), store._client.get, [0]

    def publish():
        versions[0] += 1
        store.publish(bytes([versions[0]]) * 2500, fence)

    def slowly(key):
        if key.endswith(":1") and versions[0] < slow:
            publish()
        return get(key)

    monkeypatch.setattr(store._client, "get", slowly)
    publish()
    slow = 2
    assert store.parameters() == (1, bytes([1]) * 2500), "one publication is no harm"
    publish()
    slow = 100

    def twice(key):
        if key.endswith(":1"):
            publish()
            publish()
        return get(key)

    monkeypatch.setattr(store._client, "get", twice)
    with pytest.raises(stores.Corrupt, match="publish less often"):
        store.parameters()
