"""What a paper takes from evaluations: tables as CSV, Markdown and LaTeX, figures, and a paragraph on the methods."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr00t.file_replacement import whole_folder, write_text
from simulation.closed_loop import CONDITIONS, EVALUATED
from simulation.report import Result, by_variant, preferences
from simulation.report.closed_loop_page import command
from simulation.report.dominance import A, B
from simulation.report.proportions import Difference, Share
from simulation.report.training_seeds import HOLDS_FOR, Estimate, Family
from simulation.scenes.suites import INSTRUCTION, PLATE, SUITES
from simulation.scenes.verbs import Thresholds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | Share | Difference | Estimate
_PARTS = {
    "train": "both cues agree",
    "conflict": "no object fits in both factors",
    "seen": "combinations of values that were recorded for training",
    "unseen": "combinations that were not",
    "single_a": "only the first factor tells the objects apart",
    "single_b": "only the second factor does",
}
_FACTS = {
    "image_size": "pixels of both square cameras:",
    "render": "rendered on:",
    "workers": "simulations that share a batch:",
    "segment": "scenes built again after episodes:",
    "strategy": "combinations recorded by the strategy",
    "no_distractor_prob": "no_distractor_prob",
    "checkpoint_fingerprint": "checkpoint",
    "precision": "precision",
    "device": "on",
    "denoising_steps": "denoising steps:",
    "guidance": "guidance",
}
_TEX = {"\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_FIRST, _SECOND, _GREY = "#0072b2", "#e69f00", "#7d858c"
_FONTS: Any = {"svg.hashsalt": "paper", "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9}
_NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same results give the same files


@dataclass(frozen=True)
class PaperTable:
    """name: of its files. Shares and differences are written in per cent with their intervals."""

    name: str
    caption: str
    head: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


def write_paper(folder: Path, results: Sequence[Result], families: Sequence[Family] = ()) -> None:
    """Write everything into `folder`, which is replaced."""
    if folder.is_dir():
        _only_ours(folder)
    with whole_folder(folder, lock=False, replaceable=_only_ours) as aside:
        several = trainings(families)
        for table in filter(lambda table: table.rows, [*tables(results), several]):
            for kind, text in (("csv", as_csv(table)), ("md", as_markdown(table)), ("tex", as_latex(table))):
                write_text(aside / f"{table.name}.{kind}", text)
        paragraphs = [*methods(results), *([several.caption] if several.rows else [])]
        write_text(aside / "methods.md", "\n\n".join(paragraphs) + "\n")
        write_text(aside / "methods.tex", "\n\n".join(map(escaped, paragraphs)) + "\n")
        draw(aside, results)


def tables(results: Sequence[Result]) -> Iterator[PaperTable]:
    """Of all evaluations; those without rows too."""
    own, interval = ("split", "policy", "strategy"), "95 % intervals (Wilson 1927)"

    def table(name: str, caption: str, head: tuple[str, ...], rows: Iterable[tuple[Cell, ...]]) -> PaperTable:
        return PaperTable(name, caption, (*own, *head), list(rows))

    parts = [(r, part) for r in results for part in EVALUATED if part in r.summary.chance]
    rows: Iterable[tuple[Cell, ...]] = ((*_named(r), part, r.summary.of(part).success) for r, part in parts)
    yield table("success", f"Success by part; {interval}.", ("part", "success"), rows)
    rows = ((*_named(r), *r.summary.cues, *_preference(r)) for r in results if r.summary.cues)
    told = "FDR: a's share of the conflict episodes in which a's or b's object was acted on first; neither: of all"
    head: tuple[str, ...] = ("a", "b", "FDR of a", "neither", "a alone", "b alone")
    yield table("dominance", f"{told}; alone: where only that factor tells; {interval}.", head, rows)
    doing = [(r, part, done) for r in results for part, done in r.summary.doing.items()]
    rows = ((*_named(r), part, done.right, done.other_object, done.other_verb) for r, part, done in doing)
    head = ("part", "right verb, target", "right verb, other object", "other verb, target")
    yield table("verbs", f"What was done to what, of all episodes; {interval}.", head, rows)
    changes = [(r, change) for r in results for change in r.summary.changes]
    rows = ((*_named(r), CONDITIONS[c.condition], c.part, c.success, c.target_picks, c.switched) for r, c in changes)
    head = ("policy sees", "part", "success", "target picks", "switched picks")
    yield table("ablations", "Changes on the same episodes; 95 % intervals (Newcombe 1998, paired).", head, rows)
    seeds = [(r, part, n, s) for r in results for part, runs in r.summary.runs.items() for n, s in enumerate(runs)]
    rows = ((*_named(r), part, str(r.info["seed"] + n), share) for r, part, n, share in seeds)
    yield table("repetitions", f"Success of each repetition; {interval}.", ("part", "seed", "success"), rows)


def trainings(families: Sequence[Family]) -> PaperTable:
    """Of the settings with several trainings."""
    head = ("split", "setting", "measure", "trainings", "one more training", "mean", "group")
    rows: list[tuple[Cell, ...]] = [
        (of.split, name, of.measure, str(m.mean.n), m.new, m.mean, of.groups[name])
        for of in families
        for name, m in of.settings.items()
        if m.mean and m.new
    ]
    told = f"One more training: {HOLDS_FOR['new']}; mean: {HOLDS_FOR['mean']}; 95 % intervals (beta-binomial)."
    return PaperTable("trainings", f"{told} Group: {HOLDS_FOR['group']}.", head, rows)


def _named(result: Result) -> tuple[str, str, str]:
    guided = "" if result.guidance == 1 else f", guidance {result.guidance:g}"
    return result.split, f"{result.info['policy']}{guided}", result.strategy


def _preference(result: Result) -> Iterator[Cell]:
    found, none = result.summary.dominance, Share(0, 0)
    conflict = result.summary.of("conflict")
    yield result.summary.preference
    yield Share(conflict.success.n - result.summary.preference.n, conflict.success.n)
    for factor in result.summary.cues or ():
        yield found.alone[factor].among if found and factor in found.alone else none


# -- files -------------------------------------------------------------------------------------------------------------


def as_csv(table: PaperTable) -> str:
    """One row each; a share takes the columns value, low, high, count and n, a difference all but count."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = zip(table.head, table.rows[0], strict=True)
    writer.writerow(f"{name}{end}" for name, cell in first for end in _in_csv(cell))
    writer.writerows([value for cell in row for value in _in_csv(cell).values()] for row in table.rows)
    return text.getvalue()


