"""The policy: acts as the original does, and refuses what no robot should act on."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_files import batch_size, below, checkpoint_of, golden_path, infer_files, load, tag_of

from conflict_panda_config import MODALITY_CONFIG
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.schema import ActionConfig, ActionRepresentation, EmbodimentTag, ModalityConfig
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

TINY = golden_path("tiny_h40")
LANGUAGE = "annotation.human.task_description"


@pytest.fixture(scope="module")
def policy():
    return GR00TPolicy.from_pretrained(TINY, modality_config=MODALITY_CONFIG, torch_dtype=torch.float32)


def observation(batch=1, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (2, batch, 1, 48, 64, 3), dtype=np.uint8)
    return {
        "video.image": image[0],
        "video.wrist_image": image[1],
        "state.arm": rng.uniform(-1, 1, (batch, 1, 7)).astype(np.float32),
        "state.gripper": rng.uniform(0, 0.08, (batch, 1, 1)).astype(np.float32),
        LANGUAGE: ["pick up the color-matching object"] * batch,
    }


def nested(flat):
    found = {"video": {}, "state": {}, "language": {LANGUAGE: [[text] for text in flat[LANGUAGE]]}}
    for name, value in flat.items():
        modality, _, key = name.partition(".")
        if modality in ("video", "state"):
            found[modality][key] = value
    return found


def recorded_observation(data, policy):
    """The raw samples of a golden file as one batch."""
    values = {}
    for name in below(data, "raw::0::"):
        if name != "language":
            rows = [data[f"raw::{b}::{name}"] for b in range(batch_size(data))]
            values[name.replace("::", ".")] = np.stack(rows)
    texts = [str(data[f"raw::{b}::language"]) for b in range(batch_size(data))]
    return {**values, policy.modality_configs["language"].modality_keys[0]: texts}


def same(left, right, tolerance=0.0):
    return all(np.allclose(left[key], right[key], rtol=0, atol=tolerance) for key in {**left, **right})


# as the original


@pytest.mark.parametrize("path", infer_files(), ids=lambda path: path.stem)
def test_actions_equal_the_originals_for_a_batch_of_prompts_of_different_lengths(path):
    data = load(path)
    policy = GR00TPolicy.from_pretrained(checkpoint_of(path), None, tag_of(path), torch_dtype="float32")
    policy.model.action_head.padding_leaks = True
    actions = policy.get_action(recorded_observation(data, policy), seed=int(data["seed"]))
    expected = below(data, "decoded::")
    assert set(actions) == {f"action.{key}" for key in expected}
    for key, values in expected.items():
        assert actions[f"action.{key}"].dtype == np.float32
        assert np.abs(actions[f"action.{key}"] - values).max() < 1e-4 * max(1, np.abs(values).max()), key


@pytest.mark.parametrize(
    "path", [p for p in infer_files() if below(load(p), "policy_bf16::")], ids=lambda path: path.stem
)
def test_bf16_on_the_cpu_errs_no_more_than_the_originals_bf16(path):
    data = load(path)
    policy = GR00TPolicy.from_pretrained(checkpoint_of(path), None, tag_of(path), torch_dtype=torch.bfloat16)
    policy.model.action_head.padding_leaks = True
    actions = policy.get_action(recorded_observation(data, policy), seed=int(data["seed"]))
    errors, originals = [], []
    for key, exact in below(data, "decoded::").items():
        scale = max(np.abs(exact).max(), 1e-6)
        errors.append(np.abs(actions[f"action.{key}"] - exact).mean() / scale)
        originals.append(np.abs(data[f"policy_bf16::{key}"] - exact).mean() / scale)
    assert np.mean(errors) < 1.5 * np.mean(originals)


def test_it_is_used_exactly_as_the_readme_says():
    policy = GR00TPolicy.from_pretrained(
        str(TINY),
        modality_config=MODALITY_CONFIG,
        embodiment_tag=EmbodimentTag.NEW_EMBODIMENT,
        denoising_steps=4,
        torch_dtype=torch.bfloat16,
    )
    actions = policy.eval().to("cpu").get_action(observation())
    assert actions["action.arm"].shape == (1, 16, 7) and actions["action.gripper"].shape == (1, 16, 1)
    assert all(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in actions.values())


def test_it_stays_in_eval_mode_and_keeps_no_graph(policy):
    assert not any(module.training for module in policy.train().modules())
    assert policy(observation(), seed=1).keys() == {"action.arm", "action.gripper"}
    assert all(p.grad is None for p in policy.parameters())


def test_without_a_dtype_the_stored_one_is_kept(tmp_path):
    Gr00tN1d7.from_pretrained(TINY).save_pretrained(tmp_path, dtype="bfloat16")
    Gr00tN1d7Processor.from_pretrained(TINY).save_pretrained(tmp_path)
    assert {p.dtype for p in GR00TPolicy.from_pretrained(tmp_path).parameters()} == {torch.bfloat16}


# forms of an observation


def variants(flat):
    double = {k: v.astype(np.float64) if k.startswith("state.") else v for k, v in flat.items()}
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in flat.items()}
    return {
        "nested": nested(flat),
        "nested, language flat": {
            **{k: v for k, v in nested(flat).items() if k != "language"},
            LANGUAGE: flat[LANGUAGE],
        },
        "float64": double,
        "torch": tensors,
        "language as an array": {**flat, LANGUAGE: np.array(flat[LANGUAGE])},
        "language as a column": {**flat, LANGUAGE: np.array(flat[LANGUAGE], dtype=object)[:, None]},
        "language as tuples": {**flat, LANGUAGE: tuple((text,) for text in flat[LANGUAGE])},
    }


@pytest.mark.parametrize("form", variants(observation(2)))
def test_every_form_of_an_observation_gives_the_same_actions(policy, form):
    flat = observation(2)
    assert same(policy.get_action(variants(flat)[form], seed=3), policy.get_action(flat, seed=3))


def test_one_robot_may_say_its_instruction_as_plain_text(policy):
    flat = observation()
    plain = {**flat, LANGUAGE: flat[LANGUAGE][0]}
    assert same(policy.get_action(plain, seed=3), policy.get_action(flat, seed=3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_states_of_half_precision_are_read(policy, dtype):
    flat = observation()
    half = {k: torch.from_numpy(v).to(dtype) if k.startswith("state.") else v for k, v in flat.items()}
    assert same(policy.get_action(half, seed=3), policy.get_action(flat, seed=3), tolerance=0.1)


# noise and denoising steps


def test_a_seed_repeats_the_actions_and_another_changes_them(policy):
    first, again, other = (policy.get_action(observation(), seed=seed) for seed in (5, 5, 6))
    assert same(first, again) and not same(first, other)
    assert same(first, policy.get_action(observation(), generator=torch.Generator().manual_seed(5)))
    noise = torch.randn(1, *policy.noise_shape, generator=torch.Generator().manual_seed(5))
    assert same(first, policy.get_action(observation(), noise=noise))


def test_denoising_steps_come_from_the_call_the_policy_or_the_checkpoint(policy):
    ten = GR00TPolicy(policy.model, policy.processor, denoising_steps=10)
    assert policy.denoising_steps == policy.model.config.num_inference_timesteps
    assert same(ten.get_action(observation(), seed=5), policy.get_action(observation(), seed=5, denoising_steps=10))
    assert not same(ten.get_action(observation(), seed=5), policy.get_action(observation(), seed=5))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 1, "noise": torch.zeros(1, 40, 132)}, "one of seed, generator and noise"),
        ({"noise": torch.zeros(1, 16, 132)}, "(1, 40, 132)"),
        ({"seed": 2**64}, "more than 64 bits"),
        ({"denoising_steps": 0}, "at least 1"),
        ({"denoising_steps": 2.5}, "whole number"),
    ],
)
def test_impossible_options_are_refused(policy, options, said):
    with pytest.raises(ToolkitError) as refusal:
        policy.get_action(observation(), **options)
    assert said in str(refusal.value)


# what is refused


def changed(name, change, batch=1):
    values = observation(batch)
    values[name] = change(values[name])
    return values


def renamed(old, new):
    values = observation()
    values[new] = values.pop(old)
    return values


def with_nan(state):
    state[0, 0, 3] = np.nan
    return state


REFUSED = {
    "misspelt view": (
        lambda: renamed("video.wrist_image", "video.wrist_img"),
        ['"video.wrist_image"', "video.wrist_img"],
    ),
    "missing state": (lambda: {k: v for k, v in observation().items() if k != "state.arm"}, ['lacks "state.arm"']),
    "missing language": (lambda: {k: v for k, v in observation().items() if k != LANGUAGE}, [LANGUAGE]),
    "extra key": (lambda: {**observation(), "video.side": 0}, ["video.side", "does not read"]),
    "given twice": (lambda: {**nested(observation()), "state.arm": 0}, ["state.arm", "twice"]),
    "no dict": (lambda: [observation()], ["dict", "list"]),
    "one frame": (
        lambda: changed("video.image", lambda v: v[0, 0]),
        ["(B, 1, H, W, 3)", "(48, 64, 3)", "[None, None]"],
    ),
    "channels first": (lambda: changed("video.image", lambda v: np.moveaxis(v, -1, 2)), ["(1, 1, 3, 48, 64)", "last"]),
    "alpha": (lambda: changed("video.image", lambda v: np.concatenate([v, v[..., :1]], -1)), ["64, 4)", "alpha"]),
    "float image": (lambda: changed("video.image", lambda v: v / 255.0), ["uint8", "float64", "* 255"]),
    "integer image": (lambda: changed("video.image", lambda v: v.astype(np.int64)), ["uint8", "int64"]),
    "two frames": (
        lambda: changed("video.image", lambda v: np.repeat(v, 2, 1)),
        ["(B, 1, H, W, 3)", "delta indices [0]"],
    ),
    "no height": (lambda: changed("video.image", lambda v: v[:, :, :0]), ["(1, 1, 0, 64, 3)", "empty"]),
    "text for an image": (lambda: changed("video.image", lambda v: "front.png"), ["video.image", "numbers"]),
    "short state": (lambda: changed("state.arm", lambda v: v[..., :6]), ["(B, 1, 7)", "(1, 1, 6)", "statistics"]),
    "unbatched state": (lambda: changed("state.arm", lambda v: v[0, 0]), ["(B, 1, 7)", "(7,)", "[None, None]"]),
    "integer state": (lambda: changed("state.arm", lambda v: v.astype(int)), ["state.arm", "int64"]),
    "ragged state": (lambda: changed("state.arm", lambda v: [[[1.0], [1.0, 2.0]]]), ["state.arm", "regular"]),
    "nan": (lambda: changed("state.arm", with_nan), ["state.arm", "nan", "(0, 0, 3)"]),
    "overflow": (lambda: changed("state.arm", lambda v: v.astype(np.float64) * 1e300), ["state.arm", "finite float32"]),
    "batch sizes": (
        lambda: {**observation(2), "state.arm": observation(3)["state.arm"]},
        ["state.arm 3", "video.image 2"],
    ),
    "one text for two": (lambda: changed(LANGUAGE, lambda v: v[0], 2), ["batch sizes", f"{LANGUAGE} 1"]),
    "empty text": (lambda: changed(LANGUAGE, lambda v: [" ?! "]), [LANGUAGE, "empty"]),
    "no text": (lambda: changed(LANGUAGE, lambda v: [None]), [LANGUAGE, "str"]),
    "empty batch": (lambda: changed(LANGUAGE, lambda v: []), [LANGUAGE, "[]"]),
    "numbers for text": (lambda: changed(LANGUAGE, lambda v: np.zeros(9, np.uint8)), [LANGUAGE, "array of uint8"]),
    "two texts a sample": (lambda: changed(LANGUAGE, lambda v: [v * 2]), [LANGUAGE, "one instruction"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_observation_is_refused_with_what_was_expected_and_found(policy, case):
    make, said = REFUSED[case]
    with pytest.raises(ToolkitError) as refusal:
        policy.get_action(make(), seed=0)
    for words in said:
        assert words in str(refusal.value)


def swapped(config):
    return replace(config, modality_keys=config.modality_keys[::-1])


DISAGREEMENTS = {
    "horizon": ("action", lambda c: replace(c, delta_indices=list(range(8))), ["0..15 (16 steps)", "0..7 (8 steps)"]),
    "order of views": ("video", swapped, ["video.modality_keys", "['wrist_image', 'image']"]),
    "other state": ("state", lambda c: ModalityConfig([0], ["arm"]), ["state.modality_keys", "['arm']"]),
    "history": ("video", lambda c: replace(c, delta_indices=[-1, 0]), ["video.delta_indices", "[-1, 0]"]),
    "absolute arm": (
        "action",
        lambda c: replace(c, action_configs=[ActionConfig(ActionRepresentation.ABSOLUTE)] * 2),
        ["action.action_configs", "arm RELATIVE to arm", "arm ABSOLUTE"],
    ),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_a_modality_config_other_than_the_checkpoints_is_refused(policy, case):
    modality, change, said = DISAGREEMENTS[case]
    given = {**MODALITY_CONFIG, modality: change(MODALITY_CONFIG[modality])}
    with pytest.raises(ToolkitError) as refusal:
        GR00TPolicy.from_pretrained(TINY, modality_config=given)
    for words in said:
        assert words in str(refusal.value)


def test_two_spellings_of_one_modality_config_are_the_same(policy):
    spelt_out = copy.deepcopy(MODALITY_CONFIG)
    arm = ActionConfig(ActionRepresentation.RELATIVE, state_key="arm")
    spelt_out["action"] = replace(spelt_out["action"], action_configs=[arm, spelt_out["action"].action_configs[1]])
    spelt_out["state"] = replace(spelt_out["state"], mean_std_embedding_keys=[])
    GR00TPolicy(policy.model, policy.processor, modality_config=spelt_out)


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("new_embodimnt", ['Did you mean "new_embodiment"']),
        ("xdof_relative_eef_relative_joint_subtask", ["no modality config", "Did you mean", "Fine-tune"]),
    ],
)
def test_an_embodiment_that_the_checkpoint_lacks_is_refused_with_those_it_has(tag, said):
    with pytest.raises(ToolkitError) as refusal:
        GR00TPolicy.from_pretrained(TINY, embodiment_tag=tag)
    for words in said:
        assert words in str(refusal.value)


def test_an_embodiment_without_statistics_is_refused(policy):
    statistics = {k: v for k, v in policy.processor.files.statistics.items() if k != "new_embodiment"}
    processor = Gr00tN1d7Processor(replace(policy.processor.files, statistics=statistics), policy.processor.vlm)
    with pytest.raises(ToolkitError, match='no statistics of the embodiment "new_embodiment"'):
        GR00TPolicy(policy.model, processor)


def test_an_embodiment_that_lacks_an_index_or_a_modality_is_refused_before_weights_are_read(policy):
    files = policy.processor.files
    configs = {name: of for name, of in policy.modality_configs.items() if name != "language"}
    without = replace(files.config, modality_configs={**files.config.modality_configs, "new_embodiment": configs})
    own = {**files.config.modality_configs, "my_robot": policy.modality_configs}
    statistics = {**files.statistics, "my_robot": files.statistics["new_embodiment"]}
    unlisted = replace(files, config=replace(files.config, modality_configs=own), statistics=statistics)
    for changed_files, tag, said in (
        (replace(files, config=without), "new_embodiment", "has no language for"),
        (replace(files, config=without), "NEW_EMBODIMENT", "has no language for"),
        (unlisted, "my_robot", "has no index"),
    ):
        processor = Gr00tN1d7Processor(changed_files, policy.processor.vlm)
        with pytest.raises(ToolkitError, match=said):
            GR00TPolicy(policy.model, processor, tag)


def test_states_of_another_number_of_frames_than_the_model_reads_are_refused_before_the_first_request(
    policy, monkeypatch
):
    processor = copy.copy(policy.processor)
    changed_configs = {**policy.modality_configs, "state": ModalityConfig([-1, 0], ["arm", "gripper"])}
    monkeypatch.setattr(processor, "modality_config", lambda tag: changed_configs)
    monkeypatch.setattr(Gr00tN1d7Processor, "from_pretrained", lambda folder: processor)
    with pytest.raises(ToolkitError, match=r"have 2 frames \(delta_indices\)"):
        GR00TPolicy.from_pretrained(TINY)


def test_actions_that_are_not_finite_never_reach_a_robot(policy):
    broken = GR00TPolicy(copy.deepcopy(policy.model), policy.processor)
    with torch.no_grad():
        broken.model.action_head.vlln.weight.fill_(float("nan"))
    with pytest.raises(ToolkitError, match="not finite"):
        broken.get_action(observation(), seed=0)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ToolkitError, match=r"config\.json"):
            GR00TPolicy.from_pretrained(path)


# for closed loop


def test_a_list_of_seeds_gives_each_sample_the_noise_it_gets_alone(policy):
    together = policy.get_action(observation(batch=2), seed=[5, 6])
    alone = [
        policy.get_action({k: v[b : b + 1] for k, v in observation(batch=2).items()}, seed=seed)
        for b, seed in enumerate((5, 6))
    ]
    for name, values in together.items():
        assert np.allclose(values, np.concatenate([one[name] for one in alone]), atol=1e-5)
    single = policy.get_action(observation(), seed=[5])
    assert same(single, policy.get_action(observation(), seed=5))
    with pytest.raises(ToolkitError, match="2 seeds for 1 samples"):
        policy.get_action(observation(), seed=[5, 6])
    with pytest.raises(ToolkitError, match="whole number"):
        policy.get_action(observation(), seed=[0.5])


def test_a_hidden_state_reaches_the_actions_only_as_their_origin(policy):
    here = observation()
    turned = {**here, "state.arm": -here["state.arm"]}

    def moves(**options):
        """The arm's actions from its state on, in both observations."""
        return [policy.get_action(o, seed=1, **options)["action.arm"] - o["state.arm"] for o in (here, turned)]

    assert np.allclose(*moves(drop_state=True), atol=1e-5)
    assert not np.allclose(*moves(), atol=1e-3)
