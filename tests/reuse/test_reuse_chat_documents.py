"""Marked content parts become texts of the request's wish; everything else passes as it came."""

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from vllm_redknot.reuse.chat_documents import ChatDocuments
from vllm_redknot.reuse.control import parse_control

DOCUMENT = {"type": "text", "text": "A document.", "redknot_document": True}
OTHER = {"type": "text", "text": "Ein ähnliches.\n", "redknot_document": True}
QUESTION = {"type": "text", "text": "What?"}
Scope = dict[str, Any]


class App:
    """What vLLM would get: the scope, the messages up to the body's end, and the one after it. It answers in parts."""

    def __init__(self) -> None:
        self.scope: Scope = {}
        self.messages: list[Any] = []
        self.after: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        while not self.messages or self.messages[-1].get("more_body", False):
            self.messages.append(await receive())
        self.after = await receive()
        for part in (b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages)

    @property
    def chat(self) -> Any:
        return json.loads(self.body)

    @property
    def length(self) -> bytes:
        return dict(self.scope["headers"])[b"content-length"]


def send(
    chunks: Iterable[bytes],
    end: Any = None,
    change: Callable[[Scope], None] | None = None,
) -> tuple[App, Scope, list[Any], list[Any]]:
    """A request of these chunks (or ended by another message): the app, the scope, messages sent and answered."""
    parts = list(chunks)
    sent: list[Any] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    sent[-1]["more_body"] = end is not None
    if end is not None:
        sent.append(end)
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"host", b"here"), (b"content-length", b"%d" % sum(map(len, parts))), (b"x", b"y")],
    }
    if change is not None:
        change(scope)
    waiting, answered, app = iter([*sent, {"type": "http.disconnect"}]), [], App()

    async def receive() -> Any:
        return next(waiting)

    async def answer(message: Any) -> None:
        answered.append(message)

    asyncio.run(ChatDocuments(app)(scope, receive, answer))
    return app, scope, sent, answered


