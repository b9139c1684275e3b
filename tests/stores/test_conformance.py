"""Laws of every store, listed once: whole parameters, ordered scores, leases, refusals."""

import concurrent.futures
import dataclasses
import threading
import time

import numpy as np
import pytest

from tf_importance.distributed import mirror
from tf_importance.stores import (
    Description,
    Mark,
    Message,
    Mismatch,
    NoRun,
    Superseded,
    open_store,
    records,
)

N, SHARD = 100, 32
# Bounds a hang, and no more.
HANGING_SECONDS = 300.0
DESCRIPTION = Description(N, loss="mse", model="m", data="d", shard_size=SHARD)


@pytest.fixture
def store(opened):
    made = opened()
    made.create(DESCRIPTION)
    return made


def message(shard=0, value=1.0, version=1, time=None, store=None, **more):
    size = min(SHARD, N - shard * SHARD)
    time = store.now() if time is None else time
    return Message(shard, np.full(size, value, np.float32), version, time, **more)


def all_records(store):
    return np.concatenate(store.read(range(store.layout.shards)))


# Run ------------------------------------------------------------------------------------------


def test_all_who_agree_meet_in_one_run(opened):
    first, second, third = opened("master"), opened("master"), opened("worker")
    assert first.create(DESCRIPTION) == second.create(DESCRIPTION) == third.join(DESCRIPTION)


@pytest.mark.parametrize(
    "change", [{"num_examples": 99}, {"loss": "mae"}, {"dtype": "float16"}, {"model": "other"}]
)
def test_a_mismatch_is_refused_and_named(opened, change):
    run = opened("master").create(DESCRIPTION)
    worker = opened("worker")
    (name, value), *_ = change.items()
    with pytest.raises(Mismatch, match=f"^worker: .*{name} .* there, {value!r} here.*store "):
        worker.join(dataclasses.replace(DESCRIPTION, **change))
    with pytest.raises(Mismatch):
        worker.create(dataclasses.replace(DESCRIPTION, **change))
    assert opened().join(DESCRIPTION) == run, "nothing was overwritten"


def test_nobody_joins_what_is_not_there(opened):
    with pytest.raises(NoRun, match="^worker: no run stands there .*Start the master"):
        opened("worker").join(DESCRIPTION)
    with pytest.raises(NoRun, match="create or join"):
        opened().lease("a", 1, 1.0)


def test_whoever_joined_a_run_that_is_gone_is_told(opened, store):
    worker = opened("worker")
    worker.join(DESCRIPTION)
    opened().clear()
    for ask in (
        lambda: worker.write([message(store=worker)]),
        lambda: worker.lease("a", 1, 1.0),
        lambda: worker.changes(),
    ):
        with pytest.raises(NoRun, match="no longer there"):
            ask()
    run = opened("master").create(DESCRIPTION)
    with pytest.raises(NoRun):
        worker.write([message(store=worker)])
    assert worker.join(DESCRIPTION) == run and worker.write([message(store=worker)]) == SHARD


def test_runs_of_other_names_are_left_alone(opened, store):
    store.write([message(store=store)])
    other = type(store)("other") if store.address.startswith("memory") else None
    if other is None:
        other = open_store(store.address, "other", "tester")
    other.create(dataclasses.replace(DESCRIPTION, loss="another"))
    other.clear()
    assert len(store.changes().shards) == 1


# Parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_parameters_come_back_as_they_were(opened, size):
    store = opened(chunk=1000) if "redis" in repr(opened()) else opened()
    store.create(DESCRIPTION)
    assert store.parameters() is None
    blob = np.random.default_rng(size).bytes(size)
    version = store.publish(blob, store.take_over())
    assert store.parameters() == (version, blob) and store.parameters(version) is None


def test_versions_grow_whatever_happens(store):
    fence = store.take_over()
    versions = [store.publish(b"a", fence), store.publish(b"b", fence, at_least=7)]
    versions += [store.publish(b"c", store.take_over()), store.publish(b"d", store.take_over(), 3)]
    assert versions == [1, 8, 9, 10]


