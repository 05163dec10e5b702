"""The start that a command finds in the weights by itself, what the attack makes of it, and `exhume find-start`.

tests/test_find_start_search.py tests the search itself.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import exhume
from exhume import NetworkConfig, Problem, Selection, TrainingConfig
from exhume.attack.find_start import WAYS, StartSearch, all_seeds, likely_seeds
from exhume.checkpoint import load_checkpoint, save_checkpoint
from exhume.cli import main
from exhume.foreign import load_state_dict
from exhume.progress import Progress, ProgressCallback
from exhume.records import read_tensors
from exhume.runs import start as stage
from exhume.runs.schema import CandidatesRecord, ScoresRecord, StartRecord, read_record
from exhume.runs.start import ALWAYS, WHERE_NOISE_SHOWS, find_start_run, start_of, ways_for

WINDOW = 2**18
DRAWN_BEFORE = 99
"""Outputs that the script below draws before it builds its network: a permutation of 100."""
FOREIGN = "--checkpoint model.pt --shape 1 28 28 --task multiclass"
ATTACK = "--steps 200 --per-class 4 --restarts 1 --device cpu"
QUICK = "--steps 2 --per-class 3 --restarts 1 --device cpu"
FIRST, LAST = ("1.weight", "1.bias"), ("3.weight", "3.bias")
Initialise = Callable[[nn.Sequential], object]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def problem() -> Problem:
    return exhume.load_problem("mnist-digits", Selection(per_class=3, data_dir="installed"))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a script leaves: the file that it saves and, for the tests to compare with, its seed and initial weights."""

    path: Path
    seed: int
    initial: dict[str, Tensor]


def random_seed() -> int:
    """64 bits, as PyTorch draws them where a script sets none."""
    return int.from_bytes(os.urandom(8), "little")


def script(
    problem: Problem,
    path: str = "model.pt",
    *,
    seed: int | None = None,
    drawn: int = DRAWN_BEFORE,
    initialise: Initialise = lambda _: None,
    decay: float = 0.0,
    epochs: int = 10,
) -> Trained:
    """An ordinary training in batches, whose network and batches come from one stream; saves a plain state dict."""
    seed = random_seed() if seed is None else seed
    torch.manual_seed(seed)
    torch.randperm(drawn + 1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    initialise(network)
    initial = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=decay)
    for _ in range(epochs):
        for rows in torch.randperm(len(problem.images)).split(8):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(problem.images[rows]), problem.labels[rows]).backward()
            optimiser.step()
    torch.save(network.state_dict(), path)
    return Trained(path=Path(path), seed=seed % 2**32, initial=initial)


def without_generator(*parameters: str) -> Initialise:
    """Draws parameters as PyTorch does, from a generator that is not searched: NumPy's."""

    def initialise(network: nn.Sequential) -> None:
        random = np.random.default_rng()
        for name, tensor in network.named_parameters():
            if name in parameters:
                bound = 1 / (784 if name.startswith("1") else 100) ** 0.5
                tensor.data = torch.tensor(random.uniform(-bound, bound, tensor.shape)).float()

    return initialise


ELSEWHERE, LAST_ELSEWHERE = without_generator(*FIRST, *LAST), without_generator(*LAST)


def run(words: str) -> int:
    """The exit code of a command."""
    try:
        main(words.split())
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def count(folder: str) -> tuple[int, int]:
    """Training images that came out, and held-out ones."""
    assert run(f"score {folder} --problem mnist-digits --per-class 3 --data-dir installed") == 0
    scores = read_record(Path(folder) / "scores.json", ScoresRecord)
    return scores.recovered["0.9"], scores.null["0.9"]


def page(folder: str) -> str:
    """The page's words."""
    assert run(f"report {folder}") == 0
    return " ".join(re.sub(r"<[^>]*>", "", (Path(folder) / "report.html").read_text()).split())


def attempted(folder: str) -> CandidatesRecord:
    return read_record(Path(folder) / "candidates.json", CandidatesRecord)


