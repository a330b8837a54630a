"""What a robot's data is called: embodiment tags, modality configurations, action representations, observations.

The names and JSON forms are those of the original's processor_config.json, so that checkpoints can be exchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum, StrEnum
from textwrap import wrap
from typing import Any, TypeVar

from gr00t.errors import ToolkitError, did_you_mean

MODALITIES = ("video", "state", "action", "language")
OBSERVED = ("video", "state", "language")

_T = TypeVar("_T")
_EnumT = TypeVar("_EnumT", bound=Enum)


def look_up(options: Mapping[str, _T], name: str, problem: str, remedy: str = "") -> _T:
    """What has that name; where nothing has, ToolkitError says `problem`, the nearest name, and `remedy`."""
    if name not in options:
        raise ToolkitError(f"{problem}{did_you_mean(name, options)}{remedy}")
    return options[name]


class EmbodimentTag(StrEnum):
    """Every robot tag the released checkpoints know; `NEW_EMBODIMENT` is the one meant for fine-tuning."""

    OXE_DROID_RELATIVE_EEF_RELATIVE_JOINT = "oxe_droid_relative_eef_relative_joint"
    XDOF_RELATIVE_EEF_RELATIVE_JOINT = "xdof_relative_eef_relative_joint"
    XDOF_RELATIVE_EEF_RELATIVE_JOINT_SUBTASK = "xdof_relative_eef_relative_joint_subtask"
    REAL_G1_RELATIVE_EEF_RELATIVE_JOINTS = "real_g1_relative_eef_relative_joints"
    REAL_R1_PRO_SHARPA_RELATIVE_EEF = "real_r1_pro_sharpa_relative_eef"
    REAL_R1_PRO_SHARPA_RELATIVE_EEF_HUMAN = "real_r1_pro_sharpa_relative_eef_human"
    REAL_R1_PRO_SHARPA_RELATIVE_EEF_MAXINSIGHTS = "real_r1_pro_sharpa_relative_eef_maxinsights"
    REAL_R1_PRO_SHARPA_RELATIVE_EEF_MECKA = "real_r1_pro_sharpa_relative_eef_mecka"
    UNITREE_G1_FULL_BODY_WITH_WAIST_HEIGHT_NAV_CMD = "unitree_g1_full_body_with_waist_height_nav_cmd"
    UNITREE_G1_SONIC = "unitree_g1_sonic"
    SIMPLER_ENV_GOOGLE = "simpler_env_google"
    SIMPLER_ENV_WIDOWX = "simpler_env_widowx"
    LIBERO_SIM = "libero_sim"
    NEW_EMBODIMENT = "new_embodiment"
    ROBOCASA_PANDA_OMRON = "robocasa_panda_omron"
    ROBOCASA_GR1_TABLETOP = "robocasa_gr1_tabletop"

    @classmethod
    def parse(cls, name: str | EmbodimentTag) -> EmbodimentTag:
        """The tag of that value or name; an unknown one raises with the nearest."""
        if name in cls.__members__:
            return cls[name]
        tags = {tag.value: tag for tag in cls}
        own = f' Own robots are fine-tuned under "{cls.NEW_EMBODIMENT.value}".'
        return look_up(tags, str(name), f'Unknown embodiment tag "{name}".', own)

    @classmethod
    def check_value(cls, name: str) -> None:
        """Refuse what is no tag as checkpoints write it; a configuration keeps the text as it is."""
        tag = cls.parse(name)
        if name != tag.value:
            raise ToolkitError(f'write it as checkpoints do: "{tag.value}".')


class ActionRepresentation(Enum):
    """How an action group is stored for the model: absolute targets, or relative to the last state."""

    RELATIVE = "relative"
    ABSOLUTE = "absolute"


class ActionType(Enum):
    """Whether an action group is an end-effector pose or anything else (joints, gripper, base)."""

    EEF = "eef"
    NON_EEF = "non_eef"


class ActionFormat(Enum):
    """Layout of an end-effector pose: position with 6-D rotation or with rotation vector."""

    DEFAULT = "default"
    XYZ_ROT6D = "xyz+rot6d"
    XYZ_ROTVEC = "xyz+rotvec"


def _member(kind: type[_EnumT], value: Any, where: str) -> _EnumT:
    for member in kind:
        if value in (member, member.name, member.value):
            return member
    return look_up(kind.__members__, str(value), f'{where}: "{value}" is not a {kind.__name__}.')


@dataclass(frozen=True)
class ActionConfig:
    """How one action group is represented.

    `state_key` is the state group a relative action refers to (None: the one of the action group's own name).
    """

    rep: ActionRepresentation
    type: ActionType = ActionType.NON_EEF
    format: ActionFormat = ActionFormat.DEFAULT
    state_key: str | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ActionConfig:
        """Read one entry of action_configs; an unknown representation, type or format raises ToolkitError."""
        return cls(
            rep=_member(ActionRepresentation, data.get("rep"), "action_configs.rep"),
            type=_member(ActionType, data.get("type", ActionType.NON_EEF), "action_configs.type"),
            format=_member(ActionFormat, data.get("format", ActionFormat.DEFAULT), "action_configs.format"),
            state_key=data.get("state_key"),
        )

    def to_json(self) -> dict[str, Any]:
        """The entry of action_configs, with the names of the enumerations' members."""
        return {name: value.name if isinstance(value, Enum) else value for name, value in vars(self).items()}


@dataclass
class ModalityConfig:
    """Which groups of one modality a model reads, and at which frames relative to the current one.

    `delta_indices` are frame offsets (0 is now); the action's are the horizon of the embodiment.
    `action_configs` belongs to the action modality only, one entry a key.
    """

    delta_indices: list[int]
    modality_keys: list[str]
    sin_cos_embedding_keys: list[str] | None = None
    mean_std_embedding_keys: list[str] | None = None
    action_configs: list[ActionConfig] | None = None

    def __post_init__(self) -> None:
        self.delta_indices = [int(i) for i in self.delta_indices]
        self.modality_keys = [str(k) for k in self.modality_keys]
        if not self.delta_indices or not self.modality_keys:
            raise ToolkitError("A ModalityConfig needs at least one delta index and one modality key.")
        if len(set(self.modality_keys)) != len(self.modality_keys):
            raise ToolkitError(f"A ModalityConfig names a key twice: {self.modality_keys}.")
        for field in ("sin_cos_embedding_keys", "mean_std_embedding_keys"):
            for key in getattr(self, field) or []:
                look_up(dict.fromkeys(self.modality_keys), key, f'{field} names "{key}", which is no modality key.')
        if self.action_configs is not None and len(self.action_configs) != len(self.modality_keys):
            raise ToolkitError(
                f"action_configs has {len(self.action_configs)} entries for {len(self.modality_keys)} "
                f"modality keys {self.modality_keys}: give one each, in the same order."
            )

    @property
    def actions(self) -> list[tuple[str, ActionConfig]]:
        """Each action group with its configuration; none of another modality."""
        return list(zip(self.modality_keys, self.action_configs or [], strict=False))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModalityConfig:
        """Read one entry of processor_config.json; keys that later versions add are ignored."""
        config = cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})
        if config.action_configs is not None:
            config.action_configs = [ActionConfig.from_json(entry) for entry in data["action_configs"]]
        return config

    def to_json(self) -> dict[str, Any]:
        """The entry of processor_config.json."""
        actions = None if self.action_configs is None else [config.to_json() for config in self.action_configs]
        return asdict(self) | {"action_configs": actions}


