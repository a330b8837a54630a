"""Which factor dominates: policies of which the rates are known have the figures that arithmetic says."""

from __future__ import annotations

import collections
import csv
import dataclasses
import json
import random
from pathlib import Path

import pytest
from config_calls import compose, refusal
from outcomes import HELD, NONE, WRONG, acted, any_object, evaluation, follows, played
from test_closed_loop_report import Page

from gr00t.errors import ToolkitError
from simulation.compare import compare, graphs, main, matrix
from simulation.report import Result, by_variant, summarize
from simulation.report.closed_loop_report import numbers, read_evaluation, tables, write_report
from simulation.report.conclusions import in_short, readings
from simulation.report.paper import as_csv, as_latex, as_markdown, escaped, methods
from simulation.report.paper import tables as paper_tables
from simulation.report.proportions import Share
from simulation.scenes.instruction_suite import InstructedEpisode, combinations
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED as FIRST
from simulation.scenes.single_factor import other_sentence
from simulation.scenes.suites import INSTRUCTION, PLATE, suite_of

SPLIT = "instruction/color_object"
SPLITS = [split for split in INSTRUCTION.splits if not split.endswith("/all")]
OTHER_SIZES = {"small": "large", "smaller": "larger", "smallest": "largest"}
SIZES = {"small": (*OTHER_SIZES,), "large": (*OTHER_SIZES.values(),)}


def of(episodes, **info):
    split = info.pop("split", SPLIT)
    told = {"split": split, "instruction": None, "policy": "scripted", "strategy": "random_f12", **info}
    return evaluation(episodes, **told)


def dominance(chooses, count: int = 200, parts=("seen", "conflict", "single_a", "single_b"), split: str = SPLIT):
    found = summarize(of(acted(split, parts, count, chooses), split=split)).dominance
    assert found is not None
    return found


# -- known policies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("factor", [0, 1])
def test_a_policy_of_one_factor_has_all_of_its_conflicts_and_chance_where_it_is_silent(split: str, factor: int) -> None:
    found = dominance(follows(factor), 60, INSTRUCTION.playable(split, None), split)
    picks = [found.a_of_all, found.b_of_all]
    assert picks[factor] == Share(60, 60) and picks[1 - factor] == Share(0, 60) == found.neither
    assert found.fdr == Share(60 * (factor == 0), 60)
    own, other = (found.b, found.a) if factor else (found.a, found.b)
    if own in found.alone:
        assert found.alone[own].among == Share(60, 60)
    if other in found.alone:  # of two objects, or three
        assert found.alone[other].among.low < 0.5 and found.alone[other].among.high > 1 / 3
    assert all(share.count == share.n for share in found.values[own].values())
    assert all(share.count == 0 for share in found.values[other].values())


def test_one_of_known_rates_is_within_its_interval_and_neither_is_told_apart() -> None:
    """It does nothing in a fifth, and follows color in 70 % of the rest."""

    def chooses(episode: InstructedEpisode, rng: random.Random) -> int | None:
        drawn = rng.random()
        return None if drawn < 0.2 else follows(0 if drawn < 0.2 + 0.8 * 0.7 else 1)(episode, rng)

    found = dominance(chooses, 1000)
    assert found.fdr.low < 0.7 < found.fdr.high and found.fdr.high - found.fdr.low < 0.08
    assert found.neither.low < 0.2 < found.neither.high
    assert found.a_of_all.low < 0.56 < found.a_of_all.high and found.b_of_all.low < 0.24 < found.b_of_all.high
    assert found.alone["color"].among.low < 0.85 < found.alone["color"].among.high  # 70 % and half of the rest
    assert found.alone["color"].over_all.low < 0.68 < found.alone["color"].over_all.high
    assert found.a_of_all.count + found.b_of_all.count + found.neither.count == 1000


