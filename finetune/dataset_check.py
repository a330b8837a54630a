"""The fast part of the dataset doctor, before a dataset is trained on."""

from __future__ import annotations

import logging
from pathlib import Path

from data_prep.doctor.examine import BETWEEN, examine
from data_prep.doctor.findings import ERROR, WARNING, DatasetReport
from finetune.config.mixture import datasets
from finetune.config.modality import modality_configs
from finetune.config.schema import FinetuneConfig
from gr00t.data.schema import ModalityConfigs
from gr00t.errors import ToolkitError

log = logging.getLogger(__name__)
SHOWN = 6
TRAIN = "train"


def check_dataset(config: FinetuneConfig) -> None:
    """Refuse a training dataset that is not sound, or that shares episodes with conflict; log what may be meant.

    What is wrong with the conflict part alone is only logged: it is not trained on.
    """
    split = Path(config.dataset.data_dir) / config.split.name
    for path in [part.folder for part in datasets(config)] if config.dataset.mixture else [split]:
        _check(path, modality_configs(config.dataset), whole_split=path == split)


def _check(path: Path, configs: ModalityConfigs, *, whole_split: bool) -> None:
    report, _ = examine(path, configs, fast=True)

    def refused(dataset: DatasetReport, level: str) -> bool:
        return level == ERROR and (not whole_split or dataset.name in (TRAIN, BETWEEN))

    for dataset, result, finding in report.findings(WARNING, ERROR):
        if not refused(dataset, finding.level):
            text = f"{finding.level} in {dataset.name}, {result.check} ({finding.where}): {finding.found}"
            log.warning("%s Remedy: %s", text, finding.remedy)
    wrong = [(r.check, f) for d, r, f in report.findings(ERROR) if refused(d, f.level)]
    if wrong:
        listed = "\n".join(f"  {name}, {f.where}: {f.found} Remedy: {f.remedy}" for name, f in wrong[:SHOWN])
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        what = path / TRAIN if whole_split else path
        raise ToolkitError(
            f"{what} is not sound:\n{listed}{more}\nEverything that was found: python -m data_prep.check {path}. "
            "To train anyway: dataset.check=false."
        )
