"""Daemon threads for disk work: a hung disk holds up neither a request nor the end of the process."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("vllm.redknot")


class Workers:
    """`count` threads that run tasks in order. They start with the first task."""

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._tasks: deque[Callable[[], None]] = deque()
        self._outstanding = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    @property
    def outstanding(self) -> int:
        """Tasks that wait or run."""
        with self._changed:
            return self._outstanding

    def submit(self, task: Callable[[], None]) -> bool:
        """Run a task soon; False once closed."""
        with self._changed:
            if self._closed:
                return False
            self._tasks.append(task)
            self._outstanding += 1
            if len(self._threads) < min(self._count, self._outstanding):
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()
            return True

    def drain(self, deadline_s: float) -> bool:
        """Wait until nothing is outstanding; whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._outstanding, deadline_s)

    def close(self, deadline_s: float) -> bool:
        """Accept no more tasks and wait for the outstanding ones; whether all ended in time."""
        until = time.monotonic() + deadline_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        done = self.drain(deadline_s)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return done

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._closed)
                if not self._tasks:
                    return
                task = self._tasks.popleft()
            try:
                task()
            except Exception:
                logger.exception("REDKNOT: a task of %s failed; please report it", self._name)
            finally:
                with self._changed:
                    self._outstanding -= 1
                    self._changed.notify_all()
