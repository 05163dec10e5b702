"""From one layer's place in a stream to the place, and so the initial values, of every parameter drawn from it."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from exhume.attack.find_start.draws import DISTRIBUTIONS, Distribution, draw, pattern
from exhume.attack.find_start.evidence import LOG10_FOUND, LOG10_MATCHES, Evidence, compare, log10_p, z_score
from exhume.attack.find_start.layers import TrainedLayer, TrainedNetwork
from exhume.attack.find_start.scales import Place, fitting_rules
from exhume.attack.find_start.stream import Stream

REACH = 1 << 22
"""Outputs before and behind a layer's place in which the others are looked for, in whatever order they were drawn."""
PROBE = 20_000
"""Values of a parameter that are compared while its place is looked for, and outputs of it that a scan takes."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """That one layer's weights were drawn at one place of a stream; z: what speaks for it so far."""

    stream: Stream
    layer: int
    place: int
    distribution: Distribution
    z: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """All of a network that can be drawn anew from a stream.

    initial: values by parameter, of what was drawn; evidence: of each of the layers' parameters, in order;
    place, end: outputs before the first and behind the last of them; tests: how many (parameter, place) were looked at.
    """

    stream: Stream
    initial: dict[str, Tensor]
    evidence: tuple[Evidence, ...]
    place: int
    end: int
    tests: int

    def log10_p(self, trials: float) -> float:
        """The corrected p-value of its best parameter, where `trials` such hypotheses were tried."""
        return log10_p(max(row.z for row in self.evidence), trials * self.tests)


def replay(network: TrainedNetwork, hypothesis: Hypothesis, *, trials: float) -> Replay:
    """Draws a network anew from a hypothesis about one of its layers.

    The other parameters are looked for where PyTorch would have drawn them: one behind the other, once or twice over.
    Weights that are not there are looked for anywhere within REACH, if the stream is the right one at a p-value of
    1e-6 in `trials`.
    """
    drawn = _Drawn(network, hypothesis)
    first, layers = hypothesis.layer, network.layers
    drawn.look(layers[first].weight_name, {hypothesis.place}, [hypothesis.distribution])
    ends = drawn.ends(layers[first], {hypothesis.place})
    for layer in layers[first + 1 :]:
        drawn.look(layer.weight_name, ends | {end + drawn.size(layer) for end in ends} | drawn.built(layer), drawn.kin)
        ends = drawn.ends(layer, ends)
    place = hypothesis.place
    for layer in layers[:first][::-1]:
        starts = {place - used for used in drawn.lengths(layer)}
        drawn.look(
            layer.weight_name, starts | {start - drawn.size(layer) for start in starts} | drawn.built(layer), drawn.kin
        )
        place = drawn.places.get(layer.weight_name, (place - drawn.size(layer),))[0]
    missing = [layer for layer in layers if layer.weight_name not in drawn.places]
    if drawn.places and missing and log10_p(drawn.best_z, trials * drawn.tests) < LOG10_FOUND:
        drawn.look_anywhere(missing)
    for layer in layers:
        drawn.bias(layer)
    return _collected(drawn)


class _Drawn:
    """What has been found of a network in a stream so far."""

    def __init__(self, network: TrainedNetwork, hypothesis: Hypothesis) -> None:
        self.network, self.hypothesis, self.stream = network, hypothesis, hypothesis.stream
        self.kin = [row for row in DISTRIBUTIONS.values() if row.stride == hypothesis.distribution.stride]
        self.uniform = next(row for row in self.kin if not row.normal)
        self.places: dict[str, Place] = {}
        self.tests, self.best_z = 1, 0.0

    def size(self, layer: TrainedLayer) -> int:
        """Outputs that a layer takes when PyTorch builds it."""
        return sum(self.uniform.outputs(tensor.numel()) for tensor in layer.parameters.values())

    def built(self, layer: TrainedLayer) -> set[int]:
        """Where the layer was built, if the hypothesis is about the building, or about what came right behind it."""
        sizes = [self.size(one) for one in self.network.layers]
        here, there = sum(sizes[: self.network.layers.index(layer)]), sum(sizes[: self.hypothesis.layer])
        place = self.hypothesis.place
        return {place - there + here, place - there + here - sum(sizes), place - there + here + sum(sizes)}

    def lengths(self, layer: TrainedLayer) -> set[int]:
        """How many outputs the layer can have taken: without its bias, or with it, uniform or as its weights."""
        bias = 0 if layer.bias is None else layer.bias.numel()
        rows = [self.places[layer.weight_name][1]] if layer.weight_name in self.places else self.kin
        return {
            row.outputs(layer.weight.numel()) + more
            for row in rows
            for more in {0, self.uniform.outputs(bias), row.outputs(bias) if bias else 0}
        }

    def ends(self, layer: TrainedLayer, starts: set[int]) -> set[int]:
        """Where the layer behind this one can begin."""
        if layer.weight_name in self.places:
            return {self.places[layer.weight_name][0] + used for used in self.lengths(layer)}
        return {start + self.size(layer) for start in starts} | starts

    def bias(self, layer: TrainedLayer) -> None:
        """The same for its bias: behind the weights, or where the layer was built."""
        if layer.bias is None:
            return
        places = {place + self.uniform.outputs(layer.weight.numel()) for place in self.built(layer)}
        if layer.weight_name in self.places:
            place, row = self.places[layer.weight_name]
            places.add(place + row.outputs(layer.weight.numel()))
        self.look(layer.bias_name, places, self.kin)

    def look_anywhere(self, layers: list[TrainedLayer]) -> None:
        """Looks for layers' weights at every place within REACH of what is found."""
        found = [place for place, _ in self.places.values()]
        largest = max(self.uniform.outputs(tensor.numel()) for tensor in self.network.parameters.values())
        first, last = max(0, min(found) - REACH), max(found) + largest + REACH
        values = _values(self.stream, first, last - first, self.uniform)
        for layer in layers:
            for row in self.kin:
                scores = _scores(values, layer.weight, row)
                self.tests += len(scores)
                place = int(scores.argmax()) if len(scores) else 0
                if len(scores) and log10_p(float(scores[place]), len(scores)) < LOG10_FOUND:
                    self.look(layer.weight_name, {first + place}, [row])

    def look(self, name: str, places: set[int], rows: list[Distribution]) -> None:
        """Keeps the best of a few places for a parameter, if it can be told from chance."""
        trained = self.network.parameters[name].flatten()[:PROBE]
        candidates = [(place, row) for place in sorted(places) if place >= 0 for row in rows]
        scores = [
            z_score(trained, row.draw(trained.numel(), self.stream.generator(place)), row) for place, row in candidates
        ]
        self.tests += len(scores)
        best = max(scores, default=0.0)
        if log10_p(best, len(scores)) < LOG10_MATCHES:
            self.places[name] = candidates[scores.index(best)]
        self.best_z = max(self.best_z, best)


