"""Checks the package's annotations while the tests run: the shapes (jaxtyping), and every other type (beartype)."""

from collections.abc import Callable
from typing import Any

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

OF_USERS = ("Network", "Problem", "Reconstruction", "Selection", "Sweep", "Training")
"""What users fill in: the package itself must say in a sentence what is wrong with it."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    if function.__qualname__ in [f"{name}.__init__" for name in OF_USERS]:
        return function
    decorated: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
    return decorated


install_import_hook("exhume", "conftest.checked")
torch.set_num_threads(1)  # tiny networks: threads only wait for each other
