"""Where the toolkit lies: in a checkout, in a published tree, or installed by pip; and whether `gr00t` is its own."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
# A published tree has gr00t/, the guide and the licence one folder above the scripts.
ROOT = CHECKOUT if (CHECKOUT / "gr00t").is_dir() else CHECKOUT.parent
INSTALLED = not (CHECKOUT / "configs").is_dir()
DISTRIBUTION = "groot-conflict-finetune"


def resources(name: str) -> Path:
    """The folder `configs` or `finetune_jobs`: of the checkout, or as a wheel carries it, inside this package."""
    return Path(__file__).with_name(name) if INSTALLED else CHECKOUT / name


CONFIG_DIR = resources("configs")


def ensure_own_gr00t() -> None:
    """Raise ToolkitError when Python finds another `gr00t` before ours (NVIDIA's distribution has that name too)."""
    spec = importlib.util.find_spec("gr00t")
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found != ROOT / "gr00t" / "__init__.py":
        raise _toolkit_error()(
            f"Python finds another package named gr00t ({found.parent if found else 'without a file'}) before the one "
            f"of this checkout, {ROOT / 'gr00t'}. Run from the checkout (cd {CHECKOUT}), or remove the other one "
            f"(pip uninstall gr00t), or put the checkout first (export PYTHONPATH={ROOT})."
        )
    if INSTALLED and any(metadata.distributions(name="gr00t")):
        raise _toolkit_error()(
            f"NVIDIA's distribution gr00t and {DISTRIBUTION} are installed side by side in {ROOT}, where both write to "
            f"gr00t/, so that neither is whole. Give each an environment of its own: pip uninstall gr00t "
            f"{DISTRIBUTION}, then install {DISTRIBUTION} again."
        )


def _toolkit_error() -> type[ValueError]:
    """Our ToolkitError, read from its file: `import gr00t.errors` would look into the other package."""
    spec = importlib.util.spec_from_file_location("own_errors", ROOT / "gr00t" / "errors.py")
    if spec is None or spec.loader is None:
        return ValueError
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ToolkitError
