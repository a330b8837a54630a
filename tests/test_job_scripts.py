"""Job scripts: those in finetune_jobs/ are the template's, and what a site configures stands in them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from config_calls import compose, refusal
from slurm_cluster import ROOT

from finetune.slurm import render
from finetune.slurm.attempt import note_missing_lines
from finetune.slurm.render import refuse_late
from finetune.slurm.render import render as script
from gr00t.errors import ToolkitError


@pytest.mark.parametrize("split", render.splits())
def test_the_job_scripts_are_those_of_the_template(split: str) -> None:
    written = (ROOT / "finetune_jobs" / f"{split}.sbatch").read_text()
    # as shipped, or rendered for this site
    assert written in (render.script(split, ["local=none"]), render.script(split, []))
    if "/" not in split:
        assert f"{split}: pick up the {split.split('_')[0]}-matching object." in written
    assert "/" not in next(line for line in written.splitlines() if "--job-name=" in line)


def header(*overrides: str) -> list[str]:
    config = compose("finetune", *overrides)
    text = script(config.cluster, job_name="x", stage="finetune", overrides=[])
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_the_cluster_configuration_becomes_options_of_sbatch() -> None:
    assert {"--nodes=1", "--ntasks-per-node=1", "--gres=gpu:a100:4", "--requeue"} <= set(header())
    assert {"--signal=B:USR1@300", "--open-mode=append", "--cpus-per-task=32"} <= set(header())
    chosen = header(
        *(
            "cluster.nodes=2",
            "cluster.gpu_type=null",
            "cluster.partition=gpu",
            "cluster.account=me",
            "cluster.qos=long",
        ),
        *("cluster.time=2-00:00:00", "cluster.memory=200G", "cluster.exclude=n[1-3]"),
        *("cluster.constraint=a100&ib", "cluster.reservation=r", "cluster.requeue=false", "cluster.grace_seconds=60"),
        "cluster.sbatch=[--exclusive]",
    )
    assert {"--nodes=2", "--gres=gpu:4", "--partition=gpu", "--account=me", "--qos=long"} <= set(chosen)
    assert {"--time=2-00:00:00", "--mem=200G", "--exclude=n[1-3]", "--constraint=a100&ib"} <= set(chosen)
    assert {"--reservation=r", "--no-requeue", "--signal=B:USR1@60", "--exclusive"} <= set(chosen)
    assert not any(line.startswith("--gres") for line in header("cluster.gpus_per_node=0"))


def test_lines_of_the_site_run_before_the_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "CHECKOUT", tmp_path)
    config = compose(
        "finetune",
        "cluster.setup=['loaded=cuda']",
        "cluster.environment=[NCCL_SOCKET_IFNAME=ib0,'NOTE=it''s here']",
        "cluster.offline=true",
        "cluster.container=[apptainer,exec,--bind,'/a b','it''s.sif']",
        "cluster.python=/opt/my python",
    )
    payload = tmp_path / "my code" / "finetune_jobs" / "run.sh"
    payload.parent.mkdir(parents=True)
    payload.write_text(
        '#!/bin/bash\nmapfile -t container <<< "$GROOT_CONTAINER"\n'
        'printf \'%s|\' "$NCCL_SOCKET_IFNAME" "$NOTE" $HF_HUB_OFFLINE $WANDB_MODE "$GROOT_PYTHON" '
        '"$GROOT_CHECKOUT" "${container[@]}" "$@"\n'
    )
    payload.chmod(0o755)
    overrides = ["split=mine", "split.instruction=pick up the heavy object"]
    text = script(
        config.cluster,
        job_name="x",
        stage="finetune",
        overrides=overrides,
        code=tmp_path / "my code",
    )
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split("|") == [
        *("ib0", "it's here", "1", "offline", "/opt/my python", str(tmp_path)),
        *("apptainer", "exec", "--bind", "/a b", "it's.sif"),
        *("finetune", "split=mine", "split.instruction=pick up the heavy object", ""),
    ]
    assert "\nloaded=cuda\n" in text


def run_script(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A job script as a batch job runs it, as far as its payload goes without SLURM."""
    job = {"PATH": "/usr/bin:/bin", "HOME": "/home/me", "SLURM_JOB_ID": "7", **variables}
    text = f"export SLURM_TASK_PID=$$\n{text}"
    return subprocess.run(["bash", "-c", text], env=job, capture_output=True, text=True)


