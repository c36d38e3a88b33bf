"""The report of a whole run in headless Chromium: on a phone and at a desk, light and dark."""

import base64
import io
import os
import shutil

import numpy as np
import pytest

from keras_distill.reporting.pictures import PICTURES

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
PHONE, DESK = (390, 844), (1280, 800)
HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3")].map(
    heading => [heading.tagName, heading.innerText, heading.getClientRects().length])"""
IMAGES = """() => [...document.images].map(image => ({
    name: image.closest("figure").id, shown: image.currentSrc, whole: image.complete,
    pixels: image.naturalWidth, alt: image.alt, width: image.getBoundingClientRect().width}))"""
BOXES = """() => [...document.images].map(image => image.getBoundingClientRect())
    .map(box => [box.left, box.top + window.scrollY, box.right, box.bottom + window.scrollY])"""
WIDER = """() => [...document.querySelectorAll("body *")]
    .filter(one => one.getBoundingClientRect().right > window.innerWidth + 1
        && !one.closest(".table") && !one.closest("pre"))
    .map(one => one.tagName)"""


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of this machine; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(NAMES)} is on the PATH")
    switches = [*SWITCHES, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=switches)
        yield chromium
        chromium.close()


@pytest.fixture(params=[(PHONE, "light"), (PHONE, "dark"), (DESK, "light"), (DESK, "dark")])
def page(request, browser, whole_run):
    """The page as one reader sees it, what the browser had to say of it, and the reader."""
    (width, height), scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda line: said.append(line.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto((whole_run / "report.html").as_uri())
    outside = [line for line in said if not line.startswith(("data:", "file:"))]
    yield page, outside, (width, scheme)
    context.close()


def test_page_is_whole_fits_and_has_ink(page, whole_run):
    page, said, (width, scheme) = page
    assert said == []  # no error, no warning, nothing from a network
    scrolled, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert scrolled <= inner == width and page.evaluate(WIDER) == []

    headings = page.evaluate(HEADINGS)
    assert all(boxes for _, _, boxes in headings)
    expected = [picture.title for picture in PICTURES]
    assert [text for tag, text, _ in headings if tag == "H3"] == expected
    sections = dict.fromkeys(picture.section for picture in PICTURES)
    assert [text for tag, text, _ in headings if tag == "H2"] == [*sections, "Settings"]
    assert [tag for tag, _, _ in headings].count("H1") == 1

    paper, ending = {"light": ((255, 255, 255), ".png"), "dark": ((13, 17, 23), "-dark.png")}[
        scheme
    ]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == f"rgb{paper}"
    images = page.evaluate(IMAGES)
    assert [image["name"] for image in images] == [picture.name for picture in PICTURES]
    for image in images:
        assert image["whole"] and image["alt"]
        assert 200 < image["width"] <= min(width, 600) < image["pixels"]
        shown = base64.b64decode(image["shown"].removeprefix("data:image/png;base64,"))
        assert shown == (whole_run / "figures" / f"{image['name']}{ending}").read_bytes()

    drawn = _pixels(page.screenshot(full_page=True))
    for box in page.evaluate(BOXES):
        left, top, right, bottom = map(round, box)
        inside = drawn[top:bottom, left:right]
        assert (inside[0, 0] == paper).all()
        assert np.mean(np.abs(inside - paper).max(axis=-1) > 40) > 0.01


def _pixels(png):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), "float64")
