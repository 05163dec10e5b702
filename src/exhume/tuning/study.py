"""The search for settings: many reconstructions of one checkpoint, each judged, the best kept. Built on Optuna.

The papers chose their settings so, among about a hundred random ones and with the truth at hand. An attacker has no
truth; he can only see how well candidates explain the weights (`exact_gate_residual`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from exhume.attack.methods import name_of
from exhume.attack.reconstruct import reconstruct
from exhume.attack.search import Iterate, Method
from exhume.attack.target import make_target
from exhume.candidates import Candidates
from exhume.checkpoint import Checkpoint
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.progress import Progress, ProgressCallback, no_op
from exhume.tuning.journal import alone, claim, together, unfinished
from exhume.tuning.objective import believed_layers, exact_gate_residual
from exhume.tuning.search_spaces import SPACES, Interval, Setting
from exhume.tuning.workers.processes import Processes
from exhume.tuning.workers.protocol import Workers

if TYPE_CHECKING:
    import optuna

JUDGES = 5
"""Complete trials before any is stopped by their median."""
WARM_UP = 20
"""Looks at a trial before it may be stopped: a fifth of about a hundred; before, a residual tells little yet."""
LOOKS_BETWEEN = 5
"""Looks from one at which it may be stopped to the next."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """By what a search chooses.

    value: what the candidates of a finished trial are worth, the `largest` or the smallest being the best; None: their
    `exact_gate_residual`, by which trials are also stopped early. words: what a reader must know of such a choice.
    """

    name: Literal["residual", "truth"]
    words: str
    largest: bool = False
    value: Callable[[Candidates], float] | None = None


RESIDUAL = Judge(name="residual", words="chosen by the weights alone, without the truth")
"""The attacker's judge."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How to search for settings.

    Example:
        config = exhume.SweepConfig(trials=50)
        *_, trials = exhume.sweep(checkpoint, config, method, journal=path)
    """

    trials: int = 20
    """Trials to finish in all; those of an interrupted or earlier search of the same settings count."""
    space: str = "exhume"
    """A row of SPACES: exhume, published or published-multiclass."""
    sampler: Literal["random", "tpe"] = "tpe"
    """Random, or the tree-structured Parzen estimator, which learns from the trials before (Bergstra et al. 2011)."""
    workers: int = 1
    """Trials at the same time: processes, of one thread each if there are several, or with --ray tasks of the
    cluster."""

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise InputError(f"Unknown space {self.space!r}; there are {', '.join(SPACES)}.")
        for name in ("trials", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One reconstruction of a search.

    settings: what was searched; value: by the judge, None unless "complete"; state: "complete", "pruned" (stopped early
    since its residual was above the median of the others) or "diverged"; seconds: wall time.
    """

    number: int
    settings: dict[str, Setting]
    value: float | None
    state: Literal["complete", "pruned", "diverged"]
    seconds: float


Keep = Callable[[int, Method, Candidates, float], Any]
Receive = Callable[[int, Any], None]


def _forget(number: int, method: Method, candidates: Candidates, seconds: float) -> None:
    """Keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a worker needs to know to run trials."""

    checkpoint: Checkpoint
    config: SweepConfig
    method: Method
    judge: Judge
    device: str
    keep: Keep
    layers: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A trial that is to be run: its settings, and above which residual it is stopped, by the number of the look."""

    number: int
    settings: dict[str, Setting]
    limits: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What came of a trial; residuals: at each look, for the limits of later trials."""

    state: Literal["complete", "pruned", "diverged"]
    value: float | None = None
    residuals: list[float]
    seconds: float


