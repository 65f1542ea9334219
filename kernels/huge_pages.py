"""Asks Linux to back the KV pool with huge pages: decode reads scattered pages, and page walks cost it 10 to 20%."""

import ctypes
import logging
import mmap
import threading

import torch

logger = logging.getLogger(__name__)

MADV_COLLAPSE = 25  # Linux 6.1; not in the mmap module


def advise_huge_pages(pool: torch.Tensor, wait: bool = False) -> bool:
    """Advise the kernel for the memory of a CPU tensor: MADV_HUGEPAGE, and MADV_COLLAPSE for what is in use already.

    Args:
        pool: any tensor; its whole memory is meant.
        wait: return when pages in use are merged, which takes seconds per GiB; else that goes on in the background.

    Returns:
        Whether the advice was taken. Without it everything works, with smaller pages.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or pool.device.type != "cpu":
        return False
    start = pool.data_ptr() + -pool.data_ptr() % mmap.PAGESIZE
    length = (pool.data_ptr() + pool.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length <= 0:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if libc.madvise(start, length, advice):
        logger.debug("no huge pages for the KV pool: errno %d", ctypes.get_errno())
        return False
    # torch.zeros has touched every page, in small ones, and merging them takes seconds: not in a request's way. Kernels
    # that do not know this advice merge in their own time.
    collapse = threading.Thread(target=libc.madvise, args=(start, length, MADV_COLLAPSE), daemon=True)
    collapse.start()
    if wait:
        collapse.join()
    return True
