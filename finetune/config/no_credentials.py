"""No key or password in the configuration: it is written to the run folder, the job's script and the run's log."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.credentials import secret_variables, secrets_in
from gr00t.errors import ToolkitError


def refuse_secret(key: str, text: str) -> None:
    """Raise ToolkitError where the value of `key` holds what looks like a secret, or a secret variable's value."""
    variable = next((name for value, name in secret_variables().items() if value in text), None)
    if variable is not None:
        raise ToolkitError(secret_message(f"{key} holds the value of {variable}"))
    named = f"revision {text}" if key.rpartition(".")[2] == "revision" else text  # 40 hex digits, as a wandb key
    kind = next((kind for _, kind in secrets_in(named)), None)
    if kind is not None:
        raise ToolkitError(secret_message(f"{key} holds what looks like {kind}"))


def refuse_secret_arguments(argv: Sequence[str]) -> None:
    """The same for a command line, before any other message could repeat its values."""
    for argument in argv:
        name, equals, value = argument.partition("=")
        refuse_secret(name if equals else "the command line", value if equals else argument)


def secret_message(what: str) -> str:
    """`what` was found, and what to do."""
    short = " A git revision is taken in its short form." if "a wandb key" in what else ""
    return (
        f"{what}, and would be written to the run folder, the job script and the run's log.{short} Keep keys in their "
        "own files (hf auth login, wandb login), or export a variable in the shell that starts the command or submits "
        "the job."
    )
