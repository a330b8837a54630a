"""Do cue probes say what closed loop says? Spearman's correlation over checkpoints, with its interval.

    python -m benchmarks.cue_probes probes=probes/color_object reports_dir=reports/steps

Below reports_dir lies a closed_loop.json for each of at least ten finished checkpoints of one split, such as exports of
one run's steps; each of the checkpoints is asked in every probe. 0.7 or more makes a curve proven. The interval is that
of Bonett and Wright (2000, Psychometrika 65): Fisher's z with the standard error sqrt((1 + r^2/2)/(n - 3))."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.measuring import Columns, options, say, show
from finetune.open_loop.probe_set import PREFIX, ProbePredictor, ProbeSet
from gr00t.model.gr00t_n1 import GR00TPolicy
from simulation.closed_loop import LURE, TARGET, Evaluation
from simulation.report import AS_IT_IS, count
from simulation.report.closed_loop_report import find_evaluations, read_evaluation
from simulation.scenes.suites import suite_of

LEAST, PROVEN = 10, 0.7
COLUMNS: Columns = {
    "probe": "{probe}",
    "checkpoints": "{n}",
    "Spearman": "{r:.2f}",
    "95 %": "{low:.2f} to {high:.2f}",
    "": "{verdict}",
}
Values = dict[str, float]


def closed_loop(evaluation: Evaluation) -> Values:
    """What closed loop says of what a probe measures, by its name; parts that were not played are left out."""
    suite, split = suite_of(evaluation.info["split"]), evaluation.info["split"]
    episodes, (a, b, *_) = [e for e in evaluation.episodes if e.condition == AS_IT_IS], suite.cues(split)
    agree, conflict = (count([e for e in episodes if e.part == part]) for part in (suite.evaluated[0], "conflict"))
    found = {
        "heads_for_target": agree.picks[TARGET].value,
        "heads_for_target_not_lure": conflict.preference.value,
        f"sensitivity_{a}": conflict.picks[TARGET].value,
        f"sensitivity_{b}": conflict.picks[LURE].value,
    }
    return {PREFIX + name: value for name, value in found.items() if value is not None}


def measured(checkpoint: Path, probes: ProbeSet, device: str, seed: int = 42, batch_size: int = 16) -> Values:
    """What the probes show of a finished checkpoint."""
    policy = GR00TPolicy.from_pretrained(checkpoint).eval().to(device)
    probes.check_robot(policy.modality_configs)
    return ProbePredictor(probes, policy.processor, policy.tag, seed, batch_size).measure(policy.model) or {}


def spearman(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """(r, low, high), 95 %; ties have their mean rank. NaN where all of one are equal."""
    ranks = [rankdata(values) for values in (one, other)]
    if min(np.ptp(each) for each in ranks) == 0:
        return math.nan, math.nan, math.nan
    r = float(np.corrcoef(*ranks)[0, 1])
    z, error = math.atanh(max(-0.9999, min(0.9999, r))), math.sqrt((1 + r * r / 2) / (len(one) - 3))
    return r, math.tanh(z - 1.96 * error), math.tanh(z + 1.96 * error)


def agreement(said: Sequence[tuple[Values, Values]]) -> Iterator[dict[str, Any]]:
    """A row for each value that probes and closed loop have of four checkpoints or more."""
    for probe in dict.fromkeys(name for _, played in said for name in played):
        both = [(seen[probe], played[probe]) for seen, played in said if probe in seen and probe in played]
        if len(both) < 4:
            continue
        r, low, high = spearman(*np.array(both).T)
        verdict = f"fewer than {LEAST}" if len(both) < LEAST else "proven" if r >= PROVEN else "unproven"
        yield {"probe": probe, "n": len(both), "r": r, "low": low, "high": high, "verdict": verdict}


def main() -> None:
    """Ask every checkpoint that a report is of, and print the table."""
    given = options(probes="probes/color_object", reports_dir="reports", device="cpu")
    probes, said = ProbeSet.read(Path(given.probes)), []
    for path in find_evaluations(Path(given.reports_dir)):
        evaluation = read_evaluation(path)
        if evaluation.info["split"] == probes.split:
            say(f"{path}: {evaluation.info['checkpoint']}")
            said.append((measured(Path(evaluation.info["checkpoint"]), probes, given.device), closed_loop(evaluation)))
    show(COLUMNS, agreement(said))


if __name__ == "__main__":
    main()
