"""The page: what is on it, and what happens when somebody uploads, asks, or picks an example.

Requests keep nothing on the server but the uploaded file, which Gradio deletes after a while; the model is only read, so
that several requests may run at once.
"""

import html
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

    def show(self, path: str | None) -> tuple[Image.Image | None, str, None, None]:
        """A new file: its picture and remarks, and no answer any more."""
        if not path:
            return None, "", None, None
        image, remarks = self.open(path)
        return _small(image), remarks, None, None

    def ask(self, path: str | None, question: str | None) -> tuple[dict[str, float], dict[str, Any]]:
        """The answers with their probabilities, and the overlay of the likeliest."""
        image, _ = self.open(path)
        if not question or not question.strip():
            raise _refusal("Type a question about the image first.", "No question")
        if len(question) > QUESTIONS:
            raise _refusal(f"The question has more than {QUESTIONS} characters.", "Question too long")
        try:
            answers = self.answerer.answer(image, question)
            cam = self.answerer.explain(image, question, answers[0][0])
        except M2I2Error as e:
            raise _refusal(str(e), "No answer") from e
        return dict(answers), gr.update(value=overlay(_small(image), cam.map), label=f'where "{answers[0][0]}" comes from')


def _refusal(message: str, title: str) -> gr.Error:
    """An error that the page shows; it is not a fault of the app, so the log needs no traceback.

    Gradio takes the message for HTML, and it may quote a file's name.
    """
    return gr.Error(html.escape(message, quote=False), title=title, print_exception=False)


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
    with gr.Blocks(title="M2I2", analytics_enabled=False, delete_cache=(60, 900)) as page:
        gr.Markdown(f"# Ask about a radiograph\n\n{NOTICE}\n\n{title}", elem_id="notice")
        with gr.Row():
            with gr.Column():
                label = f"PNG, JPEG or DICOM, at most {limits.megabytes} MB and {limits.megapixels} megapixels"
                upload = gr.File(label=label, type="filepath", height=120, elem_id="upload")
                picture = gr.Image(label="what the model sees", interactive=False, format="png", elem_id="picture", buttons=[])
                remarks = gr.Markdown(elem_id="remarks")
            with gr.Column():
                question = gr.Textbox(label="question", lines=1, max_length=QUESTIONS, elem_id="question")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                answers = gr.Label(label="answers", num_top_classes=5, elem_id="answers")
                heat = gr.Image(label="where it comes from", interactive=False, format="png", elem_id="overlay", buttons=[])
        gr.Examples(examples, [upload, question], label="drawn examples, which carry no medical truth", cache_examples=False)
        hidden: dict[str, Any] = {"api_visibility": "private"}  # for the page alone, in no document
        upload.change(desk.show, upload, [picture, remarks, answers, heat], concurrency_limit=limits.at_once, **hidden)
        gr.on(
            [button.click, question.submit],
            desk.ask,
            [upload, question],
            [answers, heat],
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
