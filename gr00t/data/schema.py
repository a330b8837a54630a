"""What a robot's data is called: embodiment tags, modality configurations, action representations.

The names and JSON forms are those of the original's processor_config.json, so that checkpoints can be exchanged."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum, StrEnum
from typing import Any, TypeVar

from gr00t.errors import ToolkitError, did_you_mean

MODALITIES = ("video", "state", "action", "language")

_EnumT = TypeVar("_EnumT", bound=Enum)


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
        if isinstance(name, cls):
            return name
        for tag in cls:
            if name in (tag.value, tag.name):
                return tag
        raise ToolkitError(
            f'Unknown embodiment tag "{name}".{did_you_mean(str(name), [t.value for t in cls])}'
            f' Own robots are fine-tuned under "{cls.NEW_EMBODIMENT.value}".'
        )


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
    if isinstance(value, kind):
        return value
    for member in kind:
        if str(value) in (member.name, member.value):
            return member
    raise ToolkitError(f'{where}: "{value}" is not a {kind.__name__}.{did_you_mean(str(value), kind.__members__)}')


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
                if key not in self.modality_keys:
                    raise ToolkitError(
                        f'{field} names "{key}", which is no modality key.{did_you_mean(key, self.modality_keys)}'
                    )
        if self.action_configs is not None and len(self.action_configs) != len(self.modality_keys):
            raise ToolkitError(
                f"action_configs has {len(self.action_configs)} entries for {len(self.modality_keys)} "
                f"modality keys {self.modality_keys}: give one each, in the same order."
            )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModalityConfig:
        """Read one entry of processor_config.json; keys that later versions add are ignored."""
        configs = data.get("action_configs")
        return cls(
            delta_indices=data["delta_indices"],
            modality_keys=data["modality_keys"],
            sin_cos_embedding_keys=data.get("sin_cos_embedding_keys"),
            mean_std_embedding_keys=data.get("mean_std_embedding_keys"),
            action_configs=None if configs is None else [ActionConfig.from_json(c) for c in configs],
        )

    def to_json(self) -> dict[str, Any]:
        """The entry of processor_config.json."""
        actions = None if self.action_configs is None else [config.to_json() for config in self.action_configs]
        return asdict(self) | {"action_configs": actions}


ModalityConfigs = dict[str, ModalityConfig]
"""The four modalities of one embodiment: video, state, action, language."""


def check_modality_configs(configs: ModalityConfigs, where: str = "MODALITY_CONFIG") -> ModalityConfigs:
    """Check that all four modalities are there (and no other) and that action_configs is given."""
    for name in configs:
        if name not in MODALITIES:
            raise ToolkitError(f'{where}: unknown modality "{name}".{did_you_mean(name, MODALITIES)}')
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
        for group, action in zip(config.modality_keys, config.action_configs or [], strict=False):
            found[modality][group] = {**action.to_json(), "state_key": action.state_key or group}
    return found


def python_source(configs: ModalityConfigs) -> str:
    """A Python file that defines MODALITY_CONFIG as `configs`."""
    names = [cls.__name__ for cls in (ActionConfig, ActionFormat, ActionRepresentation, ActionType, ModalityConfig)]
    body = "\n".join(["MODALITY_CONFIG = {", *(_modality_source(*item) for item in configs.items()), "}"])
    used = ", ".join(name for name in names if f"{name}(" in body or f"{name}." in body)
    return (
        f'"""The robot: its cameras, states, actions and instructions."""\n\nfrom {__name__} import {used}\n\n{body}\n'
    )


def _modality_source(modality: str, config: ModalityConfig) -> str:
    indices = str(config.delta_indices)
    first, end = config.delta_indices[0], config.delta_indices[-1] + 1
    if len(config.delta_indices) > 2 and config.delta_indices == list(range(first, end)):
        indices = f"list(range({first}, {end}))" if first else f"list(range({end}))"
    fields = [f"delta_indices={indices}"]
    for name in ("modality_keys", "sin_cos_embedding_keys", "mean_std_embedding_keys"):
        if (keys := getattr(config, name)) is not None:
            fields.append(f"{name}={json.dumps(keys, ensure_ascii=False)}")
    if config.action_configs is not None:
        actions = ""
        for action in config.action_configs:
            said = [f"rep=ActionRepresentation.{action.rep.name}"]
            said += [f"type=ActionType.{action.type.name}"] if action.type is not ActionType.NON_EEF else []
            said += [f"format=ActionFormat.{action.format.name}"] if action.format is not ActionFormat.DEFAULT else []
            said += [f"state_key={json.dumps(action.state_key)}"] if action.state_key is not None else []
            actions += f"            ActionConfig({', '.join(said)}),\n"
        fields.append(f"action_configs=[\n{actions}        ]")
    lines = "".join(f"        {field},\n" for field in fields)
    return f"    {json.dumps(modality)}: ModalityConfig(\n{lines}    ),"
