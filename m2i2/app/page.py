"""The page: what is on it, and what happens when somebody uploads, asks, steps through images, or picks an example.

The server keeps the uploaded files and, for each browser, its `Study`, both for a while. The model is only read, so that several
requests may run at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from m2i2.app.card import Card
from m2i2.app.door import Door, Rules
from m2i2.app.study import IMAGES, Asked, Case, Study
from m2i2.app.view import part, thumbnail, view
from m2i2.data.images.picture import Picture, read_picture
from m2i2.data.sources.phantoms import draw_phantom
from m2i2.errors import M2I2Error
from m2i2.files import read_bytes
from m2i2.inference.answering import Answerer
from m2i2.ownership import inside
from m2i2.terminal import say

QUESTIONS = 300
"""Longest question, characters."""
EXAMPLES = ((0, "what kind of lesion is shown?"), (16, "on which side is the lesion?"), (5, "is there a lesion?"))
"""Numbers of phantoms of the split ``test``, with a question to each."""
_KEPT = 900
"""Seconds for which uploads and studies are kept; studies of a closed page an hour (Gradio's)."""
_BROWSERS = 100
"""Studies that are held; of more, the one that was unused longest is forgotten."""
_GONE = "The image is not there any more: uploads are deleted after a quarter of an hour. Add it again."
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Limits:
    """What one user may ask of the machine."""

    megabytes: int = 20
    """Largest upload."""
    megapixels: int = 25
    """Largest image, refused before it is decoded."""
    at_once: int = 2
    """Questions answered at a time; others wait."""
    waiting: int = 50
    """Questions that may wait; more are refused."""
    total_megabytes: int = 500
    """All uploads and pictures that the server holds at a time; they are deleted after a quarter of an hour."""
    requests: int = 120
    """Uploads and questions of one client in a minute."""


class Example(NamedTuple):
    """A synthetic image and a question about it."""

    path: Path
    question: str
    thumbnail: str


class Shown(NamedTuple):
    """What an event changes on the page."""

    study: Any
    strip: Any
    view: Any
    row: Any
    """The row of buttons to step through the images; hidden where there is none."""
    question: Any
    hint: str


@dataclass(frozen=True)
class Desk:
    """Answers the page's requests. ``folder``: of the uploads; no other file is opened."""

    answerer: Answerer
    limits: Limits
    folder: Path
    examples: tuple[Example, ...] = ()

    def add(self, study: Study, event: gr.EventData) -> Shown:
        """Put uploaded files behind the images of the study, and show the first of them."""
        problems = [str(text) for text in _listed(event, "problems")]
        first = len(study.cases)
        for path in map(Path, map(str, _listed(event, "files"))):
            if len(study.cases) >= IMAGES:
                problems.append(f"{path.name} was left out: a study has at most {IMAGES} images. Remove some first.")
                continue
            try:
                study.cases.append(Case(path, thumbnail(self.open(path).image)))
            except M2I2Error as e:
                problems.append(str(e))
        if len(study.cases) > first:
            study.go(first)
        return self.show(study, *problems)

    def open(self, path: Path) -> Picture:
        """An uploaded file as a picture; M2I2Error where it is none, is too large, or is not in the folder of uploads."""
        if not inside(path, self.folder):
            raise M2I2Error(f"{path.name} is not an upload of this page.")
        try:
            encoded = read_bytes(path, self.limits.megabytes * 1_000_000)
        except OSError as e:
            raise M2I2Error(_GONE) from e
        return read_picture(encoded, path.name, max_pixels=self.limits.megapixels * 1_000_000)

    def show(self, study: Study, *problems: str, said: str = "") -> Shown:
        """The page as the study has it now, with what went wrong, or else a sentence ``said``."""
        case, picture = study.case, None
        try:
            picture = self.open(case.path) if case else None
        except M2I2Error as e:
            problems = (*problems, str(e))
        return Shown(
            study,
            part("strip", study),
            view(case, picture.image if picture else None, picture.remarks if picture else ()),
            gr.update(visible=bool(study.cases)),
            case.shown.question if case and case.shown else gr.skip(),
            _hint(*problems, wrong=True) if problems else _hint(said),
        )

    def step(self, study: Study, by: int) -> Shown:
        """Another image of the study, so many places on."""
        study.go(study.at + by)
        return self.show(study) if study.cases else self.show(study, _GONE)

    def pick(self, study: Study, event: gr.EventData) -> Shown:
        """The image of the study whose thumbnail was clicked."""
        study.go(_index(event))
        return self.show(study) if study.cases else self.show(study, _GONE)

    def remove(self, study: Study) -> Shown:
        """Take the image that is shown out of the study; another browser may hold the same file, so it stays for its time."""
        case = study.remove()
        return self.show(study, said=f"{case.name} is removed." if case else "")

    def look(self, study: Study, event: gr.EventData) -> Shown:
        """An earlier question about the image that is shown."""
        if study.case and 0 <= _index(event) < len(study.case.asked):
            study.case.at = _index(event)
        return self.show(study) if study.cases else self.show(study, _GONE)

    def example(self, study: Study, event: gr.EventData) -> Shown:
        """A synthetic example, with its question in the box."""
        example = self.examples[max(0, min(_index(event), len(self.examples) - 1))]
        at = next((at for at, case in enumerate(study.cases) if case.path == example.path), len(study.cases))
        if at == len(study.cases):
            if at >= IMAGES:
                return self.show(study, f"A study has at most {IMAGES} images. Remove some first.")
            study.cases.append(Case(example.path, example.thumbnail))
        study.go(at)
        shown = self.show(study, said="Press Enter, or Ask.")
        return shown if study.case and study.case.shown else shown._replace(question=example.question)

    def ask(self, study: Study, question: str | None) -> Iterator[Shown]:
        """Say that the model is asked, then show its answers and where in the image the likeliest one comes from.

        Where something is missing, a hint says so, and the page stays as it is.
        """
        question, case = " ".join((question or "").split()), study.case
        missing = "" if question else "Type a question about the image first."
        if case is None:
            missing = "Add an image first, or pick an example below."
        elif len(question) > QUESTIONS:
            missing = f"The question has more than {QUESTIONS} characters; ask a shorter one."
        same = Shown(gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip(), "")
        if missing or case is None:
            yield same._replace(hint=_hint(missing))
            return
        yield same._replace(hint=_hint("Asking the model ..."))
        try:
            image = self.open(case.path).image
            answers = self.answerer.answer(image, question)
            if not answers:
                raise M2I2Error("The model gives no answer to this question; ask in other words.")
            cam = self.answerer.explain(image, question, answers[0][0]).map.float().cpu().numpy()
        except M2I2Error as e:
            yield same._replace(hint=_hint(str(e), wrong=True))
            return
        case.add(Asked(question, answers, cam))
        if study.case is case:  # the user may have stepped on
            said = f"The likeliest answer is {answers[0][0]}, {100 * answers[0][1]:.0f} %."
            yield self.show(study, said=said)._replace(question=gr.skip())  # the next one may be half typed


def _hint(*lines: str, wrong: bool = False) -> str:
    return part("hint", [line for line in lines if line], wrong)


def _listed(event: gr.EventData, name: str) -> list[Any]:
    """A list that the page sent with an event; at most `IMAGES` items."""
    value = event._data.get(name) if isinstance(event._data, dict) else None
    return value[:IMAGES] if isinstance(value, list) else []


def _index(event: gr.EventData) -> int:
    """The number that the page sent with an event; 0 where there is none."""
    value = event._data.get("index") if isinstance(event._data, dict) else None
    return value if isinstance(value, int) else 0


def draw_examples(folder: Path) -> tuple[Example, ...]:
    """Example cases, written into the new ``folder``."""
    folder.mkdir()
    examples = []
    for number, question in EXAMPLES:
        phantom = draw_phantom(0, "test", number)
        path = folder / f"synthetic-{phantom.findings.region}-{number}.png"
        image = Image.fromarray(phantom.image).resize((384, 384), Image.Resampling.BICUBIC)
        image.save(path)
        examples.append(Example(path, question, thumbnail(image)))
    return tuple(examples)


def build_page(desk: Desk, card: Card) -> gr.Blocks:
    """The page of a model; `serve_page` serves it."""
    code = (_HERE / "page.js").read_text()
    plain: dict[str, Any] = {"apply_default_css": False, "js_on_load": None}
    selects = {**plain, "js_on_load": f"{code}\nchooses(element, trigger)"}
    # uploads are looked for every minute and deleted after a quarter of an hour
    with gr.Blocks(title=f"M2I2: {card.name}", analytics_enabled=False, delete_cache=(60, _KEPT), fill_width=True) as page:
        study = gr.State(Study(), time_to_live=_KEPT)
        gr.HTML(part("header", card), elem_id="header", **plain)
        with gr.Row(elem_id="controls"):
            uploads = {**plain, "js_on_load": f"{code}\nuploads(element, trigger, upload)"}
            upload = gr.HTML(part("uploader", desk.limits), elem_id="upload", **uploads)
            question = gr.Textbox(
                label="Question", lines=1, max_lines=1, max_length=QUESTIONS, placeholder="Ask about the image", elem_id="question"
            )
            button = gr.Button("Ask", variant="primary", elem_id="ask")
        hint = gr.HTML(_hint(), elem_id="hint", **plain)
        with gr.Row(elem_id="study", visible=False) as row:
            previous = gr.Button("Previous", elem_id="previous")
            following = gr.Button("Next", elem_id="next")
            strip = gr.HTML("", elem_id="strip", **selects)
            remove = gr.Button("Remove", elem_id="remove")
        shown = gr.HTML(view(None, None, ()), elem_id="view", **selects)
        picked = gr.HTML(part("gallery", desk.examples), elem_id="examples", **selects)
        gr.HTML("", visible="hidden", **{**plain, "js_on_load": f"{code}\narrows()"})
        outputs = [study, strip, shown, row, question, hint]
        # for the page alone, in no document; nothing is drawn over a picture while it waits
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": desk.limits.at_once}
        upload.upload(desk.add, [study], outputs, **quiet)
        previous.click(lambda study: desk.step(study, -1), [study], outputs, **quiet)
        following.click(lambda study: desk.step(study, 1), [study], outputs, **quiet)
        remove.click(desk.remove, [study], outputs, **quiet)
        strip.select(desk.pick, [study], outputs, **quiet)
        shown.select(desk.look, [study], outputs, **quiet)
        picked.select(desk.example, [study], outputs, **quiet)
        gr.on([button.click, question.submit], desk.ask, [study, question], outputs, concurrency_id="model", **quiet)
    page.queue(max_size=desk.limits.waiting, api_open=False)
    return page


def serve_page(page: gr.Blocks, limits: Limits, folder: Path, port: int, token: str) -> None:
    """Serve the page on this machine alone until Ctrl-C. No file but uploads and its own pictures can be fetched.

    ``folder``: of the uploads. ``token``: what a browser must bring once; empty: nothing.
    """
    upload = limits.megabytes * 1_000_000
    rules = Rules(folder, upload, limits.total_megabytes * 1_000_000, limits.requests, token)
    theme = gr.themes.Default(font=["sans-serif"], font_mono=["monospace"])  # no fonts from elsewhere
    fill = {"button_primary_background_fill": "#2563a8", "button_primary_background_fill_hover": "#1d4f87"}
    both = {f"{name}{mode}": colour for name, colour in fill.items() for mode in ("", "_dark")}
    white = {"button_primary_text_color": "white", "button_primary_text_color_dark": "white"}
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        ssr_mode=False,
        allowed_paths=[],
        max_file_size=upload,
        footer_links=[],
        quiet=True,
        theme=theme.set(**both, **white),
        css=(_HERE / "page.css").read_text(),
        state_session_capacity=_BROWSERS,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(Door, rules=rules)], "docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    say(f"The app is open on this machine only: {address}{f'?token={token}' if token else ''} (Ctrl-C ends it)", flush=True)
    page.block_thread()
