"""The known head-class formats, told apart by content, and the one function that loads any of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from vllm_redknot.heads import native
from vllm_redknot.heads.documents import decode, parse_object, read_bytes
from vllm_redknot.heads.errors import HeadFileError, HeadProfileError
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.heads.readers import duo_attention, hybrid_params, kv_matrix, mla_heads


class JsonFormat(NamedTuple):
    """A format whose files are one JSON object. `matches` looks at keys; `read` raises HeadProfileError."""

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Path, Mapping[str, Any]], HeadProfile]


JSON_FORMATS: Final = (
    JsonFormat(f'native ("format": "{native.FORMAT}")', native.matches, native.read),
    JsonFormat(f'RedKnot V4 ("format": "{mla_heads.FORMAT}")', mla_heads.matches, mla_heads.read),
    JsonFormat("RedKnot V2 (kv_head_classification with layers)", kv_matrix.matches_v2, kv_matrix.read_v2),
    JsonFormat("RedKnot V1 (kv_head_classification)", kv_matrix.matches_v1, kv_matrix.read_v1),
    JsonFormat("RedKnot V3 (frac_global, no matrix)", hybrid_params.matches, hybrid_params.read),
)
KNOWN: Final = "; ".join((*(known.name for known in JSON_FORMATS), f"DuoAttention {duo_attention.TSV_NAME}"))


def load_profile(path: Path | str, duo_threshold: float = 0.5) -> HeadProfile:
    """The profile in a file of any known format, or in a folder that holds DuoAttention's TSV.

    `duo_threshold` applies to DuoAttention only. Raises HeadFileError and nothing else.
    """
    path = _file(Path(path))
    text = decode(read_bytes(path), path)
    try:
        if text.lstrip().startswith("{"):
            document = parse_object(text, path)
            return _json_format(document, path).read(path, document)
        if duo_attention.matches(text):
            return duo_attention.read(path, text, duo_threshold)
    except HeadFileError:
        raise
    except HeadProfileError as error:
        raise HeadFileError(path, "the profile", str(error), "Correct it or export it again.") from error
    raise HeadFileError(path, "the content", "is no known head-class format", f"Known: {KNOWN}.")


def _file(path: Path) -> Path:
    inside = path / duo_attention.TSV_NAME
    try:
        if not path.is_dir():
            return path
        if inside.is_file():
            return inside
    except OSError as error:
        raise HeadFileError(path, "the path", str(error.strerror), "Check that it can be read.") from error
    problem = f"is a folder without {duo_attention.TSV_NAME}"
    raise HeadFileError(path, "the path", problem, "Give the path of a head-class file.")


def _json_format(document: Mapping[str, Any], path: Path) -> JsonFormat:
    for known in JSON_FORMATS:
        if known.matches(document):
            return known
    raise HeadFileError(path, "the keys", "are those of no known head-class format", f"Known: {KNOWN}.")
