"""The command for owners: what does my model give away of my training images?"""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tyro.conf import OmitArgPrefixes, Positional

from exhume.attack.methods import Exhume
from exhume.audit.membership import membership_sentence
from exhume.audit.readability import Fate
from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.commands.display import bars, console, print_picked, print_scores, print_verdict
from exhume.devices import Device
from exhume.foreign import ForeignNetwork, read_network
from exhume.networks import Shape, Task
from exhume.problems import Selection
from exhume.problems.owned import OwnedImages, Split, load_images
from exhume.report import draw
from exhume.runs.audit import Source, audit_run
from exhume.runs.audit_record import AuditRecord
from exhume.runs.defences import DefenceRow
from exhume.runs.pipeline import load_numbers
from exhume.runs.schema import ScoresRecord, read_record
from exhume.runs.start import with_weights

LEAKS = 1
"""Exit code with --fail-on, where the verdict is the one that is named."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Say what your model gives away of your training images."""

    model: Positional[str]
    """The network: a file of weights (.pt, .pth, .bin, .ckpt, .safetensors, .npz), a program (TorchScript or .pt2), a
    folder with one such file, or model.py:name for your own code that makes it."""
    images: str
    """Its training images: a folder with a folder for each class, an .npz file, or a .py file with load()."""
    held_out: Path | None = None
    """Images of the same kind that it never saw: a folder or an .npz file. Without any there is no control."""
    split: Split | None = None
    """Only a part of the images was trained on: half of each class, or the first --per-class of each (rest). The others
    are held out."""
    selection: OmitArgPrefixes[Selection] = field(default_factory=Selection)
    out: Path | None = None
    """Folder of the results; without: runs/audit-NAME, by the model's name."""
    weights: Path | None = None
    """For model.py:name: the file of its weights."""
    initial: Path | None = None
    """The weights that its training began with, if they are public: the same kinds of files."""
    find_start: bool = True
    """Look in the weights for what training began with, unless --initial says it. It takes seconds, or minutes where
    the first layer shows an initialisation."""
    task: Task | None = None
    """What the outputs mean; without: several classes if there are several outputs, else two."""
    activation: str | None = None
    """Of a file of weights alone: relu (without this flag), leaky-relu, gelu, tanh or sigmoid."""
    mean: tuple[str, ...] = ()
    """What training subtracted from images in [0, 1]: one number, one a channel, or an .npy file; without: what the
    file itself says, or nothing."""
    std: tuple[str, ...] = ()
    """What training then divided by, likewise."""
    layout: Literal["chw", "hwc", "auto"] = "auto"
    """The order in which the network takes the values of an image; auto: told from the weights, where these show it."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """The order of its channels."""
    steps: int = Exhume.steps
    """Steps of each search."""
    restarts: int = Exhume.restarts
    """Searches from independent starts."""
    seed: int = Exhume.seed
    """Seed of the searches."""
    defend: bool = False
    """Train variants of the network on the images, attack them alike, and show leak against accuracy."""
    fail_on: Literal["leaks"] | None = None
    """End with exit code 1 if this is the verdict, by more than traces; without: 0, whatever the verdict."""
    json: bool = False
    """Print audit.json instead of sentences."""
    device: Device = "auto"
    """Where to compute."""
    overwrite: bool = False
    """Replace candidates of other settings in the folder, and what was made from them."""

    def __call__(self) -> None:
        mine = load_images(self.images, held_out=self.held_out, split=self.split, selection=self.selection)
        network, folder = self._network(mine), self.out or Path("runs") / f"audit-{_stem(self.model)}"
        with bars() as progress_callback:
            record = audit_run(
                folder,
                network,
                mine,
                Source(images=self.images, selection=self.selection, held_out=self.held_out, split=self.split),
                method=Exhume(steps=self.steps, restarts=self.restarts, seed=self.seed),
                initial=self._initial(network.checkpoint),
                find_start=self.find_start,
                defend=self.defend,
                device=self.device,
                overwrite=self.overwrite,
                progress_callback=progress_callback,
            )
        page = draw(folder)
        if self.json:
            sys.stdout.write((folder / "audit.json").read_text(encoding="utf-8"))
        else:
            _show(record, read_record(folder / "scores.json", ScoresRecord), folder, page)
        if self.fail_on == record.judgement.verdict and record.judgement.strength != "traces":
            sys.exit(LEAKS)

    def _network(self, mine: OwnedImages) -> ForeignNetwork:
        if (Path(self.model) / "checkpoint.json").exists():
            return ForeignNetwork(checkpoint=load_checkpoint(self.model))
        channels, height, width = mine.images.shape[1:]
        return self._read(self.model, self.weights, (channels, height, width), self.task)

    def _initial(self, trained: Checkpoint) -> Checkpoint | None:
        """The public weights; a last layer that they do not have counts as frozen."""
        if self.initial is None:
            return None
        code = ".py:" in self.model
        source, weights = (self.model, self.initial) if code else (str(self.initial), None)
        return with_weights(trained, self._read(source, weights, trained.shape, None).checkpoint.weights)

    def _read(self, source: str, weights: Path | None, shape: Shape, task: Task | None) -> ForeignNetwork:
        return read_network(
            source,
            shape=shape,
            task=task,
            weights=weights,
            activation=self.activation,
            mean=load_numbers(self.mean),
            std=load_numbers(self.std),
            layout=None if self.layout == "auto" else self.layout,
            channels=self.channels,
        )


def _stem(model: str) -> str:
    """The model's name, for a folder."""
    path, _, name = model.partition(".py:")
    return name or Path(path).stem or "model"