@pytest.mark.parametrize("chooses", [lambda episode, rng: 0, any_object], ids=["the first object", "any object"])
def test_one_that_does_not_look_at_what_is_named_has_one_half(chooses) -> None:
    found = dominance(chooses, 300)
    for share in (found.fdr, found.alone["color"].among, found.alone["object"].among):
        assert share.low < 0.5 < share.high
    summary = summarize(of(acted(SPLIT, ("conflict", "single_a", "single_b"), 300, chooses)))
    told = {reading.question: reading for reading in readings(summary)}
    assert told["Which cue does it follow?"].headline == "no preference shown"
    assert told["Is each factor followed alone?"].headline == "not shown of color or object"


def test_one_that_follows_both_and_one_that_follows_neither_have_one_rate_but_are_told_apart() -> None:
    def both(episode: InstructedEpisode, rng: random.Random) -> int | None:
        return follows(episode.seed % 2)(episode, rng) if episode.part == "conflict" else episode.target

    capable, blind = dominance(both), dominance(any_object)
    assert capable.fdr.value == pytest.approx(0.5) and abs((blind.fdr.value or 0) - 0.5) < 0.1
    assert all(each.among == Share(200, 200) for each in capable.alone.values())
    assert all(each.among.high < 0.65 for each in blind.alone.values())


def test_the_majority_of_training_wins_where_its_values_are_the_commoner_ones() -> None:
    """The policy takes what was the target most often, by color and shape apart, whatever is said."""
    recorded, _ = combinations(SPLIT)
    often = [collections.Counter(values) for values in zip(*recorded, strict=True)]

    def score(episode: InstructedEpisode, index: int) -> int:
        body = episode.objects[index]
        return often[0][body.color] + often[1][body.object]

    def majority(episode: InstructedEpisode, rng: random.Random) -> int | None:
        return max(range(len(episode.objects)), key=lambda index: (score(episode, index), -index))

    expected = 0
    for seed in range(FIRST, FIRST + 200):
        episode = suite_of(SPLIT).sample(SPLIT, "conflict", seed, None)
        assert isinstance(episode, InstructedEpisode) and episode.lure is not None
        mine, other = score(episode, episode.target), score(episode, episode.lure)
        expected += mine > other or (mine == other and episode.target < episode.lure)
    assert dominance(majority).fdr == Share(expected, 200) and 40 < expected < 160


def test_what_was_done_is_told_apart_from_what_it_was_done_to() -> None:
    split, parts = "instruction/verb_color", ("seen",)
    right = acted(split, parts, 60, lambda episode, rng: episode.target)
    wrong_object = acted(
        split, parts, 60, lambda episode, rng: 1 - episode.target if len(episode.objects) == 2 else None
    )
    pushes = acted(split, parts, 60, lambda episode, rng: episode.target, does="push")
    for episodes, names in ((right, "right"), (wrong_object, "other_object"), (pushes, "other_verb")):
        found = summarize(of(episodes, split=split)).doing["seen"]
        asked = sum(e.episode["named"]["verb"] == "push" for e in episodes)
        wanted = {"right": 0, "other_object": 0, "other_verb": 0, names: 60}
        wanted |= {"right": asked, "other_verb": 60 - asked} if episodes is pushes else {}
        assert {name: getattr(found, name) for name in wanted} == {n: Share(c, 60) for n, c in wanted.items()}
    table = summarize(of(pushes, split=split)).doing["seen"].table
    assert all(set(row) == {"push"} for row in table.values()) and len(table) > 3
    assert sum(to_target for row in table.values() for to_target, _ in row.values()) == 60


