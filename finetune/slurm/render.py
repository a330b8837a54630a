"""The job script: what the job of a stage asks sbatch for, the site's lines, and the one payload, finetune_jobs/run.sh.

As a command it writes finetune_jobs/<split>.sbatch for the splits of both suites from the cluster's configuration:
python -m finetune.slurm.render                                  what configs/local/default.yaml says, where it is there
python -m finetune.slurm.render local=none                       as shipped
python -m finetune.slurm.render cluster.nodes=2 train.max_steps=20000"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.recipe import ClusterConfig, FinetuneConfig
from gr00t.errors import ToolkitError
from toolkit.command_line import run_main
from toolkit.composition import options
from toolkit.configuration import load
from toolkit.installation import CHECKOUT, CONFIG_DIR, resources
from toolkit.shared_keys import VARIABLE, expanded, in_one_word

STAGES = ("record", "prepare", "finetune", "evaluate")  # of a launch, in order
DIVIDED = ("record", "prepare")  # those whose work may be divided into shares
JOBS = resources("finetune_jobs")
RUN = "finetune_jobs/run.sh"

# Keys of cluster.* that are read when the job runs; sbatch has read the others by then.
_LATE = ("processes_per_node", "grace_seconds", "max_requeues", "max_crashes", "scratch", "stage_data", "files")


def asks_for(cluster: ClusterConfig, stage: str) -> ClusterConfig:
    """What a job asks for: a fine-tune all of cluster.*; the others theirs of cluster.stages.*, on one node."""
    if stage == "finetune":
        return cluster
    own = getattr(cluster.stages, stage)
    gpus = min(own.gpus, cluster.gpus_per_node)
    share = cluster.cpus_per_task * gpus // max(cluster.gpus_per_node, 1)  # as many as come with that many GPUs
    cpus = own.cpus or (share if gpus else min(cluster.cpus_per_task, 8))
    return dataclasses.replace(
        cluster,
        nodes=1,
        gpus_per_node=gpus,
        processes_per_node=None,
        cpus_per_task=max(cpus, 1),
        memory=own.memory,  # that of a fine-tune is for its whole node; a site's default goes with the CPUs
        partition=own.partition or cluster.partition,
        time=own.time or cluster.time,
        sbatch=cluster.sbatch if own.sbatch is None else own.sbatch,
    )


def render(
    cluster: ClusterConfig,
    *,
    job_name: str,
    stage: str,
    overrides: Sequence[str],
    about: Sequence[str] = (),
    output: str = "slurm-%x-%j.out",
    code: Path | None = None,
    elements: Path | None = None,
    below: str = "",
) -> str:
    """A whole job script for sbatch.

    `stage` is record, prepare, finetune or evaluate, `overrides` its key=value arguments; `output` is the job's log, in
    a folder that exists. With `code`, a snapshot of this checkout, the job runs that; without, it takes one when it
    starts, of the checkout that the script lies in (in the folder `below` of finetune_jobs/, as "instruction/") or that
    it was submitted from, and passes on the arguments that follow the script's name. An array has its elements' whole
    commands in the folder `elements`, in a file for each index, every word ended by NUL.
    """
    lines = ["#!/bin/bash", *[f"# {line}" for line in about]]
    lines += [f"#SBATCH {option}" for option in _options(cluster, job_name, stage, output)]
    site = _shell_lines(cluster)
    lines += ["", *site, ""] if site else [""]
    arguments = shlex.join([stage, *overrides])
    if elements:
        lines += [
            *_of_the_caller(),
            f'mapfile -d "" -t command < {shlex.quote(str(elements))}/"$SLURM_ARRAY_TASK_ID" || exit 2',
            'exec "${command[@]}"',
        ]
    elif code:
        lines += _from_code(arguments, code)
    else:
        lines += _from_where_it_lies(arguments, below)
    return "\n".join(lines) + "\n"


def _from_where_it_lies(arguments: str, below: str) -> list[str]:
    """How a script that belongs to no snapshot ends: finetune_jobs/run.sh beside it, or below the submitter."""
    return [
        f'run=$(dirname "$0")/{"../" * below.count("/")}run.sh '
        "# started by hand inside an allocation; a job is a copy in another folder",
        f'[ -x "$run" ] || run=$SLURM_SUBMIT_DIR/{RUN}',
        'if [ ! -x "$run" ]; then',
        f'    echo "error: submit it in the folder of the checkout, where {RUN} is, not in $SLURM_SUBMIT_DIR" >&2',
        "    exit 2",
        "fi",
        f'exec "$run" {arguments} -- "$@"',
    ]


def with_code(script: str, overrides: Sequence[str], output: str, code: Path) -> str | None:
    """A fine-tune's script that was given to sbatch by hand, to be submitted again: with its log in `output`, and its
    last exec that of the snapshot `code` with these arguments. None where it does not end in one, as in a loop."""
    lines = script.splitlines()
    last = max((number for number, line in enumerate(lines) if line.startswith("exec ")), default=None)
    if last is None or any(lines[last + 1 :]):
        return None
    again, lines = str(code / RUN) in lines[last], lines[:last]
    if again:
        return "\n".join([*lines, _from_code(shlex.join(["finetune", *overrides]), code)[-1]]) + "\n"
    search = _from_where_it_lies("", "")
    for number in (n for n, line in enumerate(lines) if line.startswith(search[0].partition("run.sh")[0])):
        if lines[number + 1 : number + 6] == search[1:6]:  # it would look for the checkout where this is submitted
            del lines[number : number + 6]
            break
    lines = [line for line in lines if not line.startswith(("#SBATCH --output=", "#SBATCH -o "))]
    lines[1:1] = [f"#SBATCH --output={output}"]
    return "\n".join([*lines, *_from_code(shlex.join(["finetune", *overrides]), code)]) + "\n"


def _from_code(arguments: str, code: Path) -> list[str]:
    """How a script ends that runs a snapshot of this checkout."""
    return [*_of_the_caller(), f"exec {shlex.quote(str(code / RUN))} {arguments}"]


def _of_the_caller() -> list[str]:
    return [
        f"export GROOT_CHECKOUT={shlex.quote(str(CHECKOUT))}",
        f"export GROOT_CALLER_PYTHON={shlex.quote(sys.executable)} # where nothing else is chosen",
    ]


def site_lines(cluster: ClusterConfig) -> list[str]:
    """The lines of a job script that follow from the cluster's configuration."""
    asked = [f"#SBATCH {option}" for option in _options(cluster, "", "finetune", "") if not option.endswith("=")]
    return asked + _shell_lines(cluster)


