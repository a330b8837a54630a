"""A terminal of its own for what a test prints, and the bars that were drawn there."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest


def in_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, write: Callable[[], object], **variables: str) -> str:
    """What `write` prints where stdout is a terminal of so many columns; `variables` are the environment's."""
    ours, theirs = os.openpty()
    written = list[bytes]()

    def read() -> None:
        with suppress(OSError):  # how Linux says that the other end is closed
            while data := os.read(ours, 1 << 16):
                written.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as changed, os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
            changed.delenv(name, raising=False)
        for name, value in ({"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "50"} | variables).items():
            changed.setenv(name, value)
        changed.setattr(sys, "stdout", terminal)
        write()
    reader.join()
    os.close(ours)
    return b"".join(written).decode()


def bars(written: str) -> list[tuple[int, int]]:
    """The characters that are drawn as done and as left in each bar that a terminal was sent."""
    found = []
    for bar in re.findall(r"(?:\x1b\[[\d;]*m[━╸╺]+\x1b\[0m)+", written) or re.findall("[━╸╺]+", written):
        parts = re.findall(r"\x1b\[([\d;]*)m([━╸╺]+)", bar)
        left = sum(len(text) for style, text in parts if style.endswith("237"))  # rich's gray
        found.append((sum(len(text) for _, text in parts) - left, left))
    return found
