"""Keys and passwords: every kind is found, none is repeated, and what merely looks similar passes."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from config_calls import refusal
from fake_keys import HUGGING_FACE, INNOCENT, KEYS, NAMED, WANDB

from toolkit.configuration import load
from toolkit.credentials import secrets_in

SUFFIXES = (".py", ".yaml", ".json", ".md", ".sh", ".txt")


@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key_is_found_in_every_kind_of_file(kind: str) -> None:
    for suffix in SUFFIXES:
        for text in (f"first\n{KEYS[kind]}\n", f'x = 1\n"note": "{KEYS[kind]}"', f'1\n"a line\\n{KEYS[kind]}\\n"'):
            assert [line for line, _ in secrets_in(text, f"x{suffix}")] == [2], (suffix, text)
    assert list(secrets_in(KEYS[kind], "tokenizer.json", named=False))


@pytest.mark.parametrize("kind", NAMED)
def test_a_password_is_found_by_the_name_before_it(kind: str) -> None:
    for suffix in SUFFIXES:
        assert list(secrets_in(NAMED[kind], f"x{suffix}")), suffix


def test_a_password_without_quotes_is_found_where_values_have_none() -> None:
    assert list(secrets_in("password: hunter2", "x.yaml")) and not list(secrets_in("password: asked for", "x.py"))


@pytest.mark.parametrize("line", INNOCENT)
def test_what_merely_looks_similar_passes(line: str) -> None:
    assert not [suffix for suffix in SUFFIXES if list(secrets_in(line, f"x{suffix}"))]


def test_a_line_may_be_marked_as_an_example() -> None:
    assert not list(secrets_in(f"{HUGGING_FACE}  # pragma: allowlist secret", "x.py"))


@pytest.mark.parametrize("indent", [None, 0])
def test_a_large_vocabulary_takes_seconds_and_a_key_in_it_is_found(indent: int | None) -> None:
    letters = random.Random(0)
    words = {"".join(letters.choices("abcdeĠ0", k=letters.randrange(2, 18))): index for index in range(40_000)}
    text = json.dumps({**words, HUGGING_FACE: 1}, indent=indent, ensure_ascii=False)
    begun = time.process_time()
    assert [kind for _, kind in secrets_in(text, "tokenizer.json", named=False)] == ["a Hugging Face token"]
    assert time.process_time() - begun < 10


# -- typed into the configuration --------------------------------------------------------------------------------------

PLACES = {
    "finetune": (
        "tracking.tags=[a,{}]",
        "tracking.run_name={}",
        "tracking.group={}",
        "tracking.project={}",
        "cluster.environment=['NOTE={}']",
        "cluster.setup=['login {}']",
        "cluster.sbatch=['--comment={}']",
        "cluster.account={}",
        "split.instruction='pick up {}'",
        "run_dir=runs/{}",
        "output_dir=out/{}",
        "dataset.mixture=['{}:1']",
        "model.base={}",
        "train.seed={}",
        "train.sed={}",
        "+note={}",
    ),
    "release": ("licence={}", "repo_id={}", "base_model=me/{}", "datasets=[{}]", "out=release/{}"),
    "dashboard": ("group={}", "project={}", "entity={}"),
    "evaluate": ("report_dir={}", "server={}"),
    "prefetch": ("base={}", "revision={}"),
}


@pytest.mark.parametrize("script, override", [(script, override) for script in PLACES for override in PLACES[script]])
def test_a_key_typed_anywhere_is_refused_and_not_repeated(script: str, override: str) -> None:
    message = refusal(script, "local=none", override.format(HUGGING_FACE))
    assert override.partition("=")[0] in message and "a Hugging Face token" in message and HUGGING_FACE not in message
    assert "wandb login" in message and "\n" not in message


@pytest.mark.parametrize("kind", [kind for kind in KEYS if kind not in ("private key", "rsa key")])
def test_every_kind_of_key_is_refused_in_a_tag(kind: str) -> None:
    message = refusal("finetune", "local=none", f"tracking.tags=['{KEYS[kind]}']")
    assert "tracking.tags holds what looks like" in message and KEYS[kind] not in message


def test_keys_of_files_and_variables_are_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "plain words")
    assert "tracking.group holds the value of MY_TOKEN" in refusal(
        "finetune", "local=none", "tracking.group=plain words"
    )
    monkeypatch.setenv("MY_TOKEN", "plain words\n")  # as a file gives it, whose last line break is no part of it
    assert "tracking.group holds the value of MY_TOKEN" in refusal(
        "finetune", "local=none", "tracking.group=plain words"
    )
    monkeypatch.setenv("NOTE", WANDB)
    assert "tracking.group holds what looks like a wandb key" in refusal(
        "finetune", "local=none", "tracking.group=${oc.env:NOTE}"
    )


def test_revisions_snapshots_and_long_names_are_no_keys() -> None:
    revision = "147518f3ef524490e3767ba515169b957f6d07ce"
    named = ["tracking.run_name=color_object-learning_rate_1e-4-seed_1", "tracking.tags=[147518f3ef52]"]
    cached = f"model.base=/scratch/huggingface/hub/models--nvidia--GR00T-N1.7-3B/snapshots/{revision}"
    setup = "cluster.setup=['export HF_TOKEN=$(cat ~/.token)']"
    assert load("finetune", ["local=none", cached, setup, *named], check_here=False).model.base.endswith(revision)
    assert load("prefetch", ["base=a/b", f"revision={revision}"], check_here=False).revision == revision
