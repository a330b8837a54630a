"""The pages that people look at, in a real browser: light and dark, on a desktop and a phone, and by keyboard alone."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Page, opened
from config_calls import compose
from damages import edit_tables
from outcomes import HELD, NONE, WRONG
from PIL import Image
from test_closed_loop_report import filmed
from test_compare import write as write_evaluation
from test_dominance import mixed
from test_report import report, write_attempt, write_run

from data_prep.check import main as check
from data_prep.check import read as read_check
from finetune.training import EVALUATIONS, FIRST_BATCH
from simulation.audit import main as audit
from simulation.closed_loop import Evaluation
from simulation.compare import main as compare
from simulation.report.closed_loop_report import write_report

NAMES = ["report", "runs", "closed_loop", "dominance", "dataset", "compare", "audit"]
SCREENS = {"desktop": (1250, 900, False), "phone": (390, 844, True)}
REACHABLE = "a[href], button, input, summary, video[controls], [tabindex='0']"
# Everything that folds is unfolded; the plots are drawn, in the colors of a screen that has just changed.
READY = """new Promise(done => {
    for (const details of document.querySelectorAll("details")) details.open = true
    const drawn = () => !window.Bokeh || (Bokeh.documents.length && Bokeh.documents[0].is_idle)
    const look = () => drawn() ? requestAnimationFrame(() => setTimeout(() => done(true), 50)) : setTimeout(look, 20)
    look()
})"""
# What is inside a drawing is read as one image.
AXE = """axe.run({exclude: [["svg[role=img] > *"]]}, {resultTypes: ["violations"]}).then(found => found.violations.map(
    ({id, nodes}) => [id, ...nodes.slice(0, 3).map(node => [node.html.slice(0, 200), node.failureSummary])]))"""
# What had the focus, and what of it did not show that it had.
WATCH = """(() => {
    window.reached = new Set(); window.unseen = []
    document.addEventListener("focusin", ({target}) => {
        reached.add(target)
        const {outlineStyle, outlineWidth} = getComputedStyle(target)
        if (outlineStyle == "none" || parseFloat(outlineWidth) < 2) unseen.push(target.outerHTML.slice(0, 200))
    })
})()"""


@pytest.fixture(scope="module")
def pages(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each page, with everything that it can show."""
    root = tmp_path_factory.mktemp("pages")
    return {
        **_reports(root / "runs"),
        "closed_loop": _closed_loop(root / "closed"),
        "dominance": _dominance(root / "reports/instruction/verb_color/closed_loop"),
        "dataset": _dataset(small_data / "color_object", root),
        "compare": _comparison(root / "reports"),
        "audit": _audit(root),
    }


def _reports(runs: Path) -> dict[str, Path]:
    for name, rate in (("one", 1e-4), ("two", 2e-4)):
        write_attempt(write_run(runs / name, rate), 0, 0, "signal SIGUSR1")
        write_attempt(runs / name, 1, 150, "training is finished")
    (runs / "one" / EVALUATIONS).mkdir()
    for name in (FIRST_BATCH, f"{EVALUATIONS}/step-200-errors.png"):
        Image.fromarray(np.full((300, 1200, 3), 250, np.uint8)).save(runs / "one" / name)
    lines = [{"step": step, "loss": 2 / step, "grad_norm": 2.0} for step in range(10, 300, 10)]
    (runs / "two" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    report(runs / "one", f"reports_dir={runs}")
    report(runs, f"reports_dir={runs}")
    return {"report": runs / "one" / "report.html", "runs": runs / "report.html"}


def _closed_loop(folder: Path) -> Path:
    made = filmed(folder)
    write_report(Evaluation(made.info, (*made.episodes[:29:7], *made.episodes[27:100:9])), folder)
    return folder / "closed_loop.html"


def _dominance(folder: Path) -> Path:
    write_report(mixed("instruction/verb_color", 6), folder)
    return folder / "closed_loop.html"


def _dataset(sound: Path, root: Path) -> Path:
    data = shutil.copytree(sound, root / "data")
    edit_tables(data / "train", lambda c: c["next.reward"].fill(0), [3])
    with pytest.raises(SystemExit):
        check(read_check([str(data), f"html={root}/dataset.html", "fast=true", "shown=2"]))
    return root / "dataset.html"


def _comparison(folder: Path) -> Path:
    write_evaluation(folder / "color_object" / "closed_loop", {HELD: 27, WRONG: 3})
    write_evaluation(folder / "color_object" / "drop", {HELD: 5, WRONG: 23, NONE: 2}, {HELD: 4, NONE: 16})
    write_evaluation(folder / "size_color" / "closed_loop", {HELD: 16, WRONG: 14}, split="size_color")
    for seed in (0, 1):
        for rate in ("slow", "fast"):
            made = {"recipe": {"train.learning_rate": rate}, "training_seed": seed}
            write_evaluation(folder / "color_object" / f"{rate}_{seed}", {HELD: 12, WRONG: 8 + seed}, **made)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "closed_loop.json").write_text("{}")
    compare(compose("compare", f"reports_dir={folder}", f"out={folder}/compare.html"))
    return folder / "compare.html"