def test_a_pick_that_switches_with_the_sentence_is_counted_and_a_deaf_policy_never_switches() -> None:
    def listened(chooses, other) -> Share:
        plain = acted(SPLIT, ("seen",), 60, chooses)
        summary = summarize(of([*plain, *acted(SPLIT, ("seen",), 60, other, "other_instruction")]))
        change = summary.change("other_instruction", "seen")
        assert change is not None
        told = {reading.question: reading.answer for reading in readings(summary)}
        assert told["Does it listen?"] == ("yes" if change.switched.count else "no")
        return change.switched

    target = lambda episode, rng: episode.target  # noqa: E731
    assert listened(target, lambda episode, rng: 1 - episode.target) == Share(60, 60)
    assert listened(target, target) == Share(0, 60)
    sometimes = lambda episode, rng: None if episode.seed % 3 else 1 - episode.target  # noqa: E731
    assert listened(target, sometimes) == Share(20, 20)  # only where something was picked both ways


def test_where_the_other_sentence_is_the_same_one_nothing_is_said_of_listening(tmp_path: Path) -> None:
    """A policy that follows its sentence: where both sentences are the same, it does the same, and listens."""

    def told(episode: InstructedEpisode, rng: random.Random) -> int:
        return episode.target if other_sentence(episode) == episode.instruction else 1 - episode.target

    split, target = "instruction/verb_color", lambda episode, rng: episode.target
    parts = ("seen", "single_a", "single_b")
    summary = summarize(
        of([*acted(split, parts, 40, target), *acted(split, parts, 40, told, "other_instruction")], split=split)
    )
    assert {c.part: c.switched for c in summary.changes} == {
        "seen": Share(40, 40),
        "single_b": Share(40, 40),
        "both": Share(80, 80),
    }
    alone = [*acted(split, ["single_a"], 40, target), *acted(split, ["single_a"], 40, told, "other_instruction")]
    summary = summarize(of(alone, split=split))
    assert summary.changes == () and summary.of("single_a", "other_instruction").success == Share(40, 40)
    (listened,) = [found for found in readings(summary) if found.question == "Does it listen?"]
    assert listened.answer == "unknown" and "seen episodes under another instruction" in listened.text
    write_report(of(alone, split=split), tmp_path)
    assert "Does it listen? Cannot be said." in (tmp_path / "closed_loop.md").read_text()


def test_repetitions_are_counted_apart() -> None:
    episodes = acted("instruction/all", ("unseen",), 30, any_object)
    ends = [dataclasses.replace(e, success=e.seed - FIRST < 4 or 10 <= e.seed - FIRST < 13) for e in episodes]
    summary = summarize(repeated(ends))
    assert summary.runs == {"unseen": (Share(4, 10), Share(3, 10), Share(0, 10))}
    assert summary.cues is None and summary.dominance is None
    assert "unseen, each repetition: 40 % (4/10" in "\n".join(in_short(summary))


def repeated(episodes):
    """Three repetitions of ten episodes of all factors."""
    made = of(episodes, split="instruction/all", seed=40, runs=3)
    return dataclasses.replace(made, info={**made.info, "episodes": 10})


# -- scenes and sentences ----------------------------------------------------------------------------------------------


def physical(value: str) -> str:
    """What an object is of which the word is said."""
    return next((kind for kind in ("small", "large") if value in SIZES[kind]), value)


def says(value: str, factor: str, body) -> bool:
    return getattr(body, factor) == physical(value)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("part", ["single_a", "single_b"])