def chat(*parts: Any, **more: Any) -> bytes:
    """The body of a chat request with one user message."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}], **more}).encode()


def texts_of(app: App) -> tuple[str, ...]:
    """The texts that the engine is told of."""
    return parse_control(app.chat["vllm_xargs"], 9).texts


def test_marked_parts_become_texts_and_lose_their_mark() -> None:
    body = chat(DOCUMENT, OTHER, QUESTION, temperature=0.5, seed=7)
    app, _, _, answered = send([body])
    texts = ["A document.", "Ein ähnliches.\n"]
    assert app.chat == {
        "model": "m",
        "messages": [
            {"role": "user", "content": [*({"type": "text", "text": text} for text in texts), QUESTION]}
        ],
        "temperature": 0.5,
        "seed": 7,
        "vllm_xargs": {"redknot_reuse": json.dumps({"texts": texts})},
    }
    assert texts_of(app) == tuple(texts)
    assert app.after == {"type": "http.disconnect"}
    assert [message["body"] for message in answered] == [b"one", b"two"]


def test_the_length_is_that_of_the_new_body_and_the_other_headers_stay() -> None:
    app, scope, _, _ = send([chat(DOCUMENT)])
    assert app.length == b"%d" % len(app.body)
    assert [name for name, _ in app.scope["headers"]] == [b"host", b"content-length", b"x"]
    # The server's own scope is not changed under it.
    assert dict(scope["headers"])[b"content-length"] == b"%d" % len(chat(DOCUMENT))


def test_a_chunked_body_is_put_together_and_gets_no_length() -> None:
    body = chat(DOCUMENT, QUESTION)
    cut = body.index(b"redknot") + 3

    def chunked(scope: Scope) -> None:
        scope["headers"] = [(b"transfer-encoding", b"chunked")]

    app, _, _, _ = send([body[:cut], b"", body[cut:]], change=chunked)
    assert texts_of(app) == ("A document.",)
    assert app.scope["headers"] == [(b"transfer-encoding", b"chunked")]


def test_marks_of_several_messages_are_texts_in_the_chats_order() -> None:
    messages = [
        {"role": "system", "content": [OTHER]},
        {"role": "user", "content": "A document."},
        {"role": "user", "content": [QUESTION, DOCUMENT]},
    ]
    app, _, _, _ = send([json.dumps({"messages": messages}).encode()])
    assert texts_of(app) == ("Ein ähnliches.\n", "A document.")
    assert app.chat["messages"][1] == messages[1]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {"texts": ["A document."]}),
        (
            {"boundary": 4, "policy": "boundary"},
            {"boundary": 4, "policy": "boundary", "texts": ["A document."]},
        ),
        ({"reuse": False}, {"reuse": False, "texts": ["A document."]}),
    ],
)
def test_what_the_request_says_of_reuse_is_kept(said: Any, expected: Any) -> None:
    xargs = {"redknot_reuse": json.dumps(said), "redknot_rows": "off"}
    app, _, _, _ = send([chat(DOCUMENT, vllm_xargs=xargs)])
    told = app.chat["vllm_xargs"]
    assert json.loads(told.pop("redknot_reuse")) == expected
    assert told == {"redknot_rows": "off"}


@pytest.mark.parametrize(
    "xargs",
    [
        {"redknot_reuse": "off"},
        {"redknot_reuse": '"off"'},
        {"redknot_reuse": '{"spans": [[0, 5]]}'},
        {"redknot_reuse": '{"texts": []}'},
        {"redknot_reuse": "{"},
        {"redknot_reuse": "[" * 100_000},
        {"redknot_reuse": 7},
        {"redknot_reuse": None},
        {"redknot_reuse": {"boundary": 4}},
        [],
        "off",
    ],
)
def test_a_wish_that_is_off_or_marks_itself_or_makes_no_sense_stays(xargs: Any) -> None:
    app, _, _, _ = send([chat(DOCUMENT, vllm_xargs=xargs)])
    assert app.chat["vllm_xargs"] == xargs
    assert app.chat["messages"][0]["content"] == [{"type": "text", "text": "A document."}]


def test_xargs_that_are_null_are_none() -> None:
    assert texts_of(send([chat(DOCUMENT, vllm_xargs=None)])[0]) == ("A document.",)


@pytest.mark.parametrize(
    "body",
    [
        chat(QUESTION),
        b"",
        b'{ "messages" :\n[{"content":"redknot_document"}]}',
        b'{"messages": [{"content": [{"type": "text", "text": "t", "redknot_document": true}]}]',
        b"\xff\xfe redknot_document",
        b'"redknot_document"',
        b'{"redknot_document": true, "messages": {"0": 1}}',
        b'{"messages": ["redknot_document", null, {"content": null}, {"content": ["redknot_document", 7]}]}',
        chat({**DOCUMENT, "redknot_document": "true"}, {**DOCUMENT, "redknot_document": 1}),
        chat({**DOCUMENT, "redknot_document": False}, {**DOCUMENT, "redknot_document": None}),
        chat({**DOCUMENT, "type": "image_url"}, {"text": "t", "redknot_document": True}),
        chat({**DOCUMENT, "text": 7}, {"type": "text", "redknot_document": True}),
        b'{"redknot_document": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"redknot_document": ' + b"1" * 10_000 + b"}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_without_marks_passes_byte_for_byte_in_its_own_chunks(body: bytes) -> None:
    app, scope, sent, _ = send([body[:5], body[5:]])
    assert app.messages == sent
    assert app.scope is scope
    assert app.after == {"type": "http.disconnect"}


def test_marks_that_are_none_stay_beside_those_that_are() -> None:
    other = {**OTHER, "redknot_document": "yes"}
    app, _, _, _ = send([chat(DOCUMENT, other)])
    assert texts_of(app) == ("A document.",)
    assert app.chat["messages"][0]["content"][1] == other


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/v1/completions"},
        {"path": "/v1/chat/completions/render"},
        {"method": "GET"},
        {"type": "websocket"},
        {"root_path": "/v1"},
    ],
)
def test_other_requests_pass(change: Scope) -> None:
    app, scope, sent, _ = send([chat(DOCUMENT)], change=lambda scope: scope.update(change))
    assert app.messages == sent
    assert app.scope is scope


def test_a_server_behind_a_path_of_its_own_is_served() -> None:
    behind = {"root_path": "/models", "path": "/models/v1/chat/completions"}
    app, _, _, _ = send([chat(DOCUMENT)], change=lambda scope: scope.update(behind))
    assert texts_of(app) == ("A document.",)


def test_of_a_client_that_leaves_what_came_passes() -> None:
    app, scope, sent, _ = send([chat(DOCUMENT)], end={"type": "http.disconnect"})
    assert app.messages == sent
    assert app.scope is scope
