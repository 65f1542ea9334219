"""A directory of segments under crashes, several processes, budgets and permissions. Real signals, real errors."""

import os
import random
import resource
import signal
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from store_world import OTHER_MODEL, SCOPE, disk_tier, document, expected_kv, only_file, write

from vllm_redknot.reuse import folder as folder_module
from vllm_redknot.reuse.disk import DiskTier, Written
from vllm_redknot.reuse.faults import Miss, SegmentError
from vllm_redknot.reuse.folder import StoreFolder
from vllm_redknot.reuse.loads import read_segment
from vllm_redknot.reuse.scope import content_id, token_bytes
from vllm_redknot.reuse.segment import byte_view
from vllm_redknot.reuse.upkeep import inspect_store

NOBODY = 65534
SIZE = 4096
"""More than the file of a document of 64 tokens."""


def start_child(action: Callable[[], object]) -> int:
    """Run in a forked process, which must not use torch; its id."""
    child = os.fork()
    if not child:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return child


def in_child(*actions: Callable[[], object]) -> int:
    """Run one after the other in a forked process; its exit status, negative for the signal that killed it."""
    _, status = os.waitpid(start_child(lambda: [action() for action in actions]), 0)
    return os.waitstatus_to_exitcode(status)


def prepared(disk: DiskTier, tokens: list[int], leased: Collection[str] = ()) -> Callable[[], Written]:
    """A write of a document without torch, for a forked process."""
    parts = (token_bytes(tokens), content_id(tokens), byte_view(expected_kv(tokens)))
    return lambda: disk.write(*parts, leased)


def reason_of(attempt: Callable[[], object]) -> tuple[Miss, str]:
    """The reason and message of the fault that an attempt must meet."""
    with pytest.raises(SegmentError) as fault:
        attempt()
    return fault.value.reason, str(fault.value)


def check_sound(folder: Path, max_bytes: int) -> int:
    """All files are whole and right, and within the budget; how many there are."""
    found = inspect_store(folder, whole=True)
    assert [one.problem for one in found if one.reason] == []
    assert sum(one.file.nbytes for one in found) <= max_bytes
    for one in found:
        assert one.front is not None
        tokens = one.front.token_ids()
        read = read_segment(disk_tier(folder, scope=one.front.scope), one.file.content)
        assert torch.equal(read.kv, expected_kv(tokens))
    return len(found)


def kill_before_call(number: int) -> Callable[[], None]:
    """Replace the system calls of a write: the process kills itself before the `number`-th, or halfway into a write."""
    calls = 0

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                if name == "write":
                    call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return replacement

    def install() -> None:
        for name in ("open", "write", "fsync", "close", "utime"):
            setattr(os, name, counted(name, getattr(os, name)))
        for name in ("rename", "unlink", "mkdir", "chmod"):
            setattr(Path, name, counted(name, getattr(Path, name)))
        folder_module.fcntl.flock = counted("flock", folder_module.fcntl.flock)

    return install


def test_a_process_killed_before_any_system_call_of_a_write_leaves_a_sound_store(tmp_path: Path) -> None:
    budget = 3 * SIZE
    written, killed = 0, 0
    for number in range(1, 100):
        folder = tmp_path / f"{number}"
        disk = disk_tier(folder, budget)
        if number % 2:
            for seed in range(3):
                write(disk, document(seed))
        before = check_sound(folder, budget)
        action, install = prepared(disk, document(9)), kill_before_call(number)
        status = in_child(install, action)
        assert status in (0, -signal.SIGKILL)
        there = content_id(document(9)) in disk.contents()
        assert check_sound(folder, budget) >= min(before, 2)
        # The next writer finds the lock free and clears away what was left.
        write(disk, document(10))
        assert {path.suffix for path in folder.iterdir()} == {".safetensors", ""}
        assert check_sound(folder, budget) >= 1
        if status == 0:
            assert there
            written += 1
            if written == 2:
                break
        killed += status != 0
    assert written == 2
    assert killed >= 12


@pytest.mark.parametrize("seed", range(4))
def test_processes_killed_at_any_time_while_others_write_and_read_leave_a_sound_store(
    tmp_path: Path, seed: int
) -> None:
    generator = random.Random(seed)
    budget = 6 * SIZE
    reasons: Counter[Miss] = Counter()
    disk = disk_tier(tmp_path / "store", budget)
    writes = [prepared(disk, document(number)) for number in range(20)]

    def write_forever() -> None:
        # Each process has an order of its own.
        order = random.Random(os.getpid())
        while True:
            order.choice(writes)()

    write(disk, document(0))
    served = 0
    for _ in range(10):
        children = [start_child(write_forever) for _ in range(2)]
        try:
            until = time.monotonic() + generator.uniform(0.0, 0.1)
            while time.monotonic() < until:
                tokens = document(generator.randrange(20))
                try:
                    read = read_segment(disk, content_id(tokens))
                except SegmentError as error:
                    reasons[error.reason] += 1
                else:
                    served += 1
                    assert torch.equal(read.kv, expected_kv(tokens))
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        check_sound(tmp_path / "store", budget)
    assert reasons.keys() <= {Miss.MISSING}
    assert served
    write(disk, document(30))
    assert not list((tmp_path / "store").glob(".writing*"))


