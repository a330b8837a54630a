"""Episodes in closed loop, where a policy acts and the simulation answers: how they are played, what they ended with.

Needs neither torch nor a simulator: a report can be made, or made again, from closed_loop.json alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.open_loop import EvaluationConfig, OpenLoopConfig
from gr00t.errors import ToolkitError, require_extra
from simulation.scenes.suites import SUITES
from toolkit.declaration import key
from toolkit.shared_keys import PARTS, TrackingConfig, share_key
from toolkit.trackers import check_tracking

FORMAT = 1
EVALUATED = ("train", "seen", "unseen", "conflict", "single_a", "single_b")  # parts of all suites, in reports' order
TARGET, LURE, OTHER, NOTHING = PICKS = ("target", "lure", "other", "nothing")
# How far an episode came with its target; "nowhere" stands for none of them (simulation.closed_loop.episode_stages).
STAGES = {
    "toward": "moved toward the target",
    "touched": "touched it",
    "moved": "grasped or moved it",
    "done": "did what was asked for",
    "held": "held it, with a still arm: success",
}
NOWHERE = "nowhere"
# What is done to the policy's observation. The ablations show whether it looks and listens.
CONDITIONS = {
    "none": "as it is",
    "other_image": "images of another episode",
    "blank_image": "blank images",
    "other_instruction": "another instruction",
    "zero_state": "zeroed state",
}
# protocol=published. Published: 200 episodes, seed 42, two run types (ours: seen and conflict), and of all factors
# together 200 sampled combinations, one episode each, with seeds 40, 41 and 42 (ours: of those that were not recorded,
# which are 99 % of all).
PAIRWISE: dict[str, Any] = {"episodes": 200, "seed": 42, "runs": 1, "parts": ["seen", "conflict"]}
FULL_FACTOR: dict[str, Any] = {"episodes": 200, "seed": 40, "runs": 3, "parts": ["unseen"]}
FULL_FACTOR |= {"n_action_steps": 5, "max_steps": 500, "no_distractor_prob": 0.7}
_HOST = r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)"
_ADDRESS = re.compile(rf"{_HOST}:\d{{1,5}}|wss?://{_HOST}(:\d{{1,5}})?(/[\w./-]*)?")
_PERCENT = r"(?P<number>\d{1,2}(?:\.\d+)?)"
_QUESTIONS = {
    "above": re.compile(rf"success *> *{_PERCENT}"),
    "prefers": re.compile("prefers"),
    "better": re.compile(r"better than (?P<folder>\S.*)"),
    "within": re.compile(rf"within {_PERCENT} of (?P<folder>\S.*)"),
}


def parse_question(text: str) -> tuple[str, float, str]:
    """(above, prefers, better or within; its number as a share; its folder) of a question, as question= takes it."""
    for form, pattern in _QUESTIONS.items():
        if found := pattern.fullmatch(text.strip()):
            given = found.groupdict()
            number = float(given.get("number") or 0) / 100
            if form == "prefers" or form == "better" or 0 < number < 1:
                return form, number, given.get("folder") or ""
    raise ToolkitError('ask "success > 60" (percent), "prefers", "better than FOLDER" or "within 5 of FOLDER".')


@dataclass(kw_only=True)
class ClosedLoopConfig(EvaluationConfig):
    """Let a policy act in simulated episodes of a split, and count what it picks up."""

    policy: str = key(
        "closed loop: who acts; lerobot is LeRobot's policy in the folder checkpoint; to check the loop itself expert, "
        "lure (picks up the lure), random (any object) or replay (the recordings of raw_dir)",
        "checkpoint",
        choices=("checkpoint", "expert", "lure", "random", "replay", "lerobot"),
    )
    server: str | None = key(
        "closed loop: address of a policy server that acts in place of the checkpoint, HOST:PORT of NVIDIA's protocol, "
        "ws://HOST:PORT of openpi's (environment variable GROOT_API_TOKEN: its token)",
        None,
    )
    parts: list[str] = key(
        "closed loop: what is evaluated; [] for all that the split's suite has: train and conflict; or seen, unseen, "
        "conflict, and single_a and single_b, in which the first or the second factor alone tells the objects apart",
        [],
        choices=EVALUATED,
    )
    protocol: str = key(
        "closed loop: published sets number, seed, parts and steps as the published experiments have them, "
        "split=instruction/...",
        "own",
        choices=("own", "published"),
    )
    strategy: str | None = key(
        "closed loop: which combinations of an instruction split are its seen ones; null for those that the checkpoint "
        "was trained on, or else the usual ones",
        None,
    )
    episodes: int = key("closed loop: episodes of each part, under each condition", 100, at_least=1)
    runs: int = key("closed loop: repetitions of all with seed, seed + 1, ... and other episodes", 1, at_least=1)
    no_distractor_prob: float | None = key(
        "closed loop: part of the episodes of instruction/all in which the target lies alone; null for the usual 0.7",
        None,
        at_least=0,
        at_most=1,
    )
    n_action_steps: int = key("closed loop: steps executed of each action chunk", 8, at_least=1)
    max_steps: int = key("closed loop: steps of 1/20 s until an episode counts as failed", 100, at_least=1)
    ablations: list[str] = key(
        "closed loop: evaluated as well, each as many episodes again: images of another episode, black ones, the "
        "instruction for the split's other cue (instruction suite: for the other object), no state",
        [],
        choices=tuple(name for name in CONDITIONS if name != "none"),
    )
    question: str | None = key(
        'closed loop: what each part is to answer: "success > 60" (percent); "better than FOLDER" or "within 5 of '
        'FOLDER" (points), beside the same episodes of another report; or "prefers", which cue is followed in conflict',
        None,
        check=parse_question,
    )
    stop: str = key(
        "closed loop: decided ends a part when its question is answered, with an error of 5 % at all looks together; "
        "all plays every episode",
        "all",
        choices=("all", "decided"),
    )
    videos: int = key(
        "closed loop: videos of the successes of each part, and as many of the failures that ended at each stage",
        2,
        at_least=0,
    )
    workers: int = key("closed loop: processes, with a simulation each", 2, at_least=1)
    share: str | None = share_key("closed loop: play")
    image_size: int | None = key(
        "closed loop: width and height of both cameras, pixels; null for what the checkpoint was trained on",
        None,
        at_least=32,
        at_most=1024,
    )
    render: str = key(
        "closed loop: where images are rendered; none for policies that need none",
        "cpu",
        choices=("cpu", "gpu", "none"),
    )
    raw_dir: str = key(
        "closed loop: folder that holds the recordings <split>/<part> of policy=replay",
        "conflict_maniskill",
        folder=True,
    )
    tracking: TrackingConfig = key("closed loop: where the report is logged", TrackingConfig)

    @property
    def report_folder(self) -> Path:
        """report_dir, or what stands for null."""
        return Path(self.report_dir or f"reports/{self.split.name}/closed_loop")

    @property
    def protocol_values(self) -> dict[str, Any]:
        """The keys that protocol= sets, with their values."""
        if self.protocol != "published":
            return {}
        return FULL_FACTOR if self.split.name == "instruction/all" else PAIRWISE

    def check_values(self) -> None:
        """Refuse values that do not fit each other."""
        for name in ("parts", "ablations"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ToolkitError(f"{name}={values}: name each once.")
        for suite in SUITES:
            name = self.split.name
            known = suite.recorded_of(name) if self.policy == "replay" else suite.evaluated_of(name)
            strange = [part for part in self.parts if part not in known]
            if name in suite.splits and strange:
                raise ToolkitError(f"parts={self.parts}: {name} has {', '.join(known)}, no {strange[0]}.")
        if self.protocol == "published" and not self.split.name.startswith("instruction/"):
            raise ToolkitError(
                f"protocol=published is that of the published experiments, split=instruction/...; {self.split.name} is "
                "none of them. Leave it out."
            )
        if self.stop == "decided":
            self._check_stop()
        if self.policy == "replay":
            self._check_replay()
        scripted = self.policy not in ("checkpoint", "lerobot")
        if self.policy != "checkpoint" and self.server is not None:
            raise ToolkitError(
                f"server={self.server} and policy={self.policy} name two policies. Leave one of them out."
            )
        if scripted and self.ablations:
            raise ToolkitError(
                f"ablations={self.ablations} change what a policy observes; policy={self.policy} knows the "
                "simulation's state and does not look. Leave them out."
            )
        if not scripted and self.render == "none":
            raise ToolkitError(
                "render=none is for policy=expert, lure, random and replay; others need images: render=cpu."
            )
        if self.guidance != 1 and (self.server is not None or self.policy != "checkpoint"):
            raise ToolkitError(
                f"guidance={self.guidance:g} is for checkpoint=FOLDER, which is asked here; others decide for "
                "themselves. Leave it out, or start the server with it (python -m gr00t.serve ... guidance=2)."
            )
        if self.server is not None and not _ADDRESS.fullmatch(self.server):
            raise ToolkitError(f"server={self.server}: write HOST:PORT, or ws://HOST:PORT of an openpi server.")

    def _check_stop(self) -> None:
        """Refuse what a part that ends early does not go with."""
        if self.question is None:
            raise ToolkitError('stop=decided needs a question, such as question="success > 60".')
        for name, usual in (("ablations", []), ("share", None), ("protocol", "own"), ("runs", 1)):
            if (value := getattr(self, name)) != usual:
                raise ToolkitError(
                    f"stop=decided does not go with {name}={value}, which needs all episodes. Leave one of them out."
                )

    def _check_replay(self) -> None:
        """Refuse what recorded episodes cannot give."""
        for name, usual, why in (
            ("protocol", "own", "is of episodes that were never recorded"),
            ("runs", 1, "repeats with other episodes and other noise, of which recordings have neither"),
            ("no_distractor_prob", None, "draws other scenes than those in which the actions were recorded"),
        ):
            if (value := getattr(self, name)) != usual:
                raise ToolkitError(
                    f"{name}={value} {why}; policy=replay plays those of raw_dir once. Leave one of the two out."
                )

    def check_here(self, *, checkpoint_comes: bool = False, dataset_comes: bool = False) -> None:
        """Refuse what cannot run on this machine; a checkpoint that `comes` is one that another job makes first."""
        del dataset_comes  # nothing is read from it
        check_tracking(self.tracking)
        if self.server is not None:
            openpi = {"websockets": "websockets"} if "://" in self.server else {}
            require_extra("serve", f"server={self.server} needs", zmq="pyzmq", msgpack="msgpack", **openpi)
        acts = self.policy == "checkpoint" and self.server is None
        self.check_folders(self.report_folder, checkpoint_comes or not acts)


@dataclass(kw_only=True)
class EvaluateConfig(ClosedLoopConfig, OpenLoopConfig):
    """Evaluate a fine-tuned checkpoint on a split: on recordings (open loop) or acting in simulation (closed loop)."""

    mode: str = key(
        "open_loop compares predicted with recorded actions; closed_loop lets the policy act in simulation",
        "open_loop",
        choices=("open_loop", "closed_loop"),
    )

    @property
    def chosen(self) -> OpenLoopConfig | ClosedLoopConfig:
        """The configuration of the evaluation that mode names."""
        kind = OpenLoopConfig if self.mode == "open_loop" else ClosedLoopConfig
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})

    @property
    def report_folder(self) -> Path:
        """report_dir, or what stands for null."""
        return self.chosen.report_folder

    def check_given(self, names: Collection[str]) -> None:
        """Refuse keys of the other evaluation among those of the command line."""
        # raw_dir is the conversion's too: a launcher that does both hands it to both.
        known = {field.name for field in dataclasses.fields(self.chosen)} | {"mode", "raw_dir"}
        for name in names:
            if name.partition(".")[0] not in known:
                other = "open_loop" if self.mode == "closed_loop" else "closed_loop"
                raise ToolkitError(f"{name} acts on nothing with mode={self.mode}. Add mode={other}, or leave it out.")
            if name in (sets := self.protocol_values):
                raise ToolkitError(
                    f"protocol={self.protocol} sets {name}={sets[name]}. Leave out one of the two, {name} or protocol."
                )

    def check_values(self) -> None:
        """Refuse values that do not fit each other."""
        if isinstance(self.chosen, ClosedLoopConfig):
            self.chosen.check_values()

    def check_here(self, *, checkpoint_comes: bool = False, dataset_comes: bool = False) -> None:
        """Refuse what cannot run on this machine."""
        self.chosen.check_here(checkpoint_comes=checkpoint_comes, dataset_comes=dataset_comes)


@dataclass(frozen=True)
class Settings:
    """How episodes are played.

    instruction: what the policy is asked to do, None for each episode's own sentence (instruction suite);
    other_instruction: under the condition of that name, None for the sentence that names the scene's other object.
    strategy: which combinations the instruction suite counts as recorded, None for the usual ones.
    no_distractor_prob: of instruction/all, None for the usual one. n_action_steps: steps executed of each chunk;
    max_steps: control steps (1/20 s) of an episode. image_size: of both cameras, pixels. render: cpu, gpu, or none for
    policies without images. seed: of the noise. runs: repetitions with seed, seed + 1, ... and other episodes. segment:
    after so many episodes all scenes are built again, None for never within a part (simulation.closed_loop.rollout).
    videos: of the first successes of each part, and of the first failures that ended at each stage.
    """

    split: str
    instruction: str | None = None
    other_instruction: str | None = None
    strategy: str | None = None
    parts: tuple[str, ...] = PARTS
    conditions: tuple[str, ...] = ("none",)
    episodes: int = 100
    n_action_steps: int = 8
    max_steps: int = 100
    image_size: int = 224
    render: str = "cpu"
    no_distractor_prob: float | None = None
    seed: int = 42
    runs: int = 1
    segment: int | None = None
    workers: int = 2
    videos: int = 0


@dataclass(frozen=True)
class EpisodeOutcome:
    """One closed-loop episode.

    condition: of CONDITIONS; part: of EVALUATED; seed: of the episode (simulation.scenes.suites).
    picked: what was acted on first (PICKS; plate suite: held above the table), picked_step: after how many steps, None
    for nothing. did: the verb that was done to it (simulation.scenes.verbs), None for nothing and in the plate suite.
    success: what was asked for was done to the target before the steps ran out (plate suite: a still arm held it, which
    may follow a wrong first pick). steps: control steps executed; chunks: action chunks asked for. instruction: what
    the policy was asked to do. episode: the objects' factors and places, as the suites' `describe` gives them.
    video: path below the report's folder, None where none was kept. stages: the step at which each stage of
    simulation.closed_loop.episode_stages was reached, in their order; smoothness: SPARC of the hand's speed, None of
    one that stood still. Both are None in reports from before 30 November 2026.
    """

    condition: str
    part: str
    seed: int
    success: bool
    picked: str
    picked_step: int | None
    steps: int
    chunks: int
    instruction: str
    episode: dict[str, Any]
    video: str | None = None
    did: str | None = None
    stages: dict[str, int] | None = None
    smoothness: float | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EpisodeOutcome:
        """The outcome that was written as plain JSON; KeyError for one that lacks something."""
        names = [field.name for field in dataclasses.fields(cls)]
        later = ("did", "stages", "smoothness")
        return cls(**{name: values[name] for name in names if name not in later or name in values})

    @property
    def stage(self) -> str | None:
        """The last stage that was reached, "nowhere" before the first one; None where it is not known."""
        return None if self.stages is None else next(reversed(self.stages), NOWHERE)

    def thing(self, whose: str) -> dict[str, Any] | None:
        """The factors and place of the target, lure or plate, or the values that the sentence names (`sentence`); None
        for the lure of an episode without conflict, and for what the suite does not have."""
        if whose in ("plate", "sentence"):
            return self.episode.get("named" if whose == "sentence" else whose)
        index = self.episode[whose]
        return None if index is None else self.episode["objects"][index]

    def in_words(self, whose: str) -> str:
        """The same as in: small red cube, left; empty for None."""
        found = self.thing(whose)
        if found is None:
            return ""
        place = found["position"] if "position" in found else found["spatial"]
        return f"{found['size']} {found['color']} {found['object']}, {place}"


@dataclass(frozen=True)
class Evaluation:
    """All episodes of one evaluation, and what was evaluated.

    info: plain JSON; always with split, policy (a name for people), n_action_steps, max_steps, seed, instruction,
    versions; with checkpoint, denoising_steps, precision, device, workers, seconds where they apply. expert: what the
    scripted expert did in the first of the same episodes of each part; empty for a policy that is scripted itself.
    """

    info: dict[str, Any]
    episodes: tuple[EpisodeOutcome, ...]
    expert: tuple[EpisodeOutcome, ...] = ()
