"""Writes the needle-ranked SmolLM2-135M head profile that benchmarks compare with, from a file of needle scores.

python -m tools.make_needle_profile SCORES.json [--output benchmarks/heads/smollm2-needle13.json]
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from vllm_redknot.heads import native
from vllm_redknot.heads.profile import HeadClass, HeadProfile, ModelIdentity, Provenance

GLOBAL_HEADS = 13
WINDOW = 256
SINK = 4
DATE = "2026-11-22"
OUTPUT = Path(__file__).parent.parent / "benchmarks" / "heads" / "smollm2-needle13.json"

IDENTITY = ModelIdentity(
    name="SmolLM2-135M-Instruct",
    model_type="llama",
    num_layers=30,
    num_attention_heads=9,
    num_kv_heads=3,
    head_dim=64,
    hidden_size=576,
    intermediate_size=1536,
    vocab_size=49152,
    rope_theta=100000.0,
)
NOTES = (
    "Made from single needles of about 600 tokens, and no more than a start. Needle in 1.7K tokens: 6 of 6, as"
    " dense; in 3.6K: 2 of 3 (dense 3 of 3). Four named passcodes in one text: 0 of 5 (dense 3 of 5). The same"
    " heads with window 1024 find 3 of 3 at 3.6K."
)


def make_profile(document: dict[str, Any]) -> HeadProfile:
    """The GLOBAL_HEADS heads of highest `score` [L][H] are global (ties: the earlier head), the others local."""
    scores: list[list[float]] = document["score"]
    places = [(layer, head) for layer, row in enumerate(scores) for head in range(len(row))]
    best = set(sorted(places, key=lambda place: (-scores[place[0]][place[1]], place))[:GLOBAL_HEADS])
    classes = tuple(
        tuple(HeadClass.GLOBAL if (layer, head) in best else HeadClass.LOCAL for head in range(len(row)))
        for layer, row in enumerate(scores)
    )
    return HeadProfile(
        classes=classes,
        window=tuple(tuple(WINDOW if cls is HeadClass.LOCAL else None for cls in row) for row in classes),
        sink=tuple((SINK,) * len(row) for row in classes),
        layer_ids=tuple(range(len(scores))),
        identity=IDENTITY,
        provenance=Provenance(
            tool="tools/make_needle_profile.py",
            method=f"the {GLOBAL_HEADS} KV heads with the highest needle score are global, the others local",
            data=document["what"],
            date=DATE,
            notes=NOTES,
            provisional=True,
            parameters={
                "global_heads": GLOBAL_HEADS,
                "window": WINDOW,
                "sink": SINK,
                "scores_sha256": hashlib.sha256(json.dumps(scores).encode()).hexdigest(),
            },
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "scores", type=Path, help="JSON with `score` [layer][KV head] and `what` (how it was measured)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    native.write(make_profile(json.loads(arguments.scores.read_text())), arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
