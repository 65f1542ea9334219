"""Documents behind other tokens, which the tests of blend ask about."""

from __future__ import annotations

from typing import Any

from tests.engine.harness import Engine
from tests.engine.reuse_engine import Answer, ask, marks, store_alone
from tests.engine.reuse_world import World

SETTINGS: dict[str, Any] = {"policy": "blend", "min_reuse": 31}


class Case:
    """Two stored documents behind other tokens, and a question."""

    def __init__(self, server: Engine, world: World) -> None:
        self.server = server
        first, second, question = world.tokens(150), world.tokens(170), world.tokens(20)
        store_alone(server, first, second)
        self.prompt = [*question, *first, *second, *question]
        self.spans = marks(first, second, begin=20)
        self.dense = ask(server, self.prompt, "off").completion

    def answer(self, **wish: Any) -> Answer:
        """Alone, without prefix hits."""
        assert self.server.llm.reset_prefix_cache()
        return ask(self.server, self.prompt, {"spans": self.spans, **wish})
