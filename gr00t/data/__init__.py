"""What goes into the model and comes out of it. Importing this package loads neither torch nor transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gr00t.data.processor import Gr00tN1d7Processor

__all__ = ["Gr00tN1d7Processor"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from gr00t.data import processor

        return getattr(processor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
