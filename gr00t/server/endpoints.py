"""From a request to a reply: the endpoints of NVIDIA's policy server over any policy, without the network."""

from __future__ import annotations

import hmac
import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gr00t.data.schema import ModalityConfigs
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.server.messages import decode, pack, unpack

log = logging.getLogger(__name__)
ENDPOINTS = ("ping", "get_action", "reset", "get_modality_config", "kill")
MODALITIES = ("video", "state", "language")  # of a nested observation
FLAT = ("video.", "state.", "annotation.")  # what keys of a flat one begin with
TASK, SIMULATORS_TASK = "task", "annotation.human.coarse_action"  # some simulators of the original say it so
UNKNOWN = "?"  # endpoint of a message that does not tell
MAX_BATCH = 64
MAX_SIDE = 4096  # pixels; images are padded to a square, so a narrow one grows
MAX_INSTRUCTION = 1000  # characters
_SHOWN = 2000  # characters of an error


class Policy(Protocol):
    """What a server needs of a policy."""

    @property
    def modality_configs(self) -> ModalityConfigs: ...

    def get_action(self, observation: Mapping[str, Any], *, seed: int | None = None) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Reply:
    """The packed answer to one request, and what the log says of it."""

    endpoint: str
    body: bytes
    error: str | None = None


class Endpoints:
    """Answers requests one by one; no request raises anything."""

    def __init__(self, policy: Policy, api_token: str | None = None, max_batch: int = MAX_BATCH) -> None:
        self._policy, self._max_batch = policy, max_batch
        self._token = None if api_token is None else api_token.encode()
        self._told: set[tuple[str, int | None]] = set()  # the lines of code that failed

    def answer(self, message: bytes | memoryview) -> Reply:
        """The reply to a message; {"error": text} where it is refused or the policy fails."""
        endpoint = UNKNOWN
        try:
            request = self._open(message)
            endpoint = _endpoint(request)
            return Reply(endpoint, pack(self._call(endpoint, request.get("data"))))
        except ToolkitError as refusal:
            return error_reply(str(refusal), endpoint)
        except Exception as error:  # whatever a request sets off, the next one is served
            self._tell(error, endpoint)
            return error_reply(f"The server failed ({type(error).__name__}); its log says more.", endpoint)

    def _open(self, message: bytes | memoryview) -> dict[str, Any]:
        """The request's map; the token is looked at before any array is made."""
        request = unpack(message)
        if not isinstance(request, dict):
            raise ToolkitError(f"A request is a map of endpoint and data, not {type(request).__name__}.")
        if not self._authorised(request.get("api_token")):
            raise ToolkitError("Unauthorized: Invalid API token")
        return decode(request)

    def _authorised(self, token: Any) -> bool:
        if self._token is None:
            return True
        return isinstance(token, str) and hmac.compare_digest(token.encode(), self._token)

    def _tell(self, error: Exception, endpoint: str) -> None:
        """The log gets the traceback of each failing line once, so that a client cannot fill a disk."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        if (last.filename, last.lineno) not in self._told:
            self._told.add((last.filename, last.lineno))
            log.exception("%s failed", endpoint)

    def _call(self, endpoint: str, data: Any) -> Any:
        if endpoint == "get_action":
            return self._get_action(_arguments(data, ("observation", "options")))
        if endpoint == "reset":
            _options(_arguments(data, ("options",)))
            return {}
        if endpoint == "get_modality_config":
            return self._policy.modality_configs
        return {"status": "ok", "message": "Server is stopping" if endpoint == "kill" else "Server is running"}

    def _get_action(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Actions in the form of the observation, and an empty info map.

        {"action.<group>": ...} for a flat observation (original: Gr00tSimPolicyWrapper), else {"<group>": ...}.
        """
        if "observation" not in data:
            raise ToolkitError('get_action needs data with "observation".')
        seed = _options(data).get("seed")  # clients of simulators send further options, which change nothing here
        observation = data["observation"]
        check_size(observation, self._max_batch)
        flat = is_flat(observation, self._language_key)
        actions = self._policy.get_action(self._with_task(observation) if flat else observation, seed=seed)
        return [actions if flat else {name.removeprefix("action."): values for name, values in actions.items()}, {}]

    @property
    def _language_key(self) -> str | None:
        language = self._policy.modality_configs.get("language")
        return language.modality_keys[0] if language else None

    def _with_task(self, flat: dict[str, Any]) -> dict[str, Any]:
        """The observation with "task" where a simulator of the original gives its own key of it."""
        if self._language_key != TASK or TASK in flat:
            return flat
        return {(TASK if name == SIMULATORS_TASK else name): value for name, value in flat.items()}


def error_reply(text: str, endpoint: str = UNKNOWN) -> Reply:
    """A refusal. What a request wrote into it can neither flood the log nor steer the terminal that shows it."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_SHOWN])
    return Reply(endpoint, pack({"error": shown + ("..." if len(text) > _SHOWN else "")}), shown)


def is_flat(observation: Any, language_key: str | None) -> bool:
    """Whether an observation has keys like "video.<view>", not maps of them.

    Raises ToolkitError for one that has both: the form of its answer would be a guess.
    """
    if not isinstance(observation, dict) or not observation:
        return False
    maps = [name for name in MODALITIES if isinstance(observation.get(name), dict)]
    flat = [name for name in observation if name == language_key or name.startswith(FLAT)]
    if maps and flat:
        raise ToolkitError(
            f'The observation is nested in "{maps[0]}" and flat in "{flat[0]}". Send it in one form: the maps video, '
            "state and language, or keys such as video.<view> and state.<group> with the instruction's key beside them."
        )
    return not maps


def check_size(observation: Any, max_batch: int) -> None:
    """Refuse what would take the server's memory: many robots, huge or narrow images, endless instructions."""
    for value in _leaves(observation):
        if isinstance(value, str) and len(value) > MAX_INSTRUCTION:
            raise ToolkitError(f"An instruction has {len(value)} characters; {MAX_INSTRUCTION} are allowed.")
        if not isinstance(value, np.ndarray) or value.ndim != 5:
            continue
        if len(value) > max_batch:
            raise ToolkitError(
                f"The request is for {len(value)} robots; this server takes {max_batch} at once. Send several "
                "requests, or start it with a larger max_batch."
            )
        if max(value.shape[2:4]) > MAX_SIDE:
            raise ToolkitError(f"Images of {value.shape[2]} x {value.shape[3]} pixels: {MAX_SIDE} a side are allowed.")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def _endpoint(request: dict[str, Any]) -> str:
    name = request.get("endpoint", "get_action")
    if not isinstance(name, str) or name not in ENDPOINTS:
        raise ToolkitError(f'There is no endpoint "{name!s:.80}".{did_you_mean(str(name)[:80], ENDPOINTS)}')
    return name


def _arguments(data: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The request's data, which may be missing."""
    if data is not None and not isinstance(data, dict):
        raise ToolkitError(f"A request's data is a map of {', '.join(names)}, not {type(data).__name__}.")
    for name in data or {}:
        if name not in names:
            raise ToolkitError(f'The data has "{name}", which is no argument.{did_you_mean(name, names)}')
    return data or {}


def _options(data: dict[str, Any]) -> dict[str, Any]:
    options = data.get("options")
    if options is not None and not isinstance(options, dict):
        raise ToolkitError(f"options is a map or null, not {type(options).__name__}.")
    return options or {}
