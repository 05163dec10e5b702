"""Networks that divide their images, take them in another order, or have BatchNorm: attacked as what they are."""

import copy
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume import (
    Exhume,
    InputError,
    NetworkConfig,
    Problem,
    Reference,
    Selection,
    load_checkpoint,
    load_problem,
    read_network,
    reconstruct,
    save_checkpoint,
    score,
)
from exhume.architecture import MLP, SplitNetwork, as_mlp
from exhume.attack.find_start import trained_network
from exhume.attack.folding import folded
from exhume.attack.search import Method
from exhume.attack.target import make_target
from exhume.layers import LayeredNetwork
from exhume.networks import CentredNetwork
from exhume.runs.schema import FoundStart
from exhume.runs.start import completed, is_enough
from victims import SMALL, checkpoint, generator, target_of

SHAPE = (3, 4, 5)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3))


# ---- What the network divides by


def digits() -> Problem:
    return load_problem("mnist-digits", Selection(per_class=2))


def trained_on(inputs: Tensor, labels: Tensor, lr: float) -> nn.Module:
    """A dense network after descent on all of these inputs, from a small initialisation."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10, bias=False))
    for parameter in network[1].parameters():
        nn.init.normal_(parameter, std=1e-4)
    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    for _ in range(800):
        optimiser.zero_grad()
        functional.cross_entropy(network(inputs), labels).backward()
        optimiser.step()
    return network.eval()


@pytest.mark.parametrize("scale", ["none", "number", "small number", "image"])
def test_a_network_that_divides_its_images_gives_as_many_of_them(scale: str) -> None:
    problem = digits()
    mean = problem.images.mean(0)
    std = {"none": 1.0, "number": 3.0, "small number": 0.3, "image": problem.images.std(0) + 0.1}[scale]
    rate = 0.05 if scale in ("none", "number") else 0.01
    network = trained_on((problem.images - mean) / std, problem.labels, rate)
    read = read_network(network, shape=(1, 28, 28), mean=mean, std=std)
    found = reconstruct(read.checkpoint, Exhume(steps=200, restarts=1))
    assert score(found, problem.images, problem.labels, problem.held_out).recovered["0.9"] >= 18


@pytest.mark.parametrize("method", SMALL.values(), ids=SMALL)
def test_a_scale_of_one_changes_nothing(method: Method) -> None:
    plain = checkpoint("multiclass")
    ones = replace(plain, scale=torch.ones_like(plain.centre))
    short = replace(method, steps=5)
    assert torch.equal(reconstruct(plain, short).images, reconstruct(ones, short).images)


def test_inputs_and_images_are_turned_into_each_other() -> None:
    scale = torch.rand(1, 5, 5, generator=generator()) + 0.5
    target = target_of(replace(checkpoint("multiclass"), scale=scale))
    image = torch.rand(1, 5, 5)
    torch.testing.assert_close(target.as_images(target.as_inputs(image)[None])[0], image)
    torch.testing.assert_close(target.as_inputs(image), (image - target.subtracted) / scale)
    assert target.unit == pytest.approx(scale.pow(2).mean().sqrt().item())


@pytest.mark.parametrize("method", [Exhume(steps=3), Reference(steps=3)])
def test_a_search_begins_around_the_mean_whatever_the_units(method: Method) -> None:
    victim = checkpoint("multiclass", NetworkConfig(widths=(20, 10), init_scale=0.3, bias="none"))
    near = []
    for factor in (1.0, 0.01, 100.0):
        target = target_of(replace(victim, scale=torch.full_like(victim.centre, factor)), method.dtype)
        found = method.start(target, generator()).iterate().images
        near.append(float((found - target.centre).std()))
    if isinstance(method, Exhume):
        assert near[1:] == pytest.approx([near[0]] * 2, rel=0.01)
    else:
        assert near[1] == pytest.approx(near[0] / 100, rel=0.01)  # the papers' units are the network's inputs


# ---- What is known of the mean image


def test_a_known_mean_is_knowledge_and_not_subtracted(tmp_path: Path) -> None:
    plain = checkpoint("multiclass", centre=torch.zeros(1, 5, 5))
    known = replace(plain, known_mean=torch.rand(1, 5, 5, generator=generator()))
    assert (known.fingerprint, plain.knowledge) == (plain.fingerprint, None)
    assert known.knowledge is not None
    save_checkpoint(known, tmp_path)
    again = load_checkpoint(tmp_path)
    assert again.fingerprint == known.fingerprint
    target = make_target(again)
    assert torch.equal(target.centre, known.known_mean) and not target.subtracted.any()
    shown = torch.rand(3, 1, 5, 5)
    assert torch.equal(known.build()(shown), plain.build()(shown))


# ---- Another order, and BatchNorm


def chain() -> nn.Sequential:
    """With BatchNorm before and after activations, as after some training."""
    torch.manual_seed(0)
    layers = OrderedDict(
        flat=nn.Flatten(),
        fc1=nn.Linear(60, 9, bias=False),
        bn1=nn.BatchNorm1d(9),
        act1=nn.ReLU(),
        fc2=nn.Linear(9, 8),
        act2=nn.ReLU(),
        bn2=nn.BatchNorm1d(8),
        fc3=nn.Linear(8, 3),
    )
    network = nn.Sequential(layers)
    for norm in (network.bn1, network.bn2):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return network.eval()


def test_batch_norm_is_folded_into_the_layers_beside_it() -> None:
    network = chain()
    target = make_target(network, task="multiclass", centre=torch.full(SHAPE, 0.5))
    mlp = target.architecture
    assert isinstance(mlp, MLP) and [weight.shape for weight in mlp.weights] == [(9, 60), (8, 9), (3, 8)]
    torch.testing.assert_close(target.network(images()), network(images()))
    assert [name for name, _ in target.network.named_parameters()] == [
        "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"
    ]  # fmt: skip


@pytest.mark.parametrize(("layout", "channels"), [("hwc", "rgb"), ("chw", "bgr"), ("hwc", "bgr")])
def test_another_order_is_folded_into_the_first_layer(layout: str, channels: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(60, 9), nn.ReLU(), nn.Linear(9, 3))
    read = read_network(network, shape=SHAPE, layout=layout, channels=channels, mean=0.4, std=(0.2, 0.3, 0.4))
    target = make_target(read.checkpoint)
    assert isinstance(target.architecture, MLP)
    torch.testing.assert_close(target.network(images()), read.checkpoint.build()(images()))
    assert torch.equal(trained_network(read.checkpoint).layers[0].weight, network[1].weight)  # as it was drawn


def test_channels_in_reverse_are_folded_into_a_convolution() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 3))
    read = read_network(network, shape=SHAPE, channels="bgr")
    target = make_target(read.checkpoint)
    assert isinstance(target.architecture, SplitNetwork)
    assert isinstance(target.network, CentredNetwork) and isinstance(target.network.layers, LayeredNetwork)
    assert isinstance(target.network.layers.in_sequence[0], nn.Conv2d)
    torch.testing.assert_close(target.network(images()), read.checkpoint.build()(images()))


def test_batch_norm_among_convolutions_stays_what_it_is() -> None:
    head = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*head, nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 3)).eval()
    target = make_target(network, task="multiclass", centre=torch.full(SHAPE, 0.5))
    assert isinstance(target.architecture, SplitNetwork)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in target.network.modules())


def test_dense_layers_with_batch_norm_behind_convolutions_are_recognised() -> None:
    head = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    tail = [nn.Linear(24, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)]
    target = make_target(nn.Sequential(*head, *tail).eval(), task="multiclass", centre=torch.full(SHAPE, 0.5))
    assert isinstance(target.architecture, SplitNetwork) and len(target.architecture.mlp.weights) == 2


def test_what_is_no_layered_network_is_left_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(60, 3))
    assert folded(network, SHAPE) is network


def test_a_known_start_is_folded_with_the_statistics_of_the_end() -> None:
    trained = read_network(chain(), shape=SHAPE).checkpoint
    other = chain()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.bn1.running_mean.normal_(mean=9)
    initial = read_network(other, shape=SHAPE).checkpoint
    target = make_target(trained, initial=initial)
    assert target.delta is not None and isinstance(target.architecture, MLP)
    for name, statistic in chain().named_buffers():
        other.get_buffer(name).copy_(statistic)
    then = as_mlp(folded(read_network(other, shape=SHAPE).checkpoint.build(), SHAPE))
    now = as_mlp(make_target(trained).network)
    middle = as_mlp(target.network)
    assert then is not None and now is not None and middle is not None
    for start, end, half in zip(then.parameters, now.parameters, middle.parameters, strict=True):
        torch.testing.assert_close(half, (start + end) / 2)


def test_a_start_by_names_is_taken_for_a_network_with_batch_norm() -> None:
    network = chain()
    trained = read_network(network, shape=SHAPE).checkpoint
    found = {name: torch.randn_like(p) for name, p in trained.parameters.items() if name.startswith("fc")}
    start = completed(trained, found)
    assert torch.equal(start.weights["bn1.weight"], torch.ones(9)) and not start.weights["bn2.bias"].any()
    assert torch.equal(start.weights["bn1.running_mean"], trained.weights["bn1.running_mean"])
    by_checkpoint = reconstruct(trained, SMALL["exhume"], initial=start)
    learned = {name: start.weights[name] for name in trained.parameters}
    assert torch.equal(reconstruct(trained, SMALL["exhume"], initial=learned).images, by_checkpoint.images)
    by_module = reconstruct(network, SMALL["exhume"], task="multiclass", centre=trained.centre, initial=learned)
    torch.testing.assert_close(by_module.images, by_checkpoint.images)


# ---- Modules


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(60, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc2(functional.relu(self.fc1((x - 0.5).view(-1, 60))))
        return scores


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel], ids=["class", "data parallel"])
def test_a_module_is_attacked_as_its_sequential(wrap: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, other = Net(), Net()
    layers = CentredNetwork(torch.full(SHAPE, 0.5), [nn.Flatten(), net.fc1, nn.ReLU(), net.fc2])
    given = {"task": "multiclass", "centre": torch.full(SHAPE, 0.5)}
    by_module = reconstruct(wrap(net), SMALL["exhume"], **given)
    assert torch.equal(by_module.images, reconstruct(layers, SMALL["exhume"], **given).images)
    assert by_module.assumptions.layers[0] == "fc1.weight"
    started = reconstruct(wrap(net), SMALL["exhume"], **given, initial=wrap(other))
    assert started.assumptions.known_init is not None


def test_what_is_no_module_is_refused_with_what_reads_it() -> None:
    """In a process of its own: here, what is passed is checked by its type before."""
    code = (
        "import exhume, torch\n"
        "for target in ({'fc1.weight': torch.ones(3, 60)}, 'model.pt'):\n"
        "    try:\n"
        "        exhume.reconstruct(target, task='multiclass', centre=torch.zeros(3, 4, 5))\n"
        "    except exhume.InputError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("`exhume.read_network` reads a file of weights.") == 2


class Twofold(Net):
    def forward(self, x: Tensor) -> Tensor:
        return {"logits": super().forward(x)}  # type: ignore[return-value]


def test_a_module_that_returns_a_dict_is_refused() -> None:
    with pytest.raises(InputError, match="not a dict"):
        reconstruct(Twofold(), task="multiclass", centre=torch.zeros(SHAPE))


def test_the_last_layer_is_the_last_to_work_and_not_the_last_to_be_built() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(9, 3), nn.Linear(60, 9)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.last(self.first(x.flatten(1)).relu())
            return scores

    trained = read_network(Backwards(), shape=SHAPE).checkpoint
    found = FoundStart(
        way="all-seeds", seed=1, place=0, candidate=None, log10_p=-40.0, unknown=["last.weight"], hints=[]
    )
    assert is_enough(trained, found)
    assert not is_enough(trained, replace(found, unknown=["first.weight"]))


def test_images_come_out_of_a_network_with_batch_norm_whose_start_is_known() -> None:
    problem = digits()
    mean = problem.images.mean(0)
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(784, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 10)]
    network = nn.Sequential(*layers)
    initial = read_network(copy.deepcopy(network), shape=(1, 28, 28), mean=mean).checkpoint
    optimiser = torch.optim.SGD(network.train().parameters(), lr=0.05, momentum=0.9)
    for _ in range(200):
        optimiser.zero_grad()
        functional.cross_entropy(network(problem.images - mean), problem.labels).backward()
        optimiser.step()
    trained = read_network(network, shape=(1, 28, 28), mean=mean).checkpoint
    found = reconstruct(trained, Exhume(steps=300, restarts=1), initial=initial)
    assert score(found, problem.images, problem.labels, problem.held_out).recovered["0.9"] >= 15
