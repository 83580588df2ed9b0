"""Which requests reach the page: those of its own origin, for what it needs, with the token, within the limits."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from m2i2.app.door import Door, Rate, Rules

PORT = 7860
HOST = f"127.0.0.1:{PORT}"
UPLOAD = "/gradio_api/upload"


class Visit:
    """A door with an app behind it that notes what reaches it, and answers 200."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        made = {"upload": 1000, "uploads": 200_000, "requests": 5, **rules}
        self.reached: list[bytes] = []
        self.door = Door(self._app, Rules(folder, **made))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append((await receive()).get("body", b"") if scope["method"] == "POST" else b"")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def ask(
        self, path: str = "/", method: str = "GET", body: Sequence[bytes] = (b"",), *, address: str = "127.0.0.1", **headers: str
    ) -> tuple[int, dict[str, str]]:
        """The status and the headers of the answer; a header's ``_`` stands for ``-``, ``host`` is right unless it is given."""
        named = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
        where, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": where,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in named.items() if value],
            "server": ("127.0.0.1", PORT),
            "client": (address, 40000),
        }
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in body]
        messages[-1]["more_body"] = False
        answers: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answers.append(message)

        asyncio.run(self.door(scope, receive, send))
        found = {name.decode(): value.decode() for name, value in answers[0]["headers"]}
        return answers[0]["status"], found


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {}),
        (200, {"host": f"localhost:{PORT}"}),
        (200, {"origin": f"http://{HOST}", "sec_fetch_site": "same-origin"}),
        (421, {"host": "evil.example"}),
        (421, {"host": f"evil.example:{PORT}"}),
        (421, {"host": "127.0.0.1:1"}),
        (421, {"host": ""}),
        (403, {"origin": "http://evil.example"}),
        (403, {"origin": "null"}),
        (403, {"origin": f"http://localhost:{PORT}"}),
        (403, {"origin": "http://127.0.0.1:1"}),
        (403, {"sec_fetch_site": "cross-site"}),
        (403, {"sec_fetch_site": "same-site"}),
    ],
)
def test_requests_come_from_the_apps_own_page(visit: Visit, status: int, headers: dict[str, str]) -> None:
    assert visit.ask("/gradio_api/queue/join", "POST", **headers)[0] == status
    assert visit.ask("/gradio_api/queue/data", **headers)[0] == status
    assert len(visit.reached) == (2 if status == 200 else 0)


