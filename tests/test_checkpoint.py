"""A checkpoint comes back as it was saved or not at all, and a foreign one runs no code."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from exhume.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exhume.errors import InputError
from exhume.foreign import load_state_dict
from exhume.networks import ACTIVATIONS, NETWORKS, NetworkConfig, Task, build

SHAPE = (2, 4, 3)


def make_checkpoint(
    kind: str = "mlp", activation: str = "relu", dtype: torch.dtype = torch.float32, task: Task = "multiclass"
) -> Checkpoint:
    generator = torch.Generator().manual_seed(2)
    channels = (3,) if kind == "cnn" else ()
    network = NetworkConfig(
        kind=kind, channels=channels, widths=(6, 5), activation=activation, bias="all", init_scale=None
    )
    centre = torch.rand(SHAPE, generator=generator, dtype=dtype)
    module = build(network, centre, 3 if task == "multiclass" else 1, generator)
    return Checkpoint(
        network=network,
        task=task,
        classes=("a", "b", "c") if task == "multiclass" else ("a", "b"),
        centre=centre,
        weights={name: tensor.detach() for name, tensor in module.layers.named_parameters()},
    )


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=dtype)


# ---- Our own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    for activation in ACTIVATIONS:
        saved = make_checkpoint(kind, activation, dtype)
        save_checkpoint(saved, tmp_path)
        loaded = load_checkpoint(tmp_path)
        assert (loaded.network, loaded.task, loaded.classes) == (saved.network, saved.task, saved.classes)
        assert loaded.fingerprint == saved.fingerprint
        assert (loaded.shape, loaded.outputs) == (SHAPE, 3)
        assert loaded.centre.dtype == dtype and torch.equal(loaded.centre, saved.centre)
        assert torch.equal(loaded.build()(images(dtype)), saved.build()(images(dtype)))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.json", "checkpoint.safetensors"]


def test_the_built_module_is_for_evaluation_and_its_own() -> None:
    checkpoint = make_checkpoint()
    module = checkpoint.build()
    assert not module.training
    before = checkpoint.fingerprint
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert checkpoint.fingerprint == before


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("regression", 1), ("multiclass", 3)])
def test_the_number_of_scores_is_the_tasks(task: Task, outputs: int) -> None:
    checkpoint = make_checkpoint(task=task)
    assert checkpoint.outputs == outputs == checkpoint.build()(images()).shape[1]


def other_weight(checkpoint: Checkpoint) -> Checkpoint:
    weights = {name: weight.clone() for name, weight in checkpoint.weights.items()}
    weights["3.bias"][2] += 1e-6
    return replace(checkpoint, weights=weights)


@pytest.mark.parametrize(
    "change",
    [
        other_weight,
        lambda c: replace(c, centre=c.centre + 1e-6),
        lambda c: replace(c, centre=c.centre.reshape(1, 8, 3)),
        lambda c: replace(c, network=replace(c.network, activation="tanh")),
        lambda c: replace(c, classes=("b", "a", "c")),
        lambda c: replace(c, task="regression"),
        lambda c: replace(c, weights={name: weight.double() for name, weight in c.weights.items()}),
    ],
    ids=["weight", "centre", "shape", "activation", "classes", "task", "precision"],
)
def test_the_fingerprint_tells_whatever_a_reconstruction_depends_on(change: Callable[[Checkpoint], Checkpoint]) -> None:
    assert change(make_checkpoint()).fingerprint != make_checkpoint().fingerprint


def test_the_fingerprint_does_not_depend_on_order_or_memory() -> None:
    checkpoint = make_checkpoint()
    turned = {name: weight.clone() for name, weight in reversed(checkpoint.weights.items())}
    turned["3.weight"] = turned["3.weight"].T.contiguous().T
    assert replace(checkpoint, weights=turned).fingerprint == checkpoint.fingerprint


@pytest.mark.parametrize("kind", NETWORKS)
def test_half_a_checkpoint_is_one_of_its_own(tmp_path: Path, kind: str) -> None:
    whole = make_checkpoint(kind, dtype=torch.float64)
    half = whole.half()
    save_checkpoint(half, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.fingerprint == half.fingerprint != whole.fingerprint
    assert {weight.dtype for weight in [loaded.centre, *loaded.weights.values()]} == {torch.float16}
    inputs = images(torch.float64)
    torch.testing.assert_close(loaded.build()(inputs.half()), whole.build()(inputs).half(), rtol=0.01, atol=0.01)


def test_a_weight_beyond_half_precision_is_refused() -> None:
    checkpoint = make_checkpoint()
    weights = {name: weight * 1e6 for name, weight in checkpoint.weights.items()}
    with pytest.raises(InputError, match="too large for float16"):
        replace(checkpoint, weights=weights).half()


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(folder).build()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors: tensors["layers.3.weight"].mul_(1.001),
        lambda tensors: tensors["centre"].add_(0.001),
        lambda tensors: tensors.pop("layers.3.bias"),
        lambda tensors: tensors.update({"layers.9.bias": torch.zeros(3)}),
        lambda tensors: tensors.update({"centre": torch.zeros(24)}),
        lambda tensors: tensors.pop("centre"),
        lambda tensors: tensors.clear(),
        lambda tensors: tensors.update({"layers.1.weight": tensors["layers.1.weight"].T.contiguous()}),
    ],
    ids=["weight", "centre", "lost", "added", "flat centre", "no centre", "nothing", "turned"],
)
def test_changed_tensors_are_refused(tmp_path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    save_checkpoint(make_checkpoint(), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    edit(tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    assert str(tmp_path) in refusal(tmp_path) or "do not fit the network" in refusal(tmp_path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["network"].update(widths=[6, 4]),
        lambda content: content["network"].update(activation="tanh"),
        lambda content: content["network"].update(kind="cnn"),
        lambda content: content["network"].update(width=3),
        lambda content: content.update(classes=["a", "b"]),
        lambda content: content.update(task="regression"),
        lambda content: content.update(task="ranking"),
        lambda content: content.update(fingerprint="0" * 16),
        lambda content: content.update(format=99),
        lambda content: content.pop("task"),
    ],
    ids=["widths", "activation", "kind", "key", "classes", "task", "no task", "fingerprint", "format", "missing"],
)
def test_a_changed_description_is_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    save_checkpoint(make_checkpoint(), tmp_path)
    path = tmp_path / "checkpoint.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "half", "another"])
def test_a_lost_or_half_or_foreign_file_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(make_checkpoint(), tmp_path)
    save_checkpoint(make_checkpoint("cnn"), tmp_path / "other")
    path = tmp_path / name
    if damage == "gone":
        path.unlink()
    elif damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        (tmp_path / "other" / name).replace(path)
    assert str(tmp_path) in refusal(tmp_path)


# ---- Someone else's: a state dict


def dense(sizes: tuple[int, ...], biases: tuple[bool, ...] | None = None) -> nn.Sequential:
    torch_layers: list[nn.Module] = [nn.Flatten()]
    for index, (before, after) in enumerate(pairwise(sizes)):
        torch_layers += [nn.Linear(before, after, bias=biases is None or biases[index]), nn.ReLU()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for layer in torch_layers[1::2]:
            layer.reset_parameters()
    return nn.Sequential(*torch_layers[:-1])


def plain(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


def reference_layout(module: nn.Module) -> dict[str, Any]:
    """As the 2023 reference code saves: the layers in a list, the state dict beside other things."""
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    named = {f"layers.{i}.{name}": tensor for i, layer in enumerate(linear) for name, tensor in plain(layer).items()}
    return {"state_dict": named, "epoch": 1_000_000}


def tutorial_layout(module: nn.Module) -> dict[str, Any]:
    """As PyTorch's tutorial saves, with the optimiser's state beside the weights."""
    optimiser = torch.optim.Adam(module.parameters())
    return {"epoch": 3, "model_state_dict": plain(module), "optimizer_state_dict": optimiser.state_dict()}


@pytest.mark.parametrize("layout", [plain, reference_layout, tutorial_layout])
def test_a_state_dict_gives_the_scores_of_the_network_it_is_of(
    tmp_path: Path, layout: Callable[[nn.Module], Any]
) -> None:
    all_or_first_or_none = [(True, True, True), (True, False, False), (False, False, False)]
    for biases, zipped in product(all_or_first_or_none, (True, False)):
        module, path = dense((24, 7, 5, 3), biases), tmp_path / "model.pt"
        torch.save(layout(module), path, _use_new_zipfile_serialization=zipped)
        checkpoint = load_state_dict(path, shape=SHAPE, task="multiclass")
        assert (checkpoint.network.widths, checkpoint.outputs, checkpoint.shape) == ((7, 5), 3, SHAPE)
        assert checkpoint.classes == ("0", "1", "2")
        torch.testing.assert_close(checkpoint.build()(images()), module(images()), rtol=0, atol=0)


def test_one_layer_is_a_network_too(tmp_path: Path) -> None:
    module, path = nn.Linear(24, 1), tmp_path / "model.pt"
    torch.save(module.state_dict(), path)
    checkpoint = load_state_dict(path, shape=SHAPE, task="binary")
    torch.testing.assert_close(checkpoint.build()(images()), module(images().flatten(1)))


def test_the_mean_and_the_activation_are_taken_as_given(tmp_path: Path) -> None:
    module, path, centre = dense((24, 7, 3)), tmp_path / "model.pt", images()[0]
    module[2] = nn.Tanh()
    torch.save(module.state_dict(), path)
    checkpoint = load_state_dict(path, shape=SHAPE, task="multiclass", activation="tanh", centre=centre)
    torch.testing.assert_close(checkpoint.build()(images()), module(images() - centre))


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_precision_is_kept_and_halves_are_widened(tmp_path: Path, stored: torch.dtype, kept: torch.dtype) -> None:
    module, path = dense((24, 7, 3)).to(stored), tmp_path / "model.pt"
    torch.save(module.state_dict(), path)
    checkpoint = load_state_dict(path, shape=SHAPE, task="multiclass")
    assert {weight.dtype for weight in checkpoint.weights.values()} == {kept}
    torch.testing.assert_close(checkpoint.build()(images(kept)), module.to(kept)(images(kept)), rtol=0, atol=0)


def test_a_foreign_checkpoint_can_be_saved_as_ours(tmp_path: Path) -> None:
    torch.save(dense((24, 7, 3)).state_dict(), tmp_path / "model.pt")
    checkpoint = load_state_dict(tmp_path / "model.pt", shape=SHAPE, task="multiclass")
    save_checkpoint(checkpoint, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").fingerprint == checkpoint.fingerprint


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def zipped(content: object, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("form", [pickled, zipped, torch.save])
def test_no_code_in_a_foreign_file_is_run(tmp_path: Path, form: Callable[[object, Path], None]) -> None:
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    form({"layers.0.weight": Malicious(marker)}, path)
    with pytest.raises(InputError, match="is no plain state dict"):
        load_state_dict(path, shape=SHAPE, task="multiclass")
    assert not marker.exists()
    with suppress(RuntimeError):  # "corrupt file?", once its code has run
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(dense((24, 7, 3)), tmp_path / "model.pt")
    with pytest.raises(InputError, match="is no plain state dict"):
        load_state_dict(tmp_path / "model.pt", shape=SHAPE, task="multiclass")


CONVOLUTIONS = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            dense((25, 7, 3)).state_dict(),
            r"no chain of dense layers on 24 inputs .*: your images have 2 x 4 x 3 = 24 values each, and it takes 25.",
        ),
        (dense((24, 7, 1)).state_dict(), "1 outputs, which does not fit the task multiclass"),
        (CONVOLUTIONS.state_dict(), r"no chain of dense layers on 24 inputs \(unexpected 0\."),
        ({"0.weight": torch.ones(7, 24), "1.weight": torch.ones(3, 8)}, "no chain of dense layers"),
        ({"0.weight": torch.ones(3, 24), "0.bias": torch.zeros(4)}, "do not fit the network"),
        ({"0.weight": torch.ones(3, 24), "0.running_mean": torch.zeros(3)}, "0.running_mean, whose place among"),
        ({"0.weight": torch.zeros(3, 24)}, "weights that are all zero"),
        ({"0.weight": torch.full((3, 24), float("nan"))}, "weights that are not finite"),
        ({"0.bias": torch.zeros(3)}, "unexpected 0.bias"),
        ({3: torch.ones(3, 24)}, "unexpected 3"),
        ({}, "no weights"),
        ({"state_dict": {}}, "no weights"),
        ({"epoch": 3}, "must map names to tensors"),
        ({"state_dict": {"0.weight": [1.0]}}, "must map names to tensors"),
        ([torch.zeros(3, 24)], "must map names to tensors"),
        (torch.zeros(3, 24), "must map names to tensors"),
    ],
)
def test_what_is_no_dense_network_on_these_images_is_refused(tmp_path: Path, content: object, sentence: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=sentence) as caught:
        load_state_dict(path, shape=SHAPE, task="multiclass")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_several_outputs_are_for_several_classes_only(tmp_path: Path, task: Task) -> None:
    torch.save(dense((24, 3)).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=f"3 outputs, which does not fit the task {task}"):
        load_state_dict(tmp_path / "model.pt", shape=SHAPE, task=task)


@pytest.mark.parametrize("shape", [(-2, -4, 3), (0, 4, 3), (2, 4, 4)])
def test_a_shape_that_is_not_the_images_is_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    torch.save(dense((24, 3)).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError):
        load_state_dict(tmp_path / "model.pt", shape=shape, task="multiclass")


def test_a_centre_of_another_shape_is_refused(tmp_path: Path) -> None:
    torch.save(dense((24, 3)).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="The shape must be"):
        load_state_dict(tmp_path / "model.pt", shape=SHAPE, task="multiclass", centre=torch.zeros(3, 2, 4))


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04", b"\x80\x02.", b"\x80\x02}q\x00h\x07."])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt is no plain state dict"):
        load_state_dict(path, shape=SHAPE, task="multiclass")


@pytest.mark.parametrize("content", [b"hello world, no pickle", b"e" * 100, b"\x80\x02}q\x00h\x07."])
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    """The unpickler stumbles over a bare number, an empty list: these say nothing."""
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_state_dict(path, shape=SHAPE, task="multiclass")
    assert str(refused.value).endswith("is no plain state dict: it is damaged, or was not saved by PyTorch.")


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(dense((24, 3)).state_dict(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="is no plain state dict"):
            load_state_dict(path, shape=SHAPE, task="multiclass")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no"):
        load_state_dict(tmp_path / "none.pt", shape=SHAPE, task="multiclass")
    with pytest.raises(InputError, match="must hold one file of weights, and holds 0"):
        load_state_dict(tmp_path, shape=SHAPE, task="multiclass")
