"""Parquet tables, which a few kilobytes may make unpack to gigabytes: opened and read in one place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gr00t.errors import ToolkitError, disk_errors, in_bytes
from gr00t.file_reading import refuse_special

COPY_AGAIN = "Copy that file again, or prepare the dataset again."
_ALWAYS_READ = 2**28  # bytes in memory, however small the file is
_USUAL_RATIO = 100  # of memory to disk, above that
_MAGIC = b"PAR1"
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


@contextmanager
def open_table(path: Path, remedy: str = COPY_AGAIN) -> Iterator[pq.ParquetFile]:
    """A parquet file that is open within the block; all that pyarrow raises there becomes ToolkitError."""
    refuse_special(path)
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except ToolkitError:
        raise
    except Exception as error:
        problem = " ".join(str(error).partition(". ")[0].split())[:160]  # what follows is pyarrow's guess at a remedy
        raise ToolkitError(f"{path} cannot be read ({problem}). {remedy}") from error


def refuse_foreign(path: Path, remedy: str = COPY_AGAIN) -> None:
    """Raise ToolkitError for what does not begin and end as a table does, before its gigabytes are hashed."""
    refuse_special(path)
    with disk_errors(path, remedy), path.open("rb") as file:
        begins = file.read(len(_MAGIC))
        file.seek(max(0, path.stat().st_size - len(_MAGIC)))
        ends = file.read()
    if not begins == ends == _MAGIC:
        raise ToolkitError(f"{path} cannot be read (Parquet magic bytes are missing). {remedy}")


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
    total = 0
    with pq.ParquetFile(path, read_dictionary=[column]) as file:
        for batch in file.iter_batches(row_groups=[group], columns=[column]):
            values = batch.column(0)
            while not pa.types.is_dictionary(values.type):
                values = values.field(0) if pa.types.is_struct(values.type) else values.flatten()
            lengths = pc.binary_length(values.dictionary)
            total += pc.sum(pc.take(lengths, values.indices)).as_py() or 0
    return total
