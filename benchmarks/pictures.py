"""Pictures that are no row of the benchmark: does the method do as well on them, with nothing set?

    python -m benchmarks.pictures
    python -m benchmarks.pictures shapes letters --seed 1

Each set has 100 training images of 28 x 28 (tiles in colour: 32 x 32) and as many held-out ones, made by this file. Two
networks are trained on it: from a small initialisation with full batches, and as people do it, by SGD in batches from
PyTorch's initialisation, which is then known. Both are attacked with default settings. The weight of total variation
was chosen on shapes, letters, textures and grey digits; clouds and tiles in colour were only looked at afterwards.
"""

from collections.abc import Callable

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tyro.conf import Positional

from benchmarks.ordinary import CONFIDENT, Ordinary, mlp, sgd, trained
from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.audit.matching import match
from exhume.audit.scores import score
from exhume.candidates import Candidates
from exhume.defence.training import TrainingConfig, train
from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection, load_problem
from exhume.runs.tables import table_markdown

COUNT, SIDE, CLASSES = 100, 28, 10
Pictures = NDArray[np.float64]
Random = np.random.Generator


def shapes(random: Random, kind: int) -> Pictures:
    """A textured ellipse, bar, lozenge, triangle or ring somewhere on a plain ground: stripes or blocks."""
    down, across = np.mgrid[:SIDE, :SIDE] - random.uniform(9, 19, 2)[:, None, None]
    wide, high, turn = *random.uniform(5, 10, 2), random.uniform(0, np.pi)
    u = (across * np.cos(turn) + down * np.sin(turn)) / wide
    v = (down * np.cos(turn) - across * np.sin(turn)) / high
    round_ = u**2 + v**2
    inside = (
        round_ < 1,
        (abs(u) < 1) & (abs(v) < 1),
        abs(u) + abs(v) < 1,
        (abs(v) < 1) & (abs(u) < (v + 1) / 2),
        (round_ < 1) & (round_ > 0.3),
    )[kind % 5]
    stripes = 0.35 + 0.3 * random.uniform(0.3, 1) * np.sin(2 * np.pi * (u * random.uniform(1, 3) + random.uniform()))
    blocks = np.kron(0.35 + 0.15 * random.normal(size=(SIDE // 4, SIDE // 4)), np.ones((4, 4)))
    picture = np.where(inside, (stripes, blocks)[kind // 5], random.uniform(0.55, 0.9))
    return picture + 0.01 * random.normal(size=picture.shape)


def letters(random: Random, kind: int) -> Pictures:
    """A letter in one of Matplotlib's fonts, dark grey on light grey, with a scan's noise."""
    from pathlib import Path  # noqa: PLC0415

    import matplotlib as mpl  # noqa: PLC0415
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415

    fonts = sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf"))
    font = ImageFont.truetype(str(fonts[random.integers(len(fonts))]), int(random.integers(14, 24)))
    page = Image.new("L", (SIDE, SIDE), int(random.uniform(150, 240)))
    corner = (int(random.integers(2, 10)), int(random.integers(0, 6)))
    ImageDraw.Draw(page).text(corner, "ABCDEFGHIJ"[kind], fill=int(random.uniform(10, 90)), font=font)
    return np.asarray(page, np.float64) / 255 + 0.01 * random.normal(size=(SIDE, SIDE))


def textures(random: Random, kind: int) -> Pictures:
    """A tile of brick, grass, gravel (scikit-image) or of noise whose amplitude falls with its frequency."""
    from skimage import data  # noqa: PLC0415

    photographed = (data.brick, data.grass, data.gravel)
    if kind < len(photographed):
        return tile(random, photographed[kind](), SIDE)  # type: ignore[no-untyped-call]
    frequencies = np.fft.fftfreq(SIDE)
    fall = np.maximum(np.hypot(frequencies[:, None], frequencies), frequencies[1]) ** (0.4 + 0.2 * (kind - 2))
    noise = np.fft.ifft2(np.fft.fft2(random.normal(size=(SIDE, SIDE))) / fall).real
    result: Pictures = 0.5 + 0.2 * (noise - noise.mean()) / noise.std()
    return result


def tiles_in_colour(random: Random, kind: int) -> Pictures:
    """A tile, 3 x 32 x 32, of one of scikit-image's photographs."""
    from skimage import data  # noqa: PLC0415

    photographs = (data.astronaut, data.coffee, data.chelsea, data.rocket, data.immunohistochemistry)
    return tile(random, photographs[kind % 5](), 32).transpose(2, 0, 1)  # type: ignore[no-untyped-call]


def tile(random: Random, picture: NDArray[np.uint8], side: int) -> Pictures:
    top, left = (int(random.integers(0, size - side)) for size in picture.shape[:2])
    return picture[top : top + side, left : left + side].astype(np.float64) / 255


MADE: dict[str, Callable[[Random, int], Pictures]] = {
    "shapes": shapes,
    "letters": letters,
    "textures": textures,
    "tiles-in-colour": tiles_in_colour,
}
"""How a picture of a class is made."""


def grey_digits(digits: Tensor, _: torch.Generator) -> Tensor:
    return 0.35 + 0.35 * digits


def digits_on_clouds(digits: Tensor, random: torch.Generator) -> Tensor:
    coarse = torch.rand(len(digits), 1, 7, 7, generator=random)
    clouds = 0.3 + 0.4 * functional.interpolate(coarse, size=digits.shape[2:], mode="bilinear")
    return clouds * (1 - digits) + 0.9 * digits


FROM_DIGITS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "grey-digits": grey_digits,
    "digits-on-clouds": digits_on_clouds,
}
"""What is made of the installed digits."""
SETS = (*MADE, *FROM_DIGITS)


def pictures(name: str, seed: int) -> Problem:
    """The set of this name, of ten classes."""
    if name in FROM_DIGITS:
        digits = load_problem("mnist-digits", Selection(per_class=COUNT // CLASSES, data_dir="installed"))
        generator = torch.Generator().manual_seed(seed)
        parts = {
            part: FROM_DIGITS[name](images, generator)
            for part, images in (("images", digits.images), ("held_out", digits.held_out))
        }
        labels, held_out_labels = digits.labels, digits.held_out_labels
    else:
        random = np.random.default_rng(seed)
        made = [MADE[name](random, place % CLASSES) for place in range(2 * COUNT)]
        images = torch.from_numpy(np.stack(made)).float().clamp(0, 1).reshape(2 * COUNT, -1, *made[0].shape[-2:])
        parts = {"images": images[:COUNT], "held_out": images[COUNT:]}
        labels = held_out_labels = torch.arange(COUNT) % CLASSES
    return Problem(
        name=name,
        task="multiclass",
        classes=tuple(map(str, range(CLASSES))),
        source="made by benchmarks/pictures.py",
        labels=labels,
        held_out_labels=held_out_labels,
        network=NetworkConfig(widths=(500, 500)),
        **parts,
    )


def main(
    names: Positional[tuple[str, ...]] = (),
    /,
    seed: int = 0,
    epochs: int = 2000,
    steps: int = 1000,
    smoothness: float | None = None,
) -> None:
    """Trains two networks on each set, attacks them, and prints a line for each.

    Args:
        names: sets; none: all.
        seed: of the pictures, the networks and the attacks.
        epochs: of the training from a small initialisation; the other has 60.
        steps: of each search.
        smoothness: weight of total variation; none: as the weights choose it.
    """
    unknown = [name for name in names if name not in SETS]
    if unknown:
        raise SystemExit(f"There is no set {unknown[0]}; there are {', '.join(SETS)}.")
    for number, name in enumerate(names or SETS):
        lines = measured(pictures(name, seed), Exhume(seed=seed, steps=steps, smoothness=smoothness), epochs)
        print(*table_markdown(lines).splitlines()[2 if number else 0 :], sep="\n", flush=True)


def measured(problem: Problem, method: Exhume, epochs: int) -> list[dict[str, str]]:
    """One line for each of the two networks."""
    rate = 0.1 if problem.images.shape[1] == 3 else 0.5
    config = TrainingConfig(loss="ce", lr=rate, epochs=epochs, seed=method.seed)
    small = reconstruct(train(problem, config).checkpoint, method)
    torch.manual_seed(method.seed)
    row = Ordinary(problem=problem.name, per_class=0, layers=mlp(300, 300), optimiser=sgd(0.05 * rate / 0.5), epochs=60)
    start, network, _ = trained(row, problem)
    known = attacked(network, start, problem, method)
    return [told(problem, "small initialisation", small), told(problem, "SGD in batches, start known", known)]


def attacked(network: nn.Module, start: nn.Module, problem: Problem, method: Exhume) -> Candidates:
    centre = problem.images.mean(0)
    return reconstruct(network, method, task=problem.task, centre=centre, initial=start)


def told(problem: Problem, training: str, found: Candidates) -> dict[str, str]:
    counts = score(found, problem.images, problem.labels, problem.held_out)
    sure = found.confidence >= CONFIDENT
    right = match(found, problem.images).similarity.amax(0)[sure] >= CONFIDENT
    return {
        "set": problem.name,
        "training": training,
        **{f"NCC >= {level}": f"{counts.recovered[level]} [{counts.null[level]}]" for level in ("0.9", "0.8", "0.7")},
        "sure, right": f"{int(sure.sum())}, {int(right.sum())}",
    }


if __name__ == "__main__":
    tyro.cli(main)