def test_in_single_parts_one_factor_alone_tells(split: str, part: str) -> None:
    a, b = INSTRUCTION.cues(split)
    telling, silent = (a, b) if part == "single_a" else (b, a)
    if part not in INSTRUCTION.playable(split, None):
        with pytest.raises(ToolkitError, match="no scene in which size alone tells"):
            INSTRUCTION.sample(split, part, FIRST, None)
        assert (split, part) == ("instruction/verb_size", "single_b")
        return
    paired = {(verb, physical(value)) for verb, value in combinations(split)[0]} if a == "verb" else set()
    for seed in range(FIRST, FIRST + 100):
        episode = INSTRUCTION.sample(split, part, seed, None)
        bodies = [body for body in episode.objects if body.size != "medium" or "size" not in (a, b)]
        target, other = episode.objects[episode.target], next(x for x in bodies if x != episode.objects[episode.target])
        assert episode.lure is None and len(bodies) == 2
        if telling == "verb":
            points = [(episode.verb, getattr(body, silent)) in paired for body in (target, other)]
            assert points == [True, False] and silent not in episode.named
            continue
        assert says(episode.named[telling], telling, target) and not says(episode.named[telling], telling, other)
        if silent == "verb":
            assert all((episode.verb, getattr(body, telling)) in paired for body in (target, other))
        elif silent == "spatial":
            assert "spatial" not in episode.named
        else:
            assert getattr(target, silent) == getattr(other, silent)
        assert all(getattr(target, f) == getattr(other, f) for f in ("color", "object", "size") if f != telling)


@pytest.mark.parametrize(
    ("split", "part"),
    [(s, p) for s in INSTRUCTION.splits for p in INSTRUCTION.playable(s, None) if p in ("seen", "conflict")],
)
def test_the_other_sentence_names_the_other_object(split: str, part: str) -> None:
    for seed in range(FIRST, FIRST + 60):
        episode = INSTRUCTION.sample(split, part, seed, None)
        said, factors = other_sentence(episode), [f for f in episode.named if f not in ("verb", "size")]
        others = [x for i, x in enumerate(episode.objects) if i != episode.target and x.size != "medium"]
        if not others:
            assert said == episode.instruction
            continue
        target, other = episode.objects[episode.target], others[0]
        first = target if part == "conflict" and next(iter(episode.named)) != "verb" else other
        words = {"behind": "back"}
        for number, factor in enumerate(factors):
            second = part == "conflict" and factor == list(episode.named)[-1]
            body = target if second else other
            assert words.get(getattr(body, factor), getattr(body, factor)) in said.rstrip(".").split(), (said, number)
        assert said.split()[0] == episode.instruction.split()[0] and first in episode.objects
        if "size" in episode.named and target.size != other.size:
            word = episode.named["size"]
            assert {**OTHER_SIZES, **{v: k for k, v in OTHER_SIZES.items()}}[word] in said.split()


# -- what is written ---------------------------------------------------------------------------------------------------


def mixed(split: str = SPLIT, count: int = 40):
    episodes = acted(split, INSTRUCTION.playable(split, None), count, follows(0))
    return of([*episodes, *acted(split, ("seen",), count, any_object, "other_instruction")], split=split)


def test_the_page_the_text_and_the_numbers_hold_the_same(tmp_path: Path) -> None:
    made = mixed("instruction/verb_color")
    write_report(made, tmp_path)
    assert read_evaluation(tmp_path / "closed_loop.json") == made
    told = json.loads((tmp_path / "closed_loop.json").read_text())["summary"]
    assert told["dominance"]["fdr"]["count"] == 40 and told["doing"]["seen"]["table"]["lift"]["lift"][1] == 0
    page, text = Page(tmp_path / "closed_loop.html"), (tmp_path / "closed_loop.md").read_text()
    for number in ("FDR of verb", "100 % (40/40", "Each episode has its own instruction"):
        assert number in text and number.split(" (")[0] in page.text
    assert "What was done to what" in page.text and "Which values win" in page.text and page.loaded == []
    logged, shown = numbers(summarize(made)), tables(made, summarize(made))
    assert logged["closed_loop/fdr"] == 1.0 and logged["closed_loop/alone/verb_of"] == 40
    assert logged["closed_loop/seen/did_right"] == 1.0 and 0 < logged["closed_loop/other_instruction/seen/switched"] < 1
    assert {row[0] for row in shown["values"][1]} == {"verb", "color"} and shown["done"][1]


