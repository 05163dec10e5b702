"""The orthogonalised steps: against PyTorch's own, and in the precision that is asked for."""

import pytest
import torch
from torch import Tensor

from exhume.attack.muon import Muon, orthogonalised
from victims import generator


def slope_of(images: Tensor) -> Tensor:
    return (images - 1).pow(3).abs().sum()


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_bf16"), reason="PyTorch's rounds to bfloat16 always")
@pytest.mark.parametrize("shape", [(30, 50), (80, 20)], ids=["wide", "tall"])
def test_steps_are_pytorchs_to_the_last_bit(shape: tuple[int, int]) -> None:
    ours, theirs = (torch.randn(shape, generator=generator()).requires_grad_() for _ in range(2))
    settings = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw", "eps": 1e-30}
    optimisers = [Muon([ours], lr=0.3, momentum=0.9), torch.optim.Muon([theirs], lr=0.3, momentum=0.9, **settings)]
    schedules = [torch.optim.lr_scheduler.LinearLR(one, 1.0, 0.02, total_iters=20) for one in optimisers]
    for _ in range(20):
        for images, optimiser, schedule in zip((ours, theirs), optimisers, schedules, strict=True):
            optimiser.zero_grad()
            slope_of(images).backward()
            optimiser.step()
            schedule.step()
    assert torch.equal(ours, theirs)
    assert slope_of(ours) < 0.5 * slope_of(torch.randn(shape, generator=generator()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(12, 40), (40, 12)], ids=["wide", "tall"])
def test_singular_values_become_one_nearly_and_directions_stay(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The limits are those of five iterations (Jordan et al. 2024), for a matrix of condition number 20."""
    left, _, right = torch.linalg.svd(
        torch.randn(shape, generator=generator(), dtype=torch.float64), full_matrices=False
    )
    matrix = ((left * torch.linspace(1, 0.05, 12)) @ right).to(dtype)
    found = orthogonalised(matrix).double()
    values = (left.T @ found @ right.T).diagonal()
    assert values.min() > 0.6 and values.max() < 1.3
    rest = found - (left * values) @ right
    assert rest.norm() < (1e-12 if dtype == torch.float64 else 0.1) * found.norm()