def _in_csv(cell: Cell) -> dict[str, Any]:
    """The values of a cell, by how the names of their columns end."""
    if isinstance(cell, str):
        return {"": cell}
    count = {" count": cell.count} if isinstance(cell, Share) else {}
    return {"": cell.value, " low": cell.low, " high": cell.high, **count, " n": cell.n}


def as_markdown(table: PaperTable) -> str:
    """A table of pipes below its caption."""
    lines = [table.head, ("---",) * len(table.head), *(map(_short, row) for row in table.rows)]
    body = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return f"{table.caption}\n\n{body}\n"


def as_latex(table: PaperTable) -> str:
    """A table of the package booktabs."""
    columns = "".join("l" if isinstance(cell, str) else "r" for cell in table.rows[0])
    lines = [" & ".join(map(escaped, map(_short, row))) + r" \\" for row in [table.head, *table.rows]]
    parts = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *(lines[0], r"\midrule", *lines[1:]),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{escaped(table.caption)}}}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """As LaTeX shows it as it is."""
    return "".join(_TEX.get(sign, sign) for sign in text)


def _short(cell: Cell) -> str:
    """63.3 [45.5, 78.1], in per cent; - where nothing is known."""
    if isinstance(cell, str):
        return cell
    if cell.value is None:
        return "-"
    sign = "+" if isinstance(cell, Difference) else ""
    return f"{100 * cell.value:{sign}.1f} [{100 * cell.low:{sign}.1f}, {100 * cell.high:{sign}.1f}]"


def _only_ours(folder: Path) -> None:
    """A folder in the way is replaced only where this module wrote it."""
    if any(folder.iterdir()) and not (folder / "methods.md").is_file():
        raise FileExistsError(17, "holds something else", str(folder))


# -- methods -----------------------------------------------------------------------------------------------------------


def methods(results: Sequence[Result]) -> Iterator[str]:
    """A paragraph for each suite, then one for each evaluation: all that it takes to repeat them."""
    revisions = sorted({str(result.info["versions"].get("git_revision")) for result in results})
    for suite in (PLATE, INSTRUCTION):
        own = [result for result in results if result.suite is suite]
        if own:
            yield _suite_paragraph(suite is INSTRUCTION, own)
            yield from (_evaluation_paragraph(result) for result in own)
    yield (
        "Shares have 95 % intervals by Wilson's score method (1927), differences by Newcombe's (1998, methods 10), "
        f"paired where the same episodes were played both ways. Code of the evaluations: {', '.join(revisions)}."
    )


def _suite_paragraph(instructed: bool, results: Sequence[Result]) -> str:
    from data_prep.maniskill import CONTROL_FREQ  # which reads HDF5

    versions = results[0].info["versions"]
    names = ("mani_skill", "sapien", "torch", "numpy")
    told = ", ".join(["physics on the CPU", *(f"{name} {versions[name]}" for name in names if name in versions)])
    parts = [part for part in EVALUATED if any(part in result.summary.chance for result in results)]
    suite, scene, counted = (
        "Plate",
        "A plate on the table shows both cues; one object matches it in the first, another in the second.",
        "An outcome is the first object held above the table; an episode succeeds once a still arm holds the target.",
    )
    if instructed:
        limits = ", ".join(f"{name} {value}" for name, value in asdict(Thresholds()).items())
        suite, scene, counted = (
            "Instruction",
            "The sentence names two factors of an object on the table (instruction/all: five).",
            "An outcome is the first object for which a verb held (lift, grasp, push, pull, slide or rotate, told "
            f"apart by height, displacement, rotation and grasp; limits in m, rad and steps: {limits}) and the verb "
            "done to it; an episode succeeds where both are those that were asked for.",
        )
    return (
        f"{suite} suite. A simulated Franka Panda ({told}; {CONTROL_FREQ} control steps a second, absolute joint "
        f"targets) is seen by a camera in front of the table and one at its wrist. {scene} Parts: "
        f"{'; '.join(f'{part}, {_PARTS[part]}' for part in parts)}. {counted} Scenes follow from the split, the part "
        "and an episode's seed alone; no seed of an evaluation was ever recorded."
    )


