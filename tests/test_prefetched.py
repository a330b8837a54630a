"""Whether a folder that is there is what is asked for: source, revision and commit."""

from __future__ import annotations

import pytest

from finetune.prefetch import Origin

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "held, asked, same",
    [
        (Origin("a/b", "main", COMMIT), Origin("a/b", "main"), True),
        (Origin("a/b", "main", COMMIT), Origin("a/c", "main"), False),
        (Origin("a/b", "main", COMMIT), Origin("a/b", "v2"), False),
        (Origin("a/b", "main", COMMIT), Origin("a/b", COMMIT), True),
        (Origin("a/b", "main", COMMIT), Origin("a/b", COMMIT[:7]), True),
        (Origin("a/b", "main", COMMIT), Origin("a/b", COMMIT[:6]), False),
        (Origin("a/b", "main", COMMIT), Origin("a/b", COMMIT[1:9]), False),
        (Origin("a/b", "main", COMMIT), Origin("a/b", "main", "f" * 40), False),
        (Origin("a/b", "main", COMMIT), Origin("a/b", "other", COMMIT), True),
        (Origin("/folder"), Origin("/folder"), True),
    ],
)
def test_another_source_or_commit_is_another_checkpoint(held: Origin, asked: Origin, same: bool) -> None:
    assert held.is_what(asked) is same