def test_a_former_master_cannot_publish(opened, store):
    former = store.take_over()
    present = opened("master").create(DESCRIPTION) and store.take_over()
    store.publish(b"new", present)
    with pytest.raises(Superseded, match="another master"):
        store.publish(b"old", former)
    assert store.parameters().blob == b"new"


def test_readers_never_see_torn_parameters(opened):
    writer = opened(chunk=1000) if "redis" in repr(opened()) else opened()
    writer.create(DESCRIPTION)
    fence, stop, seen = writer.take_over(), threading.Event(), set()
    writer.publish(bytes([0]) * 5000, fence)

    def read(reader):
        reader.join(DESCRIPTION)
        while not stop.is_set():
            seen.add(reader.parameters().blob)
            time.sleep(0.0005)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read, opened()) for _ in range(2)]
        # 60 publications, and more if the readers were not there to see some of them.
        number, end = 0, time.monotonic() + HANGING_SECONDS
        while number < 60 or (len(seen) <= 3 and time.monotonic() < end):
            writer.publish(bytes([number % 256]) * 5000, fence)
            number += 1
            time.sleep(0.002)
        stop.set()
        for reader in readers:
            reader.result()
    assert len(seen) > 3
    assert all(len(blob) == 5000 and len(set(blob)) == 1 for blob in seen)


# Scores ---------------------------------------------------------------------------------------


def test_scores_come_back_with_version_and_time(store):
    now = store.now()
    scores = np.arange(N - 3 * SHARD, dtype=np.float32)
    assert store.write([Message(3, scores, 5, now), message(1, 2.5, 6, now)]) == len(scores) + SHARD
    records = store.read([3, 1, 0])
    np.testing.assert_array_equal(records[0]["score"], scores)
    assert set(records[0]["version"]) == {5} and set(records[1]["score"]) == {2.5}
    age = now - store.run.created - records[0]["time"] * 0.01
    assert np.all((0 <= age) & (age < 0.011))
    assert not records[2]["version"].any() and len(records[2]) == SHARD


@pytest.mark.parametrize("seed", range(4))
def test_late_duplicated_and_reordered_messages_change_nothing(opened, seed):
    """Whatever the order and however often each comes, the newest of each example stays."""
    rng = np.random.default_rng(seed)
    store = opened()
    store.create(DESCRIPTION)
    start = store.now()
    messages = []
    for number in range(24):
        shard = int(rng.integers(4))
        size = min(SHARD, N - shard * SHARD)
        chosen = rng.permutation(size)[: rng.integers(1, size + 1)] if number % 2 else None
        count = size if chosen is None else len(chosen)
        version, when = int(rng.integers(1, 5)), start + 0.02 * number
        messages.append(Message(shard, rng.random(count, np.float32), version, when, chosen))
    expected = np.zeros((N, 3))
    for one in sorted(messages, key=lambda m: (m.version, m.time)):
        offsets = np.arange(len(one.scores)) if one.offsets is None else one.offsets
        expected[one.shard * SHARD + offsets, 0] = one.scores
        expected[one.shard * SHARD + offsets, 1] = one.version
    order = rng.permutation(np.repeat(np.arange(24), 2))
    store.write([messages[i] for i in order[:20]])
    for i in order[20:]:
        store.write([messages[i]])
    records = all_records(store)
    np.testing.assert_array_equal(records["score"], expected[:, 0].astype(np.float32))
    np.testing.assert_array_equal(records["version"], expected[:, 1])
    assert store.write(messages) == 0, "nothing counts twice"
    mark = store.changes().mark
    store.write(messages)
    assert store.changes(mark).shards == []


def test_only_what_changed_is_named(store):
    assert store.changes().shards == []
    store.write([message(0, store=store), message(2, store=store)])
    first = store.changes()
    assert first.shards == [0, 2] and store.changes(first.mark).shards == []
    store.write([message(3, store=store)])
    assert store.changes(first.mark).shards == [3]
    # A mark of another incarnation, or of a future that was forgotten, is void.
    assert store.changes(Mark("other", first.mark.number)).shards == [0, 2, 3]
    assert store.changes(Mark(first.mark.incarnation, 99)).shards in ([], [0, 2, 3])


