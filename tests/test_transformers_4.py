"""processor/vlm is read by transformers 4.57, on which the original runs, as transformers 5 reads it.

The last tests run where the environment variable GROOT_TRANSFORMERS_4_PYTHON names a Python that has transformers 4.57
(pip install "transformers>=4.57,<5" numpy jinja2, as docs/parity.md says; torch is not needed).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from config_calls import compose
from golden_files import golden_path

from finetune.create_base import SPECIAL_TOKENS, architecture_json
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.processor_files import VlmTokenizer
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from gr00t.model.architecture import backbone_json, parse_backbone
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

# composed and decomposed letters: whoever normalises, or splits otherwise, gives other ids
TEXTS = ["Pick up 12 cubes,  don't drop one!\n\nCaf\u00e9 cafe\u0301 \u7269\u4f53", "open the drawer"]
PYTHON = os.environ.get("GROOT_TRANSFORMERS_4_PYTHON")
needs_transformers_4 = pytest.mark.skipif(
    not PYTHON, reason="GROOT_TRANSFORMERS_4_PYTHON names no Python that has transformers 4.57"
)
READER = """
import json, sys
import transformers
from transformers import AutoConfig, AutoTokenizer, Qwen2TokenizerFast

folder, texts = sys.argv[1], json.loads(sys.argv[2])
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "open the drawer"}]}]
found = {"version": transformers.__version__}
for kind in (AutoTokenizer, Qwen2TokenizerFast):  # the second is what the original's Qwen3VLProcessor makes
    tokenizer = kind.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side = "left"
    found[kind.__name__] = {
        "encoded": dict(tokenizer(texts, padding=True)),
        "special": sorted(tokenizer.all_special_tokens),
        "named": [tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token],
        "chat": tokenizer.apply_chat_template(chat, tokenize=False),
    }
config = AutoConfig.from_pretrained(folder)
found["config"] = {
    "class": type(config).__name__,
    **{part: getattr(config, part).to_dict() for part in ("text_config", "vision_config")},
    **{name: value for name, value in config.to_dict().items() if name.endswith("token_id") or name.startswith("tie")},
}
print(json.dumps(found))
"""


def saved_golden(folder: Path) -> Path:
    """The golden checkpoint, whose tokenizer is Qwen's own, saved by us."""
    Gr00tN1d7.from_pretrained(golden_path("tiny_h40")).save_pretrained(folder)
    Gr00tN1d7Processor.from_pretrained(golden_path("tiny_h40")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["a base of ours", "the golden checkpoint"])