def _audit(root: Path) -> Path:
    audit(compose("audit", "splits=[instruction/size_object]", "scenes=200", f"out={root}/audit.html"))
    return root / "audit.html"


@pytest.fixture(scope="module")
def browser(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with opened(pages["compare"], tmp_path_factory.mktemp("profile")) as page:
        yield page


def shown(browser: Page, path: Path, screen: str = "desktop", dark: bool = False) -> None:
    width, height, phone = SCREENS[screen]
    browser.screen(width, height, phone, dark)
    browser.show(path)
    browser.value(READY)


@pytest.mark.parametrize("screen, dark", [
    ("desktop", False), ("phone", True),
    pytest.param("desktop", True, marks=pytest.mark.long), pytest.param("phone", False, marks=pytest.mark.long),
])  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_every_page_is_for_everyone(name: str, screen: str, dark: bool, pages: dict[str, Path], browser: Page) -> None:
    """axe-core's rules, its best practices too; no error on the console; nothing wider than the screen."""
    shown(browser, pages[name], screen, dark)
    axe = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    browser.value(f"{axe}; 0")
    assert browser.value(AXE) == []
    assert browser.value("document.scrollingElement.scrollWidth") <= SCREENS[screen][0]
    bright = np.asarray(Image.open(io.BytesIO(browser.image())).convert("L"))
    assert (np.median(bright) < 60) == dark
    assert browser.complaints == []


def test_plots_follow_a_browser_that_turns_dark(pages: dict[str, Path], browser: Page) -> None:
    """Axes and grid keep a contrast with the paper, without the page being loaded again."""
    shown(browser, pages["report"])
    browser.value("document.querySelector('.canvas').scrollIntoView()")
    for dark in (False, True):
        browser.screen(*SCREENS["desktop"], dark)
        browser.value(READY)
        plot = np.asarray(Image.open(io.BytesIO(browser.image())).convert("L"))[
            :200, 20:80
        ]  # the numbers beside the axis
        paper = np.median(plot)
        assert np.abs(plot - paper).max() > 90 and (paper < 60) == dark


@pytest.mark.parametrize("name", NAMES)
def test_every_page_can_be_used_by_keyboard_alone(name: str, pages: dict[str, Path], browser: Page) -> None:
    shown(browser, pages[name])
    browser.value(WATCH)
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.getBoundingClientRect().left") >= 0
    assert browser.value("document.activeElement.textContent") == "Skip to the content"
    count = browser.value(f"[...document.querySelectorAll({json.dumps(REACHABLE)})].length")
    for _ in range(count + 12 * browser.value("document.querySelectorAll('video').length")):
        browser.press("Tab", 9)
    missed = f"""[...document.querySelectorAll({json.dumps(REACHABLE)})].filter(element => !reached.has(element))
        .map(element => element.outerHTML.slice(0, 200))"""
    assert browser.value(missed) == [] and browser.value("unseen") == []


def test_the_skip_link_leads_past_the_head(pages: dict[str, Path], browser: Page) -> None:
    shown(browser, pages["dataset"])
    browser.press("Tab", 9)
    browser.press("Enter", 13, "\r")
    browser.wait_for("document.activeElement.id === 'content'")


def test_fields_do_what_the_mouse_does_to_the_plots(pages: dict[str, Path], browser: Page) -> None:
    shown(browser, pages["runs"])
    height = "(() => {const y = Bokeh.documents[0].roots()[0].y_range; return [y.start, y.end]})()"
    both = browser.value(height)
    browser.value("document.querySelector('[data-line=two]').click()")
    browser.value(READY)
    alone = browser.value(height)
    assert both[1] == pytest.approx(0.2, rel=0.1) and alone[1] == pytest.approx(0.1, rel=0.1)  # 2 / step, 1 / step
    browser.value("document.querySelector('[name=from]').focus()")
    browser.value("document.querySelector('[name=from]').select()")
    for digit in "100":
        browser.press(digit, ord(digit), digit)
    browser.press("Enter", 13, "\r")
    browser.wait_for(f"{height}[1] < 0.011")
    browser.value("document.querySelector('[type=reset]').click()")
    browser.wait_for(f"{height}[1] === {alone[1]}")
    browser.wait_for("document.querySelector('[name=from]').value === '10'")


def test_what_plots_show_stands_beside_them_as_text(pages: dict[str, Path], browser: Page) -> None:
    shown(browser, pages["report"])
    rows = browser.value(
        "[...document.querySelectorAll('[aria-label=\"values of loss\"] tr')].map(row => row.innerText.split('\\t'))"
    )
    assert ["loss", "30", "0.1", "0.003333", "0.003333 at 300", "0.1 at 10"] in rows
    assert any(row[:2] == ["attempt 1", "marked at step 150"] for row in rows)
    for name in NAMES:
        shown(browser, pages[name])
        unsaid = "[...document.querySelectorAll('figure svg, figure canvas, img, video')].filter(drawn => "
        unsaid += "!(drawn.alt || drawn.closest('[aria-label], [aria-hidden]'))).length"
        assert browser.value(unsaid) == 0, name
