"""The parts of the Redis level that do no I/O: what they decide."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_performanced.cache.patterns import matcher
from bi_performanced.remote import scripts
from bi_performanced.remote.address import NotUsable, parse
from bi_performanced.remote.cursor import Cursor, Found, decide
from bi_performanced.remote.envelope import NEVER, Version
from bi_performanced.remote.flights import MOST_AHEAD, Ahead, Flights
from bi_performanced.remote.marks import MAX_PATTERNS, Cleared, Marks
from bi_performanced.remote.names import CLUSTER_TAGS, Names, slot
from bi_performanced.remote.predicate import Predicate
from bi_performanced.remote.queue import BATCH_WRITES, Queue
from bi_performanced.remote.records import read_record
from support.remotes import entry

CURSOR = Cursor("here", "epoch", "replid", Version(100, 5))
FOUND = Found("epoch", "replid", Version(50, 0), Version(200, 0), untrimmed=False, present=True)


# ── the log


@pytest.mark.parametrize(
    ("cursor", "changes", "reason"),
    [
        (CURSOR, {}, None),
        (CURSOR, {"last": Version(100, 5), "first": NEVER, "present": False}, None),
        (CURSOR, {"untrimmed": True, "first": Version(150, 0), "present": False}, None),
        (CURSOR._replace(last=NEVER), {"untrimmed": True, "present": False}, None),
        (None, {}, "nothing is known"),
        (CURSOR._replace(target="there"), {}, "another Redis is configured"),
        (CURSOR, {"epoch": "other"}, "lost its data"),
        (CURSOR._replace(epoch=""), {"epoch": ""}, "lost its data"),
        (CURSOR, {"replication": "other"}, "restarted or failed over"),
        (CURSOR, {"last": Version(100, 4)}, "gone back"),
        (CURSOR, {"last": NEVER, "first": NEVER, "untrimmed": True}, "gone back"),
        (CURSOR, {"first": Version(100, 6)}, "more was missed"),
        (CURSOR, {"present": False}, "another one"),
    ],
)
def test_the_log_is_gone_on_with_only_where_nothing_can_be_missing(
    cursor: Cursor | None, changes: dict[str, object], reason: str | None
) -> None:
    said = decide(cursor, "here", FOUND._replace(**changes))  # type: ignore[arg-type]
    assert said is None if reason is None else said is not None and reason in said


def test_records_are_read_and_unknown_ones_are_told_apart() -> None:
    clear = Predicate(pattern="a*")
    record = read_record(
        [b"12-3", [b"o", b"me", b"k", b"one", b"k", b"two", b"p", clear.pack(), b"l", b"three"]]
    )
    assert record.understood and record.id == Version(12, 3) and record.origin == b"me"
    assert (record.keys, record.predicates, record.released) == (
        [b"one", b"two"],
        [clear],
        [b"three"],
    )
    assert not read_record([b"12-3", [b"o", b"me", b"q", b"?"]]).understood
    assert not read_record([b"12-3", [b"p", b"\xc1"]]).understood


# What version 1 writes into the log; every later version must go on reading it.
@pytest.mark.parametrize(
    ("predicate", "packed"),
    [
        (Predicate(), "9401c090c2"),
        (Predicate(pattern="shop:*", soft=True), "9401a673686f703a2a90c3"),
        (Predicate(tags=(b"a", b"\xff")), "9401c092c40161c401ffc2"),
        (Predicate(pattern="\udcff"), "9401a3edb3bf90c2"),
    ],
)
def test_the_predicates_of_the_first_format_are_read(predicate: Predicate, packed: str) -> None:
    assert predicate.pack().hex() == packed
    assert Predicate.unpack(bytes.fromhex(packed)) == predicate


@given(st.binary(max_size=60))
def test_no_bytes_make_the_reading_of_a_predicate_fail(data: bytes) -> None:
    Predicate.unpack(data)


# ── clears


def version_of(version: int) -> Version:
    return Version(version, 0)


@pytest.mark.parametrize(
    ("predicate", "key", "tags", "concerned"),
    [
        (Predicate(), b"a", (), True),
        (Predicate(pattern="a*"), b"ab", (), True),
        (Predicate(pattern="a*"), b"ba", (b"a",), False),
        (Predicate(tags=(b"x", b"y")), b"a", (b"y", b"z"), True),
        (Predicate(tags=(b"x",)), b"x", (b"z",), False),
    ],
)
def test_a_clear_concerns_what_it_names_and_is_older(
    predicate: Predicate, key: bytes, tags: tuple[bytes, ...], concerned: bool
) -> None:
    for soft in (False, True):
        marks = Marks(matcher)
        marks.note(version_of(10), dataclasses.replace(predicate, soft=soft))
        for version, older in ((9, True), (10, False), (11, False)):
            envelope = entry(b"", tags=tags, version=version_of(version))
            cleared = marks.judge(key, envelope)
            found = cleared.soft if soft else cleared.hard
            assert (found > envelope.version) is (concerned and older)


def test_what_the_log_says_of_a_tag_is_not_lost_to_an_older_answer() -> None:
    marks = Marks(matcher)
    assert marks.unknown([b"t"]) == [b"t"]
    # Asked before the clear, answered after the news of it.
    marks.note(version_of(10), Predicate(tags=(b"t",)))
    marks.learn(b"t", Cleared(version_of(3), version_of(4)))
    assert marks.unknown([b"t"]) == []
    assert marks.judge(b"k", entry(b"", tags=(b"t",))) == Cleared(version_of(10), version_of(4))


def test_more_patterns_than_are_kept_clear_what_is_older_than_those_kept() -> None:
    marks = Marks(matcher)
    for at in range(1, MAX_PATTERNS + 3):
        marks.note(version_of(at), Predicate(pattern=f"p{at}:*"))
    assert marks.judge(b"p1:x", entry(b"", version=NEVER)).hard == version_of(2)
    assert marks.judge(b"q", entry(b"", version=version_of(5))).hard < version_of(5)
    marks.swept(version_of(50))
    assert marks.judge(b"p50:x", entry(b"", version=version_of(5))).hard < version_of(5)


def test_a_pattern_that_cannot_be_read_clears_everything() -> None:
    marks = Marks(matcher)
    marks.note(version_of(7), Predicate(pattern="["))
    assert marks.judge(b"k", entry(b"")).hard == version_of(7)


# ── fetches


def test_news_of_a_key_reach_only_its_own_fetches_and_only_while_they_last() -> None:
    flights = Flights()
    flights.touched(b"a")
    with flights.noted([b"a", b"b"]) as one, flights.noted([b"b", b"b"]) as two:
        before = one.mark()
        flights.changed(b"a", version_of(10))
        assert one.raced(b"a", version_of(9), before)
        assert not one.raced(b"a", version_of(10), before)
        assert not one.raced(b"b", NEVER, before) and not two.raced(b"b", NEVER, before)
        flights.touched(b"b")
        assert one.raced(b"b", version_of(99), before) and two.raced(b"b", version_of(99), before)
        # Asked for again, it is as new as that.
        assert not one.raced(b"b", version_of(99), one.mark())
        flights.cleared(version_of(20))
        assert one.raced(b"a", version_of(19), before)
        assert not one.raced(b"a", version_of(20), before)
        flights.touch_all()
        assert one.raced(b"a", version_of(99), before)
        assert not one.raced(b"a", version_of(99), one.mark())
    with flights.noted([b"a"]) as three:
        assert not three.raced(b"a", NEVER, three.mark())


# ── the queue

WRITES = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "clear", "take"]), st.integers(0, 4)), max_size=40
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "ask", "install", "read"]), st.sampled_from([b"a", b"b"])
        ),
        max_size=80,
    )
)
def test_news_throw_away_what_is_older_and_nothing_else(steps: list[tuple[str, bytes]]) -> None:
    """As the cache does it: an answer is installed unless news of its key came since it was asked
    for, or another entry."""
    ahead = Ahead()
    log: list[bytes] = []
    newest: dict[bytes, Version] = {}
    here: dict[bytes, tuple[Version, int]] = {}
    asked: list[tuple[bytes, Version, Version, int]] = []
    told: dict[bytes, Version] = {}
    read = 0
    end = [("install", b"")] * len(steps) + [("read", b"")] * len(steps)
    for clock, (step, key) in enumerate([*steps, *end]):
        if step == "write":
            log.append(key)
            newest[key] = Version(len(log), 0)
        elif step == "ask" and key in newest:
            asked.append((key, newest[key], Version(len(log), 0), clock))
        elif step == "install" and asked:
            key, version, seen, began = asked.pop(0)
            raced = told.get(key, NEVER) > seen or ahead.has_newer(key, version)
            if not raced and (key not in here or here[key][1] < began):
                here[key] = version, clock
                ahead.note(key, version, Version(read, 0))
        elif step == "read" and read < len(log):
            key, read = log[read], read + 1
            told[key] = Version(read, 0)
            if not ahead.had(key, told[key]):
                here.pop(key, None)
        for key, (version, _) in here.items():
            assert version >= told.get(key, NEVER), "nothing that is known to be old"
    assert read == len(log) and len(ahead) == 0
    assert all(version == newest[key] for key, (version, _) in here.items())


def test_no_more_is_known_of_what_is_ahead_than_has_room() -> None:
    ahead = Ahead()
    for at in range(MOST_AHEAD + 10):
        ahead.note(b"%d" % at, Version(2, 0), Version(1, 0))
    assert len(ahead) == MOST_AHEAD
    assert ahead.had(b"0", Version(2, 0)) and not ahead.had(b"%d" % MOST_AHEAD, Version(2, 0))
    ahead.forget()
    assert not ahead.had(b"1", Version(2, 0))


@given(WRITES)
def test_the_queue_sends_the_latest_of_each_key_in_order_around_clears(
    steps: list[tuple[str, int]],
) -> None:
    """Carried out one after the other, what is taken leaves what the calls would have left."""
    queue = Queue()
    wanted: dict[bytes, int] = {}
    sent: dict[bytes, int] = {}
    numbers: list[int] = []

    def take() -> None:
        batch = queue.take()
        if batch is None:
            return
        numbers.append(batch.last)
        if batch.clear is not None:
            sent.clear()
        for key, write in batch.writes.items():
            sent.pop(key, None)
            if write.envelope is not None:
                sent[key] = write.envelope.created
        queue.done()

    for at, (what, key_at) in enumerate(steps):
        key = b"%d" % key_at
        if what == "put":
            queue.add(key, dataclasses.replace(entry(b"v"), created=at))
            wanted[key] = at
        elif what == "delete":
            queue.add(key, None)
            wanted.pop(key, None)
        elif what == "clear":
            queue.clear(Predicate())
            wanted.clear()
        else:
            take()
        write = queue.find(key)
        if write is not None and not queue.cleared_since(key, write):
            assert (write.envelope and write.envelope.created) == wanted.get(key)
    while len(queue):
        take()
    assert sent == wanted
    assert numbers == sorted(numbers) and (not numbers or numbers[-1] == queue.accepted)


def test_what_is_taken_is_bounded_and_kept_until_it_is_done() -> None:
    queue = Queue()
    for at in range(1000):
        queue.add(b"%d" % at, entry(b"v"))
    batch = queue.take()
    assert batch is not None and len(batch.writes) == BATCH_WRITES
    assert queue.find(b"0") is not None and len(queue) == 1000
    keys, _ = queue.take_all()
    assert len(keys) == 1000 and len(queue) == 0 and queue.find(b"0") is None


def test_a_full_queue_has_no_room_and_a_coalesced_write_takes_none() -> None:
    queue = Queue(max_writes=3, max_bytes=2000)
    for _ in range(5):
        queue.add(b"k", entry(b"v" * 500))
    assert queue.room(b"l", entry(b"v" * 500))
    assert not queue.room(b"l", entry(b"v" * 1500))
    queue.add(b"l", None)
    queue.add(b"m", None)
    assert not queue.room(b"n", entry(b""))


# ── names and addresses


@pytest.mark.parametrize("prefix", [b"bi:perf:", b"abc", b"x!", b"a"])
@pytest.mark.parametrize("tag", [b"", *CLUSTER_TAGS])
def test_our_own_keys_are_not_under_the_prefix(prefix: bytes, tag: bytes) -> None:
    names = Names(prefix, tag)
    for own in (names.log, names.state, names.sweeps, names.fence, names.lock(b"k")):
        assert not own.startswith(prefix) and tag in own
    assert names.key(names.value(b"\x00k")) == b"\x00k"
    assert names.key(b"elsewhere") is None


def test_the_shards_of_a_cluster_are_spread_over_its_slots() -> None:
    # As CLUSTER KEYSLOT says.
    assert slot(b"{123456789}") == 12739
    assert [slot(tag) * 8 // 16384 for tag in CLUSTER_TAGS] == list(range(8))


@pytest.mark.parametrize(
    ("url", "shown", "options"),
    [
        ("redis://h", "redis://h:6379", {"host": "h", "port": 6379}),
        ("redis://u:p%40w@h:1/2", "redis://h:1/2", {"username": "u", "password": "p@w", "db": 2}),
        ("rediss://:pw@h/?ssl_ca_certs=/ca", "rediss://h:6379", {"ssl_ca_certs": "/ca"}),
        ("unix:///run/r.sock?db=3", "unix:///run/r.sock", {"path": "/run/r.sock", "db": 3}),
        ("redis://[::1]:7", "redis://::1:7", {"host": "::1", "port": 7}),
        (
            "redis+sentinel://u:pw@a:1,b/main/4",
            "redis+sentinel://a:1,b:26379/main/4",
            {"username": "u", "db": 4},
        ),
        ("redis+cluster://a,b:7", "redis+cluster://a:6379,b:7", {}),
    ],
)
def test_addresses_are_taken_apart_and_shown_without_credentials(
    url: str, shown: str, options: dict[str, object]
) -> None:
    address = parse(url)
    assert address.shown == shown
    assert options.items() <= address.options.items()
    assert address.tls is url.startswith("rediss")


@pytest.mark.parametrize(
    "url",
    [
        "http://secret@h",
        "redis://u:secret@h:port",
        "redis://u:secret@h/name",
        "redis://u:secret@h?what=secret",
        "redis+cluster://u:secret@h/3",
    ],
)
def test_an_address_that_cannot_be_read_is_not_shown(url: str) -> None:
    with pytest.raises(NotUsable, match=r"cache\.redis_url") as error:
        parse(url)
    assert "secret" not in str(error.value)


def test_a_batch_is_one_transaction_however_it_is_made_up() -> None:
    names = Names(b"p:")
    for values, gone in ((1, 0), (0, 1), (3, 2)):
        commands = scripts.write(
            names, b"me", [(b"v%d" % at, b"data", 5) for at in range(values)], [b"d"] * gone
        )
        assert commands[0] == ("MULTI",) and commands[-1] == ("EXEC",)
        assert sum(command[0] == "EVAL" for command in commands) == 1
