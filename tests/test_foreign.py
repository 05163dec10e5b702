"""Networks that were trained elsewhere: files of weights, programs and modules become checkpoints, or are refused."""

import argparse
import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from exhume import Checkpoint, InputError, load_checkpoint, read_network, save_checkpoint
from exhume.foreign.files import REFUSED
from exhume.foreign.normalising import SURE, as_image, tell_layout
from exhume.foreign.operations import OPERATIONS
from exhume.layers import KINDS, Layer, LayerGraph, build_layers
from exhume.networks import ACTIVATIONS, NetworkConfig, Shape

SHAPE = (2, 4, 3)
PIXELS = 24


def images(shape: Shape = SHAPE) -> Tensor:
    return torch.rand(5, *shape, generator=torch.Generator().manual_seed(3))


def dense(*, bias: bool = True, seed: int = 0) -> nn.Sequential:
    """The network of which all files here are: 24-7-3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = OrderedDict(fc1=nn.Linear(PIXELS, 7), act=nn.ReLU(), fc2=nn.Linear(7, 3, bias=bias))
    return nn.Sequential(layers).eval()


NETWORK = dense(bias=False)
PLAIN = {name: tensor.detach() for name, tensor in NETWORK.state_dict().items()}


def scores(of: nn.Module = NETWORK) -> Tensor:
    with torch.no_grad():
        result: Tensor = of(images().flatten(1))
    return result


def scores_of(checkpoint: Checkpoint, shape: Shape = SHAPE) -> Tensor:
    with torch.no_grad():
        result: Tensor = checkpoint.build()(images(shape))
    return result


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in PLAIN.items()}


def pruned() -> dict[str, Tensor]:
    network = dense(bias=False)
    prune.l1_unstructured(network.fc1, "weight", 0.001)  # none of 168 weights
    return dict(network.state_dict())


def weight_normed() -> dict[str, Tensor]:
    network = dense(bias=False)
    weight_norm(network.fc1)
    return dict(network.state_dict())


# ---- Files of weights

TAKEN: dict[str, Callable[[], Any]] = {
    "plain": lambda: PLAIN,
    "state_dict": lambda: {"state_dict": PLAIN, "epoch": 3},
    "model_state_dict": lambda: {"model_state_dict": PLAIN, "loss": 0.1},
    "model": lambda: {"model": PLAIN, "optimizer": {"state": {}}},
    "net": lambda: {"net": PLAIN},
    "ema": lambda: {"ema": PLAIN, "step": 3},
    "ema beside": lambda: {"state_dict_ema": prefixed("other."), "state_dict": PLAIN},
    "unknown key": lambda: {"generator": PLAIN, "step": 3},
    "wrapped twice": lambda: {"model": {"state_dict": PLAIN}},
    "data parallel": lambda: prefixed("module."),
    "compiled": lambda: prefixed("module._orig_mod."),
    "opacus": lambda: prefixed("_module."),
    "lightning": lambda: {"state_dict": prefixed("model."), "hyper_parameters": argparse.Namespace(lr=0.5)},
    "metrics": lambda: {**prefixed("model."), "train_acc.correct": torch.tensor(3), "criterion.weight": torch.ones(3)},
    "swa": lambda: dict(torch.optim.swa_utils.AveragedModel(NETWORK).state_dict()),
    "thop": lambda: {**PLAIN, "total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    "numpy scalar": lambda: {"model": PLAIN, "best_acc": np.float64(0.9)},
    "parameters": lambda: {name: nn.Parameter(tensor) for name, tensor in PLAIN.items()},
    "another order": lambda: dict(reversed(PLAIN.items())),
    "transposed": lambda: {
        name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in PLAIN.items()
    },
    "pruned": pruned,
    "weight norm": weight_normed,
    "weight norm of old": lambda: {
        "fc1.bias": PLAIN["fc1.bias"],
        "fc1.weight_g": PLAIN["fc1.weight"].norm(dim=1, keepdim=True),
        "fc1.weight_v": 3 * PLAIN["fc1.weight"],
        "fc2.weight": PLAIN["fc2.weight"],
    },
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_state_dict_is_read_as_the_network_it_is_of(tmp_path: Path, name: str) -> None:
    torch.save(TAKEN[name](), tmp_path / "model.pt")
    read = read_network(tmp_path / "model.pt", shape=SHAPE)
    assert (read.checkpoint.task, read.checkpoint.outputs) == ("multiclass", 3)
    torch.testing.assert_close(scores_of(read.checkpoint), scores())
    save_checkpoint(read.checkpoint, tmp_path / "run")
    again = load_checkpoint(tmp_path / "run")
    assert again.fingerprint == read.checkpoint.fingerprint
    assert list(again.parameters) == list(read.checkpoint.parameters)
    assert torch.equal(scores_of(again), scores_of(read.checkpoint))


@pytest.mark.parametrize("name", [name for name in TAKEN if name != "another order"])
def test_plain_layers_are_described_as_a_training_would(tmp_path: Path, name: str) -> None:
    torch.save(TAKEN[name](), tmp_path / "model.pt")
    network = read_network(tmp_path / "model.pt", shape=SHAPE).checkpoint.network
    assert network == NetworkConfig(widths=(7,), init_scale=None)


@pytest.mark.parametrize("kind", ["npz", "keras", "safetensors", "folder"])
def test_other_files_are_read_as_well(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.npz")
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in PLAIN.items()}, path)
    elif kind == "keras":
        arrays = {"dense/kernel:0": PLAIN["fc1.weight"].T, "dense/bias:0": PLAIN["fc1.bias"]}
        np.savez(
            path,
            **{name: tensor.numpy() for name, tensor in arrays.items()},
            **{"dense_1/kernel:0": PLAIN["fc2.weight"].T.numpy()},
        )
    else:
        np.savez(path, **{name: tensor.numpy() for name, tensor in PLAIN.items()})
    read = read_network(tmp_path if kind == "folder" else path, shape=SHAPE)
    torch.testing.assert_close(scores_of(read.checkpoint), scores())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_the_table_is_told_in_a_module(activation: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 7), ACTIVATIONS[activation](), nn.Linear(7, 3))
    read = read_network(network, shape=SHAPE).checkpoint.network
    assert read == NetworkConfig(widths=(7,), activation=activation, init_scale=None, bias="all")


def test_equal_layers_of_a_safetensors_file_keep_their_order(tmp_path: Path) -> None:
    dense = [PIXELS, *[6] * 11, 3]  # of eleven layers 6 - 6 only the names tell the order: layers.10 behind layers.9
    layers = [nn.Linear(before, after) for before, after in pairwise(dense)]
    between = [one for layer in layers for one in (layer, nn.ReLU())][:-1]
    named = {f"layers.{k}.{name}": t.detach() for k, layer in enumerate(layers) for name, t in layer.named_parameters()}
    save_file(named, tmp_path / "model.safetensors")
    read = read_network(tmp_path / "model.safetensors", shape=SHAPE)
    torch.testing.assert_close(scores_of(read.checkpoint), scores(nn.Sequential(*between)))


@pytest.mark.parametrize("biases", [(False, True), (True, True), (False, False)])
def test_biases_may_be_anywhere(tmp_path: Path, biases: tuple[bool, bool]) -> None:
    network = nn.Sequential(nn.Linear(PIXELS, 7, bias=biases[0]), nn.ReLU(), nn.Linear(7, 3, bias=biases[1]))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    read = read_network(tmp_path / "model.pt", shape=SHAPE)
    torch.testing.assert_close(scores_of(read.checkpoint), scores(network))


def test_what_was_assumed_is_said(tmp_path: Path) -> None:
    torch.save({"ema": {**PLAIN, "total_ops": torch.zeros(1)}}, tmp_path / "model.pt")
    notes = " ".join(read_network(tmp_path / "model.pt", shape=SHAPE).notes)
    assert "under the key ema" in notes and "total_ops" in notes and "relu is assumed" in notes


def test_two_outputs_are_two_classes_and_one_is_two_as_well(tmp_path: Path) -> None:
    for outputs, task in ((2, "multiclass"), (1, "binary")):
        torch.save(nn.Linear(PIXELS, outputs).state_dict(), tmp_path / "model.pt")
        checkpoint = read_network(tmp_path / "model.pt", shape=SHAPE, classes=("cat", "dog")).checkpoint
        assert (checkpoint.task, checkpoint.classes) == (task, ("cat", "dog"))


@pytest.mark.parametrize("after", [False, True])
def test_batch_norm_is_read_where_the_numbers_of_the_layers_say(tmp_path: Path, after: bool) -> None:
    torch.manual_seed(0)
    middle = [nn.ReLU(), nn.BatchNorm1d(7)] if after else [nn.BatchNorm1d(7), nn.ReLU()]
    network = nn.Sequential(nn.Linear(PIXELS, 7), *middle, nn.Linear(7, 3))
    for _ in range(5):
        network(torch.rand(50, PIXELS))
    torch.save(network.eval().state_dict(), tmp_path / "model.pt")
    read = read_network(tmp_path / "model.pt", shape=SHAPE)
    torch.testing.assert_close(scores_of(read.checkpoint), scores(network))
    assert not any("before the activation" in note for note in read.notes)


def test_batch_norm_with_a_name_is_read_before_the_activation_and_said(tmp_path: Path) -> None:
    network = nn.Sequential(
        OrderedDict(fc1=nn.Linear(PIXELS, 7), bn1=nn.BatchNorm1d(7), act=nn.ReLU(), fc2=nn.Linear(7, 3))
    )
    network.bn1.running_mean.uniform_()
    torch.save(network.eval().state_dict(), tmp_path / "model.pt")
    read = read_network(tmp_path / "model.pt", shape=SHAPE)
    torch.testing.assert_close(scores_of(read.checkpoint), scores(network))
    assert any("bn1 is read as standing before the activation" in note for note in read.notes)
    assert list(read.checkpoint.parameters) == list(dict(network.named_parameters()))


def test_the_order_of_building_is_kept_and_not_that_of_working(tmp_path: Path) -> None:
    torch.save(dict(reversed(PLAIN.items())), tmp_path / "model.pt")
    checkpoint = read_network(tmp_path / "model.pt", shape=SHAPE).checkpoint
    save_checkpoint(checkpoint, tmp_path / "run")
    assert list(load_checkpoint(tmp_path / "run").parameters) == ["fc2.weight", "fc1.bias", "fc1.weight"]


# ---- Files that are none


def adapter() -> dict[str, Tensor]:
    return {
        "base_model.model.fc1.lora_A.weight": torch.rand(2, PIXELS),
        "base_model.model.fc1.lora_B.weight": torch.rand(7, 2),
    }


def huge() -> dict[str, Tensor]:
    return {"0.weight": torch.ones(1).expand(10**6, 10**6)}


def quantised() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"0.weight": torch.quantize_per_tensor(torch.rand(3, PIXELS), 0.1, 0, torch.qint8)}


def nested() -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"0.weight": torch.nested.nested_tensor([torch.rand(3, PIXELS), torch.rand(2, PIXELS)])}


NONE: dict[str, tuple[Callable[[], Any], str]] = {
    "adapter": (adapter, "is a LoRA adapter"),
    "autoencoder": (
        lambda: nn.Sequential(nn.Linear(PIXELS, 4), nn.ReLU(), nn.Linear(4, PIXELS)).state_dict(),
        "autoencoder",
    ),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(6, 3)).state_dict(),
        "model.py:make_model",
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(PIXELS, 7), nn.LayerNorm(7), nn.Linear(7, 3)).state_dict(),
        "unexpected 1.bias",
    ),
    "two networks": (lambda: {**prefixed("a."), **prefixed("b.")}, "no chain of dense layers"),
    "several orders": (
        lambda: {"c": torch.rand(3, 7), "a": torch.rand(7, 7), "b": torch.rand(7, 7), "d": torch.rand(7, PIXELS)},
        "several chains",
    ),
    "not a number": (lambda: {"0.weight": torch.full((3, PIXELS), torch.nan)}, "not finite"),
    "all zero": (lambda: {"0.weight": torch.zeros(3, PIXELS)}, "all zero"),
    "next to zero": (lambda: {"0.weight": torch.full((3, PIXELS), 1e-38)}, "all zero, or next to it"),
    "complex": (lambda: {"0.weight": torch.ones(3, PIXELS, dtype=torch.complex64)}, "complex"),
    "sparse": (lambda: {"0.weight": torch.eye(PIXELS)[:3].to_sparse()}, "sparse"),
    "meta": (lambda: {"0.weight": torch.empty(3, PIXELS, device="meta")}, "meta"),
    "four terabytes": (huge, "claims 1,000,000,000,000 values and holds 1"),
    "quantised": (quantised, "quantised"),
    "nested": (nested, "nested"),
    "parametrised": (
        lambda: {"parametrizations.weight.original0": torch.rand(7, PIXELS), **PLAIN},
        "unexpected parametrizations",
    ),
    "no tensors": (lambda: {"epoch": 3}, "must map names to tensors"),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_network_is_told_by_what_it_is(tmp_path: Path, name: str) -> None:
    make, sentence = NONE[name]
    content = make()
    if name == "several orders":
        content = {f"{key}.weight": tensor for key, tensor in content.items()}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=sentence) as caught:
        read_network(tmp_path / "model.pt", shape=SHAPE)
    assert "\n" not in str(caught.value) and "model.pt" in str(caught.value)


BYTES = {
    "empty": b"",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 952000\n",
    "html": b"<!DOCTYPE html><html><head><title>Virus scan warning</title></head></html>",
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "gguf": b"GGUF\x03\x00",
    "npy": b"\x93NUMPY\x01\x00",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_file_of_weights_is_told_by_its_first_bytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    if kind == "keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.weights.h5", b"")
    else:
        path.write_bytes(BYTES[kind])
    with pytest.raises(InputError, match=REFUSED[kind][:20].replace("(", r"\(")):
        read_network(path, shape=SHAPE)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**6)})
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as archive:
        archive.writestr("fc1.weight.npy", header.getvalue())
    with pytest.raises(InputError, match="claims 40,000,000,000,000 bytes"):
        read_network(tmp_path / "model.npz", shape=SHAPE)


def test_an_array_of_objects_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    np.savez(tmp_path / "model.npz", **{"fc1.weight": np.array([Malicious(marker)], dtype=object)})
    with pytest.raises(InputError, match="array of objects"):
        read_network(tmp_path / "model.npz", shape=SHAPE)
    assert not marker.exists()


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_whole_module_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"an object of .*Net.*model\.py:make_model"):
        read_network(tmp_path / "model.pt", shape=SHAPE)


# ---- Modules


class Net(nn.Module):
    """As most people write one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(7, 3, bias=False)  # built before the first layer
        self.fc1 = nn.Linear(PIXELS, 7)
        self.fc1.load_state_dict(NETWORK.fc1.state_dict())
        self.fc2.load_state_dict(NETWORK.fc2.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.fc1(x.view(-1, 24)))
        x = functional.dropout(x, 0.5, self.training)
        scores: Tensor = self.fc2(x)
        return scores


