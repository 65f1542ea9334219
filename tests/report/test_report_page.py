"""What is in the page, and that whatever a file holds stays text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.report import samples
from tests.report.conftest import Render
from vllm_redknot.report.collect import collect
from vllm_redknot.report.page import page

HOSTILE = '</title><script>alert(1)</script><img src=x onerror=alert(2)>" onload="alert(3)\' {{ 7 * 7 }}'


class Elements(HTMLParser):
    """Start tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def poisoned(value: Any) -> Any:
    """The document with every string replaced that may be any text."""
    fixed = {"kind", "format", "better", "classes", "fingerprint"}
    if isinstance(value, dict):
        return {key: value[key] if key in fixed else poisoned(value[key]) for key in value}
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def test_the_page_shows_every_document(results: Path) -> None:
    text = page(collect(results))
    for heading in (
        "Head map",
        "Quality against memory",
        "Quality, stock beside REDKNOT",
        "Speed and memory",
    ):
        assert f"<h2>{heading}</h2>" in text
    shown = Elements(text).text
    for expected in (
        *("33.8 s", "14.2 s", "2.38x", "128 MiB", "32 MiB"),
        *("0.700 [0.650, 0.750]", "HotpotQA: F1", "within noise", "differs"),
        *("beyond every local window: 1024 tokens", "Head classes: heads.json (the setting"),
        *(
            "task needle, n 100, nll 0.123",
            "Chosen: 9 global. 27.0% of the KV bytes at 8192 tokens",
            "random",
            "27.3% of stock's KV bytes",
            "made by hand",
        ),
    ):
        assert expected in re.sub(r"\s+", " ", shown), expected


MAKERS = [
    *(samples.bench, samples.evaluation, samples.profile, samples.heads),
    *(samples.ablated_bench, samples.ablated_evaluation),
]


@pytest.mark.parametrize("make", MAKERS)
def test_whatever_a_file_says_stays_text(render: Render, make: Any) -> None:
    text = render(hostile=poisoned(make()))
    found = Elements(text)
    assert "Not in this report" not in found.text
    assert "alert(1)" in found.text
    assert "{{ 7 * 7 }}" in found.text
    assert "script" not in {tag for tag, _ in found.tags}
    assert "img" not in {tag for tag, _ in found.tags}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_a_file_name_stays_text(render: Render) -> None:
    found = Elements(render(**{"<script>alert(1)<": samples.bench(), "<b>broken": {"kind": "<i>"}}))
    assert "script" not in {tag for tag, _ in found.tags}
    assert "<b>broken.json is left out" in found.text


def test_the_page_asks_nothing_of_a_network(results: Path) -> None:
    text = page(collect(results))
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    found = Elements(text)
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,")), (tag, name, value)


def test_every_plot_is_well_formed_and_has_a_label(results: Path) -> None:
    text = page(collect(results))
    plots = re.findall(r'<svg class="chart.*?</svg>', text, re.DOTALL)
    assert len(plots) == 15
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert root.find(".//text") is not None
        assert not re.search(r"nan|inf|None|undefined", plot)


def test_links_of_the_contents_lead_somewhere(results: Path) -> None:
    found = Elements(page(collect(results)))
    ids = {attributes.get("id") for _, attributes in found.tags}
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    assert len(links) == 4
    assert all(str(link).removeprefix("#") in ids for link in links)


def test_sections_without_documents_are_left_out(render: Render) -> None:
    text = render(only=samples.bench())
    assert "Head map" not in text
    assert "Speed and memory" in text


def test_the_record_in_a_head_file_is_shown(render: Render) -> None:
    document = {**samples.heads(), "sections": {"profiling": samples.profile(), "other": {"kind": "x"}}}
    text = render(heads=document)
    assert "heads.json, section profiling" in text
    assert "Quality against memory" in text