ModalityConfigs = dict[str, ModalityConfig]
"""The four modalities of one embodiment: video, state, action, language."""


def to_json(configs: ModalityConfigs) -> dict[str, Any]:
    """The plain value of the four modalities, as processor_config.json holds it."""
    return {modality: config.to_json() for modality, config in configs.items()}


def from_json(modalities: Mapping[str, Any]) -> ModalityConfigs:
    """The modality configuration of such a value."""
    return {modality: ModalityConfig.from_json(value) for modality, value in modalities.items()}


def check_modality_configs(configs: ModalityConfigs, where: str = "MODALITY_CONFIG") -> ModalityConfigs:
    """Check that all four modalities are there (and no other) and that action_configs is given."""
    for name in configs:
        look_up(dict.fromkeys(MODALITIES), name, f'{where}: unknown modality "{name}".')
    for name in MODALITIES:
        if name not in configs:
            raise ToolkitError(f'{where}: the modality "{name}" is missing; it needs {", ".join(MODALITIES)}.')
    if configs["action"].action_configs is None:
        raise ToolkitError(
            f"{where}: action.action_configs is missing: say for each of {configs['action'].modality_keys} "
            "whether it is RELATIVE or ABSOLUTE."
        )
    return configs


def comparable(configs: ModalityConfigs) -> dict[str, Any]:
    """What a modality configuration says, by modality, field and action group; spellings of one meaning are equal."""
    found: dict[str, Any] = {}
    for modality, config in configs.items():
        found[modality] = {name: value for name, value in config.to_json().items() if name != "action_configs"}
        for group, action in config.actions:
            found[modality][group] = {**action.to_json(), "state_key": action.state_key or group}
    return found


