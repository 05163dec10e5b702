"""The command that looks for what training began with, in a run or in a file of weights."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from exhume.attack.find_start import StartSearch, find_start, read_candidates, read_state
from exhume.commands.display import bars, console, print_start
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.records import write_tensors
from exhume.runs.start import find_start_run


@dataclass(frozen=True, kw_only=True)
class FindStart:
    """Look for what training began with, in the weights alone: the seed, the generator's state, or a public network."""

    run: Positional[Path]
    """Folder of the run, or a file of weights (.pt, .pth, .bin, .ckpt, .safetensors)."""
    search: OmitArgPrefixes[StartSearch] = field(default_factory=StartSearch)
    among: Path | None = None
    """A folder of files of weights, of which one may be the start: a public network that was fine-tuned."""
    out: Path | None = None
    """For a file of weights: where to write the initial values that were found, a .safetensors file."""
    overwrite: bool = False
    """Replace another search for the start in the folder."""

    def __call__(self) -> None:
        auto = self.search.device == "auto"
        search = replace(self.search, device=choose_device("auto").type) if auto else self.search
        if self.run.is_dir():
            if self.out is not None:
                raise InputError("--out is for a file of weights; a run's initial values are in its start.safetensors.")
            with bars() as progress_callback:
                record = find_start_run(
                    self.run,
                    search,
                    among=self.among,
                    device=search.device,
                    overwrite=self.overwrite,
                    progress_callback=progress_callback,
                )
            print_start(record.sentence, record.evidence)
            return
        networks = None if self.among is None else read_candidates(self.among)
        with bars() as progress_callback:
            outcome = find_start(read_state(self.run), search, among=networks, progress_callback=progress_callback)
        print_start(outcome.sentence, outcome.evidence)
        if self.out is not None and outcome.start is not None:
            write_tensors(self.out, outcome.start.initial)
            console.print(f"written       {self.out}", markup=False, soft_wrap=True)
        elif outcome.start is not None:
            console.print("not kept      --out FILE keeps the initial values, for --initial", soft_wrap=True)
