"""The parts of the page as HTML. Whatever comes from a file, a model or a user is shown as text."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import jinja2
from PIL import Image

from m2i2.app.study import IMAGES, Case
from m2i2.inference.overlay import LEGEND, TICKS, overlay, scale_bar

LARGEST_SIDE = 1024
"""Pixels; pictures on the page are scaled down to it. The model sees the whole image."""
_THUMBNAIL = 88


def picture(image: Image.Image, side: int = LARGEST_SIDE) -> str:
    """An image as a data: address (PNG), scaled down to ``side``."""
    out = io.BytesIO()
    small(image, side).save(out, "PNG", compress_level=3)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def thumbnail(image: Image.Image) -> str:
    """A small picture of an image, a data: address."""
    return picture(image, _THUMBNAIL)


def small(image: Image.Image, side: int) -> Image.Image:
    """An image scaled down to ``side``, where it is larger."""
    copy = image.copy()
    copy.thumbnail((side, side), Image.Resampling.BICUBIC)
    return copy


def view(case: Case | None, image: Image.Image | None, remarks: Sequence[str]) -> str:
    """The image, the map of the answer over it, and the answers."""
    shown = None if image is None else small(image, LARGEST_SIDE)
    asked = case.shown if case else None
    heat = picture(overlay(shown, asked.cam)) if shown is not None and asked is not None else ""
    return part("view", case, picture(shown) if shown is not None else "", heat, remarks)


def part(name: str, *values: Any) -> str:
    """A part of the page: a macro of ``view.html.j2`` and what it takes."""
    return str(getattr(_PARTS, name)(*values)).strip()


_ENVIRONMENT = jinja2.Environment(loader=jinja2.PackageLoader("m2i2.app", "."), autoescape=True, trim_blocks=True)
_ENVIRONMENT.globals |= {"scale": picture(scale_bar(240, 1)), "ticks": TICKS, "legend": LEGEND, "images": IMAGES}
_PARTS: Any = _ENVIRONMENT.get_template("view.html.j2").module
