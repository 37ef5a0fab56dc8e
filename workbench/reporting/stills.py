"""PNG pictures of plotly figures and of widgets, drawn by a Chromium where the machine has one."""

from __future__ import annotations

import base64
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 800, 450
PAGE_WIDTH = 920
STARTS_WITHIN_MS = 5000
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
DRAW = """async ([figure, width, height]) => {
  const size = { width: figure.layout?.width ?? width, height: figure.layout?.height ?? height };
  const layout = { ...figure.layout, ...size, paper_bgcolor: "#fff" };
  document.body.style.margin = 0;
  await Plotly.newPlot(document.body, figure.data ?? [], layout, { staticPlot: true });
  return size;
}"""


def of_figures(figures: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """A base64 PNG of each figure, None for those that could not be drawn: no browser, a bad figure."""
    none: list[str | None] = [None] * len(figures)
    if not figures:
        return none
    bundle = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")

    def draw(page: Any, error: type[Exception]) -> list[str | None]:
        page.add_script_tag(content=bundle)
        return [_picture(page, figure, error) for figure in figures]

    return _in_browser(draw) or none


def of_widgets(page_html: str, model_ids: Sequence[str]) -> dict[str, str]:
    """A base64 PNG of each widget that starts in the report's page, by its model's id."""
    if not model_ids:
        return {}

    def draw(page: Any, error: type[Exception]) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "page.html"
            file.write_text(page_html, "utf-8")
            page.set_viewport_size({"width": PAGE_WIDTH, "height": HEIGHT})
            page.goto(file.as_uri())
            # what changes from run to run, times and buttons, is no part of a picture
            page.add_style_tag(content=".wb-foot { display: none !important }")
            return {m: shot for m in model_ids if (shot := _widget(page, m, error)) is not None}

    return _in_browser(draw) or {}


def _in_browser(draw: Callable[[Any, type[Exception]], Any]) -> Any:
    """What `draw(page, its error)` gives; None without a browser."""
    # Playwright's plain interface refuses to run beside an event loop, which a notebook has.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_drawn, draw).result()


def _drawn(draw: Callable[[Any, type[Exception]], Any]) -> Any:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return None
    found = next(filter(None, map(shutil.which, NAMES)), None)
    # Chromium's own sandbox refuses to start for root.
    sandbox = () if getattr(os, "geteuid", lambda: 1)() else ("--no-sandbox",)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=found, args=[*FLAGS, *sandbox])
            try:
                return draw(browser.new_context(offline=True).new_page(), Error)
            finally:
                browser.close()
    except Error:
        return None


def _widget(page: Any, model_id: str, error: type[Exception]) -> str | None:
    try:
        place = page.locator(f'[data-afm="{model_id}"]').first
        place.locator(".wb").first.wait_for(timeout=STARTS_WITHIN_MS)
        return _encoded(place.screenshot())
    except error:
        return None


def _encoded(png: bytes) -> str:
    """Base64; with Pillow at hand in at most 256 colours, which is a third of the bytes."""
    try:
        from PIL import Image
    except ImportError:
        return base64.b64encode(png).decode()
    small = io.BytesIO()
    few = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def _picture(page: Any, figure: Mapping[str, Any], error: type[Exception]) -> str | None:
    try:
        # A screenshot, not Plotly.toImage: without an alpha channel the file is a third smaller.
        page.set_viewport_size(page.evaluate(DRAW, [figure, WIDTH, HEIGHT]))
        return _encoded(page.screenshot())
    except error:
        return None
