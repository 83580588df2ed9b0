"""One record into the bytes of its sample: decoded, scaled down, stored as JPEG beside its text. Runs in the workers."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from m2i2.data.images.decoding import MAX_BYTES, MAX_PIXELS, decode, without_colour
from m2i2.data.images.dicom import decode_dicom, is_dicom
from m2i2.data.records import ImageRecord
from m2i2.data.shards.split import MAX_TEXT
from m2i2.errors import M2I2Error
from m2i2.files import read_bytes


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are stored."""

    side: int
    """Longest allowed shorter side, pixels; larger images are scaled down."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    keep_bytes: bool = False
    """Store JPEG and PNG files as they are, after making sure that they decode."""
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.side < 16:
            raise M2I2Error(f"--side {self.side} is too small; choose at least the training resolution, such as 288.")
        if not 1 <= self.quality <= 100:
            raise M2I2Error(f"--quality {self.quality} must lie between 1 and 100.")


@dataclass(frozen=True)
class Reject:
    """A record that cannot become a sample, and why; a line of rejects.jsonl."""

    key: str
    split: str
    reason: str
    file: str


class Encoded(NamedTuple):
    """A sample as it is stored."""

    ending: str
    """Of the image's member: jpg or png."""
    image: bytes
    text: bytes
    items: int
    remarks: tuple[str, ...] = ()
    """What the user must know of the image, such as a name that may be burned into a DICOM file's pixels."""


def encode(record: ImageRecord, encoding: Encoding) -> Encoded | Reject:
    """A record as the bytes of its sample, or why it cannot be one. Runs in the workers.

    An empty answer is no reason: SLAKE's English training set has one (question 1622), and every published count holds it.
    """
    file = str(record.image) if isinstance(record.image, Path) else ""

    def reject(reason: str) -> Reject:
        return Reject(record.key, record.split, reason, file)

    texts = record.captions or tuple(q.question for q in record.questions)
    if not texts or not all(text.strip() for text in texts):
        return reject("empty caption" if record.captions else "empty question" if texts else "no text")
    try:
        original = read_bytes(record.image, MAX_BYTES) if isinstance(record.image, Path) else record.image
    except FileNotFoundError:
        return reject("image file missing")
    except (OSError, ValueError) as e:
        return reject(f"image file unreadable: {e}")
    if not original:
        return reject("no image")
    remarks: tuple[str, ...] = ()
    try:
        if is_dicom(original):
            radiograph = decode_dicom(original, record.key, encoding.max_pixels)
            image, remarks = radiograph.image, radiograph.remarks
        else:
            image = decode(original, record.key, None if encoding.keep_bytes else encoding.side, encoding.max_pixels)
    except M2I2Error as e:
        return reject(str(e))
    ending = {b"\xff\xd8": "jpg", b"\x89P": "png"}.get(original[:2])
    if encoding.keep_bytes and ending:
        stored = original
    else:
        ending = "jpg"
        if min(image.size) > encoding.side:
            scale = encoding.side / min(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BICUBIC)
        out = io.BytesIO()
        without_colour(image).save(out, "JPEG", quality=encoding.quality)
        stored = out.getvalue()
    payload: dict[str, Any] = {"key": record.key, "image_sha256": hashlib.sha256(stored).hexdigest()}
    if record.captions:
        payload["captions"] = list(record.captions)
    else:
        payload["questions"] = [asdict(question) | {"metadata": dict(question.metadata)} for question in record.questions]
    payload["metadata"] = dict(record.metadata)
    try:
        text = json.dumps(payload, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError:
        return reject("a text is no valid Unicode")
    if len(text) > MAX_TEXT or len(stored) > MAX_BYTES:
        return reject(f"larger than {MAX_TEXT} bytes of text or {MAX_BYTES} of image")
    return Encoded(ending, stored, text, max(1, len(record.questions)), remarks)
