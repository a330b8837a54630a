"""What parsing a checkpoint or a run folder can raise becomes one line that names the file, before memory is taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.report import read_series
from finetune.training import BEST, measurement, read_best
from finetune.training.checkpointing import Checkpoint
from gr00t.data.processor_files import VlmTokenizer, read_processor_files
from gr00t.errors import ToolkitError
from gr00t.file_reading import parsing
from gr00t.model.architecture import resolve_backbone
from gr00t.model.weight_files import read_config
from gr00t.server.server import check_size


@pytest.fixture
def small(tiny_base: Path, tmp_path: Path) -> Path:
    """A checkpoint without its weights."""
    return Path(shutil.copytree(tiny_base, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors")))


def edit(path: Path, *keys: str, value: Any) -> None:
    document = json.loads(path.read_text())
    holder = document
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    path.write_text(json.dumps(document))


def refused(read: Callable[[], object], *said: str) -> None:
    with pytest.raises(ToolkitError) as refusal:
        read()
    message = str(refusal.value)
    assert "\n" not in message and all(words in message for words in said), message


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("diffusion_model_cfg", "num_layers"), 2**64 - 1, "num_layers is 18446744073709551615"),
        (("max_num_embodiments",), 2**40, "max_num_embodiments is 1099511627776"),
        (("action_horizon",), 2**31, "action_horizon is 2147483648"),
        (("attend_text_every_n_blocks",), 0, "attend_text_every_n_blocks must be above 0"),
        (("noise_s",), float("nan"), "noise_s is nan"),
        (("hidden_size",), "128", "hidden_size: expected int, found '128'"),
        (("diffusion_model_cfg", "dropout"), [0.1], "diffusion_model_cfg.dropout: expected float"),
        (("diffusion_model_cfg",), [1], "makes no sense"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_it_is_built(
    small: Path, keys: tuple[str, ...], value: Any, said: str
) -> None:
    edit(small / "config.json", *keys, value=value)
    refused(lambda: read_config(small), str(small / "config.json"), said)


@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 10**9), ("intermediate_size", "{:d}"), ("vocab_size", 1e300)]
)
def test_a_backbone_that_cannot_be_is_refused(small: Path, key: str, value: Any) -> None:
    path = small / "processor/vlm/config.json"
    edit(path, "text_config", key, value=value)
    refused(lambda: resolve_backbone("Qwen/Qwen3-VL-tiny", small), str(path), key)


@pytest.mark.parametrize(
    ("name", "keys", "value", "said"),
    [
        ("processor_config.json", ("processor_kwargs", "max_state_dim"), "32", "max_state_dim: expected int"),
        ("processor_config.json", ("processor_kwargs", "max_action_dim"), 2**40, "max_action_dim is 1099511627776"),
        ("processor_config.json", ("processor_kwargs", "modality_configs"), {"x": {"video": 1}}, "makes no sense"),
        ("embodiment_id.json", ("libero_sim",), {}, "makes no sense"),
    ],
)
def test_processor_files_are_checked(small: Path, name: str, keys: tuple[str, ...], value: Any, said: str) -> None:
    edit(small / name, *keys, value=value)
    refused(lambda: read_processor_files(small), str(small / name), said)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b"{", "tokenizer.json: not valid JSON"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 3}}', "tokenizer.json makes no sense"),
        ("tokenizer_config.json", b"\xff\xfe\xff", "tokenizer_config.json"),
        ("chat_template.jinja", b"{% for", "chat_template.jinja makes no sense (TemplateSyntaxError"),
        ("chat_template.jinja", b"{{ 1 / 0 }}", "chat_template.jinja makes no sense (ZeroDivisionError"),
        ("chat_template.jinja", b"no image", "chat_template.jinja makes no sense"),
        ("chat_template.jinja", b"\xff\xff", "chat_template.jinja cannot be read"),
        (
            "preprocessor_config.json",
            b'{"min_pixels": 2147483648, "max_pixels": 4294967296}',
            "preprocessor_config.json: ",
        ),
    ],
)
def test_a_tokenizer_that_does_not_parse_is_named_by_file(small: Path, name: str, content: bytes, said: str) -> None:
    (small / "processor/vlm" / name).write_bytes(content)
    refused(lambda: VlmTokenizer(small / "processor/vlm"), str(small), said)


def test_lines_of_metrics_that_are_no_measurements_are_passed_over(tmp_path: Path) -> None:
    good = b'{"step": 2, "loss": 0.5, "grad_norm": NaN, "note": "x"}'
    bad = [
        b"\xff\xfe",
        b"[1]",
        b"3",
        b'{"step": "2"}',
        b'{"step": -1}',
        b'{"step": 1e400}',
        b"[" * 100_000,
        b'{"step": 3',
    ]
    assert [measurement(line) for line in bad] == [None] * len(bad)
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([bad[0], good, *bad]))
    curve = read_series(tmp_path / "metrics.jsonl", 10)["loss"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([2], [0.5])


def test_a_damaged_note_of_the_best_checkpoint_is_named(tmp_path: Path) -> None:
    for content in ({}, {"step": "x", "metric": 1, "name": ""}, {"step": 1, "metric": [], "name": ""}):
        (tmp_path / BEST).write_text(json.dumps(content))
        refused(lambda: read_best(tmp_path), str(tmp_path / BEST), "makes no sense")


@pytest.mark.parametrize("state", [{"best": {"stop": 1}}, {"best": {"step": "1"}}, {"meter": [1]}, {"identity": []}])
def test_a_trainers_state_of_another_form_is_named(tmp_path: Path, state: dict[str, Any]) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps(state))
    refused(lambda: Checkpoint.read(folder), str(folder / "state.json"))


def test_narrow_images_are_refused_before_they_are_padded() -> None:
    for shape in ((1, 1, 1, 4096, 3), (64, 1, 4096, 100, 3)):
        refused(lambda shape=shape: check_size({"x": [np.zeros(shape, np.uint8)]}, 64), "too narrow")  # type: ignore[misc]
    check_size(np.zeros((1, 1, 480, 1280, 3), np.uint8), 64)


class PanicException(BaseException):
    """As pyo3 raises it where a library in Rust panics."""


def test_what_parsing_raises_names_the_file_once(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for error in (KeyError("a"), RecursionError(), MemoryError(), PanicException("p"), ToolkitError("too large")):
        with pytest.raises(ToolkitError, match=str(path)), parsing(path):
            raise error
    with pytest.raises(ToolkitError) as own, parsing(path):
        raise ToolkitError(f"{path}: as it is")
    assert str(own.value) == f"{path}: as it is"
    with pytest.raises(KeyboardInterrupt), parsing(path):
        raise KeyboardInterrupt
