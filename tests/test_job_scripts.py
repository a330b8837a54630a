"""Job scripts: those in finetune_jobs/ are the template's, and what a site configures stands in them."""

from __future__ import annotations

import subprocess
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
    assert f"{split}: pick up the {split.split('_')[0]}-matching object." in written


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


@pytest.mark.parametrize(
    "override, message",
    [
        ("cluster.environment=[WANDB_API_KEY=1]", "WANDB_API_KEY looks like a secret"),
        ("cluster.environment=['https_proxy=http://me" + ":word@proxy:80']", "looks like a login in an address"),
        ("cluster.setup=['export HF_TOKEN=abc']", "cluster.setup: HF_TOKEN looks like a secret"),
        ("cluster.sbatch=['--export=ALL,WANDB_API_KEY=1']", "cluster.sbatch: WANDB_API_KEY looks like a secret"),
        ("cluster.time=86400", "in a file in quotes"),
        ("cluster.sbatch=[--array=0-3]", "--array is for the toolkit to set"),
        ("cluster.environment=[NCCL]", '"NCCL" is no variable'),
    ],
)
def test_variables_of_a_job_are_no_secrets(override: str, message: str) -> None:
    assert message in refusal("finetune", override)


@pytest.mark.parametrize("override", ["cluster.partition=a b", "cluster.account=a#b", "cluster.sbatch=[exclusive]"])
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
    texts = {path.stem: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(texts) == render.splits()
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
