"""One page over all closed-loop evaluations: the twelve splits, every checkpoint, and what differs between them.

python -m simulation.compare reports_dir=reports out=reports/compare.html
python -m simulation.compare pages=true
python -m simulation.compare --help
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.script import run_main
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, read_json, write_json, write_text

if TYPE_CHECKING:
    from finetune.config import CompareConfig
    from simulation.comparison import Entry


def main(config: CompareConfig) -> None:
    # Imported only after the configuration has been accepted: a refusal should not wait for it.
    from simulation.comparison import as_json, compare, page
    from simulation.report import write_report

    out = Path(config.out).expanduser()
    numbers = _numbers_of(out)
    comparison = compare(Path(config.reports_dir))
    if config.pages:
        for entry in comparison.entries:
            write_report(entry.evaluation, entry.path.parent)
    with disk_errors(out, "Choose another out=FILE.html."):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(numbers, as_json(comparison))
        write_text(out, page(comparison, out.parent))
    print("\n".join(map(line, comparison.entries)))
    print("\n".join([*(f"note: skipped {reason}" for reason in comparison.skipped), str(out)]))


def _numbers_of(out: Path) -> Path:
    """The JSON file beside the page; refused where something else has that name."""
    from simulation.comparison import KIND

    numbers = out.with_suffix(".json")
    if out.suffix != ".html":
        raise ToolkitError(f"out={out}: the page is an HTML file. Write out={out.with_suffix('.html')}")
    if out.is_dir() or numbers.is_dir():
        raise ToolkitError(f"out={out}: a folder has this name, or that of {numbers}. Choose another out=FILE.html.")
    if numbers.exists() and read_json(numbers).get("kind") != KIND:
        raise ToolkitError(
            f"out={out}: its numbers would take the place of {numbers}, which is no comparison. Choose another "
            "out=FILE.html."
        )
    return numbers


def line(entry: Entry) -> str:
    """An evaluation in one line."""
    from simulation.readings import words

    success = ", ".join(f"{part} {words(entry.summary.of(part).success)}" for part in entry.summary.chance)
    preference = f"; {entry.verdict[1]}" if "conflict" in entry.summary.chance else ""
    return f"{entry.split}  {entry.name}: success {success}{preference}"


if __name__ == "__main__":
    run_main(main, "compare")
