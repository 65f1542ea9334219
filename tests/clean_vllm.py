"""vLLM as a process finds it before plugins are loaded: imported once, each scenario runs in a fork of that state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

SERVER = """
import json, os, sys, traceback
import vllm.engine.arg_utils, vllm.v1.core.sched.scheduler
import vllm.v1.attention.selector, vllm.model_executor.layers.attention
from vllm.platforms import current_platform
current_platform.is_cpu()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(job["output"], os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 0
        try:
            exec(compile(job["code"], "<scenario>", "exec"), {"__name__": "scenario"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


LOGGING = """
import json, logging, sys
logging.basicConfig(level="INFO", format="%(levelname)s %(name)s %(message)s", stream=sys.stdout, force=True)
"""


class Outcome(NamedTuple):
    """What a scenario printed; `result` is the JSON of its last line."""

    output: str

    @property
    def result(self) -> Any:
        return json.loads(self.output.splitlines()[-1])

    def logged(self, level: str) -> list[str]:
        """The plugin's log lines of a level."""
        return [line for line in self.output.splitlines() if line.startswith(f"{level} vllm.redknot ")]


class CleanVllm:
    """The process to fork from. A scenario is Python text; it fails the test if it raises."""

    def __enter__(self) -> Self:
        # vLLM's own log formatter would hide the logger's name.
        environment = {**os.environ, "VLLM_CONFIGURE_LOGGING": "0", "PYTHONWARNINGS": "ignore"}
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()).strip() != "ready":
            assert line, "vLLM could not be imported"
        return self

    def run(self, prelude: str, code: str) -> Outcome:
        """Run a scenario; log records are printed as `LEVEL logger message`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        output = Path(self.folder.name) / "output"
        output.unlink(missing_ok=True)
        text = LOGGING + textwrap.dedent(prelude) + textwrap.dedent(code)
        job = {"code": text, "output": str(output)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status = self.process.stdout.readline().strip()
        printed = output.read_text()
        assert status == "0", printed
        return Outcome(printed)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()
