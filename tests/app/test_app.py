"""The app as a user meets it: a server on this machine, and Chromium (Debian's, headless) that uploads, asks and looks."""

import http.client
import json
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from m2i2.demo import FOLDER, NOTICE
from tests.app.user import User
from tests.browser import low_contrast
from tests.conftest import ROOT
from tests.launching import environment
from tests.phantom_model import phantoms
from tests.preloaded import start
from tests.unit.test_dicom import dicom

Case = tuple[Path, str, str]
"""A synthetic image, a question about it, and its answer."""


def test_upload_ask_see_answer_and_overlay(page: User, cases: list[Case]) -> None:
    """All of it in view together without scrolling, and nothing over the image."""
    assert "not a medical device" in page.find("#header").text and NOTICE in page.find("#header").text
    path, question, answer = cases[0]
    page.upload(path)
    shown = page.picture("picture")
    assert abs(shown - np.asarray(Image.open(path).convert("RGB"), dtype=int)).max() <= 1
    page.ask(question)
    answers = page.answers(question)
    assert next(iter(answers)) == answer and 95 <= sum(answers.values()) <= 102
    heat = page.picture("overlay")
    assert heat.shape == shown.shape and (shown[..., 0] == shown[..., 2]).all()
    assert (heat[..., 0] - heat[..., 2]).max() > 60, "something is hot, on however light a lesion"
    assert np.median(abs(heat - shown)) < 30, "and most of it is not"
    for what in ("#question", "#picture > img", "#overlay > img", "#overlay .scale", "#answers"):
        sides = page.sides(what)
        assert sides["top"] >= 0 and sides["bottom"] <= 800 and sides["left"] >= 0 and sides["right"] <= 1280, (what, sides)
    assert answer in page.find("#where").text
    assert page.covering("#picture > img") == page.covering("#overlay > img") == []
    page.hint(f"The likeliest answer is {answer}")
    count, low = low_contrast(page.browser)
    assert count > 30 and not low


def test_at_the_width_of_a_phone_nothing_is_cut_off(server: str, cases: list[Case]) -> None:
    user = User(server, 390, 844)
    try:
        path, question, answer = cases[0]
        user.upload(path)
        user.picture("picture")
        user.ask(question)
        assert next(iter(user.answers(question))) == answer
        user.picture("overlay")
        assert user.browser.execute_script("return document.documentElement.scrollWidth") <= 390
        for what in (
            "#header",
            "#upload",
            "#question",
            "#ask",
            "#next",
            "#picture > img",
            "#overlay > img",
            "#answers",
            "#examples",
        ):
            sides = user.sides(what)
            assert sides["left"] >= 0 and sides["right"] <= 390, (what, sides)
        small = "return [...document.querySelectorAll('button, summary, label.button')].filter(e => e.checkVisibility())"
        heights = user.browser.execute_script(f"{small}.map(e => e.getBoundingClientRect().height)")
        assert min(heights) >= 24 and len(heights) > 7, "large enough for a finger (WCAG 2.2)"
        assert not low_contrast(user.browser)[1]
    finally:
        user.browser.quit()


def test_enter_asks_and_what_is_missing_is_a_hint(page: User, cases: list[Case]) -> None:
    """The page stays as it is: an answer that is there is not replaced by an error."""
    path, question, answer = cases[0]
    page.type(question, Keys.ENTER)
    page.hint("Add an image first")
    page.upload(path)
    page.picture("picture")
    page.box.send_keys(Keys.ENTER)
    assert next(iter(page.answers(question))) == answer
    for nothing in ("", "   "):
        page.type(nothing, Keys.ENTER)
        page.hint("Type a question about the image first")
        assert next(iter(page.answers(question))) == answer
        page.type(question, Keys.ENTER)
        page.hint("The likeliest answer is")


def test_the_images_of_a_study_one_after_another(page: User, cases: list[Case]) -> None:
    """By buttons, thumbnails and arrow keys; each keeps its own questions and answers, which are shown again."""
    paths = [path for path, _, _ in cases[:3]]
    page.upload(*paths)
    page.place(f"Image 1 of 3: {paths[0].name}")
    for number, (path, question, answer) in enumerate(cases[:3], 1):
        page.place(f"Image {number} of 3: {path.name}")
        page.ask(question)
        assert next(iter(page.answers(question))) == answer
        if number < 3:
            page.find("#next").click()
    page.find("#next").click()
    page.place("Image 3 of 3")
    page.browser.execute_script("document.activeElement.blur()")
    for number in (2, 1):
        page.find("body").send_keys(Keys.ARROW_LEFT)
        page.place(f"Image {number} of 3")
        _, question, answer = cases[number - 1]
        assert next(iter(page.answers(question))) == answer and page.box.get_attribute("value") == question
    first, other = cases[0][1], "is there a lesion?"
    page.ask(other)
    page.answers(other)
    page.find("#answers .asked li:last-child button").click()
    assert next(iter(page.answers(first))) == cases[0][2]
    page.box.send_keys(Keys.ARROW_RIGHT)  # moves in the text
    page.find("#strip li:nth-child(3) button").click()
    page.place("Image 3 of 3")
    page.find("#remove").click()
    page.place("Image 2 of 2")
    assert paths[1].name in page.find("#place").text


