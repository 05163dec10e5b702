"""The scale of initial values, which a search does without: found by the rule that fits a network's layers best."""

import math
from collections.abc import Mapping

from torch import Tensor

from exhume.attack.find_start.draws import INITIALISATIONS, Distribution, Initialisation, draw, fans
from exhume.attack.find_start.evidence import compare, z_score
from exhume.attack.find_start.layers import HALF, TrainedLayer, TrainedNetwork
from exhume.attack.find_start.stream import Stream

Place = tuple[int, Distribution]
"""Where a parameter was drawn, and from what."""
DEFAULT = INITIALISATIONS["pytorch-default"]
UNMOVED = 1e-3
"""Share of values equal to the last bit that proves a rule."""
FARTHEST = 1.2
"""A rule is none for a layer if its scale and the fitted one differ by more than this in their logarithms."""
CONSTANT = 0.1
"""The same for a normal draw whose rule nothing proves: standard deviations of any size are in use."""


def fitting_rules(network: TrainedNetwork, stream: Stream, places: Mapping[str, Place]) -> dict[str, tuple[float, str]]:
    """(scale, row of INITIALISATIONS) of each parameter with a place; the fitted scale and "" where no rule fits.

    A weight that never moved proves its rule. What no such weight tells follows most of those that are proved, or the
    rule that is nearest to all layers together, the surest counting most: training changes the scale of small ones.
    """
    fits = {name: _fit(network.parameters[name], stream, *place) for name, place in places.items()}
    fitted = {name: scale for name, (scale, _) in fits.items()}
    sure = {name: max(z, 0.0) for name, (_, z) in fits.items()}
    weights = [layer for layer in network.layers if layer.weight_name in places]
    proved = {
        layer.weight_name: rule
        for layer in weights
        for rule in _possible(layer, fitted, places)
        if _is_exact(layer, rule, stream, places[layer.weight_name])
    }
    rules: dict[str, tuple[float, str]] = {}
    for layer in weights:
        name = layer.weight_name
        possible = [proved[name]] if name in proved else _possible(layer, fitted, places)
        rule = min(possible, key=lambda one: _distance(one, weights, fitted, sure, proved), default=None)
        if rule is None or (rule.normal and not proved and _off(rule, layer, fitted) > CONSTANT):
            rules[name] = fitted[name], ""
        else:
            rules[name] = rule.scale(*fans(layer.weight)), rule.name
    for layer in network.layers:
        if layer.bias_name in places:
            rules[layer.bias_name] = _of_bias(layer, places[layer.bias_name][1], rules, fitted[layer.bias_name])
    return rules


def _fit(trained: Tensor, stream: Stream, place: int, row: Distribution) -> tuple[float, float]:
    """The scale that fits best, and z."""
    standard = row.draw(trained.numel(), stream.generator(place)).reshape(trained.shape)
    return max(compare(trained, standard)[2], 1e-30), z_score(trained, standard, row)


def _off(rule: Initialisation, layer: TrainedLayer, fitted: Mapping[str, float]) -> float:
    return abs(math.log(fitted[layer.weight_name] / rule.scale(*fans(layer.weight))))


def _possible(layer: TrainedLayer, fitted: Mapping[str, float], places: Mapping[str, Place]) -> list[Initialisation]:
    normal = places[layer.weight_name][1].normal
    return [rule for rule in INITIALISATIONS.values() if rule.normal == normal and _off(rule, layer, fitted) < FARTHEST]


def _is_exact(layer: TrainedLayer, rule: Initialisation, stream: Stream, place: Place) -> bool:
    if layer.weight.dtype in HALF:
        return False  # rounded values are equal by chance too
    start, row = place
    values = draw(row, rule.scale(*fans(layer.weight)), layer.weight.shape, stream.generator(start))
    return compare(layer.weight, values)[1] > UNMOVED


def _distance(
    rule: Initialisation,
    weights: list[TrainedLayer],
    fitted: Mapping[str, float],
    sure: Mapping[str, float],
    proved: Mapping[str, Initialisation],
) -> tuple[int, float]:
    votes = sum(one is rule for one in proved.values())
    return -votes, sum(sure[layer.weight_name] * min(_off(rule, layer, fitted), FARTHEST) for layer in weights)


def _of_bias(
    layer: TrainedLayer, row: Distribution, rules: Mapping[str, tuple[float, str]], fitted: float
) -> tuple[float, str]:
    """PyTorch's default has one bound for weight and bias; a normal bias was drawn as its weight was."""
    if not row.normal:
        return DEFAULT.scale(*fans(layer.weight)), DEFAULT.name
    scale, name = rules.get(layer.weight_name, (fitted, ""))
    return (scale, name) if abs(math.log(fitted / scale)) < FARTHEST else (fitted, "")
