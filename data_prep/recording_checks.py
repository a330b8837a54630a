"""Reading ManiSkill recordings and checking them: each file, each episode, and that a split's parts go together.

Everything but pixels is checked while reading the list of episodes; pixels are read per episode, when asked for."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.maniskill import (
    CAMERAS,
    CONTROL_FREQ,
    Episode,
    LeftOut,
    Recordings,
    check_storage,
    natural_key,
    open_hdf5,
    reach,
    sensor_of,
)
from gr00t.data.video import check_frame_size
from gr00t.errors import ToolkitError, did_you_mean, first_of
from gr00t.file_reading import files_below, read_json

CONTROL_MODE = "pd_joint_pos"
CONVERTIBLE_CONTROL_MODES = ("pd_joint_pos", "pd_joint_delta_pos")  # by replay; it cannot convert end-effector modes
QPOS_DIM = 9  # 7 arm joints (rad), 2 fingers (m)
ACTION_DIM = 8  # 7 joint targets (rad), gripper command in [-1, 1]
NAMED_FILES = 3  # in a message


def read_recordings(folder: Path, shown: Callable[[list[Path]], Iterable[Path]] = iter) -> Recordings:
    """Read and check every .h5 below `folder` except pixels; raises ToolkitError at the first fault.

    The episodes are in natural order of the paths (rank2 before rank10), and of their episode_id within a file. `shown`
    passes the files on in their order, and may show the progress.
    """
    if not folder.is_dir():
        raise ToolkitError(f"{folder}: no such folder of recordings. Put ManiSkill's trajectory.h5 and .json there.")
    names = {p.relative_to(folder).as_posix() for p in files_below(folder) if p.suffix == ".h5"}
    if not names:
        raise ToolkitError(f"{folder}: holds no .h5 file. Put ManiSkill's trajectory.h5 and trajectory.json there.")
    result = Recordings(folder)
    # The name itself decides between rank1 and rank01, which are the same number.
    for h5_path in shown([folder / name for name in sorted(names, key=lambda name: (natural_key(name), name))]):
        meta = _read_meta(h5_path)
        try:
            _check_environment(h5_path, meta)
        except ToolkitError:
            note = _passed_over(h5_path, meta)
            if not note:
                raise
            result.notes.append(note)
            continue
        recorded = _recorded(meta)
        if result.files and recorded != result.recorded:
            raise ToolkitError(
                f"{h5_path}: was recorded with {_named(recorded)}, {result.files[0].name} with "
                f"{_named(result.recorded)}. Keep the recordings of one strategy."
            )
        result.files.append(h5_path)
        result.recorded = recorded
        _read_episodes(h5_path, meta, result)
    if not result.episodes:
        raise ToolkitError(
            f"{folder}: none of the {len(result.left_out)} recorded episodes is successful at its last step, so there "
            "is nothing to learn from. Check the expert or the task's success condition and record again."
        )
    return result


# -- one file ----------------------------------------------------------------------------------------------------------


def _read_meta(h5_path: Path) -> dict[str, Any]:
    path = h5_path.with_suffix(".json")
    if not path.exists():
        raise ToolkitError(f"{h5_path}: {path.name} is missing beside it. ManiSkill writes both: copy it along.")
    meta = read_json(path)
    missing = [f'"{key}"' for key in ("env_info", "episodes") if key not in meta]
    if not missing and not (
        isinstance(meta["env_info"], dict) and isinstance(meta["env_info"].get("env_kwargs"), dict)
    ):
        missing = ["env_info.env_kwargs"]
    if not missing and not isinstance(meta["episodes"], list):
        missing = ["a list of episodes"]
    if missing:
        raise ToolkitError(f"{path}: {missing[0]} is missing; this is not the .json of a ManiSkill recording.")
    return meta


def _recorded(meta: dict[str, Any]) -> dict[str, Any] | None:
    """What simulation.record says of the combinations of the factors' values; None where it does not."""
    said = meta.get("recording")
    if not isinstance(said, dict) or not isinstance(said.get("strategy"), str):
        return None
    return {name: said.get(name) for name in ("strategy", "factors", "combinations")}


def _named(recorded: dict[str, Any] | None) -> str:
    return f"strategy={recorded['strategy']}" if recorded else "no strategy"


def is_passed_over(h5_path: Path) -> bool:
    """Whether a recording itself is not converted, because replays of it are."""
    meta = _read_meta(h5_path)
    try:
        _check_environment(h5_path, meta)
    except ToolkitError:
        return bool(_passed_over(h5_path, meta))
    return False