def test_least_recently_used_files_make_room_whosever_they_are(tmp_path: Path) -> None:
    ours, others = (disk_tier(tmp_path / "store", scope=scope) for scope in (SCOPE, OTHER_MODEL))
    write(ours, document(0))
    size = only_file(tmp_path / "store").stat().st_size
    ours.max_bytes = 3 * size
    write(others, document(1))
    write(ours, document(2))
    ours.touch(content_id(document(0)))
    write(ours, document(3))
    assert others.contents() == frozenset()
    assert ours.contents() == {content_id(document(seed)) for seed in (0, 2, 3)}
    leased = [content_id(document(seed)) for seed in (2, 0)]
    written = prepared(ours, document(4), leased)()
    assert [file.content for file in written.evicted] == [content_id(document(3))]
    reason, message = reason_of(prepared(ours, document(5), [*leased, content_id(document(4))]))
    assert (reason, "in use" in message) == (Miss.NO_ROOM, True)
    assert len(ours.contents()) == 3


def test_a_segment_larger_than_the_budget_evicts_nothing(tmp_path: Path) -> None:
    disk = disk_tier(tmp_path / "store")
    write(disk, document(0))
    disk.max_bytes = only_file(tmp_path / "store").stat().st_size
    with pytest.raises(SegmentError, match="exceed the budget") as fault:
        write(disk, document(1, 200))
    assert fault.value.reason is Miss.NO_ROOM
    assert disk.contents() == {content_id(document(0))}


def test_a_segment_is_written_once(tmp_path: Path) -> None:
    disk = disk_tier(tmp_path / "store")
    write(disk, document(0))
    first = only_file(tmp_path / "store").stat()
    write(disk, document(0))
    second = only_file(tmp_path / "store").stat()
    assert first.st_ino == second.st_ino
    assert second.st_mtime_ns > first.st_mtime_ns


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(disk_tier(tmp_path / "store"), document(0))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").iterdir()} == {0o600}


def test_a_directory_open_to_others_is_closed_or_refused(tmp_path: Path) -> None:
    empty, shared = tmp_path / "empty", tmp_path / "shared"
    for folder in (empty, shared):
        folder.mkdir()
        folder.chmod(0o755)
    (shared / "notes.txt").write_text("mine")
    write(disk_tier(empty), document(0))
    assert stat.S_IMODE(empty.stat().st_mode) == 0o700
    with pytest.raises(SegmentError, match=r"notes\.txt.*0700") as fault:
        write(disk_tier(shared), document(0))
    assert fault.value.reason is Miss.DENIED
    assert [path.name for path in shared.iterdir()] == ["notes.txt"]


def test_other_files_are_never_touched(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    disk = disk_tier(folder, 2 * SIZE)
    write(disk, document(0))
    names = (
        "notes.txt",
        "model.safetensors",
        f"{'0' * 32}-{'1' * 31}.safetensors",
        f"{'A' * 32}-{'1' * 32}.safetensors",
    )
    for name in names:
        (folder / name).write_bytes(b"x" * 2 * SIZE)
    for seed in range(5):
        write(disk, document(seed))
    assert {path.name for path in folder.iterdir()} > set(names)
    check_sound(folder, 2 * SIZE)


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_regular_file_is_foreign(tmp_path: Path, kind: str) -> None:
    disk = disk_tier(tmp_path / "store")
    write(disk, document(0))
    path = only_file(tmp_path / "store")
    kept = path.rename(tmp_path / "kept")
    {"link": lambda: path.symlink_to(kept), "pipe": lambda: os.mkfifo(path), "directory": path.mkdir}[kind]()
    with pytest.raises(SegmentError) as fault:
        read_segment(disk, content_id(document(0)))
    assert fault.value.reason is Miss.FOREIGN


def as_nobody(action: Callable[[], object]) -> int:
    """Runs in a process that file permissions bind: root's are dropped."""

    def drop() -> None:
        if not os.getuid():
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)

    return in_child(drop, action)


def test_what_permissions_forbid_is_denied() -> None:
    # Not below pytest's own directory, which only its owner may enter.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        folder = Path(name) / "store"
        disk = disk_tier(folder)
        write(disk, document(0))
        path, action = only_file(folder), prepared(disk, document(1))

        def denied(attempt: Callable[[], object], what: Path) -> None:
            reason, message = reason_of(attempt)
            assert reason is Miss.DENIED
            assert str(what) in message

        if os.getuid():
            folder.chmod(0)
        assert as_nobody(lambda: denied(disk.contents, folder)) == 0
        assert as_nobody(lambda: denied(lambda: disk.front(content_id(document(0))), path)) == 0
        assert as_nobody(lambda: denied(action, folder)) == 0
        folder.chmod(0o755)
        path.chmod(0o644)

        def reads() -> None:
            reader = DiskTier(folder, SCOPE, 2**20, read_only=True)
            (content,) = reader.contents()
            reader.load(content, lambda size: memoryview(bytearray(size)))
            assert not reader.remove(content)

        if os.getuid():
            folder.chmod(0o500)
        assert as_nobody(reads) == 0
        assert as_nobody(lambda: denied(action, folder)) == 0
        folder.chmod(0o700)
        path.chmod(0o600)
        check_sound(folder, 2**20)


def test_a_write_beyond_a_size_limit_leaves_nothing(tmp_path: Path) -> None:
    disk = disk_tier(tmp_path / "store")
    write(disk, document(0))
    action = prepared(disk, document(1))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        assert reason_of(action)[0] is Miss.FULL

    assert in_child(limited) == 0
    assert check_sound(tmp_path / "store", 2**20) == 1
    assert not list((tmp_path / "store").glob(".writing*"))


def test_the_lock_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path / "store", lock_timeout_s=0.05)
    with folder.locked(), pytest.raises(SegmentError) as fault, folder.locked():
        pass
    assert fault.value.reason is Miss.BUSY
    with folder.locked():
        pass


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path / "store", lock_timeout_s=0.05)
    with folder.locked():
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with folder.locked():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