def test_variables_in_site_keys_are_those_of_the_node(tmp_path: Path) -> None:
    payload = tmp_path / "finetune_jobs" / "run.sh"
    payload.parent.mkdir()
    payload.write_text(
        '#!/bin/bash\nprintf "%s|" "$HF_HOME" "$NOTE" "$GROOT_PYTHON" "${GROOT_CONTAINER//[[:cntrl:]]/ }" "$GROOT_SRUN"'
    )
    payload.chmod(0o755)
    config = compose(
        "finetune",
        *("cluster.environment=[HF_HOME=$SCRATCH/hf,'NOTE=`a\" $5']", "cluster.python=~/envs/groot/bin/python"),
        *('cluster.container=[run,"--bind=${SCRATCH}",$HOME/my.sif]', "cluster.srun=[--comment=$SCRATCH]"),
    )
    text = script(config.cluster, job_name="x", stage="finetune", overrides=[], code=tmp_path)
    done = run_script(text, SCRATCH="/my $disk")
    assert done.stdout.split("|")[:2] == ["/my $disk/hf", '`a" $5']
    assert done.stdout.split("|")[2:4] == ["/home/me/envs/groot/bin/python", "run --bind=/my $disk /home/me/my.sif"]
    assert done.stdout.split("|")[4] == "--comment=/my $disk"
    done = run_script(text)
    assert done.returncode != 0 and not done.stdout
    assert "SCRATCH: is not set in this job, and cluster.environment needs it" in done.stderr


def test_options_of_sbatch_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJECT", "p7")
    assert {"--account=p7", "--comment=of_p7"} <= set(
        header("cluster.account=$PROJECT", "cluster.sbatch=['--comment=of_$PROJECT']")
    )
    with pytest.raises(ToolkitError, match=r"cluster.sbatch=--comment=\$NOWHERE: the variable NOWHERE is not set here"):
        header("cluster.sbatch=['--comment=$NOWHERE']")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a checkout as run.sh needs to choose a Python, without a .venv."""
    folder = tmp_path / "checkout"
    (folder / "finetune_jobs").mkdir(parents=True)
    for name in ("finetune", "toolkit", "gr00t", "configs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "finetune_jobs" / "run.sh", folder / "finetune_jobs")
    return folder


def venv_in(folder: Path) -> Path:
    """The Python of a new environment."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def chosen(checkout: Path, *overrides: str, **variables: str) -> str:
    """What a job of that checkout says before it begins, and the Python that it then runs."""
    cluster = compose("finetune", *overrides).cluster
    shown = ["-c", "import sys; print(sys.executable)"]
    text = script(cluster, job_name="x", stage="site", overrides=shown, code=checkout)
    done = run_script(text.replace(f"export GROOT_CALLER_PYTHON={sys.executable}", "true"), **variables)
    return done.stdout + done.stderr


def test_what_setup_activates_is_the_jobs_python(checkout: Path, tmp_path: Path) -> None:
    own, mine = venv_in(checkout / ".venv"), venv_in(tmp_path / "mine")
    assert chosen(checkout).endswith(f"\n{own}\n")
    said = chosen(checkout, f"cluster.setup=[. {mine.parent}/activate]")
    assert said.endswith(f"\n{mine}\n") and f", {mine}, virtual environment {tmp_path}/mine; modules none" in said
    active = {"PATH": f"{mine.parent}:/usr/bin:/bin", "VIRTUAL_ENV": f"{tmp_path}/mine"}
    assert chosen(checkout, f"cluster.setup=[. {mine.parent}/activate]", **active).endswith(f"\n{mine}\n")
    assert chosen(checkout, "cluster.setup=['LOADEDMODULES=cuda/12']", **active).endswith(f"\n{own}\n")
    module = f"cluster.setup=['PATH={mine.parent}:$PATH','export LOADEDMODULES=python/3']"
    said = chosen(checkout, module)
    assert said.endswith(f"\n{mine}\n") and "; modules python/3; container none; srun as it is" in said
    assert chosen(checkout, module, f"cluster.python={own}").endswith(f"\n{own}\n")


