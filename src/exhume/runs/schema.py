"""The records of a run: what each stage writes down, and how records of older formats are read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from exhume import records
from exhume.attack.find_start import Evidence, StartSearch, WayTried
from exhume.attack.methods import METHODS, name_of
from exhume.attack.search import Method
from exhume.audit.counts import THRESHOLDS, Counts
from exhume.candidates import Assumptions, HistoryPoint
from exhume.defence.training import TrainingConfig, TrainingPoint
from exhume.errors import InputError
from exhume.networks import NetworkConfig
from exhume.problems import Selection
from exhume.records import Provenance, Upgrade
from exhume.tuning.study import SweepConfig, Trial

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ProblemRecord:
    """Which problem was trained on, enough to load it again and to notice that its data have changed."""

    name: str
    selection: Selection
    source: str
    images: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """training.json. While the training is under way, status is "running" and the margins are empty.

    initial: fingerprint of the network that the training began with; None: it began with fresh weights.
    """

    problem: ProblemRecord
    network: NetworkConfig
    training: TrainingConfig
    initial: str | None = None
    history: list[TrainingPoint]
    margins: list[float]
    status: str
    message: str
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class FoundStart:
    """A start of training that was found in the weights.

    way: a row of WAYS, or "public-start"; seed, place: of PyTorch's generator, and how many outputs were drawn before
    the first parameter that matches; candidate: the public network; log10_p: the bound on the chance of a false alarm,
    over all trials; unknown: parameters that did not match; hints: what the search was given besides the weights, in
    words.
    """

    way: str
    seed: int | None
    place: int | None
    candidate: str | None
    log10_p: float
    unknown: list[str]
    hints: list[str]


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """start.json, beside the initial values in start.safetensors if the start was found.

    search: where it was looked for; among: the public networks that were compared; found: None if it was not found;
    evidence: of each parameter of the best hypothesis, found or not; sentence: all of it in one.
    """

    checkpoint: str
    search: StartSearch
    among: list[str]
    found: FoundStart | None
    tried: list[WayTried]
    evidence: list[Evidence]
    sentence: str
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class CandidatesRecord:
    """candidates.json, beside the tensors images, labels, multipliers, explained and confidence.

    initial: fingerprint of the weights that the attacker knew the training to have begun with; None: he knew none;
    start: how he found them in the weights; None: he did not; known_mean: digest of the mean image that he knew besides
    what the network subtracts; None: he knew none;
    chosen: by what a search chooses among such candidates, in words; None: they are not from a search.
    """

    checkpoint: str
    initial: str | None = None
    start: FoundStart | None = None
    known_mean: str | None = None
    method: Method
    assumptions: Assumptions
    history: list[HistoryPoint]
    status: str
    message: str
    chosen: str | None = None
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """search.json.

    method: the settings that were not searched; chosen: by what the best was chosen, in words; trials: all that
    have ended; best: the number of the best, None if none is complete; kept: those whose candidates are in trials/.
    """

    checkpoint: str
    sweep: SweepConfig
    method: Method
    judge: Literal["residual", "truth"]
    chosen: str
    trials: list[Trial]
    best: int | None
    kept: list[int]
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Candidates from elsewhere: the folder, by the path that was given, how many, by what they were chosen."""

    folder: str
    candidates: int
    chosen: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoresRecord(Counts):
    """scores.json: the counts, against which images (`truth`), and of which checkpoint.

    chosen: by what a search chose the run's own candidates, in words, if one did; merged: other reconstructions of that
    checkpoint whose candidates were scored together with the run's own, which are the first of all; seconds.reconstruct
    is the time of all.
    """

    truth: ProblemRecord
    checkpoint: str
    chosen: str | None = None
    merged: list[Merged] = field(default_factory=list)
    provenance: Provenance

    def __post_init__(self) -> None:
        own, other = self.images, self.held_out
        most = {"recovered": own, "null": other, "null_perfect": other, "mean_alone": own}
        for name, images in most.items():
            absent = [level for level in THRESHOLDS if level not in getattr(self, name)]
            if absent:
                raise InputError(f"{name} has no count at {absent[0]}")
            impossible = [count for count in getattr(self, name).values() if not 0 <= count <= images]
            if impossible:
                raise InputError(f"{name} counts {impossible[0]} of {images} images")
        for image in self.per_image:
            there = (-1 <= candidate < self.candidates for candidate in (image.candidate, image.nearest))
            if not (0 <= image.index < own and all(there)):
                raise InputError(f"image {image.index} or a candidate of it is not among those that were compared")


