"""The commands that work on a run, one a stage, and the demo of all."""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from exhume.attack.methods import METHODS, Exhume, name_of
from exhume.attack.search import Method
from exhume.audit.verdict import judge
from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.commands.display import (
    bars,
    console,
    print_evidence,
    print_picked,
    print_scores,
    print_search,
    print_verdict,
    progress_display,
)
from exhume.commands.initial import initial_from
from exhume.commands.normalising import load_centre, load_numbers
from exhume.commands.study import use_threads
from exhume.defence.training import TrainingConfig
from exhume.devices import Device
from exhume.errors import InputError, known
from exhume.foreign import ForeignNetwork, layout_of, read_network
from exhume.networks import NetworkConfig, Task
from exhume.presets import RECONSTRUCTIONS, TRAININGS
from exhume.problems import PROBLEMS, Selection, load_problem, locate
from exhume.problems.owned import OWN, Split
from exhume.report import draw
from exhume.runs.applicability import read_applicability
from exhume.runs.pipeline import reconstruct_run, score_run, train_run
from exhume.runs.schema import StartRecord, read_record
from exhume.runs.start import is_untrained
from exhume.runs.store import load_candidates
from exhume.runs.tune import search_run
from exhume.tuning.search_spaces import SPACES
from exhume.tuning.study import SweepConfig
from exhume.tuning.workers import choose_workers

