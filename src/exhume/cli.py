"""The command line: finds the command, lets tyro parse its flags, and turns bad input into one sentence."""

import importlib
import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

from exhume.errors import InputError

COMMANDS = {
    "demo": ("run", "train on 100 handwritten digits, dig them out of the weights, score, and draw the page"),
    "audit": ("audit", "say what your model gives away of your training images"),
    "train": ("run", "train a network on a problem"),
    "find-start": ("find_start", "look in the weights for what training began with: the seed, or a public network"),
    "reconstruct": ("run", "reconstruct training images from a checkpoint alone"),
    "search": ("run", "search for settings: many reconstructions, whose best candidates become the run's"),
    "score": ("run", "count what came out, against held-out images"),
    "report": ("run", "draw the run's page, report.html"),
    "import-args": ("lists", "read an argument file of the papers' own code as a command"),
    "problems": ("lists", "list the problems"),
    "presets": ("lists", "list the presets"),
    "zoo": ("lists", "list the trained networks that come with the repository"),
}
"""Each command's module in commands/, imported only once it is chosen, and what it does."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; exits with 2 after one sentence where the user's input is at fault."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # threads that wait for each other by spinning make a busy machine ten times slower; read when PyTorch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        parse(argv)()
    except InputError as error:
        print(f"exhume: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "exhume: interrupted; by the same command a training goes on where it was last saved, every 20 s, "
            "and a search after the trials that have ended",
            file=sys.stderr,
        )
        sys.exit(130)


def parse(argv: Sequence[str]) -> Any:
    """The command that `argv` asks for, as a callable with its flags.

    Some flags set the defaults of others. `before` reads these flags first; where it takes all of them to know the
    defaults, `defaults` gives them after a first parse, and they are parsed once more.
    """
    name = _command_name(argv)
    tyro: Any = importlib.import_module("tyro")
    module = importlib.import_module(f"exhume.commands.{COMMANDS[name][0]}")
    kind = getattr(module, "".join(map(str.capitalize, name.split("-"))))
    words = {"args": argv[1:], "prog": f"exhume {name}", "config": (tyro.conf.FlagCreatePairsOff,)}
    if hasattr(kind, "before"):
        return tyro.cli(kind, default=kind.before(argv[1:]), **words)
    command = tyro.cli(kind, **words)
    return tyro.cli(kind, default=command.defaults(), **words) if hasattr(command, "defaults") else command


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
