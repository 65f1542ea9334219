"""Random uses and faults of a store against what must always hold: what is served is right, and the books balance."""

import errno
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from store_world import OTHER_MODEL, disk_tier, document, expected_kv, open_store, segment, write

from vllm_redknot.reuse.faults import SegmentError
from vllm_redknot.reuse.lease import Lease
from vllm_redknot.reuse.scope import content_id

DOCUMENTS = [document(seed, 40 + 7 * seed) for seed in range(14)]
MEMORY_BYTES = sum(segment(tokens).nbytes for tokens in DOCUMENTS) // 6
DISK_BYTES = 3 * MEMORY_BYTES
EVENTS = {
    *("held", "hit", "miss", "put", "no room", "reopened", "killed", "found", "flipped", "cut", "unlinked"),
    *("swapped", "full disk", "other process", "other model"),
}


class Session:
    """One store after another on a directory, and the leases of the current one."""

    def __init__(self, folder: Path, generator: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.generator = generator
        self.monkeypatch = monkeypatch
        self.events: Counter[str] = Counter()
        self.leases: list[tuple[Sequence[int], Lease]] = []
        self.requests = 0
        self.store = open_store(folder, MEMORY_BYTES, DISK_BYTES)

    def step(self) -> None:
        uses = (
            [self.put] * 4 + [self.acquire] * 6 + [self.release] * 3 + [self.find, self.flush, self.refresh]
        )
        faults = [
            self.flip,
            self.cut,
            self.unlink,
            self.swap,
            self.full,
            self.other_process,
            self.other_model,
        ]
        self.generator.choice(uses * 2 + faults + [self.reopen, self.kill])()
        self.store.check_integrity()
        counters = self.store.counters()
        assert counters.memory_bytes <= MEMORY_BYTES
        assert counters.hits_memory + counters.hits_disk + counters.misses.total() == self.requests
        for tokens, lease in self.leases:
            assert torch.equal(lease.segment.kv, expected_kv(tokens))

    def put(self) -> None:
        self.events["put" if self.store.put(segment(self.tokens())) else "no room"] += 1

    def acquire(self) -> None:
        tokens = self.tokens()
        held = any(other is tokens for other, _ in self.leases)
        lease = self.store.acquire(content_id(tokens))
        self.requests += 1
        self.events["miss" if lease is None else "hit"] += 1
        if lease is None:
            assert not held, "a leased segment was evicted"
            return
        assert lease.segment.tokens.tolist() == tokens
        assert torch.equal(lease.segment.kv, expected_kv(tokens))
        if self.generator.random() < 0.5:
            self.leases.append((tokens, lease))
            self.events["held"] += 1
        else:
            lease.release()

    def release(self) -> None:
        if self.leases:
            self.leases.pop(self.generator.randrange(len(self.leases)))[1].release()

    def find(self) -> None:
        prompt = [1, *self.tokens(), 2, *self.tokens()[1:], 3]
        for match in self.store.find(prompt):
            (tokens,) = (known for known in DOCUMENTS if content_id(known) == match.content)
            first = match.segment_begin
            assert prompt[match.begin : match.end] == tokens[first : first + match.num_tokens]
            self.events["found"] += 1

    def flush(self) -> None:
        assert self.store.flush(60.0)
        assert sum(path.stat().st_size for path in self.files()) <= DISK_BYTES

    def refresh(self) -> None:
        assert self.store.refresh(60.0)

    def reopen(self) -> None:
        self.store.close(60.0)
        self.kill()
        self.events["reopened"] += 1

    def kill(self) -> None:
        """Leave a store as a killed process does, what it was writing included."""
        self.store.flush(60.0)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        (self.folder / ".writing-1").write_bytes(os.urandom(self.generator.randrange(3000)))
        self.leases.clear()
        self.requests = 0
        self.store = open_store(self.folder, MEMORY_BYTES, DISK_BYTES)
        self.events["killed"] += 1

    def flip(self) -> None:
        for path in self.some_file():
            content = bytearray(path.read_bytes())
            content[self.generator.randrange(len(content))] ^= 1 << self.generator.randrange(8)
            path.write_bytes(content)
            self.events["flipped"] += 1

    def cut(self) -> None:
        for path in self.some_file():
            os.truncate(path, self.generator.randrange(path.stat().st_size))
            self.events["cut"] += 1

    def unlink(self) -> None:
        for path in self.some_file():
            path.unlink()
            self.events["unlinked"] += 1

    def swap(self) -> None:
        """Two segments under each other's names."""
        # A write under way would take the file that is away for room.
        assert self.store.flush(60.0)
        files = self.files()
        if len(files) >= 2:
            one, other = self.generator.sample(files, 2)
            one.rename(self.folder / "x")
            other.rename(one)
            (self.folder / "x").rename(other)
            self.events["swapped"] += 1

    def full(self) -> None:
        """No space for what is written in this step."""

        def fails(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        assert self.store.flush(60.0)
        before = self.store.counters().write_failures.total()
        with self.monkeypatch.context() as patch:
            patch.setattr(os, "write", fails)
            self.put()
            assert self.store.flush(60.0)
        self.events["full disk"] += self.store.counters().write_failures.total() > before

    def other_process(self) -> None:
        try:
            write(disk_tier(self.folder, DISK_BYTES), self.tokens())
        except SegmentError as error:
            pytest.fail(str(error))
        self.events["other process"] += 1

    def other_model(self) -> None:
        write(disk_tier(self.folder, DISK_BYTES, OTHER_MODEL), self.tokens())
        self.events["other model"] += 1

    def tokens(self) -> list[int]:
        return self.generator.choice(DOCUMENTS)

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def some_file(self) -> list[Path]:
        # A write under way may evict the file meanwhile.
        assert self.store.flush(60.0)
        files = self.files()
        return [self.generator.choice(files)] if files else []


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_what_is_served_is_right_and_the_books_balance(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tmp_path / "store", random.Random(seed), monkeypatch)
    for _ in range(250):
        session.step()
    while session.leases:
        session.release()
    session.flush()
    counters = session.store.counters()
    assert counters.leases == 0
    session.store.check_integrity()
    session.store.close()
    # What is left on disk is sound or known to be damaged: a store that puts all again serves all it keeps.
    last = open_store(tmp_path / "store", 2**22, 2**22)
    for tokens in DOCUMENTS:
        last.put(segment(tokens))
        lease = last.acquire(content_id(tokens))
        assert lease is not None
        lease.release()
    last.close()
    rare = EVENTS - session.events.keys()
    assert not rare, f"seed {seed} never met {rare}"
