"""Which networks are recognised: MLPs, MLPs behind other layers, and what is neither."""

import pytest
import torch
from torch import Tensor, nn

from exhume.architecture import MLP, SplitNetwork, as_mlp, mlp_of, recognise
from exhume.networks import ACTIVATIONS, CentredNetwork, NetworkConfig, build

CNN = NetworkConfig(kind="cnn", channels=(2, 1), widths=(30, 6), init_scale=None, bias="all")


def network_of(kind: NetworkConfig, outputs: int = 3) -> nn.Module:
    centre = torch.rand(1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return build(kind, centre, outputs, torch.Generator().manual_seed(1))


def images_of(count: int) -> Tensor:
    return torch.rand(count, 1, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def dense_layers(activation: nn.Module, biases: tuple[bool, bool] = (True, True)) -> list[nn.Module]:
    return [nn.Linear(12, 5, bias=biases[0]), activation, nn.Linear(5, 2, bias=biases[1])]


@pytest.mark.parametrize(("name", "activation"), [(name, make()) for name, make in ACTIVATIONS.items()])
@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, False)])
def test_mlps_are_recognised(activation: nn.Module, name: str, biases: tuple[bool, bool]) -> None:
    layers = dense_layers(activation, biases)
    for module in (
        nn.Sequential(*layers),
        nn.Sequential(nn.Flatten(), *layers),
        CentredNetwork(torch.zeros(3, 2, 2), [nn.Flatten(), *layers]),
    ):
        mlp = as_mlp(module)
        assert mlp is not None and isinstance(recognise(module), MLP)
        assert mlp.activation == name
        assert [bias is not None for bias in mlp.biases] == list(biases)
        for ours, theirs in zip(mlp.parameters, module.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_single_layer_is_an_mlp() -> None:
    assert as_mlp(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))) is not None


class Residual(nn.Module):
    """Dense layers, but not one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Twice(nn.Sequential):
    """Not what its layers say."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = 2 * super().forward(x)  # type: ignore[no-untyped-call]
        return out


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(*dense_layers(nn.LeakyReLU(0.3))),
        nn.Sequential(*dense_layers(nn.GELU(approximate="tanh"))),
        nn.Sequential(*dense_layers(nn.ReLU()), nn.Tanh(), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)),
        nn.Sequential(*dense_layers(nn.ReLU()), nn.Sigmoid()),
        nn.Sequential(*dense_layers(nn.Softmax(1))),
        nn.Sequential(nn.Linear(12, 5), nn.Linear(5, 2)),
        nn.Sequential(nn.ReLU(), *dense_layers(nn.ReLU())),
        nn.Sequential(),
        Twice(*dense_layers(nn.ReLU())),
        Residual(),
        nn.Linear(12, 2),
    ],
    ids=lambda network: " ".join(type(layer).__name__ for layer in network.children()) or type(network).__name__,
)
def test_anything_else_is_no_mlp(network: nn.Module) -> None:
    assert as_mlp(network) is None


def test_dense_layers_go_on_from_the_features_of_their_head() -> None:
    network, images = network_of(CNN), images_of(7)
    parts = recognise(network)
    assert isinstance(parts, SplitNetwork) and mlp_of(parts) is parts.mlp
    features = parts.head(images).flatten(1)
    assert features.shape == (7, 4)
    for i, (weight, bias) in enumerate(zip(parts.mlp.weights, parts.mlp.biases, strict=True)):
        features = (features.relu() if i else features) @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(features, network(images))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)),  # a row for each class only
        nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(30, 9), nn.LayerNorm(9), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)),
        nn.Linear(30, 3),
        nn.Sequential(),
    ],
)
def test_a_network_without_two_dense_layers_at_its_end_has_no_features(network: nn.Module) -> None:
    assert recognise(network) is None


def test_what_does_nothing_and_how_layers_are_grouped_makes_no_difference() -> None:
    torch.manual_seed(0)
    head, first, last = nn.Conv2d(1, 2, 3), nn.Linear(24, 8), nn.Linear(8, 3)
    grouped = nn.Sequential(
        nn.Sequential(head, nn.ReLU(), nn.Identity()),
        nn.Flatten(),
        nn.Sequential(nn.Dropout(), first, nn.ReLU(), nn.Dropout(), last),
    ).eval()
    parts, images = recognise(grouped), images_of(3).float()
    assert isinstance(parts, SplitNetwork)
    assert [weight.shape for weight in parts.mlp.weights] == [(8, 24), (3, 8)]
    features = parts.head(images).flatten(1)
    torch.testing.assert_close(last(first(features).relu()), grouped(images))


def test_dropout_does_nothing_in_evaluation_mode_only() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    assert as_mlp(network.train()) is None
    mlp = as_mlp(network.eval())
    assert mlp is not None and len(mlp.weights) == 2
