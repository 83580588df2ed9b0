"""``tools/app.py``: a finetuned model in the browser."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.terminal import say

DESCRIPTION = """Ask a finetuned model about radiographs in a browser: upload a PNG, JPEG or DICOM file, ask, and see the likeliest
answers with their probabilities and where in the image the first one comes from. It is research software and no medical
device. It listens on 127.0.0.1 alone; uploads are deleted after a quarter of an hour and when it ends."""

EXAMPLES = """examples:
  python tools/app.py --checkpoint runs/rad --candidates shards/vqa_rad
  python tools/app.py --checkpoint hub/m2i2-rad --port 8000 --max-megabytes 50
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
    add("--checkpoint", type=Path, required=True, metavar="MODEL", help="a finetuning run, a checkpoint, or a Hugging Face folder")
    add(
        "--candidates",
        type=Path,
        metavar="PATH",
        help="answers to choose from: one a line, a JSON list, or question shards (default: answers are written freely)",
    )
    add("--port", type=int, default=7860, help="(%(default)s)")
    add("--max-megabytes", type=int, default=20, metavar="N", help="largest upload (%(default)s)")
    add("--max-megapixels", type=int, default=25, metavar="N", help="largest image (%(default)s)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _serve(arguments))


def _serve(arguments: argparse.Namespace) -> int:
    from m2i2.workflows.answering import load_model, read_candidates

    if min(arguments.max_megabytes, arguments.max_megapixels) < 1:
        raise M2I2Error("--max-megabytes and --max-megapixels must be at least 1.")
    candidates = read_candidates(arguments.candidates) if arguments.candidates else ()
    answerer = load_model(arguments.checkpoint).answerer(candidates)
    with tempfile.TemporaryDirectory(prefix="m2i2-app-") as folder:
        # Gradio reads these when it is imported
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        try:
            from m2i2.app.page import Limits, build_page, draw_examples, serve_page
        except ImportError as e:
            raise M2I2Error(f"The app needs Gradio ({e}): pip install 'm2i2[app]'.") from e
        limits = Limits(megabytes=arguments.max_megabytes, megapixels=arguments.max_megapixels)
        page = build_page(answerer, limits, draw_examples(Path(folder)), arguments.checkpoint.name)
        try:
            serve_page(page, limits, arguments.port)
        except OSError as e:
            raise M2I2Error(f"The app cannot listen on port {arguments.port}: {e}. Choose another --port.") from e
    say("The app has ended.")
    return 0
