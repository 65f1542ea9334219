"""One Triton launch as a value: the kernel, its grid, its arguments.

Building it reads shapes only; running it enqueues. Keeping the two apart lets a test build every launch from tensors
without storage (so nothing can wait for the GPU) and compile exactly the variant that a GPU would run.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TritonLaunch:
    """A kernel call that has not happened yet."""

    kernel: Any  # triton.runtime.JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # by parameter name: tensors, integers, floats and constexprs
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int | bool]:
        """Compiler options, by the names Triton gives them."""
        # Contraction of multiply and add is Triton 3.9's default and will not be 3.10's.
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def run(self) -> None:
        """Enqueue on the current stream. An empty grid is no call at all."""
        if 0 not in self.grid:
            self.kernel[self.grid](**self.arguments, **self.options)
