"""Drawing traces, and faults of a directory."""

import itertools
from collections import Counter
from pathlib import Path

from benchmarks.reuse_faults import Fault, Faults
from benchmarks.reuse_trace import Trace, draw_trace, percentile
from vllm_redknot.reuse.folder import StoreFolder


def drawn(seed: int) -> Trace:
    counter = itertools.count()
    return draw_trace(lambda length: list(itertools.islice(counter, length)), 20, 100, 300, 4, seed)


def test_a_trace_follows_from_its_seed_and_popular_documents_come_more_often() -> None:
    trace = drawn(1)
    assert trace == drawn(1)
    assert trace != drawn(2)
    times = Counter(number for request in trace.requests for number in request.documents)
    assert times[0] > 2 * times[10] > 0
    assert all(len(set(request.documents)) == 4 for request in trace.requests)
    lengths = [len(document) for document in trace.documents]
    assert len(set(lengths)) == 20
    assert all(90 <= length <= 110 for length in lengths)


def test_spans_are_where_the_documents_stand() -> None:
    trace = drawn(3)
    request = trace.requests[0]
    prompt = trace.prompt(request)
    spans = trace.spans(request)
    assert [tuple(prompt[begin:end]) for begin, end in spans] == [
        trace.documents[d] for d in request.documents
    ]
    assert tuple(prompt[spans[-1][1] :]) == request.question


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.95)) == (50.0, 95.0)
    assert percentile([3.0], 0.5) == 3.0


def test_faults_follow_from_their_seed_and_all_kinds_happen(tmp_path: Path) -> None:
    def run(folder: Path) -> tuple[list[str], dict[str, int], list[int]]:
        folder.mkdir(mode=0o700)
        faults, made = Faults(folder, seed=5), []
        for number in range(60):
            (folder / f"{number:032x}-{0:032x}.safetensors").write_bytes(bytes([number]) * 1000)
            fault = faults.make()
            assert fault is not None
            made.append(fault.value)
        faults.end()
        left = [file.nbytes for file in StoreFolder(folder).listing()]
        return made, dict(faults.made), sorted(left)

    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert first[:2] == second[:2]
    assert set(first[0]) == {fault.value for fault in Fault}
    assert sum(first[1].values()) == 60
    assert [path.name for path in (tmp_path / "a").glob(".*")] == [".lock"]
    assert ((tmp_path / "a").stat().st_mode & 0o777) == 0o700


def test_an_empty_directory_has_no_faults(tmp_path: Path) -> None:
    assert Faults(tmp_path, seed=1).make() is None
