"""The report of a closed-loop evaluation: closed_loop.json, .md and .html, tables on the terminal, and a tracker's run.

closed_loop.json is written with its summary and read back with every value checked."""

from __future__ import annotations

import itertools
import math
import textwrap
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json, write_text
from simulation.closed_loop import CONDITIONS, FORMAT, LURE, NOTHING, PICKS, STAGES, TARGET, EpisodeOutcome, Evaluation
from simulation.report import AS_IT_IS, Counted, Summary, seen_factors, summarize
from simulation.report.closed_loop_page import (
    WAY_HEAD,
    command,
    instruction_in_words,
    page,
    video_caption,
    video_file,
    way_rows,
)
from simulation.report.conclusions import cue_preference, in_short, readings
from simulation.report.dominance import Doing, Dominance
from simulation.report.proportions import Difference, Share, plain
from simulation.scenes.suites import PLATE, Suite, suite_of
from simulation.scenes.verbs import VERBS
from toolkit.trackers import open_run

if TYPE_CHECKING:
    from toolkit.shared_keys import TrackingConfig

JSON_FILE, TEXT_FILE, PAGE_FILE = "closed_loop.json", "closed_loop.md", "closed_loop.html"
PREFIX = "closed_loop"

_ALWAYS = ("split", "policy", "n_action_steps", "max_steps", "seed", "instruction", "versions")  # in info
_PICKED = ["success", *(f"{pick} first" for pick in PICKS)]
_CHANGED = ["policy sees", "part", "success changes by", "target picks change by", "other pick", "switched"]


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write everything into `folder`, where the videos are already; other files there stay.

    The numbers go first, since they cost hours and the pages can be made from them again (simulation.compare
    pages=true). Pages of older numbers are removed before, so that none ever lies beside numbers that are not its own.
    """
    summary = summarize(evaluation)
    with disk_errors(folder, "Make room and evaluate again."):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PAGE_FILE, TEXT_FILE):
            (folder / name).unlink(missing_ok=True)
        write_json(folder / JSON_FILE, as_json(evaluation, summary))
        write_text(folder / TEXT_FILE, markdown(evaluation, summary))
        write_text(folder / PAGE_FILE, page(evaluation, summary, folder))


def as_json(evaluation: Evaluation, summary: Summary) -> dict[str, Any]:
    """What closed_loop.json holds."""
    numbers = {
        "cues": summary.cues,
        "cue_preference": summary.preference,
        "readings": readings(summary),
        "chance": summary.chance,
        "counted": summary.counted,
        "by_factor": summary.factors,
        "weak_spots": summary.weak_spots,
        "changes": summary.changes,
    }
    for name in ("dominance", "doing", "runs", "way", "expert"):  # only where there are any
        numbers |= {name: found} if (found := getattr(summary, name)) else {}
    data = {"format": FORMAT, **plain(evaluation), "summary": plain(numbers)}
    for episode in [*data["episodes"], *data["expert"]]:
        if episode["did"] is None and "named" not in episode["episode"]:
            del episode["did"]  # the plate suite has no verbs
        if episode["stages"] is None:  # nor have older reports stages
            del episode["stages"], episode["smoothness"]
    if not data["expert"]:
        del data["expert"]
    return data


def find_evaluations(folder: Path) -> list[Path]:
    """Every closed_loop.json below a folder, in the order of their paths; hidden folders are left out."""
    found = (path for path in folder.rglob(JSON_FILE) if path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a closed_loop.json; a damaged one raises ToolkitError that names the file and the place."""
    data = read_json(path)
    if data.get("format") != FORMAT:
        raise ToolkitError(
            f"{path}: is no closed-loop result of format {FORMAT} (found {data.get('format')!r}). Evaluate again: "
            "python evaluate_conflict.py mode=closed_loop ..."
        )
    try:
        episodes, expert = (
            tuple(EpisodeOutcome.from_json(e) for e in given) for given in (data["episodes"], data.get("expert", ()))
        )
        evaluation = Evaluation(dict(data["info"]), episodes, expert)
    except (KeyError, TypeError, ValueError) as error:
        raise ToolkitError(f"{path}: is damaged ({type(error).__name__}: {error}). Evaluate again.") from None
    problem = next(_problems(evaluation), None)
    if problem is not None:
        raise ToolkitError(f"{path}: is damaged: {problem}. Evaluate again.")
    return evaluation