NOT_FOUND = (
    "The start of training was not found in the weights, and the attack goes on without it. "
    "`exhume find-start` says where it was looked for."
)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train on 100 handwritten digits, dig them out of the weights, score, and draw the page."""

    out: Path = Path("runs/demo")
    """Folder of the run; what is in it is replaced."""
    seed: int = 0
    """Seed of the training and of the reconstruction."""
    device: Device = "auto"
    """Where to compute."""
    threads: int | None = None
    """Threads of the CPU; None: one for each core. Another number rounds differently."""

    def __call__(self) -> None:
        use_threads(self.threads)
        preset = TRAININGS["demo"]
        origin = locate(preset.problem, Selection(per_class=preset.per_class))
        problem, training = load_problem(*origin), replace(preset.training, seed=self.seed)
        with bars() as progress_callback:
            trained = train_run(
                self.out,
                problem,
                origin,
                preset.network,
                training,
                device=self.device,
                overwrite=True,
                progress_callback=progress_callback,
            )
            found = reconstruct_run(
                self.out,
                Exhume(seed=self.seed, steps=600),
                device=self.device,
                overwrite=True,
                progress_callback=progress_callback,
            )
        scores = score_run(self.out)
        page = draw(self.out)
        last, seconds = trained.history[-1], trained.provenance.seconds
        lines = (
            f"trained       on {scores.images} digits: {last.epoch} epochs, loss {last.loss:.1e}, {seconds:.0f} s",
            f"reconstructed {scores.candidates} candidates from the weights, {found.provenance.seconds:.0f} s",
        )
        console.print(*lines, sep="\n", soft_wrap=True)
        print_scores(scores)
        console.print(f"page          {page}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a network on a problem: `exhume train PROBLEM RUN`, or `exhume train RUN --preset NAME`."""

    problem: Positional[Annotated[str, arg(metavar="[PROBLEM]", help_behavior_hint="")]]
    """A name from `exhume problems`, or a path: your own .py file, a folder of images, or an .npz file. With --preset
    it may be left out."""
    run: Positional[Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="(required)")]] = None
    """Folder of the run."""
    preset: str | None = None
    """A training from `exhume presets`, with its problem; other flags override its settings."""
    selection: OmitArgPrefixes[Selection] = field(default_factory=Selection)
    network: OmitArgPrefixes[NetworkConfig] = field(default_factory=NetworkConfig)
    training: OmitArgPrefixes[TrainingConfig] = field(default_factory=TrainingConfig)
    initial: Path | None = None
    """Begin with the network of this run instead of fresh weights: fine-tuning."""
    track: str | None = None
    """Log the progress in the run's folder tracking: tensorboard or wandb."""
    device: Device = "auto"
    """Where to compute."""
    threads: int | None = None
    """Threads of the CPU; None: one for each core. Another number rounds differently."""
    overwrite: bool = False
    """Replace another training in the folder, and what was made from it."""

    def __call__(self) -> None:
        use_threads(self.threads)
        name, run = self._places()
        origin = locate(name, self.selection)
        problem, before = load_problem(*origin), _content(run / "training.json")
        if origin[0] in OWN:
            console.print(
                f"{problem.source}. Trained on {len(problem.images)}, held out {len(problem.held_out)}.", markup=False
            )
        with progress_display(run, self.track) as progress_callback:
            record = train_run(
                run,
                problem,
                origin,
                self.network,
                self.training,
                initial=load_checkpoint(self.initial) if self.initial else None,
                device=self.device,
                overwrite=self.overwrite,
                progress_callback=progress_callback,
            )
        if before is not None and before == _content(run / "training.json"):
            when = record.provenance.date
            console.print(f"This training was finished already, on {when}, and is not done again.", soft_wrap=True)
        last = record.history[-1]
        console.print(
            f"{record.message} Loss {last.loss:.2e}, gradient {last.gradient:.2e}, accuracy {last.accuracy:.3f} "
            f"({last.held_out_accuracy:.3f} on held-out images), {record.provenance.seconds:.0f} s.",
            soft_wrap=True,
        )

    def defaults(self) -> "Train":
        """What the flags override: the preset's settings or else the problem's own network; the one to begin with."""
        name, _ = self._places()
        if self.preset is not None:
            preset = TRAININGS[known(self.preset, TRAININGS, "training preset")]
            selection = replace(self.selection, per_class=self.selection.per_class or preset.per_class)
            first = replace(self, selection=selection, network=preset.network, training=preset.training)
        else:
            first = replace(self, network=load_problem(name, self.selection).network, training=TrainingConfig())
        if self.initial is not None:
            first = replace(first, network=load_checkpoint(self.initial).config)
        return replace(first, overwrite=False)  # a flag whose default is true could only be turned off

    def _places(self) -> tuple[str, Path]:
        """Problem and folder; a word alone is the folder, and the problem is the preset's."""
        if self.run is not None:
            return self.problem, self.run
        if self.preset is None:
            raise InputError("Say `exhume train PROBLEM RUN`, or `exhume train RUN --preset NAME`.")
        if self.problem in PROBLEMS:
            raise InputError(f"{self.problem} is a problem, and the folder of the run is missing.")
        return TRAININGS[known(self.preset, TRAININGS, "training preset")].problem, Path(self.problem)


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Reconstruct training images from a checkpoint alone."""

    run: Positional[Path]
    """Folder of the run."""
    preset: str | None = None
    """A reconstruction from `exhume presets`; other flags override its settings."""
    method: str = "exhume"
    """A row of METHODS: exhume, or reference (the papers' scheme, exactly). Each has flags of its own: `--method
    reference --help` shows them."""
    settings: OmitArgPrefixes[Method] = field(default_factory=Exhume)
    checkpoint: str | None = None
    """A network that was trained elsewhere, to be attacked in this folder: a file of weights (.pt, .pth, .bin, .ckpt,
    .safetensors, .npz), a program (TorchScript or .pt2), a folder with one such file, or model.py:name for your own
    code that makes it."""
    weights: Path | None = None
    """With --checkpoint model.py:name: the file of its weights."""
    shape: tuple[int, int, int] | None = None
    """With --checkpoint: channels, height and width of its images."""
    task: Task | None = None
    """With --checkpoint: what its outputs mean."""
    activation: str = "relu"
    """With --checkpoint: the activation of a file of weights alone, a row of ACTIVATIONS."""
    centre: Path | None = None
    """With --checkpoint: the mean image its training subtracted, an .npy file; without: none was."""
    mean: tuple[str, ...] = ()
    """With --checkpoint: the same as one number, one a channel, or an .npy file."""
    std: tuple[str, ...] = ()
    """With --checkpoint: what its training divided images in [0, 1] by, likewise; without: nothing."""
    layout: Literal["chw", "hwc", "auto"] = "chw"
    """With --checkpoint: the order in which it takes the values of an image: channels, height, width, or height, width,
    channels; auto: told from the weights, where these show it."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """With --checkpoint: the order of its channels."""
    initial: Path | None = None
    """The weights that its training began with, if they are known: a run, or a file of weights; layers of other names
    are taken in their order."""
    find_start: bool = True
    """Do not look in the weights for what training began with. Without this flag they are searched, unless --initial
    says it: for seconds, or for minutes where the first layer shows an initialisation."""
    track: str | None = None
    """Log the progress in the run's folder tracking: tensorboard or wandb."""
    device: Device = "auto"
    """Where to compute."""
    threads: int | None = None
    """Threads of the CPU; None: one for each core. Another number rounds differently."""
    overwrite: bool = False
    """Replace candidates of other settings in the folder, and what was made from them."""

    def __call__(self) -> None:
        use_threads(self.threads)
        read = self._foreign()
        foreign, notes = (read.checkpoint, read.notes) if read else (None, ())
        for note in notes:
            console.print(note, markup=False, soft_wrap=True)
        with progress_display(self.run, self.track) as progress_callback:
            record = reconstruct_run(
                self.run,
                self.settings,
                foreign=foreign,
                notes=notes,
                initial=self._initial(foreign),
                find_start=self.find_start,
                device=self.device,
                overwrite=self.overwrite,
                progress_callback=progress_callback,
            )
        if self.find_start and self.initial is None and isinstance(self.settings, Exhume):
            start = read_record(self.run / "start.json", StartRecord)
            console.print(start.sentence if start.found else NOT_FOUND, soft_wrap=True)
            if start.found is not None and record.start is None:
                console.print(f"It is not used: {_why_not_used(self.run)}.", soft_wrap=True)
        last = record.history[-1] if record.history else None
        residual = f" Residual {last.residual:.2e}," if last else ""
        message = record.message.removesuffix(" ".join(["", *notes]))
        console.print(f"{message}{residual} {record.provenance.seconds:.0f} s.", soft_wrap=True)

    def _foreign(self) -> ForeignNetwork | None:
        if (self.checkpoint, self.shape, self.task, self.centre) == (None, None, None, None):
            return None
        if self.checkpoint is None or self.shape is None or self.task is None:
            raise InputError("--checkpoint, --shape (channels height width) and --task are needed together.")
        if self.centre is not None and self.mean:
            raise InputError("--centre and --mean say the same; give one of them.")
        mean = None if self.centre is None else load_centre(self.centre, self.shape)
        return read_network(
            self.checkpoint,
            shape=self.shape,
            task=self.task,
            weights=self.weights,
            activation=self.activation,
            mean=load_numbers(self.mean) if mean is None else mean,
            std=load_numbers(self.std),
            layout=None if self.layout == "auto" else self.layout,
            channels=self.channels,
        )

    def _initial(self, foreign: Checkpoint | None) -> Checkpoint | None:
        if self.initial is None or self.initial.is_dir():
            return load_checkpoint(self.initial) if self.initial else None
        trained = foreign or load_checkpoint(self.run)
        activation = trained.network.activation if isinstance(trained.network, NetworkConfig) else self.activation
        read = partial(
            read_network,
            shape=trained.shape,
            task=trained.task,
            activation=activation,
            layout=layout_of(trained),
            channels=self.channels,
        )
        return initial_from(self.initial, trained, self.checkpoint, lambda source, of: read(source, weights=of))

    @classmethod
    def before(cls, argv: Sequence[str]) -> "Reconstruct":
        """What the flags override: the settings of the preset, or of the method, that they name."""
        words = _given(argv, "method", "preset")
        if words["preset"] is None:
            method = METHODS[known(words["method"] or cls.method, METHODS, "method")]()
        else:
            method = RECONSTRUCTIONS[known(words["preset"], RECONSTRUCTIONS, "reconstruction preset")].method
            if words["method"] not in (None, name_of(method)):
                raise InputError(f"The preset {words['preset']} is for the method {name_of(method)}.")
        return cls(run=tyro.MISSING, method=name_of(method), settings=method)


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search for settings: many reconstructions, whose best candidates become the run's."""

    run: Positional[Path]
    """Folder of the run."""
    sweep: OmitArgPrefixes[SweepConfig] = field(default_factory=SweepConfig)
    settings: OmitArgPrefixes[Method] = field(default_factory=lambda: SPACES[SweepConfig().space].base)
    judge: Literal["residual", "truth"] = "residual"
    """By what to choose: by how well the candidates explain the weights, as an attacker would; or by the training
    images, as the papers did, which gives an upper bound."""
    keep: int = 2
    """How many of the best trials' candidates to keep, in the run's folder trials."""
    ray: str | None = None
    """Run the trials on the Ray cluster at this address, --workers at the same time; auto: the one that this machine
    belongs to; local: start one here."""
    track: str | None = None
    """Log the progress in the run's folder tracking: tensorboard or wandb."""
    device: Device = "auto"
    """Where to compute."""
    threads: int | None = None
    """Threads of the CPU for one worker; None: one for each core. Several workers have one each, and so has Ray's."""
    overwrite: bool = False
    """Replace another search or other candidates in the folder, and what was made from them."""

    def __call__(self) -> None:
        use_threads(self.threads)
        with progress_display(self.run, self.track) as progress_callback:
            record = search_run(
                self.run,
                self.sweep,
                self.settings,
                judge=self.judge,
                keep=self.keep,
                device=self.device,
                workers=choose_workers(self.ray),
                overwrite=self.overwrite,
                progress_callback=progress_callback,
            )
        print_search(record)

    @classmethod
    def before(cls, argv: Sequence[str]) -> "Search":
        """What the flags override: the settings that are not searched in the space that they name."""
        sweep = SweepConfig(space=_given(argv, "space")["space"] or SweepConfig().space)
        return cls(run=tyro.MISSING, sweep=sweep, settings=SPACES[sweep.space].base)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _why_not_used(run: Path) -> str:
    """Why an attack does without the start that was found."""
    if is_untrained(run):
        return "the weights are still those, so the network was not trained"
    return "weights of other layers than the last are not among it"


def _given(argv: Sequence[str], *names: str) -> dict[str, str | None]:
    """The values of a few flags, read before the others: they decide which others there are."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}")
    try:
        return vars(parser.parse_known_args(argv)[0])
    except SystemExit:  # a value is missing; tyro says so
        return dict.fromkeys(names)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Count what came out, against held-out images."""

    run: Positional[Path]
    """Folder of the run."""
    problem: str | None = None
    """The training images of a checkpoint that was trained elsewhere: a name or path as for `exhume train`."""
    held_out: Path | None = None
    """With --problem: a folder or .npz file of images that the network never saw. Without any there is no control."""
    split: Split | None = None
    """With --problem: the owner says that only a part of these images was trained on: half of each class, or the first
    --per-class of each (rest). The others are held out."""
    others: Annotated[tuple[Path, ...], arg(name="with")] = ()
    """Folders with other reconstructions of the same checkpoint, whose candidates are scored with the run's."""
    selection: OmitArgPrefixes[Selection] = field(default_factory=Selection)

    def __call__(self) -> None:
        found = load_candidates(self.run)[1]
        origin = None if self.problem is None else (self.problem, self.selection)
        if origin is None and (self.selection.per_class, self.selection.classes) != (None, None):
            raise InputError("--per-class and --classes go with --problem, which is missing.")
        data_dir = self.selection.data_dir if origin is None else None
        scores = score_run(
            self.run, origin, held_out=self.held_out, split=self.split, others=self.others, data_dir=data_dir
        )
        print_scores(scores)
        print_evidence(scores)
        if scores.picked is not None:
            print_picked(scores.picked, held_out=scores.held_out)
        print_verdict(judge(scores, read_applicability(found)))
        for words in dict.fromkeys([scores.chosen, *(part.chosen for part in scores.merged)]):
            if words is not None:
                console.print(f"candidates    {words}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Draw the run's page, report.html."""

    run: Positional[Path]
    """Folder of the run."""

    def __call__(self) -> None:
        console.print(str(draw(self.run)), soft_wrap=True)
