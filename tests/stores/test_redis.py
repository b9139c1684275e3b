"""What a real Redis server does to a run, and what the run's processes then say."""

import contextlib
import json
import logging
import pathlib
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
import traceback

import numpy as np
import pytest
import redis

from tests.redis_server import NEEDS_REDIS, Cluster, RedisServer
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


@contextlib.contextmanager
def demoted(raw):
    """The server is a replica of nobody's, and takes no writes."""
    raw.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        raw.replicaof("NO", "ONE")


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
    # On the whole network of this machine by itself.
    server = RedisServer(*options.split(), "--bind", "127.0.0.1 127.0.0.2")
    try:
        url = f"rediss://127.0.0.1:{probe.port}/0?ssl_ca_certs={certificate}"
        assert open_store(url).create(DESCRIPTION).description == DESCRIPTION
        with pytest.raises(stores.Unreachable, match="(?i)certificate"):
            open_store(f"rediss://127.0.0.1:{probe.port}/0").create(DESCRIPTION)
        # The certificate is of 127.0.0.1 alone; redis-py before 6 would not look.
        other = url.replace("127.0.0.1", "127.0.0.2")
        with pytest.raises(stores.Unreachable, match="(?i)mismatch|doesn't match|not valid for"):
            open_store(other).create(DESCRIPTION)
        assert open_store(f"{other}&ssl_cert_reqs=none").create(DESCRIPTION)
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
    with demoted(raw), pytest.raises(stores.Unreachable, match="^master: .*for now"):
        store.write([message(store=store)])
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
        {"description": b'{"format": 2, "num_examples": 1e999, "shard_size": 0}'},
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
    raw.hset("tfi:{faults}:run", "description", json.dumps({**text, "format": 3, "new": 1}))
    other = RedisStore(redis_server.url, "faults", "worker")
    with pytest.raises(stores.Mismatch, match="^worker: .*of format 3, and this is 2"):
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


# Faults of servers and lines --------------------------------------------------------------------


def test_a_demoted_server_is_left(store, raw):
    """Its connections are dropped: the next one may lead to another server."""
    before = store._client.client_id()
    assert store._client.client_id() == before, "a connection is kept while all is well"
    with demoted(raw), pytest.raises(stores.Unreachable, match="for now"):
        store.write([message(store=store)])
    assert store._client.client_id() != before


@pytest.mark.parametrize(
    "reply",
    ["NOREPLICAS few", "CLUSTERDOWN no slots", "LOADING data", "MISCONF disk", "NOSCRIPT x"],
)
def test_what_passes_is_waited_for(store, reply):
    with pytest.raises(stores.Unreachable, match="for now"):
        raise store._of_response(reply)
    with pytest.raises(stores.StoreError, match="node of a Redis Cluster.*redis.cluster:"):
        raise store._of_response("MOVED 1 host:1")


def test_a_full_chunk_takes_no_more_than_it_holds(redis_server, raw):
    """A little more falls into an allocator's class of 10 MB."""
    with RedisStore(redis_server.url, "chunks")._client as client:
        for size, taken in ((stores.redis.CHUNK, 1.01), (8 * 2**20, 1.2)):
            client.set("tfi:{chunks}:one", b"x" * size)
            used = raw.memory_usage("tfi:{chunks}:one", samples=0)
            assert used < 1.01 * size if taken == 1.01 else used > taken * size
        client.unlink("tfi:{chunks}:one")


def test_on_a_slow_line_chunks_are_smaller(redis_server, monkeypatch):
    """So that each passes within the timeout, and each that does is a sign of life."""
    clock = [0.0]
    monkeypatch.setattr(stores.redis.time, "monotonic", lambda: clock[0])
    store = RedisStore(redis_server.url, "slow", "master", timeout=8.0)
    store.create(DESCRIPTION)
    fence, client, sizes = store.take_over(), store._client, []

    def slowly(key, part, **options):
        sizes.append(len(part))
        clock[0] += len(part) / 2**20
        return type(client).set(client, key, part, **options)

    monkeypatch.setattr(client, "set", slowly)
    blob = bytes(8 * 2**20)
    for version in range(1, 5):
        before = clock[0]
        assert store.publish(blob, fence) == version
        assert before < store.heard == clock[0]
    # 8 s, then what takes a quarter of the timeout at most, 2 s.
    assert sizes[0] == stores.redis.CHUNK and 2**19 < max(sizes[-4:]) <= 2 * 2**20
    monkeypatch.setattr(client, "set", lambda *args, **options: type(client).set(client, *args))
    for _ in range(4):
        store.publish(blob, fence)
    assert store._chunk == stores.redis.CHUNK and store.parameters().blob == blob
    store.clear()


