"""The model. `Gr00tN1d7` and `Gr00tN1d7Config` are imported on first use, so that light tools need no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gr00t.model.config import Gr00tN1d7Config
    from gr00t.model.gr00t_n1d7 import Gr00tN1d7

__all__ = ["Gr00tN1d7", "Gr00tN1d7Config"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import gr00t.model.gr00t_n1d7 as module

    return getattr(module, name)
