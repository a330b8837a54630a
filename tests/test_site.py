"""The site check: one job on a real cluster finds out what its jobs need, and what is proposed can be used as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from config_calls import compose
from slurm_cluster import ROOT, Cluster, NoCluster, running_cluster

from finetune.recipe import ClusterConfig
from finetune.slurm import site
from finetune.slurm.cluster_queries import Node, Partition
from finetune.slurm.site import Findings, SiteJob, proposal
from gr00t.errors import ToolkitError
from toolkit.composition import read_yaml

ANSWER = {
    "node": "n1",
    "exported": False,
    "python": {"problem": "", "executable": "/opt/python", "version": "3.12.1"},
    "missing": ["torch"],
    "gpus": {"problem": "", "devices": [["NVIDIA A100-SXM4-80GB", "81920", "470.82"]]},
    "torch": {"version": "2.13.0", "cuda": "13.0", "available": False, "devices": 0, "problem": ""},
    "all_reduce": {"problem": "", "bytes": 2**30, "seconds": 0.01, "processes": 2, "backend": "nccl"},
    "scratch": [
        {"name": "$SCRATCH", "kind": "lustre", "local": False, "writable": True, "free_bytes": 9e12},
        {"name": "$SLURM_TMPDIR", "kind": "xfs", "local": True, "writable": True, "free_bytes": 9e11},
    ],
    "folders": [{"path": "/home/me", "kind": "nfs4", "free_bytes": 5e9, "free_files": 1000, "quota": "5G of 10G"}],
    "reached": {"huggingface.co": False, "api.wandb.ai": True},
    "proxy": None,
    "containers": ["apptainer"],
    "interfaces": ["eth0", "ib0"],
}
SETTINGS = {"KillWait": "60 sec", "AccountingStorageType": "accounting_storage/slurmdbd", "JobSubmitPlugins": "lua"}


def test_every_line_of_a_proposal_has_its_reason_and_is_a_key(tmp_path: Path) -> None:
    gpu = Partition("gpu", False, True, 3600, None, None, None, [Node("n1", 64, 1, {"a100": 8})])
    job = SiteJob(ClusterConfig(partition="gpu", gpus_per_node=2), gpu, "No partition specified. More.")
    given = ClusterConfig(account="mine", setup=["module load cuda"])
    shown = {"Requeue": "0", "PreemptMode": "REQUEUE", "GraceTime": "120"}
    text = proposal(Findings(job, given, ANSWER, SETTINGS, shown), "Proposed by a test")
    (tmp_path / "default.yaml").write_text(text)
    assert read_yaml(tmp_path / "default.yaml")["cluster"] == {
        "gpus_per_node": 4,
        "gpu_type": "a100",
        "cpus_per_task": 32,
        "partition": "gpu",
        "account": "mine",
        "time": "01:00:00",
        "requeue": False,
        "setup": ["module load cuda"],
        "offline": True,
        "scratch": "$SLURM_TMPDIR/groot-$USER",
    }
    body = text.partition("cluster:\n")[2].splitlines()
    assert all(re.search(r"  # \S", line) for line in body)
    reasons = dict(re.findall(r"  (\w+): .*  # (.*)", text))
    assert "SLURM refuses: No partition specified" in reasons["partition"] and reasons["account"] == "as given"
    assert "n1 does not reach huggingface.co" in reasons["offline"]
    for fact in (
        *("driver 470.82", "is the driver older?", "2 processes (nccl): 107.4 GB/s", "without torch", "KillWait"),
        *("do not reach a job", "120 s of grace", "sacct remembers", "a plugin of the site", "1,000 files free (few"),
    ):
        assert fact in text


def test_a_controller_that_is_away_for_a_moment_ends_no_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silence = ("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1)
    said = [("JobState=RUNNING Reason=None", "", 0), silence, silence, ("JobState=COMPLETED Partition=a", "", 0)]

    def slurm(*command: str, **_: object) -> subprocess.CompletedProcess[str]:
        if "partition" in command:
            return subprocess.CompletedProcess(command, 0, "GraceTime=3", "")
        stdout, stderr, status = said.pop(0)
        if not said:
            (tmp_path / "answer.json").write_text("{}")
        return subprocess.CompletedProcess(command, status, stdout, stderr)

    monkeypatch.setattr(site, "slurm", slurm)
    for name in ("ASK_SECONDS", "SHOWN_SECONDS"):
        monkeypatch.setattr(site, name, 0.0)
    answer, shown = site._wait("7", tmp_path, site.SiteConfig())
    assert answer == {} and shown == {"GraceTime": "3", "JobState": "COMPLETED", "Partition": "a"}
    said += [("", "slurm_load_jobs error: Invalid job id specified", 1)] * 3
    (tmp_path / "answer.json").unlink()
    with pytest.raises(ToolkitError, match="job 7 ended without an answer"):
        site._wait("7", tmp_path / "none", site.SiteConfig())


def check(cluster: Cluster, tmp_path: Path, *more: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "finetune.slurm.site", "local=none", f"runs_dir={tmp_path}/new/runs", *more]
    before = cluster.jobs()
    done = subprocess.run(command, cwd=ROOT, env=cluster.env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    left = cluster.run("squeue", "--noheader", "--states=running,pending", "--format=%i").split()
    assert not (tmp_path / "new").exists() and before.issuperset(left)
    return done.stdout


@pytest.mark.long
def test_a_job_finds_out_what_its_site_needs(cluster: Cluster, tmp_path: Path) -> None:
    said = check(cluster, tmp_path)
    assert said.startswith(
        "The check submits one job: partition main, which SLURM chooses; 00:10:00; one node with 2 a100"
    )
    for fact in (
        *(f"Python: {sys.version.split()[0]}, ", "GPU: none is seen", "all-reduce of 0.0625 GiB, 2 processes (gloo): "),
        *("variables of your shell reach a job", "after 5 s (KillWait)", "accounting: none", "lets jobs be requeued"),
    ):
        assert fact in said
    assert "\n  gpus_per_node: 4" in said and "\n  cpus_per_task: 32" in said and "  partition:" not in said


@pytest.mark.long
def test_a_site_without_a_default_partition_that_exports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(site, "CONFIG_DIR", tmp_path)
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    config = compose("site", f"runs_dir={tmp_path}/runs", "write=true", "cluster.requeue=false")
    settings = {"DEFAULT_PARTITION": "none", "KILL_WAIT": "60", "CPU_NODES": "1"}
    try:
        with running_cluster(tmp_path / "cluster", **settings) as cluster:
            monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
            site.main(config)
            said = capsys.readouterr().out
            assert "partition main; 00:10:00" in said and "do not reach a job" in said and "after 60 s" in said
            proposed = read_yaml(tmp_path / "local" / "default.yaml")["cluster"]
            assert proposed["partition"] == "main" and proposed["requeue"] is False
            with pytest.raises(ToolkitError, match="exists and is not replaced"):
                site.main(config)
    except NoCluster as why:
        pytest.skip(str(why))
