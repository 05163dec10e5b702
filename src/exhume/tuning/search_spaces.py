"""Where to search for settings: the papers' ranges, and ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exhume.attack.methods import Exhume, Reference
from exhume.attack.search import Method

Setting = float | int | None


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Numbers from `low` to `high`, evenly in their logarithm if `log`."""

    low: float
    high: float
    log: bool = False

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float | int) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Space:
    """Which settings to search, by the names of the method's fields, and where: an interval or a choice.

    base: the method with its other settings, which flags may change; source: where the ranges come from.
    """

    ranges: Mapping[str, Interval | tuple[Setting, ...]]
    base: Method
    source: str


_PUBLISHED: dict[str, Interval | tuple[Setting, ...]] = {
    "init_scale": Interval(low=1e-6, high=0.1, log=True),
    "lr_images": Interval(low=1e-5, high=1.0, log=True),
    "min_multiplier": Interval(low=0.01, high=0.5),
    "sharpness": Interval(low=10.0, high=500.0),
}

SPACES: dict[str, Space] = {
    "exhume": Space(
        ranges={
            "lr_images": Interval(low=2e-3, high=0.1, log=True),
            "sharpness": Interval(low=3.0, high=100.0, log=True),
            "smoothness": (None, 0.0, 1e-6, 3e-6, 1e-5, 3e-5),
            "binary_prior": (None, 0.0, 2.0, 5.0, 10.0),
            "images": (None, 50, 100, 200, 500),
        },
        base=Exhume(restarts=1),
        source="ours; None is what is read from the weights",
    ),
    "published": Space(ranges=_PUBLISHED, base=Reference(), source="Haim et al. 2022, Buzaglo et al. 2023"),
    "published-multiclass": Space(
        ranges={**_PUBLISHED, "lr_multipliers": Interval(low=1e-5, high=1.0, log=True)},
        base=Reference(),
        source="the published ranges; that of lr_multipliers is ours, around the published winners",
    ),
}


def known_points(space: Space, method: Method, presets: Sequence[Method]) -> list[dict[str, Setting]]:
    """The points of the space that presets stand for, to be tried first; the method's own settings if no preset fits.

    A preset fits if its method is the space's and so is the learning rate of the multipliers, unless that is searched.
    A value outside of its range is left to the sampler.
    """
    fitting = [
        preset
        for preset in presets
        if type(preset) is type(method)
        and ("lr_multipliers" in space.ranges or _lr_multipliers(preset) == _lr_multipliers(method))
    ]
    return [
        {name: getattr(known, name) for name, values in space.ranges.items() if getattr(known, name) in values}
        for known in fitting or [method]
    ]


def _lr_multipliers(method: Method) -> float | None:
    return getattr(method, "lr_multipliers", None)