def _passed_over(h5_path: Path, meta: dict[str, Any]) -> str:
    """What to say of a recording that is replaced by replays of it; empty where there is no replay of its episodes."""
    # As ManiSkill's replay command names them after the recording.
    pattern = f"{h5_path.name.split('.')[0]}.rgb*.{CONTROL_MODE}.*h5"
    replays = sorted(p for p in h5_path.parent.glob(pattern) if p != h5_path)
    seeds = _seeds(meta)
    replayed = set().union(*(_seeds(_read_meta(replay)) for replay in replays))
    if not replays or (seeds and replayed and not seeds & replayed):
        return ""
    note = f"{h5_path}: passed over, its replay {replays[0].name} is used."
    if seeds and seeds - replayed:
        note += (
            f" {len(seeds - replayed)} of its {len(seeds)} episodes are not in it: ManiSkill leaves out what fails "
            "when replayed, and replays of two recordings of one folder overwrite each other where their names are "
            "equal up to the first dot."
        )
    return note


def _seeds(meta: dict[str, Any]) -> set[str]:
    entries = [e for e in meta["episodes"] if isinstance(e, dict)]
    return {str(e["episode_seed"]) for e in entries if e.get("episode_seed") is not None}


def _check_environment(h5_path: Path, meta: dict[str, Any]) -> None:
    """Raise unless the recording was made with images, agent state, joint targets and 20 Hz."""
    env_kwargs = meta["env_info"]["env_kwargs"]
    modes = {str(env_kwargs.get("control_mode"))} | {
        str(e["control_mode"]) for e in meta["episodes"] if isinstance(e, dict) and e.get("control_mode")
    }
    for mode in sorted(modes - {CONTROL_MODE, "None"}):
        problem = f'recorded with control_mode "{mode}"; absolute joint targets ("{CONTROL_MODE}") are needed'
        if mode in CONVERTIBLE_CONTROL_MODES:
            raise ToolkitError(f"{h5_path}: {problem}. {_replay_remedy(h5_path, meta)}")
        raise ToolkitError(
            f"{h5_path}: {problem}. ManiSkill cannot convert {mode} to it: record again with control_mode="
            f"{CONTROL_MODE}, or if these were replayed from joint-target recordings, replay those: "
            f"{_replay_command('<original>.h5')}"
        )
    obs_mode = str(env_kwargs.get("obs_mode"))
    if "rgb" not in obs_mode or "state" in obs_mode:
        lack = "state, which drops obs/agent" if "rgb" in obs_mode else "no camera images"
        raise ToolkitError(
            f'{h5_path}: recorded with obs_mode "{obs_mode}" ({lack}); "rgb" is needed. {_replay_remedy(h5_path, meta)}'
        )
    simulated = env_kwargs.get("sim_config")
    freq = simulated.get("control_freq", CONTROL_FREQ) if isinstance(simulated, dict) else CONTROL_FREQ
    if freq != CONTROL_FREQ:
        raise ToolkitError(
            f"{h5_path}: recorded at {freq} Hz (sim_config.control_freq); the robot configuration is made for "
            f"{CONTROL_FREQ} Hz. Record again with ManiSkill's default control frequency."
        )


def _replay_command(traj_path: str, start: str = "-m mani_skill.trajectory.replay_trajectory") -> str:
    """ManiSkill's command that plays a recording again with cameras on."""
    return f"python {start} --traj-path {traj_path} -o rgb -c {CONTROL_MODE} --save-traj"


def _replay_remedy(h5_path: Path, meta: dict[str, Any]) -> str:
    """How to mend a recording without images: the replay command and what stands in its way."""
    path = shlex.quote(str(h5_path))
    text = f"Replay it, the result beside it is then used: {_replay_command(path)}"
    if meta["env_info"]["env_kwargs"].get("render_backend") == "none":
        json_path = h5_path.with_suffix(".json")
        text += f' (first set render_backend in {json_path} to "gpu" or "cpu": with "none" the replay writes nothing)'
    start = "from mani_skill.trajectory import replay_trajectory as r; r.main(r.parse_args())"
    own = _replay_command(path, f'-c "import <your task module>; {start}"')
    env_id = meta["env_info"].get("env_id", "the task")
    return f"{text}\nIf {env_id} is not part of ManiSkill, its module has to be imported first: {own}"


