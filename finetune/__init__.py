"""From a dataset and a base checkpoint to a fine-tuned policy, and what goes with a run: a room for each purpose."""

from toolkit.installation import ensure_own_gr00t

ensure_own_gr00t()
