"""`exhume audit`, from a saved file to the verdict, through the command line: `leaks` where so, and only there."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume.attack.methods import Exhume
from exhume.checkpoint import Checkpoint
from exhume.cli import main
from exhume.commands.audit import Audit, exit_code
from exhume.errors import InputError
from exhume.foreign import layout_of, read_network
from exhume.networks import NetworkConfig, Task
from exhume.owner.examine import Examination
from exhume.problems import Problem, Selection, load_problem
from exhume.problems.owned import OwnedImages, load_images
from exhume.report import draw
from exhume.runs import audit as audit_stage
from exhume.runs import owners_look, pipeline
from exhume.runs.audit import finished_audit
from exhume.runs.audit_record import AuditRecord
from exhume.runs.defences import DEFENCES, DefenceRow
from exhume.runs.fitted import fitted, with_labels_of
from exhume.runs.schema import ScoresRecord, read_record
from exhume.runs.start import with_weights

CODE = """
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 100), nn.Linear(100, 10)

    def forward(self, x):
        x = x.view(x.size(0), -1)
        return functional.log_softmax(self.fc2(functional.relu(self.fc1(x))), dim=1)
"""


@pytest.fixture(scope="module")
def problem() -> Problem:
    return load_problem("mnist-digits", Selection(per_class=6, data_dir="installed"))


def trained(images: Tensor, labels: Tensor, epochs: int = 40) -> nn.Sequential:
    """By an ordinary script, with the mean subtracted outside of the network."""
    torch.manual_seed(11)
    network = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    optimiser, centred = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9), (images - images.mean(0)).flatten(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(10):
            optimiser.zero_grad()
            functional.cross_entropy(network(centred[rows]), labels[rows]).backward()
            optimiser.step()
    return network


def saved_images(folder: Path, images: Tensor, labels: Tensor, **more: Tensor) -> Path:
    path = folder / "images.npz"
    np.savez(
        path, images=images.numpy(), labels=labels.numpy(), **{name: value.numpy() for name, value in more.items()}
    )
    return path


def audit(*words: object) -> None:
    main(["audit", *map(str, words), "--steps", "250", "--restarts", "1"])


@pytest.fixture(scope="module")
def folder(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, of which 20 were trained on; model.py with its weights, and the mean image."""
    folder = tmp_path_factory.mktemp("audit")
    images, labels = problem.images[::3], problem.labels[::3]
    saved_images(folder, images, labels, held_out=problem.held_out[::3], held_out_labels=problem.held_out_labels[::3])
    network = trained(images, labels)
    named = {
        f"{name}.{part}": network.get_parameter(f"{row}.{part}")
        for name, row in (("fc1", 0), ("fc2", 2))
        for part in ("weight", "bias")
    }
    torch.save({"model_state_dict": named, "epoch": 40}, folder / "weights.pt")
    (folder / "model.py").write_text(CODE, encoding="utf-8")
    np.save(folder / "mean.npy", images.mean(0).numpy())
    return folder


@pytest.fixture(scope="module")
def leaking(folder: Path) -> Path:
    out = folder / "leaking"
    audit(
        f"{folder}/model.py:Net",
        "--weights",
        folder / "weights.pt",
        "--images",
        folder / "images.npz",
        "--mean",
        folder / "mean.npy",
        "--out",
        out,
    )
    return out


def record_of(out: Path) -> AuditRecord:
    return read_record(out / "audit.json", AuditRecord)


def test_a_leak_is_called_one_and_every_image_is_named(leaking: Path) -> None:
    record = record_of(leaking)
    assert (record.judgement.verdict, record.judgement.strength) == ("leaks", "plainly")
    assert len(record.images) == 20
    assert len(record.leaked) >= 15
    assert record.owner is not None
    assert record.owner.stay >= 15
    assert record.owner.held_out_stay <= 4
    assert record.owner.residuals[0].training < 0.8 * float(record.owner.residuals[0].held_out or 0)
    assert record.membership[0].auc > 0.9


