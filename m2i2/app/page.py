"""The page: what is on it, and what happens when somebody uploads, asks, or picks an example.

Requests keep nothing on the server but the uploaded file, which Gradio deletes after a while; the model is only read, so
that several requests may run at once.
"""

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from m2i2.app.door import Door, Rules
from m2i2.data.images.picture import read_picture
from m2i2.data.sources.phantoms import draw_phantom
from m2i2.errors import M2I2Error
from m2i2.inference.answering import Answerer
from m2i2.inference.overlay import overlay
from m2i2.terminal import say

NOTICE = """**Research software, not a medical device.** Its answers may be wrong, and must not guide the care of anybody.
Do not upload images that identify a person."""

LARGEST_SIDE = 1024
"""Pixels; pictures on the page are scaled down to it. The model sees the whole image."""
PICTURE = 340
"""Height of a picture on the page, pixels: image, overlay and answers are in view together on a screen of 1280 x 800."""
WHERE = "Where the answer comes from"
QUESTIONS = 300
"""Longest question, characters."""
EXAMPLES = ((0, "what kind of lesion is shown?"), (16, "on which side is the lesion?"), (5, "is there a lesion?"))
"""Numbers of drawn phantoms of the split ``test``, with a question to each."""


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


@dataclass(frozen=True)
class Desk:
    """Answers the page's requests."""

    answerer: Answerer
    limits: Limits

    def open(self, path: str | None) -> tuple[Image.Image, str]:
        """An uploaded file as an image, and what its user must know of it; gr.Error is what the page shows as an error."""
        if not path:
            raise _refusal("Upload a radiograph first, or pick an example.", "No image")
        name, most = Path(path).name, self.limits.megapixels * 1_000_000
        try:
            picture = read_picture(Path(path).read_bytes(), name, max_pixels=most)
        except (M2I2Error, OSError) as e:
            raise _refusal(str(e), "Not an image that can be read") from e
        return picture.image, "\n".join(f"- {remark}" for remark in picture.remarks)

    def show(self, path: str | None) -> tuple[Image.Image | None, str, None, None, str]:
        """A new file: its picture and remarks, and no answer any more."""
        if not path:
            return None, "", None, None, WHERE
        image, remarks = self.open(path)
        return _small(image), remarks, None, None, WHERE

    def ask(self, path: str | None, question: str | None) -> tuple[Any, Any, Any]:
        """The answers with their probabilities, the overlay of the likeliest, and what stands above it.

        Where the image or the question is missing, a hint says so, and the page stays as it is.
        """
        for missing, hint in ((not path, "Upload a radiograph"), (not (question or "").strip(), "Type a question about the image")):
            if missing:
                gr.Info(f"{hint} first, or pick an example below.", title="Almost there")
                return gr.skip(), gr.skip(), gr.skip()
        assert path and question
        image, _ = self.open(path)
        if len(question) > QUESTIONS:
            raise _refusal(f"The question has more than {QUESTIONS} characters.", "Question too long")
        try:
            answers = self.answerer.answer(image, question)
            cam = self.answerer.explain(image, question, answers[0][0])
        except M2I2Error as e:
            raise _refusal(str(e), "No answer") from e
        return dict(answers), overlay(_small(image), cam.map), f"Where *{_plain_markdown(answers[0][0])}* comes from"


def _refusal(message: str, title: str) -> gr.Error:
    """An error that the page shows; it is not a fault of the app, so the log needs no traceback.

    Gradio takes the message for HTML, and it may quote a file's name.
    """
    return gr.Error(html.escape(message, quote=False), title=title, print_exception=False)


def _plain_markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]()<>#+.!|~&$-])", r"\\\1", " ".join(text.split()))


def _small(image: Image.Image) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BICUBIC)
    return copy