def refuse_late(arguments: Sequence[str]) -> None:
    """Refuse what follows `sbatch SCRIPT` but would have to stand in the script, whose job has been granted by then."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name == "cluster" or (name.startswith("cluster.") and name.removeprefix("cluster.") not in _LATE):
            raise ToolkitError(
                f"{argument} comes too late: this job has been granted already. Give sbatch its own option before the "
                "script (sbatch --nodes=2 ...), or write it into the scripts: "
                f"python -m finetune.slurm.render {argument}"
            )


def _options(cluster: ClusterConfig, job_name: str, stage: str, output: str) -> list[str]:
    """The options of sbatch, as --name=value."""
    gpu_type = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    chosen = {
        "job-name": job_name,
        "account": cluster.account,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "reservation": cluster.reservation,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cluster.cpus_per_task,
        "gres": f"gpu:{gpu_type}{cluster.gpus_per_node}" if cluster.gpus_per_node else None,
        "mem": cluster.memory,
        "time": cluster.time,
        # to this shell, which hands it on to the processes
        "signal": f"B:USR1@{cluster.grace_seconds}" if stage == "finetune" else None,
        "open-mode": "append",
        "output": output,
    }
    chosen = {n: expanded(f"--{n}", v) if isinstance(v, str) and n != "output" else v for n, v in chosen.items()}
    for name, value in chosen.items():
        if isinstance(value, str) and re.search(r"[\s\"'#]", value):
            raise ToolkitError(f'--{name}={value}: an option of sbatch holds no space, quote or "#". Mend cluster.*.')
    requeue = "--requeue" if cluster.requeue else "--no-requeue"
    further = [expanded("cluster.sbatch", option) for option in cluster.sbatch]
    return [*(f"--{name}={value}" for name, value in chosen.items() if value is not None), requeue, *further]


def _shell_lines(cluster: ClusterConfig) -> list[str]:
    """Lines before the payload: the site's own, variables, container, options of srun, and Python."""
    lines = list(cluster.setup)
    if cluster.setup:
        # what it activates is meant, also where that is active already in the shell that submits
        activates = any("activate" in line for line in cluster.setup)
        before = "" if activates else "$(command -v python || command -v python3)"
        lines.insert(0, f"export GROOT_PYTHON_BEFORE={before} # another one after these lines is the job's")
    for assignment in cluster.environment:
        name, _, value = assignment.partition("=")
        lines.append(f"export {name}={_word(value, 'cluster.environment')}")
    if cluster.offline:
        lines.append("export HF_HUB_OFFLINE=1 WANDB_MODE=offline")
    for name, words in (("container", cluster.container), ("srun", cluster.srun)):
        if words:  # a word a line
            joined = "$'\\n'".join(_word(word, f"cluster.{name}") for word in words)
            lines.append(f"export GROOT_{name.upper()}={joined}")
    if cluster.python:
        lines.append(f"export GROOT_PYTHON={_word(cluster.python, 'cluster.python')}")
    return lines


