"""What can be read in a file: a text, the texts inside an image or a video, the metadata of weights."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

# Longest first: UTF-32 begins as UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_IMAGES = {".png": rb"\x89PNG\r\n", ".jpg": rb"\xff\xd8\xff", ".jpeg": rb"\xff\xd8\xff", ".mp4": rb"....ftyp"}
_END_OF_PNG = b"IEND\xaeB`\x82"
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_STRINGS = re.compile(rb"[\x20-\x7e]{8,}|(?:[\x20-\x7e]\0){8,}")


def text_of(path: Path) -> str | None:
    """The text of a file; None for one that is neither text nor an image, a video or weights: nobody can say what is
    in it."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np") as shard:
                return json.dumps(shard.metadata() or {}, indent=1)
        except SafetensorError:
            return None
    data = path.read_bytes()
    if path.suffix.lower() in _IMAGES:
        return _of_image(path, data)
    return _decoded(data)


def strings_of(data: bytes) -> str:
    """Whatever is text in binary data, in one byte or two a character, a line each."""
    return "\n".join(found.replace(b"\0", b"").decode("ascii") for found in _STRINGS.findall(data))


def _of_image(path: Path, data: bytes) -> str | None:
    """None for another file of that name, or one with more behind its end."""
    suffix = path.suffix.lower()
    if not re.match(_IMAGES[suffix], data, re.DOTALL):
        return None
    if suffix == ".mp4":
        return strings_of(data)
    if suffix == ".png" and not data.endswith(_END_OF_PNG):
        return None
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # what stands behind the pixels, too
            described = [f"{name} {_words(value)}" for name, value in image.info.items()]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return "\n".join([*described, strings_of(data)])


def _words(value: object) -> str:
    return strings_of(value) if isinstance(value, bytes) else str(value)


def _decoded(data: bytes) -> str | None:
    codec = next((codec for mark, codec in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(codec)
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text
