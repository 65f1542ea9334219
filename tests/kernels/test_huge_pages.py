import sys

import pytest
import torch

from vllm_redknot.kernels.huge_pages import advise_huge_pages


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux only")
def test_advice_leaves_the_pool_as_it_is() -> None:
    pool = torch.arange(4 * 2**20, dtype=torch.int32)
    advise_huge_pages(pool)
    assert torch.equal(pool, torch.arange(4 * 2**20, dtype=torch.int32))


def test_a_pool_smaller_than_a_page_is_left_alone() -> None:
    assert not advise_huge_pages(torch.zeros(3))