def _word(text: str, key: str) -> str:
    """The text as a word of bash in which variables, and ~ at its start, are those of the node. One that is not set
    there ends the job with a message that names it and `key`."""
    text = re.sub(r"^~(?=/|$)", "$HOME", text)
    if not VARIABLE.search(text):
        return shlex.quote(text)

    def part(found: re.Match[str]) -> str:
        name = found["braced"] or found["bare"]
        return f"${{{name}:?is not set in this job, and {key} needs it}}" if name else "\\" + found[0]

    return '"' + re.sub(VARIABLE.pattern + r'|[$`"\\]', part, text) + '"'


def splits() -> list[str]:
    """The conflict splits that ship, those of the instruction suite last."""
    return [name for name in options("split", CONFIG_DIR) if name != "custom"]


def script(split: str, arguments: Sequence[str]) -> str:
    """The job script of a split. What is given here also stands in the script, as the job's own arguments."""
    overrides = [f"split={split}", *[text for text in arguments if text != "local=none"]]
    config: FinetuneConfig = load("finetune", [f"split={split}", *arguments], check_here=False)
    about = [
        f"Fine-tune GR00T N1.7 on the split {config.split.name}: {config.split.instruction or 'instructions differ'}.",
        f"sbatch [options of sbatch] finetune_jobs/{split}.sbatch [key=value ...], in the folder of the checkout",
        "Written by python -m finetune.slurm.render from configs/cluster and configs/local; may be edited by hand.",
    ]
    below = split[: split.rfind("/") + 1]
    name = in_one_word(split)
    return render(config.cluster, job_name=name, stage="finetune", overrides=overrides, about=about, below=below)


def main(arguments: Sequence[str], folder: Path = JOBS) -> None:
    """Write the scripts to `folder`, all or none."""
    texts = {name: script(name, arguments) for name in splits()}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.sbatch").write_text(text, encoding="utf-8")
    print(f"{len(texts)} scripts written to {folder}")


if __name__ == "__main__":
    run_main(main, "finetune", read=list)
