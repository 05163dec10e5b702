"""What an optimiser keeps beside the weights in a training checkpoint: its momentum, a sum of the last gradients."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from exhume.checkpoint import Checkpoint
from exhume.foreign.files import read_content

KEYS = ("optimizer_state_dict", "optimizer", "optimizer_states", "optimiser_state_dict", "optimiser", "optim", "opt")
"""Keys under which training scripts save the optimiser's state; Lightning a list of states."""
MOMENTA = ("exp_avg", "momentum_buffer")
"""Names of the momentum: of Adam and its kin, of SGD."""
DECOUPLED = "decoupled_weight_decay"
"""The setting of an optimiser whose decay is no part of its gradients, as AdamW's."""
ADAMW_DECAY = 0.01
"""PyTorch's default decay of AdamW; that of Adam is 0."""


def read_momentum(path: Path, checkpoint: Checkpoint) -> dict[str, Tensor] | None:
    """The momentum of each parameter, by the names of `checkpoint`, without what weight decay added to it.

    The sum of the last gradients, the latest with the most weight: sum_k beta^k g_{t-k} for SGD, (1 - beta) times that
    for Adam. PyTorch adds decay x weight to a gradient, which leaves decay x weight / (1 - beta), or decay x weight, in
    the sum. The weights hardly move within so few steps, so that is taken out again.

        network = exhume.read_network("epoch-30.ckpt", shape=(1, 28, 28))  # takes the momentum along
        momentum = exhume.read_momentum(Path("epoch-30.ckpt"), network.checkpoint)

    Returns:
        None: the file holds no such state, or one of other parameters than the checkpoint's.

    Raises:
        InputError: the file cannot be read.
    """
    content = read_content(path)
    parameters = checkpoint.parameters
    for state in _states(content):
        found = _momentum(state, parameters)
        if found is not None:
            return found
    return None


def _states(content: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(content, Mapping):
        return
    for key in KEYS:
        value = content.get(key)
        for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if isinstance(one, Mapping) and isinstance(one.get("state"), Mapping) and one.get("param_groups"):
                yield one


def _momentum(state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The momentum by name, where the optimiser's parameters are the network's, in their order."""
    groups = [group for group in state["param_groups"] if isinstance(group, Mapping)]
    rows = [(number, group) for group in groups for number in group.get("params", ())]
    if len(rows) != len(parameters):
        return None
    found = {}
    for (name, parameter), (number, group) in zip(
        parameters.items(), sorted(rows, key=lambda row: row[0]), strict=True
    ):
        kept = state["state"].get(number, {})
        momentum = next((kept[key] for key in MOMENTA if isinstance(kept.get(key), Tensor)), None)
        if momentum is None:
            continue  # it was frozen
        if momentum.shape != parameter.shape or not momentum.isfinite().all():
            return None
        found[name] = momentum.to(parameter) - _decay(group, adam="exp_avg" in kept) * parameter
    return found or None


def _decay(group: Mapping[str, Any], *, adam: bool) -> float:
    """How many times the weight is in the momentum."""
    decay = float(group.get("weight_decay") or 0.0)
    if adam:
        # older versions do not say; there a decay of the default of AdamW is taken for AdamW's
        return 0.0 if group.get(DECOUPLED, decay == ADAMW_DECAY) else decay
    return decay * (1 - float(group.get("dampening") or 0.0)) / (1 - float(group.get("momentum") or 0.0))
