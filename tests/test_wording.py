"""`make lint` looks at spelling and wording: codespell with this project's own words and phrases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("codespell_lib", reason="codespell is not installed: pip install '.[dev]' -c constraints.txt")
CHECKOUT = Path(__file__).resolve().parents[1]


def found(tmp_path: Path, text: str) -> list[str]:
    """The words and phrases of `text` that are refused, in its order."""
    (tmp_path / "text.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "codespell_lib", str(tmp_path / "text.py")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert not done.stderr and (done.returncode != 0) == bool(done.stdout)
    return [line.split(": ", 1)[1].split(" ==> ")[0] for line in done.stdout.splitlines()]


def test_every_word_and_phrase_of_the_list_is_refused_also_in_a_name(tmp_path: Path) -> None:
    lines = (CHECKOUT / ".codespell-words.txt").read_text().splitlines()
    words = [line.split("->")[0] for line in lines]
    text = "".join(f"# {word.capitalize()}, then {word}.\ntest_it_{word.replace(' ', '_')}_x = 1\n" for word in words)
    expected = [form for word in words for form in (word.capitalize(), word, word.replace(" ", "_"))]
    assert len(words) > 10 and found(tmp_path, text) == expected


def test_common_misspellings_are_refused_and_plain_words_are_not(tmp_path: Path) -> None:
    wrong = ["Rec" + "ieve", "seper" + "ately", "paramt" + "er"]
    assert found(tmp_path, f"{wrong[0]} the checkpoint {wrong[1]}.\nmodel_{wrong[2]} = 1\n") == wrong
    sound = 'Cargo on board, at handles; told = "told apart": a run is told from another by its name. [told]\n'
    assert found(tmp_path, sound) == []