@pytest.mark.parametrize(
    "change",
    [
        {"scores": np.ones(SHARD + 1)},
        {"scores": np.ones(0)},
        {"shard": 4},
        {"version": 0},
        {"offsets": np.zeros(SHARD, int)},
        {"offsets": np.arange(SHARD) + 1},
    ],
)
def test_messages_that_fit_nowhere_are_refused(store, change):
    with pytest.raises(ValueError, match="must be"):
        store.write([dataclasses.replace(message(store=store), **change)])
    assert store.changes().shards == []


def test_writers_at_the_same_time_lose_nothing(opened, store):
    start = store.now()

    def write(number):
        mine = opened(f"peer {number}")
        mine.join(DESCRIPTION)
        for version in range(1, 21):
            offsets = np.arange(number, SHARD, 4)
            mine.write([Message(1, np.full(8, version + number / 10), version, start, offsets)])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = store.read([1])[0]
    expected = (20 + np.arange(SHARD) % 4 / 10).astype(np.float32)
    np.testing.assert_array_equal(records["score"], expected)


# Leases ---------------------------------------------------------------------------------------


def test_every_shard_is_leased_once_and_again_for_the_next_version(store):
    for version in (1, 2):
        leases = [store.lease(f"worker {i % 2}", version, 3600.0) for i in range(4)]
        assert sorted(lease.shard for lease in leases) == [0, 1, 2, 3]
        assert store.lease("late", version, 3600.0) is None
        for lease in leases:
            store.write([message(lease.shard, 1.0, version, store=store, lease=lease.token)])
        assert store.lease("idle", version, 3600.0) is None


def test_a_lease_that_ran_out_goes_to_another(store):
    """And none does before: three are not given away while the fourth is waited for."""
    kept = [store.lease("working", 1, 3600.0).shard for _ in range(3)]
    begun = store.now()
    lost = store.lease("hanging", 1, 0.4)
    end = time.monotonic() + HANGING_SECONDS
    while (taken := store.lease("other", 1, 3600.0)) is None and time.monotonic() < end:
        time.sleep(0.01)
    # A server counts leases in milliseconds.
    assert store.now() >= begun + 0.4 - 0.002
    assert taken.shard == lost.shard and sorted([*kept, taken.shard]) == [0, 1, 2, 3]
    # The hanging one wakes up: its scores are welcome, the other's lease stays.
    assert store.write([message(lost.shard, store=store, lease=lost.token)]) > 0
    assert store.lease("third", 1, 3600.0) is None


def test_the_oldest_shard_comes_first(store):
    for version, shard in ((3, 0), (1, 1), (2, 2), (4, 3)):
        while (lease := store.lease("w", version, 3600.0)) and lease.shard != shard:
            store.write([message(lease.shard, 1.0, version, store=store, lease=lease.token)])
        if lease:
            store.write([message(shard, 1.0, version, store=store, lease=lease.token)])
    scored = {shard: int(store.read([shard])[0]["version"][0]) for shard in range(4)}
    order = [store.lease("w", 9, 3600.0).shard for _ in range(4)]
    assert [scored[shard] for shard in order] == sorted(scored.values())


# Others ---------------------------------------------------------------------------------------


def test_reports_are_seen_by_all(opened, store):
    store.report("worker 1", {"scored": 5.0})
    other = opened()
    other.join(DESCRIPTION)
    before = store.now()
    other.report("worker 2", {})
    after = store.now()
    reports = other.reports()
    assert reports["worker 1"]["scored"] == 5.0 and set(reports) == {"worker 1", "worker 2"}
    assert before - 1e-3 <= reports["worker 2"]["time"] <= after + 1e-3


def test_urls_that_name_no_store_are_refused():
    for url in ("http://host", "redis", "", "memory:"):
        with pytest.raises(ValueError, match="^worker: .*memory://, redis://"):
            open_store(url, role="worker")
    with pytest.raises(ValueError, match="name"):
        open_store("memory://", "a*b")
    assert open_store("memory://").address == open_store("memory://").address


def test_a_lease_is_renewed_by_its_owner_alone(store):
    lease = store.lease("a", 1, 1e6)
    assert store.renew(lease, 1e6)
    assert not store.renew(lease._replace(token="another"), 1e6)
    size = len(store.layout.examples(lease.shard))
    scores = np.ones(size, np.float32)
    store.write([Message(lease.shard, scores, 1, store.now(), lease=lease.token)])
    assert not store.renew(lease, 1e6), "it was given back"


