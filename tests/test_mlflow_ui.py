"""MLflow's pages as a person sees them: a comparison's runs side by side, in a real browser on a real server.

SKTUNE_SCREENSHOTS=1 also renews the pictures in docs/pictures.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_tracking import Server
from training_fixtures import ROOT, Sections, Workshop

from sktune.cli import main
from sktune.comparison.results import CellState, load_state
from sktune.tracking.saved_view import metric_column, tag_column
from sktune.tracking.uri import open_client

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian: apt-get install chromium)")

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MINIATURE: Sections = {
    "model": {"name_or_path": "embedded:llama"},
    "quantization": {"load_in_4bit": True},
    "method": {"text": "recognize the people , organisations , places and miscellaneous names in the text :"},
    "data": {
        "path": "embedded:newswire",
        **{split: split for split in ("train", "validation", "test")},
        **{f"max_{split}_samples": 60 for split in ("train", "validation", "test")},
    },
    "training": {"max_steps": 12, "eval_steps": 4},
}
PICTURES = ROOT / "docs" / "pictures"
COMPARED = {
    "compare/test_f1": lambda summary: summary["test/f1"],
    "compare/tokens_per_second": lambda summary: summary["speed/real_tokens_per_second"],
    "compare/peak_memory_mb": lambda summary: summary["memory/peak_bytes"] / 1e6,
    "compare/trainable_parameters": lambda summary: summary["trainable_parameters"],
}
SAME_LINE = """name => {
    const own = name.getBoundingClientRect(), middle = (own.top + own.bottom) / 2;
    const places = [...document.querySelectorAll("body *")]
        .filter(element => element.childElementCount === 0 && element.textContent.trim())
        .map(element => [element.getBoundingClientRect(), element])
        .filter(([box]) => box.top <= middle && middle <= box.bottom && box.left >= own.right)
        .filter(([box, element]) => document.elementFromPoint(box.left + 4, middle) === element);  // not covered
    return places.sort(([one], [other]) => one.left - other.left).map(([, element]) => element.textContent.trim());
}"""
SECONDS = 60_000
"""Patience with a page, in milliseconds: its first load compiles megabytes of scripts."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    open_client(f"sqlite:///{folder}/mlflow.db")
    server = Server(folder / "mlflow.db")
    server.start()
    yield server
    server.signal(signal.SIGKILL)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A page of a browser with a new, empty profile."""
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=CHROMIUM,
            headless=True,
            args=list(FLAGS),
            viewport={"width": 1800, "height": 620},
        )
        context.set_default_timeout(SECONDS)
        yield context.pages[0] if context.pages else context.new_page()
        context.close()


def picture(page: Any, name: str) -> None:
    if os.environ.get("SKTUNE_SCREENSHOTS"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / name)


def entry(row: Any, column: str) -> str:
    return str(row.locator(f'[col-id="{column}"]').inner_text())


def compared(page: Any, name: str) -> list[str]:
    """What stands on the line of a name on the compare page, from left to right: one value a run."""
    place = page.get_by_text(name, exact=True).last
    place.scroll_into_view_if_needed()
    return [str(text) for text in place.evaluate(SAME_LINE)]


def run_name(cell: CellState) -> str:
    return f"{cell.label}-llama-4bit-seed42"


def test_the_runs_of_a_comparison_side_by_side(
    workshop: Workshop, server: Server, page: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = {"enabled": True, "tracking_uri": server.uri, "experiment_name": "methods side by side"}
    recipe = workshop.write("compared", MINIATURE, {"tracking": tracking})
    with caplog.at_level(logging.INFO, "sktune"):
        assert main(["compare", str(recipe), "--methods", "sk_prefix,lora"]) == 0
    (address,) = re.findall(r"side by side in MLflow: (\S+)", caplog.text)
    cells = load_state(workshop.output("compared")).cells

    # The run table, in the view that the comparison saved: no column has to be chosen by hand.
    page.goto(address)
    for cell in cells:
        page.get_by_role("link", name=run_name(cell)).wait_for()
    close_assistant(page)
    shown_columns = (*map(tag_column, ("method", "model", "quantization", "ranks")), *map(metric_column, COMPARED))
    for column in shown_columns:
        page.locator(f'.ag-header-cell[col-id="{column}"]').wait_for()
    rows = sorted(
        page.locator(".ag-center-cols-container .ag-row").all(), key=lambda row: row.get_attribute("row-index")
    )
    by_score = sorted(cells, key=lambda cell: -cell.summary["test/f1"])
    assert len(rows) == len(cells)
    for cell, row in zip(by_score, rows, strict=True):  # the better one stands higher
        assert entry(row, tag_column("method")) == cell.label
        assert entry(row, tag_column("model")) == "embedded:llama"
        assert entry(row, tag_column("quantization")) == "4bit"
        for name, number in COMPARED.items():
            assert float(entry(row, metric_column(name))) == pytest.approx(number(cell.summary))
    picture(page, "mlflow_runs.png")

    # And the page that compares the two, reached as a person would.
    page.get_by_role("columnheader").get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    page.get_by_text("compare/peak_memory_mb").first.wait_for()
    runs = compared(page, "Run Name:")
    assert sorted(runs) == sorted(run_name(cell) for cell in cells)
    by_column = [next(cell for cell in cells if run_name(cell) == name) for name in runs]
    assert compared(page, "method.name") == [cell.label for cell in by_column]
    assert compared(page, "model") == ["embedded:llama"] * 2
    assert compared(page, "quantization") == ["4bit"] * 2
    assert compared(page, "ranks") == ["1"] * 2
    for name, number in COMPARED.items():
        for value, cell in zip(compared(page, name), by_column, strict=True):
            # Large numbers are written with one digit behind the point, small ones with two or three.
            assert float(value.replace(",", "")) == pytest.approx(number(cell.summary), abs=6e-3, rel=1e-4)
    page.get_by_text("Metrics", exact=True).last.scroll_into_view_if_needed()
    picture(page, "mlflow_compare.png")


def close_assistant(page: Any) -> None:
    """MLflow's assistant opens by itself over half of the table."""
    with contextlib.suppress(playwright.TimeoutError):
        page.get_by_text("MLflow Assistant").wait_for(timeout=5000)
        page.get_by_role("button", name="Close").last.click(timeout=5000)