class Normalise(nn.Module):
    """Subtracts and divides, a number a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5]))
        self.register_buffer("std", torch.tensor([0.2, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = (x - self.mean[None, :, None, None]) / self.std.view(1, -1, 1, 1)
        return normalised


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding="same")
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.classifier = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3), nn.LogSoftmax(1))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv1(x).relu(), 2, 1, 1)
        scores: Tensor = self.classifier(torch.flatten(self.pool(torch.sigmoid(self.conv2(x)))[:, :, :2, :1], 1))
        return scores


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.downsample = short if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        result: Tensor = self.relu(out)
        return result


class Residual(nn.Module):
    """ResNet's shape, small."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 6, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(functional.relu(self.bn1(self.conv1(x))))
        scores: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores


class Pooled(LeNet):
    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv1(x).relu(), 2, 1, 1)
        x = functional.gelu(self.conv2(x), approximate="tanh").mean((2, 3))
        scores: Tensor = functional.linear(functional.leaky_relu(x, 0.2), self.classifier[0].weight[:, :6])
        return scores


class Products(nn.Module):
    """With parameters of its own, multiplied by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.rand(PIXELS, 7)), nn.Parameter(torch.rand(7))
        self.w2 = nn.Parameter(torch.rand(3, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.w1 + self.b1) @ self.w2.T


class Split(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 3, padding=1), nn.Linear(60, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(torch.cat([self.one(x), self.other(x).relu()], 1).reshape(x.size(0), -1))
        return scores


def measured(module: nn.Module) -> nn.Module:
    """With BatchNorm's statistics of some images, in evaluation mode."""
    for _ in range(3):
        module.train()(torch.rand(20, *SHAPE))
    return module.eval()


