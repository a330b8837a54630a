"""The one exception that users are meant to read, and the nearest-name hint used in its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ToolkitError(ValueError):
    """Something the user can mend. The message says what is wrong, where, and how to mend it.

    Entry scripts print the message without a traceback; everything else propagates as a bug.
    """


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A hint for an unknown name: ' Did you mean "x"?' or, with nothing near, ' Known: a, b, c.'.

    Starts with a space so that it can be appended to a sentence; empty when there are no options.
    """
    known = sorted(set(options))
    if not known:
        return ""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f' Did you mean "{near[0]}"?'
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f" Known: {shown}."
