"""A wandb run, started where wandb can be reached and kept offline where it cannot."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from toolkit.command_line import held_back
from toolkit.shared_keys import TrackingConfig

log = logging.getLogger(__name__)


def start_run(tracking: TrackingConfig, folder: Path, **options: Any) -> Any:
    """A wandb run whose files lie in <folder>/wandb; `options` go to wandb.init (id, config, job_type, tags, ...).

    mode=auto is offline where there is no key or no network; mode=online then raises ToolkitError.
    """
    import wandb

    mode = chosen_mode(tracking)
    try:
        return _init(tracking, folder, mode, options)
    except (wandb.errors.Error, OSError) as error:
        if tracking.mode == "online":
            raise ToolkitError(
                f"wandb cannot go online ({type(error).__name__}). Check the key and the network (wandb login), or use "
                "tracking.mode=offline and send the run later with wandb sync."
            ) from None
        log.warning("wandb cannot go online (%s); the run is kept offline, wandb sync sends it.", type(error).__name__)
        return _init(tracking, folder, "offline", options)


def _init(tracking: TrackingConfig, folder: Path, mode: str, options: dict[str, Any]) -> Any:
    import wandb

    chosen: dict[str, Any] = {
        "project": tracking.project,
        "name": tracking.run_name,
        "group": tracking.group,
        "tags": tracking.tags,
        # The git revision is among our versions; wandb would add the remote's address, which may hold a token.
        "settings": wandb.Settings(silent=True, console="off", init_timeout=60, disable_git=True, save_code=False),
        **options,
    }
    with held_back():  # wandb's own process would end before the run's last words
        return wandb.init(dir=str(folder), mode=mode, **chosen)  # type: ignore[arg-type]


def chosen_mode(tracking: TrackingConfig) -> str:
    """wandb's mode that `tracking.mode` stands for here."""
    if tracking.mode != "auto":
        return tracking.mode
    return os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")


def has_key() -> bool:
    """Whether wandb would find a key here."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
