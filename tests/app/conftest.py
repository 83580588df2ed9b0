"""The running app, users of it, and synthetic cases that its model answers."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from m2i2.demo import FOLDER
from tests.app.user import User
from tests.conftest import ROOT
from tests.launching import environment
from tests.phantom_model import lesion_questions, phantoms


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


@pytest.fixture
def page(server: str) -> Iterator[User]:
    user = User(server)
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
