"""The compiled CPU kernels: loaded once per process, absent (with one warning) where they cannot be built."""

import ctypes
import logging
import threading
from pathlib import Path

import torch

from vllm_redknot.kernels.build import BuildError, library

logger = logging.getLogger(__name__)

DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


class SegpagedArgs(ctypes.Structure):
    """Mirror of SegpagedArgs in segpaged_attention/cpu/abi.h."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("query", "output", "pool", "base", "group", "window", "sink")],
        *[(name, ctypes.c_void_p) for name in ("block_tables", "cu_seqlens_q", "seq_lens")],
        *[
            (name, ctypes.c_int64)
            for name in ("pool_elements", "query_stride", "output_stride", "page_stride")
        ],
        *[(name, ctypes.c_int64) for name in ("token_stride", "value_offset")],
        *[(name, ctypes.c_int32) for name in ("page_size", "head_size", "num_heads", "num_kv_heads")],
        *[
            (name, ctypes.c_int32)
            for name in ("num_requests", "table_width", "num_tokens", "dtype", "variant")
        ],
        ("num_threads", ctypes.c_int32),
        ("softmax_scale", ctypes.c_float),
        ("soft_cap", ctypes.c_float),
        *[(name, ctypes.c_int32) for name in ("bad_request", "bad_head", "bad_position", "bad_page")],
    )


class KvWriteArgs(ctypes.Structure):
    """Mirror of KvWriteArgs in kv_write/cpu/kv_write.h."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("key", "value", "pool", "base", "group", "slot_mappings")],
        *[(name, ctypes.c_int64) for name in ("pool_elements", "key_stride", "value_stride", "page_stride")],
        *[(name, ctypes.c_int64) for name in ("token_stride", "value_offset")],
        *[(name, ctypes.c_int32) for name in ("page_size", "head_size", "num_kv_heads", "num_tokens")],
        *[(name, ctypes.c_int32) for name in ("element_size", "num_threads")],
        ("bad_slot", ctypes.c_int64),
        ("bad_head", ctypes.c_int32),
    )


class Native:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        self.path = path
        handle = ctypes.CDLL(str(path))
        self.attention = handle.segpaged_attention
        self.kv_write = handle.segpaged_kv_write
        self.attention.argtypes = (ctypes.POINTER(SegpagedArgs),)
        self.kv_write.argtypes = (ctypes.POINTER(KvWriteArgs),)
        handle.segpaged_variant_name.restype = ctypes.c_char_p
        names = iter(lambda: handle.segpaged_variant_name(len(self.variants)), None)
        self.variants: list[str] = []
        for name in names:
            self.variants.append(name.decode())
        self.runnable = [name for i, name in enumerate(self.variants) if handle.segpaged_variant_runs(i)]
        self._exp2 = handle.segpaged_exp2

    def exp2(self, variant: str, dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
        """The 2^x that `variant` uses for `dtype`. x: fp32 [16 n], contiguous."""
        out = torch.empty_like(x)
        arguments = [ctypes.cast(t.data_ptr(), ctypes.POINTER(ctypes.c_float)) for t in (x, out)]
        self._exp2(self.variants.index(variant), DTYPES[dtype], *arguments, x.numel())
        return out


_lock = threading.Lock()
_loaded: list[Native | None] = []


def load(cache_dir: Path | None = None) -> Native | None:
    """The kernels, built into `cache_dir` if need be; None where that fails, with one warning.

    The first call of a process decides: give it the configured folder before a kernel runs. Later calls return what it
    found, whatever they name.

    Args:
        cache_dir: folder of compiled kernels; default `build.default_cache_dir`.
    """
    with _lock:
        if not _loaded:
            try:
                _loaded.append(Native(library(cache_dir)))
            except (BuildError, OSError) as error:
                logger.warning(
                    "CPU kernels are missing, attention runs in plain torch, many times slower: %s", error
                )
                _loaded.append(None)
    return _loaded[0]
