"""The runs of a project and their SLURM jobs: listed, followed, cancelled and submitted again.

python -m finetune.jobs
python -m finetune.jobs follow color_object
python -m finetune.jobs cancel color_object
python -m finetune.jobs resubmit color_object
python -m finetune.jobs --help"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from finetune.jobs import JobsConfig
from gr00t.errors import ToolkitError, did_you_mean
from toolkit.command_line import run_main
from toolkit.configuration import load_with_words

COMMANDS = ("list", "follow", "cancel", "resubmit")


def read(arguments: Sequence[str]) -> tuple[str, str, JobsConfig]:
    """`[COMMAND [RUN]] [key=value ...]` as command, run and configuration; anything else raises ToolkitError."""
    words, config = load_with_words("jobs", arguments)
    command, *names = words or ["list"]
    if command not in COMMANDS:
        raise ToolkitError(f'There is no command "{command}".{did_you_mean(command, COMMANDS)}')
    if len(names) != (command != "list"):
        usage = f"python -m finetune.jobs {command}" + (" RUN" if command != "list" else "")
        raise ToolkitError(f"{command} takes {'no' if command == 'list' else 'one'} name: {usage}")
    return command, "".join(names), config


def main(call: tuple[str, str, JobsConfig]) -> None:
    """Carry out the command of `read`."""
    command, run, config = call
    runs_dir = Path(config.runs_dir)
    if command == "list":
        _list(runs_dir, config.json)
    elif command == "follow":
        from finetune.jobs.follow import follow

        ended = follow(runs_dir, run, config.lines, lambda text: print(text, end="", flush=True))
        print(f"{ended.name}: {ended.state}{' (' + ended.reason + ')' if ended.reason else ''}")
    else:
        # the launcher's part of the toolkit, which a list need not wait for
        from finetune.jobs.control import cancel, resubmit

        print("\n".join((cancel if command == "cancel" else resubmit)(runs_dir, run)))


def _list(runs_dir: Path, as_json: bool) -> None:
    from finetune.jobs.run_views import views

    if as_json:
        print(json.dumps([asdict(view) for view in views(runs_dir, usage=True)], indent=2))
        return
    from finetune.jobs.table import show_table

    show_table(views(runs_dir), runs_dir)


if __name__ == "__main__":
    try:
        run_main(main, "jobs", read=read)
    except BrokenPipeError:  # the reader of a pipe had enough
        sys.stderr.close()
