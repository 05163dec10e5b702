"""The search for settings: many reconstructions of one checkpoint, each judged, the best kept. Built on Optuna.

The papers chose their settings so, among about a hundred random ones and with the truth at hand. An attacker has no
truth; he can only see how well candidates explain the weights (`exact_gate_residual`).
"""

import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.synchronize import Semaphore
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
from exhume.errors import InputError
from exhume.progress import Progress, ProgressCallback, no_op
from exhume.tuning.journal import alone, claim, open_journal, unfinished
from exhume.tuning.objective import believed_layers, exact_gate_residual
from exhume.tuning.search_spaces import SPACES, Interval, Setting

if TYPE_CHECKING:
    import optuna


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

    In Python:

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
    """Processes, of one thread each if there are several."""

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


Keep = Callable[[int, Method, Candidates, float], None]


def _forget(number: int, method: Method, candidates: Candidates, seconds: float) -> None:
    """Keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a process needs to know to run a trial."""

    checkpoint: Checkpoint
    config: SweepConfig
    method: Method
    judge: Judge
    journal: Path
    device: torch.device
    keep: Keep
    layers: list[str] = field(default_factory=list)


def sweep(
    checkpoint: Checkpoint,
    config: SweepConfig,
    method: Method,
    *,
    journal: Path,
    first: Sequence[Mapping[str, Setting]] = (),
    judge: Judge = RESIDUAL,
    device: torch.device | str = "cpu",
    progress_callback: ProgressCallback = no_op,
    keep: Keep = _forget,
) -> Iterator[list[Trial]]:
    """Searches until `config.trials` trials are finished; yields, at the start and whenever a trial ends, all of them.

        config, method = exhume.SweepConfig(trials=50), exhume.Exhume(restarts=1)
        *_, trials = exhume.sweep(checkpoint, config, method, journal=Path("runs/demo/my.journal"))
        best = min((trial for trial in trials if trial.value is not None), key=lambda trial: trial.value)

    Args:
        method: the settings that are not searched; its seed is also the sampler's.
        journal: the search's memory, a file; the same search goes on with it. One search at a time may use it.
        first: points of the space to be tried first.
        progress_callback: is told of every finished trial, and with one worker of the steps of each.
        keep: is given the candidates of a finished trial, with its number, settings and seconds, in its own process.

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
        journal=journal,
        device=torch.device(device),
        keep=keep,
    )
    with alone(journal):
        study = claim(journal, question(checkpoint, config, method, judge), first, largest=judge.largest)
        yield (trials := _finished(study))
        left = config.trials - len(trials)
        if left > 0:
            job = replace(job, layers=believed_layers(checkpoint))
            pending = unfinished(study)[:left]
            one_by_one = partial(_in_turn, job, study, pending, left, progress_callback)
            for _ in one_by_one() if config.workers == 1 else _side_by_side(job, pending, left):
                before, trials = len(trials), _finished(study)
                if len(trials) > before:
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


def _in_turn(
    job: _Job, study: "optuna.Study", pending: Sequence[int], count: int, progress_callback: ProgressCallback
) -> Iterator[None]:
    """Trials until `count` have ended, first those that were begun before."""
    for which in [*pending, *[None] * (count - len(pending))]:
        _attempt(job, study, which, progress_callback)
        yield


def _side_by_side(job: _Job, pending: Sequence[int], count: int) -> Iterator[None]:
    """The same in several processes; yields about every second."""
    context = multiprocessing.get_context("spawn")
    tickets = context.Semaphore(count)
    number = min(job.config.workers, count)
    workers = [
        context.Process(target=_work, args=(job, pending[which::number], tickets), daemon=True)
        for which in range(number)
    ]
    try:
        for worker in workers:
            worker.start()
        alive = [worker.sentinel for worker in workers]
        while alive:
            wait(alive, timeout=1)
            # asked before the trials are counted, so that none ends unseen between the last count and the end
            alive = [worker.sentinel for worker in workers if worker.exitcode is None]
            yield
            failed = [worker.exitcode for worker in workers if worker.exitcode]
            if failed:
                raise InputError(
                    f"A worker of the search ended with code {failed[0]} (-9: killed, for lack of memory perhaps); "
                    "the same command goes on with the search."
                )
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()


def _work(job: _Job, pending: Sequence[int], tickets: Semaphore) -> None:
    """A worker process: trials, one after another, while there are tickets; first those that were begun before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    torch.set_num_threads(1)
    study, begun = open_journal(job.journal, largest=job.judge.largest), [*pending]
    try:
        while tickets.acquire(block=False):
            _while_wanted()
            _attempt(job, study, begun.pop(0) if begun else None, _while_wanted)
    except InputError as error:
        raise SystemExit(str(error)) from None