def looked_for(folder: str) -> StartRecord:
    return read_record(Path(folder) / "start.json", StartRecord)


@pytest.fixture
def every_way(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts back the ways that commands take, and lets them take little time: few likely seeds, a window of all."""
    monkeypatch.setattr(stage, "ALWAYS", ALWAYS)
    monkeypatch.setattr(stage, "WHERE_NOISE_SHOWS", WHERE_NOISE_SHOWS)
    monkeypatch.setattr(likely_seeds, "SMALL", range(2000))
    monkeypatch.setattr(likely_seeds, "dates", lambda: ())

    def around(seed: int, places: int = 2**12) -> None:
        first = seed // WINDOW * WINDOW
        small = partial(StartSearch, places=places, first_seed=first, last_seed=first + WINDOW - 1)
        monkeypatch.setattr(stage, "StartSearch", small)

    return around


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with each search for the start that a run makes."""
    calls: list[object] = []
    whole = stage.find_start

    def counted(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        return whole(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "find_start", counted)
    return calls


# ---- From the weights to the start, from the start to the images


@pytest.mark.parametrize("way", ["generator-state", "all-seeds", "likely-seeds"])
def test_an_ordinary_training_gives_its_start_and_its_digits_away(
    problem: Problem,
    every_way: Callable[..., None],
    searches: list[object],
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    """Pixels that never change give the state away; where decay moves every weight, seeds are tried."""
    seed = 1234 if way == "likely-seeds" else None
    place, decay = (0 if way == "all-seeds" else DRAWN_BEFORE), (0.0 if way == "generator-state" else 1e-3)
    trained = script(problem, seed=seed, drawn=place, decay=decay)
    every_way(trained.seed)
    assert run(f"reconstruct run {FOREIGN} {ATTACK}") == 0

    looked = looked_for("run")
    assert looked.found is not None, looked.sentence
    assert (looked.found.way, looked.found.seed, looked.found.place) == (way, trained.seed, place)
    assert looked.found.log10_p < -100 and looked.found.unknown == [] and looked.found.candidate is None
    assert looked.tried[-1].way == way and {row.verdict for row in looked.evidence} <= {"matches", "implied"}
    assert f"Found by {way}: seed {trained.seed}, {place} outputs drawn before" in capsys.readouterr().out
    initial = read_tensors(Path("run/start.safetensors"))
    assert initial.keys() == trained.initial.keys()
    assert all(torch.equal(initial[name], tensor) for name, tensor in trained.initial.items())

    used = attempted("run")
    assert used.start == looked.found
    assert used.initial == replace(load_checkpoint("run"), weights=trained.initial).fingerprint
    assert used.assumptions.known_init is not None and used.assumptions.known_init.exact
    came_out, control = count("run")
    assert came_out >= 25 and control <= 3
    said = page("run")
    assert f"Found in them What its training began with: seed {trained.seed} of PyTorch" in said
    assert f"after {place} draws" in said and "The chance of a false alarm is below 10\N{MINUS SIGN}40" in said
    assert "those that its training began with" not in said
    assert "What training added to " in said

    assert len(searches) == 1
    before = Path("run/candidates.safetensors").read_bytes()
    assert run(f"reconstruct run {FOREIGN} {ATTACK}") == 0
    assert len(searches) == 1 and Path("run/candidates.safetensors").read_bytes() == before


def test_a_start_that_no_generator_made_is_not_found_and_nothing_comes_out(
    problem: Problem, every_way: Callable[..., None], searches: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = script(problem, initialise=ELSEWHERE)
    every_way(trained.seed)  # the seed itself is in the window, but the weights are not its
    assert run(f"reconstruct run {FOREIGN} {ATTACK}") == 0
    assert "was not found in the weights" in capsys.readouterr().out
    looked = looked_for("run")
    assert looked.found is None and not Path("run/start.safetensors").exists()
    assert [one.way for one in looked.tried] == ["generator-state", "likely-seeds", "all-seeds"]
    assert looked.sentence.startswith("Not found") and f"{WINDOW:,} of 4,294,967,296 seeds" in looked.sentence
    assert attempted("run").initial is None and attempted("run").start is None
    came_out, control = count("run")
    assert came_out <= control + 2
    said = page("run")
    assert "Not known What its training began with. Not found (" in said and "Found in them" not in said
    assert run(f"reconstruct run {ATTACK}") == 0
    assert len(searches) == 1  # what was not found is not looked for again
    # the same network gives its digits away to whoever knows the start, by whatever names
    torch.save({f"body.{name}": tensor for name, tensor in trained.initial.items()}, "initial.pt")
    assert run(f"reconstruct told {FOREIGN} {ATTACK} --initial initial.pt") == 0
    came_out, control = count("told")
    assert came_out >= 25 and control <= 3


@pytest.mark.parametrize("words", ["--no-find-start", "--initial initial.pt", "--method reference"])
def test_nobody_looks_where_nobody_asks(problem: Problem, searches: list[object], words: str) -> None:
    trained = script(problem)
    torch.save(trained.initial, "initial.pt")
    assert run(f"reconstruct run {FOREIGN} {QUICK} {words}") == 0
    assert searches == [] and not list(Path("run").glob("start*"))
    assert attempted("run").start is None
    said = page("run")
    assert "Found in them" not in said
    assert ("those that its training began with" in said) == ("initial" in words)


def test_a_run_of_its_own_is_attacked_with_the_start_that_is_found(problem: Problem, searches: list[object]) -> None:
    """`exhume train` builds from PyTorch's generator too. Candidates of other knowledge are not replaced unasked."""
    network = "--widths 100 --init-scale None --bias all --lr 0.1 --batch-size 8 --epochs 10"
    assert run(f"train mnist-digits run --per-class 3 --data-dir installed {network}") == 0
    assert run(f"reconstruct run {ATTACK}") == 0
    fresh = exhume.train(
        problem, TrainingConfig(epochs=0), network=NetworkConfig(widths=(100,), init_scale=None, bias="all")
    )
    assert attempted("run").initial == fresh.checkpoint.fingerprint
    assert run("score run") == 0
    scores = read_record(Path("run/scores.json"), ScoresRecord)
    assert scores.recovered["0.9"] >= 25 and scores.null["0.9"] <= 3
    assert run(f"reconstruct run {ATTACK} --no-find-start") == 2
    assert run(f"reconstruct run {QUICK} --no-find-start --overwrite") == 0
    assert attempted("run").initial is None
    assert len(searches) == 1
    # another training removes what was found in the weights of the first
    assert run(f"train mnist-digits run --per-class 3 --data-dir installed {network} --seed 1 --overwrite") == 0
    assert not list(Path("run").glob("start*"))


def test_a_start_of_other_weights_is_looked_for_anew(problem: Problem, searches: list[object]) -> None:
    one = script(problem, "one.pt")
    other = script(problem, "other.pt")
    for name in ("one", "other"):
        save_checkpoint(load_state_dict(Path(f"{name}.pt"), shape=(1, 28, 28), task="multiclass"), Path(name))
    assert run(f"find-start one {window(one.seed)}") == 0
    for name in ("start.json", "start.safetensors"):
        Path("other", name).write_bytes(Path("one", name).read_bytes())
    found = start_of(Path("other"))
    assert found is not None and found[1].seed == other.seed
    assert torch.equal(found[0].weights["1.weight"], other.initial["1.weight"])
    assert len(searches) == 2


def test_weights_that_nothing_was_added_to_are_told_and_attacked_as_they_are(
    problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    script(problem, epochs=0)
    assert run(f"reconstruct run {FOREIGN} {QUICK}") == 0
    assert "the network was not trained" in capsys.readouterr().out.replace("\n", " ")
    assert attempted("run").start is None
    assert attempted("run").initial is None


# ---- Parameters that do not match


def test_a_replaced_layer_is_named_and_does_no_harm(problem: Problem, searches: list[object]) -> None:
    trained = script(problem, initialise=LAST_ELSEWHERE)
    assert run(f"reconstruct run {FOREIGN} {ATTACK}") == 0
    looked = looked_for("run")
    assert looked.found is not None and looked.found.seed == trained.seed
    assert looked.found.unknown == list(LAST) and looked.sentence.endswith("unknown: 3.weight, 3.bias.")
    assert {row.parameter for row in looked.evidence if row.verdict == "unknown"} == set(LAST)
    assert read_tensors(Path("run/start.safetensors")).keys() == set(FIRST)
    checkpoint, found = load_checkpoint("run"), start_of(Path("run"))
    assert found is not None and len(searches) == 1
    for name, weight in found[0].weights.items():
        assert torch.equal(weight, checkpoint.weights[name] if name in LAST else trained.initial[name])
    assert not {name for name in attempted("run").assumptions.layers if name.startswith("3")}
    came_out, control = count("run")
    assert came_out >= 25 and control <= 3
    assert "Not found: 3.weight, 3.bias." in page("run")


def test_biases_that_no_draw_fits_began_at_zero(problem: Problem) -> None:
    def by_hand(network: nn.Sequential) -> None:
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    trained = script(problem, initialise=by_hand)
    assert run(f"reconstruct run {FOREIGN} {ATTACK}") == 0
    found = start_of(Path("run"))
    assert found is not None and found[1].unknown == ["1.bias", "3.bias"]
    assert all(torch.equal(found[0].weights[name], tensor) for name, tensor in trained.initial.items())
    came_out, control = count("run")
    assert came_out >= 25 and control <= 3


def test_a_start_without_the_first_layer_is_told_and_not_used(
    problem: Problem, every_way: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = script(problem, seed=1234, initialise=without_generator(*FIRST))
    every_way(trained.seed, 2**17)
    assert run(f"reconstruct run {FOREIGN} {QUICK}") == 0
    said = capsys.readouterr().out
    assert "Found by likely-seeds: seed 1234" in said and "It is not used" in said
    looked = looked_for("run")
    assert looked.found is not None and set(FIRST) <= set(looked.found.unknown)
    assert torch.equal(read_tensors(Path("run/start.safetensors"))["3.weight"], trained.initial["3.weight"])
    assert attempted("run").start is None and attempted("run").initial is None
    assert "so it was not used" in page("run")


# ---- The command of its own


@pytest.fixture
def folder(problem: Problem) -> Trained:
    """A run with a checkpoint alone, in the folder `run`, beside the file that it was read from."""
    trained = script(problem)
    save_checkpoint(load_state_dict(trained.path, shape=(1, 28, 28), task="multiclass"), Path("run"))
    return trained


def window(seed: int) -> str:
    first = seed // WINDOW * WINDOW
    return f"--ways all-seeds --offset {DRAWN_BEFORE} --first-seed {first} --last-seed {first + WINDOW - 1}"


NOWHERE = "--ways all-seeds --last-seed 9"


def test_a_run_is_searched_once_for_the_same_question(
    folder: Trained, searches: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"find-start run {window(folder.seed)}") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Found by all-seeds: seed {folder.seed}, 99 outputs drawn before 1.weight")
    rows = [line.split() for line in said.splitlines()[2:]]
    assert [row[0] for row in rows] == [*FIRST, *LAST] and {row[1] for row in rows} <= {"matches", "implied"}
    files = {name: Path("run", name).read_bytes() for name in ("start.json", "start.safetensors")}
    assert run(f"find-start run {window(folder.seed)} --threads 1") == 0
    assert capsys.readouterr().out == said
    assert len(searches) == 1
    assert run("find-start run --ways generator-state likely-seeds") == 2
    assert "another search for the start; add --overwrite" in capsys.readouterr().err
    assert {name: Path("run", name).read_bytes() for name in files} == files and len(searches) == 1
    assert run(f"reconstruct run {QUICK}") == 0
    assert len(searches) == 1 and attempted("run").start == looked_for("run").found
    assert run(f"find-start run {NOWHERE} --overwrite") == 0
    assert looked_for("run").found is None and not Path("run/start.safetensors").exists()


def test_what_was_not_found_elsewhere_is_looked_for_where_attacks_look(folder: Trained, searches: list[object]) -> None:
    assert run(f"find-start run {NOWHERE}") == 0
    assert looked_for("run").found is None
    assert run(f"reconstruct run {QUICK}") == 0
    assert len(searches) == 2 and attempted("run").start is not None


def test_what_the_search_was_given_is_recorded(folder: Trained) -> None:
    assert run(f"find-start run {window(folder.seed)}") == 0
    assert run(f"reconstruct run {QUICK}") == 0
    used = attempted("run").start
    assert used is not None and used.hints == ["how much was drawn before the network", "a range of seeds"]


def test_a_file_of_weights_is_searched_and_the_initial_values_written(
    folder: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"find-start model.pt {window(folder.seed)} --out found/initial.safetensors") == 0
    said = capsys.readouterr().out
    assert f"seed {folder.seed}" in said and said.endswith("written       found/initial.safetensors\n")
    initial = read_tensors(Path("found/initial.safetensors"))
    assert initial.keys() == folder.initial.keys()
    assert all(torch.equal(initial[name], tensor) for name, tensor in folder.initial.items())
    # initial.safetensors itself is a file of weights: of nothing but the start
    assert run(f"find-start found/initial.safetensors {window(folder.seed)}") == 0
    said = capsys.readouterr().out
    assert f"seed {folder.seed}" in said and said.endswith("--out FILE keeps the initial values, for --initial\n")


def test_what_is_not_found_in_a_file_is_not_written(problem: Problem, capsys: pytest.CaptureFixture[str]) -> None:
    trained = script(problem, initialise=ELSEWHERE)
    assert run(f"find-start model.pt {window(trained.seed)} --out initial.safetensors") == 0
    assert capsys.readouterr().out.startswith("Not found (")
    assert not Path("initial.safetensors").exists()


def test_a_public_network_that_was_fine_tuned_is_told_and_the_new_digits_come_out(
    problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three public networks that know other digits; one of them learns the thirty, with a last layer of its own."""
    more = exhume.load_problem("mnist-digits", Selection(per_class=30, data_dir="installed"))
    rows = torch.arange(300).reshape(10, 30)[:, 10:].flatten()  # those of a class stand together; problem has three
    old = replace(more, images=more.images[rows], labels=more.labels[rows])
    Path("public").mkdir()
    public = {name: script(old, f"public/{name}.pt", epochs=5) for name in "abc"}
    weights = torch.load("public/b.pt", weights_only=True)

    def fine_tuned(network: nn.Sequential) -> None:
        network.load_state_dict(weights)
        LAST_ELSEWHERE(network)

    script(problem, initialise=fine_tuned)
    assert run(f"find-start model.pt {NOWHERE} --among public") == 0
    said = capsys.readouterr().out
    assert (
        said.startswith("Found by public-start: it shares its start with b.pt") and "unknown: 3.weight, 3.bias." in said
    )
    save_checkpoint(load_state_dict(Path("model.pt"), shape=(1, 28, 28), task="multiclass"), Path("run"))
    assert run(f"find-start run {NOWHERE} --among public") == 0
    looked = looked_for("run")
    assert looked.found is not None and looked.among == ["a.pt", "b.pt", "c.pt"]
    assert (looked.found.way, looked.found.candidate, looked.found.seed) == ("public-start", "b.pt", None)
    assert torch.equal(read_tensors(Path("run/start.safetensors"))["1.weight"], weights["1.weight"])
    assert run(f"reconstruct run {ATTACK}") == 0
    assert attempted("run").start == looked.found
    came_out, control = count("run")
    assert came_out >= 25 and control <= 3
    (public["b"].path).unlink()
    assert run(f"find-start run {NOWHERE} --among public --overwrite") == 0
    assert looked_for("run").found is None and not Path("run/start.safetensors").exists()


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command has said, and nothing else."""
    said = capsys.readouterr()
    assert said.out == "" and re.fullmatch(r"exhume: [^\n]+", said.err.strip())
    return said.err.strip()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("nowhere", "There is no nowhere."),
        ("nowhere.safetensors", "There is no nowhere.safetensors."),
        ("empty", "There is no empty/checkpoint.json."),
        ("run --among empty", "empty holds no network"),
        ("run --among nowhere", "nowhere holds no network"),
        ("model.pt --among damaged", "damaged/0.pt is no plain state dict"),
        ("run --ways dice", "There is no way 'dice' to the start; there are generator-state, likely-seeds"),
        ("model.pt --ways all-seeds --device cuda:77", "There is no device 'cuda:77'"),
        ("run --out initial.safetensors", "--out is for a file of weights"),
        ("scalar.pt", "There is no layer of weights"),
        ("infinite.pt", "1.weight holds weights that are not finite"),
        ("list.pt", "it must map names to tensors"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    folder: Trained, capsys: pytest.CaptureFixture[str], words: str, hint: str
) -> None:
    Path("empty").mkdir()
    Path("damaged").mkdir()
    Path("damaged/0.pt").write_bytes(Path("model.pt").read_bytes()[:9000])
    torch.save({"weight": torch.tensor(1.0)}, "scalar.pt")
    torch.save([torch.ones(2, 2)], "list.pt")
    torch.save(folder.initial | {"1.weight": torch.full((100, 784), torch.inf)}, "infinite.pt")
    assert run(f"find-start {words}") == 2
    assert hint in sentence(capsys)
    assert not list(Path("run").glob("start*"))


def test_a_damaged_file_is_one_sentence(folder: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Path("model.pt").read_bytes()
    damages = (
        b"",
        b"nonsense",
        b"\x80\x02.",
        b"PK\x03\x04",
        whole[:9000],
        whole[:-300],
        whole.replace(b"1.weight", b"1.\xff\xffight"),
    )
    for damage in damages:
        Path("model.pt").write_bytes(damage)
        assert run(f"find-start model.pt {window(folder.seed)}") == 2, damage[:20]
        assert re.match(r"exhume: model.pt is no plain state dict: \S", sentence(capsys))


@pytest.mark.parametrize("name", ["start.json", "start.safetensors", "checkpoint.safetensors"])
def test_a_damaged_run_is_one_sentence(folder: Trained, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(f"find-start run {window(folder.seed)}") == 0
    path = Path("run", name)
    for damage in (path.read_bytes()[:30], None):
        path.unlink() if damage is None else path.write_bytes(damage)
        if name != "start.json" or damage is not None:  # where the record is missing, it is written again
            capsys.readouterr()
            assert run(f"reconstruct run {QUICK}") == 2
            assert name in sentence(capsys)
    if name == "start.safetensors":
        assert run(f"find-start run {window(folder.seed)} --overwrite") == 0
        assert run(f"reconstruct run {QUICK}") == 0


# ---- A sweep that is interrupted


@pytest.fixture
def hearing(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """What the bars are told of a sweep; each sixteenth of it is saved. Ctrl-C comes after the ninth, once."""
    monkeypatch.setattr(all_seeds, "CHUNK", WINDOW // 16)
    monkeypatch.setattr(stage, "SAVE_EVERY", -1.0)
    heard: list[Progress] = []

    @contextmanager
    def bars() -> Iterator[ProgressCallback]:
        def hear(event: Progress) -> None:
            heard.append(event)
            if len(heard) == 9:
                raise KeyboardInterrupt

        yield hear

    monkeypatch.setattr("exhume.commands.find_start.bars", bars)
    return heard


def answer(record: StartRecord) -> tuple[object, ...]:
    return record.found, record.evidence, [(way.way, way.trials, way.said) for way in record.tried]


def test_an_interrupted_sweep_goes_on_where_it_was(folder: Trained, hearing: list[Progress]) -> None:
    save_checkpoint(load_checkpoint("run"), Path("whole"))
    assert run(f"find-start run {window(folder.seed)}") == 130
    assert Path("run/start-sweep.json").exists() and not Path("run/start.json").exists()
    assert run(f"find-start run {window(folder.seed)}") == 0
    assert [event.step for event in hearing] == [part * WINDOW // 16 for part in range(1, 17)]
    assert not Path("run/start-sweep.json").exists()
    assert run(f"find-start whole {window(folder.seed)}") == 0
    assert len(hearing) == 32
    assert answer(looked_for("run")) == answer(looked_for("whole"))
    found = looked_for("run").found
    assert found is not None and (found.way, found.seed, found.place) == ("all-seeds", folder.seed, DRAWN_BEFORE)


def test_an_interrupted_replacement_goes_on_without_being_asked_to_replace(
    folder: Trained, hearing: list[Progress]
) -> None:
    find_start_run(Path("run"), StartSearch(ways=("all-seeds",), last_seed=9))
    assert run(f"find-start run {window(folder.seed)} --overwrite") == 130
    assert run(f"find-start run {window(folder.seed)}") == 0
    assert len(hearing) == 16 and looked_for("run").found is not None


@pytest.mark.parametrize("what", ["another offset", "other weights", "a damaged file"])
def test_a_sweep_of_another_question_begins_anew(
    problem: Problem, folder: Trained, hearing: list[Progress], what: str
) -> None:
    seed = folder.seed
    assert run(f"find-start run {window(seed).replace('--offset 99', '--offset 5')}") == 130
    if what == "other weights":
        seed = script(problem).seed
        save_checkpoint(load_state_dict(Path("model.pt"), shape=(1, 28, 28), task="multiclass"), Path("run"))
    if what == "a damaged file":
        Path("run/start-sweep.json").write_text("{")
    assert run(f"find-start run {window(seed)}") == 0
    assert len(hearing) == 9 + 16
    found = looked_for("run").found
    assert found is not None and found.seed == seed


def test_whoever_follows_a_search_may_end_it(folder: Trained) -> None:
    class Enough(Exception):
        pass

    def enough(_: Progress) -> None:
        raise Enough

    with pytest.raises(Enough):
        find_start_run(Path("run"), StartSearch(ways=("generator-state",)), progress_callback=enough)
    assert not list(Path("run").glob("start*"))


# ---- The ways that are worth their time


MORE = (*ALWAYS, WHERE_NOISE_SHOWS)
SGD = TrainingConfig(lr=0.1, batch_size=8, epochs=5)


@pytest.mark.parametrize(
    ("network", "training", "ways"),
    [
        (NetworkConfig(widths=(100,), init_scale=None, bias="all"), SGD, MORE),
        (
            NetworkConfig(widths=(100,), init_scale=None, bias="all"),
            TrainingConfig(lr=1e-3, optimiser="adam", batch_size=8, epochs=5),
            MORE,
        ),
        (NetworkConfig(kind="cnn", channels=(4,), widths=(50,), init_scale=None, bias="all"), SGD, MORE),
        (NetworkConfig(widths=(100,), init_scale=1e-3), TrainingConfig(lr=0.1, epochs=100), ALWAYS),
        (NetworkConfig(), TrainingConfig(lr=0.1, epochs=20), ALWAYS),
    ],
    ids=["default", "adam", "convolutional", "small", "the problem's own"],
)
def test_all_seeds_are_tried_where_the_first_layer_shows_an_initialisation(
    problem: Problem,
    every_way: Callable[..., None],
    network: NetworkConfig,
    training: TrainingConfig,
    ways: tuple[str, ...],
) -> None:
    assert ways_for(exhume.train(problem, training, network=network).checkpoint) == ways


def test_the_ways_are_rows_of_the_table_cheapest_first() -> None:
    places = [list(WAYS).index(way) for way in MORE]
    assert all(before < after for before, after in pairwise(places))
