"""The command for owners: what does my model give away of my training images?"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import OmitArgPrefixes, Positional, arg

from exhume.attack.methods import Exhume
from exhume.audit.membership import membership_sentence
from exhume.audit.readability import Fate
from exhume.audit.verdict import MOST_NAMED, NOT_DECIDED
from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.commands.display import bars, bars_console, console, print_picked, print_scores, print_verdict
from exhume.commands.initial import initial_from
from exhume.commands.normalising import load_numbers
from exhume.commands.study import check_workers, use_threads
from exhume.devices import Device
from exhume.errors import InputError
from exhume.foreign import ForeignNetwork, layout_of, read_network
from exhume.networks import Shape, Task
from exhume.problems import Selection, locate
from exhume.problems.owned import OwnedImages, Split, load_images
from exhume.progress import ProgressCallback
from exhume.records import replace_file
from exhume.report import draw
from exhume.runs.advice import scaling_hint, scaling_of
from exhume.runs.audit import Source, audit_run, finished_audit
from exhume.runs.audit_record import EXPLAINED, AuditRecord
from exhume.runs.audits import audit_row, folders_of, model_files
from exhume.runs.claim import claim
from exhume.runs.defences import DEFENCES, DefenceRow
from exhume.runs.fitted import fitted
from exhume.runs.folders import map_folders
from exhume.runs.schema import ScoresRecord, read_record
from exhume.runs.store import FILES
from exhume.runs.tables import Row, table_csv, table_text
from exhume.tuning.workers import choose_workers

LEAKS, UNREAD, UNDECIDED = 1, 2, 3
"""Exit codes: with --fail-on the network leaks, and whether it does is not known; a model could not be audited."""
FOUND = FILES["start"][1]
"""The file of the weights that a search for the start has found."""
OF_IMAGES = "images"
"""What --mean says for the mean image of the images."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Say what your model gives away of your training images."""

    model: Positional[Annotated[str | None, arg(metavar="[MODEL]", help_behavior_hint="")]] = None
    """The network: a file of weights (.pt, .pth, .bin, .ckpt, .safetensors, .npz), a program (TorchScript or .pt2), a
    folder with one such file, or model.py:name for your own code that makes it. With --all it may be left out."""
    all: Path | None = None
    """Audit each model file in this folder and beneath it, and write one table of all. With model.py:name the files are
    the weights. The exit code is 2 if one could not be audited."""
    images: str
    """Its training images: a folder with a folder for each class (or with images alone), an .npz file, a .py file with
    load(), or the name of a problem."""
    held_out: Path | None = None
    """Images of the same kind that it never saw: a folder or an .npz file. Without any there is no control."""
    split: Split | None = None
    """Only a part of the images was trained on: half of each class, or the first --per-class of each (rest). The others
    are held out."""
    selection: OmitArgPrefixes[Selection] = field(default_factory=Selection)
    out: Path | None = None
    """Folder of the results; without: runs/audit-NAME, by the name of the model or of the
    folder; with --all each model has a folder of its own there."""
    weights: Path | None = None
    """For model.py:name: the file of its weights."""
    initial: Path | None = None
    """The weights that its training began with, if they are public or were found: the same kinds of files, or a folder
    where they were found. Where names differ, layers are matched by order and shape."""
    find_start: bool = True
    """Do not look in the weights for what training began with. Without this flag they are searched, unless --initial
    says it: for seconds, or for minutes where the first layer shows an initialisation."""
    task: Task | None = None
    """What the outputs mean; without: several classes if there are several outputs, else regression if the labels are
    real numbers, else two classes."""
    activation: str | None = None
    """Of a file of weights alone: relu (without this flag), leaky-relu, gelu, silu, mish, elu, softplus, tanh or
    sigmoid."""
    mean: tuple[str, ...] = ()
    """What training subtracted from images in [0, 1]: one number, one a channel, an .npy file, or the word images: the
    mean image of --images. Without: what the file itself says, or nothing."""
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
    fail_on: Literal["leaks", "undecided"] | None = None
    """For a pipeline. leaks: end with exit code 1 if it leaks, and with 3 if the images cannot decide that (no control,
    or none that is one). undecided: with 3 also if the method does not apply, so that only nothing found passes.
    Without: 0, whatever the verdict. With --all, 2 if a model could not be audited (1 if another leaks)."""
    json: bool = False
    """Print audit.json instead of sentences."""
    workers: int = 1
    """With --all: models at the same time: processes, of one thread each if there are several, or with --ray tasks of
    the cluster."""
    ray: str | None = None
    """With --all: work on the Ray cluster at this address; auto: the one that this machine belongs to; local: start one
    here."""
    device: Device = "auto"
    """Where to compute."""
    threads: int | None = None
    """Threads of the CPU for one model; None: one for each core. Another number rounds differently."""
    overwrite: bool = False
    """Replace candidates of other settings in the folder, and what was made from them."""

    def __call__(self) -> None:
        use_threads(self.threads)
        mine = load_images(self.images, held_out=self.held_out, split=self.split, selection=self.selection)
        for note in mine.notes:  # before the minutes that the audit takes
            bars_console.print(f"images        {note}", soft_wrap=True)
        verdicts = self._of_all(mine, self.all) if self.all is not None else [self._of_one(mine)]
        code = exit_code(verdicts, self.fail_on)
        if code:
            sys.exit(code)

    def _of_one(self, mine: OwnedImages) -> str:
        if self.model is None:
            raise InputError("Say which model: a file, a program or model.py:name; or --all and a folder of them.")
        if self.ray is not None or self.workers != 1:
            raise InputError("--ray and --workers go with --all: one model is one piece of work.")
        network, folder = self._network(mine, self.model, self.weights), self.out or Path("runs") / self._name()
        hint = scaling_hint(scaling_of(network, fitted(network.checkpoint, mine)[1]))
        if hint:  # before the minutes that the audit takes
            bars_console.print(hint, soft_wrap=True)
        with bars() as progress_callback:
            record = audit_run(
                folder,
                network,
                mine,
                Source(images=self.images, selection=self.selection, held_out=self.held_out, split=self.split),
                method=self._method,
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
        return record.judgement.name

    def _of_all(self, mine: OwnedImages, models: Path) -> list[str | None]:
        """The verdicts on the models in a folder, after their table; None: it could not be audited."""
        if self.weights is not None or self.json:
            raise InputError("--weights and --json are for one model, not for --all.")
        if self.model is not None and ".py:" not in self.model:
            raise InputError("Give one model, or --all and a folder of models; only model.py:name goes with --all.")
        check_workers(self.workers)
        out, rows = self.out or Path("runs") / self._name(), dict[Path, Row]()
        besides = [Path(self.images), out, *filter(None, (self.held_out, self.initial))]
        found = model_files(models, besides=besides)
        name, selection = locate(self.images, self.selection)
        work = partial(
            _audit_one,
            mine=mine,
            source=Source(images=name, selection=selection, held_out=self.held_out, split=self.split),
            method=self._method,
            find_start=self.find_start,
            defend=self.defend,
            device=self.device,
            overwrite=self.overwrite,
        )
        with claim(out):  # so that it can be written is known before any work
            for visit in map_folders(
                work,
                self._unfinished(mine, folders_of(found, models, out), rows),
                workers=choose_workers(self.ray),
                count=self.workers,
                device=self.device,
                display=bars,
            ):
                rows[visit.task.path] = visit.row
                console.print(f"{visit.task.path}: {visit.row.get('verdict') or visit.row['status']}", soft_wrap=True)
            return _show_all([{"model": str(path.relative_to(models)), **rows[path]} for path in found], out)

    def _unfinished(
        self, mine: OwnedImages, models: Iterable[tuple[Path, Path]], rows: dict[Path, Row]
    ) -> Iterator[tuple[Path, "_Model"]]:
        """The models that must still be audited, with their folders; of the others the row is put into `rows`."""
        for path, folder in models:
            try:
                network = self._network(mine, self.model or str(path), path if self.model else None)
                initial = self._initial(network.checkpoint)
            except InputError as error:
                rows[path] = {"status": str(error)}
                continue
            done = self._finished(folder, network, mine, initial)
            if done is None or (self.defend and len(done.defences) < len(DEFENCES)):
                yield folder, _Model(path=path, network=network, initial=initial)
            else:
                rows[path] = audit_row(folder)

    def _finished(
        self, folder: Path, network: ForeignNetwork, mine: OwnedImages, initial: Checkpoint | None
    ) -> AuditRecord | None:
        """This very audit, if it has ended in the folder; None where images do not fit, which the audit itself says."""
        try:
            asked = partial(finished_audit, folder, network, mine, self._method, initial=initial)
            return None if self.overwrite else asked(find_start=self.find_start)
        except InputError:
            return None

    @property
    def _method(self) -> Exhume:
        return Exhume(steps=self.steps, restarts=self.restarts, seed=self.seed)

    def _name(self) -> str:
        """The name of the folder of results: by the model's, or that of the folder of models."""
        if self.all is not None:
            return f"audit-{self.all.resolve().name}"
        weights = f"-{self.weights.stem}" if self.weights is not None else ""
        return f"audit-{_stem(self.model or '')}{weights}"

    def _network(self, mine: OwnedImages, model: str, weights: Path | None) -> ForeignNetwork:
        if (Path(model) / "checkpoint.json").exists():
            return ForeignNetwork(checkpoint=load_checkpoint(model), scaling="the network")
        channels, height, width = mine.images.shape[1:]
        network = self._read(model, weights, (channels, height, width), self.task)
        if self.task is None and network.checkpoint.task == "binary" and _is_real(mine):
            network = replace(network, checkpoint=replace(network.checkpoint, task="regression"))
        if self.mean != (OF_IMAGES,):
            return network
        checkpoint = network.checkpoint
        centre = checkpoint.centre + mine.images.mean(0).to(checkpoint.centre)
        scaling: Literal["the network", "the user"] = "the network" if network.scaling == "the network" else "the user"
        return replace(network, checkpoint=replace(checkpoint, centre=centre), scaling=scaling)

    def _initial(self, trained: Checkpoint) -> Checkpoint | None:
        """The public weights, read as the trained ones were."""
        if self.initial is None:
            return None
        path = self.initial / FOUND if (self.initial / FOUND).is_file() else self.initial
        return initial_from(
            path,
            trained,
            self.model,
            lambda source, weights: self._read(source, weights, trained.shape, None, layout=layout_of(trained)),
        )

    def _read(
        self, source: str, weights: Path | None, shape: Shape, task: Task | None, *, layout: str | None = None
    ) -> ForeignNetwork:
        layout = layout or (None if self.layout == "auto" else self.layout)
        return read_network(
            source,
            shape=shape,
            task=task,
            weights=weights,
            activation=self.activation,
            mean=None if self.mean == (OF_IMAGES,) else load_numbers(self.mean),
            std=load_numbers(self.std),
            layout=layout,
            channels=self.channels,
        )


def _is_real(mine: OwnedImages) -> bool:
    """Whether the labels are real targets, of which one output is a prediction."""
    return mine.labels is not None and mine.labels.is_floating_point() and bool((mine.labels % 1).any())


def exit_code(verdicts: Iterable[str | None], fail_on: str | None) -> int:
    """That of an audit, by the names of its verdicts (None: a model could not be audited) and --fail-on."""
    found = set(verdicts)
    if fail_on is not None and "leaks" in found:
        return LEAKS
    if None in found:
        return UNREAD
    open_ones = {None: set(), "leaks": {NOT_DECIDED}}.get(fail_on, {NOT_DECIDED, "does not apply"})
    return UNDECIDED if open_ones & found else 0


def _stem(model: str) -> str:
    """The model's name, for a folder."""
    path, _, name = model.partition(".py:")
    return name or Path(path).stem or "model"


@dataclass(frozen=True, kw_only=True)
class _Model:
    """One of many models, read from its file."""

    path: Path
    network: ForeignNetwork
    initial: Checkpoint | None


def _audit_one(
    folder: Path,
    model: _Model,
    progress_callback: ProgressCallback,
    *,
    mine: OwnedImages,
    source: Source,
    method: Exhume,
    find_start: bool,
    defend: bool,
    device: str,
    overwrite: bool,
) -> Row:
    """Audits one of many models and draws its page; a model that cannot be audited has a status only."""
    try:
        audit_run(
            folder,
            model.network,
            mine,
            source,
            method=method,
            initial=model.initial,
            find_start=find_start,
            defend=defend,
            device=device,
            overwrite=overwrite,
            progress_callback=progress_callback,
        )
    except InputError as error:
        return {"status": str(error)}
    draw(folder)
    return audit_row(folder)


def _show_all(rows: Sequence[Row], out: Path) -> list[str | None]:
    """Writes and prints the table of all models; returns the verdicts, None where there is none.

    Raises:
        InputError: there is none.
    """
    replace_file(out / "table.csv", table_csv(rows).encode())
    console.print(table_text(rows), soft_wrap=True)
    _line("table", str(out / "table.csv"))
    unread = [row for row in rows if not row.get("verdict")]
    if len(unread) == len(rows):
        raise InputError(f"No model could be audited. {rows[0]['model']}: {rows[0]['status']}")
    if unread:
        of, named = f"{len(unread)} of {len(rows)}", ", ".join(str(row["model"]) for row in unread[:MOST_NAMED])
        _line("not audited", f"{of} models: {named}{', ...' * (len(unread) > MOST_NAMED)}. The status says why.")
    return [str(row["verdict"]) if row.get("verdict") else None for row in rows]


def _show(record: AuditRecord, scores: ScoresRecord, folder: Path, page: Path) -> None:
    for note in record.notes:
        _line("network", note)
    if record.start:
        _line("start", record.start)
    print_verdict(record.judgement)
    print_scores(scores)
    if scores.picked is not None:
        print_picked(scores.picked, held_out=scores.held_out)
    fates = Counter(image.fate for image in record.images)
    _line(
        "images",
        ", ".join(f"{fates[fate]} {fate or 'not found'}" for fate in (*get_args(Fate)[::-1], None) if fates[fate]),
    )
    for sentence in _owner_sentences(record):
        _line("you can see", sentence)
    if record.membership:
        _line("membership", membership_sentence(record.membership[0], tried=len(record.membership)))
    if record.no_membership:
        _line("membership", f"Not decided: {record.no_membership}")
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
    against = "" if whole.held_out is None else f", never-seen images {_left(whole.held_out)}"
    by_candidates = "" if whole.candidates is None else f", the candidates {_left(whole.candidates)}"
    stay = f"a search begun at your images stays at {view.stay} of {view.training}"
    control = f", at {view.held_out_stay} of {view.held_out} never-seen ones" if view.held_out else ""
    return [
        f"of {EXPLAINED[view.of]} your images leave {_left(whole.training)} unexplained{against}{by_candidates}",
        f"{stay}{control}",
    ]


def _left(residual: float) -> str:
    """A residual in words: below 0 more is explained than stands out of the noise, above 1 less than by no image."""
    return "nothing" if residual <= 0 else "all" if residual >= 1 else f"{residual:.0%}"


def _defence_sentence(row: DefenceRow) -> str:
    if row.message:
        return f"{row.name}: {row.message}"
    private = "" if row.epsilon is None else f", epsilon {row.epsilon:.0f}"
    return (
        f"{row.name} ({row.what}): {row.recovered} of {row.images} [{row.null} of {row.held_out}], "
        f"accuracy {row.held_out_accuracy:.2f} on held-out images{private}"
    )
