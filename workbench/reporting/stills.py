"""PNG pictures of plotly figures, drawn by a Chromium where the machine has one."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

WIDTH, HEIGHT = 800, 450
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
DRAW = """async ([figure, width, height]) => {
  const size = { width: figure.layout?.width ?? width, height: figure.layout?.height ?? height };
  const layout = { ...figure.layout, ...size, paper_bgcolor: "#fff" };
  document.body.style.margin = 0;
  await Plotly.newPlot(document.body, figure.data ?? [], layout, { staticPlot: true });
  return size;
}"""


def of(figures: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """A base64 PNG of each figure, None for those that could not be drawn: no browser, a bad figure."""
    if not figures:
        return []
    # Playwright's plain interface refuses to run beside an event loop, which a notebook has.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_drawn, figures).result()


def _drawn(figures: Sequence[Mapping[str, Any]]) -> list[str | None]:
    none: list[str | None] = [None] * len(figures)
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return none
    bundle = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    # Chromium's own sandbox refuses to start for root.
    sandbox = () if getattr(os, "geteuid", lambda: 1)() else ("--no-sandbox",)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=found, args=[*FLAGS, *sandbox])
            try:
                page = browser.new_context(offline=True).new_page()
                page.add_script_tag(content=bundle)
                return [_picture(page, figure, Error) for figure in figures]
            finally:
                browser.close()
    except Error:
        return none


def _picture(page: Any, figure: Mapping[str, Any], error: type[Exception]) -> str | None:
    try:
        # A screenshot, not Plotly.toImage: without an alpha channel the file is a third smaller.
        page.set_viewport_size(page.evaluate(DRAW, [figure, WIDTH, HEIGHT]))
        return base64.b64encode(page.screenshot()).decode()
    except error:
        return None
