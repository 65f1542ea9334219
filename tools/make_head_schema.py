"""Writes docs/head_profile.schema.json from the format's model: `python -m tools.make_head_schema`."""

from pathlib import Path

from vllm_redknot.heads.native import schema_text

OUTPUT = Path(__file__).parent.parent / "docs" / "head_profile.schema.json"

if __name__ == "__main__":
    OUTPUT.write_text(schema_text())
    print(OUTPUT)
