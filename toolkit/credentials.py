"""What looks like a key or password: the patterns of detect-secrets, and the kinds that it does not know.

Used on what is published, on the code that a job copies, and on the configuration, which is written to the run folder,
the job's script and the run's log. What is found is never repeated, only its kind.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gr00t.errors import ToolkitError

SECRET_NAME = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
ALLOWED = "pragma: allowlist secret"  # detect-secrets' own mark of a line that holds an example
_LEAST_SECRET = 8
# Hashes have a high entropy, every server has an address, and IBM's kinds take longer than all others together.
_UNUSED = (
    *("Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector", "KeywordDetector"),
    *("CloudantDetector", "IbmCloudIamDetector", "IbmCosHmacDetector", "SoftlayerDetector"),
)
_NAMED = r"(?i)(?:passw(?:or)?d|passphrase|secret|token|credential|(?:api|access|account|auth|client|private)[_-]?key)"
_OWN = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "a wandb key": r"wandb_v\d_[A-Za-z0-9_]{20,}",
    "a GitHub token": r"(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{22,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a Google key": r"AIza[\w-]{30,}|\bya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}",
    "a Slack token": r"\bxox[a-z]-[A-Za-z0-9-]{10,}|\bxapp-\d-[A-Za-z0-9-]{10,}",
    "a Discord webhook": r"discord(?:app)?\.com/api/webhooks/\d+/[\w-]{20,}",
    "a Stripe key": r"\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,}|\bwhsec_[\w+/=-]{20,}",
    "an npm token": r"npm_[A-Za-z0-9]{30,}",
    "a PyPI token": r"pypi-Ag[\w-]{30,}",
    "an Azure key": r"(?:AccountKey|SharedAccessKey)=[\w+/]{40,}|[?&]sig=[\w%+/-]{40,}|\dQ~[\w.~-]{30,}",
    "a private key": r"BEGIN [A-Z ]*PRIVATE KEY|AGE-SECRET-KEY-1[0-9A-Z]{20,}",
    "a login in an address": r"://[^\s/@:\"'{}<>]*:(?![${<])[^\s/@\"']+@[\w.\[-]",
    "a bearer token": r"(?i)\bbearer\s+(?=[\w.~+/-]*\d)[\w.~+/-]{20,}",
    "a login of .netrc": r"(?i)\bmachine\s+\S+\s+login\s+\S+\s+password\s+\S|^\s*password\s+\S{6,}\s*$",
    "a key or password": _NAMED + r"\w*[\"']?\s*(?:[:=]|\s)\s*[\"']?(?=[\w+/-]*\d)(?=[\w+/-]*[a-z])[\w+/-]{24,}",
    "a variable with a key": r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)=(?=[^\s\"'$<]*[a-z0-9])[^\s\"'$<{(.]{6,}"
    r"|\bpassw(?:or)?d=(?=[^\s\"'$<{(.]*\d)[^\s\"'$<{(.]{6,}",
}
_BASIC = re.compile(r"(?i)\bbasic\s+([A-Za-z0-9+/]{8,}={0,2})")
_HEX = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])")
_OF_A_KEY = re.compile(r"(?i)wandb|login|passw|secret|token|(?<![a-z])key")
_OF_GIT = re.compile(r"(?i)revision|commit|git|\bsha1?\b|snapshots/|blob")
_NEAR = 40  # characters
_ESCAPE = re.compile(r"\\[nrt]")  # "\nhf_..." in JSON: the n is no letter of a word
_BASE64 = ";base64,"
_EMBEDDED = re.compile(_BASE64 + r"[\w+/=]{100,}")  # the images and videos of a page
_PIECE, _OVERLAP = 4000, 500  # characters; a key is shorter than both
# Numbers and short words, which fill the large files, are passed over quickly.
_LONG = re.compile(r"[A-Za-z][\w+-]{15}")
_WORDS = ("://", "pass", "pwd", "secret", "token", "key", "credential", "contrase", "basic")


_Kind = tuple[str, Callable[[str], object]]  # what it is called, and whether a piece of text holds one


def secrets_in(text: str, file_name: str = "", *, named: bool = True) -> Iterator[tuple[int, str]]:
    """(line, kind) of each line that holds a secret.

    file_name: the kind of file decides how passwords are written in it. named=False leaves out what only a name beside
    it makes a password, for vocabularies.
    """
    pieces = [
        (number, _ESCAPE.sub("  ", piece))
        for number, line in enumerate(text.splitlines(), start=1)
        if ALLOWED not in line
        for piece in _candidates(_EMBEDDED.sub("", line) if _BASE64 in line else line)
    ]
    together = "\n".join(piece for _, piece in pieces)
    kinds = [kind for kind in (_kinds(Path(file_name).suffix, named) if pieces else ()) if kind[1](together)]
    reported = 0
    for number, piece in pieces if kinds else ():
        found = next((name for name, is_in in kinds if is_in(piece)), None)
        if found and number > reported:
            yield number, found
            reported = number


def _candidates(line: str) -> list[str]:
    """The line, in overlapping pieces where it is so long that some patterns would take minutes; those worth a look."""
    starts = range(0, max(len(line) - _OVERLAP, 1), _PIECE - _OVERLAP)
    pieces = [line[start : start + _PIECE] for start in starts]
    return [piece for piece in pieces if any(word in piece.lower() for word in _WORDS) or _LONG.search(piece)]


def secret_variables() -> dict[str, str]:
    """{value: name} of the environment variables that hold a secret, by their names."""
    values = {name: value.strip() for name, value in os.environ.items() if SECRET_NAME.search(name)}
    return {v: name for name, v in values.items() if len(v) >= _LEAST_SECRET and not Path(v).is_absolute()}


@cache
def _kinds(suffix: str, named: bool) -> tuple[_Kind, ...]:
    """Every kind that is looked for in a file with this suffix."""
    own = {name: re.compile(pattern, re.MULTILINE) for name, pattern in _OWN.items()}
    if not named:
        del own["a key or password"], own["a variable with a key"]
    kinds: list[_Kind] = [(name, pattern.search) for name, pattern in own.items()]
    kinds += [("a login in a header", _is_basic), ("a wandb key", _is_wandb_key), *_of_detect_secrets()]
    return (*kinds, *([("a key or password", _password_in(suffix))] if named else []))


@cache
def _of_detect_secrets() -> tuple[_Kind, ...]:
    # Imported only where there is something to look at: it takes a sixth of a second.
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ImportError:
        raise ToolkitError(
            "Keys are looked for with detect-secrets. Install it: pip install -e . -c constraints.txt"
        ) from None
    plugins: dict[str, Any] = get_mapping_from_secret_type_to_class()

    def kind(name: str, plugin: Any) -> _Kind:
        article = "an" if name[0] in "AEIO" or name.startswith(("NPM", "SoftLayer")) else "a"
        return f"{article} {name}", lambda piece: any(True for _ in plugin.analyze_string(piece))

    return tuple(kind(name, plugin()) for name, plugin in plugins.items() if plugin.__name__ not in _UNUSED)


def _password_in(suffix: str) -> Callable[[str], object]:
    """Quoted values of variables named password, secret, api_key, ...; in configuration files unquoted ones too."""
    from detect_secrets.plugins import keyword
    from detect_secrets.util.filetype import determine_file_type

    kind = determine_file_type(f"x{suffix}")
    patterns = keyword.REGEX_BY_FILETYPE.get(kind, keyword.QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP)
    # "value" == password: looked for behind every quote of a text, which takes longer than all else.
    slow = keyword.PRECEDED_BY_EQUAL_COMPARISON_SIGNS_QUOTES_REQUIRED_REGEX
    return lambda piece: any(pattern.search(piece) for pattern in patterns if pattern is not slow)


def _is_basic(line: str) -> bool:
    """HTTP's Basic login, which is user:password in base64."""
    for found in _BASIC.findall(line):
        try:
            login = base64.b64decode(found + "=" * (-len(found) % 4))
        except binascii.Error:
            continue
        if b":" in login and login.isascii():
            return True
    return False


