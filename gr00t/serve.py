"""Serve a checkpoint to robots and simulators, in the protocol of NVIDIA's GR00T N1.7.

python -m gr00t.serve checkpoint=checkpoints/color_object
python -m gr00t.serve --help
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr00t.errors import ToolkitError
from gr00t.files import near_folder
from gr00t.server.address import TOKEN, check_free, find_address
from gr00t.server.options import help_text, option, read_options

if TYPE_CHECKING:
    from gr00t.model.gr00t_n1 import GR00TPolicy
    from gr00t.server import PolicyServer

COMMAND = "python -m gr00t.serve"
EXAMPLES = (
    "checkpoint=checkpoints/color_object",
    "checkpoint=checkpoints/color_object device=cuda compile=true port=5556",
    "checkpoint=checkpoints/color_object host=0.0.0.0   # with a token, see above",
)
REFUSED, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class ServeConfig:
    """Serve a checkpoint to robots and simulators, in the protocol of NVIDIA's GR00T N1.7 (ZeroMQ, msgpack).

    Only this machine reaches it, unless host says otherwise. Then the environment variable GROOT_API_TOKEN must hold a
    token of 16 characters or more, which clients give as api_token; it travels unencrypted, so use networks that you
    trust, or reach the default host through ssh -N -L 5555:127.0.0.1:5555 MACHINE. A token that is set is asked for on
    this machine too, where others may be logged in. Ctrl-C or SIGTERM ends it after the request it is at.
    """

    checkpoint: str = option("the folder of a finished checkpoint")
    host: str = option("the address to listen on; 0.0.0.0 is every network", "127.0.0.1")
    port: int = option("the port to listen on; 0 takes any free one", 5555, at_least=0)
    embodiment_tag: str = option("whose statistics and projectors to act with", "new_embodiment")
    denoising_steps: int | None = option("Euler steps of a chunk; null takes the checkpoint's", None, at_least=1)
    device: str = option("where to compute; auto is cuda where there is one", "auto", choices=("auto", "cpu", "cuda"))
    precision: str = option(
        "of the weights; auto is bf16 on GPUs that have it", "auto", choices=("auto", "bf16", "fp32")
    )
    verify: bool = option("compare every file of the checkpoint with its manifest first", False)
    compile: bool = option("compile the action head: minutes at the start, then faster actions", False)
    max_batch: int = option("robots in one request at most", 64, at_least=1)
    log_every: int = option("a line with the latency every so many actions", 100, at_least=1)
    quiet: bool = option("no such lines, only refusals and failures", False)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; refusals end with status 2, Ctrl-C before it serves with 130."""
    arguments = sys.argv[1:] if argv is None else argv
    if any(argument in ("--help", "-h", "help") for argument in arguments):
        print(help_text(ServeConfig, COMMAND, EXAMPLES))
        return
    # Threads that wait without spinning: beside a simulator, spinning slows both down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        serve(read_options(ServeConfig, arguments))
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def serve(config: ServeConfig) -> None:
    """Serve until a signal or the endpoint kill. What can be refused is refused before the weights are read."""
    token = os.environ.get(TOKEN) or None
    check_free(find_address(config.host, config.port, token))
    if not Path(config.checkpoint).expanduser().is_dir():
        raise ToolkitError(
            f"checkpoint={config.checkpoint} is no folder. Fine-tune first (launch_finetune_local.py), or give the "
            f"folder of a finished checkpoint.{near_folder(Path(config.checkpoint).expanduser())}"
        )
    from gr00t.server import PolicyServer  # needs the packages of the extra "serve"

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    logging.getLogger("gr00t.server").setLevel(logging.WARNING if config.quiet else logging.INFO)
    policy = _load(config)
    seconds = _warm_up(policy)
    limits = {"max_batch": config.max_batch, "log_every": config.log_every}
    with PolicyServer(policy, config.host, config.port, token, **limits) as server:
        _stop_on_signals(server)
        print(_introduction(config, policy, server, seconds), flush=True)
        print(f"stopped after {server.run()} requests", flush=True)


def _load(config: ServeConfig) -> GR00TPolicy:
    from gr00t.model.gr00t_n1 import GR00TPolicy
    from gr00t.model.placement import pick_device, pick_precision

    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    tag, steps = config.embodiment_tag, config.denoising_steps
    policy = GR00TPolicy.from_pretrained(config.checkpoint, None, tag, steps, dtype, verify=config.verify).to(device)
    return policy.compile_head() if config.compile else policy


def _warm_up(policy: GR00TPolicy) -> float:
    """Act on made-up observations, so that no client waits for CUDA or a compiler; seconds of the last action."""
    begin = time.perf_counter()
    for text in ("pick up the object", "pick up the color-matching object", "pick up the object"):  # two lengths
        begin = time.perf_counter()
        policy.get_action(example_observation(policy, text), seed=0)
    return time.perf_counter() - begin


def example_observation(policy: GR00TPolicy, text: str) -> dict[str, Any]:
    """An observation of one robot as the policy reads it: black images, the mean state of its training."""
    import numpy as np

    configs, statistics = policy.modality_configs, policy.processor.files.statistics[policy.tag]["state"]
    frames = {modality: len(configs[modality].delta_indices) for modality in ("video", "state")}
    image = np.zeros((1, frames["video"], 256, 256, 3), np.uint8)
    means = {key: np.asarray(statistics[key]["mean"], np.float32) for key in configs["state"].modality_keys}
    return {
        "video": {key: image for key in configs["video"].modality_keys},
        "state": {key: np.tile(mean, (1, frames["state"], 1)) for key, mean in means.items()},
        "language": {configs["language"].modality_keys[0]: [[text]]},
    }


def _stop_on_signals(server: PolicyServer) -> None:
    """The first signal ends it after the request it is at, the second at once."""

    def stop(number: int, frame: Any) -> None:
        del frame
        server.stop()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _introduction(config: ServeConfig, policy: GR00TPolicy, server: PolicyServer, seconds: float) -> str:
    """What is served, to whom, and what to send."""
    configs = policy.modality_configs
    read = [f"{name}.{key}" for name in ("video", "state") for key in configs[name].modality_keys]
    reached = f"with the token of {TOKEN}" if os.environ.get(TOKEN) else "without a token, from this machine only"
    horizon = len(configs["action"].delta_indices)
    precision = str(policy.model.dtype).removeprefix("torch.")
    return "\n".join(
        [
            f"serving     {config.checkpoint} as {policy.tag}",
            f"on          {policy.device} in {precision}, {policy.denoising_steps} denoising steps, "
            f"{1e3 * seconds:.0f} ms an action chunk",
            f"reads       {', '.join([*read, *configs['language'].modality_keys])}",
            f"answers     {', '.join(configs['action'].modality_keys)}: {horizon} steps each",
            f"listens at  {server.url}, {reached}",
        ]
    )


if __name__ == "__main__":
    main()