def _problems(evaluation: Evaluation) -> Iterator[str]:
    """What is wrong with the values, the first one first."""
    missing = [name for name in _ALWAYS if name not in evaluation.info]
    if missing:
        yield f"info lacks {', '.join(missing)}"
    if "recipe" in evaluation.info and not isinstance(evaluation.info["recipe"], dict):
        yield "info.recipe is no mapping"
    try:
        suite = suite_of(str(evaluation.info["split"]))
    except ToolkitError as error:
        yield str(error).rstrip(".?")
        return
    if not evaluation.episodes:
        yield "it holds no episodes"
    for name, outcomes in (("episodes", evaluation.episodes), ("expert", evaluation.expert)):
        for number, outcome in enumerate(outcomes):
            for problem in itertools.chain(_episode_problems(outcome, suite), _way_problems(outcome)):
                yield f"{name}[{number}]: {problem}"
    seen = set()
    for number, outcome in enumerate(evaluation.episodes):
        key = outcome.condition, outcome.part, outcome.seed
        if key in seen:
            yield f"episodes[{number}]: {key} is there twice"
        seen.add(key)


def _episode_problems(outcome: EpisodeOutcome, suite: Suite) -> Iterator[str]:
    parts = (*suite.recorded, *suite.evaluated)
    for name, known in (("condition", CONDITIONS), ("part", parts), ("picked", PICKS), ("did", (None, *VERBS))):
        if getattr(outcome, name) not in tuple(known):
            yield f"{name} is {getattr(outcome, name)!r}, none of {', '.join(map(str, known))}"
    for name in ("seed", "steps", "chunks"):
        if type(getattr(outcome, name)) is not int or getattr(outcome, name) < 0:
            yield f"{name} is {getattr(outcome, name)!r}, no count"
    if "conflict" not in str(outcome.part) and outcome.picked == LURE:
        yield f"a lure was picked in {outcome.part}, where there is none"
    if type(outcome.success) is not bool:
        yield f"success is {outcome.success!r}, neither true nor false"
    if not isinstance(outcome.instruction, str) or not isinstance(outcome.video, str | None):
        yield "instruction or video is no text"
    try:
        objects, target, lure = (outcome.episode[name] for name in ("objects", "target", "lure"))
        for thing in [*objects, *([outcome.episode["plate"]] if suite is PLATE else [])]:
            if any(thing[factor] not in values for factor, values in seen_factors(suite, "target").items()):
                yield f"the scene has {dict(thing)}, whose factors are unknown"
            if not all(math.isfinite(thing[axis]) for axis in ("x", "y")):
                yield f"the scene has an object at {thing['x']}, {thing['y']}"
        named = outcome.episode["named"] if suite is not PLATE else {}
        if any(value not in suite.factors.get(factor, ()) for factor, value in named.items()):
            yield f"the sentence names {dict(named)}, whose factors are unknown"
        indices = [target, lure] if "conflict" in outcome.part else [target]
        if not all(type(i) is int and 0 <= i < len(objects) for i in indices):
            yield f"target {target} and lure {lure} are not among its {len(objects)} objects"
    except (KeyError, TypeError, ValueError) as error:
        yield f"its scene is incomplete ({type(error).__name__}: {error})"


def _way_problems(outcome: EpisodeOutcome) -> Iterator[str]:
    """What is wrong with the stages and smoothness of an outcome that was read from a file."""
    stages, smoothness = outcome.stages, outcome.smoothness
    if smoothness is not None and not (isinstance(smoothness, float) and -math.inf < smoothness < 0):
        yield f"smoothness is {smoothness!r}, no number below 0"
    if stages is None:
        return
    if not isinstance(stages, dict) or list(stages) != list(STAGES)[: len(stages)]:
        yield f"stages are {stages!r}, not the first ones of {', '.join(STAGES)}"
        return
    steps = list(stages.values())
    if any(type(step) is not int for step in steps) or sorted(steps) != steps or min(steps, default=1) < 1:
        yield f"stages are {stages}, whose steps are no counts that grow"
    elif max(steps, default=0) > outcome.steps or ("held" in stages) != outcome.success:
        yield f"stages are {stages}, of {outcome.steps} steps and success {outcome.success}"


def print_report(evaluation: Evaluation, folder: Path) -> None:
    """Success and first picks as a table, what the ablations change, what stands out, and where the rest is."""
    summary, console = summarize(evaluation), Console()
    console.print(Text(_title(evaluation), style="bold"))
    picks = [
        [part, CONDITIONS[condition], str(counted.success), *(share.counts for share in counted.picks.values())]
        for condition, part, counted in summary.each()
    ]
    for head, rows in ((["part", "policy sees", "success", *PICKS], picks), (_CHANGED, _changes(summary))):
        table = Table(*head)
        for row in rows:
            table.add_row(*map(Text, row))
        if rows:
            console.print(table)
    for line in in_short(summary):
        console.print(Text(f"- {line}"), soft_wrap=True)
    console.print(Text(str(folder / PAGE_FILE)), soft_wrap=True)


