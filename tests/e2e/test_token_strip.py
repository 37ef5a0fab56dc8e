"""TokenStrip in a real browser: what is drawn, keys, hostile texts, and no kernel."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.e2e import harness
from tests.e2e.bridge import Mounted
from workbench_widgets import TokenStrip
from workbench_widgets.stills.colours import colour

pytestmark = pytest.mark.browser
VIEW = {"width": 900, "height": 600}
AXE = """async () => (await axe.run('.wb')).violations.map(
    (v) => v.id + ': ' + v.nodes[0].html)"""
KEEP_FILES = """() => {
  window.files = {};
  const urls = {}, make = URL.createObjectURL;
  URL.createObjectURL = (blob) => { const url = make.call(URL, blob); urls[url] = blob; return url; };
  HTMLAnchorElement.prototype.click = async function () {
    window.files[this.download.split('.').pop().toUpperCase()] = await urls[this.href].text(); };
}"""
ARROWS = """() => {
  const t = performance.now(), list = document.querySelector('.wb-strip-list');
  const event = () => new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true });
  for (let i = 0; i < 20; i++) list.dispatchEvent(event());
  return (performance.now() - t) / 20; }"""
WIDE_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="50000" height="300">'
    '<rect width="50000" height="300" fill="#f00"/></svg>'
)
WIDE_PNG = """async ([source, svg]) => {
  const file = new Blob([source], { type: 'text/javascript' });
  const { toPng } = await import(URL.createObjectURL(file));
  const blob = await toPng(svg), image = await createImageBitmap(blob);
  const context = new OffscreenCanvas(1, 1).getContext('2d');
  context.drawImage(image, 1 - image.width, 0);
  return { head: [...new Uint8Array(await blob.slice(0, 4).arrayBuffer())],
    width: image.width, height: image.height, red: context.getImageData(0, 0, 1, 1).data[0] }; }"""
HOSTILE = ["<img src=x onerror='window.hacked=1'>", "</script><script>window.hacked=1</script>"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with harness.browser(tmp_path_factory.mktemp("page"), viewport=VIEW) as (page, seen):
        yield page
    assert not seen.errors and not seen.external


def rgb(text: str) -> str:
    """A colour of Python's as the browser says it."""
    return f"rgb({', '.join(str(int(text[i : i + 2], 16)) for i in (1, 3, 5))})"


def strip() -> TokenStrip:
    words = [*["The", "cat", "sat"], *HOSTILE, "\n", " end"]
    values = {"p": np.linspace(-4, 0, 7), "d": [-2.0, -1, 0, 0.5, 1, None, 2]}
    other = [*words[:2], " sat", *HOSTILE, " more", "\n", " end"]
    others = {"p": np.linspace(-3, 0, 8), "d": np.linspace(-1, 1, 8)}
    return TokenStrip(
        words, values, unit="nats", title="<b>t</b>", other=other, other_values=others
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_each_token_has_its_number_behind_it(page, dark):
    widget = strip()
    shown = Mounted(page, widget, dark=dark)
    shown.settled()
    cells = [c for c in shown.debug()["cells"] if c["title"]]
    scale, frame = widget.frame["scales"][0], widget.frame
    for row, key in enumerate(("values", "other_values")):
        mine = [c for c in cells if c["row"] == row]
        want = [rgb(colour(float(v), scale["lo"], scale["hi"], False)) for v in frame[key][0]]
        assert [c["background"] for c in mine] == want
    assert ": −4.00 nats" in cells[0]["title"]
    assert page.evaluate("window.hacked") is None
    assert page.locator(".wb-strip img, .wb-strip script, .wb-ts-title b").count() == 0
    shown.shot(f"token_strip-{'dark' if dark else 'light'}")


def test_without_a_kernel_every_row_is_there(page):
    widget = strip()
    shown = Mounted(page, widget, connected=False)
    assert shown.debug()["mode"] == "sweep"
    assert "complete: no kernel needed" in shown.root.inner_text()
    page.get_by_label("values").select_option("d")
    assert shown.debug()["row"] == "d" and widget.spec["row"] == "p"
    cells = [c for c in shown.debug()["cells"] if c["title"] and c["row"] == 0]
    assert cells[0]["background"] == rgb(colour(-2.0, -2, 2, True))
    assert "–" in cells[5]["title"]
    assert "0.083" in shown.root.locator("table").inner_text()  # the mean of d


def test_with_a_kernel_the_menu_tells_python(page):
    widget = strip()
    shown = Mounted(page, widget)
    page.get_by_label("values").select_option("d")
    shown.until(lambda: widget.spec["row"] == "d")
    shown.settled()
    assert shown.debug()["row"] == "d"


def test_keys_move_select_and_speak(page):
    widget = strip()
    shown = Mounted(page, widget)
    shown.settled()
    page.locator(".wb-strip-list").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".wb-strip .wb-sr").inner_text().startswith("token 1 cat: −3.33 nats")
    page.keyboard.press("Enter")
    shown.until(lambda: widget.selection.get("token") == 1)
    page.keyboard.press("ArrowDown")
    assert page.locator(".wb-tok-at").get_attribute("data-row") == "1"
    page.keyboard.press("Tab")  # out of the strip at once
    assert not page.evaluate("document.activeElement.closest('.wb-strip-list')")


def test_4000_tokens_are_drawn_fast_and_in_words(page):
    widget = TokenStrip([f" w{i}" for i in range(4000)], np.arange(4000.0))
    shown = Mounted(page, widget)
    shown.settled()
    assert page.locator(".wb-tok").count() == 1000
    page.get_by_role("button", name="… 3,000 more").click()
    assert page.locator(".wb-tok").count() == 2000
    took = page.evaluate(ARROWS)
    assert took < 60, f"one arrow takes {took} ms"


def test_files_hold_what_is_shown(page):
    shown = Mounted(page, strip())
    shown.settled()
    page.evaluate(KEEP_FILES)
    for name in ("CSV", "SVG", "PNG"):
        shown.root.get_by_role("button", name=name).click()
        shown.until(lambda name=name: page.evaluate(f"window.files.{name}"))
    files = page.evaluate("window.files")
    head = "position,token,p (nats),d (nats),other position"
    assert files["CSV"].startswith(head)
    assert files["SVG"].startswith("<svg") and not re.search(r"<(img|script)", files["SVG"])
    assert files["PNG"].startswith("\ufffdPNG")


def test_pictures_wider_than_a_canvas_are_png_files(page):
    """Larger than Chromium's largest canvas: without a smaller scale the file is the word null."""
    source = (harness.ROOT / "widgets" / "js" / "export.js").read_text("utf-8")
    Mounted(page, strip()).settled()
    size = page.evaluate(WIDE_PNG, [source, WIDE_SVG])
    assert size["head"] == [0x89, 0x50, 0x4E, 0x47] and size["width"] == 16384
    assert size["height"] == 98 and size["red"] > 250


def test_accessible(page):
    axe = harness.ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.exists():
        pytest.skip("no axe-core (tests/SKIPS.md)")
    for dark in (False, True):
        Mounted(page, strip(), dark=dark).settled()
        page.add_script_tag(path=axe)
        found = page.evaluate(AXE)
        assert found == []
