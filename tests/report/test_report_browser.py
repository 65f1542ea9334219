"""The page in a real browser, on a desk and on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import Page, browser, chromium
from vllm_redknot.report.collect import collect
from vllm_redknot.report.page import page

pytestmark = pytest.mark.slow

SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
RECTANGLES = """
[...document.querySelectorAll('svg.chart')].map(chart => {
  const box = chart.getBoundingClientRect();
  return [box.left + scrollX, box.top + scrollY, box.right + scrollX, box.bottom + scrollY,
          chart.getAttribute('aria-label')];
})
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll('svg.chart text')].map(text =>
  text.getScreenCTM().a * parseFloat(getComputedStyle(text).fontSize)))
"""
OUTSIDE = """
[...document.querySelectorAll('svg.chart')].flatMap(chart => {
  const frame = chart.getBoundingClientRect();
  return [...chart.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
  }).map(text => text.textContent);
})
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with browser(program, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_plot_is_drawn_and_nothing_is_asked_of_a_network(
    tab: Page, results: Path, tmp_path: Path, size: str, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(collect(results)), encoding="utf-8")
    tab.requests.clear()
    tab.open(path, *SIZES[size], scheme)
    shot = tab.screenshot()
    shot.save(tmp_path / f"{size}-{scheme}.png")
    assert tab.value("scrollX + document.documentElement.scrollWidth <= innerWidth")
    assert tab.value("innerWidth") == SIZES[size][0]
    charts = tab.value(RECTANGLES)
    # 2 panels of heads, 3 curves, a score, 2 needle grids, 7 rows of bars.
    assert len(charts) == 15
    for left, top, right, bottom, label in charts:
        area = shot.crop((round(left), round(top), round(right), round(bottom)))
        background = shot.getpixel((round(left), round(top)))
        pixels = list(area.get_flattened_data())
        drawn = sum(pixel != background for pixel in pixels) / len(pixels)
        assert drawn > 0.02, f"{label}: {drawn:.1%} of the plot is drawn"
        assert len(set(pixels)) > 8, label
    assert tab.value(SMALLEST_TEXT) >= 9
    assert tab.value(OUTSIDE) == []
    dark = sum(shot.getpixel((3, 3))) < 3 * 128
    assert dark == (scheme == "dark")
    assert [url for url in tab.requests if not url.startswith(("file:", "data:", "about:"))] == []
    assert tab.complaints == []