def _evaluation_paragraph(result: Result) -> str:
    info, summary = result.info, result.summary
    seeds, seed, runs = [e.seed for e in result.evaluation.episodes], info["seed"], info.get("runs", 1)
    conditions = [CONDITIONS[name] for name in summary.counted if name != "none"]
    numbers = ", ".join(f"{summary.of(part).success.n} {part}" for part in summary.chance)
    facts = [
        f"{result.name}: {info['policy']} on {info['split']}, {numbers} episodes (seeds {min(seeds)} to {max(seeds)})",
        f"at most {info['max_steps']} steps, {info['n_action_steps']} of each action chunk executed",
        f"noise from seed {seed}{f' to {seed + runs - 1}' if runs > 1 else ''}",
    ]
    facts += [f"{words} {info[name]}" for name, words in _FACTS.items() if info.get(name) is not None]
    facts += [f"repeated with {', '.join(conditions)}"] if conditions else []
    return f"{'; '.join(facts)}. To repeat it: {command(info)}"


# -- figures -----------------------------------------------------------------------------------------------------------


def draw(folder: Path, results: Sequence[Result]) -> None:
    """Every figure; the same results give the same files."""
    import matplotlib

    with matplotlib.rc_context(_FONTS):
        parts = [part for part in EVALUATED if not part.startswith("single")]
        success = [(r, part) for r in results for part in parts if part in r.summary.chance]
        rows = [(f"{_label(r)}, {part}", r.summary.of(part).success, _FIRST) for r, part in success]
        _save(_dots(rows, "success", None), folder / "success")
        conflicts = [r for r in results if preferences([r])]
        if conflicts:
            colors = [{A: _FIRST, B: _SECOND}.get(r.verdict[0], _GREY) for r in conflicts]
            colored = [(_label(r), r.summary.preference, color) for r, color in zip(conflicts, colors, strict=True)]
            _save(_dots(colored, "preference for a over b (FDR)", 0.5), folder / "dominance")
        for suite in SUITES:
            variants = by_variant(r for r in results if r.suite is suite)
            for number, (variant, shares) in enumerate(variants.items(), start=1):
                figure, mark = _matrix(list(suite.factors), shares), ""
                if len(variants) > 1:
                    figure.suptitle(variant)
                    mark = f"_{number}_{re.sub('[^A-Za-z0-9_.]+', '-', variant)}".rstrip("_")
                _save(figure, folder / f"matrix_{suite.name}{mark}")


def _label(result: Result) -> str:
    return result.name if result.split in result.name else f"{result.split}: {result.name}"


def _figure(width: float, height: float) -> Figure:
    """An empty one, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _dots(rows: Sequence[tuple[str, Share, str]], heading: str, mark: float | None) -> Figure:
    """A share and its interval in each row."""
    figure = _figure(6.5, 0.7 + 0.24 * len(rows))
    axes = figure.add_subplot()
    for place, (_, share, color) in enumerate(rows):
        axes.plot([100 * share.low, 100 * share.high], [place, place], color=color, linewidth=1.4)
        axes.plot([100 * (share.value or 0)], [place], "o", color=color, markersize=5)
    if mark is not None:
        axes.axvline(100 * mark, color=_GREY, linestyle="--", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), xlabel=f"{heading}, % with 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _matrix(factors: Sequence[str], shares: Mapping[tuple[str, str], Share]) -> Figure:
    """Row a, column b: the share of a, colored by who wins."""
    figure = _figure(0.9 + 0.85 * len(factors), 0.7 + 0.6 * len(factors))
    axes = figure.add_subplot()
    for (a, b), share in shares.items():
        row, column, value = factors.index(a), factors.index(b), share.count / share.n
        color = _FIRST if value >= 0.5 else _SECOND
        axes.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=color, alpha=abs(value - 0.5), lw=0)
        axes.text(column, row, f"{100 * value:.0f} %\n{share.count}/{share.n}", ha="center", va="center")
    ticks = range(len(factors))
    axes.set(xticks=ticks, yticks=ticks, xticklabels=factors, yticklabels=factors, xlabel="b", ylabel="a")
    axes.set(xlim=(-0.5, len(factors) - 0.5), ylim=(len(factors) - 0.5, -0.5))
    return figure


def _save(figure: Figure, path: Path) -> None:
    for kind, metadata in _NO_DATE.items():
        figure.savefig(path.with_suffix(f".{kind}"), metadata=metadata)