MODULES: dict[str, Callable[[], nn.Module]] = {
    "net": Net,
    "sequential": lambda: nn.Sequential(nn.Flatten(), *dense()),
    "without flatten": dense,
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Identity(), nn.Flatten()), nn.Dropout(), nn.Sequential(*dense())),
    "normalised": lambda: nn.Sequential(Normalise(), Net()),
    "normalised behind": lambda: nn.Sequential(nn.Flatten(), Centred(), *dense()),
    "data parallel": lambda: nn.DataParallel(Net()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Net()),
    "batch norm": lambda: measured(
        nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
    ),
    "residual": lambda: measured(Residual()),
    "products": Products,
    "split": Split,
    "layer norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, 7), nn.LayerNorm(7), nn.SiLU(), nn.Linear(7, 3)
    ),
    "elu": lambda: nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 7), nn.ELU(), nn.Linear(7, 3), nn.ReLU6()),
    "pooled": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
}


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_read_as_the_layers_it_applies(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    module = MODULES[name]().eval()
    read = read_network(module, shape=SHAPE)
    inner = module.module if isinstance(module, nn.DataParallel) else module
    with torch.no_grad():
        wanted = inner(images().flatten(1) if name == "without flatten" else images())
    torch.testing.assert_close(scores_of(read.checkpoint), wanted)
    save_checkpoint(read.checkpoint, tmp_path)
    again = load_checkpoint(tmp_path)
    assert again.fingerprint == read.checkpoint.fingerprint
    assert torch.equal(scores_of(again), scores_of(read.checkpoint))


def test_a_compiled_module_is_read_without_being_compiled() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        compiled = torch.compile(Net())
    torch.testing.assert_close(scores_of(read_network(compiled, shape=SHAPE).checkpoint), scores())


def test_parameters_keep_their_names_and_the_order_in_which_they_were_built() -> None:
    checkpoint = read_network(Net(), shape=SHAPE).checkpoint
    assert list(checkpoint.parameters) == [name for name, _ in Net().named_parameters()]
    residual = read_network(measured(Residual()), shape=SHAPE).checkpoint
    assert list(residual.parameters) == [name for name, _ in Residual().named_parameters()]


@pytest.mark.parametrize("head", [nn.LogSoftmax(1), nn.Softmax(1)])
def test_a_head_of_probabilities_is_left_out(head: nn.Module) -> None:
    read = read_network(nn.Sequential(nn.Flatten(), *NETWORK, head), shape=SHAPE)
    torch.testing.assert_close(scores_of(read.checkpoint), scores())
    assert any("left out" in note for note in read.notes)


def test_one_probability_is_read_as_its_score_except_in_regression() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 1), nn.Sigmoid(), nn.Flatten(0))
    with torch.no_grad():
        before = network[1](images().flatten(1))
    binary = read_network(network, shape=SHAPE).checkpoint
    torch.testing.assert_close(scores_of(binary), before)
    regression = read_network(network[:-1], shape=SHAPE, task="regression").checkpoint
    torch.testing.assert_close(scores_of(regression), before.sigmoid())


