"""`redknot store add` with a real engine: what it stores is what a server would have stored, and a server finds it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.engine.harness import assert_same
from tests.engine.head_files import with_rows
from tests.engine.reuse_engine import Answer, ask, marks, reusing, store_alone, worker
from tests.engine.reuse_world import LIMITS, World

pytestmark = pytest.mark.slow


ROWS = {"ffn_from": 1, "attention_from": 2, "sink": 3, "recent": 40}


@pytest.mark.parametrize("skips_rows", [False, True])
def test_files_added_ahead_are_reused_as_if_they_had_been_served(
    skips_rows: bool, world: World, tmp_path: Path
) -> None:
    heads = with_rows(world.heads, ROWS, tmp_path) if skips_rows else world.heads
    made = Tokenizer(WordLevel({f"w{number}": number for number in range(512)}, unk_token="w0"))
    made.pre_tokenizer = Whitespace()
    made.save(str(world.folder / "tokenizer.json"))
    first, second = world.tokens(150), world.tokens(333)
    # It begins with the first: were that part taken from the store, it would not be stored itself.
    overlapping = [*first, *world.tokens(90)]
    files = []
    for number, tokens in enumerate((first, second, overlapping)):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(" ".join(f"w{token}" for token in tokens))
    added = tmp_path / "added"
    command = [
        *(sys.executable, "-m", "vllm_redknot.cli", "store", "add", *map(str, files), "--json"),
        *("--model", str(world.folder), "--store", str(added), "--heads", heads, "--dtype", "float32"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [(row["tokens"], row["state"]) for row in document["files"]] == [
        (150, "stored"),
        (333, "stored"),
        (240, "stored"),
    ]
    sizes = {path.stat().st_size for path in added.glob("*.safetensors")}
    assert {row["bytes"] for row in document["files"]} == sizes

    def answer(store: Path, ahead: bool) -> Answer:
        with reusing(world.folder, store, heads, **LIMITS) as server:
            assert worker().store.scope.name == document["scope"]
            if not ahead:
                store_alone(server, first, second)
            spans = marks(second, first, begin=len(question))
            return ask(server, [*question, *second, *first, *question], {"spans": spans})

    question = world.tokens(20)
    found, expected = answer(added, ahead=True), answer(tmp_path / "served", ahead=False)
    assert found.reused == expected.reused == 150 + 333 - 32
    assert_same([found.completion], [expected.completion])
