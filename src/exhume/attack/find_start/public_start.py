"""A public start: which of a number of networks was this one fine-tuned from?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from exhume.attack.find_start.evidence import LOG10_FOUND, Evidence, Verdict, compare, log10_p
from exhume.attack.find_start.layers import TrainedNetwork
from exhume.errors import InputError
from exhume.foreign.files import SUFFIXES, read_named_tensors

PublicNetworks = Mapping[str, nn.Module | Mapping[str, Tensor]]
"""Networks or their state dicts, by any name."""
LAST_IS_KEPT = 0.9
"""Correlation from which a last layer is the start's: one that was replaced and learned the same classes has 0.73."""


def read_candidates(folder: Path | str) -> dict[str, Mapping[str, Tensor]]:
    """The state dicts of a folder's files (.pt, .safetensors and so on), by file name; no code in them runs.

        outcome = exhume.find_start(network, among=exhume.read_candidates("public-models"))

    Raises:
        InputError: there is no such folder, no such file in it, or one cannot be read.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no network: no file ends in {', '.join(SUFFIXES)}.")
    return {path.name: read_state(path) for path in files}


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file of weights by name, as they are; no code in it is run.

    Raises:
        InputError: there is no such file, or it is no plain state dict.
    """
    return read_named_tensors(path)[0]


@dataclass(frozen=True, kw_only=True)
class PublicStart:
    """The candidate that fits best: its name, its values by parameter, the evidence, and how many were compared."""

    name: str
    initial: dict[str, Tensor]
    evidence: tuple[Evidence, ...]
    trials: int

    @property
    def log10_p(self) -> float:
        """The p-value of its best weight, corrected for all weights of all candidates."""
        return log10_p(max((row.z for row in self.evidence), default=0.0), self.trials)


def closest(network: TrainedNetwork, candidates: PublicNetworks) -> PublicStart:
    """The candidate whose neurons agree best with the network's, one by one.

    Raises:
        InputError: no candidate is given.
    """
    if not candidates:
        raise InputError("There is no network to compare with: `among` is empty.")
    tensors = {
        name: dict(one.named_parameters()) if isinstance(one, nn.Module) else dict(one)
        for name, one in candidates.items()
    }
    rows = {name: _evidence(network, initial) for name, initial in tensors.items()}
    best = max(rows, key=lambda name: max((row.z for row in rows[name]), default=0.0))
    return PublicStart(
        name=best,
        initial={
            row.parameter: tensors[best][row.parameter].detach() for row in rows[best] if row.verdict != "unknown"
        },
        evidence=rows[best],
        trials=len(network.layers) * len(candidates),
    )


def _evidence(network: TrainedNetwork, initial: Mapping[str, Tensor]) -> tuple[Evidence, ...]:
    """The evidence of each parameter; a bias follows its weight.

    The order of the last layer's neurons is the classes', whatever the start: it follows the layers before it.
    """
    rows: list[Evidence] = []
    for layer in network.layers:
        last, matches = layer is network.layers[-1], False
        related = any(row.verdict == "matches" for row in rows)
        for name, trained in layer.parameters.items():
            before = initial.get(name)
            if before is None or before.shape != trained.shape or not before.isfinite().all():
                rows.append(Evidence(parameter=name, verdict="unknown"))
                continue
            before = before.detach().cpu()
            correlation, exact, retained = compare(trained, before)
            verdict: Verdict = "implied" if matches else "unknown"
            z = 0.0
            if name == layer.weight_name:
                z = 0.0 if last else matrix_z(trained, before)
                shown = exact == 1 or log10_p(z, len(network.layers)) < LOG10_FOUND
                matches = shown or (last and related and correlation > LAST_IS_KEPT)
                verdict = "matches" if shown else "implied" if matches else "unknown"
            rows.append(
                Evidence(parameter=name, verdict=verdict, correlation=correlation, z=z, exact=exact, retained=retained)
            )
    return tuple(rows)


def matrix_z(trained: Tensor, initial: Tensor) -> float:
    """How far the agreement of two weights, [out, ...], exceeds that of the same weights with their neurons shuffled.

    Networks trained on the same data have columns alike, so correlation alone proves no kinship; the order of hidden
    neurons is the start's. Mean and variance of sum_i <w_i, v_pi(i)> over all permutations pi are known (Hoeffding
    1951); the p-value takes it for normal. Returns 0 for a single neuron.
    """
    products = trained.double().flatten(1) @ initial.double().flatten(1).T
    size = len(products)
    if size < 2:
        return 0.0
    centred = products - products.mean(0) - products.mean(1, keepdim=True) + products.mean()
    deviation = math.sqrt(float(centred.pow(2).sum()) / (size - 1))
    return float(centred.trace()) / deviation if deviation > 0 else 0.0