def test_a_worse_figure_is_called_worse(render: Render) -> None:
    document = samples.bench()
    row = document["rows"][0]
    row["redknot"]["median"], row["ratio"] = 2 * row["stock"]["median"], 2.0
    assert "<b>0.500x</b> (worse)" in render(worse=document)


def test_overlapping_samples_are_called_so(render: Render) -> None:
    document = samples.bench()
    document["rows"] = document["rows"][:1]
    row = document["rows"][0]
    assert "<b>0.984x</b> (worse)" in render(one=document)
    row["redknot"]["samples"] = [row["stock"]["samples"][0], 10.0]
    assert "<b>0.984x</b> (within the spread)" in render(one=document)


def test_empty_and_constant_documents_make_a_page(render: Render) -> None:
    nothing = {**samples.bench(), "rows": []}
    zero = samples.bench()
    for row in zero["rows"]:
        row["stock"] = row["redknot"] = {"median": 0.0, "samples": []}
        row["ratio"] = 0.0
    flat = samples.profile()
    flat["curve"] = [samples.point("ours", 0.5, None, None, 0.0)]
    flat["scores"] = {"none": [[None] * samples.HEADS] * samples.LAYERS}
    flat["chosen"] = None
    empty = {**samples.evaluation(), "suites": {"needle": [], "qa": []}}
    text = render(nothing=nothing, zero=zero, flat=flat, empty=empty)
    assert "Not in this report" not in text
    assert "nan" not in text.split("</style>")[1].lower().replace("nance", "")


def test_many_heads_are_split_into_panels_and_far_too_many_are_counted(render: Render) -> None:
    wide = samples.heads()
    wide["model"] = {}
    wide["layers"] = [{"layer": layer, "classes": ["local", "global"] * 50} for layer in range(61)]
    plots = re.findall(r'aria-label="Head map, (.*?)"', render(wide=wide))
    assert "layers 31 to 60, KV heads 96 to 99" in plots
    assert len(plots) == 2 * 4
    wide["layers"] = [{"layer": layer, "classes": ["local", "global"] * 200} for layer in range(100)]
    text = render(wide=wide)
    assert "too many heads to draw" in text
    assert "20000 (50.0%)" in text


def test_documents_are_not_changed_by_rendering(results: Path) -> None:
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    page(collect(results))
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before
    assert json.loads(before["bench.json"])["kind"] == "redknot.bench"


def test_an_ablation_shows_every_part_beside_stock(render: Render) -> None:
    text = render(quality=samples.ablated_evaluation(), speed=samples.ablated_bench())
    assert "Not in this report" not in text
    found = Elements(text)
    shown = re.sub(r"\s+", " ", found.text)
    for expected in (
        *("needle: stock, and the parts of REDKNOT alone", "0.720 [0.670, 0.770]", "0.910 [0.860, 0.960]"),
        *("what rows is; 100.0% of stock's KV bytes; skips rows in prefill", "row schedule.ffn_from"),
        "skipped in prefill: 19.0% of attention rows, 32.0% of ffn rows",
    ):
        assert expected in shown, expected
    columns = [attributes["data-label"] for tag, attributes in found.tags if tag == "td"]
    assert columns.count("heads") == columns.count("rows") == columns.count("both") == len(samples.LENGTHS)
    assert text.count('class="bar-heads"') == text.count('class="bar-rows"') == len(samples.bench()["rows"])
    for plot in re.findall(r'<svg class="chart.*?</svg>', text, re.DOTALL):
        ElementTree.fromstring(plot)
    # A bar lies within its plot.
    plot = next(
        one for one in re.findall(r'<svg class="chart.*?</svg>', text, re.DOTALL) if "bar-rows" in one
    )
    height = float(str(ElementTree.fromstring(plot).get("viewBox")).split()[3])
    assert (
        max(float(y) for y in re.findall(r'<rect class="bar-\w+" x="66" y="([0-9.]+)"', plot)) + 22 <= height
    )