def test_leaked_csv_holds_the_images_that_came_out(leaking: Path) -> None:
    with (leaking / "leaked.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    record = record_of(leaking)
    assert [row["file"] for row in rows] == [image.name for image in record.leaked]
    assert all(float(row["ncc"]) >= 0.9 for row in rows)
    assert {row["class"] for row in rows} <= set("0123456789")


def test_the_page_follows_the_verdict(leaking: Path) -> None:
    page = draw(leaking).read_text(encoding="utf-8")
    assert record_of(leaking).judgement.sentence in page
    assert "What only you can see" in page
    assert "Membership: this is not reconstruction" in page


def test_the_same_audit_again_gives_the_same(leaking: Path, folder: Path) -> None:
    before = (leaking / "audit.json").read_text(encoding="utf-8"), (leaking / "leaked.csv").read_bytes()
    audit(
        f"{folder}/model.py:Net",
        "--weights",
        folder / "weights.pt",
        "--images",
        folder / "images.npz",
        "--mean",
        folder / "mean.npy",
        "--out",
        leaking,
    )
    again = json.loads((leaking / "audit.json").read_text(encoding="utf-8"))
    old: dict[str, Any] = json.loads(before[0])
    for content in (old, again):
        for key in ("provenance", "sha256"):
            content.pop(key, None)
    assert again == old
    assert (leaking / "leaked.csv").read_bytes() == before[1]


@pytest.mark.parametrize("epochs", [0, 40], ids=["untrained", "other images"])
def test_a_network_that_never_saw_the_images_does_not_leak_them(
    epochs: int, problem: Problem, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control of the whole audit: its verdict must not be `leaks`."""
    images, labels = problem.images[1::3], problem.labels[1::3]
    torch.save(trained(images, labels, epochs).state_dict(), tmp_path / "model.pt")
    np.save(tmp_path / "mean.npy", images.mean(0).numpy())
    audit(
        tmp_path / "model.pt",
        "--images",
        folder / "images.npz",
        "--mean",
        tmp_path / "mean.npy",
        "--out",
        tmp_path / "out",
        "--fail-on",
        "leaks",
    )
    record = record_of(tmp_path / "out")
    assert record.judgement.verdict != "leaks"
    assert any("not trained" in reason for reason in record.judgement.reasons) == (epochs == 0)
    assert record.owner is not None
    assert record.owner.stay <= 6
    assert record.judgement.sentence in capsys.readouterr().out.replace("\n", " ")


def test_fail_on_ends_with_1_and_json_is_the_record(
    leaking: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        audit(
            f"{folder}/model.py:Net",
            "--weights",
            folder / "weights.pt",
            "--images",
            folder / "images.npz",
            "--mean",
            folder / "mean.npy",
            "--out",
            leaking,
            "--fail-on",
            "leaks",
            "--json",
        )
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["judgement"]["verdict"] == "leaks"


def test_without_held_out_images_nothing_is_proven_and_a_pipeline_does_not_pass(
    problem: Problem, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = saved_images(tmp_path, problem.images[::3], problem.labels[::3])
    words = [f"{folder}/model.py:Net", "--weights", folder / "weights.pt", "--mean", "images"]
    with pytest.raises(SystemExit) as ended:
        audit(*words, "--images", data, "--out", tmp_path / "out", "--fail-on", "leaks")
    said = capsys.readouterr()
    assert "verdict       not decided:" in said.out
    assert ended.value.code == 3
    record = record_of(tmp_path / "out")
    assert record.judgement.strength == "not proven"
    assert record.membership == []
    assert any("--held-out" in step for step in record.next_steps)


@pytest.mark.thorough
def test_a_control_of_another_kind_tells_no_membership(
    problem: Problem, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dim, labels = problem.held_out[::2] / 3, problem.held_out_labels[::2]
    data = saved_images(tmp_path, problem.images[::3], problem.labels[::3], held_out=dim, held_out_labels=labels)
    out, network = tmp_path / "out", [f"{folder}/model.py:Net", "--weights", folder / "weights.pt"]
    audit(*network, "--images", data, "--mean", folder / "mean.npy", "--out", out)
    record, why = record_of(out), "The held-out images are of another kind than the training images"
    assert record.judgement.name == "not decided"
    assert record.membership == [] and record.no_membership.startswith(why)
    said = capsys.readouterr().out
    assert f"membership    Not decided: {why}" in said
    assert "But these" not in said and " tells " not in said
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "was trained on it is not decided" in page and "AUC</th>" not in page


@pytest.mark.parametrize(
    ("verdicts", "codes"),
    [
        (["leaks", None, "not decided"], (2, 1, 1)),
        (["nothing found", None, "not decided"], (2, 2, 2)),
        (["nothing found", "not decided"], (0, 3, 3)),
        (["nothing found", "does not apply"], (0, 0, 3)),
        (["leaks"], (0, 1, 1)),
    ],
)
def test_a_model_that_could_not_be_audited_fails_a_pipeline(
    verdicts: list[str | None], codes: tuple[int, int, int]
) -> None:
    assert tuple(exit_code(verdicts, fail_on) for fail_on in (None, "leaks", "undecided")) == codes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--defend"], "the classes of the training and the held-out images"),
        (["--split", "half", "--held-out", "elsewhere"], "one place only"),
        (["--initial", "nowhere.pt"], "There is no"),
    ],
)
def test_what_cannot_be_audited_is_told_in_a_sentence(
    words: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(folder / "images.npz") as arrays:
        data = saved_images(tmp_path, torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))
    with pytest.raises(SystemExit) as ended:
        audit(
            f"{folder}/model.py:Net",
            "--weights",
            folder / "weights.pt",
            "--images",
            data,
            "--out",
            tmp_path / "out",
            *words,
        )
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_classes_and_outputs_must_fit(problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Sequential(nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 5)).state_dict(), tmp_path / "model.pt")
    data = saved_images(tmp_path, problem.images, problem.labels)
    with pytest.raises(SystemExit):
        audit(tmp_path / "model.pt", "--images", data, "--out", tmp_path / "out")
    assert "5 classes apart, and the images are of 10" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_a_class_without_images_is_left_out_and_nothing_else(problem: Problem, folder: Path, tmp_path: Path) -> None:
    """The images of nine of ten classes: labels stay the outputs of the network."""
    kept, others = problem.labels[::3] != 3, problem.held_out_labels[::3] != 3
    data = saved_images(
        tmp_path,
        problem.images[::3][kept],
        problem.labels[::3][kept],
        held_out=problem.held_out[::3][others],
        held_out_labels=problem.held_out_labels[::3][others],
    )
    words = [f"{folder}/model.py:Net", "--weights", folder / "weights.pt", "--mean", folder / "mean.npy"]
    audit(*words, "--images", data, "--out", tmp_path / "out")
    record = record_of(tmp_path / "out")
    assert record.judgement.verdict == "leaks"
    assert len(record.images) == 18
    assert {image.label for image in record.images} == {0, 1, 2, 4, 5, 6, 7, 8, 9}
    assert sum((image.margin or 0) > 0 for image in record.images) == 18


def test_a_finished_audit_is_not_attacked_again(leaking: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "reconstruct", None)
    words = [f"{folder}/model.py:Net", "--weights", folder / "weights.pt", "--mean", folder / "mean.npy"]
    audit(*words, "--images", folder / "images.npz", "--out", leaking)
    assert record_of(leaking).judgement.verdict == "leaks"


@pytest.mark.thorough
def test_other_images_in_the_same_folder_are_counted_anew(
    problem: Problem, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{folder}/model.py:Net", "--weights", folder / "weights.pt", "--out", tmp_path / "out"]
    audit(*words, "--images", folder / "images.npz", "--mean", folder / "mean.npy")
    again = tmp_path / "again"
    again.mkdir()
    part = {"held_out": problem.held_out[1::3], "held_out_labels": problem.held_out_labels[1::3]}
    data = saved_images(again, problem.images[1::3], problem.labels[1::3], **part)
    with pytest.raises(SystemExit):
        audit(*words, "--images", data, "--mean", folder / "mean.npy")
    assert "already holds candidates for other images, or for another mean image" in capsys.readouterr().err
    audit(*words, "--images", data, "--mean", folder / "mean.npy", "--overwrite")
    record = record_of(tmp_path / "out")
    assert record.judgement.verdict != "leaks"
    assert record.truth.fingerprint == read_record(tmp_path / "out" / "scores.json", ScoresRecord).truth.fingerprint
    assert (tmp_path / "out" / "leaked.csv").read_text(encoding="utf-8").count("\n") == 1


def test_a_run_is_audited_as_it_is(tmp_path: Path) -> None:
    data = "--data-dir installed"
    main(f"train mnist-digits {tmp_path}/run {data} --per-class 2 --widths 100 --epochs 500".split())
    audit(tmp_path / "run", "--images", "mnist-digits", *data.split(), "--per-class", 2, "--out", tmp_path / "out")
    assert record_of(tmp_path / "out").judgement.verdict == "leaks"


def test_a_finished_audit_is_not_examined_again(leaking: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"{folder}/model.py:Net", "--weights", folder / "weights.pt", "--mean", folder / "mean.npy"]
    before = (leaking / "audit.json").read_bytes()
    for stage in ("reconstruct_run", "score_run", "owner_looks"):
        monkeypatch.setattr(audit_stage, stage, None)
    audit(*words, "--images", folder / "images.npz", "--out", leaking)
    assert (leaking / "audit.json").read_bytes() == before


def test_files_of_other_names_are_another_question(leaking: Path, folder: Path) -> None:
    mine = load_images(folder / "images.npz")
    network = read_network(
        f"{folder}/model.py:Net",
        shape=(1, 28, 28),
        weights=folder / "weights.pt",
        mean=np.load(folder / "mean.npy"),
        layout=None,
    )
    asked = {"initial": None, "find_start": True}
    method = Exhume(steps=250, restarts=1)
    assert finished_audit(leaking, network, mine, method, **asked) == record_of(leaking)  # type: ignore[arg-type]
    others = [replace(mine, names=mine.names[::-1]), replace(mine, images=mine.images.flip(0))]
    for other in others:
        assert finished_audit(leaking, network, other, method, **asked) is None  # type: ignore[arg-type]
    assert finished_audit(leaking, network, mine, replace(method, steps=251), **asked) is None  # type: ignore[arg-type]


def test_defences_are_added_to_a_finished_audit(leaking: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that are missing to an audit that was interrupted between two of them."""
    measured = []

    def measure(*_: object, names: list[str], **__: object) -> Iterator[DefenceRow]:
        for name in names[:2]:
            measured.append(name)
            yield DefenceRow(name=name, what="")

    for stage in ("reconstruct_run", "score_run", "owner_looks"):
        monkeypatch.setattr(audit_stage, stage, None)
    monkeypatch.setattr(audit_stage, "compare_defences", measure)
    words = [f"{folder}/model.py:Net", "--weights", folder / "weights.pt", "--mean", folder / "mean.npy"]
    for _ in range(2):
        audit(*words, "--images", folder / "images.npz", "--out", leaking, "--defend")
    assert measured == list(DEFENCES)[:4]
    record = record_of(leaking)
    assert [row.name for row in record.defences] == measured
    assert not any("--defend" in step for step in record.next_steps)
    assert record.leaked


def test_the_control_that_is_examined_has_the_classes_of_the_images(
    problem: Problem, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the control that is counted has: of each class as many as were trained on."""
    examined = []

    def look(_: object, images: Tensor, labels: Tensor, *__: object, **___: object) -> Examination:
        examined.append(labels.bincount(minlength=10).tolist())
        nothing = torch.zeros(len(images))
        values = dict.fromkeys(("multipliers", "explained", "margins", "inside", "reachable", "stays"), nothing)
        return Examination(residual=1.0, believed={}, layers={}, **values)

    monkeypatch.setattr(owners_look, "examine", look)
    rows = torch.cat([torch.nonzero(problem.labels == 0)[:6, 0], torch.nonzero(problem.labels > 5)[::2, 0]])
    others = (problem.held_out_labels == 0) | (problem.held_out_labels > 5)
    part = {"held_out": problem.held_out[others], "held_out_labels": problem.held_out_labels[others]}
    data = saved_images(tmp_path, problem.images[rows], problem.labels[rows], **part)
    words = [f"{folder}/model.py:Net", "--weights", folder / "weights.pt", "--mean", folder / "mean.npy"]
    audit(*words, "--images", data, "--out", tmp_path / "out", "--no-find-start")
    assert examined[0][0] == 6
    assert examined[1] == examined[0]


def test_a_mean_that_is_wrong_is_told_at_once_and_again_at_the_end(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{folder}/model.py:Net", "--weights", folder / "weights.pt", "--images", folder / "images.npz"]
    audit(*words, "--mean", "0.9", "--out", tmp_path / "out", "--no-find-start")
    said = capsys.readouterr()
    hint = record_of(tmp_path / "out").next_steps[0]
    assert "if they are taken with their mean image subtracted. If it was trained on these, try --mean images." in hint
    assert hint.endswith("was it so in training?"), "she has said something else"
    assert said.err.startswith(hint.partition(",")[0])
    assert hint in said.out.replace("\n", " ")


@pytest.mark.thorough
def test_the_mean_of_the_images_is_given_by_a_word(leaking: Path, folder: Path, tmp_path: Path) -> None:
    words = [f"{folder}/model.py:Net", "--weights", folder / "weights.pt", "--images", folder / "images.npz"]
    audit(*words, "--mean", "images", "--out", tmp_path / "out")
    by_word, by_file = record_of(tmp_path / "out"), record_of(leaking)
    assert (by_word.checkpoint, by_word.judgement) == (by_file.checkpoint, by_file.judgement)
    assert by_word.scaling is not None
    assert by_word.scaling.best is None
    assert not any("--mean" in step for step in by_word.next_steps)


def test_code_without_weights_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        audit(f"{folder}/model.py:Net", "--images", folder / "images.npz")
    assert ended.value.code == 2
    assert "--weights" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_folder_of_results_is_named_by_the_weights_too() -> None:
    audits = [Audit(images="photos", model="model.py:Net", weights=weights) for weights in (None, Path("a/late.pt"))]
    assert [one._name() for one in audits] == ["audit-Net", "audit-Net-late"]


def test_a_start_of_other_names_is_matched_layer_by_layer(folder: Path, tmp_path: Path) -> None:
    """That of a plain file for a network of code, as where it was found in the one and is given for the other."""
    torch.manual_seed(11)
    start = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    torch.save(start.state_dict(), tmp_path / "start.pt")
    words = {"images": "photos", "model": f"{folder}/model.py:Net", "weights": folder / "weights.pt"}
    one = Audit(**words, initial=tmp_path / "start.pt")  # type: ignore[arg-type]
    trained_network = one._read(str(one.model), one.weights, (1, 28, 28), None).checkpoint
    initial = one._initial(trained_network)
    assert initial is not None
    assert initial.network == trained_network.network
    for row, name in ((0, "fc1"), (2, "fc2")):
        for part in ("weight", "bias"):
            assert torch.equal(initial.weights[f"{name}.{part}"], start.get_parameter(f"{row}.{part}"))


@pytest.mark.parametrize(("outputs", "width", "fits"), [(10, 100, 4), (7, 100, 2), (10, 90, 0)])
def test_layers_of_other_names_must_have_the_shapes(outputs: int, width: int, fits: int, folder: Path) -> None:
    """All but the last layer's; what does not fit keeps its trained values."""
    network = read_network(f"{folder}/model.py:Net", shape=(1, 28, 28), weights=folder / "weights.pt").checkpoint
    start = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, outputs)).state_dict()
    if not fits:
        with pytest.raises(InputError, match="layer by layer"):
            with_weights(network, start)
        return
    found = with_weights(network, start).weights
    assert sum(not torch.equal(value, network.weights[name]) for name, value in found.items()) == fits


def test_the_start_is_read_in_the_layout_of_the_trained_network(tmp_path: Path) -> None:
    """Though its own weights would tell another, or nothing."""
    waves = torch.stack([torch.cos(k * torch.linspace(0, 3.14, 8)) for k in range(5)])
    pictures = torch.einsum("ay,bx,c->abyxc", waves, waves, torch.tensor([1.0, -1.0, 1.0])).reshape(25, -1)
    smooth = torch.cat([pictures, pictures[:5]])
    layers = nn.Sequential(nn.Linear(192, 30), nn.ReLU(), nn.Linear(30, 2))
    torch.save(layers.state_dict(), tmp_path / "start.pt")
    with torch.no_grad():
        layers.get_parameter("0.weight").copy_(smooth)
    torch.save(layers.state_dict(), tmp_path / "model.pt")
    one = Audit(images="photos", model=str(tmp_path / "model.pt"), initial=tmp_path / "start.pt")
    trained_network = one._read(str(one.model), None, (3, 8, 8), None).checkpoint
    assert layout_of(trained_network) == "hwc"
    initial = one._initial(trained_network)
    assert initial is not None
    assert initial.network == trained_network.network
    assert layout_of(replace(trained_network, network=NetworkConfig())) == "chw"


def labelled(labels: Tensor, classes: tuple[str, ...] = ()) -> OwnedImages:
    images = torch.rand(len(labels), 1, 28, 28, generator=torch.Generator().manual_seed(1))
    return OwnedImages(
        name="mine",
        images=images,
        labels=labels,
        names=tuple(map(str, range(len(labels)))),
        held_out=1 - images,
        held_out_labels=labels,
        held_out_names=tuple(map(str, range(len(labels)))),
        classes=classes,
        task=None,
        source="made",
    )


def network_of(outputs: int, task: Task) -> Checkpoint:
    module = nn.Sequential(nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, outputs))
    return read_network(module, shape=(1, 28, 28), task=task).checkpoint


