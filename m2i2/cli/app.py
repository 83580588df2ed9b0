"""``tools/app.py``: a finetuned model in the browser."""

import argparse
import os
import secrets
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.terminal import say

DESCRIPTION = """Ask a finetuned model about medical images in a browser. Without --checkpoint it is the demo model, which ships
with the program and was trained on synthetic images only. Upload a PNG, JPEG or DICOM file, ask, and see the most likely answers
with their probabilities and where in the image the first one comes from. It is research software, not a medical device. It
listens on 127.0.0.1 alone and serves its own page only; uploads are deleted after a quarter of an hour and when it ends. With
--token it answers only a browser that was opened with the address that it prints, which other users need not know."""

EXAMPLES = """examples:
  python tools/app.py                                    the demo model, with synthetic examples
  python tools/app.py --checkpoint runs/rad --candidates shards/vqa_rad
  python tools/app.py --checkpoint hub/m2i2-rad --port 8000 --max-megabytes 50
  python tools/app.py --checkpoint runs/rad --token      on a machine with other users
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="app.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    model = "a finetuning run, a checkpoint, or a Hugging Face folder (default: the demo model)"
    add("--checkpoint", type=Path, metavar="MODEL", help=model)
    add(
        "--candidates",
        type=Path,
        metavar="PATH",
        help="answers to choose from: one per line, a JSON list, or question shards (default: answers are written freely)",
    )
    add("--port", type=int, default=7860, help="(%(default)s)")
    add("--max-megabytes", type=int, default=20, metavar="N", help="largest upload (%(default)s)")
    add("--max-megapixels", type=int, default=25, metavar="N", help="largest image (%(default)s)")
    add("--max-total-megabytes", type=int, default=500, metavar="N", help="all uploads and pictures held at a time (%(default)s)")
    add("--max-requests", type=int, default=120, metavar="N", help="uploads and questions of a client in a minute (%(default)s)")
    add("--token", action="store_true", help="ask every browser for a token, which is part of the printed address")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _serve(arguments))


def _serve(arguments: argparse.Namespace) -> int:
    from m2i2.workflows.answering import load_model, read_candidates

    names = ("max_megabytes", "max_megapixels", "max_total_megabytes", "max_requests")
    for name in names:
        if getattr(arguments, name) < 1:
            raise M2I2Error(f"--{name.replace('_', '-')} must be at least 1.")
    if arguments.max_total_megabytes <= arguments.max_megabytes:
        raise M2I2Error("--max-total-megabytes must be more than --max-megabytes, or no upload fits.")
    for number in (signal.SIGTERM, signal.SIGHUP):  # they end it as Ctrl-C does, so that the uploads are deleted
        if signal.getsignal(number) != signal.SIG_IGN:  # by nohup
            signal.signal(number, signal.default_int_handler)
    source, notice, given = arguments.checkpoint, "", arguments.candidates
    if source is None:
        from m2i2.demo import ANSWERS, FOLDER, NOTICE

        say(NOTICE)
        source, notice, given = FOLDER, NOTICE, given or ANSWERS
    loaded = load_model(source)
    answerer = loaded.answerer(read_candidates(given) if given else ())
    with tempfile.TemporaryDirectory(prefix="m2i2-app-") as folder:
        # Gradio reads these when it is imported
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        try:
            from m2i2.app.card import card_of
            from m2i2.app.page import Desk, Limits, build_page, draw_examples, serve_page
        except ImportError as e:
            raise M2I2Error(f"The app needs Gradio ({e}): pip install '.[app]'.") from e
        limits = Limits(
            megabytes=arguments.max_megabytes,
            megapixels=arguments.max_megapixels,
            total_megabytes=arguments.max_total_megabytes,
            requests=arguments.max_requests,
        )
        desk = Desk(answerer, limits, Path(folder), draw_examples(Path(folder) / "examples"))
        page = build_page(desk, card_of(loaded, source, len(answerer.candidates), notice))
        try:
            serve_page(page, limits, Path(folder), arguments.port, secrets.token_urlsafe(16) if arguments.token else "")
        except OSError as e:
            raise M2I2Error(f"The app cannot listen on port {arguments.port}: {e}. Choose another --port.") from e
    say("The app has ended.")
    return 0