def _show(record: AuditRecord, scores: ScoresRecord, folder: Path, page: Path) -> None:
    for note in record.notes:
        _line("network", note)
    print_verdict(record.judgement)
    print_scores(scores)
    if scores.picked is not None:
        print_picked(scores.picked)
    fates = Counter(image.fate for image in record.images)
    _line(
        "images",
        ", ".join(f"{fates[fate]} {fate or 'not found'}" for fate in (*get_args(Fate)[::-1], None) if fates[fate]),
    )
    for sentence in _owner_sentences(record):
        _line("you can see", sentence)
    if record.membership:
        _line("membership", membership_sentence(record.membership[0], tried=len(record.membership)))
    for row in record.defences:
        _line("defence", _defence_sentence(row))
    for step in record.next_steps:
        _line("next", step)
    if record.leaked and record.judgement.verdict == "leaks":
        _line("leaked", str(folder / "leaked.csv"))
    _line("page", str(page))


def _line(head: str, words: str) -> None:
    console.print(f"{head:14}{words}", markup=False, soft_wrap=True)


def _owner_sentences(record: AuditRecord) -> list[str]:
    """What the condition says at the images themselves."""
    view = record.owner
    if view is None:
        return [record.not_examined]
    whole = view.residuals[0]
    against = "" if whole.held_out is None else f", never-seen images {whole.held_out:.0%}"
    by_candidates = "" if whole.candidates is None else f", the candidates {whole.candidates:.0%}"
    stay = f"a search begun at your images stays at {view.stay} of {view.training}"
    control = f", at {view.held_out_stay} of {view.held_out} never-seen ones" if view.held_out else ""
    return [
        f"of what is to be explained your images leave {whole.training:.0%}{against}{by_candidates}",
        f"{stay}{control}",
    ]


def _defence_sentence(row: DefenceRow) -> str:
    if row.message:
        return f"{row.name}: {row.message}"
    private = "" if row.epsilon is None else f", epsilon {row.epsilon:.0f}"
    return (
        f"{row.name} ({row.what}): {row.recovered} of {row.images} [{row.null} of {row.held_out}], "
        f"accuracy {row.held_out_accuracy:.2f} on held-out images{private}"
    )
