"""What every command does around its own work: configuration in, one line of error out, signals that ask it to stop.

Nothing here imports torch: an entry script listens before the seconds in which torch and the model are loaded.
"""

from __future__ import annotations

import getpass
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from toolkit.installation import ensure_own_gr00t

REFUSED, INTERRUPTED, READER_LEFT = 2, 130, 141  # the last as of a program that SIGPIPE ended
SPEAK_AFTER_SECONDS = 10.0


def run_main(
    main: Callable[[Any], object],
    config_name: str,
    argv: Sequence[str] | None = None,
    read: Callable[[Sequence[str]], Any] | None = None,
) -> None:
    """Load the configuration (or what `read` makes of the arguments) and call `main` with it.

    A ToolkitError ends with `error: ...` on stderr and status 2, Ctrl-C with status 130 (and what the KeyboardInterrupt
    says), a reader of its output that has left (`| head`) with 141. A disk that is full, read-only or closed to us ends
    it like a ToolkitError, wherever it shows; anything else is a bug and propagates. Under torchrun a refused
    configuration is reported once per node, an error of `main` by every rank.
    """
    # Threads that wait without spinning: beside data loader workers, or other jobs, spinning made steps 5 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _settle()
    try:
        ensure_own_gr00t()
    except ValueError as error:
        _refuse(error, once=True)
    # Imported only now: a foreign gr00t package would fail here with a message that helps nobody.
    from gr00t.errors import ToolkitError, disk_refusal

    loaded = False
    try:
        from toolkit.configuration import load

        arguments = sys.argv[1:] if argv is None else argv
        config = read(arguments) if read else load(config_name, arguments)
        loaded = True
        main(config)
        sys.stdout.flush()  # where a full disk refuses it, that is said like everything else
    except ToolkitError as error:
        _refuse(error, once=not loaded)
    except KeyboardInterrupt as stopped:
        print(": ".join(["interrupted", *map(str, stopped.args)]), file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as end:  # --help and --cfg end so
        if _reader_left() and not end.code:
            sys.exit(READER_LEFT)
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            sys.exit(READER_LEFT)
        refusal = disk_refusal(error)
        if refusal is None:
            raise
        _refuse(ToolkitError(refusal), once=False)


def _reader_left() -> bool:
    """Whether what read our output has ended (`... | head`): nothing more can be said there, at exit neither."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # no file, or closed
        return False
    look = select.poll()
    look.register(output, 0)
    left = any(events & select.POLLERR for _, events in look.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return left


def _settle() -> None:
    """A home folder and a user's name, which libraries ask for and containers may lack; output in any locale."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(Path(os.environ.get("TMPDIR", "/tmp")) / f"home-{os.getuid()}")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse(error: Exception, once: bool) -> NoReturn:
    rank, local_rank = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    if once and local_rank != "0":
        # torchrun ends all ranks when the first one exits: wait, so that local rank 0 gets to say it, and this one
        # speaks only where that rank has nothing to refuse.
        time.sleep(SPEAK_AFTER_SECONDS)
    where = f" (rank {rank})" if rank != "0" else ""
    print(f"error{where}: {error}", file=sys.stderr)
    sys.exit(REFUSED)


# SLURM's own and the job's, ahead of preemption or the time limit; torchrun stops its workers with SIGTERM.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_received: signal.Signals | None = None
_listening = False


@contextmanager
def stop_signals() -> Iterator[None]:
    """Remember SIGNALS in place of dying of them; within another such block, or in a thread, this does nothing."""
    global _listening, _received
    if _listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _remember) for number in SIGNALS}
    _listening, _received = True, None
    try:
        yield
    finally:
        _listening = False
        for number, handler in before.items():
            signal.signal(number, handler)


def received() -> signal.Signals | None:
    """The first of SIGNALS that came, None while none has."""
    return _received


def leave_signals_to_parent() -> None:
    """Ignore SIGNALS in a process that a parent started and ends: SLURM sends them to every process of a job."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """Block SIGNALS: programs started meanwhile inherit the mask, and this process gets what is pending afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remember(number: int, frame: FrameType | None) -> None:
    global _received
    del frame
    _received = _received or signal.Signals(number)