def _is_wandb_key(line: str) -> bool:
    """40 hex digits, unless what stands before them speaks of git, whose revisions look the same."""
    before = [_HEX.sub("", line[: found.start()])[-_NEAR:] for found in _HEX.finditer(line)]
    return any(_OF_A_KEY.search(words) or not _OF_GIT.search(words) for words in before)


def refuse_secret(key: str, text: str) -> None:
    """Raise ToolkitError where the value of `key` holds what looks like a secret, or a secret variable's value."""
    variable = next((name for value, name in secret_variables().items() if value in text), None)
    if variable is not None:
        raise ToolkitError(secret_message(f"{key} holds the value of {variable}"))
    named = f"revision {text}" if key.rpartition(".")[2] == "revision" else text  # 40 hex digits, like a wandb key
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


# Longest first: UTF-32 begins as UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_IMAGES = {".png": rb"\x89PNG\r\n", ".jpg": rb"\xff\xd8\xff", ".jpeg": rb"\xff\xd8\xff", ".mp4": rb"....ftyp"}
_IMAGES[".webp"] = rb"RIFF....WEBP"
_END_OF_PNG = b"IEND\xaeB`\x82"
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
# in one byte or two a character; what both begin with stands first, which takes a third of the time
_STRINGS = re.compile(rb"[\x20-\x7e](?:[\x20-\x7e]{7,}|\0(?:[\x20-\x7e]\0){7,})")


def text_of(path: Path) -> str | None:
    """The text of a file, of an image's or a video's texts, or of the metadata of weights; None for any other file."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np") as shard:
                return json.dumps(shard.metadata() or {}, indent=1)
        except SafetensorError:
            return None
    data = path.read_bytes()
    if path.suffix.lower() in _IMAGES:
        return _text_of_image(path, data)
    codec = next((codec for mark, codec in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(codec)
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


def strings_of(data: bytes) -> str:
    """Whatever is text in binary data, in one byte or two a character, a line each."""
    return "\n".join(found.replace(b"\0", b"").decode("ascii") for found in _STRINGS.findall(data))


def _text_of_image(path: Path, data: bytes) -> str | None:
    """None for another file of that name, or one with more behind its end."""
    suffix = path.suffix.lower()
    if not re.match(_IMAGES[suffix], data, re.DOTALL):
        return None
    if suffix == ".mp4":
        return strings_of(data)
    if suffix == ".png" and not data.endswith(_END_OF_PNG):
        return None
    if suffix == ".webp" and int.from_bytes(data[4:8], "little") + 8 != len(data):
        return None
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # what stands behind the pixels, too
            described = [f"{k} {strings_of(v) if isinstance(v, bytes) else v}" for k, v in image.info.items()]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return "\n".join([*described, strings_of(data)])
