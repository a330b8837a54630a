"""`python -m gr00t.serve`: serves until it is asked to stop, and refuses what it must before it reads a weight."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from serving import served
from test_policy import TINY, observation

from gr00t import serve
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.serve import read_options
from gr00t.server.client import PolicyClient
from gr00t.server.server import TOKEN

ROOT = Path(__file__).resolve().parents[1]
SECRET = "a-token-for-the-tests"
HERE = (f"checkpoint={TINY}", "port=0", "device=cpu")


def start(*arguments, token=SECRET):
    """The command in a process of its own, as soon as it listens; its port and the lines that it printed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", TOKEN: token}
    command = [sys.executable, "-m", "gr00t.serve", *HERE, *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("listens at"):
            return process, int(line.split(",")[0].rpartition(":")[2]), lines
    raise AssertionError("".join(lines))


def test_the_command_serves_with_its_token_and_ends_cleanly_by_a_signal():
    process, port, lines = start("denoising_steps=2", "log_every=1")
    try:
        with PolicyClient("127.0.0.1", port, api_token=SECRET) as client:
            actions = client.get_action(observation(), seed=3)
        process.send_signal(signal.SIGTERM)
        said = "".join(lines) + process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0
    policy = GR00TPolicy.from_pretrained(TINY, denoising_steps=2, torch_dtype=torch.float32)
    expected = policy.get_action(observation(), seed=3)
    assert all(abs(actions[key] - expected[key]).max() < 1e-5 for key in expected)
    for words in ("new_embodiment", "float32, 2 denoising steps", "video.wrist_image", "arm, gripper: 16 steps", TOKEN):
        assert words in said
    assert "get_action 1:" in said and "stopped after 1 requests" in said
    assert SECRET not in said


def run(monkeypatch, capsys, *arguments, token=None):
    """Exit status and what is said of the command in this process."""
    monkeypatch.delenv(TOKEN, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN, token)
    with pytest.raises(SystemExit) as ended:
        serve.main(arguments)
    return ended.value.code, capsys.readouterr().err


REFUSED = {
    "no checkpoint": ((), "checkpoint is missing: give checkpoint=VALUE"),
    "misspelt": (("chekpoint=x",), 'Did you mean "checkpoint"'),
    "flag": (("--port=5556",), "write port=5556, not --port=5556"),
    "unknown flag": (("--verbose",), "write KEY=VALUE"),
    "word": (("prot",), 'Did you mean "port"'),
    "twice": (("port=1", "port=2"), "twice"),
    "empty": (("checkpoint=",), "empty"),
    "no number": (("checkpoint=x", "port=http"), "port=http: expected int of at least 0"),
    "no port": (("checkpoint=x", "port=70000"), "1 to 65535"),
    "no batch": (("checkpoint=x", "max_batch=0"), "at least 1"),
    "no choice": (("checkpoint=x", "device=gpu"), "auto, cpu, cuda"),
    "no truth": (("checkpoint=x", "compile=yes"), "true or false"),
    "no steps": (("checkpoint=x", "denoising_steps=0"), "at least 1 or null"),
    "open to others": (("checkpoint=x", "host=0.0.0.0"), TOKEN),
    "unknown host": (("checkpoint=x", "host=no.such.host.invalid"), "knows no such address"),
    "no folder": (("checkpoint=no/such/folder", "port=0"), "checkpoint=no/such/folder is no folder"),
    "no checkpoint in it": ((f"checkpoint={ROOT}/docs", "port=0"), "config.json"),
    "other embodiment": ((*HERE, "embodiment_tag=new_embodimnt"), 'Did you mean "new_embodiment"'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_in_one_line(monkeypatch, capsys, name):
    arguments, said = REFUSED[name]
    code, error = run(monkeypatch, capsys, *arguments)
    assert code == 2 and error.startswith("error: ") and said in error


def test_a_weak_token_is_refused_and_not_shown(monkeypatch, capsys):
    code, error = run(monkeypatch, capsys, *HERE, token="hunter2")
    assert code == 2 and "16 at least" in error and "hunter2" not in error


def test_a_port_in_use_is_refused_before_the_checkpoint_is_read(monkeypatch, capsys):
    with served(None) as server:
        code, error = run(monkeypatch, capsys, "checkpoint=no/such/folder", f"port={server.port}")
    assert code == 2 and "listening there" in error and "no/such/folder" not in error


@pytest.mark.parametrize("package", ["pyzmq", "msgpack"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch, capsys, package):
    module = {"pyzmq": "zmq"}.get(package, package)
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else original(name))
    code, error = run(monkeypatch, capsys, *HERE)
    assert code == 2 and package in error and "pip install '.[serve]'" in error


def test_ctrl_c_while_it_loads_says_interrupted(monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "_load", interrupted)
    code, error = run(monkeypatch, capsys, *HERE)
    assert code == 130 and error == "interrupted\n"


def test_help_lists_every_key_with_its_default(capsys):
    serve.main(["--help"])
    said = capsys.readouterr().out
    for words in ("port=5555", "host=127.0.0.1", "denoising_steps=null", "compile=false", "auto, cpu, cuda", TOKEN):
        assert words in said


def test_options_have_the_types_of_their_fields():
    config = read_options(["checkpoint=a=b", "port=1", "denoising_steps=null", "quiet=true"])
    assert (config.checkpoint, config.port, config.denoising_steps, config.quiet) == ("a=b", 1, None, True)
    assert read_options(["checkpoint=a", "denoising_steps=8"]).denoising_steps == 8
    assert read_options(["checkpoint=a", "guidance=1.5"]).guidance == 1.5
    for wrong in ("-1", "much"):
        with pytest.raises(ToolkitError, match=f"guidance={wrong}: expected number of at least 0"):
            read_options(["checkpoint=a", f"guidance={wrong}"])


def test_the_example_observation_is_one_that_the_policy_reads():
    policy = GR00TPolicy.from_pretrained(TINY, torch_dtype=torch.float32)
    actions = policy.get_action(serve.example_observation(policy, "pick up the object"), seed=0)
    assert actions["action.arm"].shape == (1, 16, 7)


def test_the_client_needs_no_torch():
    code = "import sys; from gr00t.server import PolicyClient; PolicyClient(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