def _values(stream: Stream, first: int, count: int, uniform: Distribution) -> NDArray[np.float32]:
    """Outputs first .. first + count of a stream as the first bits of a uniform draw see them, in [-1, 1)."""
    values = stream.uniform(first, count)
    if uniform.stride == 1:
        return values
    fine = np.round((values.astype(np.float64) + 1) * 2**23).astype(np.int64)
    return ((fine & (2**21 - 1)) / 2.0**20 - 1).astype(np.float32)


def _scores(values: NDArray[np.float32], weights: Tensor, row: Distribution) -> NDArray[np.float32]:
    """z of the weights at each place of these outputs, by FFT."""
    from scipy.signal import oaconvolve  # noqa: PLC0415

    wanted = pattern(weights, row, min(PROBE, row.outputs(weights.numel())))
    if not len(wanted.offsets):
        return np.zeros(0, np.float32)
    total = np.zeros(1, np.float32)
    for sines in (False, True):
        chosen = wanted.sines == sines
        if not chosen.any():
            continue
        kernel = np.zeros(int(wanted.offsets.max()) + 1, np.float32)
        kernel[wanted.offsets[chosen]] = wanted.weights[chosen]
        total = total + oaconvolve(angles(values, sines) if row.normal else values, kernel[::-1], mode="valid")
    return total


def angles(values: NDArray[np.float32], sines: bool) -> NDArray[np.float32]:
    """Cosine or sine of the angle 2 pi u that an output means to a normal draw, by the parabola that kernels use."""
    turn = values / 2
    turn = turn if sines else np.float32(0.25) - np.abs(turn)
    sine = 16 * turn * np.abs(turn) - 8 * turn
    return sine.astype(np.float32)


def _collected(drawn: _Drawn) -> Replay:
    places = dict(drawn.places)
    places |= _implied(drawn)
    rules = fitting_rules(drawn.network, drawn.stream, places)
    evidence, initial, spans = [], {}, []
    for layer in drawn.network.layers:
        for name, trained in layer.parameters.items():
            if name not in places:
                evidence.append(Evidence(parameter=name, verdict="unknown"))
                continue
            place, row = places[name]
            scale, rule = rules[name]
            initial[name] = draw(row, scale, trained.shape, drawn.stream.generator(place))
            correlation, exact, retained = compare(trained, initial[name])
            evidence.append(
                Evidence(
                    parameter=name,
                    verdict="matches" if name in drawn.places else "implied",
                    correlation=correlation,
                    z=z_score(trained, initial[name].double() / scale, row),
                    exact=exact,
                    retained=retained,
                    place=place,
                    distribution=row.name,
                    initialisation=rule,
                )
            )
            spans.append((place, place + row.outputs(trained.numel())))
    return Replay(
        stream=drawn.stream,
        initial=initial,
        evidence=tuple(evidence),
        place=min((start for start, _ in spans), default=drawn.hypothesis.place),
        end=max((end for _, end in spans), default=drawn.hypothesis.place),
        tests=drawn.tests,
    )


def _implied(drawn: _Drawn) -> dict[str, Place]:
    """The places of biases that are too short to show them: between their weights and the next layer's in the stream.

    The last layer's bias follows the others: it is taken for drawn if each of theirs was.
    """
    layers = [layer for layer in drawn.network.layers if layer.weight_name in drawn.places]
    starts = {layer.weight_name: drawn.places[layer.weight_name][0] for layer in layers}
    ends = {
        name: start + drawn.places[name][1].outputs(drawn.network.parameters[name].numel())
        for name, start in starts.items()
    }
    layers.sort(key=lambda layer: starts[layer.weight_name])
    gaps = {
        layer.bias_name: starts[after.weight_name] - ends[layer.weight_name]
        == drawn.uniform.outputs(layer.bias.numel())
        for layer, after in pairwise(layers)
        if layer.bias is not None
    }
    last = {layer.bias_name: True for layer in layers[-1:] if layer.bias is not None and gaps and all(gaps.values())}
    return {
        layer.bias_name: (ends[layer.weight_name], drawn.uniform)
        for layer in layers
        if layer.bias_name not in drawn.places and {**gaps, **last}.get(layer.bias_name)
    }
