"""The app as a user meets it: a server on this machine, and Chromium (Debian's, headless) that uploads, asks and looks."""

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from m2i2.demo import FOLDER, NOTICE
from tests.conftest import ROOT
from tests.launching import environment
from tests.phantom_model import lesion_questions, phantoms
from tests.preloaded import start
from tests.unit.test_dicom import dicom

SECONDS = 300
SCREENSHOT = os.environ.get("M2I2_SCREENSHOT", "")
"""Where a picture of the app is written (docs/images/app.png is one); empty: nowhere."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running app, with the demo model, which it opens where no --checkpoint is given."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "answers.txt").write_text("nodule\ncyst\nmass\nleft\nright\nupper\nlower\n")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = ["--candidates", "answers.txt", "--port", str(port)]
    words += ["--max-megabytes", "1", "--max-megapixels", "1"]
    (folder / "temporary").mkdir()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / "app.py"), *words],
            cwd=folder,
            env={**environment(), "TMPDIR": str(folder / "temporary")},
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup may have started the tests
        )
        end = time.monotonic() + 600
        while "The app is open" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        assert list((folder / "temporary").glob("m2i2-app-*/*/*.png")), "uploads lie there while it runs"
        process.send_signal(signal.SIGHUP)
        assert process.wait(300) == 0, (folder / "log").read_text()
    assert "The app has ended" in (folder / "log").read_text()
    assert "Traceback" not in (folder / "log").read_text()
    assert not list((folder / "temporary").glob("m2i2-app-*")), "and are gone after it"


class Page:
    """One user's browser."""

    def __init__(self, address: str, size: str = "1280,800") -> None:
        """``size``: of the window, pixels."""
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={size}", "--disable-gpu"):
            options.add_argument(word)
        driver = shutil.which("chromedriver")
        if not options.binary_location or not driver:
            pytest.skip("Chromium is not there: apt-get install chromium chromium-driver")
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
        width, height = map(int, size.split(","))
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)  # a window is never narrower than 500
        self.browser.get(address)
        self.wait(lambda: self.find("#ask"))

    def find(self, selector: str) -> Any:
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

    def upload(self, path: Path) -> None:
        self.wait(lambda: self.browser.find_elements(By.CSS_SELECTOR, "#upload input[type=file]"))
        self.find("#upload input[type=file]").send_keys(str(path))

    def picture(self, name: str) -> np.ndarray:
        """The pixels of an image on the page, once it is there."""
        source = self.wait(lambda: self.find(f"#{name} img").get_attribute("src"))
        with urllib.request.urlopen(source) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"), dtype=int)

    def ask(self, question: str) -> None:
        box = self.find("#question textarea, #question input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(question)
        self.find("#ask").click()

    def answers(self) -> dict[str, int]:
        """Answers with their per cents, once they are there."""
        text = self.wait(lambda: "%" in self.find("#answers").text and self.find("#answers").text)
        found = re.findall(r"([a-z]+)\s+(\d+)%", text)
        return {answer: int(percent) for answer, percent in found}

    def place(self, selector: str) -> dict[str, float]:
        """Where an element is in the window: left, top, right and bottom, pixels."""
        script = "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        return self.browser.execute_script(
            f"{script} return {{left: r.left, top: r.top, right: r.right, bottom: r.bottom}}", selector
        )

    def toast(self) -> str:
        """What an error on the page says."""
        return self.wait(lambda: self.find(".toast-body").text)


