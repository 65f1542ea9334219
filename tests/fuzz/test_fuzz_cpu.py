"""A short run of the sanitizer fuzzer; the long one is ``python tests/fuzz/fuzz_cpu.py --seconds 600``."""

import pytest
from fuzz_cpu import fuzz


@pytest.mark.slow
def test_random_batches_raise_no_sanitizer_report_and_match_plain_loops() -> None:
    summary = fuzz(seconds=20, seed=1)
    assert "portable" in summary
    assert int(summary.split()[0]) > 0