def test_a_cluster(raw):
    """Of two nodes, of which only the other one has the run's keys, or comes to have them."""
    cluster = Cluster()
    try:
        one, other = cluster.nodes
        for name in ("one", "two", "three", "four"):
            # Whichever node is asked, the keys are where they belong.
            for node in (one, other):
                url = f"redis+cluster://127.0.0.1:{node.port}"
                store = RedisStore(url, name, "master", chunk=1000)
                store.create(DESCRIPTION)
                blob = name.encode() * 800
                store.publish(blob, store.take_over())
                store.write([message(store=store)])
                assert store.parameters().blob == blob and store.lease("w", 1, 1e3) is not None
        keys = [client.dbsize() for client in cluster.clients]
        assert min(keys) > 0
        # A node that is not there is passed over.
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{one.port}/0"
        assert RedisStore(url, "one", "worker").join(DESCRIPTION)
        with pytest.raises(stores.Unreachable, match="^worker: the store does not answer"):
            RedisStore("redis+cluster://127.0.0.1:1", "one", "worker").join(DESCRIPTION)
        with pytest.raises(ValueError, match="database 0"):
            RedisStore("redis+cluster://127.0.0.1:1/3", "one", "worker")
        # Who asks a node as if it were by itself is told.
        refused = 0
        for node in (one, other):
            try:
                RedisStore(node.url, "two", "worker").join(DESCRIPTION)
            except stores.StoreError as error:
                assert "redis+cluster://host:port" in str(error)
                refused += 1
        assert refused == 1
    finally:
        cluster.close()


