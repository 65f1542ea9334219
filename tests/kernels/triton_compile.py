"""Compiles a Triton launch for a GPU that is not there, and reads what the binary asks of one."""

import re
import subprocess
from dataclasses import dataclass
from tempfile import NamedTemporaryFile

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from vllm_redknot.kernels.triton_launch import TritonLaunch


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs."""

    registers: int  # per thread
    stack: int  # bytes of local memory per thread: spills and indexed arrays
    shared: int  # bytes per block
    tensor_memory: int  # columns (sm_100)
    threads: int  # per block
    instructions: frozenset[str]  # opcodes in the machine code


def compile_launch(launch: TritonLaunch, capability: int) -> Resources:
    """The variant of `launch` that a GPU of `capability` (10 * major + minor) would run.

    Signature, constants and alignment come from the functions Triton's own launcher uses on the same arguments.
    """
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    kernel = launch.kernel
    options = launch.options
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = bind(**launch.arguments, **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, dict(options), bound, specialization, rest
    )
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=parsed.__dict__)
    usage = _cuobjdump(compiled.asm["cubin"], "--dump-resource-usage")
    fields = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    sass = _cuobjdump(compiled.asm["cubin"], "--dump-sass")
    return Resources(
        registers=fields["REG"],
        stack=fields["STACK"] + fields["LOCAL"],
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", 0) or 0,
        threads=32 * compiled.metadata.num_warps,
        instructions=frozenset(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)", sass, re.M)),
    )


def _cuobjdump(cubin: bytes, option: str) -> str:
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
