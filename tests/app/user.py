"""One user's browser at the app."""

import io
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import open_browser

SECONDS = 300


class User:
    """Opens the app and waits until it can be used."""

    def __init__(self, address: str, width: int = 1280, height: int = 800) -> None:
        """``width``, ``height``: of the window, pixels."""
        self.browser = open_browser(width, height)
        self.browser.get(address)
        self.wait(lambda: self.find("#ask") and self.find("#upload input") and self.find("#examples img"))

    def find(self, selector: str) -> Any:
        """The first element."""
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], Any]) -> Any:
        """The condition's first value that is not empty."""
        end = time.monotonic() + SECONDS
        while True:
            try:
                if value := condition():
                    return value
            except Exception as e:  # the element is not there yet, or is being replaced
                last: Exception | None = e
            else:
                last = None
            assert time.monotonic() < end, f"{last}\n{self.browser.find_element(By.TAG_NAME, 'body').text}"
            time.sleep(0.1)

    @property
    def box(self) -> Any:
        """The question's box."""
        return self.find("#question input, #question textarea")

    def upload(self, *paths: Path) -> None:
        """Choose files."""
        self.find("#upload input").send_keys("\n".join(map(str, paths)))

    def type(self, question: str, *keys: str) -> None:
        """Replace what is in the question's box, then press ``keys``."""
        self.box.send_keys(Keys.CONTROL, "a")
        self.box.send_keys(question or Keys.BACKSPACE, *keys)

    def ask(self, question: str) -> None:
        """Type a question, and click."""
        self.type(question)
        self.find("#ask").click()

    def answers(self, question: str) -> dict[str, int]:
        """The answers to a question with their per cents, once they are there."""
        self.wait(lambda: self.find("#answers h2").text == question and self.find("#answers .percent"))
        rows = [row.text for row in self.browser.find_elements(By.CSS_SELECTOR, "#answers .answers li")]
        found = [re.fullmatch(r"(.+?)\s+(\d+)\s%", text) for text in rows]
        return {row[1]: int(row[2]) for row in found if row}

    def hint(self, words: str) -> None:
        """Wait for a hint that holds some words."""
        self.wait(lambda: words in self.find("#hint").text)

    def place(self, words: str) -> None:
        """Wait until the study stands at an image: "Image 2 of 3: name"."""
        self.wait(lambda: self.find("#place").text.startswith(words))

    def picture(self, name: str) -> np.ndarray:
        """The pixels of an image on the page, once it is there."""
        source = self.wait(lambda: self.find(f"#{name} > img").get_attribute("src"))
        with urllib.request.urlopen(source) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"), dtype=int)

    def sides(self, selector: str) -> dict[str, float]:
        """Where an element is in the window: left, top, right and bottom, pixels."""
        script = "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        found = self.browser.execute_script(f"{script} return [r.left, r.top, r.right, r.bottom]", selector)
        return dict(zip(("left", "top", "right", "bottom"), found, strict=True))

    def covering(self, selector: str) -> list[str]:
        """What lies over the corners, edges and middle of an image, where side markers are, beside itself."""
        script = """
        const image = document.querySelector(arguments[0]), r = image.getBoundingClientRect(), found = [];
        for (const x of [0.02, 0.25, 0.5, 0.75, 0.98]) for (const y of [0.02, 0.5, 0.98]) {
            const top = document.elementFromPoint(r.left + x * r.width, r.top + y * r.height);
            if (top !== image) found.push(top ? top.outerHTML.slice(0, 200) : "out of view");
        }
        return found"""
        return list(self.browser.execute_script(script, selector))