def test_the_node_of_a_cluster_may_change():
    """The run moves to the other node: what is asked next fails in passing, and then goes there."""
    cluster = Cluster()
    try:
        store = RedisStore(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}", "run", "master")
        store.create(DESCRIPTION)
        store.publish(b"before", store.take_over())
        key = "tfi:{run}:run"
        slot = cluster.clients[0].execute_command("CLUSTER", "KEYSLOT", key)
        ids = [client.execute_command("CLUSTER", "MYID") for client in cluster.clients]
        held = [bool(client.execute_command("DBSIZE")) for client in cluster.clients]
        source, target = held.index(True), held.index(False)
        keys = cluster.clients[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        states = ((target, "IMPORTING", ids[source]), (source, "MIGRATING", ids[target]))
        for place, state, other in states:
            cluster.clients[place].execute_command("CLUSTER", "SETSLOT", slot, state, other)
        port = cluster.nodes[target].port
        moved = ("MIGRATE", "127.0.0.1", port, "", 0, 10_000, "KEYS", *keys)
        cluster.clients[source].execute_command(*moved)
        for client in cluster.clients[::-1] if target else cluster.clients:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        for _ in range(20):
            try:
                found = store.parameters()
                break
            except stores.Unreachable:
                continue
        assert found.blob == b"before"
        assert store.write([message(store=store)]) == 4
        assert store._client.connection_pool.connection_kwargs["port"] == port
    finally:
        cluster.close()


def test_a_publication_that_was_broken_off_leaves_nothing_to_the_next(store, raw, monkeypatch):
    fence = store.take_over()
    store.publish(b"before" * 500, fence)
    client, calls = store._client, []

    def cut(key, part, **options):
        calls.append(key)
        if len(calls) == 3:
            raise redis.exceptions.ConnectionError("cut")
        return type(client).set(client, key, part, **options)

    monkeypatch.setattr(client, "set", cut)
    with pytest.raises(stores.Unreachable):
        store.publish(b"broken" * 1000, fence)
    monkeypatch.undo()
    assert len(raw.keys("*parameters:*")) == 3 + 2
    assert store.publish(b"x" * 1500, fence) == 2
    assert len(raw.keys("*parameters:*")) == 3 + 2, "of the last one and of its former"
    assert not raw.exists("tfi:{faults}:begun")
    assert store.parameters() == (2, b"x" * 1500)


def test_a_former_master_does_not_delete_what_the_next_one_publishes(store, raw):
    first, second = store.take_over(), store.take_over()
    store.publish(b"second", second)
    with pytest.raises(stores.Superseded):
        store.publish(b"first", first)
    assert store.parameters().blob == b"second"


@pytest.mark.parametrize("policy", ["allkeys-lru", "noeviction"])
def test_a_server_that_deletes_keys_is_told_of(redis_server, raw, policy, caplog):
    raw.config_set("maxmemory-policy", policy)
    raw.config_set("maxmemory", 2**30)
    store = RedisStore(redis_server.url, "evicted", "master")
    try:
        with caplog.at_level(logging.WARNING):
            store.create(DESCRIPTION)
    finally:
        raw.config_set("maxmemory", 0)
        raw.config_set("maxmemory-policy", "noeviction")
        store.clear()
    assert ("maxmemory-policy allkeys-lru" in caplog.text) == (policy != "noeviction")


def test_shards_that_the_server_forgot_are_scored_again(store, raw):
    all_shards = set(range(store.layout.shards))
    assert store.lease("a", 1, 1e3).shard in all_shards
    raw.delete("tfi:{faults}:waiting")
    leased = [store.lease("b", 1, 1e3) for _ in all_shards]
    assert [one is None for one in leased] == [False] * (len(all_shards) - 1) + [True]
    raw.delete("tfi:{faults}:leased", "tfi:{faults}:holders")
    assert {store.lease("c", 1, 1e3).shard for _ in all_shards} == all_shards


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_what_is_new_takes_few_bytes_however_many_examples_there_are(redis_server, raw, size):
    """Scores of examples all over the data, as peers write them: 32 bytes for each at most."""
    name = f"bytes{size}"
    writer, reader = (RedisStore(redis_server.url, name, role) for role in ("peer 0", "peer 1"))
    writer.create(Description(size))
    reader.create(Description(size))
    layout, rng = writer.layout, np.random.default_rng(0)
    writer.write([Message(0, np.ones(1, np.float32), 1, writer.now(), np.array([0]))])
    mark = reader.changes().mark
    examples = rng.permutation(size)[:3_000]
    shards = examples // layout.shard_size
    messages = [
        Message(
            int(shard),
            np.ones((shards == shard).sum(), np.float32),
            2,
            writer.now(),
            examples[shards == shard] - shard * layout.shard_size,
        )
        for shard in np.unique(shards)
    ]
    assert writer.write(messages) == 3_000
    reader.changes(reader.changes().mark)
    before = raw.info("stats")["total_net_output_bytes"]
    found = reader.changes(mark)
    read = raw.info("stats")["total_net_output_bytes"] - before
    assert found.shards == [] and len(found.records) == 3_000
    # The server's answer to INFO is the same whatever changed: 6 KB or so.
    assert read - 20_000 < 32 * 3_000
    writer.clear()


def test_a_run_that_is_created_between_two_questions_is_found(redis_server, store, monkeypatch):
    worker, asked = RedisStore(redis_server.url, "faults", "worker"), []

    def early(key, *names):
        asked.append(key)
        found = type(worker._client).hmget(worker._client, key, *names)
        return [None] * len(names) if len(asked) == 1 else found

    monkeypatch.setattr(worker._client, "hmget", early)
    assert worker.join(DESCRIPTION) == store.run


REPLIES = [
    *(b"", b"\x00\xff\x13\r\n", b"hello\r\n", b"+OK\r\n", b"-ERR odd\r\n", b":7\r\n", b"$-1\r\n"),
    *(b"*-1\r\n", b"*0\r\n", b":99999999999999999999999\r\n", b":x\r\n", b"$3\r\nabc\r\n"),
    *(b"$99\r\nabc", b"$x\r\n", b"*2\r\n:1\r\n$1\r\nx\r\n", b"*1\r\n*1\r\n:1\r\n", b"*x\r\n"),
    *(b"-NOSCRIPT x\r\n", b"-MOVED 1 host:1\r\n", b"%1\r\n:1\r\n:1\r\n", b"-\r\n", b"_\r\n"),
]


@pytest.fixture
def babbler():
    """A server that answers each question by the same bytes, and hangs up after some."""
    replies = [b""]

    class Babble(socketserver.BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):
                for _ in range(12):
                    if not self.request.recv(65_536):
                        return
                    self.request.sendall(replies[0])

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads = True, True

    with Server(("127.0.0.1", 0), Babble) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1], replies
        server.shutdown()
        thread.join()


