"""Laws of every row of NETWORKS with every row of ACTIVATIONS."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import exhume
from exhume.errors import InputError
from exhume.networks import ACTIVATIONS, NETWORKS, CentredNetwork, NetworkConfig, build, numbers_kept
from victims import SMALL

SHAPE = (3, 7, 5)
ROWS = list(product(NETWORKS, ACTIVATIONS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def specification(kind: str, activation: str = "relu", **others: object) -> NetworkConfig:
    channels = (4, 6) if kind == "cnn" else ()
    return NetworkConfig(**{"kind": kind, "channels": channels, "widths": (11, 9), "activation": activation, **others})


def built(
    network: NetworkConfig, *, outputs: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0
) -> CentredNetwork:
    centre = torch.rand(SHAPE, generator=generator(7), dtype=dtype)
    return build(network, centre, outputs, generator(seed))


def weighted(module: CentredNetwork) -> list[nn.Linear | nn.Conv2d]:
    return [layer for layer in module.layers if isinstance(layer, nn.Linear | nn.Conv2d)]


def images(count: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, *SHAPE, generator=generator(3), dtype=dtype)


@pytest.mark.parametrize(("kind", "activation"), ROWS)
def test_scores_are_images_by_outputs(kind: str, activation: str) -> None:
    for outputs in (1, 4):
        assert built(specification(kind, activation), outputs=outputs)(images()).shape == (5, outputs)


@pytest.mark.parametrize("kind", NETWORKS)
def test_layers_have_the_widths_and_channels_asked_for(kind: str) -> None:
    linear = [layer for layer in weighted(built(specification(kind))) if isinstance(layer, nn.Linear)]
    # 7x5 pixels become 4x3 and then 2x2 by convolutions of stride 2
    inputs = 3 * 7 * 5 if kind == "mlp" else 6 * 2 * 2
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(inputs, 11), (11, 9), (9, 4)]
    convolutions = [layer for layer in weighted(built(specification(kind))) if isinstance(layer, nn.Conv2d)]
    expected = [(3, 4, (2, 2)), (4, 6, (2, 2))] if kind == "cnn" else []
    assert [(layer.in_channels, layer.out_channels, layer.stride) for layer in convolutions] == expected


def test_no_hidden_layer_is_a_linear_network() -> None:
    module = built(NetworkConfig(widths=(), init_scale=None))
    one, other = images(2)
    middle = module((one + other)[None] / 2)
    torch.testing.assert_close(middle[0], module(torch.stack([one, other])).mean(0))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("bias", "expected"),
    [("first", lambda index: index == 0), ("all", lambda _: True), ("none", lambda _: False)],
)
def test_biases_are_where_they_are_asked_for(kind: str, bias: str, expected) -> None:
    layers = weighted(built(specification(kind, bias=bias)))
    assert [layer.bias is not None for layer in layers] == [expected(index) for index in range(len(layers))]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("scale", [1e-4, 0.3])
@pytest.mark.parametrize("where", ["first", "all"])
def test_the_initial_scale_is_the_measured_one(kind: str, scale: float, where: str) -> None:
    network = specification(kind, bias="all", widths=(300, 200), init_scale=scale, init_layers=where)
    layers = weighted(built(network, outputs=50))
    for index, layer in enumerate(layers):
        drawn = where == "all" or index == 0
        # about five standard errors of a measured standard deviation
        tolerance = 3.5 * scale / layer.weight.numel() ** 0.5
        if drawn:
            assert layer.weight.std().item() == pytest.approx(scale, abs=tolerance)
            assert abs(layer.weight.mean().item()) < 5 * scale / layer.weight.numel() ** 0.5
            assert 0 < layer.bias.abs().max().item() < 5 * scale
        else:
            bound = layer.weight[0].numel() ** -0.5
            assert layer.weight.abs().max().item() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize("kind", NETWORKS)
def test_without_an_initial_scale_the_weights_are_pytorchs(kind: str) -> None:
    for layer in weighted(built(specification(kind, bias="all", init_scale=None))):
        bound = layer.weight[0].numel() ** -0.5  # uniform within 1 / sqrt(fan in)
        assert 0.5 * bound < layer.weight.abs().max().item() <= bound
        assert 0 < layer.bias.abs().max().item() <= bound


@pytest.mark.parametrize(("kind", "activation"), ROWS)
def test_the_centre_is_where_the_layers_see_zero(kind: str, activation: str) -> None:
    module = built(specification(kind, activation, bias="all", init_scale=None))
    centre = module.centre.centre
    torch.testing.assert_close(module(centre[None]), module.layers(torch.zeros(1, *SHAPE)))
    torch.testing.assert_close(module(images()), module.layers(images() - centre))
    assert [name for name, _ in module.named_parameters() if "centre" in name] == []


@pytest.mark.parametrize(("kind", "activation"), ROWS)
def test_the_activation_stands_between_the_layers_and_not_after_them(kind: str, activation: str) -> None:
    layers = [layer for layer in built(specification(kind, activation)).layers if not isinstance(layer, nn.Flatten)]
    assert all(isinstance(layer, nn.Linear | nn.Conv2d) for layer in layers[::2])
    assert {type(layer) for layer in layers[1::2]} == {type(ACTIVATIONS[activation]())}
    assert isinstance(layers[-1], nn.Linear)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_same_generator_gives_the_same_weights(kind: str) -> None:
    first, again, other = (built(specification(kind), seed=seed) for seed in (1, 1, 2))
    for one, same, different in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_global_random_state_is_untouched_and_has_no_effect(kind: str) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    weights = list(built(specification(kind)).parameters())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    for one, same in zip(weights, built(specification(kind)).parameters(), strict=True):
        assert torch.equal(one, same)


def test_a_generator_is_used_up_by_building() -> None:
    shared = generator()
    centre = torch.zeros(SHAPE)
    one, other = (build(NetworkConfig(widths=(5,)), centre, 1, shared) for _ in range(2))
    assert not torch.equal(one.layers[1].weight, other.layers[1].weight)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_centres_precision_is_the_networks(kind: str) -> None:
    module = built(specification(kind), dtype=torch.float64)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float64}
    assert module(images(dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("network", [NetworkConfig(kind="cnn"), NetworkConfig(kind="mlp", channels=(4,))])
def test_channels_belong_to_a_cnn_and_to_it_alone(network: NetworkConfig) -> None:
    with pytest.raises(InputError, match="A cnn needs channels"):
        build(network, torch.zeros(SHAPE), 1, generator())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"kind": "mpl"}, "Unknown network 'mpl'; there are mlp, cnn."),
        ({"activation": "rellu"}, "Unknown activation 'rellu'"),
        ({"widths": (5, 0)}, "at least 1"),
        ({"kind": "cnn", "channels": (-1,)}, "at least 1"),
        ({"init_scale": 0.0}, "init_scale must be positive"),
        ({"init_scale": -1.0}, "init_scale must be positive"),
        ({"init_scale": float("nan")}, "init_scale must be positive"),
        ({"init_scale": float("inf")}, "init_scale must be positive"),
        ({"bias": "frist"}, "bias must be"),
        ({"init_layers": "none"}, "init_layers must be"),
    ],
)
def test_what_is_no_network_is_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        NetworkConfig(**wrong)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.last = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.last(self.rows(images[:, 0])[0][:, -1])
        return scores


def test_numbers_that_layers_keep_are_counted_of_any_network() -> None:
    """A recurrent layer gives 6 numbers for each of 5 rows, and a state of 6."""
    network = Recurrent()
    assert numbers_kept(network, (1, 5, 4)) == 5 * 6 + 6 + 3
    assert not any(layer._forward_hooks for layer in network.modules())
    assert numbers_kept(nn.Identity(), (1, 5, 4)) == 0
    assert exhume.reconstruct(
        network, SMALL["exhume"], task="multiclass", centre=torch.full((1, 5, 4), 0.5)
    ).images.any()
