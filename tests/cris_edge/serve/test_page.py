"""The page in a real browser: `pytest -m browser` (Debian's package chromium, and playwright)."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    """A running service with the default model."""
    command = [sys.executable, "-m", "cris_edge", "serve", "--port", "0", "--runtime", "onnxruntime"]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = re.search(r"http://\S+", process.stderr.readline())
    assert found is not None
    yield found[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)  # uvicorn ends by the signal, after its shutdown
    process.stderr.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
    if CHROMIUM is None:
        pytest.skip("the page is tested in Chromium, which is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    yield page
    page.close()
    assert errors == []


def pixels(page: Any, button: str, row: int = 0) -> np.ndarray[Any, Any]:
    """What a download button of a prompt gives, as an array."""
    from PIL import Image

    with page.expect_download() as download:
        page.locator(f".prompt >> nth={row}").locator(button).click()
    return np.asarray(Image.open(io.BytesIO(Path(download.value.path()).read_bytes())))


def ask(page: Any, prompt: str, row: int = 0) -> str:
    line = page.locator(f".prompt >> nth={row}")
    line.locator("input").press_sequentially(prompt, delay=10)
    line.locator(".answer", has_text=re.compile("ms")).wait_for(timeout=20_000)
    page.wait_for_timeout(800)  # the last keystroke's answer
    return str(line.locator(".answer").inner_text())


def test_a_dropped_image_is_segmented_as_the_sdk_does(page: Any, root: Path) -> None:
    from cris_edge import Segmenter

    image = root / "examples" / "cat.jpg"
    handle = page.evaluate_handle(
        """async (bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "cat.jpg", {type: "image/jpeg"}));
            return transfer;
        }""",
        list(image.read_bytes()),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": handle})
    page.locator("#canvas").wait_for(state="visible")
    assert "score" in ask(page, "the bowl on the right")
    with Segmenter(runtime="onnxruntime") as segmenter:
        expected = segmenter(image, "the bowl on the right").mask
    mask = pixels(page, ".mask")
    assert np.array_equal(mask[:, :, 0] == 255, expected)
    assert np.array_equal(pixels(page, ".cutout")[:, :, 3] == 255, expected)


def test_several_prompts_the_threshold_and_the_keyboard(page: Any, root: Path) -> None:
    page.set_input_files("#file", root / "examples" / "cat.jpg")
    page.locator("#canvas").wait_for(state="visible")
    ask(page, "the bowl on the right")
    page.keyboard.press("Enter")  # a second prompt, focused
    ask(page, "the white cat", row=1)
    first, second = pixels(page, ".mask", 0), pixels(page, ".mask", 1)
    assert not np.array_equal(first, second)
    page.locator("#threshold").focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(1500)
    assert (pixels(page, ".mask", 0)[:, :, 0] > 0).sum() <= (first[:, :, 0] > 0).sum()
    with page.expect_download() as download:
        page.locator("#json").click()
    assert '"results"' in Path(download.value.path()).read_text()
    page.locator(".remove >> nth=0").click()
    assert page.locator(".prompt").count() == 1


def test_what_is_not_an_image_is_said(page: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    page.set_input_files("#file", tmp_path / "a.jpg")
    page.locator("#status.error").wait_for()
    assert "not an image" in page.locator("#status").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, address: str, root: Path, scheme: str, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    page.goto(address)
    page.set_input_files("#file", root / "examples" / "cat.jpg")
    page.locator("#canvas").wait_for(state="visible")
    ask(page, "the bowl on the right")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
    page.close()


def test_the_api_page_describes_every_route(page: Any, address: str) -> None:
    page.goto(f"{address}/docs")
    page.locator("h2").first.wait_for()
    assert "POST /v1/segment" in page.locator("#operations").inner_text()
