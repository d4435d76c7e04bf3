"""MLflow's pages as a person sees them: a comparison's runs side by side, in a real browser on a real server.

SKTUNE_SCREENSHOTS=1 also renews the pictures in docs/pictures.
"""

from __future__ import annotations

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
from training_fixtures import ROOT, Workshop

from sktune.cli import main
from sktune.comparison.state import CellState, load_state
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
PICTURES = ROOT / "docs" / "pictures"
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


def shown(value: float) -> str:
    """A metric as the pages write it, as far as they do not shorten it."""
    return f"{value:.10g}"[:6]


def run_name(cell: CellState, workshop: Workshop) -> str:
    return f"{cell.label}-{Path(workshop.base['model']['name_or_path']).name}-float32-seed42"


def test_the_runs_of_a_comparison_side_by_side(
    workshop: Workshop, server: Server, page: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = {"enabled": True, "tracking_uri": server.uri, "experiment_name": "methods side by side"}
    recipe = workshop.write("compared", {"training": {"max_steps": 8, "eval_steps": 4}, "tracking": tracking})
    with caplog.at_level(logging.INFO, "sktune"):
        assert main(["compare", str(recipe), "--methods", "sk_prefix,lora"]) == 0
    (address,) = re.findall(r"side by side in MLflow: (\S+)", caplog.text)
    cells = load_state(workshop.output("compared")).cells

    # The run table, in the view that the comparison saved: no column has to be chosen by hand.
    page.goto(address)
    for cell in cells:
        page.get_by_role("link", name=run_name(cell, workshop)).wait_for()
    for heading in ("method", "model", "quantization", "ranks", "final/test/f1", "final/speed/real_tokens_per_second"):
        assert page.get_by_role("columnheader", name=heading, exact=True).is_visible()
    assert page.get_by_role("columnheader", name="final/memory/peak_bytes", exact=True).is_visible()
    rows = [row.inner_text().split("\n") for row in page.locator(".ag-center-cols-container .ag-row").all()]
    by_method = {row[0]: row for row in rows if row[0] in ("sk_prefix", "lora")}
    assert len(by_method) == 2, rows
    for cell in cells:
        row = "\n".join(by_method[cell.label])
        for key in ("test/f1", "speed/real_tokens_per_second", "memory/peak_bytes"):
            assert shown(cell.summary[key]) in row
        assert "float32" in row
    # Better runs stand higher.
    order = [row[0] for row in rows if row[0] in by_method]
    assert order == sorted(by_method, key=lambda label: -next(c for c in cells if c.label == label).summary["test/f1"])
    close_assistant(page)
    picture(page, "mlflow_runs.png")

    # And the page that compares the two, reached as a person would.
    page.get_by_role("columnheader").get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    page.get_by_text("Run details").wait_for()
    text = page.locator("body").inner_text()
    lines = dict(line.split("\t", 1) for line in text.split("\n") if line.count("\t") >= 1)
    columns = re.findall(r"(sk_prefix|lora)-model\w*-float32-seed42", text)
    assert len(columns) >= 2
    assert set(lines["method.name"].split("\t")) == {"sk_prefix", "lora"}
    for key in ("test/f1", "speed/real_tokens_per_second", "memory/peak_bytes"):
        for cell in cells:
            assert shown(cell.summary[key]) in lines[f"final/{key}"].replace(",", "")
    assert set(lines["ranks"].split("\t")) == {"1"}
    page.get_by_text("final/memory/peak_bytes").last.scroll_into_view_if_needed()
    picture(page, "mlflow_compare.png")


def close_assistant(page: Any) -> None:
    """MLflow's assistant opens by itself over half of the table."""
    button = page.get_by_role("button", name="Close")
    if button.count():
        button.last.click()
