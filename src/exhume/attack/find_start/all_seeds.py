"""Every seed there is: 2^32 streams, each compared with the first weights at one place."""

import hashlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exhume.attack.find_start.attempt import Attempt, Context, StartSearch, Sweep, side_by_side
from exhume.attack.find_start.draws import Distribution, Question, pattern, question
from exhume.attack.find_start.evidence import z_score
from exhume.attack.find_start.layers import TrainedNetwork
from exhume.attack.find_start.replay import PROBE, Hypothesis
from exhume.attack.find_start.stream import Stream
from exhume.errors import InputError
from exhume.progress import Progress

FIRST = {"cpu": (64, 2.75), "gpu": (128, 3.5)}
"""Weights of the first test and the z that it asks for; ordinary training leaves the right seed 3.3 to 8 of 64."""
OUTPUTS, SECOND_Z = 500, 4.75
"""The second test of the 3 in 1,000 that pass it: so many outputs, at which ordinary training leaves 9 to 20."""
BEST = 32
"""So many seeds at most are left after the third test, with up to PROBE weights."""
CHUNK = 2**23
"""Seeds between two reports of progress, for each core."""
MOST = 1 << 16
"""Seeds of a chunk that may pass the first test."""
SHORT_PATH = 227
"""Where place and pattern end before this output, two stretches of the seeded state are enough (kernels.sweep)."""

Scan = Callable[[tuple[int, int]], list[tuple[int, float]]]
"""(first seed, end) to (seed, z) of the seeds that pass the first two tests."""


def search(network: TrainedNetwork, settings: StartSearch, context: Context) -> Attempt:
    """Sweeps all seeds from `first_seed` to `last_seed` at the place `offset`, and ranks what is left by more weights.

    Raises:
        InputError: there is no such device, or `resume` belongs to another search.
    """
    row = settings.rows[0]
    line, own = _line(network, row)
    digest = sweep_digest(network, settings)
    done, survivors = settings.first_seed, list[tuple[int, float]]()
    if context.resume is not None:
        if context.resume.digest != digest:
            raise InputError("The sweep to go on with belongs to other weights, or to another offset.")
        done, survivors = max(done, context.resume.done), list(context.resume.survivors)
    scan, workers = scanner(line, row, settings)
    began, first, end = time.monotonic(), done, settings.last_seed + 1
    for (_, done), found in side_by_side(scan, _chunks(first, end, settings.device), workers):
        survivors += found
        context.keep(Sweep(digest=digest, done=done, survivors=tuple(survivors)))
        seconds = (time.monotonic() - began) * (end - done) / (done - first)
        values = {"seconds_left": seconds, "passed": float(len(survivors))}
        step = Progress(
            stage="all seeds", step=done - settings.first_seed, total=end - settings.first_seed, values=values
        )
        context.progress_callback(step)
    ranked = sorted(
        (_third_test(line, own, row, Stream(seed=seed), settings.offset) for seed, _ in survivors), key=lambda h: -h.z
    )
    count = end - settings.first_seed
    before = f"{settings.offset:,} outputs drawn before the network"
    said = f"{count:,} of {2**32:,} seeds ({row.name} draws only) with {before}"
    return Attempt(trials=count, said=said, hypotheses=tuple(ranked[:BEST]))


def sweep_digest(network: TrainedNetwork, settings: StartSearch) -> str:
    """Of what a sweep compares: weights, distribution, offset and first seed. Only a sweep of the same one goes on."""
    row = settings.rows[0]
    asked = f"{row.name} {settings.offset} {settings.first_seed}".encode()
    return hashlib.sha256(asked + _line(network, row)[0].numpy().tobytes()).hexdigest()[:16]


def scanner(line: Tensor, row: Distribution, settings: StartSearch) -> tuple[Scan, int]:
    """The first two tests on the device that is asked for, and how many may run side by side.

    Raises:
        InputError: there is no such device, or the offset is too large for a GPU.
    """
    from exhume.attack.find_start import kernels  # noqa: PLC0415

    count, least = FIRST["cpu" if settings.device == "cpu" else "gpu"]
    first = question(pattern(line, row, PROBE).first(count), place=settings.offset, least=least)
    second = question(pattern(line, row, OUTPUTS), place=settings.offset, least=SECOND_Z)
    sweep = _sweep_cpu(first) if settings.device == "cpu" else _sweep_gpu(first, settings.device)

    def scan(chunk: tuple[int, int]) -> list[tuple[int, float]]:
        seeds = sweep(chunk[0], chunk[1] - chunk[0])
        scores = kernels.score(seeds, *_arguments(second))
        passed = scores > second.least
        return list(zip(seeds[passed].tolist(), scores[passed].tolist(), strict=True))

    return scan, settings.cores if settings.device == "cpu" else 1


def _arguments(asked: Question) -> tuple[int, int, int, NDArray[np.float32], NDArray[np.float32]]:
    """A question as the kernels take it."""
    return asked.place, int(asked.normal), asked.bits, asked.cosine, asked.sine


def _sweep_cpu(asked: Question) -> Callable[[int, int], NDArray[np.int64]]:
    from exhume.attack.find_start import kernels  # noqa: PLC0415

    kernel = kernels.sweep if asked.place + len(asked.cosine) <= SHORT_PATH else kernels.sweep_far

    def sweep(first: int, count: int) -> NDArray[np.int64]:
        seeds, scores = np.empty(MOST, np.int64), np.empty(MOST, np.float32)
        found = kernel(first, count, *_arguments(asked), np.float32(asked.least), seeds, scores)
        return seeds[: min(found, MOST)]

    return sweep


def _sweep_gpu(asked: Question, device: str) -> Callable[[int, int], NDArray[np.int64]]:
    from exhume.attack.find_start import sweep_gpu  # noqa: PLC0415

    if asked.place + len(asked.cosine) > SHORT_PATH:
        raise InputError(f"On a GPU the offset must be at most {max(0, SHORT_PATH - len(asked.cosine))}.")
    return sweep_gpu.scanner(device, asked)


def _chunks(first: int, end: int, device: str) -> Iterator[tuple[int, int]]:
    size = CHUNK if device == "cpu" else CHUNK * 16
    for start in range(first, end, size):
        yield start, min(start + size, end)


def _line(network: TrainedNetwork, row: Distribution) -> tuple[Tensor, int]:
    """The first PROBE weights in the order in which PyTorch builds layers, of one size in all; biases are 0.

    The second number tells how many of them are the first layer's. Biases are drawn too, but little is left of them.
    Of normal draws it is the first layer's weights alone: where the next begins depends on how biases were made.
    """
    parts, count = [], 0
    for layer in network.layers[:1] if row.normal else network.layers:
        for name, values in layer.parameters.items():
            flat = values.flatten()[:PROBE].double()
            weighed = flat / flat.pow(2).mean().sqrt().clamp_min(1e-300)
            parts.append(weighed if name == layer.weight_name else torch.zeros_like(weighed))
            count += len(flat)
        if count >= PROBE:
            break
    return torch.cat(parts)[:PROBE], len(parts[0])


def _third_test(line: Tensor, own: int, row: Distribution, stream: Stream, place: int) -> Hypothesis:
    """z of up to PROBE weights, of the first layer's alone or of all: a later layer may have been drawn elsewhere."""
    values = row.draw(len(line), stream.generator(place))
    z = max(z_score(line[:own], values[:own], row), z_score(line, values, row))
    return Hypothesis(stream=stream, layer=0, place=place, distribution=row, z=z)