@pytest.fixture
def page(server: str) -> Iterator[Page]:
    user = Page(server)
    yield user
    user.browser.quit()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Phantoms as PNG files with a question about their lesion that the model answers correctly, and the answer.

    Those come first whose map lies best on the lesion.
    """

    from m2i2.inference.localisation import localise
    from m2i2.workflows.answering import load_model

    answerer = load_model(FOLDER).answerer(("nodule", "cyst", "mass", "left", "right", "upper", "lower"))
    folder, found = tmp_path_factory.mktemp("cases"), []
    for number, phantom in enumerate(phantoms("test", 60)):
        image = Image.fromarray(phantom.image).convert("RGB")
        right = [(q, a) for q, a in lesion_questions(phantom) if answerer.answer(image, q)[0][0] == a]
        if len(right) == 3:
            path = folder / f"phantom-{number}.png"
            image.resize((384, 384), Image.Resampling.BICUBIC).save(path)
            question, answer = right[0]
            gain = localise(answerer.explain(image, question, answer).map, phantom.lesion_mask).gain
            found.append((gain, path, question, answer))
        if len(found) == 8:
            break
    assert len(found) > 4
    return [case for _, *case in sorted(found, key=lambda row: -row[0])]


def test_upload_ask_see_answer_and_overlay(page: Page, cases: list[tuple[Path, str, str]]) -> None:
    assert "not a medical device" in page.find("#notice").text and NOTICE in page.find("#notice").text
    path, question, answer = cases[0]
    page.upload(path)
    shown = page.picture("picture")
    assert abs(shown - np.asarray(Image.open(path).convert("RGB"), dtype=int)).max() <= 1
    page.ask(question)
    answers = page.answers()
    assert next(iter(answers)) == answer and 95 <= sum(answers.values()) <= 102
    heat = page.picture("overlay")
    assert heat.shape == shown.shape and (shown[..., 0] == shown[..., 2]).all()
    assert (heat[..., 0] - heat[..., 2]).max() > 60, "something is hot, on however light a lesion"
    assert np.median(abs(heat - shown)) < 30, "and most of it is not"
    for what in ("#question", "#picture img", "#overlay img", "#answers"):
        place = page.place(what)
        assert place["top"] >= 0 and place["bottom"] <= 800 and place["left"] >= 0 and place["right"] <= 1280, (what, place)
    assert answer in page.find("#where").text
    assert covering(page, "#picture img") == covering(page, "#overlay img") == []
    if SCREENSHOT:
        time.sleep(2)
        page.browser.save_screenshot(SCREENSHOT)


def covering(page: Page, image: str) -> list[str]:
    """What lies over the corners, edges and middle of an image, where side markers are: nothing but itself."""
    script = """
    const image = document.querySelector(arguments[0]), r = image.getBoundingClientRect(), found = [];
    for (const x of [0.02, 0.25, 0.5, 0.75, 0.98]) for (const y of [0.02, 0.5, 0.98]) {
        const top = document.elementFromPoint(r.left + x * r.width, r.top + y * r.height);
        if (top !== image && !top.contains(image)) found.push(top.outerHTML.slice(0, 200));
    }
    return found"""
    return page.browser.execute_script(script, image)


def test_at_the_width_of_a_phone_nothing_is_cut_off(server: str, cases: list[tuple[Path, str, str]]) -> None:
    user = Page(server, "390,844")
    try:
        path, question, answer = cases[0]
        user.upload(path)
        user.picture("picture")
        user.ask(question)
        assert next(iter(user.answers())) == answer
        user.picture("overlay")
        assert user.browser.execute_script("return document.documentElement.scrollWidth") <= 390
        for what in ("#notice", "#upload", "#question", "#ask", "#picture img", "#overlay img", "#answers", "#examples"):
            place = user.place(what)
            assert place["left"] >= 0 and place["right"] <= 390, (what, place)
        if SCREENSHOT:
            user.browser.execute_script("window.scrollTo(0, 0)")
            time.sleep(2)
            user.browser.save_screenshot(SCREENSHOT.replace(".png", "-phone.png"))
    finally:
        user.browser.quit()


def test_enter_asks_and_what_is_missing_is_a_hint(page: Page, cases: list[tuple[Path, str, str]]) -> None:
    """The page stays as it is: an answer that is there is not replaced by an error."""
    path, question, answer = cases[0]
    box = page.find("#question textarea, #question input")
    box.send_keys(question, Keys.ENTER)
    assert "Upload a radiograph first" in page.toast()
    page.upload(path)
    page.picture("picture")
    box.send_keys(Keys.ENTER)
    assert next(iter(page.answers())) == answer
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.BACKSPACE, Keys.ENTER)
    page.wait(lambda: "Type a question about the image first" in page.browser.page_source)
    assert next(iter(page.answers())) == answer
    assert not page.browser.find_elements(By.CSS_SELECTOR, ".toast-body.error")


def test_a_dicom_file_is_shown_with_what_its_user_must_know(page: Page, tmp_path: Path) -> None:
    phantom = phantoms("test", 20)[0]
    encoded = dicom(phantom.image.astype(np.uint16) * 16, PhotometricInterpretation="MONOCHROME1")
    (tmp_path / "study").write_bytes(encoded)
    page.upload(tmp_path / "study")
    shown = page.picture("picture")
    assert np.corrcoef(shown[..., 0].ravel(), 255 - phantom.image.ravel())[0, 1] > 0.999
    remarks = page.wait(lambda: page.find("#remarks").text)
    assert "burned into its pixels" in remarks and "identifiers" in remarks
    page.ask("what kind of lesion is shown?")
    assert page.answers()
    assert not any(word in page.browser.page_source for word in ("DOE", "JANE", "SECRET"))


def test_a_wrong_file_an_oversized_file_and_too_many_pixels_are_said(page: Page, tmp_path: Path) -> None:
    (tmp_path / "letter.png").write_bytes(b"Dear colleague, ...")
    page.upload(tmp_path / "letter.png")
    assert "letter.png cannot be decoded" in page.toast()
    page.browser.refresh()
    Image.new("L", (1200, 1000)).save(tmp_path / "wide.png")
    page.wait(lambda: page.find("#ask"))
    page.upload(tmp_path / "wide.png")
    assert "1200 x 1000 pixels, more than the bound of 1000000" in page.toast()
    page.browser.refresh()
    (tmp_path / "large.png").write_bytes(bytes(1_100_000))
    page.wait(lambda: page.find("#ask"))
    page.upload(tmp_path / "large.png")
    assert re.search(r"exceeds|too large|maximum", page.toast())
    page.ask("what is it?")
    page.wait(lambda: "Upload a radiograph first" in page.browser.page_source)


def test_two_users_at_once_get_their_own_answers(server: str, cases: list[tuple[Path, str, str]]) -> None:
    first, second = Page(server), Page(server)
    try:
        answers = sorted({answer for _, _, answer in cases})
        mine = [next(case for case in cases if case[2] == answer) for answer in answers[:2]]
        assert mine[0][2] != mine[1][2]
        for user, (path, _, _) in zip((first, second), mine, strict=True):
            user.upload(path)
            user.picture("picture")
        for _ in range(3):
            for user, (_, question, _) in zip((first, second), mine, strict=True):
                user.ask(question)
            for user, (_, _, answer) in zip((first, second), mine, strict=True):
                assert next(iter(user.answers())) == answer
    finally:
        first.browser.quit()
        second.browser.quit()


def test_a_drawn_example_is_one_click(page: Page) -> None:
    thumbnails = page.wait(lambda: page.browser.find_elements(By.CSS_SELECTOR, "#examples .gallery-item img"))
    assert len(thumbnails) == 3
    page.wait(lambda: page.browser.execute_script("return arguments[0].naturalWidth", thumbnails[0]))
    page.find("#examples .gallery-item").click()
    assert page.picture("picture").shape == (384, 384, 3)
    page.wait(lambda: page.find("#question textarea, #question input").get_attribute("value"))
    page.find("#ask").click()
    assert page.answers()


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file={root}/setup.py",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=setup.py",
        "/gradio_api/file=answers.txt",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/file=/etc/passwd",
        "/static/../../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_file_of_the_machine_can_be_fetched(server: str, path: str) -> None:
    try:
        with urllib.request.urlopen(server + path.format(root=ROOT), timeout=120) as answer:
            content, code = answer.read().decode(errors="replace"), answer.status
    except urllib.error.HTTPError as e:
        content, code = e.read().decode(errors="replace"), e.code
    assert code >= 400, content[:200]
    assert "root:" not in content and "find_packages" not in content and "nodule" not in content


def request(server: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
    """A request as a program or another page sends it; a header's ``_`` stands for ``-``."""
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=120)
    try:
        connection.request(method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def test_other_pages_and_other_names_are_sent_away(server: str) -> None:
    question = json.dumps({"data": [None, "?"], "fn_index": 1, "session_hash": "elsewhere"}).encode()
    join, kind = "/gradio_api/queue/join", "application/json"
    assert request(server, "POST", join, question, Content_Type=kind, Origin="http://evil.example")[0] == 403
    assert request(server, "POST", join, question, Content_Type=kind, Sec_Fetch_Site="cross-site")[0] == 403
    assert request(server, "GET", "/config", Host="evil.example")[0] == 421
    assert request(server, "GET", "/config")[0] == 200


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/gradio_api/openapi.json", "/monitoring"])
def test_no_document_of_the_interface_is_there(server: str, path: str) -> None:
    assert request(server, "GET", path)[0] == 404
    assert json.loads(request(server, "GET", "/gradio_api/info")[1]) == {"named_endpoints": {}, "unnamed_endpoints": {}}


def multipart(content: bytes) -> tuple[bytes, str]:
    """A form with one file, and its content type."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return head + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def test_no_upload_that_failed_leaves_a_file(server: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder,) = next(path for path in tmp_path_factory.getbasetemp().glob("app*/temporary")).glob("m2i2-app-*")
    large, kind = multipart(bytes(1_200_000))
    assert request(server, "POST", "/gradio_api/upload", large, Content_Type=kind)[0] == 413
    whole, _ = multipart(bytes(5000))
    assert request(server, "POST", "/gradio_api/upload", whole[:2000], Content_Type=kind)[0] in (200, 400, 422, 500)
    with socket.create_connection(("127.0.0.1", int(server.rsplit(":", 1)[1]))) as broken:
        lines = (
            "POST /gradio_api/upload HTTP/1.1",
            f"Host: {server[7:]}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(whole)}",
        )
        broken.sendall("\r\n".join((*lines, "", "")).encode() + whole[:2000])
    time.sleep(0.5)
    assert [path.name for path in folder.iterdir() if path.is_file()] == []
    assert request(server, "POST", "/gradio_api/upload", whole, Content_Type=kind)[0] == 200
    assert [path.name for path in folder.iterdir() if path.is_file()] == []


def test_a_token_is_asked_for_and_the_end_removes_everything(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = [sys.executable, str(ROOT / "tools" / "app.py"), "--checkpoint", str(FOLDER), "--port", str(port), "--token"]
    with (tmp_path / "log").open("w") as log:
        app = start(words, tmp_path, environment(), log, log)
        try:
            end = time.monotonic() + 600
            while "The app is open" not in (text := (tmp_path / "log").read_text()):
                assert app.poll() is None and time.monotonic() < end, text
                time.sleep(0.1)
            server, token = re.findall(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", text)[0]
            assert request(server, "GET", "/")[0] == request(server, "GET", "/?token=guess")[0] == 401
            login = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            login.request("GET", f"/?token={token}")
            cookie = str(login.getresponse().getheader("Set-Cookie")).partition(";")[0]
            form, kind = multipart(bytes(5000))
            assert request(server, "POST", "/gradio_api/upload", form, Content_Type=kind)[0] == 401
            status, answer = request(server, "POST", "/gradio_api/upload", form, Content_Type=kind, Cookie=cookie)
            assert status == 200
            upload = Path(json.loads(answer)[0])
            assert upload.stat().st_size == 5000
        finally:
            app.send_signal(signal.SIGTERM)
            assert app.wait(300) == 0, (tmp_path / "log").read_text()
    (folder,) = (parent for parent in upload.parents if parent.name.startswith("m2i2-app-"))
    assert not folder.exists()


def test_the_server_listens_on_loopback_alone(server: str) -> None:
    port = int(server.rsplit(":", 1)[1])
    listening = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    addresses = [row[1].split(":")[0] for row in listening if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    assert addresses == ["0100007F"]