def _read_episodes(h5_path: Path, meta: dict[str, Any], result: Recordings) -> None:
    json_path = h5_path.with_suffix(".json")
    entries: dict[int, dict[str, Any]] = {}
    for entry in meta["episodes"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("episode_id"), int):
            raise ToolkitError(
                f"{json_path}: an episode has no episode_id; the file is damaged: record or copy it again."
            )
        if entry["episode_id"] in entries:
            raise ToolkitError(f"{json_path}: episode_id {entry['episode_id']} occurs twice; record or copy it again.")
        entries[entry["episode_id"]] = entry
    with open_hdf5(h5_path) as recording:
        in_json, in_h5 = {f"traj_{i}" for i in entries}, {name for name in recording if name.startswith("traj_")}
        for missing, holder, other in ((in_json - in_h5, "json", "h5"), (in_h5 - in_json, "h5", "json")):
            if missing:
                names = ", ".join(sorted(missing, key=natural_key)[:5])
                raise ToolkitError(
                    f"{h5_path}: {names} ({len(missing)} in all) in the .{holder} but not in the .{other}. The two do "
                    "not belong together, or recording was cut short: copy both again or record again."
                )
        for episode_id in sorted(entries):
            where = f"{h5_path}, traj_{episode_id}"
            trajectory = _Trajectory(reach(recording, f"traj_{episode_id}", where), where)
            reason = trajectory.why_unsuccessful(entries[episode_id])
            if reason:
                result.left_out.append(LeftOut(h5_path, episode_id, reason))
            else:
                result.episodes.append(trajectory.episode(h5_path, episode_id, entries[episode_id]))