def sweep(
    checkpoint: Checkpoint,
    config: SweepConfig,
    method: Method,
    *,
    journal: Path,
    first: Sequence[Mapping[str, Setting]] = (),
    judge: Judge = RESIDUAL,
    device: torch.device | str = "cpu",
    workers: Workers | None = None,
    progress_callback: ProgressCallback = no_op,
    keep: Keep = _forget,
    receive: Receive = lambda number, kept: None,
    most: int = 1,
) -> Iterator[list[Trial]]:
    """Searches until `config.trials` trials are finished; yields, at the start and whenever a trial ends, all of them.

        config, method = exhume.SweepConfig(trials=50), exhume.Exhume(restarts=1)
        *_, trials = exhume.sweep(checkpoint, config, method, journal=Path("runs/demo/my.journal"))
        best = min((trial for trial in trials if trial.value is not None), key=lambda trial: trial.value)

    Args:
        method: the settings that are not searched; its seed is also the sampler's.
        journal: the search's memory, a file; the same search goes on with it. One search at a time may use it.
        first: points of the space to be tried first.
        workers: where trials are run; None: in processes of this machine.
        progress_callback: is told of every finished trial, and with one process of the steps of each.
        keep: is given the candidates of a complete trial, with its number, settings and seconds, where it was run.
        receive: is given, in this process, the number and what `keep` has returned, of the `most` best so far.

    Raises:
        InputError: the journal is damaged, in use or another search's, a setting is both given and searched, or a
            worker was killed.
    """
    check_settings(config, method)
    method.check_task(checkpoint.task)
    job = _Job(
        checkpoint=checkpoint,
        config=config,
        method=method,
        judge=judge,
        device=str(device),
        keep=keep,
    )
    with alone(journal):
        study = claim(journal, question(checkpoint, config, method, judge), first, largest=judge.largest)
        yield (trials := _finished(study))
        left = config.trials - len(trials)
        if left <= 0:
            return
        job, under_way = replace(job, layers=believed_layers(checkpoint)), dict[int, "optuna.Trial"]()
        for done in (workers or Processes()).map(
            partial(_run, job),
            _ask(job, study, left, under_way),
            count=min(config.workers, left),
            device=job.device,
            display=lambda: nullcontext(progress_callback),
        ):
            asked, outcome = done.item, done.result
            if _leads(outcome, trials, judge, most):
                receive(asked.number, done.fetch())
            _tell(study, under_way.pop(asked.number), outcome)
            trials = _finished(study)
            progress_callback(_progress(trials, job))
            yield trials


def question(checkpoint: Checkpoint, config: SweepConfig, method: Method, judge: Judge) -> dict[str, Any]:
    """Which search it is, in JSON's types: all but how many trials and workers."""
    return {
        "space": config.space,
        "sampler": config.sampler,
        "judge": judge.name,
        "method": {"name": name_of(method), **asdict(method)},
        "checkpoint": checkpoint.fingerprint,
    }


def check_settings(config: SweepConfig, method: Method) -> None:
    """Raises `InputError` for settings that the space searches or decides itself."""
    space = SPACES[config.space]
    if type(method) is not type(space.base):
        raise InputError(f"The space {config.space} is for the method {name_of(space.base)}.")
    if method.restarts > 1:
        raise InputError("A trial is judged by one search, so restarts must be 1.")
    for name in space.ranges:
        if getattr(method, name) != getattr(space.base, name):
            raise InputError(f"{name} is searched in the space {config.space}, so it cannot be given.")


def best(trials: Sequence[Trial], judge: Judge, count: int) -> list[Trial]:
    """The `count` best complete trials, the best first."""
    valued = [(trial.value, trial) for trial in trials if trial.value is not None]
    return [trial for _, trial in sorted(valued, key=lambda pair: -pair[0] if judge.largest else pair[0])[:count]]


def _progress(trials: Sequence[Trial], job: _Job) -> Progress:
    """How far the search is: the last value, if that trial has one, and the best."""
    values = {job.judge.name: trials[-1].value, "best": next((t.value for t in best(trials, job.judge, 1)), None)}
    known = {name: value for name, value in values.items() if value is not None}
    return Progress(stage="search", step=len(trials), total=job.config.trials, values=known)


def _finished(study: "optuna.Study") -> list[Trial]:
    """The trials that count: complete, pruned or diverged, in the order in which they ended."""
    ended = [t for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]
    return [
        Trial(
            number=trial.number,
            settings=dict(trial.params),
            value=trial.value if trial.state.name == "COMPLETE" else None,
            state="complete" if trial.state.name == "COMPLETE" else trial.user_attrs.get("why", "pruned"),
            seconds=trial.user_attrs.get("seconds", _duration(trial)),
        )
        for trial in sorted(ended, key=lambda t: (t.datetime_complete is None, t.datetime_complete, t.number))
    ]


def _duration(trial: "optuna.trial.FrozenTrial") -> float:
    """Seconds between a trial's beginning and its end, for journals that do not tell those at work."""
    return round(trial.duration.total_seconds(), 2) if trial.duration else 0.0


def _leads(outcome: _Outcome, trials: Sequence[Trial], judge: Judge, most: int) -> bool:
    """Whether an outcome is among the `most` best of the trials that have ended; of equals the first is better."""
    if outcome.value is None:
        return False
    before = [trial.value for trial in best(trials, judge, most) if trial.value is not None]
    return len(before) < most or (outcome.value > before[-1] if judge.largest else outcome.value < before[-1])


