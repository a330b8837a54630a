"""Serve a checkpoint to robots and simulators, in the protocol of NVIDIA's GR00T N1.7:

    python -m gr00t.serve checkpoint=checkpoints/color_object
    python -m gr00t.serve --help

The command line is `key=value` for the fields of ServeConfig; a published tree has neither Hydra nor the toolkit."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr00t.data.schema import OBSERVED, look_up
from gr00t.errors import ToolkitError, did_you_mean, near_folder
from gr00t.model.checkpoint_folder import fingerprint
from gr00t.server.lerobot_policy import LeRobotPolicy, lerobot_kind
from gr00t.server.server import TOKEN

if TYPE_CHECKING:
    from gr00t.model.gr00t_n1 import GR00TPolicy
    from gr00t.server.server import PolicyServer

USAGE = """\
{about}

Usage: python -m gr00t.serve [KEY=VALUE ...] [--help]

Keys, with their defaults (null is an empty value):
{keys}

Examples:
  python -m gr00t.serve checkpoint=checkpoints/color_object
  python -m gr00t.serve checkpoint=checkpoints/color_object device=cuda compile=true port=5556
  python -m gr00t.serve checkpoint=checkpoints/color_object host=0.0.0.0   # with a token, see above"""
REFUSED, INTERRUPTED = 2, 130  # exit codes
_OURS = (
    "embodiment_tag",
    "denoising_steps",
    "guidance",
    "precision",
    "verify",
    "compile",
)  # keys that LeRobot's policies have not
_WORDS = {"int": "int", "float": "number", "bool": "true or false", "str": "text"}
_COLUMN = 34  # of --help, where the meanings begin


