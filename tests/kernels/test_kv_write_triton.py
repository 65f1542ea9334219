"""The Triton KV write, interpreted in a process of its own."""

import pytest
from interpreted_run import run_interpreted

pytest.importorskip("triton", reason="the GPU kernels need triton")


@pytest.mark.slow
def test_the_interpreted_kv_write_matches_the_oracle() -> None:
    run_interpreted("kv_write.py")