def _ask(job: _Job, study: "optuna.Study", count: int, under_way: dict[int, "optuna.Trial"]) -> Iterator[_Asked]:
    """`count` trials with their settings, first those that were begun before, under their own numbers."""
    import optuna  # noqa: PLC0415

    pending = unfinished(study)[:count]
    for begun in [*pending, *[None] * (count - len(pending))]:
        trial = study.ask() if begun is None else optuna.trial.Trial(study, begun)
        under_way[trial.number] = trial
        study.sampler = _sampler(job, trial.number)
        if begun is not None:
            _draw_again(study, begun)
        ranges = SPACES[job.config.space].ranges
        with together(study):
            settings = {name: _suggest(trial, name, values) for name, values in ranges.items()}
        yield _Asked(number=trial.number, settings=settings, limits=_limits(study))


def _limits(study: "optuna.Study") -> dict[int, float]:
    """The median of the complete trials at the looks at which a trial may be stopped; the median rule of Optuna.

    A trial is given them when it begins, so that it need not ask while it runs.
    """
    complete = [t.intermediate_values for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    if len(complete) < JUDGES:
        return {}
    looks = range(WARM_UP, max(map(len, complete)), LOOKS_BETWEEN)
    at = {look: [values[look] for values in complete if look in values] for look in looks}
    return {look: float(np.nanmedian(values)) for look, values in at.items() if not np.isnan(values).all()}


def _tell(study: "optuna.Study", trial: "optuna.Trial", outcome: _Outcome) -> None:
    """Writes into the journal what came of a trial."""
    import optuna  # noqa: PLC0415

    told = trial.storage.get_trial(trial._trial_id).intermediate_values  # by a version that told them one by one
    with together(study):
        for look, residual in enumerate(outcome.residuals):
            if look not in told:
                trial.report(residual, look)
        trial.set_user_attr("seconds", outcome.seconds)
        if outcome.state == "diverged":
            trial.set_user_attr("why", "diverged")
    if outcome.value is not None:
        study.tell(trial, outcome.value)
    else:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def _run(job: _Job, asked: _Asked, progress_callback: ProgressCallback) -> tuple[_Outcome, Any]:
    """One trial, from its settings to its outcome, and what is kept of it."""
    method, start, device = replace(job.method, **asked.settings), perf_counter(), choose_device(job.device)  # type: ignore[arg-type]
    yardstick = _Yardstick(job, method, device, asked.limits)

    def tell(progress: Progress) -> None:
        progress_callback(replace(progress, stage=f"trial-{asked.number}"))

    def outcome(state: Literal["complete", "pruned", "diverged"], value: float | None = None) -> _Outcome:
        seconds = round(perf_counter() - start, 2)
        return _Outcome(state=state, value=value, residuals=yardstick.residuals, seconds=seconds)

    try:
        watch = yardstick if job.judge.value is None else no_op
        candidates = reconstruct(job.checkpoint, method, device=device, progress_callback=tell, iterate_callback=watch)
    except _Hopeless:
        return outcome("pruned"), None
    value = yardstick.residuals[-1] if job.judge.value is None else job.judge.value(candidates)
    if candidates.status == "diverged" or not math.isfinite(value):
        return outcome("diverged"), None
    return outcome("complete", value), job.keep(asked.number, method, candidates, perf_counter() - start)


def _draw_again(study: "optuna.Study", begun: int) -> None:
    """Draws once more what an interrupted trial had drawn, so that what it draws next is what it would have drawn."""
    trial = study._storage.get_trial(begun)
    given = trial.system_attrs.get("fixed_params", {})
    for name, distribution in trial.distributions.items():
        if name not in given:
            study.sampler.sample_independent(study, trial, name, distribution)


class _Hopeless(Exception):
    """The residual is above the limit."""


class _Yardstick:
    """Watches a reconstruction: measures its residual, and gives up where its best one is above the limit."""

    def __init__(self, job: _Job, method: Method, device: torch.device, limits: Mapping[int, float]) -> None:
        dtype = getattr(torch, method.dtype)
        self.network, self.layers = make_target(job.checkpoint).network.to(device, dtype), job.layers
        self.limits, self.residuals = limits, list[float]()

    def __call__(self, found: Iterate) -> None:
        self.residuals.append(exact_gate_residual(self.network, found, self.layers))
        limit = self.limits.get(len(self.residuals) - 1)
        finite = [residual for residual in self.residuals if not math.isnan(residual)]
        if limit is not None and min(finite, default=math.inf) > limit:
            raise _Hopeless


def _suggest(trial: "optuna.Trial", name: str, values: Interval | tuple[Setting, ...]) -> Any:
    if isinstance(values, Interval):
        return trial.suggest_float(name, values.low, values.high, log=values.log)
    return trial.suggest_categorical(name, values)


def _sampler(job: _Job, number: int) -> "optuna.samplers.BaseSampler":
    """A sampler with a seed of its own for every trial, so that an interrupted search does not begin anew."""
    import optuna  # noqa: PLC0415

    seed = int(np.random.SeedSequence((job.method.seed, number)).generate_state(1)[0])
    if job.config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)