@pytest.mark.parametrize(
    "change, named",
    [
        ("first['did'] = 'throw'", "did is 'throw'"),
        ("first['episode']['named']['color'] = 'mauve'", "whose factors are unknown"),
        ("first['picked'] = 'lure'", "a lure was picked in seen"),
        ("first['part'] = 'train_conflict'", "lure None"),
        ("del first['episode']['named']", "scene is incomplete"),
    ],
)
def test_damaged_results_of_the_suite_are_refused_by_name(change: str, named: str, tmp_path: Path) -> None:
    write_report(mixed(count=3), tmp_path)
    path = tmp_path / "closed_loop.json"
    data = json.loads(path.read_text())
    exec(change, {"first": data["episodes"][0]})
    path.write_text(json.dumps(data))
    with pytest.raises(ToolkitError, match=named):
        read_evaluation(path)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    for split in (SPLIT, "instruction/verb_size"):
        for name, factor in (("closed_loop", 0), ("later", 1)):
            episodes = acted(split, INSTRUCTION.playable(split, None), 20, follows(factor))
            write_report(of(episodes, split=split), folder / split / name)
    three = [
        dataclasses.replace(e, success=e.seed % 3 == 0) for e in acted("instruction/all", ("unseen",), 30, any_object)
    ]
    write_report(repeated(three), folder / "instruction/all/closed_loop")
    write_report(evaluation(played({HELD: 27, WRONG: 3, NONE: 2})), folder / "color_object/closed_loop")
    return folder


def test_both_suites_are_compared_in_a_matrix_and_a_graph_each(reports: Path) -> None:
    main(compose("compare", f"reports_dir={reports}", f"out={reports}/compare.html"))
    entries = compare(reports).entries
    cells = matrix(INSTRUCTION, entries)
    assert [entry.name for entry in cells["color"]["object"] or []] == [f"{SPLIT}/closed_loop", f"{SPLIT}/later"]
    assert cells["object"]["color"] is None and cells["verb"]["color"] == []
    first, second = graphs(INSTRUCTION, entries)
    assert (first.name, second.name) == ("closed_loop, random_f12", "later, random_f12")
    assert [edge.tone for edge in first.edges] == ["target"] * 2 and [edge.tone for edge in second.edges] == [
        "lure"
    ] * 2
    assert {node[0] for node in first.nodes} == {"verb", "color", "object", "size"}
    assert all(edge.label == "100 %" and "color against object" in first.edges[0].title for edge in first.edges)
    (plate,) = graphs(PLATE, entries)
    assert plate.edges[0].label == "90 %"
    page = Page(reports / "compare.html")
    assert "The experiments of the instruction suite" in page.text and "The twelve splits" in page.text
    told = json.loads((reports / "compare.json").read_text())["evaluations"]
    assert next(e for e in told if e["name"] == f"{SPLIT}/later")["dominance"]["fdr"]["count"] == 0
    assert next(e for e in told if "all" in e["name"])["runs"]["unseen"][2]["n"] == 10


def test_splits_evaluated_into_the_usual_folders_are_one_kind() -> None:
    results = []
    for split, factor in ((SPLIT, 0), ("instruction/verb_size", 1)):
        played = of(acted(split, INSTRUCTION.playable(split, None), 20, follows(factor)), split=split)
        results += [Result(name, played, summarize(played)) for name in (split, f"{split}/guided")]
    usual, guided = by_variant(results).values()
    assert [*usual] == [*guided] == [("color", "object"), ("verb", "size")]
    assert [share.n for share in usual.values()] == [20, 20]


