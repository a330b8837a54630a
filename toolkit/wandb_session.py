"""A wandb run, started where wandb can be reached and kept offline where it cannot."""

from __future__ import annotations

import configparser
import logging
import netrc
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gr00t.errors import ToolkitError, did_you_mean
from toolkit.command_line import held_back
from toolkit.shared_keys import TrackingConfig

MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")  # what WANDB_MODE may say
PUBLIC_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # one service under its older and its newer name
INIT_SECONDS = 60  # until a server that does not answer counts as one that is not there

log = logging.getLogger(__name__)


def start_run(tracking: TrackingConfig, folder: Path, **options: Any) -> Any:
    """A wandb run whose files lie in <folder>/wandb; `options` go to wandb.init (id, config, job_type, tags, ...).

    mode=auto is offline where there is no key or no network; mode=online then raises ToolkitError.
    """
    import wandb

    mode, why = chosen_mode(tracking)
    if why:
        log.warning("wandb is %s: %s", mode, why)
    try:
        return _init(tracking, folder, mode, options)
    except (wandb.errors.Error, OSError) as error:
        if tracking.mode == "online":
            raise ToolkitError(
                f"wandb cannot go online ({type(error).__name__}). Check the key and the network (wandb login), or use "
                "tracking.mode=offline and send the run later with wandb sync."
            ) from None
        log.warning("wandb cannot go online (%s); the run is kept offline, wandb sync sends it.", type(error).__name__)
        wandb.teardown()  # its service still holds the id of the run that failed
        return _init(tracking, folder, "offline", options)


def _init(tracking: TrackingConfig, folder: Path, mode: str, options: dict[str, Any]) -> Any:
    import wandb

    chosen: dict[str, Any] = {
        "project": tracking.project,
        "name": tracking.run_name,
        "group": tracking.group,
        "tags": tracking.tags,
        # The git revision is among our versions; wandb would add the remote's address, which may hold a token.
        "settings": wandb.Settings(
            silent=True, console="off", init_timeout=INIT_SECONDS, disable_git=True, save_code=False
        ),
        **options,
    }
    with held_back():  # wandb's own process would end before the run's last words
        return wandb.init(dir=str(folder), mode=mode, **chosen)  # type: ignore[arg-type]


def chosen_mode(tracking: TrackingConfig) -> tuple[str, str]:
    """wandb's mode that `tracking.mode` stands for here, and why where that is not what the key says itself."""
    if tracking.mode != "auto":
        return tracking.mode, ""
    asked = os.environ.get("WANDB_MODE")
    if asked and asked not in MODES:
        raise ToolkitError(f"WANDB_MODE={asked} is no mode of wandb.{did_you_mean(asked, MODES)} Or unset it.")
    if asked:
        return asked, ""
    if has_key():
        return "online", ""
    return "offline", f"there is no key for {_host()} (wandb login); wandb sync sends the run"


def _host() -> str:
    """The server that wandb would send to, by its variable, its settings file or its default.

    wandb.setup() knows it too, but keeps for the whole process what it then finds.
    """
    import wandb

    file = configparser.ConfigParser()
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    with suppress(configparser.Error, UnicodeDecodeError):
        file.read(Path(folder).expanduser() / "settings")
    configured = os.environ.get("WANDB_BASE_URL") or file.get("default", "base_url", fallback=None)
    return str(urlsplit(configured or wandb.Settings().base_url).hostname)


def has_key() -> bool:
    """Whether wandb would find a key here: in its variables, or for its server in the .netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = _host()
    known = [host, *(PUBLIC_HOSTS if host in PUBLIC_HOSTS else ())]  # a key may be kept under the older name
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            entries = netrc.netrc(str(Path(file).expanduser())).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if any(name in entries for name in known):
            return True
    return False