def test_nothing_but_its_own_errors_leaves_a_store(babbler):
    port, replies = babbler
    rng = np.random.default_rng(0)
    random = [bytes(rng.integers(256, size=size, dtype=np.uint8)) for size in (1, 7, 40)]
    for replies[0] in [*REPLIES, *(part + b"\r\n" for part in random)]:
        store = RedisStore(f"redis://127.0.0.1:{port}", "fuzz", "worker", timeout=0.05)
        store._run = stores.base.Run("id", 0.0, DESCRIPTION)
        record = Message(0, np.ones(4, np.float32), 1, 5.0, np.arange(4))
        for ask in (
            store.now,
            lambda store=store: store.create(DESCRIPTION),
            lambda store=store: store.join(DESCRIPTION),
            store.take_over,
            lambda store=store: store.publish(b"blob", 1),
            store.parameters,
            lambda store=store, record=record: store.write([record]),
            store.changes,
            lambda store=store: store.read([0, 1]),
            lambda store=store: store.lease("a", 1, 1.0),
            lambda store=store: store.renew(stores.Lease(0, "a"), 1.0),
            lambda store=store: store.report("a", {"x": 1.0}),
            store.reports,
        ):
            with contextlib.suppress(stores.StoreError):
                ask()
        store.close()


@pytest.mark.slow
def test_sentinels_lead_to_the_next_primary():
    first = RedisServer()
    second = RedisServer("--replicaof", "127.0.0.1", str(first.port))
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder, "sentinel.conf")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor tfi 127.0.0.1 {first.port} 1\n"
            "sentinel down-after-milliseconds tfi 500\nsentinel failover-timeout tfi 2000\n"
        )
        sentinel = subprocess.Popen(
            ["redis-server", str(config), "--sentinel"], stdout=subprocess.DEVNULL
        )
        try:
            url = f"redis+sentinel://127.0.0.1:{port}/tfi/0"
            store = open_store(url, "sentinels", "master")
            _until(lambda: store.create(DESCRIPTION))
            with redis.Redis(port=first.port) as primary, redis.Redis(port=second.port) as replica:
                store.write([message(store=store)])
                # WAIT speaks of what its own connection wrote: of nothing, here.
                written = primary.info("replication")["master_repl_offset"]
                _until(lambda: _offset(replica) >= written or _again())
            with redis.Redis(port=port) as asked:
                _until(lambda: asked.sentinel_slaves("tfi") or _again())
            first.kill()
            _until(lambda: store.write([message(1, 2, store=store)]))
            assert store.changes().shards == [0, 1], "nothing is lost"
            store.close()
        finally:
            sentinel.kill()
            sentinel.wait()
            first.close()
            second.close()


def _offset(replica) -> int:
    """How far it has followed its primary, in bytes; -1 while the two are not connected."""
    state = replica.info("replication")
    return state["slave_repl_offset"] if state["master_link_status"] == "up" else -1


def _again():
    raise stores.Unreachable("not yet", role="test", store="", remedy="")


def _until(ask, seconds=120.0):
    """What does not go well yet is asked for again, however long a loaded machine takes."""
    end = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except stores.StoreError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_schemes_in_any_case_and_of_valkey(redis_server):
    for scheme in ("REDIS", "valkey", "Valkey"):
        store = open_store(redis_server.url.replace("redis", scheme, 1), "schemes")
        assert store.now() > 0
        store.close()
    with pytest.raises(ValueError, match="names the service"):
        open_store("redis+sentinel://localhost:1", "schemes")
