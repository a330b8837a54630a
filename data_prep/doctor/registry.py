"""Every check: what it asks, what it needs, and whether it belongs to the fast part that runs before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from data_prep.doctor import (
    alignment,
    convention,
    episodes,
    files,
    language,
    naming,
    pictures,
    statistics,
    timing,
    together,
    values,
    videos,
)
from data_prep.doctor.findings import Finding
from data_prep.doctor.subject import Subject


@dataclass(frozen=True)
class Check:
    """One check of a dataset. `full` keeps it out of the fast part: it needs every frame, or reads every file."""

    name: str
    question: str
    examine: Callable[[Subject], Iterable[Finding]]
    full: bool = False


@dataclass(frozen=True)
class PairCheck:
    """One check of the parts of a split, (train, conflict)."""

    name: str
    question: str
    examine: Callable[[Subject, Subject], Iterable[Finding]]


CHECKS = (
    Check("counts", "do the totals agree?", files.check_counts),
    Check("tables", "is every frame table there, whole and numbered?", files.check_tables),
    Check("features", "are columns as wide as meta/info.json says?", files.check_features),
    Check("video files", "has every episode its videos?", files.check_videos_present),
    Check("modality names", "does modality.json fit the modality configuration?", naming.check_names),
    Check("modality ranges", "do groups lie inside their columns, apart?", naming.check_ranges),
    Check("modality groups", "do groups hold what they are called?", naming.check_groups),
    Check("frame rate", "is fps plausible?", timing.check_rate),
    Check("timestamps", "do they grow evenly, at fps?", timing.check_timestamps),
    Check("video rate", "do the videos run at fps?", timing.check_video_rate),
    Check("numbers", "is every value finite?", values.check_finite),
    Check("units", "radians, metres, commands?", values.check_units),
    Check("constants", "does every dimension move?", values.check_constant),
    Check("outliers", "are there spikes and jumps?", values.check_outliers),
    Check(
        "action convention",
        "are actions absolute targets, in the state's order and units?",
        convention.check_convention,
    ),
    Check("action lead", "does action[t] lead from state[t] to state[t+1]?", convention.check_lead),
    Check("gripper", "does it close when told to?", convention.check_gripper_direction),
    Check("statistics", "is stats.json made from this data?", statistics.check_statistics),
    Check("relative statistics", "made from this data, for this horizon?", statistics.check_relative),
    Check("normalisation", "is it undone exactly?", statistics.check_round_trip),
    Check("instructions", "does every one say something?", language.check_tasks),
    Check("told", "is every frame told a listed instruction?", language.check_told),
    Check("lengths", "is every episode long enough?", episodes.check_lengths),
    Check("endings", "does every episode end in success?", episodes.check_endings),
    Check("idle", "does something happen in every episode?", episodes.check_idle),
    Check("duplicates", "is every episode there once?", episodes.check_duplicates),
    Check("held out", "are validation episodes apart, and few?", episodes.check_split),
    Check("video copies", "is every video there once?", videos.check_copies),
    Check("video decoding", "does it decode, with a frame for each row?", videos.check_decoding),
    Check("video size", "is there one frame size?", videos.check_sizes),
    Check("first frames", "are they what was recorded?", pictures.check_first_frames),
    Check("colours", "red, green, blue, in this order?", pictures.check_colours),
    Check("frozen frames", "do frames change when the robot moves?", videos.check_frozen, full=True),
    Check("blank frames", "does every frame show something?", videos.check_blank, full=True),
    Check("frame order", "do frames follow one another?", videos.check_order, full=True),
    Check("likeness", "do episodes look alike: colours, up and down, camera?", pictures.check_alike, full=True),
    Check("cameras", "does the wrist camera move with the arm?", pictures.check_cameras, full=True),
    Check("video and state", "do they change at the same time?", alignment.check_alignment, full=True),
    Check("fingerprint", "are the files those that were written?", files.check_unchanged),
)

PAIR_CHECKS = (
    PairCheck("train and conflict apart", "is no episode in both?", together.check_apart),
    PairCheck("same form", "rate, groups, frame sizes?", together.check_same_form),
    PairCheck("same instruction", "are both told the same?", together.check_same_words),
)
