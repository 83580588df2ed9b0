"""One record into the bytes of its sample: decoded, scaled down, stored as JPEG beside its text. Runs in the workers."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from m2i2.data.images.decoding import MAX_BYTES, MAX_PIXELS, without_colour
from m2i2.data.images.picture import read_picture
from m2i2.data.records import ImageRecord
from m2i2.data.shards.split import MAX_TEXT
from m2i2.data.text.cleaning import clean_caption
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
    question: str = ""
    """Its id, where only this question about the image is rejected."""


class Encoded(NamedTuple):
    """A sample as it is stored."""

    ending: str
    """Of the image's member: jpg or png."""
    image: bytes
    text: bytes
    items: int
    image_sha256: str
    remarks: tuple[str, ...] = ()
    """What the user must know of the image, such as a name that may be burned into a DICOM file's pixels."""
    doubts: tuple[str, ...] = ()
    """Those of them that may mean that the sample is wrong; a line of doubts.jsonl each."""


MISSING = "image file missing"
"""The reason of a reject whose image is not where it was looked for."""


def encode(record: ImageRecord, encoding: Encoding) -> Encoded | Reject:
    """A record as the bytes of its sample, or why it cannot be one. Runs in the workers.

    An empty answer is not a reason: SLAKE's English training set has one (question 1622), and every published count holds it.
    """
    file = str(record.image) if isinstance(record.image, Path) else ""

    def reject(reason: str) -> Reject:
        return Reject(record.key, record.split, reason, file)

    captions, remarks = _captions(record)
    if record.captions and not captions:
        return reject("caption without words" if any(caption.strip() for caption in record.captions) else "empty caption")
    if not captions and not record.questions:
        return reject(record.passed_over[0][1] if record.passed_over else "no text")
    if not all(question.question.strip() for question in record.questions):
        return reject("empty question")
    try:
        original = read_bytes(record.image, MAX_BYTES) if isinstance(record.image, Path) else record.image
    except FileNotFoundError:
        return reject(MISSING)
    except (OSError, ValueError) as e:
        return reject(f"image file unreadable: {e}")
    if not original and not file:
        return reject("no image")
    try:
        picture = read_picture(original, record.key, None if encoding.keep_bytes else encoding.side, encoding.max_pixels)
    except M2I2Error as e:
        return reject(str(e))
    image = picture.image
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
    image_sha256 = hashlib.sha256(stored).hexdigest()
    payload: dict[str, Any] = {"key": record.key, "image_sha256": image_sha256}
    if record.captions:
        payload["captions"] = list(captions)
    else:
        payload["questions"] = [asdict(question) | {"metadata": dict(question.metadata)} for question in record.questions]
    payload["metadata"] = dict(record.metadata)
    try:
        text = json.dumps(payload, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError:
        return reject("a text is not valid Unicode")
    if len(text) > MAX_TEXT or len(stored) > MAX_BYTES:
        return reject(f"larger than {MAX_TEXT} bytes of text or {MAX_BYTES} of image")
    doubts = remarks + picture.doubts
    return Encoded(ending, stored, text, max(1, len(record.questions)), image_sha256, remarks + picture.remarks, doubts)


def _captions(record: ImageRecord) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The captions that have words once they are cleaned, and a remark where others are left out."""
    captions = tuple(caption for caption in record.captions if clean_caption(caption))
    lost = len(record.captions) - len(captions)
    return captions, (f"{lost} of its captions without words left out",) if lost and captions else ()
