"""Readers in other processes against a writer that overwrites, deletes, evicts and is killed.

Every value carries its key and the number of the change that stored it. Beside the store lies a
ledger, one word a key: when a change has returned, the writer puts the change's number there. A
read that began afterwards may miss, but never see an older number: that would be a superseded or
deleted value, and a value whose key or filling is wrong would be a tear.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bi_performance.reader import DETACHED, MISS, StoreReader
from bi_performance_wire import layout as L
from bi_performanced.cache.clients import boot_clock, sealed_memory
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.recovery import recover
from bi_performanced.cache.store import Store

KEYS = 2000
RESTARTED = KEYS + 1
LEDGER_WORDS = KEYS + 2
"""The ledger: a word a key, the last change's number, whether all restarts were made."""
DELETED = 1 << 62
_fork = multiprocessing.get_context("fork")


class Result(NamedTuple):
    """What the readers saw, all together."""

    reads: int
    hits: int
    misses: int
    detached: int
    torn: int
    wrong: list[str]
    changes: int
    restarts: int


def key_of(n: int) -> bytes:
    return b"soak:%d" % n


def value_of(n: int, change: int, size: int) -> str:
    """Key, number, and a filling that depends on both."""
    head = f"{n}:{change}:"
    return head + (f"{change % 9973:04d}" * (size // 4 + 1))[:size]


def is_sound(value: object, n: int) -> int | None:
    """The number in a value of key n, or None when it is not one that was ever written."""
    if not isinstance(value, str):
        return None
    head, change, filling = value.split(":", 2)
    if head != str(n) or value != value_of(n, int(change), len(filling)):
        return None
    return int(change)


def open_store(path: Path) -> Store:
    """As a daemon that starts does it: adopt, cut off earlier readers, recover, serve."""
    try:
        memory = Memory.adopt(path)
    except FileNotFoundError:
        made = path.with_suffix(".made")
        made.unlink(missing_ok=True)
        memory = Memory.create(made, KEYS // 2, 2 << 20, epoch=1)
        memory.words[L.W_POLICY] = 1  # S3-FIFO, which uses both rings
        memory.close()
        made.rename(path)
        memory = Memory.adopt(path)
    for word in range(L.ALIVE_WORDS):
        memory.words[L.W_ALIVE + word] = 0
    memory.words[L.W_EPOCH] += 1
    store = Store(memory)
    recover(store, boot_clock())
    return store


def write(path: Path, ledger_path: Path, seed: int, sabotage: str | None) -> None:
    """Change entries until killed."""
    store = open_store(path)
    words, ledger = store.memory.words, _ledger(ledger_path)
    rng = random.Random(seed)
    epoch = words[L.W_EPOCH]
    change = ledger[KEYS]
    while True:
        now = boot_clock()
        words[L.W_ALIVE + epoch % L.ALIVE_WORDS] = now + 1_000_000_000
        for _ in range(50):
            change += 1
            # The number is taken before it is used, so that a killed writer's is never reused.
            ledger[KEYS] = change
            n = min(KEYS - 1, int(rng.paretovariate(0.4)))
            key = key_of(n)
            kind = rng.random()
            if kind < 0.8:
                text = value_of(n, change, rng.choice((10, 200, 1000, 4000))).encode()
                payload = b"\0" + b"\xda" + len(text).to_bytes(2, "big") + text
                if sabotage == "keep-old":
                    # A writer that forgets to publish: readers go on seeing the old value.
                    slot = store.find(key, store.digest(key))
                    old = store.index.cells[slot]
                    store.put(key, payload, expires=L.NEVER, now=now)
                    if slot >= 0 and store.find(key, store.digest(key)) == slot:
                        place = old & L.PLACE
                        store.memory.bytes[store.address(place) + L.STATE_AT] = L.LIVE
                        store.index.cells[slot] = old
                else:
                    store.put(key, payload, expires=L.NEVER, now=now)
            elif kind < 0.999:
                if sabotage == "no-delete":
                    pass
                else:
                    store.delete(key, now)
            else:
                store.clear()
                for other in range(KEYS):
                    ledger[other] = change
            ledger[n] = change


def read(path: Path, ledger_path: Path, seed: int, count: int, out: Connection) -> None:
    ledger = _ledger(ledger_path)
    rng = random.Random(seed)
    order = [min(KEYS - 1, int(rng.paretovariate(0.4))) for _ in range(20_000)]
    keys = [key_of(n) for n in range(KEYS)]
    wrong: list[str] = []
    reads = hits = misses = detached = torn = 0
    reader = _attach(path)
    while reads < count or not ledger[RESTARTED]:
        for n in order:
            floor = ledger[n]
            value = reader.read(keys[n])
            if value is MISS:
                misses += 1
            elif value is DETACHED:
                detached += 1
                torn += reader.page[L.P_TORN]
                reader.close()
                reader = _attach(path)
            else:
                hits += 1
                change = is_sound(value, n)
                if change is None:
                    wrong.append(f"key {n}: torn value {value!r:.80}")
                elif change < floor:
                    wrong.append(f"key {n}: change {change} was read after {floor}")
        reads += len(order)
        if len(wrong) > 20:
            break
    out.send((reads, hits, misses, detached, torn + reader.page[L.P_TORN], wrong[:20]))


def _attach(path: Path) -> StoreReader:
    while True:
        try:
            store = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            time.sleep(0.001)
            continue
        size = os.fstat(store).st_size
        with mmap.mmap(store, size, prot=mmap.PROT_READ) as found:
            words = memoryview(found)[: L.PAGE].cast("Q")
            epoch, slots = words[L.W_EPOCH], words[L.W_SLOTS]
            alive = words[L.W_ALIVE + epoch % L.ALIVE_WORDS] > boot_clock()
            words.release()
        if alive:
            page = sealed_memory("page", L.PAGE)
            return StoreReader(store, page, sealed_memory("touches", slots + L.GUARD_SLOTS), epoch)
        os.close(store)
        time.sleep(0.001)


def _ledger(path: Path) -> memoryview[int]:
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * LEDGER_WORDS)).cast("Q")


def soak(
    folder: Path,
    *,
    reads: int,
    readers: int,
    restarts: int,
    seed: int = 1,
    sabotage: str | None = None,
) -> Result:
    """Run readers until they have made `reads` reads in all, killing the writer meanwhile.

    The writer is killed -9 and started again `restarts` times, spread over the readers' work.
    """
    path, ledger_path = folder / "store", folder / "ledger"
    ledger_path.write_bytes(bytes(8 * LEDGER_WORDS))
    ledger = _ledger(ledger_path)
    rng = random.Random(seed)

    def start_writer() -> multiprocessing.process.BaseProcess:
        process = _fork.Process(
            target=write, args=(path, ledger_path, rng.randrange(1 << 30), sabotage), daemon=True
        )
        process.start()
        return process

    writer = start_writer()
    children, pipes = [], []
    for n in range(readers):
        ours, theirs = _fork.Pipe(duplex=False)
        child = _fork.Process(
            target=read, args=(path, ledger_path, seed + n, reads // readers, theirs), daemon=True
        )
        child.start()
        theirs.close()
        children.append(child)
        pipes.append(ours)
    done = restarted = 0
    results: list[tuple[int, int, int, int, int, list[str]]] = []
    try:
        while len(results) < readers:
            for pipe in list(pipes):
                if pipe.poll(rng.uniform(0.01, 0.2) if restarted < restarts else 1.0):
                    results.append(pipe.recv())
                    pipes.remove(pipe)
            ledger[RESTARTED] = restarted == restarts
            if restarted < restarts and pipes and ledger[KEYS] > done:
                done = ledger[KEYS]
                assert writer.pid is not None
                os.kill(writer.pid, signal.SIGKILL)
                writer.join()
                writer = start_writer()
                restarted += 1
            if not writer.is_alive():
                raise RuntimeError("the writer ended by itself")
    finally:
        writer.kill()
        writer.join()
        for child in children:
            child.kill()
            child.join()
    made, hits, misses, detached, torn = (sum(part[n] for part in results) for n in range(5))  # type: ignore[misc]  # numbers up to the sixth
    wrong = [text for part in results for text in part[5]]
    return Result(made, hits, misses, detached, torn, wrong, ledger[KEYS], restarted)