def test_a_python_that_cannot_be_had_is_one_line(checkout: Path, tmp_path: Path) -> None:
    closed = tmp_path / "python"
    closed.write_text("of another user")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(closed)
    said = chosen(checkout)
    assert f".venv/bin/python leads to {closed}, which " in said and "may not run" in said and said.count("\n") == 1
    said = chosen(checkout, f"cluster.python={tmp_path}/nowhere")
    assert f"error: {tmp_path}/nowhere cannot run this here: " in said and said.count("\n") == 1
    bare = venv_in(tmp_path / "bare")
    cluster = compose("finetune", f"cluster.python={bare}").cluster
    text = script(cluster, job_name="x", stage="finetune", overrides=[], code=checkout)
    assert f"error: {bare} cannot run this here: it has no hydra, no torch. Name another" in run_script(text).stderr


@pytest.mark.parametrize(
    "override, message",
    [
        ("cluster.environment=[WANDB_API_KEY=1]", "WANDB_API_KEY looks like a secret"),
        ("cluster.environment=['https_proxy=http://me" + ":word@proxy:80']", "looks like a login in an address"),
        ("cluster.setup=['export HF_TOKEN=abc']", "cluster.setup: HF_TOKEN looks like a secret"),
        ("cluster.sbatch=['--export=ALL,WANDB_API_KEY=1']", "cluster.sbatch: WANDB_API_KEY looks like a secret"),
        ("cluster.time=86400", "in a file in quotes"),
        ("cluster.sbatch=[--array=0-3]", "--array is for the toolkit to set"),
        ("cluster.srun=[--nodes=2]", "cluster.srun: --nodes is for the toolkit to set"),
        ("cluster.srun=[mpi]", 'cluster.srun: "mpi" is no option'),
        ("cluster.environment=[NCCL]", '"NCCL" is no variable'),
    ],
)
def test_variables_of_a_job_are_no_secrets(override: str, message: str) -> None:
    assert message in refusal("finetune", override)


@pytest.mark.parametrize("override", ["cluster.partition=a b", "cluster.account=a#b"])
def test_what_sbatch_would_misread_is_refused(override: str) -> None:
    with pytest.raises(ToolkitError):
        header(override)


def test_what_must_stand_in_the_script_is_refused_after_it() -> None:
    for late in ("cluster.partition=gpu", "cluster=mine", "cluster.requeue=false"):
        with pytest.raises(ToolkitError, match="comes too late"):
            refuse_late(["train.max_steps=5", late])
    refuse_late(["train.max_steps=5", "cluster.max_requeues=3", "cluster.scratch=/tmp"])


def test_rendering_writes_all_scripts_or_none(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError):
        render.main(["local=none", "cluster.sbatch=[exclusive]"], tmp_path)
    assert not list(tmp_path.iterdir())
    render.main(["local=none", "cluster.partition=gpu", "train.max_steps=5"], tmp_path)
    found = tmp_path.rglob("*.sbatch")
    texts = {path.relative_to(tmp_path).with_suffix("").as_posix(): path.read_text() for path in found}
    assert {*texts} == {*render.splits()}
    for split, text in texts.items():
        assert "#SBATCH --partition=gpu\n" in text
        assert f'finetune split={split} cluster.partition=gpu train.max_steps=5 -- "$@"' in text


def test_a_script_that_lacks_what_the_site_configures_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GROOT_SCRIPT", (ROOT / "finetune_jobs" / "color_object.sbatch").read_text())
    note_missing_lines(compose("finetune").cluster)
    assert not capsys.readouterr().err
    note_missing_lines(compose("finetune", "cluster.account=me", "cluster.offline=true").cluster)
    said = capsys.readouterr().err
    assert "#SBATCH --account=me; export HF_HUB_OFFLINE=1" in said and "python -m finetune.slurm.render" in said


def test_the_shell_scripts_are_valid_bash() -> None:
    for path in [*(ROOT / "finetune_jobs").glob("*.s*"), *(ROOT / "tests" / "cluster").iterdir()]:
        subprocess.run(["bash", "-n", str(path)], check=True)
