"""Where to compute."""

from typing import Literal

import torch

from exhume.errors import InputError

Device = Literal["auto", "cpu", "cuda"]


def choose_device(name: str) -> torch.device:
    """The device of that name; auto: a GPU where there is one.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no usable GPU here; use --device cpu.")
    return torch.device(name)


def fast_products(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 for float32 where the device multiplies it many times faster: GPUs, and CPUs with units for it.

    Only for conditions that hold nearly at best: bfloat16 rounds to a few thousandths.
    """
    if dtype != torch.float32:
        return dtype
    units = torch.cpu.get_capabilities()
    fast = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else units.get("amx_bf16", False) or units.get("avx512_bf16", False)
    )
    return torch.bfloat16 if fast else torch.float32
