"""The wandb workspace of the project: defined and saved offline, and the same one when it is read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.dashboard import DashboardConfig, main
from gr00t.errors import ToolkitError
from toolkit.configuration import load


def config(*arguments: str) -> DashboardConfig:
    return load("dashboard", ["local=none", *arguments])


def keys(workspace: Any) -> set[str]:
    """Everything that a workspace's panels show."""
    found: set[str] = set()
    for section in workspace.sections:
        for panel in section.panels:
            for name in ("y", "metrics", "media_keys"):
                found |= {getattr(metric, "name", metric) for metric in getattr(panel, name, None) or []}
    return found


@pytest.mark.parametrize("split", ["split=color_object", "split=null"])
def test_a_saved_workspace_is_the_same_one_when_it_is_read(split: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs pip install '.[dashboard]'")
    from finetune.dashboard import from_json, to_json

    main(config(split, "group=suite", "entity=team", f"out={tmp_path}/a/workspace.json"))
    saved = json.loads((tmp_path / "a" / "workspace.json").read_text())
    workspace = from_json(tmp_path / "a" / "workspace.json")
    assert to_json(workspace) == saved
    assert (workspace.entity, workspace.project) == ("team", "groot-conflict")
    assert "suite" in workspace.runset_settings.filters
    assert ("color_object" in workspace.runset_settings.filters) == (split == "split=color_object")
    assert bool(workspace.runset_settings.groupby) == (split == "split=null")
    assert {"train/loss", "val/arm_mae", "train/grad_norm_projector"} <= keys(workspace)
    assert ("first_batch" in keys(workspace)) == (split == "split=color_object")


def test_a_workspace_is_printed_as_json_without_an_account(capsys: pytest.CaptureFixture[str]) -> None:
    main(config())
    assert json.loads(capsys.readouterr().out)["displayName"] == "GR00T, all splits"


def test_without_a_key_nothing_is_created(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ToolkitError, match=r"needs a wandb key .* saved=FILE create=true"):
        main(config("create=true"))


@pytest.mark.parametrize("typed", ["project=other", "split=color_object", "group=suite"])
def test_what_a_saved_workspace_has_settled_is_not_ignored(typed: str) -> None:
    with pytest.raises(ToolkitError, match=rf"saved=a.json is a whole workspace.* {typed} acts on nothing"):
        config("saved=a.json", typed)
    assert config("saved=a.json", "entity=team", "create=true").entity == "team"


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", "{"])
def test_a_file_that_is_no_workspace_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "workspace.json"
    path.write_text(content)
    with pytest.raises(ToolkitError, match=r"workspace\.json"):
        main(config(f"saved={path}"))
