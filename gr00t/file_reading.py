"""Text, JSON, JSON lines and parquet tables that others may have written, damaged or tampered with: read right, or
refused in one line that names the file. What is no regular file is refused here for every reader, and folders are
searched here."""

from __future__ import annotations

import codecs
import inspect
import json
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from gr00t.errors import ToolkitError, disk_errors, in_bytes

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_TEXT = 2**28  # bytes; meta files of 300,000 episodes are below it
_SHOWN = 300  # characters of another error
DEEPEST = 100  # lists and objects in each other; few readers of what is read bear much more
MOST_LINKS = 1000  # to folders, followed below a link to a folder
MOST = 2**24  # of every number that describes a model
MOST_LAYERS = 1024  # a model is built layer by layer before its tensors are compared with the stored ones
_LAYERS = ("num_layers", "num_hidden_layers", "depth", "max_num_embodiments", "num_inference_timesteps")
AGAIN = "Make or copy it again."
COPY_AGAIN = "Copy that file again, or prepare the dataset again."
_ALWAYS_READ = 2**28  # bytes that a table takes in memory, however small the file is
_USUAL_RATIO = 100  # of memory to disk, above that
_MAGIC = b"PAR1"
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_LINE_END = re.compile(r"\r\n?|\n")  # str.splitlines takes U+2028 and others besides, which JSON has within strings
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # written in pairs; half of one is in no encoding, so in no file name
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def refuse_special(path: Path) -> None:
    """Raise ToolkitError for a folder, named pipe, socket or device, which a reader may wait for without end.

    A missing file is left to the reader, which says so in its own words.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "something else")
        raise ToolkitError(f"{path} is {what}, where a file is expected. Remove it and copy the file there.")


def read_text(path: Path, remedy: str = AGAIN) -> str:
    """A text file in UTF-8, or in UTF-16 if it says so in its first bytes; a byte order mark is no part of the text.

    What cannot be read raises ToolkitError, which ends with `remedy`.
    """
    refuse_special(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_TEXT + 1)
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ToolkitError(f"{path} cannot be read ({reason}). {remedy}") from None
    if len(data) > MOST_TEXT:
        raise ToolkitError(f"{path} cannot be read (texts above {in_bytes(MOST_TEXT)} are not). {remedy}")
    return text


def parse_json(text: str, where: str | Path) -> Any:
    """JSON text, or a ToolkitError that names the place; lists and objects lie at most DEEPEST deep in each other."""
    try:
        value = json.loads(text)
        if "\\u" in text and _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        if text.count("[") + text.count("{") > DEEPEST:
            _check_depth(value)
    except (ValueError, RecursionError) as error:
        problem = "nested without end" if isinstance(error, RecursionError) else str(error)
        raise ToolkitError(
            f"{where}: not valid JSON ({problem}). The file is damaged or was edited by hand: make or copy it again."
        ) from None
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inside = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [part for parts in inside for part in parts if isinstance(part, dict | list)]
        if not level:
            return
    raise RecursionError


def read_json(path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """The JSON object in a file; a missing or damaged one is named, with `remedy` where it cannot be read."""
    data = parse_json(read_text(path, remedy), path)
    if not isinstance(data, dict):
        raise ToolkitError(f"{path}: expected a JSON object, not {type(data).__name__}. Make or copy it again.")
    return data


@contextmanager
def parsing(path: Path, remedy: str = AGAIN) -> Iterator[None]:
    """Whatever is raised while the content of a file is given its meaning becomes a ToolkitError that names the file.

    Libraries raise errors of a dozen kinds for values that they do not expect, and others with each version.
    """
    try:
        yield
    except ToolkitError as error:
        if str(path.parent) in str(error):
            raise
        raise ToolkitError(f"{path}: {error}") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of libraries in Rust
            raise
        said = " ".join(str(error).split())[:_SHOWN]
        raise ToolkitError(f"{path} makes no sense ({type(error).__name__}: {said}). {remedy}") from error


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of a type as dataclasses declare it; whole numbers are floats too, booleans not."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inside)
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(each, inside[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, inside[1]) for each in value.values())
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return kind is Any or isinstance(value, NoneType if kind is None else kind)


def check_types(cls: type, values: Mapping[str, Any], where: str = "") -> None:
    """Refuse values from JSON that are of another type than the class itself declares; other names are left alone."""
    for name, kind in inspect.get_annotations(cls, eval_str=True).items():
        if name in values and not fits(values[name], kind):
            expected = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ToolkitError(f"{where}{name}: expected {expected}, found {values[name]!r:.60}.")


def refuse_absurd(numbers: Mapping[str, Any], above: str = "") -> None:
    """Refuse a description of a model with a number that none has, before memory is taken for it."""
    for key, value in numbers.items():
        if isinstance(value, Mapping):
            refuse_absurd(value, f"{above}{key}.")
        most = MOST_LAYERS if key in _LAYERS else MOST
        if isinstance(value, int | float) and not abs(value) <= most:
            raise ToolkitError(f"{above}{key} is {value!r:.40}; models have {most:,} at most. Take the original file.")


def read_json_lines(path: Path, remedy: str = AGAIN) -> Iterator[tuple[str, Any]]:
    """(place in words, value) of each line of a file of JSON lines that is not blank, whatever its line ends are."""
    for number, line in enumerate(_LINE_END.split(read_text(path, remedy)), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where)


@contextmanager
def open_table(path: Path, remedy: str = COPY_AGAIN) -> Iterator[pq.ParquetFile]:
    """A parquet file that is open within the block; all that pyarrow raises there becomes ToolkitError."""
    import pyarrow.parquet as pq  # here and below: slow to load, and most that is read is no table

    refuse_special(path)
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except ToolkitError:
        raise
    except Exception as error:
        problem = " ".join(str(error).partition(". ")[0].split())[:160]  # what follows is pyarrow's guess at a remedy
        raise ToolkitError(f"{path} cannot be read ({problem}). {remedy}") from error


def refuse_foreign(path: Path) -> None:
    """Raise ToolkitError for what does not begin and end as a table does, before its gigabytes are hashed."""
    refuse_special(path)
    with disk_errors(path, COPY_AGAIN), path.open("rb") as file:
        begins = file.read(len(_MAGIC))
        file.seek(max(0, path.stat().st_size - len(_MAGIC)))
        ends = file.read()
    if not begins == ends == _MAGIC:
        raise ToolkitError(f"{path} cannot be read (Parquet magic bytes are missing). {COPY_AGAIN}")


def read_columns(file: pq.ParquetFile, path: Path, names: Sequence[str]) -> pa.Table:
    """These columns; refused with ToolkitError where they would fill the memory."""
    check_size(file, path, names)
    return file.read(columns=list(names), use_threads=False)


def check_size(file: pq.ParquetFile, path: Path, names: Sequence[str]) -> None:
    """Raise ToolkitError where these columns need far more memory than a table of that size on the disk does.

    A text or image that many rows share is stored once: how much that is in memory is counted only where it may be
    too much.
    """
    most = max(_ALWAYS_READ, _USUAL_RATIO * path.stat().st_size)
    wanted = tuple(f"{name}." for name in names)
    leaves = [i for i in range(len(file.schema)) if f"{file.schema.column(i).path}.".startswith(wanted)]
    for exactly in (False, True):
        needed = sum(_in_memory(file, path, leaf, most if exactly else None) for leaf in leaves)
        if needed <= most:
            return
    raise ToolkitError(
        f"{path}: {in_bytes(path.stat().st_size)} on the disk would be {in_bytes(needed)} or more in memory. The table "
        "is damaged or was tampered with: copy that file again from a source you trust."
    )


def _in_memory(file: pq.ParquetFile, path: Path, leaf: int, most: int | None) -> int:
    """Bytes of one column at the most; the true number of shared values where `most` says up to which it matters."""
    column, total = file.schema.column(leaf), 0
    for group in range(file.num_row_groups):
        chunk: Any = file.metadata.row_group(group).column(leaf)
        stored = max(0, chunk.total_uncompressed_size)
        if chunk.physical_type != "BYTE_ARRAY":
            total += chunk.num_values * _WIDTHS.get(chunk.physical_type, column.length)
        elif not any("DICTIONARY" in name for name in chunk.encodings):
            total += stored
        elif most is None:
            total += stored * max(1, chunk.num_values)
        else:
            total += stored if stored > most else _shared(path, column.path, group)
    return total


def _shared(path: Path, column: str, group: int) -> int:
    """Bytes of a column's texts or images, each counted as often as rows hold it, without unpacking them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    total = 0
    with pq.ParquetFile(path, read_dictionary=[column]) as file:
        for batch in file.iter_batches(row_groups=[group], columns=[column]):
            values = batch.column(0)
            while not pa.types.is_dictionary(values.type):
                values = values.field(0) if pa.types.is_struct(values.type) else values.flatten()
            lengths = pc.binary_length(values.dictionary)
            total += pc.sum(pc.take(lengths, values.indices)).as_py() or 0
    return total


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Everything below a folder that is no folder, through links to folders too (Path.rglob follows none).

    Names that begin with a dot are passed over: what macOS writes beside copies on foreign disks (._name, .DS_Store)
    belongs to no dataset. A link back to a folder that it lies in, or to one of `above`, is not followed; links that
    multiply without end raise ToolkitError.
    """
    waiting, links = [(folder, folder, above, False)], 0
    while waiting:
        path, place, outer, linked = waiting.pop()  # `place` has few links in it, so it is found soon
        if not place.is_dir():
            yield path
        elif (here := place.resolve()) not in outer:
            links += linked and place.is_symlink()
            if links > MOST_LINKS:
                raise ToolkitError(f"{folder}: links lead to each other without end, {path} among them. Remove them.")
            linked |= place.is_symlink()
            names = [inside.name for inside in here.iterdir() if not inside.name.startswith(".")]
            waiting += [(path / name, here / name, outer | {here}, linked) for name in names]
