"""Damages to a folder of small files, as plain data: drawn by hypothesis, applied to a copy, and written into a report
from which each can be repeated. What they change follows the format of a file: bytes, JSON values, columns, nodes."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from gr00t.server.messages import pack

SPARSE_BYTES = 3 * 2**30


class Mutation(NamedTuple):
    """`kind` is a function below, which gets the path of `file` in the damaged folder, and `arguments`."""

    file: str
    kind: str
    arguments: list[Any]


def apply(root: Path, mutation: Mutation) -> None:
    """Damage the folder; where the content is not what the kind expects, it is left as it is."""
    path = root / mutation.file
    KINDS[mutation.kind](path, *mutation.arguments)


def mutations(root: Path) -> st.SearchStrategy[Mutation]:
    """Of one file of the folder, which is drawn first: each is hit as often as any other, however large."""
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return st.sampled_from(files).flatmap(lambda name: _of_file(root, name, files))


def _of_file(root: Path, name: str, files: list[str]) -> st.SearchStrategy[Mutation]:
    path = root / name
    others = st.sampled_from([other for other in files if other != name] or [name])
    kinds: list[st.SearchStrategy[tuple[str, list[Any]]]] = [
        st.tuples(st.just("bytes_changed"), _bytes(path.stat().st_size)),
        st.tuples(st.just("file_replaced"), st.tuples(st.sampled_from(FILES)).map(list)),
        st.tuples(
            st.just("swapped"), st.tuples(others.map(lambda o: os.path.relpath(root / o, path.parent))).map(list)
        ),
    ]
    formats = {".json": _json, ".jsonl": _json, ".parquet": _table, ".h5": _hdf5, ".safetensors": _header}
    formats |= {".msgpack": _request, ".txt": _text, ".jinja": _text, ".yaml": _text, ".arrow": _table}
    own = formats.get(path.suffix)
    if own is not None:  # three times in four
        kinds += [own(path)] * 9
    return st.one_of(kinds).map(lambda drawn: Mutation(name, *drawn))


# -- bytes and files ---------------------------------------------------------------------------------------------------


def _bytes(size: int) -> st.SearchStrategy[list[Any]]:
    """Near the ends, where formats keep what they are read by, and anywhere."""
    near = st.integers(0, max(0, min(size, 400) - 1))
    place = st.one_of(near, near.map(lambda at: max(0, size - 1 - at)), st.integers(0, max(0, size - 1)))
    change = st.sampled_from(["flip", "cut", "insert", "overwrite", "drop"])
    return st.tuples(change, place, st.integers(0, 2**16)).map(list)


def bytes_changed(path: Path, change: str, at: int, value: int) -> None:
    """One bit, or a run of up to 64 bytes, is changed, cut off, inserted, overwritten or left out at a place."""
    data = bytearray(path.read_bytes())
    noise = random.Random(value).randbytes(1 + value % 64)
    if change == "flip" and at < len(data):
        data[at] ^= 1 << value % 8
    elif change == "cut":
        del data[at:]
    elif change == "drop":
        del data[at : at + len(noise)]
    else:
        data[at : at + len(noise) * (change == "overwrite")] = noise
    path.write_bytes(data)


FILES = ("missing", "empty", "garbage", "text", "folder", "pipe", "loop", "dangling", "sparse", "zeros")


def file_replaced(path: Path, by: str) -> None:
    """Something else stands where the file was."""
    size = path.stat().st_size
    path.unlink()
    if by == "folder":
        path.mkdir()
    elif by == "pipe":
        os.mkfifo(path)
    elif by in ("loop", "dangling"):
        path.symlink_to(path.name if by == "loop" else "nowhere")
    elif by == "sparse":
        path.touch()
        os.truncate(path, SPARSE_BYTES)
    elif by != "missing":
        garbage = random.Random(size).randbytes(2000)
        path.write_bytes({"garbage": garbage, "text": b"some text\n", "zeros": bytes(size)}.get(by, b""))


def swapped(path: Path, other: str) -> None:
    """Another file's content lies here, and this one's there."""
    there = path.parent / other
    ours, theirs = path.read_bytes(), there.read_bytes()
    path.write_bytes(theirs)
    there.write_bytes(ours)


# -- JSON --------------------------------------------------------------------------------------------------------------

NESTED = "[" * 100_000 + "]" * 100_000
TEXTS = (
    "",
    "x",
    "../../etc/passwd",
    "/etc/passwd",
    "%s%n",
    "\x00",
    "\ud800",
    "😀" * 50,
    "A" * 100_000,
    "NaN",
    "1",
    "a/b",
)
TEMPLATES = (
    *("{episode_index:>3000000000}", "{0.__class__}", "{episode_index.__class__.__mro__}", "{unknown}", "{", "{}"),
    *("{episode_index!r:>9}", "../../{episode_index}.parquet", "{episode_index:06d}/../../../../etc/passwd", "{:d}"),
)
NUMBERS = (
    "-1",
    "0",
    "1",
    "2",
    "3.7",
    "1e308",
    "1e400",
    "-1e400",
    "NaN",
    "1" + "0" * 30,
    str(2**31),
    str(2**63),
    str(2**64),
)
PLAIN = ("null", "true", "false", "[]", "{}", "[null]", '["a"]', "[[[]]]", '{"a": {}}', "[1, 2]", "1" * 5000, NESTED)
RAW = (*NUMBERS, "1000000000", "-1000000000000000000000000000000", "1e-9", *PLAIN)
_MARK = "@@mutated@@"


def _json(path: Path) -> st.SearchStrategy[tuple[str, list[Any]]]:
    """A change of a value anywhere in the document (or in one line of a file of lines), chosen by `place`."""
    change = st.sampled_from(
        ["value", "value", "value", "value", "deleted", "renamed", "added", "doubled", "whole", "utf-8"]
    )
    values = st.one_of(st.sampled_from(RAW), st.sampled_from([json.dumps(text) for text in (*TEXTS, *TEMPLATES)]))
    return st.tuples(st.just("json_changed"), st.tuples(change, st.integers(0, 10**6), values).map(list))


def json_changed(path: Path, change: str, place: int, value: str) -> None:
    """The `place`-th value of the document becomes the JSON text `value`, or is deleted, renamed, added to, doubled."""
    text = path.read_text()
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = place % len(lines) if lines else 0
    if change == "whole" or not lines:
        lines[number : number + 1] = [value]
    elif change == "utf-8":
        encoded = text.encode()
        at = place % (len(encoded) + 1)
        path.write_bytes(encoded[:at] + b"\xff\xfe" + encoded[at:])
        return
    elif change == "doubled" and path.suffix == ".jsonl":
        lines.insert(number, lines[number])
    else:
        lines[number] = changed_text(lines[number], change, place // len(lines), value)
    path.write_text("\n".join(lines) + "\n", errors="surrogatepass")


def changed_text(text: str, change: str, place: int, value: str) -> str:
    """One JSON document with one change."""
    document = json.loads(text)
    paths = list(_paths(document))
    if not paths:
        return value
    *above, last = paths[place % len(paths)]
    holder = document
    for key in above:
        holder = holder[key]
    if change == "deleted":
        del holder[last]
    elif change == "renamed" and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    elif change == "doubled" and isinstance(holder, list):
        holder.append(holder[last])
    elif change == "added" and isinstance(holder[last], dict | list):
        inside = holder[last]
        inside.update({"unknown": _MARK}) if isinstance(inside, dict) else inside.append(_MARK)
    else:
        holder[last] = _MARK
    return json.dumps(document).replace(f'"{_MARK}"', value)


def _paths(value: Any, above: tuple = ()) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, inside in entries:
        yield (*above, key)
        yield from _paths(inside, (*above, key))


# -- texts that are programs -------------------------------------------------------------------------------------------

SNIPPETS = (
    *(
        "{{ 1 / 0 }}",
        "{% for",
        "{{ unknown.attribute }}",
        "{% raw %}",
        "{{ messages.__class__ }}",
        "{{ raise_exception('x') }}",
    ),
    *(
        "\x00",
        "\ud800",
        "<|image_pad|>",
        "\t",
        "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "!!python/object:os.system x",
    ),
    *("- x\n", ": :", "&a [*a]", "é", "#version: 0.2\n", "{{ 'x' * 10 }}", "split: [1]\n", "train: null\n", "? {}"),
)


def _text(path: Path) -> st.SearchStrategy[tuple[str, list[Any]]]:
    arguments = st.tuples(st.booleans(), st.integers(0, max(0, path.stat().st_size)), st.sampled_from(SNIPPETS))
    return st.tuples(st.just("text_changed"), arguments.map(list))


def text_changed(path: Path, whole: bool, at: int, snippet: str) -> None:
    """A snippet in place of the file, or inserted."""
    text = "" if whole else path.read_text()
    path.write_bytes((text[:at] + snippet + text[at:]).encode(errors="surrogatepass"))


# -- tables ------------------------------------------------------------------------------------------------------------

COLUMN_CHANGES = ("dropped", "renamed", "text", "int", "float", "null", "nested", "nulls", "nan", "infinite", "huge")
COLUMN_CHANGES += ("negative", "narrow", "wide", "ragged", "one_null", "bytes", "bool")
ROW_CHANGES = ("none", "one", "fewer", "twice", "reversed")


def _table(path: Path) -> st.SearchStrategy[tuple[str, list[Any]]]:
    if path.suffix != ".parquet":  # a copy in Arrow's own format
        return st.tuples(st.just("bytes_changed"), _bytes(path.stat().st_size))
    columns = st.tuples(st.sampled_from(pq.read_schema(path).names), st.sampled_from(COLUMN_CHANGES)).map(list)
    rows = st.tuples(st.just(""), st.sampled_from(ROW_CHANGES)).map(list)
    return st.tuples(st.just("table_changed"), st.one_of(columns, columns, columns, rows))


def table_changed(path: Path, name: str, change: str) -> None:
    """A column is changed, or (without a name) the rows."""
    table = pq.read_table(path)
    if name:
        at = table.schema.names.index(name)
        if change == "dropped":
            table = table.remove_column(at)
        elif change == "renamed":
            table = table.rename_columns([*table.schema.names[:at], f"{name}x", *table.schema.names[at + 1 :]])
        else:
            table = table.set_column(at, name, _column(table[name].to_pylist(), change))
    else:
        order = {"none": [], "one": [0], "fewer": range(len(table) - 1), "reversed": range(len(table))[::-1]}
        table = table.take(pa.array(list(order.get(change, [*range(len(table))] * 2)), pa.int64()))
    pq.write_table(table, path)


def _column(values: list[Any], change: str) -> pa.Array:
    count = len(values)
    constant = {"text": "x", "int": 7, "float": 0.5, "nested": {"a": [1]}, "bytes": b"\xff", "bool": True}
    if change in constant:
        return pa.array([constant[change]] * count)
    if change in ("null", "nulls"):
        return pa.nulls(count) if change == "null" else pa.nulls(count, pa.array(values).type)
    numbers = {"nan": np.nan, "infinite": np.inf, "huge": 1e300, "negative": -1}
    if change in numbers:
        number = numbers[change]
        filled = [[number] * len(v) if isinstance(v, list) else number for v in values]
        return pa.array(filled)
    if change == "one_null":
        return pa.array([*values[:-1], None], pa.array(values).type)
    sizes = {"narrow": [1] * count, "wide": [3000] * count, "ragged": [1 + i % 3 for i in range(count)]}[change]
    first = [v[0] if isinstance(v, list) and v else 0.0 for v in values]
    return pa.array([[v] * size for v, size in zip(first, sizes, strict=True)])


# -- HDF5 --------------------------------------------------------------------------------------------------------------

NODE_CHANGES = (
    *("deleted", "text", "scalar", "empty", "group", "nan", "infinite", "shorter", "flat", "deeper", "float64", "int8"),
    *("dangling", "external", "bool", "strings", "huge", "compound", "renamed", "itself", "null"),
)


def _hdf5(path: Path) -> st.SearchStrategy[tuple[str, list[Any]]]:
    names: list[str] = []
    with h5py.File(path) as file:
        file.visit(names.append)
    arguments = st.tuples(st.sampled_from(names), st.sampled_from(NODE_CHANGES)).map(list)
    return st.tuples(st.just("node_changed"), arguments)


def node_changed(path: Path, name: str, change: str) -> None:
    """A group or dataset is replaced."""
    with h5py.File(path, "r+") as file:
        node = file[name]
        values = np.asarray(node) if isinstance(node, h5py.Dataset) else np.zeros((3, 2), np.float32)
        del file[name]
        numbers = values.astype(np.float32)
        links = {
            "dangling": h5py.SoftLink("/nowhere"),
            "external": h5py.ExternalLink("/etc/passwd", "/x"),
            "itself": h5py.SoftLink(f"/{name}"),
        }
        arrays: dict[str, Callable[[], Any]] = {
            "text": lambda: "some text",
            "scalar": lambda: 1.0,
            "empty": lambda: values[:0],
            "nan": lambda: np.full_like(numbers, np.nan),
            "infinite": lambda: np.full_like(numbers, np.inf),
            "shorter": lambda: values[: len(values) // 2],
            "flat": lambda: values.reshape(-1),
            "deeper": lambda: values[None],
            "float64": lambda: values.astype(np.float64),
            "int8": lambda: np.zeros(values.shape, np.int8),
            "bool": lambda: np.zeros(values.shape, bool),
            "strings": lambda: ["a", "b"],
            "compound": lambda: np.zeros(3, [("a", "f4"), ("b", "i8")]),
            "null": lambda: h5py.Empty("f4"),
        }
        if change in links:
            file[name] = links[change]
        elif change == "group":
            file.create_group(name)
        elif change == "huge":
            file.create_dataset(name, shape=(10**9, *values.shape[1:]), dtype=values.dtype, chunks=True)
        elif change in arrays:
            file[name if change != "renamed" else f"{name}x"] = arrays[change]()
        elif change == "renamed":
            file[f"{name}x"] = values


# -- safetensors -------------------------------------------------------------------------------------------------------


def _header(path: Path) -> st.SearchStrategy[tuple[str, list[Any]]]:
    arguments = _json(path).map(lambda drawn: drawn[1])
    poison = st.tuples(st.sampled_from(["nan", "infinite"]), st.integers(0, 10**6), st.just("")).map(list)
    return st.tuples(st.just("header_changed"), st.one_of(arguments, arguments, arguments, poison))


def header_changed(path: Path, change: str, place: int, value: str) -> None:
    """The header, which is JSON, is changed and its length set; or one value of the tensors becomes NaN or infinite."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header, tensors = data[8 : 8 + length], data[8 + length :]
    if change in ("nan", "infinite"):
        at = place % max(1, len(tensors) // 4) * 4
        tensors[at : at + 4] = np.float32(np.nan if change == "nan" else np.inf).tobytes()
    elif change == "utf-8":
        header[place % len(header) : place % len(header)] = b"\xff"
    else:
        new = value if change == "whole" else changed_text(header.decode(), change, place, value)
        header = bytearray(new.encode(errors="surrogatepass"))
    path.write_bytes(len(header).to_bytes(8, "little") + header + tensors)


# -- requests ----------------------------------------------------------------------------------------------------------

ARRAYS = (
    *(
        np.zeros(shape, np.uint8)
        for shape in ((1, 1, 1, 4096, 3), (1, 1, 4096, 1, 3), (4, 1, 4, 2000, 3), (1, 1, 0, 9, 3))
    ),
    *(np.zeros(shape, np.uint8) for shape in ((99, 1, 8, 8, 3), (1, 9, 8, 8, 3), (1, 1, 8, 8, 4), (1,) * 8, (8, 8, 3))),
    *(np.zeros((1, 1, 8, 8, 3), kind) for kind in ("f4", "f8", "u2", "i1", "?")),
    *(np.full((1, 1, 7), value, "f4") for value in (np.nan, np.inf, 1e38, 0)),
    *(np.zeros((1, 1, 7), kind) for kind in ("f8", "f2", "i8")),
)
SIZES = ("dd", "df", "c6", "db", "c9")  # an array, map, bytes, text and extension of 4 GiB
MESSAGES = (
    *(pack(array) for array in ARRAYS),
    *(
        msgpack.packb(value)
        for value in (None, True, -1, 2**63, 1e308, np.nan, "", "x" * 20_000, "x" * 1_001, [], {}, [[]])
    ),
    *(
        msgpack.packb(value)
        for value in ({"nd": True}, {"nd": 1, "kind": "O", "type": "|O", "data": b"x"}, {1: 2}, ["x"] * 5_000)
    ),
    *(bytes.fromhex(f"{size}ffffffff") for size in SIZES),
    *(b"\x91" * 100_000 + b"\xc0", b"\x91" * 500 + b"\xc0", b"\xd6\xff" + bytes(4), b"\xc1", b"\xa2\xff\xfe", b""),
)


def _request(path: Path) -> st.SearchStrategy[tuple[str, list[Any]]]:
    arguments = st.tuples(st.integers(0, 10**4), st.integers(0, len(MESSAGES) - 1)).map(list)
    return st.tuples(st.just("request_changed"), arguments)


def request_changed(path: Path, place: int, number: int) -> None:
    """The `place`-th value of a request becomes the `number`-th of MESSAGES."""
    document = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    paths = list(_paths(document))
    *above, last = paths[place % len(paths)]
    holder = document
    for key in above:
        holder = holder[key]
    holder[last] = _MARK
    path.write_bytes(msgpack.packb(document).replace(msgpack.packb(_MARK), MESSAGES[number]))


def copied(source: Path, target: Path) -> Path:
    """A fresh copy of a sound folder."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))


KINDS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (bytes_changed, file_replaced, swapped, json_changed, text_changed, table_changed, node_changed)
} | {"header_changed": header_changed, "request_changed": request_changed}
