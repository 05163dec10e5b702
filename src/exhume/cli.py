"""The command line: finds the command, lets tyro parse its flags, and turns bad input into one sentence."""

import errno
import importlib
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib.metadata import version
from typing import Annotated, Any, get_args

from exhume.errors import InputError

COMMANDS = {
    "demo": ("run", "train on 100 handwritten digits, dig them out of the weights, score, and draw the page"),
    "audit": ("audit", "say what your model gives away of your training images"),
    "train": ("run", "train a network on a problem"),
    "find-start": ("find_start", "look for what training began with, in the weights alone"),
    "reconstruct": ("run", "reconstruct training images from a checkpoint alone"),
    "search": ("run", "search for settings: many reconstructions, whose best candidates become the run's"),
    "study": ("study", "train, attack and score the cells of a study, and write their table"),
    "score": ("run", "count what came out, against held-out images"),
    "report": ("run", "draw the run's page, report.html"),
    "compare": ("study", "put runs side by side: their settings, counts and times"),
    "import-args": ("lists", "read an argument file of the papers' own code as a command"),
    "problems": ("lists", "list the problems"),
    "presets": ("lists", "list the presets"),
    "zoo": ("lists", "list the trained networks that come with the repository"),
}
"""Each command's module in commands/, imported only once it is chosen, and what it does."""


GOES_ON = {
    "demo": "the same command goes on where it was",
    "train": "the same command goes on where the training was",
    "find-start": "in a run, the same command goes on where the sweep over all seeds was",
    "reconstruct": "the same command goes on where the reconstruction was",
    "search": "the same command goes on with the trials that have not ended",
    "study": "the same command goes on with the cells that have not ended",
    "audit": "the same command goes on with what has not ended",
}
"""What becomes of a command that is interrupted; of the others nothing is lost but their time."""
MEMORY = {
    "train": "--widths, --channels, --per-class and --batch-size lower it",
    "reconstruct": "--restarts, --per-class and --images lower it",
    "search": "--workers, --per-class and --images lower it",
    "study": "--workers lowers it",
}
"""Which flags lower how much memory a command needs."""
NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "Cannot allocate memory",
    "failed to map segment",
    "bad_alloc",
)
"""What PyTorch, the system, the loader of libraries, and C++ say."""
RESERVE = 2**23
"""Bytes that are given back where memory runs out, so that it can still be said."""
LEAST_ADDRESS_SPACE = 2**30
"""Bytes of addresses below which the libraries crash when they are loaded, some without an exception: PyTorch, SciPy
and the others take 0.8 GiB."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; exits with 2 after one sentence where the user's input is at fault.

    A command that a signal ends exits with 128 and the signal's number, as shells have it.
    """
    reserve = bytearray(RESERVE)
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else ""
    # threads that wait for each other by spinning make a busy machine ten times slower; read when PyTorch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        with _signals():
            parse(argv)()
            _flush()
    except InputError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt as stop:
        _complain(f"interrupted; {GOES_ON.get(name, 'nothing was changed')}")
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except BrokenPipeError:  # whoever read the output has seen enough
        _forget_output()
    except Exception as error:
        del reserve
        sentence = _of_the_machine(error, name)
        if sentence is None:
            error.add_note("This is a fault of exhume itself. Please report it, with this text and the command.")
            raise
        _complain(sentence)
        sys.exit(2)


@contextmanager
def _signals() -> Iterator[None]:
    """Within, the signals that end a process end it as Ctrl-C does, so that its state is saved."""
    before: dict[int, Any] = {}
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has the second ignored
            with suppress(ValueError):  # not in the main thread, which alone hears of signals
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


REFUSALS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What the system may refuse of any path, whatever is done with it."""


def _of_the_machine(error: Exception, command: str) -> str | None:
    """The sentence for what the machine lacks or refuses; None: it is something else."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return f"{error.filename or 'A file'} cannot be used: {error.strerror}."
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return f"There is not enough memory for this; {MEMORY.get(command, 'smaller data need less')}."
    return None


def _complain(sentence: str) -> None:
    with suppress(OSError):  # nobody listens: the terminal is closed
        print(f"exhume: {sentence}", file=sys.stderr, flush=True)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _forget_output() -> None:
    """Sends what is left of the output nowhere: at its end Python would complain of it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(nowhere, stream.fileno())


def parse(argv: Sequence[str]) -> Any:
    """The command that `argv` asks for, as a callable with its flags.

    Some flags set the defaults of others. `before` reads these flags first; where it takes all of them to know the
    defaults, `defaults` gives them after a first parse, and they are parsed once more.
    """
    name = _command_name(argv)
    _check_address_space()
    tyro: Any = importlib.import_module("tyro")
    module = importlib.import_module(f"exhume.commands.{COMMANDS[name][0]}")
    kind = getattr(module, "".join(map(str.capitalize, name.split("-"))))
    if {"-h", "--help"} & set(argv):
        _join_lines(kind)
    words = {"args": argv[1:], "prog": f"exhume {name}", "config": (tyro.conf.FlagCreatePairsOff,)}
    if hasattr(kind, "before"):
        return tyro.cli(kind, default=kind.before(argv[1:]), **words)
    command = tyro.cli(kind, **words)
    return tyro.cli(kind, default=command.defaults(), **words) if hasattr(command, "defaults") else command


def _check_address_space() -> None:
    """Raises `InputError` where `ulimit -v` leaves too little to load the libraries."""
    with suppress(ImportError):
        resource: Any = importlib.import_module("resource")
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
            raise InputError(
                f"This shell allows {limit / 2**30:.2f} GiB of memory (ulimit -v), and exhume needs more than "
                f"{LEAST_ADDRESS_SPACE / 2**30:.0f} GiB."
            )


def _join_lines(kind: Any) -> None:
    """Gives tyro the fields' docstrings as one line each.

    It removes line breaks before it removes the indentation, and keeps those before a line that begins with no letter.
    """
    docstring_parser: Any = importlib.import_module("docstring_parser")
    arg: Any = importlib.import_module("tyro").conf.arg
    told = {entry.arg_name: entry.description for entry in docstring_parser.parse_from_object(kind).params}
    for field in fields(kind):
        for part in get_args(field.type):
            if is_dataclass(part):
                _join_lines(part)
        if told.get(field.name):
            whole = arg(help=" ".join(told[field.name].split()))
            kind.__annotations__[field.name] = Annotated[field.type, whole]


def _command_name(argv: Sequence[str]) -> str:
    if argv and argv[0] in COMMANDS:
        return argv[0]
    if argv and not argv[0].startswith("-"):
        close = get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}."
        raise InputError(f"There is no command {argv[0]!r}; {hint}")
    parser = ArgumentParser(
        prog="exhume",
        description="Digs training images out of trained weights, and says honestly how many came out.",
        epilog="`exhume COMMAND --help` shows a command's flags.",
    )
    parser.add_argument("--version", action="version", version=f"exhume {version('exhume')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    parser.parse_args(argv)
    raise AssertionError("argparse has exited by itself")