def markdown(evaluation: Evaluation, summary: Summary) -> str:
    """The same numbers as text."""
    info = evaluation.info
    lines = [
        f"# {_escaped(_title(evaluation))}",
        "",
        _escaped(
            f"{instruction_in_words(info)} {info['n_action_steps']} of each chunk's steps are executed, "
            f"{info['max_steps']} steps at most, seed {info['seed']}. Intervals are 95 % (Wilson, Newcombe)."
        ),
        "",
        *(f"- {line}" for line in in_short(summary)),
    ]
    lines += [*_dominance_lines(summary.dominance)] if summary.dominance else []
    for part, found in summary.doing.items():
        lines += ["", f"## What was done, {part}", "", *_rows(*done_table(found))]
    picks = [[part, CONDITIONS[condition], *_picked(counted, part)] for condition, part, counted in summary.each()]
    lines += ["", "## First picks and success", "", *_rows(["part", "policy sees", *_PICKED], picks)]
    for part, way in summary.way.items():
        lines += ["", f"## On the way, {part}", "", *_rows(WAY_HEAD, way_rows(way, summary.expert.get(part)))]
    if summary.changes:
        lines += ["", "## Changes on the episodes played both ways", "", *_rows(_CHANGED, _changes(summary))]
    for part in summary.chance:
        steps, text = summary.of(part).steps, "No success."
        if steps is not None:
            middle = f"half of them {steps.first_quartile:.0f} to {steps.third_quartile:.0f}"
            text = f"Median {steps.median:.0f}, {middle}, of {steps.n} successes."
        lines += ["", f"## Steps to success, {part}", "", text]
    for part, whose in dict.fromkeys((table.part, table.whose) for table in summary.factors):
        rows = [
            [f"{table.factor} {value}", *_picked(counted, part)]
            for table in summary.factors
            if (table.part, table.whose) == (part, whose)
            for value, counted in table.rows.items()
        ]
        lines += ["", f"## By the {whose}'s factors, {part}", "", *_rows([f"{whose}'s", *_PICKED], rows)]
    code = textwrap.indent(command(info), "    ", lambda _: True)
    return "\n".join([*lines, "", "## To repeat it", "", code]) + "\n"


def _dominance_lines(found: Dominance) -> Iterator[str]:
    yield from ("", f"## {found.a} against {found.b}", "")
    yield from _rows(["", "share"], dominance_rows(found))
    for factor, values in found.values.items():
        rows = [[value, str(share)] for value, share in values.items()]
        yield from ("", *_rows([f"{factor} that is named", "picked, of the picks of either"], rows))


def dominance_rows(found: Dominance) -> list[list[str]]:
    """(what, share) of everything but the values."""
    rows = [
        [f"FDR of {found.a}, among picks of either", str(found.fdr)],
        [f"{found.a}'s object, of all", str(found.a_of_all)],
        [f"{found.b}'s object, of all", str(found.b_of_all)],
        ["neither, of all", str(found.neither)],
    ]
    for factor, each in found.alone.items():
        rows.append([f"{factor} alone, among all picks", str(each.among)])
        rows.append([f"{factor} alone, of all", str(each.over_all)])
    return rows


def done_table(found: Doing) -> tuple[list[str], list[list[str]]]:
    """(head, rows): by the verb that was asked for, how often each was done to the target, and to another object."""
    did = [verb for verb in (*VERBS, NOTHING) if any(verb in row for row in found.table.values())]
    rows = [
        [asked, *(f"{row[verb][0]} + {row[verb][1]}" if verb in row else "-" for verb in did)]
        for asked, row in ((verb, found.table[verb]) for verb in VERBS if verb in found.table)
    ]
    return ["asked \\ done: to the target + to others", *did], rows


def _title(evaluation: Evaluation) -> str:
    return f"Closed loop: {evaluation.info['split']}, {evaluation.info['policy']}"


def _picked(counted: Counted, part: str) -> list[str]:
    """Success and first picks; outside conflict there is no lure."""
    picks = ["-" if "conflict" not in part and pick == LURE else str(share) for pick, share in counted.picks.items()]
    return [str(counted.success), *picks]


def _changes(summary: Summary) -> list[list[str]]:
    return [
        [CONDITIONS[c.condition], c.part, str(c.success), str(c.target_picks), c.other_pick.counts, c.switched.counts]
        for c in summary.changes
    ]


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(map(_escaped, row))} |" for row in [head, ["---"] * len(head), *rows]]


