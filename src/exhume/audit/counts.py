"""What is counted of a reconstruction: a record, each count beside its null."""

from dataclasses import dataclass, field

from exhume.audit.significance import Interval
from exhume.metrics import Measure

THRESHOLDS = ("0.7", "0.8", "0.9", "0.95")
"""Similarities at which recovered images are counted; 0.9 is the headline."""
HEADLINE = "0.9"
"""The threshold that the sentence begins with."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """How well training image `index` came out; label: None where it is not known.

    candidate: its one-to-one candidate, which `ncc` (agreement, for points), `ssim3`, `ssim11`, `l2`, `psnr` judge;
    nearest: its best candidate many-to-one. -1: there is none, the similarity is then -1 and the others None.
    SSIM is of the candidate stretched to [0, 1] (None for points), L2 and PSNR (dB) of the candidate clamped to [0, 1].
    """

    index: int
    label: float | None
    candidate: int
    ncc: float
    nearest: int
    nearest_ncc: float
    ssim3: float | None
    ssim11: float | None
    l2: float | None
    psnr: float | None


@dataclass(frozen=True, kw_only=True)
class Ssim:
    """The papers' measure: images whose nearest candidate (many-to-one) has an SSIM above 0.4.

    null_good: the same count for the held-out images; null_perfect: that of a perfect reconstruction (see `Scores`);
    top10: mean of the ten best, None where SSIM is not defined.
    """

    good: int
    null_good: int
    null_perfect: int
    top10: float | None
    window: int = 3


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall time of the stages before; None where it is not known."""

    train: float | None = None
    reconstruct: float | None = None


@dataclass(frozen=True, kw_only=True)
class Picked:
    """What an attacker without the data would have picked: the candidates of a confidence of at least 0.5.

    candidates: how many these are; expected: how many of them would be right by their confidence, its sum; right: how
    many are, that is resemble some training image (NCC >= 0.9, many-to-one); distinct: how many training images these
    show; null_right: how many resemble some held-out image as much (0 without held-out images).
    """

    candidates: int
    expected: float
    right: int
    distinct: int
    null_right: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many training images came out, and how many would have by chance: all of `Scores` that is a record.

    measure: "ncc", or "agreement" for points; images, held_out, candidates: how many were compared of each; given: how
    many held-out images there were, of which the control was taken (`control_rows`; None: not recorded); recovered:
    images whose one-to-one candidate reaches the similarity "0.7", "0.8", "0.9", "0.95"; null: the same counts for the
    held-out images, unscaled where they are fewer; null_perfect: what null would be if the training images themselves
    were the candidates: so many held-out images resemble them (null is to be read beside it; it is no bound);
    mean_alone: the counts if every candidate were the training mean, which the attacker is given; p_value: the chance
    of at least so many recovered at 0.9 if training and held-out images were equally easy (`count_tests`: Fisher's
    exact test, one-sided); p_values: the same at each threshold; p_least: the smallest that so many images can have.
    Where the classes of both are known, all tests compare within them.

    p_kind: the chance of such held-out images if they were of the same kind as the training images; kind_gap: how far
    the two kinds are apart; near: at each threshold, of the images that came out the share that would be held-out ones
    if an image came out for its kind alone (`compare_kinds`; without thresholds that no training image reached; empty
    in records of formats before 7);
    p_rank: that of `rank_test`, over all similarities; share: of the images recovered at 0.9, with its 95 % interval
    (Clopper-Pearson); difference: of that share and the held-out images' (Newcombe); distinct: images recovered at 0.9
    that do not resemble each other (NCC < 0.95); picked: what an attacker without the data would have picked.

    Without held-out images held_out and all null counts are 0, and what compares with them is None. Records of formats
    before 5 have no p_rank, p_kind and p_least, no intervals, no distinct and no picked: None.
    """

    problem: str
    measure: Measure
    images: int
    held_out: int
    candidates: int
    recovered: dict[str, int]
    null: dict[str, int]
    null_perfect: dict[str, int]
    mean_alone: dict[str, int]
    median_ncc: float
    null_median_ncc: float | None
    p_value: float | None
    p_values: dict[str, float] = field(default_factory=dict)
    p_least: float | None = None
    p_kind: float | None = None
    kind_gap: float | None = None
    near: dict[str, float] = field(default_factory=dict)
    p_rank: float | None = None
    share: Interval | None = None
    difference: Interval | None = None
    distinct: int | None = None
    picked: Picked | None = None
    ssim: Ssim
    per_image: list[ImageScore]
    seconds: Seconds
    given: int | None = None