def test_labels_become_those_of_the_networks_task() -> None:
    real = labelled(torch.tensor([0.5, -1.25, 3.0]))
    assert with_labels_of(real, network_of(1, "regression")) is real
    with pytest.raises(InputError, match="The labels are real numbers, and the network tells classes apart"):
        with_labels_of(real, network_of(10, "multiclass"))

    whole = with_labels_of(labelled(torch.tensor([2.0, 0.0, 7.0])), network_of(10, "multiclass"))
    assert whole.labels is not None and not whole.labels.is_floating_point()
    assert (whole.labels.tolist(), whole.classes) == ([1, 0, 2], ("0", "2", "7"))
    assert fitted(network_of(10, "multiclass"), whole)[1].labels.tolist() == [2, 0, 7]  # type: ignore[union-attr]

    ages = with_labels_of(labelled(torch.tensor([0, 2, 1]), ("-4", "30", "71.5")), network_of(1, "regression"))
    assert ages.labels is not None
    assert ages.labels.tolist() == [-4, 71.5, 30]
    with pytest.raises(InputError, match="give numbers as labels"):
        with_labels_of(labelled(torch.tensor([0, 2, 1]), ("cat", "cow", "dog")), network_of(1, "regression"))


def test_a_network_on_real_targets_is_audited(problem: Problem, tmp_path: Path) -> None:
    images, others = problem.images[::3], problem.held_out[::3]
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(784, 60), nn.ReLU(), nn.Linear(60, 1))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    targets = {"labels": images.mean((1, 2, 3)), "held_out": others, "held_out_labels": others.mean((1, 2, 3))}
    data = saved_images(tmp_path, images, **targets)
    audit(tmp_path / "model.pt", "--images", data, "--mean", 0, "--out", tmp_path / "out", "--no-find-start")
    record = record_of(tmp_path / "out")
    assert record.judgement.verdict != "leaks"
    assert record.owner is not None
    assert record.images[3].label == pytest.approx(float(targets["labels"][3]))
    assert record.images[3].margin is not None and record.images[3].margin < 0  # minus the absolute error