def test_a_lease_that_ran_out_and_is_anothers_is_not_renewed(store):
    lease = store.lease("a", 1, 0.001)
    time.sleep(0.01)
    others = [store.lease("b", 1, 1e6) for _ in range(store.layout.shards)]
    assert lease.shard in {one.shard for one in others}
    assert not store.renew(lease, 1e6)


# What changed ---------------------------------------------------------------------------------


def some(shard, offsets, value, version, store):
    scores = np.full(len(offsets), value, np.float32)
    return Message(shard, scores, version, store.now(), np.array(offsets))


def test_single_records_come_without_their_shards(store):
    store.write([message(0, store=store)])
    mark = store.changes().mark
    store.write([some(1, [3, 7], 2.0, 1, store), some(2, [0], 3.0, 1, store)])
    store.write([message(3, store=store)])
    found = store.changes(mark)
    assert found.shards == [3]
    assert sorted(zip(found.records["shard"], found.records["offset"], found.records["score"])) == [
        *((1, 3, 2.0), (1, 7, 2.0), (2, 0, 3.0))
    ]
    later = store.changes(found.mark)
    assert later.shards == [] and len(later.records) == 0
    # Who knows nothing reads all.
    assert store.changes().shards == [0, 1, 2, 3] and len(store.changes().records) == 0


def test_records_that_are_most_of_a_shard_come_with_it(store):
    store.write([message(0, store=store)])
    mark = store.changes().mark
    store.write([some(1, range(SHARD - 4), 2.0, 1, store)])
    found = store.changes(mark)
    assert found.shards == [1] and len(found.records) == 0


def test_whoever_comes_too_late_for_single_records_reads_the_shards(store, monkeypatch):
    monkeypatch.setattr(records, "LOGGED_BYTES", 5 * records.CHANGE.itemsize)
    store.write([message(0, store=store)])
    mark = store.changes().mark
    for offset in range(4):
        store.write([some(1, [offset, offset + 10], 2.0, 1, store)])
    late = store.changes(mark)
    assert late.shards == [1] and len(late.records) == 0
    store.write([some(2, [5], 2.0, 1, store)])
    assert store.changes(late.mark).records["shard"].tolist() == [2]


@pytest.mark.parametrize("logged_bytes", [2**20, 300])
def test_who_follows_the_changes_knows_what_is_there(store, monkeypatch, logged_bytes):
    """A mirror that takes them up one after another, and one that reads all at the end."""
    monkeypatch.setattr(records, "LOGGED_BYTES", logged_bytes)
    rng = np.random.default_rng(0)
    mark, following = Mark(), mirror.Mirror(N, mirror.Staleness())
    for turn in range(60):
        messages = []
        for _ in range(rng.integers(1, 5)):
            shard = int(rng.integers(store.layout.shards))
            size = len(store.layout.examples(shard))
            count = size if rng.random() < 0.1 else int(rng.integers(1, min(6, size + 1)))
            scores = rng.random(count).astype(np.float32)
            offsets = None if count == size else rng.permutation(size)[:count]
            version = int(rng.integers(1, 4 + turn))
            messages.append(Message(shard, scores, version, 1e9 + turn, offsets))
        store.write(messages)
        if rng.random() < 0.7:
            mark = taken_up(store, mark, following)
    taken_up(store, mark, following)
    whole = mirror.Mirror(N, mirror.Staleness())
    taken_up(store, Mark(), whole)
    for name in ("scores", "versions", "times"):
        mine, theirs = getattr(following.known(), name), getattr(whole.known(), name)
        np.testing.assert_array_equal(mine, theirs)
    assert (whole.known().versions > 0).any()


def taken_up(store, mark, into):
    changes, layout, created = store.changes(mark), store.layout, store.run.created
    for shard, found in zip(changes.shards, store.read(changes.shards)):
        into.merge(layout.examples(shard).start, found, created)
    into.merge_some(layout.examples_of(changes.records), changes.records, created)
    return changes.mark