def test_a_papers_files_hold_the_numbers_of_the_reports(reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.html"
    main(compose("compare", f"reports_dir={reports}", f"out={out}", "paper=true"))
    folder = tmp_path / "all_paper"
    names = {path.name for path in folder.iterdir()}
    assert {f"{name}.{kind}" for name in ("success", "dominance", "verbs") for kind in ("csv", "md", "tex")} <= names
    variants = ("matrix_instruction_1_closed_loop-random_f12", "matrix_instruction_2_later-random_f12")
    drawn = ("success", "dominance", "matrix_plate", *variants)
    assert {f"{n}.{k}" for n in drawn for k in ("svg", "pdf")} == {n for n in names if n.endswith((".svg", ".pdf"))}
    first, second = ((folder / f"{name}.svg").read_text() for name in variants)
    assert "20/20" in first and "0/20" in second and "20/40" not in first + second
    rows = list(csv.DictReader((folder / "dominance.csv").open()))
    (row,) = [r for r in rows if (r["split"], r["FDR of a"]) == (SPLIT, "0.0")]
    assert (row["FDR of a n"], row["b alone"], row["neither count"]) == ("20", "1.0", "0")
    assert float(row["FDR of a high"]) == pytest.approx(Share(0, 20).high)
    success = [r for r in csv.DictReader((folder / "repetitions.csv").open())]
    assert [r["seed"] for r in success] == ["40", "41", "42"]
    told = (folder / "methods.md").read_text()
    for text in (
        "Plate suite.",
        "Instruction suite.",
        "lifted 0.05",
        "noise from seed 40 to 42",
        "Wilson",
        "seeds 1000000 to",
    ):
        assert text in told
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    main(compose("compare", f"reports_dir={reports}", f"out={out}", "paper=true"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (folder / "success.pdf").read_bytes().startswith(b"%PDF") and b"<svg" in (
        folder / "success.svg"
    ).read_bytes()


def test_a_papers_folder_takes_nobodys_place(reports: Path, tmp_path: Path) -> None:
    (tmp_path / "all_paper").mkdir()
    (tmp_path / "all_paper/thesis.tex").write_text("mine")
    with pytest.raises(ToolkitError, match="all_paper"):
        main(compose("compare", f"reports_dir={reports}", f"out={tmp_path}/all.html", "paper=true"))
    assert (tmp_path / "all_paper/thesis.tex").read_text() == "mine"


def test_names_of_people_stay_names_in_latex_and_markdown() -> None:
    made = evaluation(played({HELD: 12}), policy=r"my_run \input{x} 50% $a$ | b")
    result = Result("a", made, summarize(made))
    table = next(paper_tables([result]))
    assert r"my\_run \textbackslash{}input\{x\} 50\% \$a\$ | b" in as_latex(table)
    assert as_markdown(table).splitlines()[-1].count("|") == len(table.head) + 1
    assert next(csv.reader(as_csv(table).splitlines()[1:]))[1] == r"my_run \input{x} 50% $a$ | b"
    assert escaped("~^#&") == r"\textasciitilde{}\textasciicircum{}\#\&" and list(methods([result]))


# -- the configuration -------------------------------------------------------------------------------------------------


def test_the_published_protocol_sets_its_values_and_refuses_others() -> None:
    pairwise = compose("evaluate", "mode=closed_loop", f"split={SPLIT}", "protocol=published")
    values = pairwise.chosen.protocol_values
    assert (values["episodes"], values["seed"], values["parts"]) == (200, 42, ["seen", "conflict"])
    said = refusal("evaluate", "mode=closed_loop", f"split={SPLIT}", "protocol=published", "episodes=10")
    assert "protocol=published sets episodes=200" in said
    assert "is none of them" in refusal("evaluate", "mode=closed_loop", "protocol=published")
    said = refusal("evaluate", "mode=closed_loop", "split=instruction/all", "protocol=published", "policy=replay")
    assert "protocol=published is of episodes that were never recorded; policy=replay plays" in said
    chosen = dataclasses.replace(pairwise.chosen, split=dataclasses.replace(pairwise.split, name="instruction/all"))
    full = chosen.protocol_values
    assert (full["episodes"], full["runs"], full["seed"], full["max_steps"]) == (200, 3, 40, 500)
    assert (full["n_action_steps"], full["no_distractor_prob"]) == (5, 0.7)