def draw_examples(folder: Path) -> list[list[str]]:
    """Example cases, drawn into the new ``folder``: files and questions."""
    folder.mkdir()
    rows = []
    for number, question in EXAMPLES:
        phantom = draw_phantom(0, "test", number)
        path = folder / f"drawn-{phantom.findings.region}-{number}.png"
        Image.fromarray(phantom.image).resize((384, 384), Image.Resampling.BICUBIC).save(path)
        rows.append([str(path), question])
    return rows


def build_page(answerer: Answerer, limits: Limits, examples: list[list[str]], title: str) -> gr.Blocks:
    """The page of a model; `serve_page` serves it. ``title``: a line that names the model."""
    desk = Desk(answerer, limits)
    # uploads and pictures are looked for every minute and deleted after a quarter of an hour
    with gr.Blocks(title="M2I2", analytics_enabled=False, delete_cache=(60, 900), fill_width=True) as page:
        gr.Markdown(f"## Ask about a radiograph\n\n{NOTICE} {title}", elem_id="notice")
        with gr.Row():
            label = f"PNG, JPEG or DICOM, at most {limits.megabytes} MB and {limits.megapixels} megapixels"
            upload = gr.File(label=label, type="filepath", height=96, elem_id="upload", min_width=320)
            with gr.Column(scale=2, min_width=320), gr.Row(equal_height=True):
                hint = "a question about the image; Enter asks"
                question = gr.Textbox(
                    label="question", lines=1, max_length=QUESTIONS, placeholder=hint, elem_id="question", scale=4, min_width=200
                )
                button = gr.Button("Ask", variant="primary", elem_id="ask", scale=1, min_width=90)
        with gr.Row():  # what is above the pictures says what they are: a label would cover a corner, where side markers are
            shown: dict[str, Any] = {"interactive": False, "format": "png", "buttons": [], "show_label": False, "height": PICTURE}
            with gr.Column(min_width=320):
                gr.Markdown("What the model sees")
                picture = gr.Image(elem_id="picture", **shown)
            with gr.Column(min_width=320):
                where = gr.Markdown(WHERE, elem_id="where")
                heat = gr.Image(elem_id="overlay", **shown)
            with gr.Column(min_width=320):
                gr.Markdown("The likeliest answers")
                answers = gr.Label(show_label=False, num_top_classes=5, elem_id="answers")
                remarks = gr.Markdown(elem_id="remarks")
        gr.Markdown("Drawn examples, which carry no medical truth:")
        thumbnails = gr.Dataset(
            components=[gr.Image(render=False)],
            samples=[[file] for file, _ in examples],
            type="index",
            show_label=False,
            elem_id="examples",
        )
        hidden: dict[str, Any] = {"api_visibility": "private"}  # for the page alone, in no document
        thumbnails.click(lambda number: examples[number], thumbnails, [upload, question], queue=False, **hidden)
        results = [answers, heat, where]
        upload.change(desk.show, upload, [picture, remarks, *results], concurrency_limit=limits.at_once, **hidden)
        gr.on(
            [button.click, question.submit],
            desk.ask,
            [upload, question],
            results,
            concurrency_limit=limits.at_once,
            concurrency_id="model",
            **hidden,
        )
    page.queue(max_size=limits.waiting, api_open=False)
    return page


def serve_page(page: gr.Blocks, limits: Limits, folder: Path, port: int, token: str) -> None:
    """Serve the page on this machine alone until Ctrl-C. No file but uploads and its own pictures can be fetched.

    ``folder``: of the uploads. ``token``: what a browser must bring once; empty: nothing.
    """
    upload = limits.megabytes * 1_000_000
    rules = Rules(folder, upload, limits.total_megabytes * 1_000_000, limits.requests, token)
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        ssr_mode=False,
        allowed_paths=[],
        max_file_size=upload,
        footer_links=[],
        quiet=True,
        theme=gr.themes.Default(font=["sans-serif"], font_mono=["monospace"]),  # no fonts from elsewhere
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(Door, rules=rules)], "docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    say(f"The app is open on this machine only: {address}{f'?token={token}' if token else ''} (Ctrl-C ends it)", flush=True)
    page.block_thread()
