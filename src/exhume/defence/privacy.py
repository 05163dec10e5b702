"""DP-SGD: each image's gradient is clipped, and noise is added to their sum (Abadi et al. 2016), through opacus."""

from typing import Any

import torch
from torch import Tensor, nn

from exhume.errors import InputError


class PrivateSteps:
    """Takes the steps of an optimiser with the gradients of DP-SGD.

    A batch is a Poisson sample: each image is in it with the same chance, as the bound on epsilon assumes.

    Raises:
        InputError: opacus is not installed, or cannot take the gradients of this network image by image.
    """

    def __init__(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        noise: float,
        clip: float,
        batch_size: int,
        device: torch.device,
    ) -> None:
        opacus = _opacus()
        try:
            self.module: nn.Module = opacus.GradSampleModule(module)
        except (NotImplementedError, ValueError) as error:
            raise InputError(f"This network cannot be trained with DP-SGD: {error}") from None
        self.noise = torch.Generator(device)
        self.optimiser = opacus.optimizers.DPOptimizer(
            optimiser, noise_multiplier=noise, max_grad_norm=clip, expected_batch_size=batch_size, generator=self.noise
        )
        self.module.remove_hooks()

    def step(self, loss: Any, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """One step on a batch; loss: (scores, labels) -> scalar, the mean over the images.

        The noise is seeded from `generator`, whose state is all that a resumed training needs.
        """
        self.noise.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        self.module.add_hooks()  # type: ignore[operator]
        self.optimiser.zero_grad()
        # images that require a gradient: else PyTorch warns of a hook on a module whose input requires none
        loss(self.module(images.requires_grad_()), labels).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.module.remove_hooks()  # type: ignore[operator]


def epsilon(*, noise: float, rate: float, steps: int, delta: float) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after DP-SGD, by Rényi divergences (Mironov et al. 2019).

    Args:
        noise: standard deviation of the noise, relative to the norm that gradients are clipped to.
        rate: chance of an image to be in a batch.

    Raises:
        InputError: opacus is not installed.
    """
    accountant = _opacus().accountants.RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    return float(accountant.get_epsilon(delta=delta))


def _opacus() -> Any:
    try:
        import opacus  # noqa: PLC0415
    except ModuleNotFoundError:
        raise InputError('DP-SGD needs opacus: install exhume with the extra "dp".') from None
    return opacus
