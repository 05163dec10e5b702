"""Checks the package's annotations while the tests run: the shapes (jaxtyping), and every other type (beartype).

And what several files of tests need.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

OF_USERS = ("Exhume", "NetworkConfig", "Problem", "Reference", "Selection", "SweepConfig", "TrainingConfig")
"""What users fill in: the package itself must say in a sentence what is wrong with it."""
OF_TYRO = ("Reconstruct", "Search")
"""Commands whose defaults tyro completes: what must be given on the command line is its MISSING until then."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    if function.__qualname__ in [f"{name}.__init__" for name in (*OF_USERS, *OF_TYRO)]:
        return function
    decorated: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
    return decorated


@pytest.fixture(autouse=True)
def _start_is_looked_for_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that attack look for the start by the state alone; tests/test_start.py puts the other ways back."""
    monkeypatch.setattr("exhume.runs.start.ALWAYS", ("generator-state",))
    monkeypatch.setattr("exhume.runs.start.WHERE_NOISE_SHOWS", "generator-state")


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it: kernels of a GPU are interpreted
install_import_hook("exhume", "conftest.checked")
torch.set_num_threads(1)  # tiny networks: threads only wait for each other


@pytest.fixture(scope="session")
def noise_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with noise in place of the data sets that the presets train on."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    sizes = {"cifar10": (10, 1300, (32, 32, 3)), "cifar100": (100, 1200, (32, 32, 3)), "mnist": (10, 6000, (28, 28))}
    for name, (classes, count, shape) in sizes.items():
        images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", x_train=images, y_train=np.arange(count) % classes)
    return folder