def flattened(observation: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an observation, nested or flat, by their flat names: video.<view>, state.<group>, language keys."""
    if not isinstance(observation, Mapping):
        raise ToolkitError(f"An observation is a dict of video, state and language, not {type(observation).__name__}.")
    flat: dict[str, Any] = {}
    for key, value in observation.items():
        entries = {str(key): value}
        if key in OBSERVED and isinstance(value, Mapping):
            entries = {str(name) if key == "language" else f"{key}.{name}": entry for name, entry in value.items()}
        for name, entry in entries.items():
            if name in flat:
                raise ToolkitError(f'The observation gives "{name}" twice, nested and flat. Give it once.')
            flat[name] = entry
    return flat


def as_numpy(value: Any) -> Any:
    """PyTorch's tensors as numpy's arrays (bfloat16 as float32); anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def instructions(value: Any, name: str) -> list[str]:
    """B instructions of a list or array of them, each possibly in a list of its own, or of one plain str.

    Raises ToolkitError, with the key `name`, for anything else.
    """
    problem = f"{name}: expected one instruction (str) a sample, found"
    kind = getattr(getattr(value, "dtype", None), "kind", None)  # of numpy's arrays; this file does without numpy
    if kind is not None and kind not in "UO":  # as a list it takes many times the memory
        raise ToolkitError(f"{problem} an array of {value.dtype}.")
    rows = value if kind is None else value.tolist()
    rows = [rows] if isinstance(rows, str) else rows
    if not isinstance(rows, list | tuple) or not rows:
        raise ToolkitError(f"{name}: expected a list of one instruction a sample, found {value!r}.")
    texts = [row[0] if isinstance(row, list | tuple) and len(row) == 1 else row for row in rows]
    for text in texts:
        if not isinstance(text, str):
            raise ToolkitError(f"{problem} {text!r}.")
    return texts


def python_source(configs: ModalityConfigs, notes: Sequence[str] = ()) -> str:
    """A Python file that defines MODALITY_CONFIG as `configs`, below `notes` as comments."""
    names = [cls.__name__ for cls in (ActionConfig, ActionFormat, ActionRepresentation, ActionType, ModalityConfig)]
    body = f"MODALITY_CONFIG = {_source(configs)}"
    used = ", ".join(name for name in names if f"{name}(" in body or f"{name}." in body)
    plain = ("".join(letter if letter.isprintable() else " " for letter in note) for note in notes)
    lines = [line for note in plain for line in wrap(note, 116, initial_indent="# - ", subsequent_indent="#   ")]
    about = '"""The robot: its cameras, states, actions and instructions."""'
    return "\n".join([about, "", f"from {__name__} import {used}", "", *lines, body, ""])


def _source(value: Any, indent: str = "") -> str:
    """A modality configuration or a part of it as Python, defaults left out; what is long has a line for each item."""
    inner = indent + "    "
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, ModalityConfig | ActionConfig):
        said = [(field, getattr(value, field.name)) for field in fields(value)]
        items = [f"{field.name}={_source(entry, inner)}" for field, entry in said if entry != field.default]
        opening, closing = f"{type(value).__name__}(", ")"
    elif isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_source(entry, inner)}" for key, entry in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list):
        items = [_source(entry, inner) for entry in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, ensure_ascii=False)
    line = f"{opening}{', '.join(items)}{closing}"
    if len(indent + line) <= 100:
        return line
    return "\n".join([opening, *(f"{inner}{item}," for item in items), indent + closing])