def test_everything_is_reached_with_the_tab_key_and_is_seen_to_be(page: User, cases: list[Case]) -> None:
    page.upload(cases[0][0], cases[1][0])
    page.place("Image 1 of 2")
    page.browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    parts = ", ".join(f"#{name}" for name in ORDER)
    script = f"""
    const e = document.activeElement, style = getComputedStyle(e.closest('label.button') || e);
    return [e.closest('{parts}')?.id, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]"""
    reached, unseen = [], []
    for _ in range(20):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        name, outlined = page.browser.execute_script(script)
        reached.append(name)
        unseen += [] if outlined or name is None else [name]
    order = [name for name in dict.fromkeys(reached) if name in ORDER]
    assert order == ORDER, reached
    assert not unseen, unseen
    page.find("#examples button").send_keys(Keys.ENTER)
    page.place("Image 3 of 3: synthetic-")


ORDER = ["header", "upload", "question", "ask", "previous", "next", "strip", "remove", "examples"]
"""Parts of the page in the order of the Tab key."""


def test_the_card_of_the_model_is_behind_its_name(page: User) -> None:
    card = page.find("#header details")
    assert "the demo model" in card.text and "layers" not in card.text
    page.find("#header summary").send_keys(Keys.ENTER)
    page.wait(lambda: "layers" in page.find("#header dl").text)
    text = page.find("#header details").text
    for word in ("million parameters", "64 x 64 pixels", "7 candidates", "protocol paper", "Intended use, and what it is not"):
        assert word in text, word


def test_a_dicom_file_is_shown_with_what_its_user_must_know(page: User, tmp_path: Path) -> None:
    phantom = phantoms("test", 20)[0]
    encoded = dicom(phantom.image.astype(np.uint16) * 16, PhotometricInterpretation="MONOCHROME1")
    (tmp_path / "study").write_bytes(encoded)
    page.upload(tmp_path / "study")
    shown = page.picture("picture")
    assert np.corrcoef(shown[..., 0].ravel(), 255 - phantom.image.ravel())[0, 1] > 0.999
    remarks = page.wait(lambda: page.find("#remarks").text)
    assert "burned into its pixels" in remarks and "identifiers" in remarks
    page.ask("what kind of lesion is shown?")
    assert page.answers("what kind of lesion is shown?")
    assert not any(word in page.browser.page_source for word in ("DOE", "JANE", "SECRET"))


def test_a_wrong_file_an_oversized_file_and_too_many_pixels_are_said(page: User, cases: list[Case], tmp_path: Path) -> None:
    """Each by its name; the files beside them are taken."""
    (tmp_path / "letter.png").write_bytes(b"Dear colleague, ...")
    Image.new("L", (1200, 1000)).save(tmp_path / "wide.png")
    (tmp_path / "large.png").write_bytes(bytes(1_100_000))
    page.upload(*(tmp_path / name for name in ("letter.png", "wide.png", "large.png")), cases[0][0])
    page.place("Image 1 of 1: phantom")
    for words in (
        "letter.png cannot be decoded",
        "1200 x 1000 pixels, more than the bound of 1000000",
        "large.png is too large: 1 MB",
    ):
        page.hint(words)
    page.ask("is there a lesion?")
    assert page.answers("is there a lesion?")


def test_two_users_at_once_get_their_own_answers(server: str, cases: list[Case]) -> None:
    first, second = User(server), User(server)
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
            for user, (_, question, answer) in zip((first, second), mine, strict=True):
                assert next(iter(user.answers(question))) == answer
                assert user.find("#place").text.startswith("Image 1 of 1")
    finally:
        first.browser.quit()
        second.browser.quit()


def test_a_synthetic_example_is_one_click(page: User) -> None:
    thumbnails = page.browser.find_elements(By.CSS_SELECTOR, "#examples button img")
    assert len(thumbnails) == 3
    assert all(page.browser.execute_script("return arguments[0].naturalWidth", image) for image in thumbnails)
    question = page.find("#examples button").text
    page.find("#examples button").click()
    assert page.picture("picture").shape == (384, 384, 3)
    page.wait(lambda: page.box.get_attribute("value") == question)
    page.find("#ask").click()
    assert page.answers(question)


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