def test_a_link_elsewhere_may_lead_to_the_page_and_to_nothing_else(visit: Visit) -> None:
    assert visit.ask("/", sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200
    assert visit.ask("/config", sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 403
    assert visit.ask("/", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        *("/docs", "/redoc", "/openapi.json", "/gradio_api/openapi.json", "/gradio_api/info/x", "/monitoring/summary"),
        *("/gradio_api/run/ask", "/gradio_api/call/ask", "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/vibe-code/", "/login"),
    ],
)
def test_what_the_page_does_not_need_is_not_there(visit: Visit, path: str) -> None:
    assert visit.ask(path)[0] == 404 and visit.ask(path, "POST")[0] == 404
    assert visit.ask("/", "DELETE")[0] == 404
    assert not visit.reached


def test_with_a_token_only_its_browser_is_answered(tmp_path: Path) -> None:
    visit = Visit(tmp_path, token="right", guesses=3)
    assert (
        visit.ask("/")[0] == visit.ask("/config")[0] == visit.ask("/?token=wrong")[0] == visit.ask("/config?token=right")[0] == 401
    )
    status, headers = visit.ask("/?token=right")
    assert (status, headers["location"]) == (303, "/")
    cookie, *attributes = headers["set-cookie"].split("; ")
    assert "right" not in cookie and {"HttpOnly", "SameSite=Strict"} <= set(attributes)
    assert visit.ask("/config", cookie=f"a=b; {cookie}")[0] == 200
    assert visit.ask("/config", cookie=cookie[:-1])[0] == 401
    assert visit.ask("/config", cookie=cookie, host="evil.example")[0] == 421
    assert len(visit.reached) == 1


def test_tokens_cannot_be_tried_for_long(tmp_path: Path) -> None:
    visit = Visit(tmp_path, token="right", guesses=3)
    assert [visit.ask(f"/?token={guess}")[0] for guess in ("a", "b", "c", "d", "right")] == [401, 401, 401, 429, 429]
    assert visit.ask("/?token=right", address="192.0.2.1")[0] == 303


def test_a_client_asks_so_often_in_a_minute(visit: Visit) -> None:
    assert [visit.ask("/gradio_api/queue/join", "POST")[0] for _ in range(6)] == [200] * 5 + [429]
    status, headers = visit.ask(UPLOAD, "POST")
    assert status == 429 and 1 <= int(headers["retry-after"]) <= 61
    assert visit.ask("/gradio_api/queue/join", "POST", address="192.0.2.1")[0] == 200
    assert visit.ask("/gradio_api/queue/data")[0] == 200, "looking is free"


def test_a_program_of_this_machine_is_one_client_whatever_its_address(tmp_path: Path) -> None:
    visit = Visit(tmp_path, requests=2)
    join = "/gradio_api/queue/join"
    assert [visit.ask(join, "POST", address=f"127.0.{n}.1")[0] for n in range(4)] == [200, 200, 429, 429]
    guesses = Visit(tmp_path, token="right", guesses=1)
    assert [guesses.ask("/?token=a", address=f"127.1.{n}.1")[0] for n in range(3)] == [401, 429, 429]


def test_clients_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2i2.app.door._CLIENTS", 3)
    rate = Rate(1)
    for number in range(10):
        rate.note(str(number))
    assert rate.wait("9") > 0 and rate.wait("0") == 0


def test_every_session_has_a_rate_of_its_own(tmp_path: Path) -> None:
    visit = Visit(tmp_path, token="right", requests=1)
    cookies = [visit.ask("/?token=right")[1]["set-cookie"].partition(";")[0] for _ in range(2)]
    statuses = [visit.ask("/gradio_api/queue/join", "POST", cookie=cookie)[0] for cookie in (*cookies, *cookies)]
    assert statuses == [200, 200, 429, 429]


BOUND = 1000 + (1 << 16)


@pytest.mark.parametrize(
    ("status", "path", "body", "length"),
    [
        (200, UPLOAD, [bytes(BOUND)], str(BOUND)),
        (413, UPLOAD, [bytes(BOUND + 1)], str(BOUND + 1)),
        (413, UPLOAD, [bytes(BOUND), b"x"], ""),
        (413, UPLOAD, [bytes(BOUND), b"x"], "10"),
        (413, "/gradio_api/queue/join", [bytes(BOUND)], ""),
        (413, UPLOAD, [b"x"], "9" * 5000),
    ],
)
def test_a_request_has_a_bound(visit: Visit, status: int, path: str, body: list[bytes], length: str) -> None:
    assert visit.ask(path, "POST", body, content_length=length)[0] == status
    assert [len(content) for content in visit.reached] == ([BOUND] if status == 200 else [])


def test_all_uploads_together_have_a_bound(tmp_path: Path) -> None:
    visit = Visit(tmp_path, uploads=100_000)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "image.png").write_bytes(bytes(99_900))
    assert visit.ask(UPLOAD, "POST", [bytes(101)], content_length="101")[0] == 507
    assert visit.ask(UPLOAD, "POST", [bytes(100)], content_length="100")[0] == 200
    assert visit.ask(UPLOAD, "POST", [bytes(100)])[0] == 507, "a client that does not say how much may send the most"


def test_an_upload_that_breaks_off_reaches_nothing(visit: Visit, tmp_path: Path) -> None:
    async def gone() -> Any:
        return {"type": "http.disconnect"}

    answers: list[Any] = []

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {
        **{"type": "http", "method": "POST", "path": UPLOAD, "query_string": b"", "headers": [(b"host", HOST.encode())]},
        **{"server": ("127.0.0.1", PORT), "client": ("127.0.0.1", 1)},
    }
    asyncio.run(visit.door(scope, gone, send))
    assert answers[0]["status"] == 400 and not visit.reached


def test_nothing_of_a_failed_upload_stays(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "tmpabc").touch()  # as Gradio leaves it
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "image.png").touch()
    assert visit.ask(UPLOAD, "POST", [b"x"])[0] == 200
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["image.png", "kept"]
