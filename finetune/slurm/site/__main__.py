"""Find out what a cluster's jobs need, and propose configs/local/default.yaml.

python -m finetune.slurm.site
python -m finetune.slurm.site cluster.account=mine cluster.setup=['module load cuda'] write=true
python -m finetune.slurm.site --help"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune.slurm.cluster_queries import ALIVE, slurm
from finetune.slurm.render import JOBS
from finetune.slurm.site.proposal import Findings, proposal
from finetune.slurm.site.request import SiteConfig, SiteJob, job_of
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import read_json
from toolkit.command_line import run_main
from toolkit.installation import CHECKOUT, CONFIG_DIR

ASK_SECONDS = 2.0
SHOWN_SECONDS = 10.0  # network disks show late what another node has written; SLURM may not answer for a moment
_MARK = "SITE_CHECK_EXPORTED"  # whether it arrives in the job shows what of a shell does


def main(config: SiteConfig) -> None:
    """Ask, wait, print; with write=true write the file."""
    target = CONFIG_DIR / "local" / "default.yaml"
    if config.write and target.exists():
        raise ToolkitError(f"{target} exists and is not replaced. Leave write=true out, and compare.")
    job = job_of(config)
    print(f"The check submits one job: {job.in_words}")
    answer, shown = ask_node(job, config)
    settings = dict(re.findall(r"^(\w+)\s*= (.*)$", slurm("scontrol", "show", "config").stdout, re.MULTILINE))
    if "--container-image" in slurm("srun", "--help", check=False).stdout:
        settings["Pyxis"] = "yes"
    head = f"Proposed by python -m finetune.slurm.site on {datetime.now():%Y-%m-%d}, after a job on {answer['node']}"
    text = proposal(Findings(job, config.cluster, answer, settings, shown), head)
    print(text, end="")
    if config.write:
        target.parent.mkdir(exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
        print(f"Written to {target}. python -m finetune.slurm.render writes it into the job scripts.")
    else:
        print(f"# write=true writes this to {target}")


def ask_node(job: SiteJob, config: SiteConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """What the job saw, and what SLURM says of it. However this ends, the job and its files are gone afterwards."""
    runs = Path(config.runs_dir).absolute()
    with ExitStack() as undo:
        with disk_errors(runs, "Nothing was submitted."):
            for folder in [path for path in reversed([runs, *runs.parents]) if not path.exists()]:
                folder.mkdir()
                undo.callback(_remove_empty, folder)
            folder = Path(tempfile.mkdtemp(prefix=".site-", dir=runs))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        script = f"{job.script}\n{_payload(folder, runs)}"
        os.environ[_MARK] = "yes"
        undo.callback(os.environ.pop, _MARK)
        options = (f"--output={folder}/log", "--job-name=site-check", "--parsable")
        job_id = slurm("sbatch", *options, text=script).stdout.strip().split(";")[0]
        undo.callback(slurm, "scancel", job_id, check=False)
        print(f"job {job_id} is submitted; Ctrl-C cancels it")
        return _wait(job_id, folder, config)


def _payload(folder: Path, runs: Path) -> str:
    """What the job runs: the probe as every job of ours starts Python, else with any Python."""
    probe = [str(Path(__file__).with_name("probe.py")), f"{folder}/answer.json"]
    folders = ["--folders", str(Path.home()), str(CHECKOUT), str(runs)]
    return f"""export GROOT_CALLER_PYTHON={shlex.quote(sys.executable)}
probe=({shlex.join(probe)} "--exported=${{{_MARK}:-}}" {shlex.join(folders)})
{shlex.quote(str(JOBS / "run.sh"))} site "${{probe[@]}}" 2> {shlex.quote(f"{folder}/problem")} && exit
python3 "${{probe[@]}}" --problem="$(tail -n 1 {shlex.quote(f"{folder}/problem")})"
"""


def _wait(job_id: str, folder: Path, config: SiteConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The answer once it is there; ToolkitError where the job ends without, or does not start in time."""
    until, said, ended = time.monotonic() + config.wait_minutes * 60, "", math.inf
    while True:
        shown = _show("job", job_id)
        state = f"{shown.get('JobState', 'unknown').lower()} ({shown.get('Reason', '?')})"
        if shown.get("JobState") not in ALIVE:
            if (folder / "answer.json").is_file():
                return read_json(folder / "answer.json"), {**_show("partition", shown.get("Partition", "")), **shown}
            ended = min(ended, time.monotonic())
        if time.monotonic() > ended + SHOWN_SECONDS:
            raise ToolkitError(f"job {job_id} ended without an answer, {state}: {_log(folder)}")
        if time.monotonic() > until:
            raise ToolkitError(
                f"job {job_id} is {state} after wait_minutes={config.wait_minutes:g}, and is cancelled. Wait longer, "
                "or ask for less: gpus=1, cluster.partition=NAME."
            )
        if state != said:
            print(f"job {job_id}: {state}")
            said = state
        time.sleep(ASK_SECONDS)


def _show(kind: str, name: str) -> dict[str, str]:
    """What `scontrol show` says of a job or partition, by name."""
    said = slurm("scontrol", "show", kind, "--oneliner", name, check=False).stdout
    return dict(re.findall(r"(\S+?)=(\S*)", said))


def _log(folder: Path) -> str:
    """The end of what the job wrote."""
    files: Mapping[str, Path] = {name: folder / name for name in ("problem", "log")}
    lines = [
        line for path in files.values() if path.is_file() for line in path.read_text(errors="replace").splitlines()
    ]
    nothing = f"it wrote nothing. Give a folder on a disk that all nodes see (runs_dir=FOLDER), not {folder.parent}"
    return " | ".join(lines[-5:]) or nothing


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


if __name__ == "__main__":
    run_main(main, "site")
