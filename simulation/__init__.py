"""The conflict suites in ManiSkill: scenes, an expert and its recordings, policies in closed loop, and their report."""

from toolkit.installation import ensure_own_gr00t

ensure_own_gr00t()
