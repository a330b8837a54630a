"""Values stay as they were made: dataclasses are frozen but for those that are filled in, or hold tensors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from test_training import ROOT

ROOMS = ("gr00t", "finetune", "data_prep", "simulation")
CHANGED_WHILE_IN_USE = {
    "AttemptToken",
    "Batch",  # of SLURM jobs
    "Best",
    "ConversionReport",
    "Overrides",
    "Partition",
    "Proposal",
    "Recordings",
    "Request",
    "Task",
    "_Tally",
}
OF_TENSORS = {"ActionLoss", "BackboneOutput", "Context", "Draws", "KeysValues", "Step", "Tokens", "VlmTokens"}
READ_BY_HYDRA = {"ModalityConfig"}  # and all whose name ends with Config: OmegaConf makes them


def dataclasses_not_frozen(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                text = ast.unparse(decorator)
                if text.startswith("dataclass") and "frozen=True" not in text:
                    yield node.name


def test_dataclasses_are_frozen() -> None:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    found = {name: path for path in files for name in dataclasses_not_frozen(path)}
    allowed = CHANGED_WHILE_IN_USE | OF_TENSORS | READ_BY_HYDRA
    loose = {name: str(path) for name, path in found.items() if name not in allowed and not name.endswith("Config")}
    assert not loose, f"{loose}: say frozen=True, or why not here"
    assert allowed - READ_BY_HYDRA <= set(found)
