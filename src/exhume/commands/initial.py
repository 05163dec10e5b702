"""The value of --initial where it is a file: the weights that a training began with."""

from collections.abc import Callable
from pathlib import Path

from exhume.checkpoint import Checkpoint
from exhume.errors import InputError
from exhume.foreign import ForeignNetwork
from exhume.runs.start import with_weights


def initial_from(
    path: Path, trained: Checkpoint, model: str | None, read: Callable[[str, Path | None], ForeignNetwork]
) -> Checkpoint:
    """The trained network with its initial weights; a last layer that the file does not have counts as frozen.

    Args:
        model: where the trained network came from. Of a module (model.py:name) the file may have the names, or those of
            a plain file of weights, whose layers are then taken in their order.
        read: reads a network, of the module's weights where these are given.

    Raises:
        InputError: the file holds no such network.
    """
    tried: list[tuple[str, Path | None]] = [(str(path), None)]
    if model is not None and ".py:" in model:
        tried.insert(0, (model, path))
    errors = []
    for source, weights in tried:
        try:
            return with_weights(trained, read(source, weights).checkpoint.weights)
        except InputError as error:
            errors.append(error)
    raise errors[0]