def _while_wanted(_: Progress | None = None) -> None:
    """Ends a worker whose parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit


def _attempt(job: _Job, study: "optuna.Study", begun: int | None, progress_callback: ProgressCallback) -> None:
    """Runs one trial, from its settings to its value; what a callback or a pruner raises ends it early.

    begun: the identity of a trial that was interrupted, which is done again with its own number; None: a new one.
    """
    import optuna  # noqa: PLC0415

    trial = study.ask() if begun is None else optuna.trial.Trial(study, begun)
    study.sampler = _sampler(job, trial.number)
    ranges = SPACES[job.config.space].ranges
    if begun is not None:
        _draw_again(study, begun)
    searched: dict[str, Any] = {name: _suggest(trial, name, values) for name, values in ranges.items()}
    method = replace(job.method, **searched)
    yardstick, start = _Yardstick(job, method, trial), perf_counter()

    def tell(progress: Progress) -> None:
        progress_callback(replace(progress, stage=f"trial-{trial.number}"))

    def end(**outcome: Any) -> None:
        trial.set_user_attr("seconds", round(perf_counter() - start, 2))
        # a worker whose parent was killed may have told the same meanwhile
        study.tell(trial, **outcome, skip_if_finished=True)

    try:
        watch = yardstick if job.judge.value is None else no_op
        candidates = reconstruct(
            job.checkpoint, method, device=job.device, progress_callback=tell, iterate_callback=watch
        )
    except optuna.TrialPruned:
        end(state=optuna.trial.TrialState.PRUNED)
        return
    value = yardstick.value if job.judge.value is None else job.judge.value(candidates)
    if candidates.status == "diverged" or not math.isfinite(value):
        trial.set_user_attr("why", "diverged")
        end(state=optuna.trial.TrialState.PRUNED)
        return
    job.keep(trial.number, method, candidates, perf_counter() - start)
    end(values=value)


def _draw_again(study: "optuna.Study", begun: int) -> None:
    """Draws once more what an interrupted trial had drawn, so that what it draws next is what it would have drawn."""
    trial = study._storage.get_trial(begun)
    given = trial.system_attrs.get("fixed_params", {})
    for name, distribution in trial.distributions.items():
        if name not in given:
            study.sampler.sample_independent(study, trial, name, distribution)


class _Yardstick:
    """Watches a reconstruction: measures its residual, and gives up where the median of the other trials was better."""

    def __init__(self, job: _Job, method: Method, trial: "optuna.Trial") -> None:
        dtype = getattr(torch, method.dtype)
        self.network, self.layers = make_target(job.checkpoint).network.to(job.device, dtype), job.layers
        self.trial, self.seen, self.value = trial, 0, math.inf
        self.before = {*trial.storage.get_trial(trial._trial_id).intermediate_values}

    def __call__(self, found: Iterate) -> None:
        import optuna  # noqa: PLC0415

        self.value = exact_gate_residual(self.network, found, self.layers)
        if self.seen not in self.before:  # else it was told before the trial was interrupted
            self.trial.report(self.value, self.seen)
        self.seen += 1
        if self.trial.should_prune():
            raise optuna.TrialPruned


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