def _escaped(text: str) -> str:
    """Names that people chose stay names: no cell, line or HTML of theirs."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(sign, entity)
    return text


def log_report(evaluation: Evaluation, folder: Path, tracking: TrackingConfig) -> None:
    """Log the report that write_report left in `folder` as a run of its own (of wandb's job_type evaluate)."""
    summary, job = summarize(evaluation), uuid.uuid4().hex[:12]
    tabled = {f"{PREFIX}/{name}": table for name, table in tables(evaluation, summary).items() if table[1]}
    films: dict[str, list[tuple[Path, str]]] = {f"{PREFIX}/successes": [], f"{PREFIX}/failures": []}
    for episode in evaluation.episodes:
        if path := video_file(episode, folder):
            films[f"{PREFIX}/{'successes' if episode.success else 'failures'}"].append((path, video_caption(episode)))
    # by which finetune.dashboard shows it with the training runs of its split
    split = str(evaluation.info["split"])
    tags = list(dict.fromkeys([split, *tracking.tags]))
    facts = {**evaluation.info, "split": {"name": split}}  # as training runs have it, to be grouped with them
    with open_run(tracking, folder, facts, id=job, job_type="evaluate", tags=tags) as run:
        run.report(numbers(summary), tabled, folder / PAGE_FILE, films)


def numbers(summary: Summary) -> dict[str, float | str]:
    """Every share under a name of its own, with the ends of its interval; shares of no episodes are left out."""
    shares = {}
    for condition, part, counted in summary.each():
        place = PREFIX if condition == AS_IT_IS else f"{PREFIX}/{condition}"
        shares[f"{place}/{part}/success"] = counted.success
        shares |= {f"{place}/{part}/picked_{pick}": share for pick, share in counted.picks.items()}
        if part == "conflict":
            shares[f"{place}/cue_preference"] = counted.preference
    if summary.dominance:
        found = summary.dominance
        shares |= {f"{PREFIX}/fdr": found.fdr, f"{PREFIX}/neither": found.neither}
        shares |= {f"{PREFIX}/alone/{factor}": each.among for factor, each in found.alone.items()}
    for part, done in summary.doing.items():
        names = {"right": done.right, "right_verb_other_object": done.other_object, "other_verb": done.other_verb}
        shares |= {f"{PREFIX}/{part}/did_{name}": share for name, share in names.items()}
    for change in summary.changes:
        shares[f"{PREFIX}/{change.condition}/{change.part}/switched"] = change.switched
    logged: dict[str, float | str] = {}
    for name, share in shares.items():
        if share.value is not None:
            logged |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high, f"{name}_of": share.n}
    for part, way in summary.way.items():
        logged[f"{PREFIX}/{part}/partial_credit"] = way.credit
        if way.smoothness is not None:
            logged[f"{PREFIX}/{part}/smoothness"] = way.smoothness.median
    if "conflict" in summary.chance:
        logged[f"{PREFIX}/verdict"] = cue_preference(summary).headline
    return logged


def tables(evaluation: Evaluation, summary: Summary) -> dict[str, tuple[list[Any], list[list[Any]]]]:
    """(columns, rows) of each table of the run."""

    def ends(share: Share | Difference) -> list[float | None]:
        return [share.value, share.low, share.high]

    shares = [
        [part, condition, name, share.count, share.n, *ends(share)]
        for condition, part, counted in summary.each()
        for name, share in {"success": counted.success, **counted.picks}.items()
    ]
    factors = [
        [t.part, t.whose, t.factor, value, c.success.n, *ends(c.success), c.picks[TARGET].count]
        for t in summary.factors
        for value, c in t.rows.items()
    ]
    changes = [[c.condition, c.part, c.before.success.n, *ends(c.success), c.other_pick.value] for c in summary.changes]
    names = ["condition", "part", "seed", "success", "picked", "picked_step", "steps", "chunks", "instruction"]
    names += ["stage", "smoothness"]
    episodes = [
        [*(getattr(e, name) for name in names), e.in_words("target"), e.in_words("lure")] for e in evaluation.episodes
    ]
    success = ["episodes", "success", "low", "high"]
    values = [
        [factor, value, share.count, share.n, *ends(share)]
        for factor, rows in (summary.dominance.values if summary.dominance else {}).items()
        for value, share in rows.items()
    ]
    done = [
        [part, asked, did, *cell]
        for part, found in summary.doing.items()
        for asked, row in found.table.items()
        for did, cell in row.items()
    ]
    return {
        "picks": (["part", "condition", "share", "count", "of", "value", "low", "high"], shares),
        "by_factor": (["part", "whose", "factor", "value", *success, "target picked"], factors),
        "episodes": ([*names, "target", "lure"], episodes),
        "changes": (["condition", "part", *success, "other pick"], changes),
        "values": (["factor", "value", "count", "of", "value", "low", "high"], values),
        "done": (["part", "asked", "done", "to the target", "to others"], done),
    }
