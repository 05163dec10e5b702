"""Where an interrupted reconstruction goes on: all that the next steps of its searches depend on, as tensors."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attack.search import Iterate, Search
from exhume.candidates import HistoryPoint
from exhume.errors import InputError


class OtherState(InputError):
    """What was kept of an interrupted reconstruction cannot be gone on from here."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionState:
    """A reconstruction after `steps` steps; going on from it gives the same numbers as never having stopped.

    searches: what `search_state` gives of each; iterates: the last candidates of each that were finite; generator: the
    state of the one that drew the first guesses; histories: of each search.
    """

    steps: int
    searches: list[dict[str, Tensor]]
    iterates: list[Iterate]
    generator: Tensor
    histories: list[list[HistoryPoint]]


def search_state(search: Search) -> dict[str, Tensor]:
    """Copies of what a search's next steps depend on, by name: its own, its variables, their optimisers, their rates.

    The copies keep the order in memory, on which the last bits of a product depend.
    """
    state = {f"own {name}": tensor for name, tensor in search.state().items()}
    for number, optimiser in enumerate(search.optimisers):
        for place, group in enumerate(optimiser.param_groups):
            state[f"rate {number} {place}"] = torch.as_tensor(group["lr"], dtype=torch.float64)
            for which, variable in enumerate(group["params"]):
                at = f"{number} {place} {which}"
                state[f"variable {at}"] = variable
                kept = optimiser.state[variable].items()
                state |= {f"kept {at} {name}": value for name, value in kept if isinstance(value, Tensor)}
    for number, schedule in enumerate(search.schedules):
        state[f"schedule {number}"] = torch.tensor([schedule.last_epoch, schedule._step_count])
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def restore_search(search: Search, state: Mapping[str, Tensor]) -> None:
    """Takes a search that has just begun to where `search_state` saw it.

    Raises:
        OtherState: the state is of another search, or of the same one on a machine that rounds differently.
    """
    try:
        _restore(search, state)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, OtherState):
            raise
        raise OtherState(f"The state is that of another search ({str(error).partition(chr(10))[0]}).") from None


def _restore(search: Search, state: Mapping[str, Tensor]) -> None:
    search.restore({name.removeprefix("own "): tensor for name, tensor in state.items() if name.startswith("own ")})
    with torch.no_grad():
        for number, optimiser in enumerate(search.optimisers):
            for place, group in enumerate(optimiser.param_groups):
                rate = state[f"rate {number} {place}"]
                group["lr"] = group["lr"].copy_(rate) if isinstance(group["lr"], Tensor) else rate.item()
                for which, variable in enumerate(group["params"]):
                    variable.copy_(state[f"variable {number} {place} {which}"])
                    prefix = f"kept {number} {place} {which} "
                    for name, tensor in state.items():
                        if name.startswith(prefix):
                            optimiser.state[variable][name.removeprefix(prefix)] = tensor.clone().to(variable.device)
    for number, schedule in enumerate(search.schedules):
        last_epoch, count = state[f"schedule {number}"].tolist()
        schedule.load_state_dict({"last_epoch": last_epoch, "_step_count": count})


def digest(tensors: Sequence[Tensor]) -> Tensor:
    """A digest of what a search must find again exactly as it was, 32 bytes."""
    digests = hashlib.sha256()
    for tensor in tensors:
        digests.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digests.digest()), dtype=torch.uint8)