def vlm(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """processor/vlm of a checkpoint that this project wrote."""
    ours = request.param == "a base of ours"
    return (tiny_base if ours else saved_golden(tmp_path_factory.mktemp("golden"))) / "processor" / "vlm"


def ids(folder: Path) -> tuple[list[Any], list[Any]]:
    found, mask = VlmTokenizer(folder).encode(TEXTS, [[], []])
    return found.tolist(), mask.tolist()


# what the files hold


def test_the_tokenizer_is_named_by_a_class_and_keys_of_both_versions(vlm: Path) -> None:
    settings = read_json(vlm / "tokenizer_config.json")
    assert settings["tokenizer_class"] in ("PreTrainedTokenizerFast", "Qwen2Tokenizer")
    assert "extra_special_tokens" not in settings
    assert set(settings["additional_special_tokens"]) >= set(SPECIAL_TOKENS[1:])
    if settings["tokenizer_class"] == "PreTrainedTokenizerFast":
        assert settings["model_input_names"] == ["input_ids", "attention_mask"]


def test_rope_is_written_under_the_names_of_both_versions(vlm: Path) -> None:
    text = read_json(vlm / "config.json")["text_config"]
    assert text["rope_scaling"]["rope_type"] == "default" and text["rope_scaling"]["mrope_section"] == [4, 2, 2]
    assert {"rope_theta": text["rope_theta"], **text["rope_scaling"]} == text["rope_parameters"]
    assert text["rope_theta"] == 5e6 and "rope_theta" not in text["rope_scaling"]


@pytest.mark.parametrize("model", ["tiny", "small", "scratch", "released"])
def test_every_architecture_is_read_back_as_it_was_written(model: str) -> None:
    shape = compose("create_base", f"model={model}").model.architecture
    backbone = parse_backbone(architecture_json(shape, {token: i for i, token in enumerate(SPECIAL_TOKENS)}), model)
    written = backbone_json(backbone)
    assert written["text_config"]["rope_scaling"] == {
        "mrope_interleaved": True,
        "mrope_section": shape.backbone.text.mrope_section if shape.backbone else [24, 20, 20],
        "rope_type": "default",
    }
    assert parse_backbone(json.loads(json.dumps(written)), model).to_dict() == backbone.to_dict()


def test_saving_again_changes_nothing(vlm: Path, tmp_path: Path) -> None:
    VlmTokenizer(vlm).save(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (vlm / path.name).read_bytes(), path.name


def test_transformers_5_reads_the_saved_tokenizer_as_its_source(tmp_path: Path) -> None:
    source = golden_path("Qwen/Qwen3-VL-tiny")
    VlmTokenizer(source).save(tmp_path)
    before, after = VlmTokenizer(source), VlmTokenizer(tmp_path)
    assert ids(tmp_path) == ids(source)
    assert type(after._tokenizer) is type(before._tokenizer)
    assert after._tokenizer.all_special_tokens == before._tokenizer.all_special_tokens
    assert after.chat_text("open it", 2) == before.chat_text("open it", 2)


def test_files_of_earlier_versions_are_still_read_alike(vlm: Path, tmp_path: Path) -> None:
    for path in vlm.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = read_json(vlm / "tokenizer_config.json")
    settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    if settings.pop("model_input_names", None):
        settings["tokenizer_class"] = "TokenizersBackend"
    write_json(tmp_path / "tokenizer_config.json", settings)
    config = read_json(vlm / "config.json")
    new = parse_backbone(read_json(vlm / "config.json"), "new").to_dict()
    del config["text_config"]["rope_scaling"], config["text_config"]["rope_theta"]
    assert parse_backbone(config, "earlier").to_dict() == new
    assert ids(tmp_path) == ids(vlm)
    assert VlmTokenizer(tmp_path)._tokenizer.all_special_tokens == VlmTokenizer(vlm)._tokenizer.all_special_tokens


# what transformers 4.57 makes of them


@pytest.fixture(scope="module")
def read_by_4(vlm: Path) -> dict[str, Any]:
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, "-c", READER, str(vlm), json.dumps(TEXTS)],
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith("4.57"), f"{PYTHON} has transformers {found['version']}, needed is 4.57"
    return found


@needs_transformers_4
@pytest.mark.parametrize("kind", ["AutoTokenizer", "Qwen2TokenizerFast"])
def test_transformers_4_gives_the_same_ids_masks_and_chat(vlm: Path, read_by_4: dict[str, Any], kind: str) -> None:
    found, ours = read_by_4[kind], VlmTokenizer(vlm)
    input_ids, mask = ids(vlm)
    assert found["encoded"] == {"input_ids": input_ids, "attention_mask": mask}
    assert found["chat"] == ours.chat_text("open the drawer", 1)
    tokenizer = ours._tokenizer
    assert found["special"] == sorted(tokenizer.all_special_tokens)
    assert found["named"] == [tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token]


@needs_transformers_4
def test_transformers_4_reads_the_same_architecture(vlm: Path, read_by_4: dict[str, Any]) -> None:
    found, ours = read_by_4["config"], parse_backbone(read_json(vlm / "config.json"), "ours").to_dict()
    assert found["class"] == "Qwen3VLConfig"
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "tie_word_embeddings"):
        assert found[name] == ours[name]
    rope = ours["text_config"]["rope_parameters"]
    text = found["text_config"]
    assert {"rope_theta": text["rope_theta"], **text["rope_scaling"]} == rope
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    for name in (*shape, "head_dim", "vocab_size", "rms_norm_eps", "hidden_act", "max_position_embeddings"):
        assert text[name] == ours["text_config"][name], name
    for name in ("depth", "hidden_size", "num_heads", "out_hidden_size", "deepstack_visual_indexes", "patch_size"):
        assert found["vision_config"][name] == ours["vision_config"][name], name
