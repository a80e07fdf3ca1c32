"""Tables, plots, and their place in the page."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from rig.options import PAGE
from rig.page import render_table, replace_section
from rig.plot import Bars, render_bars

SCRIPTS = (
    "bench_protection",
    "bench_peers",
    "bench_limit",
    "bench_start",
    "bench_scaling",
    "bench_grpc",
    "bench_serve",
)


def test_only_its_own_section_is_replaced() -> None:
    """What is outside of the marks stays, and a second run replaces the first one's text."""
    page = "before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\nafter\n"
    once = replace_section(page, "a", "new")
    assert once == page.replace("old", "new")
    assert replace_section(once, "a", "old") == page


@pytest.mark.parametrize(
    "page", ["", "<!-- a -->", "<!-- /a --><!-- a -->", "<!-- a -->" * 2 + "<!-- /a -->"]
)
def test_a_page_without_the_marks_is_refused(page: str) -> None:
    """A script does not write anywhere else."""
    with pytest.raises(ValueError, match="once each"):
        replace_section(page, "a", "text")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_has_a_place_for_every_script(name: str) -> None:
    """`--page` finds its marks in docs/performance.md."""
    assert replace_section(PAGE.read_text(), name, "text").count("\ntext\n") == 1


def test_a_table_is_markdown() -> None:
    """Head, line, rows."""
    assert render_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_plot_is_xml_with_a_bar_for_each_value() -> None:
    """Names that XML would take for markup are escaped, and the longest bar has the largest value."""
    drawn = render_bars(Bars("a < b", ["open", "sealed & kept"], {"FP32": [10.0, 5.0], "INT8": [40.0, 0.0]}))
    root = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    bars = [float(item.attrib["width"]) for item in root.iter(f"{space}rect")][:4]
    assert bars[0] / bars[2] == pytest.approx(0.25, abs=0.01)
    assert bars[3] == 0
    assert "sealed & kept" in "".join(root.itertext())