class Twofold(Net):
    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


class Chooses(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)


class Turned(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cumsum(1))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Twofold, "not a dict"),
        (Chooses, "cannot be traced"),
        (Turned, "operation cumsum is not supported"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 3)), "does not take images of shape"),
        (lambda: nn.Conv2d(2, 3, 1), "a row of scores"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "no values yet"),
        (nn.Flatten, "no weights"),
    ],
)
def test_a_module_that_cannot_be_read_says_why(make: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        read_network(make(), shape=SHAPE)
    assert "\n" not in str(caught.value)


MODEL_PY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(24, 7), nn.Linear(7, 3, bias=False)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def make_model():
    return Net()


number = 3
"""


@pytest.mark.parametrize("name", ["Net", "make_model"])
def test_a_network_is_made_by_its_own_code_with_the_weights_of_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.py").write_text(MODEL_PY)
    torch.save(
        {"state_dict": {**prefixed("module."), "module.criterion.weight": torch.ones(3)}}, tmp_path / "weights.pt"
    )
    path = list(sys.path)
    read = read_network(f"{tmp_path / 'model.py'}:{name}", shape=SHAPE, weights=tmp_path / "weights.pt")
    torch.testing.assert_close(scores_of(read.checkpoint), scores())
    assert any("criterion.weight" in note for note in read.notes) and sys.path == path


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("other", PLAIN, "has no other; it has Net, make_model"),
        ("number", PLAIN, "gives a int and no nn.Module"),
        ("Net", {"fc1.weight": PLAIN["fc1.weight"]}, r"no fc1.bias, .* it holds fc1.weight. Is it the right class"),
        ("Net", {**PLAIN, "fc1.weight": torch.rand(8, PIXELS)}, "another network's: fc1.weight"),
    ],
)
def test_code_and_weights_that_do_not_fit_are_refused(tmp_path: Path, name: str, content: Any, sentence: str) -> None:
    (tmp_path / "model.py").write_text(MODEL_PY)
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=sentence):
        read_network(f"{tmp_path / 'model.py'}:{name}", shape=SHAPE, weights=tmp_path / "weights.pt")


# ---- Programs


def exported(module: nn.Module, path: Path, *, dynamic: bool = False) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = ({0: torch.export.Dim("n", min=2, max=100)},) if dynamic else None
        torch.export.save(torch.export.export(module.eval(), (torch.rand(4, *SHAPE),), dynamic_shapes=sizes), path)


def scripted(module: nn.Module, path: Path, *, traced: bool = False) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.trace(module, torch.rand(4, *SHAPE)) if traced else torch.jit.script(module)
        program.save(str(path))


PROGRAMS: dict[str, Callable[[nn.Module, Path], None]] = {
    "exported": exported,
    "exported for any batch": lambda module, path: exported(module, path, dynamic=True),
    "scripted": scripted,
    "traced": lambda module, path: scripted(module, path, traced=True),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", ["net", "normalised", "batch norm", "residual", "split", "products"])
def test_a_program_is_read_as_its_module(tmp_path: Path, name: str, program: str) -> None:
    torch.manual_seed(1)
    module = MODULES[name]().eval()
    PROGRAMS[program](module, tmp_path / "model.pt")
    read = read_network(tmp_path / "model.pt", shape=SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(scores_of(read.checkpoint), module(images()))
    learned = {name for name, _ in module.named_parameters()}
    assert name == "products" or set(read.checkpoint.parameters) == learned


class Made:
    """An object that a program keeps: its code runs when the program is loaded."""


def test_a_script_with_code_for_loading_is_refused(tmp_path: Path) -> None:
    scripted(Net(), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive, zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".py"):
                content += b"\n  def __setstate__(self, state: int) -> NoneType:\n    return None\n"
            other.writestr(name, content)
    with pytest.raises(InputError, match="code that runs when it is loaded"):
        read_network(tmp_path / "other.pt", shape=SHAPE)


def rewritten(path: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    """A copy of an archive with other parts."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(path.with_name("other.pt2"), "w") as other:
        for name in archive.namelist():
            other.writestr(name, edit(name, archive.read(name)))
    return path.with_name("other.pt2")


def test_a_pickle_in_an_exported_program_is_never_loaded(tmp_path: Path) -> None:
    exported(Net(), tmp_path / "model.pt2")
    marker = tmp_path / "marker"

    def edit(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return pickle.dumps(Malicious(marker)) if "weights/weight_" in name or "sample_inputs" in name else content

    with pytest.raises(InputError, match="pickled object"):
        read_network(rewritten(tmp_path / "model.pt2", edit), shape=SHAPE)
    assert not marker.exists()


def test_weights_that_claim_more_than_the_program_holds_are_refused(tmp_path: Path) -> None:
    exported(Net(), tmp_path / "model.pt2")

    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return content
        config = json.loads(content)
        config["config"]["fc1.weight"]["tensor_meta"] |= {
            "sizes": [{"as_int": 10**6}] * 2,
            "strides": [{"as_int": 0}] * 2,
        }
        return json.dumps(config).encode()

    with pytest.raises(InputError, match=r"fc1\.weight claims 1,000,000,000,000 values"):
        read_network(rewritten(tmp_path / "model.pt2", edit), shape=SHAPE)


@pytest.mark.parametrize("program", ["exported", "scripted"])
def test_a_damaged_program_is_refused(tmp_path: Path, program: str) -> None:
    PROGRAMS[program](Net(), tmp_path / "model.pt2")
    other = rewritten(tmp_path / "model.pt2", lambda _, content: content[: len(content) // 2])
    with pytest.raises(InputError):
        read_network(other, shape=SHAPE)
    with pytest.raises(InputError, match=r"images of shape|invalid for input"):
        read_network(tmp_path / "model.pt2", shape=(1, 5, 5))


# ---- What comes before the first layer


def test_mean_and_std_are_what_the_network_subtracts_and_divides_by(tmp_path: Path) -> None:
    torch.save(PLAIN, tmp_path / "model.pt")
    mean, std = torch.tensor([0.4, 0.5]).reshape(2, 1, 1), torch.tensor([0.2, 0.3]).reshape(2, 1, 1)
    checkpoint = read_network(tmp_path / "model.pt", shape=SHAPE, mean=(0.4, 0.5), std=(0.2, 0.3)).checkpoint
    with torch.no_grad():
        wanted = NETWORK(((images() - mean) / std).flatten(1))
    torch.testing.assert_close(scores_of(checkpoint), wanted)
    save_checkpoint(checkpoint, tmp_path / "run")
    again = load_checkpoint(tmp_path / "run")
    assert again.scale is not None and again.fingerprint == checkpoint.fingerprint
    assert again.fingerprint != read_network(tmp_path / "model.pt", shape=SHAPE, mean=(0.4, 0.5)).checkpoint.fingerprint
    of_module = read_network(Net(), shape=SHAPE, mean=(0.4, 0.5), std=(0.2, 0.3)).checkpoint
    torch.testing.assert_close(scores_of(of_module), wanted)
    normalised = read_network(nn.Sequential(Normalise(), Net()), shape=SHAPE).checkpoint
    torch.testing.assert_close(normalised.centre, checkpoint.centre)
    assert normalised.scale is not None
    torch.testing.assert_close(normalised.scale, checkpoint.scale)


def test_both_normalisations_are_applied_one_after_the_other() -> None:
    module = nn.Sequential(Normalise(), Net())
    read = read_network(module, shape=SHAPE, mean=0.1, std=2.0)
    with torch.no_grad():
        torch.testing.assert_close(scores_of(read.checkpoint), module((images() - 0.1) / 2))


def test_a_normalising_buffer_is_read_as_what_it_is(tmp_path: Path) -> None:
    buffers = {"normalize.mean": torch.tensor([0.1307]), "normalize.std": torch.tensor([0.3081])}
    torch.save({**buffers, **PLAIN}, tmp_path / "model.pt")
    read = read_network(tmp_path / "model.pt", shape=SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(scores_of(read.checkpoint), NETWORK(((images() - 0.1307) / 0.3081).flatten(1)))
    assert any("normalize.mean and normalize.std are read" in note for note in read.notes)


@pytest.mark.parametrize(
    ("mean", "std", "sentence"),
    [
        (127.5, None, "Divide it by 255"),
        ((0.1, 0.2, 0.3), None, "one a channel"),
        (float("nan"), None, "not finite"),
        (0.5, 0.0, "must be positive"),
        (np.zeros((3, 4, 2)), None, "one a channel"),
    ],
)
def test_a_mean_or_std_that_cannot_be_is_refused(tmp_path: Path, mean: Any, std: Any, sentence: str) -> None:
    torch.save(PLAIN, tmp_path / "model.pt")
    with pytest.raises(InputError, match=sentence):
        read_network(tmp_path / "model.pt", shape=SHAPE, mean=mean, std=std)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (0, 4, 3)])
def test_a_shape_in_another_order_is_refused(tmp_path: Path, shape: Shape) -> None:
    torch.save(PLAIN, tmp_path / "model.pt")
    with pytest.raises(InputError, match="channels, height and width"):
        read_network(tmp_path / "model.pt", shape=shape)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_another_order_of_pixels_is_the_networks_own(tmp_path: Path, layout: str, channels: str) -> None:
    torch.save(PLAIN, tmp_path / "model.pt")
    given = {"layout": layout, "channels": channels}
    taken = images().flip(1) if channels == "bgr" else images()
    taken = taken.permute(0, 2, 3, 1) if layout == "hwc" else taken
    mean = torch.rand(4, 3, 2) if layout == "hwc" else torch.rand(2, 4, 3)
    with torch.no_grad():
        wanted = NETWORK((taken - mean).flatten(1))
    for source in (tmp_path / "model.pt", Net(), NETWORK):
        checkpoint = read_network(source, shape=SHAPE, mean=mean, **given).checkpoint
        torch.testing.assert_close(scores_of(checkpoint), wanted)
        save_checkpoint(checkpoint, tmp_path / "run")
        torch.testing.assert_close(scores_of(load_checkpoint(tmp_path / "run")), wanted)


class OfTensorFlow(nn.Module):
    """Takes [n, h, w, c], as the network that it was ported from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.conv(x.permute(0, 3, 1, 2)).mean((2, 3))
        return scores


def test_an_order_that_is_undone_at_once_is_none() -> None:
    module = OfTensorFlow()
    checkpoint = read_network(module, shape=SHAPE, layout="hwc").checkpoint
    assert isinstance(checkpoint.network, LayerGraph)
    assert [layer.kind for layer in checkpoint.network.layers] == ["conv2d", "mean"]
    with torch.no_grad():
        torch.testing.assert_close(scores_of(checkpoint), module(images().permute(0, 2, 3, 1)))


def blobs(count: int, shape: Shape) -> Tensor:
    """Smooth pictures in colour."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, shape[0], 3, 3, generator=generator)
    return functional.interpolate(coarse, shape[1:], mode="bicubic", align_corners=True).clamp(0, 1)


@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_the_layout_is_told_from_the_weights(tmp_path: Path, layout: str) -> None:
    shape = (3, 12, 12)
    pictures = blobs(20, shape)
    pictures = pictures.permute(0, 2, 3, 1) if layout == "hwc" else pictures
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(40, 20, generator=generator) @ (pictures.flatten(1) - 0.5)
    told, sure = tell_layout(weight + 0.1 * torch.randn(weight.shape, generator=generator), shape)
    assert told == layout and sure > SURE
    state = {"0.weight": weight, "2.weight": torch.randn(2, 40, generator=generator)}
    torch.save(state, tmp_path / "model.pt")
    read = read_network(tmp_path / "model.pt", shape=shape, layout=None)
    assert torch.equal(
        scores_of(read.checkpoint, shape),
        scores_of(read_network(tmp_path / "model.pt", shape=shape, layout=layout).checkpoint, shape),
    )
    assert any(f"tell the layout {layout}" in note for note in read.notes)


def test_noise_tells_no_layout(tmp_path: Path) -> None:
    assert tell_layout(torch.randn(50, 300), (3, 10, 10))[1] < SURE
    torch.save({"0.weight": torch.randn(50, 300), "2.weight": torch.randn(2, 50)}, tmp_path / "model.pt")
    read = read_network(tmp_path / "model.pt", shape=(3, 10, 10), layout=None)
    assert any("do not tell the images' layout" in note for note in read.notes)


def test_a_mean_is_taken_in_many_forms() -> None:
    image = torch.rand(2, 4, 3)
    for form in (image, image.numpy(), image[None], image.flatten()):
        torch.testing.assert_close(as_image(form, SHAPE, "mean"), image)
    torch.testing.assert_close(as_image([0.1, 0.2], SHAPE, "mean", channels="bgr")[:, 0, 0], torch.tensor([0.2, 0.1]))
    assert torch.equal(as_image(0.5, SHAPE, "mean"), torch.full(SHAPE, 0.5))


# ---- The description


def test_a_description_that_cannot_be_is_refused() -> None:
    layer = Layer(name="a", kind="relu", inputs=(-1,))
    for layers in (
        (),
        (Layer(name="a", kind="attention", inputs=(-1,)),),
        (Layer(name="a", kind="relu", inputs=(0,)),),
        (layer, Layer(name="a.b", kind="relu", inputs=(0,))),
    ):
        with pytest.raises(InputError):
            LayerGraph(layers=layers, parameters=())
    graph = LayerGraph(layers=(Layer(name="a", kind="linear", inputs=(-1,)),), parameters=("a.weight",))
    for weights in ({}, {"b.weight": torch.rand(2, 3)}, {"a.weight": torch.rand(2)}):
        with pytest.raises(InputError):
            build_layers(graph, weights)
    with pytest.raises(InputError, match="do not fit the layer"):
        build_layers(
            LayerGraph(layers=(Layer(name="a", kind="affine", inputs=(-1,), settings={"x": 1}),), parameters=()), {}
        )


def test_every_kind_of_layer_can_come_from_an_operation() -> None:
    source = Path(sys.modules["exhume.foreign.operations"].__file__ or "").read_text()
    assert all(f'"{kind}"' in source for kind in KINDS)
    assert len(OPERATIONS) > len(KINDS)
