"""Run the tests that execute the mutated line, those that need least first, and fail when one of them does.

As many as take SECONDS, as measured. The mutant is what `git diff` shows. Which test executes which line, and how long
it takes, was measured before (see run.py); the folder MUTANTS_FOLDER holds it. A line that runs at import is tested by
all tests of its module.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from coverage import CoverageData

SECONDS = 45.0
ONLY_CONSTANTS = {
    "gr00t/model/architecture.py": ("tests/test_model.py", "tests/test_plan.py", "tests/test_lerobot_checkpoint.py")
}
NONE_SELECTED = 5  # of pytest: all of them are long ones
# As pytest-cov and pytest itself name a test and its phase: "...::test_name|setup", "...::test_name (setup)".
TEST = re.compile(r"(tests/test_\w+\.py::[^|]+?)(?:\|| \()(setup|run|call|teardown)")


class Durations:
    """Seconds of each test, and of what its file prepares for all of its tests."""

    def __init__(self, file: Path) -> None:
        self._phases: dict[str, dict[str, float]] = json.loads(file.read_text())
        self.prepared: dict[str, float] = defaultdict(float)
        for test, phases in self._phases.items():
            name = test.partition("::")[0]
            self.prepared[name] = max(self.prepared[name], phases.get("setup", 0.0))

    def own(self, test: str) -> float:
        return self._phases.get(test, {}).get("call", 0.0)

    def of_file(self, name: str) -> list[str]:
        return [test for test in self._phases if test.startswith(f"{name}::")]


def mutated_lines() -> tuple[str, set[int]]:
    """The file that differs from the last commit, and its lines there."""
    text = subprocess.run(["git", "diff", "-U0"], capture_output=True, text=True, check=True).stdout
    files = re.findall(r"^--- a/(.+)$", text, re.MULTILINE)
    if len(files) != 1:
        raise SystemExit(f"{len(files)} files differ from the last commit; a mutant is one")
    lines: set[int] = set()
    for first, count in re.findall(r"^@@ -(\d+)(?:,(\d+))? ", text, re.MULTILINE):
        lines |= set(range(int(first), int(first) + int(count or 1)))
    return files[0], lines


def contexts(data: CoverageData, file: str, lines: set[int] | None) -> set[str]:
    """Contexts in which those lines (None: any) of a file ran, whatever checkout it lay in."""
    found: set[str] = set()
    for measured in data.measured_files():
        if measured.endswith(f"/{file}"):
            for line, names in data.contexts_by_lineno(measured).items():
                if lines is None or line in lines:
                    found |= set(names)
    return found


def chosen(data: CoverageData, durations: Durations, file: str, lines: set[int]) -> list[str]:
    """Tests to run, those that execute the lines first, within SECONDS."""
    ran_in = contexts(data, file, lines)
    if "" in ran_in or not ran_in:  # at the import of the module, whoever needs it then
        ran_in |= contexts(data, file, None)
    found = {match for context in ran_in for match in TEST.findall(context)}
    names = {test for test, _ in found} | {
        test for name in ONLY_CONSTANTS.get(file, ()) for test in durations.of_file(name)
    }
    prepares = {test.partition("::")[0] for test, phase in found if phase == "setup"}  # for all tests of the file
    beside = {test for name in prepares for test in durations.of_file(name)} - names

    def alone(test: str) -> float:
        return durations.own(test) + durations.prepared[test.partition("::")[0]]

    picked: list[str] = []
    left, prepared = SECONDS, set[str]()
    for group in (names, beside):
        for test in sorted(group, key=alone):
            name = test.partition("::")[0]
            cost = durations.own(test) if name in prepared else alone(test)
            if cost <= left:
                left -= cost
                prepared.add(name)
                picked.append(test)
    return picked


def main() -> None:
    folder = Path(os.environ["MUTANTS_FOLDER"])
    data = CoverageData(str(folder / "coverage"))
    data.read()
    file, lines = mutated_lines()
    tests = chosen(data, Durations(folder / "durations.json"), file, lines)
    if not tests:
        print(f"{file}: no test executes these lines")
        return
    # one file's tests together: what they share is prepared once
    order = {name: place for place, name in enumerate(dict.fromkeys(test.partition("::")[0] for test in tests))}
    tests.sort(key=lambda test: order[test.partition("::")[0]])
    command = [sys.executable, "-m", "pytest", "-x", "--no-header", "--tb=line", "-p", "no:cacheprovider", *tests]
    status = subprocess.run(command).returncode
    raise SystemExit(0 if status == NONE_SELECTED else status)


if __name__ == "__main__":
    main()
