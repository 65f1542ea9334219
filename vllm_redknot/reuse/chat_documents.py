"""Documents marked in the content parts of a chat message: `vllm serve --middleware` with the name of the class here.

    {"role": "user", "content": [{"type": "text", "text": DOCUMENT, "redknot_document": true},
                                 {"type": "text", "text": QUESTION}]}

becomes a chat without marks whose `vllm_xargs` have the texts. Every other request reaches vLLM as it came.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final

from vllm_redknot.reuse.control import ARGUMENT

MARK: Final = "redknot_document"
PATH: Final = "/v1/chat/completions"
XARGS: Final = "vllm_xargs"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class ChatDocuments:
    """ASGI middleware."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection."""
        if not _is_chat(scope):
            await self._app(scope, receive, send)
            return
        messages = await _request(receive)
        body = b"".join(message.get("body", b"") for message in messages)
        changed = marked_as_texts(body)
        # Of a client that has gone the rest of the body never comes.
        if changed is not None and messages[-1]["type"] == "http.request":
            messages = [{"type": "http.request", "body": changed, "more_body": False}]
            scope = {**scope, "headers": _with_length(scope["headers"], len(changed))}
        rest = iter(messages)

        async def replay() -> Message:
            message = next(rest, None)
            return await receive() if message is None else message

        await self._app(scope, replay, send)


def marked_as_texts(body: bytes) -> bytes | None:
    """A chat request's body with its marked parts as texts of the request's wish; None where nothing is marked.

    A mark is `true`, in a part of type "text"; anything else by that name stays, as does what is no chat request. A
    wish that is "off", or marks documents itself, or makes no sense, stays too.
    """
    if MARK.encode() not in body:
        return None
    try:
        chat = json.loads(body)
        parts = list(_marked(chat))
        if not parts:
            return None
        _move_marks(chat, parts)
        return json.dumps(chat).encode()
    except (ValueError, RecursionError):
        return None


def _is_chat(scope: Message) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return bool(scope["path"].removeprefix(scope.get("root_path", "")) == PATH)


async def _request(receive: Receive) -> list[Message]:
    """The messages of a request's body, up to its end or the client's going."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    """The headers with this Content-Length, if they have one: a chunked body has none."""
    return [(name, str(length).encode() if name == b"content-length" else value) for name, value in headers]


def _marked(chat: Any) -> Iterator[dict[str, Any]]:
    for message in _dicts(chat.get("messages") if isinstance(chat, dict) else None):
        for part in _dicts(message.get("content")):
            if part.get("type") == "text" and part.get(MARK) is True and isinstance(part.get("text"), str):
                yield part


def _move_marks(chat: Any, parts: list[dict[str, Any]]) -> None:
    """From a chat's parts to its wish."""
    for part in parts:
        del part[MARK]
    if chat.get(XARGS) is None:
        chat[XARGS] = {}
    xargs = chat[XARGS]
    wish = _wish(xargs) if isinstance(xargs, dict) else None
    if wish is not None and "spans" not in wish and "texts" not in wish:
        xargs[ARGUMENT] = json.dumps({**wish, "texts": [part["text"] for part in parts]})


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Those of a list; none of anything else."""
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def _wish(xargs: dict[str, Any]) -> dict[str, Any] | None:
    """What the request says of reuse; None where nothing can be added to it."""
    if ARGUMENT not in xargs:
        return {}
    try:
        wish = json.loads(xargs[ARGUMENT])
    except (TypeError, ValueError, RecursionError):
        return None
    return wish if isinstance(wish, dict) else None
