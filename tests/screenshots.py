"""The pictures of the app and of a report in docs/images, made again: ``python -m tests.screenshots app`` and ``... report FILE``.

Chromium draws them at the width of a screen (1280 x 800) and of a phone (390 x 844). The app opens the demo model and asks about
its synthetic examples, in their order; nothing is selected. ``report`` takes the report that ``make demo`` wrote.
"""

import argparse
import contextlib
import io
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from selenium import webdriver

from tests.app.user import User
from tests.browser import open_browser
from tests.conftest import ROOT

IMAGES = ROOT / "docs" / "images"
SIZES = {"": (1280, 800), "-phone": (390, 844)}
MOST = 250_000
"""Bytes of a picture."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("app", "report"))
    parser.add_argument("report", nargs="?", type=Path, metavar="FILE", help="an HTML report")
    parser.add_argument("--output", type=Path, default=IMAGES, metavar="DIR", help="(%(default)s)")
    arguments = parser.parse_args()
    if arguments.what == "app":
        with running_app() as address:
            for name, (width, height) in SIZES.items():
                picture_app(address, width, height, arguments.output / f"app{name}.png")
        return
    if arguments.report is None:
        parser.error("name a report: runs/demo/report.html")
    for name, (width, height) in SIZES.items():
        browser = open_browser(width, height)
        browser.get(arguments.report.resolve().as_uri())
        save(browser, arguments.output / f"report{name}.png")
        browser.quit()


@contextlib.contextmanager
def running_app() -> Iterator[str]:
    """The address of the app with the demo model."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        app = subprocess.Popen([sys.executable, str(ROOT / "tools" / "app.py"), "--port", str(port)], stdout=log, stderr=log)
        try:
            while "The app is open" not in (log.seek(0), log.read())[1]:
                if app.poll() is not None:
                    raise SystemExit(f"The app has ended: {(log.seek(0), log.read())[1]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/"
        finally:
            app.terminate()
            app.wait(60)


def picture_app(address: str, width: int, height: int, path: Path) -> None:
    """Ask the question of each synthetic example, then step back to the second one."""
    user = User(address, width, height)
    try:
        count = len(user.browser.find_elements("css selector", "#examples button"))
        for number in range(1, count + 1):
            button = user.find(f"#examples li:nth-child({number}) button")
            question = button.text
            button.click()
            user.place(f"Image {number} of {number}")
            user.wait(lambda question=question: user.box.get_attribute("value") == question)
            user.find("#ask").click()
            user.answers(question)
        user.find("#previous").click()
        user.place(f"Image {count - 1} of {count}")
        user.picture("overlay")
        user.browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        save(user.browser, path)
    finally:
        user.browser.quit()


def save(browser: webdriver.Chrome, path: Path) -> None:
    """What the window shows, as a PNG; of 256 colours where it would be too large."""
    shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    shot.save(path, "PNG", optimize=True)
    if path.stat().st_size > MOST:
        shot.quantize(256, Image.Quantize.FASTOCTREE).save(path, "PNG", optimize=True)
    if (size := path.stat().st_size) > MOST:
        raise SystemExit(f"{path} has {size} bytes, more than {MOST}.")
    print(f"{path}: {shot.width} x {shot.height} pixels, {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
