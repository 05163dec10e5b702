"""Draws the README's picture of a page: its first screen, in headless Chromium.

    exhume audit model.pt --images images.npz --mean images
    python -m benchmarks.screenshot runs/audit-model docs/page.png --height 1400

Chromium or Chrome is looked for by the environment variable CHROME, then on the path.
"""

import io
import os
import shutil
import sys
from pathlib import Path

import tyro
from PIL import Image
from playwright.sync_api import Browser, Playwright, sync_playwright
from tyro.conf import Positional

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Names of Chromium on the path."""
COLOURS = 128
"""Colours of the picture: few are on the page, and a palette makes the file small."""


def find_browser() -> str | None:
    """The browser's program; None: there is none."""
    return os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)


def launch(playwright: Playwright, program: str) -> Browser:
    """Starts the browser, without its sandbox for root, for whom it has none."""
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=program, args=arguments)


def main(run: Positional[Path], out: Positional[Path], /, width: int = 1200, height: int = 1120) -> None:
    """Draws the first screen of run/report.html in the light dress."""
    program = find_browser()
    if program is None:
        sys.exit("There is no Chromium; name one by the environment variable CHROME.")
    with sync_playwright() as playwright:
        browser = launch(playwright, program)
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        page.goto((run / "report.html").resolve().as_uri())
        shot = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(out, optimize=True)


if __name__ == "__main__":
    tyro.cli(main)