def _target(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The object of the scene (simulation.scenes) that is to be picked."""
    scene = entry.get("conflict")
    if not isinstance(scene, dict) or not isinstance(number := scene.get("target"), int):
        return None
    objects = scene.get("objects")
    thing = objects[number] if isinstance(objects, list) and 0 <= number < len(objects) else None
    return thing if isinstance(thing, dict) else None


class _Trajectory:
    """Checks one trajectory group of an open file; `where` names it in messages."""

    def __init__(self, group: h5py.Group, where: str) -> None:
        self.group = group
        self.where = where

    def why_unsuccessful(self, entry: dict[str, Any]) -> str:
        """Empty for an episode that is solved at its last step, else the reason to leave it out."""
        length = len(self._array("actions", (None, ACTION_DIM)))
        if length == 0:
            raise ToolkitError(
                f"{self.where}: has no steps (length 0). Remove it from h5 and json, or record it again."
            )
        elapsed = entry.get("elapsed_steps", length)
        if elapsed != length:
            raise ToolkitError(
                f"{self.where}: {length} actions, but the .json says elapsed_steps {elapsed}. The two files do "
                "not belong together: copy both again or record again."
            )
        if reach(self.group, "success", self.where) is None:
            raise ToolkitError(
                f'{self.where}: has no "success", so failed episodes cannot be distinguished. Let the task\'s '
                "evaluate() return it and replay the recording."
            )
        success = self._array("success", (length,))[:]
        if success[-1]:
            return ""
        return "solved, but no longer at its last step" if success.any() else "not successful"

    def episode(self, file: Path, episode_id: int, entry: dict[str, Any]) -> Episode:
        """The episode, with shapes and numbers checked."""
        actions = self._finite("actions", (None, ACTION_DIM))
        qpos = self._finite("obs/agent/qpos", (len(actions) + 1, QPOS_DIM))
        sizes = {key: self._frame_size(key, len(actions) + 1) for key in CAMERAS}
        content = hashlib.sha256(actions.tobytes() + qpos[:1].tobytes()).hexdigest()
        text = entry.get("instruction")
        if text is not None and not (isinstance(text, str) and text.strip() and text.isprintable()):
            raise ToolkitError(
                f"{self.where}: the .json gives the instruction {text!r}, which is no line of text. Mend it, or take "
                "it out: the split's instruction is used then."
            )
        return Episode(file, episode_id, entry.get("episode_seed"), len(actions), sizes, content, text, _target(entry))

    def _array(self, name: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
        array = reach(self.group, name, self.where)
        if not isinstance(array, h5py.Dataset):
            raise ToolkitError(
                f'{self.where}: has no "{name}". Record with obs_mode="rgb" on panda_wristcam, or replay: '
                f"{_replay_command(shlex.quote(str(self.group.file.filename)))}"
            )
        found = array.shape or ()  # None where it holds nothing at all
        if len(found) != len(shape) or any(w is not None and f != w for f, w in zip(found, shape, strict=True)):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ToolkitError(
                f'{self.where}: "{name}" has the shape {found}, ({wanted}) is needed: T actions, T+1 observations, '
                "a Panda's 7 joints and gripper. Record again with panda_wristcam and pd_joint_pos."
            )
        check_storage(array, f'{self.where}: "{name}"')
        return array

    def _finite(self, name: str, shape: tuple[int | None, int]) -> np.ndarray:
        values = self._array(name, shape)[:]
        wrong = np.argwhere(~np.isfinite(values)) if values.dtype.kind == "f" else np.zeros((1, 1), int)
        if len(wrong):
            raise ToolkitError(
                f'{self.where}: "{name}" is not a finite number at step {wrong[0, 0]}. The simulation broke down '
                "there: remove the episode from h5 and json, or record it again."
            )
        return values

    def _frame_size(self, camera: str, count: int) -> tuple[int, int]:
        cameras = reach(self.group, "obs/sensor_data", self.where)
        sensor = sensor_of(cameras if isinstance(cameras, h5py.Group) else (), camera)
        if not isinstance(cameras, h5py.Group) or sensor not in list(cameras):
            raise ToolkitError(
                f'{self.where}: the camera "{sensor}" is missing.{did_you_mean(sensor, cameras or ())} '
                'Record again with robot_uids="panda_wristcam", which has base_camera and hand_camera.'
            )
        name = f"obs/sensor_data/{sensor}/rgb"
        rgb = self._array(name, (count, None, None, 3))
        if rgb.dtype != np.uint8:
            raise ToolkitError(f"{self.where}: {name} is {rgb.dtype}, uint8 is needed. Record again.")
        height, width = rgb.shape[1:3]
        check_frame_size(height, width, f"{self.where}, {sensor}")
        return height, width


# -- the parts of a split ----------------------------------------------------------------------------------------------


def check_told(parts: Mapping[str, Recordings], split_name: str, instruction: str | None) -> None:
    """Refuse an episode without an instruction, of its own or of the split."""
    silent = [e for found in parts.values() for e in found.episodes if e.instruction is None]
    if instruction is None and silent:
        raise ToolkitError(
            f"{silent[0].name}: holds no instruction ({len(silent)} such episodes), and {split_name} has none for all. "
            'Record them again, or say it: split.instruction="pick up the ...".'
        )


def check_apart(recordings: Mapping[str, Recordings]) -> None:
    """Refuse an episode that two parts hold, and parts of two strategies."""
    known: dict[str, tuple[str, str]] = {}
    for part, found in recordings.items():
        for episode in found.episodes:
            other, name = known.setdefault(episode.content, (part, episode.name))
            if other != part:
                raise ToolkitError(
                    f"{episode.name} is also a {other} episode ({name}). What one part holds must never enter "
                    "another: remove it from one of the two."
                )
        first = recordings["train"]
        if found.recorded != first.recorded:
            one, two = (of.recorded["strategy"] if of.recorded else "none" for of in (first, found))
            raise ToolkitError(
                f"{found.folder} was recorded with the strategy {two}, {first.folder} with {one}: seen and "
                "unseen would not be told apart. Record all parts with one strategy=...."
            )


def check_no_duplicates(recordings: Recordings) -> None:
    """Raise ToolkitError when an episode of the part is there twice, naming the files that are one too many."""
    copies: dict[str, list[Episode]] = defaultdict(list)
    for episode in recordings.episodes:
        copies[episode.content].append(episode)
    twins = [same for same in copies.values() if len(same) > 1]
    if twins:
        first, second = twins[0][:2]
        raise ToolkitError(
            f"{second.name} is the same recording as {first.name} (equal actions and start; {len(twins)} such "
            f"episodes in all). {_remedy(recordings, twins)}"
        )


def _remedy(recordings: Recordings, twins: list[list[Episode]]) -> str:
    """What to take away: the largest file whose every episode is in other files too, where there is one."""
    elsewhere: dict[Path, set[Path]] = defaultdict(set)
    held = Counter(episode.file for episode in recordings.episodes)
    alone = Counter(held)
    for same in twins:
        files = {episode.file for episode in same}
        for episode in same if len(files) > 1 else ():
            elsewhere[episode.file] |= files - {episode.file}
            alone[episode.file] -= 1
    whole = [file for file in elsewhere if not alone[file]]
    if not whole:
        return "Remove one of each two from its h5 and json, or one of the files."
    largest = max(whole, key=lambda file: (held[file], natural_key(file.as_posix())))
    folder = recordings.folder
    names = sorted((file.relative_to(folder).as_posix() for file in elsewhere[largest]), key=natural_key)
    kind = "a merged recording beside its parts" if len(names) > 1 else "a copy, or a recording and its replay"
    return (
        f"All {held[largest]} of {largest.relative_to(folder)} are in {first_of(names, NAMED_FILES)} too: "
        f"{kind}. Keep one of the two, and move the other out of the folder, .h5 and .json."
    )