def _option(meaning: str, default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """A documented field, required without a default. bounds: choices (a tuple of texts); at_least (an int)."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, **bounds})


@dataclass(frozen=True)
class ServeConfig:
    """Serve a checkpoint to robots and simulators, in the protocol of NVIDIA's GR00T N1.7 (ZeroMQ, msgpack).

    Only this machine reaches it, unless host says otherwise. Then the environment variable GROOT_API_TOKEN must hold a
    token of 16 characters or more, which clients give as api_token; it travels unencrypted, so use networks that you
    trust, or reach the default host through ssh -N -L 5555:127.0.0.1:5555 MACHINE. A token that is set is asked for on
    this machine too, where others may be logged in. Ctrl-C or SIGTERM ends it after the request it is at.
    """

    checkpoint: str = _option("the folder of a finished checkpoint, or of a policy of LeRobot's")
    host: str = _option("the address to listen on; 0.0.0.0 is every network", "127.0.0.1")
    port: int = _option("the port to listen on; 0 takes any free one", 5555, at_least=0)
    embodiment_tag: str = _option("whose statistics and projectors to act with", "new_embodiment")
    denoising_steps: int | None = _option("Euler steps of a chunk; null takes the checkpoint's", None, at_least=1)
    guidance: float = _option(
        "how far it follows the instruction: 1 as trained, more for checkpoints trained with "
        "augment.instruction_dropout",
        1.0,
        at_least=0,
    )
    device: str = _option("where to compute; auto is cuda where there is one", "auto", choices=("auto", "cpu", "cuda"))
    precision: str = _option(
        "of the weights; auto is bf16 on GPUs that have it, fastest on CPUs too",
        "auto",
        choices=("auto", "fastest", "bf16", "fp32"),
    )
    verify: bool = _option("compare every file of the checkpoint with its manifest first", False)
    compile: bool = _option("compile the action head: minutes at the start, then faster actions", False)
    max_batch: int = _option("robots in one request at most", 64, at_least=1)
    log_every: int = _option("a line with the latency every so many actions", 100, at_least=1)
    quiet: bool = _option("no such lines, only refusals and failures", False)


def read_options(argv: Sequence[str]) -> ServeConfig:
    """The configuration that `argv` describes; anything that is no key=value of it raises ToolkitError."""
    fields = {field.name: field for field in dataclasses.fields(ServeConfig)}
    values: dict[str, Any] = {}
    for argument in argv:
        if argument.startswith("-"):
            flag, _, value = argument.lstrip("-").replace("-", "_").partition("=")
            name = flag if flag in fields else "KEY"
            raise ToolkitError(
                f"Options are written key=value: write {name}={value or 'VALUE'}, not {argument}. See --help."
            )
        name, equals, raw = argument.partition("=")
        if not equals:
            raise ToolkitError(f'"{argument}" is no key=value.{did_you_mean(argument, fields)} See --help.')
        field = look_up(fields, name, f'There is no key "{name}".')
        if not raw.strip():
            raise ToolkitError(f"{name} is empty. Give it a value, or leave it out for the default.")
        if name in values:
            raise ToolkitError(f"{name} is given twice. Keep one of them.")
        values[name] = _value(field, raw.strip())
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise ToolkitError(f"{name} is missing: give {name}=VALUE, {field.metadata['meaning']}. See --help.")
    return ServeConfig(**values)


def _value(field: dataclasses.Field[Any], raw: str) -> Any:
    kind, _, nullable = str(field.type).partition(" | ")
    if nullable and raw == "null":
        return None
    refusal = ToolkitError(f"{field.name}={raw}: expected {_expected(field)}.")
    truth = {"true": True, "false": False}
    read: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": truth.__getitem__}
    try:
        value = read[kind](raw)
    except (ValueError, KeyError):
        raise refusal from None
    if value not in field.metadata.get("choices", [value]) or value < field.metadata.get("at_least", value):
        raise refusal
    return value


def _expected(field: dataclasses.Field[Any]) -> str:
    kind, _, nullable = str(field.type).partition(" | ")
    words = ", ".join(field.metadata.get("choices", [_WORDS[kind]]))
    words += f" of at least {field.metadata['at_least']}" if "at_least" in field.metadata else ""
    return words + (" or null" if nullable else "")


def help_text() -> str:
    """What --help prints: ServeConfig's docstring, every key with its default, meaning and kind, and examples."""
    lines = []
    for field in dataclasses.fields(ServeConfig):
        shown = "VALUE" if field.default is dataclasses.MISSING else str(field.default)
        if field.default is None or isinstance(field.default, bool):
            shown = "null" if field.default is None else shown.lower()
        name = f"  {field.name}={shown}".ljust(_COLUMN)
        meaning = f"{name}{field.metadata['meaning']} ({_expected(field)})"
        lines.append(textwrap.fill(meaning, 118, subsequent_indent=" " * _COLUMN, break_on_hyphens=False))
    return USAGE.format(about=inspect.cleandoc(ServeConfig.__doc__ or ""), keys="\n".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    """The command; refusals end with status 2, Ctrl-C before it serves with 130."""
    arguments = sys.argv[1:] if argv is None else argv
    if any(argument in ("--help", "-h", "help") for argument in arguments):
        print(help_text())
        return
    # Threads that wait without spinning: beside a simulator, spinning slows both down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        serve(read_options(arguments))
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def serve(config: ServeConfig) -> None:
    """Serve until a signal or the endpoint kill. What can be refused is refused before the weights are read."""
    from gr00t.server import PolicyServer  # needs the packages of the extra "serve"

    token = os.environ.get(TOKEN) or None
    limits = {"max_batch": config.max_batch, "log_every": config.log_every}
    with PolicyServer(None, config.host, config.port, token, **limits) as server:  # requests wait for the policy
        if not Path(config.checkpoint).expanduser().is_dir():
            raise ToolkitError(
                f"checkpoint={config.checkpoint} is no folder. Fine-tune first (launch_finetune_local.py), or give the "
                f"folder of a finished checkpoint.{near_folder(Path(config.checkpoint).expanduser())}"
            )
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
        logging.getLogger("gr00t.server").setLevel(logging.WARNING if config.quiet else logging.INFO)
        policy = server.endpoints.policy = _load(config)
        server.endpoints.identity = _identity(config)
        example = getattr(policy, "example_observation", partial(example_observation, policy))
        for text in ("pick up the object", "pick up the color-matching object", "pick up the object"):  # two lengths
            begin = time.perf_counter()
            policy.get_action(example(text), seed=0)  # no client waits for CUDA or a compiler
        seconds = time.perf_counter() - begin

        def stop(number: int, frame: Any) -> None:
            """The first signal ends it after the request it is at, the second at once."""
            del frame
            server.stop()
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        print(_introduction(config, policy, server, seconds), flush=True)
        print(f"stopped after {server.run()} requests", flush=True)


def _load(config: ServeConfig) -> Any:
    folder = Path(config.checkpoint).expanduser()
    if kind := lerobot_kind(folder):
        for field in dataclasses.fields(config):
            if field.name in _OURS and getattr(config, field.name) != field.default:
                raise ToolkitError(f"{field.name} acts on nothing with {folder}, LeRobot's {kind}. Leave it out.")
        return LeRobotPolicy(folder, config.device)
    from gr00t.model.device import pick_device, pick_precision
    from gr00t.model.gr00t_n1 import GR00TPolicy

    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    said = (config.embodiment_tag, config.denoising_steps, dtype, config.verify, config.guidance)
    policy = GR00TPolicy.from_pretrained(config.checkpoint, None, *said).to(device)
    return policy.compile_head() if config.compile else policy


def _identity(config: ServeConfig) -> str:
    """Of the weights and of what decides how they act."""
    said = [fingerprint(Path(config.checkpoint).expanduser()), *(str(getattr(config, name)) for name in _OURS)]
    return hashlib.sha256(" ".join(said).encode()).hexdigest()


def example_observation(policy: GR00TPolicy, text: str) -> dict[str, Any]:
    """An observation of one robot as the policy reads it: black images, the mean state of its training."""
    import numpy as np

    statistics = policy.processor.files.statistics[policy.tag]["state"]
    video, state, language = (policy.modality_configs[modality] for modality in OBSERVED)
    image = np.zeros((1, len(video.delta_indices), 256, 256, 3), np.uint8)
    means = {key: np.asarray(statistics[key]["mean"], np.float32) for key in state.modality_keys}
    return {
        "video": dict.fromkeys(video.modality_keys, image),
        "state": {key: np.tile(mean, (1, len(state.delta_indices), 1)) for key, mean in means.items()},
        "language": {language.modality_keys[0]: [[text]]},
    }


def _introduction(config: ServeConfig, policy: Any, server: PolicyServer, seconds: float) -> str:
    """What is served, to whom, and what to send."""
    configs, action = policy.modality_configs, policy.modality_configs["action"]
    read = [f"{name}.{key}" for name in ("video", "state") if name in configs for key in configs[name].modality_keys]
    reached = f"with the token of {TOKEN}" if os.environ.get(TOKEN) else "without a token, from this machine only"
    speed = f"{1e3 * seconds:.0f} ms an action chunk"
    if isinstance(policy, LeRobotPolicy):
        what, how = f"LeRobot's {policy.kind}", ""
    else:
        what, how = policy.tag, f" in {str(policy.model.dtype).removeprefix('torch.')}"
        speed = f"{policy.denoising_steps} denoising steps, {speed}"
    return f"""\
serving     {config.checkpoint} as {what}
on          {policy.device}{how}, {speed}
reads       {", ".join([*read, *configs["language"].modality_keys])}
answers     {", ".join(action.modality_keys)}: {len(action.delta_indices)} steps each
listens at  {server.url}, {reached}"""


if __name__ == "__main__":
    main()
