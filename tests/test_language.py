import json
import shutil

import numpy as np
import pytest
from golden_files import batch_size, checkpoint_of, golden_path, infer_files, load

from finetune.create_base import write_small_tokenizer
from gr00t.data.processor_files import IMAGE_TOKEN, VlmTokenizer, formalize
from gr00t.errors import ToolkitError
from simulation.scenes.instruction_suite import FACTORS

TINY = "Qwen/Qwen3-VL-tiny"


@pytest.fixture(scope="module")
def tokenizer() -> VlmTokenizer:
    return VlmTokenizer(golden_path(TINY))


@pytest.mark.parametrize("path", infer_files(), ids=lambda p: p.stem)
def test_text_ids_and_masks_are_the_originals(tokenizer, path):
    data = load(path)
    kwargs = json.loads((checkpoint_of(path) / "processor_config.json").read_text())["processor_kwargs"]
    clean = formalize if kwargs["formalize_language"] else str
    count = batch_size(data)
    images = [len(data[f"img::{b}"]) for b in range(count)]
    chats = [tokenizer.chat_text(clean(str(data[f"raw::{b}::language"])), images[b]) for b in range(count)]
    assert chats == [str(data[f"text::{b}"]) for b in range(count)]
    ids, mask = tokenizer.encode(chats, [[64] * n for n in images])
    assert ids.dtype == mask.dtype == np.int64
    assert np.array_equal(ids, data["in::input_ids"])
    assert np.array_equal(mask, data["in::attention_mask"])


def test_punctuation_and_capitals_go_but_blanks_stay():
    assert formalize("Pick up the color-matching object, please!") == "pick up the colormatching object please"
    assert formalize("a  &  b_c\tÉ") == "a    b_c\té"


def test_padding_is_on_the_left_and_images_take_their_own_number_of_tokens(tokenizer):
    chats = [tokenizer.chat_text("open the drawer", 1), tokenizer.chat_text("open the drawer", 2)]
    ids, mask = tokenizer.encode(chats, [[64], [64, 80]])
    assert (ids == tokenizer.image_token_id).sum(axis=1).tolist() == [64, 144]
    assert mask[0, 0] == 0 and mask[0, -1] == 1 and mask[1].all()


def test_saved_files_give_the_same_tokenizer_without_the_source(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"} <= {
        p.name for p in tmp_path.iterdir()
    }
    again = VlmTokenizer(tmp_path)
    chat = tokenizer.chat_text("open the drawer", 2)
    assert again.chat_text("open the drawer", 2) == chat
    assert np.array_equal(again.encode([chat], [[4, 4]])[0], tokenizer.encode([chat], [[4, 4]])[0])
    assert again.limits == tokenizer.limits


def test_saved_files_do_not_depend_on_what_was_encoded_before(tmp_path):
    tokenizer = VlmTokenizer(golden_path(TINY))
    tokenizer.save(tmp_path / "fresh")
    chat = tokenizer.chat_text("open the drawer", 0)
    settings = {"longest": {"padding": True}, "fixed": {"padding": "max_length", "max_length": 40}}
    for name, chosen in {**settings, "cut": {"truncation": True, "max_length": 2}}.items():
        tokenizer._tokenizer([chat], **chosen)
        tokenizer.save(tmp_path / name)
        for path in (tmp_path / "fresh").iterdir():
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes(), path.name
    saved = json.loads((tmp_path / "fixed" / "tokenizer.json").read_text())
    assert saved["padding"] is None and saved["truncation"] is None


def test_an_instruction_with_control_tokens_is_refused(tokenizer):
    with pytest.raises(ToolkitError, match="control token"):
        tokenizer.chat_text(f"look {IMAGE_TOKEN}", 1)


def test_a_folder_of_another_vlm_is_refused(tmp_path):
    folder = shutil.copytree(golden_path(TINY), tmp_path / "vlm", ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.48, 0.46, 0.41]}))
    with pytest.raises(ToolkitError, match="not Qwen3-VL's image settings"):
        VlmTokenizer(folder)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ToolkitError, match=r"tokenizer\.json"):
        VlmTokenizer(tmp_path)


def test_a_word_of_the_instruction_suite_is_one_token_of_a_small_model_and_other_text_is_cut_up_as_before(tmp_path):
    special = write_small_tokenizer(tmp_path)
    vlm = VlmTokenizer(tmp_path)._tokenizer
    words = [word for name, values in FACTORS.items() for word in values if name not in ("verb", "spatial")]
    assert all(
        len(vlm.tokenize(f"lift the {word}")) == 3 for word in [*words, "left", "right", "middle", "front", "back"]
    )
    assert all(len(vlm.tokenize(verb)) == 1 for verb in FACTORS["verb"])
    assert vlm.encode("pick up the color-matching object") == [304, 281, 266, 329, 20, 284, 274]
    assert vlm.encode("open the drawer") == [86, 305, 266, 294] and vlm.decode(vlm.encode("red cubes")) == "red cubes"
    assert len(vlm) <= 448 and set(special.values()) == set(range(len(special)))
