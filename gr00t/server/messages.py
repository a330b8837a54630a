"""What goes over the wire: one msgpack map a message, numpy arrays in msgpack-numpy's encoding, and never a pickle.

Everything that arrives may be hostile. Reading takes two steps, so that a token can be looked at in between: `unpack`
gives plain values within the limits below, `decode` makes arrays of what describes one. (original: MsgSerializer)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from gr00t.data.schema import ModalityConfig
from gr00t.errors import ToolkitError

ZERO_STATE = "zero_state"  # option of a request: the state is zero after its normalisation (get_action's drop_state)
MAX_MESSAGE = 64 * 2**20  # bytes; 64 robots with two views of 224 x 224 take 19
MAX_ITEMS = 20_000  # entries of all maps and lists of a message
MAX_LIST, MAX_MAP, MAX_TEXT = 4096, 64, 16_384  # entries, entries, bytes
MAX_DEPTH = 16
MAX_DIMENSIONS = 8
MAX_SHOWN = 2000  # characters of an error
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


def tcp_url(host: str, port: int) -> str:
    """An address as ZeroMQ writes it."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def printable(text: str, most: int = MAX_SHOWN) -> str:
    """A text of somebody else's, which can neither flood a log nor steer the terminal that shows it."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:most])
    return shown + ("..." if len(text) > most else "")


def pack(value: Any, encode: Callable[[Any], Any] | None = None) -> bytes:
    """The message of `value`: maps, lists, texts, numbers, arrays of numbers, modality configurations.

    encode: of what msgpack does not know; None for the encoding of NVIDIA's protocol, as_openpi for that of openpi's.
    Raises ToolkitError for anything else, object arrays above all.
    """
    import msgpack  # here and below, so that the server's module can be imported without it

    try:
        return msgpack.packb(value, default=encode or _encode)
    except ToolkitError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise ToolkitError(f"This cannot be sent as a message ({error}).") from None


def unpack(message: bytes | memoryview) -> Any:
    """The plain values of a message, arrays still as the maps that describe them.

    Raises ToolkitError beyond a limit, and for what is no msgpack.
    """
    import msgpack

    if len(message) > MAX_MESSAGE:
        raise ToolkitError(
            f"The message has {len(message) / 2**20:.0f} MiB; {MAX_MESSAGE / 2**20:.0f} are allowed. Send smaller "
            "images, or fewer robots in one request."
        )
    left = MAX_ITEMS

    def count(items: Any) -> Any:
        nonlocal left
        left -= len(items) + 1
        if left < 0:
            raise ToolkitError(f"The message has more than {MAX_ITEMS} entries. Send numbers as arrays, not as lists.")
        return items

    try:
        return msgpack.unpackb(
            message,
            object_hook=count,
            list_hook=count,
            max_array_len=MAX_LIST,
            max_map_len=MAX_MAP,
            max_str_len=MAX_TEXT,
            max_bin_len=MAX_MESSAGE,
            max_ext_len=0,
        )
    except ToolkitError:
        raise
    except ValueError as error:
        raise ToolkitError(f"The message is no msgpack within the limits of this protocol ({error}).") from None


def decode(value: Any, depth: int = 0) -> Any:
    """Unpacked values with arrays in the place of what describes them, and texts as keys."""
    if depth > MAX_DEPTH:
        raise ToolkitError(f"The message is nested more than {MAX_DEPTH} deep.")
    if isinstance(value, list):
        return [decode(item, depth + 1) for item in value]
    if isinstance(value, dict):
        fields = {_text(key): item for key, item in value.items()}
        if "nd" in fields:
            return _array(fields)
        if "__ndarray__" in fields:  # of openpi's
            return _array({**fields, "nd": True, "type": fields.get("dtype")})
        if "__npgeneric__" in fields:
            return decode(fields.get("data"), depth + 1)
        if "__ndarray_class__" in fields:
            raise ToolkitError("The arrays are encoded as by clients of GR00T N1.6. Use a client of N1.7.")
        return {key: decode(item, depth + 1) for key, item in fields.items()}
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ToolkitError(f"The message holds a {type(value).__name__}, which this protocol does not know.")


def _encode(value: Any) -> dict[Any, Any]:
    """What msgpack does not know itself. The keys are bytes, since msgpack-numpy finds no others."""
    if isinstance(value, ModalityConfig):
        return {"__ModalityConfig__": True, "as_json": value.to_json()}
    _check_numbers(value)
    is_array = isinstance(value, np.ndarray)
    shape: dict[Any, Any] = {b"kind": b"", b"shape": value.shape} if is_array else {}
    return {b"nd": is_array, b"type": value.dtype.str, **shape, b"data": value.tobytes()}


def as_openpi(value: Any) -> dict[Any, Any]:
    """The same as _encode in the encoding of openpi-client, which has a form of its own."""
    _check_numbers(value)
    array = np.asarray(value)
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


def _check_numbers(value: Any) -> None:
    if not isinstance(value, np.ndarray | np.generic):
        raise ToolkitError(f"A {type(value).__name__} cannot be sent. Send numpy arrays, texts, lists and dicts.")
    if not _NUMBERS.fullmatch(value.dtype.str):
        raise ToolkitError(
            f"An array of {value.dtype} cannot be sent: only arrays of numbers are (others would take a pickle). "
            "Send texts as lists of str."
        )


def _array(fields: dict[str, Any]) -> np.ndarray | np.generic:
    """The array of any shape, or numpy scalar, that `fields` describe; a copy in native byte order, which may be
    written to. Object arrays, which are pickles, are refused by name."""
    kind, name, data = fields.get("kind") or "", fields.get("type"), fields.get("data")
    if kind in ("O", b"O") or name in ("O", b"O", "|O", b"|O"):
        raise ToolkitError("The message holds an object array, which is a pickle: pickles are never read.")
    name = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    if kind not in ("", b"") or not isinstance(name, str) or not _NUMBERS.fullmatch(name):
        raise ToolkitError(f"An array has the type {name!r:.80} (kind {kind!r:.20}); only arrays of numbers are read.")
    dtype, shape = np.dtype(name), _shape(fields.get("shape")) if fields["nd"] else ()
    size = prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != size:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise ToolkitError(f"An array of shape {shape} and {dtype} takes {size} bytes, but its data is {found}.")
    values = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    array = values.reshape(shape).astype(dtype.newbyteorder("="))
    return array if fields["nd"] else array[()]


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = shape if isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS else [None]
    # numpy refuses empty arrays too whose other sizes multiply to more than there is memory
    if not all(type(size) is int and size >= 0 for size in sizes) or prod(filter(None, sizes)) > MAX_MESSAGE:
        raise ToolkitError(f"An array has the shape {shape!r:.80}; expected a list of up to {MAX_DIMENSIONS} sizes.")
    return tuple(sizes)


def _text(key: str | bytes) -> str:
    try:
        return key.decode() if isinstance(key, bytes) else key
    except UnicodeDecodeError:
        raise ToolkitError(f"The message has the key {key!r:.80}, which is no text.") from None