@dataclass(frozen=True, kw_only=True)
class ReconstructionRequest:
    """Which reconstruction an interrupted one was: of which checkpoint, with which known start, by which settings."""

    checkpoint: str
    initial: str | None
    method: Method
    known_mean: str | None = None


def read_record(path: Path, kind: type[T]) -> T:
    """A record of any format that is read.

    Raises:
        InputError: the file is missing or damaged, or holds another record.
    """
    return records.read(path, kind, UPGRADES.get(kind, dict))


# ---- A method is written as its settings and its name


def _encode_method(method: Method) -> dict[str, Any]:
    return {"name": name_of(method), **asdict(method)}


def _decode_method(content: Mapping[str, Any]) -> Method:
    if not isinstance(content, Mapping) or content.get("name") not in METHODS:
        raise InputError(f"there is no such method; there are {', '.join(METHODS)}")
    settings = {key: value for key, value in content.items() if key != "name"}
    return records.decode(settings, METHODS[content["name"]])


records.register(Method, _encode_method, _decode_method)


# ---- Formats 2 to 5


def _upgrade_training(content: dict[str, Any]) -> dict[str, Any]:
    """Until format 4 there were no defences."""
    return {"initial": None, **content, "training": {**_DEFENCES, **_renamed(content["training"], {})}}


_DEFENCES = {"shifts": 0, "noise": 0.0, "clip": 1.0}


def _upgrade_candidates(content: dict[str, Any]) -> dict[str, Any]:
    if "method" in content:  # format 4
        return {"known_mean": None, **content, "assumptions": _with_what_is_explained(content["assumptions"])}
    settings, assumptions = content.pop("reconstruction"), content.pop("reading")
    return {
        "initial": None,
        "start": None,
        "known_mean": None,
        **content,
        "method": _upgrade_method(settings),
        "assumptions": _upgrade_assumptions(assumptions),
    }


def _upgrade_search(content: dict[str, Any]) -> dict[str, Any]:
    if "method" in content:
        return content  # format 4
    settings = content.pop("reconstruction")
    trials = [
        {**_renamed(trial, {}), "settings": _renamed(trial["settings"], _SETTINGS)} for trial in content["trials"]
    ]
    return {**content, "method": _upgrade_method(settings), "trials": trials}


def _upgrade_scores(content: dict[str, Any]) -> dict[str, Any]:
    """Format 4 had one test, of the counts at 0.9; 5 did not say how near two kinds are, nor 6 what lies near whom."""
    tests = ("p_least", "p_kind", "kind_gap", "p_rank", "share", "difference")
    later = dict.fromkeys((*tests, "distinct", "picked", "given"))
    scores = _renamed(content, {"never_seen": "held_out"})
    return {"p_values": {"0.9": scores["p_value"]}, "near": {}, **later, **scores}


_SETTINGS = {"bilevel": "binary_prior"}
_ASSUMPTIONS = {"left_out": "discarded", "bilevel": "binary_prior", "start": "known_init"}
_OURS_ALONE = ("smoothness", "binary_prior", "weighted")


def _upgrade_method(settings: object) -> dict[str, Any]:
    """One class of settings was for all methods; None stood for the method's own value."""
    old = _renamed(settings, {"method": "name", **_SETTINGS})
    own = _encode_method(METHODS[old["name"]]())
    missing = [name for name in (*own, *_OURS_ALONE) if name not in old]
    if missing:
        raise InputError(f"the setting {missing[0]} is missing")
    given = {name: value for name, value in old.items() if value is not None}
    return {**own, **_without(given, [name for name in _OURS_ALONE if name not in own])}


def _upgrade_assumptions(reading: object) -> dict[str, Any]:
    """The regime had no name; whether the first layer was weighted followed from it."""
    old = _without(_renamed(reading, _ASSUMPTIONS), ("weighted",))
    start = old.get("known_init")
    known = None if start is None else _renamed(start, {"left": "retained"})
    return _with_what_is_explained({"regime": None, **old, "known_init": known})


def _with_what_is_explained(assumptions: object) -> dict[str, Any]:
    """It was always the change since the start."""
    own = _renamed(assumptions, {})
    known = own["known_init"]
    return {**own, "known_init": None if known is None else {"of": "change", **_renamed(known, {})}}


def _renamed(content: object, names: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise InputError(f"{content!r} stands in place of names and values")
    return {names.get(key, key): value for key, value in content.items()}


def _without(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in names}


UPGRADES: dict[type, Upgrade] = {
    TrainingRecord: _upgrade_training,
    CandidatesRecord: _upgrade_candidates,
    SearchRecord: _upgrade_search,
    ScoresRecord: _upgrade_scores,
}
"""How the records of formats 2 to 6 become today's; other records have not changed since."""
