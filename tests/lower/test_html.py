# SPDX-License-Identifier: Apache-2.0
"""`lower --format html`: the page in a browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from capture.models import write_config
from playwright.sync_api import Page

from lower.browser import open_page
from vllm_metal.html_report import render
from vllm_metal.lower import EQUAL, main

LAYERS = 32
MAX_BYTES = 2_000_000


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a Llama of 32 layers."""
    folder = tmp_path_factory.mktemp("html")
    config = write_config("llama", folder)
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"num_hidden_layers": LAYERS}))
    file = folder / "report.html"
    assert main([str(config), "--format", "html", "--output", str(file)]) == EQUAL
    return file


@pytest.fixture
def page(page_file: Path) -> Iterator[Page]:
    """The report, open; the test fails if anything went wrong on it."""
    with open_page() as (page, problems):
        page.goto(page_file.as_uri())
        yield page
        assert problems == []


def test_it_is_one_small_file(page_file: Path) -> None:
    text = page_file.read_text()
    assert len(text) < MAX_BYTES
    assert not re.search(r"https?://", text)


def test_layers_are_collapsed_to_unique_regions(page: Page) -> None:
    regions = page.locator("details.region")
    assert 3 <= regions.count() <= 6
    assert f"{LAYERS - 1} calls" in page.content()
    assert "LlamaForCausalLM" in page.title()


def test_search_keeps_what_matches_and_opens_it(page: Page) -> None:
    lines = page.locator("details.region .op")
    everything = lines.count()
    page.fill("#search", "gated_activation")
    shown = page.locator("details.region .op:not(.hidden)")
    assert 0 < shown.count() < everything
    assert all("gated_activation" in line.lower() for line in shown.all_inner_texts())
    assert page.locator("#found").inner_text().startswith(f"{shown.count()} line")
    page.fill("#search", "no such thing")
    assert page.locator("details.region:not(.hidden)").count() == 0
    page.fill("#search", "")
    assert page.locator("details.region .op:not(.hidden)").count() == everything


def test_regions_expand_and_collapse(page: Page) -> None:
    regions = page.locator("details.region").count()
    page.click("#expand")
    assert page.locator("details.region[open]").count() == regions
    page.click("#collapse")
    assert page.locator("details.region[open]").count() == 0


def test_an_instruction_shows_the_nodes_and_lines_that_it_stands_for(page: Page) -> None:
    page.click("#expand")
    line = page.locator(".after .op", has_text="gated_activation").first
    line.click()
    detail = page.locator("#detail").inner_text()
    assert "silu_and_mul" in detail
    assert "activation.py:" in detail
    consumed = page.locator(".before .op.consumed")
    assert consumed.count() >= 2
    assert any("silu" in text for text in consumed.all_inner_texts())


def test_names_from_a_model_are_text_and_not_markup() -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    report = {
        "architecture": evil,
        "dtype": "float32",
        "plan_sha256": "0",
        "nodes": {"captured": 1, "plan": 1},
        "regions": {"total": 1, "unique": 1},
        "fused": {evil: 1},
        "lowered": {},
        "rules": {},
        "timings_ms": {},
        "fallback": [],
    }
    node = {"node": evil, "target": evil, "module": evil, "line": evil}
    line = {"results": ["%0"], "op": evil, "operands": [], "types": [], "consumed": [node]}
    region = {"title": evil, "calls": 1, "lines": [line]}
    text = render(report, [region, {"title": "graph", "lines": [line]}])
    assert evil not in text
    with open_page() as (page, problems):
        page.set_content(text)
        assert page.locator("img").count() == 0
        assert page.locator(".op", has_text=evil).count() == 3
        assert problems == []


def test_the_page_holds_the_whole_report(page_file: Path) -> None:
    data = re.search(
        r'<script id="data" type="application/json">(.*?)</script>', page_file.read_text()
    )
    assert data is not None
    report = json.loads(data[1])["report"]
    assert report["fused"]["attention"] == LAYERS
    assert {"decode", "near_misses", "timings_ms", "fallback"} <= set(report)
