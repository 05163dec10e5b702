"""The commands that only tell: what there is by name, and what a command of the papers' own code is here."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from exhume.attack.methods import name_of
from exhume.commands.display import bars, console
from exhume.commands.papers_arguments import read_arguments
from exhume.commands.study import use_threads
from exhume.devices import Device
from exhume.errors import InputError
from exhume.presets import RECONSTRUCTIONS, TRAININGS
from exhume.problems import names_and_summaries
from exhume.runs.zoo import Entry, list_zoo, reconstruct_entry, zoo_names


@dataclass(frozen=True, kw_only=True)
class ImportArgs:
    """Read an argument file of the papers' own code as a command, and say which flags are not in it."""

    file: Positional[Path]
    """A file that holds one command, `Main.py --run_mode=... --problem=...`."""
    run: str | None = None
    """Folder of the run; without: in runs/, under the name its weights have there."""

    def __call__(self) -> None:
        if self.file.exists() and not self.file.is_file():
            raise InputError(f"{self.file} cannot be read: it is no file.")
        try:
            text = self.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
        read = read_arguments(text, self.run)
        console.print(shlex.join(read.command), soft_wrap=True)
        for title, flags in (("No counterpart here:", read.missing), ("No effect there:", read.dead)):
            lines = [f"  --{name:28}{reason}" for name, reason in flags.items()]
            if lines:
                console.print("", title, *lines, sep="\n", soft_wrap=True)
        console.print("", *read.remarks, sep="\n", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Problems:
    """List the problems."""

    def __call__(self) -> None:
        for name, summary in names_and_summaries().items():
            console.print(f"{name:37}{summary}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Presets:
    """List the presets."""

    def __call__(self) -> None:
        console.print("For `exhume train RUN --preset NAME`:")
        for name, training in TRAININGS.items():
            row = training.training
            console.print(
                f"  {name:22}{training.problem}, {training.per_class} per class, {row.loss}, lr {row.lr:g}, "
                f"weight decay {row.weight_decay:g}, {row.epochs} epochs ({training.source})",
                soft_wrap=True,
            )
        console.print("For `exhume reconstruct RUN --preset NAME`:")
        for name, preset in RECONSTRUCTIONS.items():
            console.print(f"  {name:22}method {name_of(preset.method)} ({preset.source})", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """List the trained networks that come with the repository; with --again reconstruct from them first."""

    names: Positional[tuple[str, ...]] = ()
    """Only these networks; none: all."""
    again: bool = False
    """Reconstruct anew, twice from each network, by the installed method; the candidates before are replaced."""
    folder: Path = Path("zoo")
    """Where they are."""
    device: Device = "auto"
    """Where to compute."""
    threads: int | None = None
    """Threads of the CPU; None: one for each core. Another number rounds differently."""

    def __call__(self) -> None:
        use_threads(self.threads)
        for name in zoo_names(self.folder, self.names) if self.again else ():
            with bars() as progress_callback:
                reconstruct_entry(self.folder / name, device=self.device, progress_callback=progress_callback)
            console.print(f"{name}: reconstructed twice.", soft_wrap=True)
        columns = ("name", "problem", "network", "loss", "rate", "decay", "epochs", "images", "candidates", "size")
        rows = [columns, *(_zoo_row(entry) for entry in list_zoo(self.folder, self.names))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            console.print("  ".join(map(str.ljust, row, widths)).rstrip(), soft_wrap=True)


def _zoo_row(entry: Entry) -> tuple[str, ...]:
    record = entry.training
    return (
        entry.name,
        record.problem.name,
        "-".join(entry.layers),
        str(record.training.loss),
        f"{record.training.lr:g}",
        f"{record.training.weight_decay:g}",
        f"{record.history[-1].epoch:,}",
        str(record.problem.images),
        " + ".join(map(str, entry.candidates)),
        f"{entry.size / 1e6:.1f} MB",
    )
