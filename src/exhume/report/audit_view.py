"""What an audit adds to the page: the verdict, what to do, and what only the owner of the images can see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["leaks", "nothing found", "does not apply"]
Fate = Literal["found", "stays but not found", "does not stay", "outside the subspace"]
"""What became of a training image, from the worst for its owner to the best."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict, the sentence that gives it, and its reasons, a sentence each. The page's title follows it."""

    verdict: Verdict
    sentence: str
    reasons: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class LeakedImage:
    """A training image that came out.

    row: its place among the scored images (`ImageScore.index`), by which the page finds its pictures; name: its file,
    or where it stands in one; ncc: of its one-to-one candidate; confidence: of that candidate, None if it is not
    available; share: of the weights' squared norm that the image itself accounts for, None if unknown.
    """

    row: int
    name: str
    label: float
    ncc: float
    confidence: float | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerResidual:
    """How much of a layer is left unexplained, relative to the layer, by the best sum over given images.

    training: by the true images; held_out: by as many held-out ones; candidates: by what the search found. None: not
    computed.
    """

    layer: str
    training: float
    held_out: float | None = None
    candidates: float | None = None


@dataclass(frozen=True, kw_only=True)
class ImageFate:
    """What became of one training image.

    reachable: NCC of the image and its projection onto the subspace that is searched, which no search exceeds; stays:
    NCC of the image and where a search that began at it ended. None: not computed.
    """

    name: str
    label: float
    fate: Fate
    reachable: float | None = None
    stays: float | None = None


@dataclass(frozen=True, kw_only=True)
class OwnersView:
    """What the owner of the training images can see and no attacker can.

    held_out, held_out_stay: how many held-out images a search was begun at, and at how many it stayed: the control of
    `stays`; None: not computed.
    """

    residuals: Sequence[LayerResidual] = ()
    images: Sequence[ImageFate] = ()
    held_out: int | None = None
    held_out_stay: int | None = None


@dataclass(frozen=True, kw_only=True)
class MembershipSignal:
    """How well one signal tells training images from held-out ones.

    auc: area under the ROC curve, with its 95 % interval; tpr: true-positive rate at a false-positive rate of 1 %.
    """

    name: str
    auc: float
    auc_low: float
    auc_high: float
    tpr: float


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Whether an image was trained on, told from the weights by somebody who has the image already."""

    training: int
    held_out: int
    signals: Sequence[MembershipSignal]


@dataclass(frozen=True, kw_only=True)
class MeasuredDefence:
    """A variant of the training, retrained and attacked in the same way with the initial weights known.

    what: the variant in words; recovered, of `images`, and null, of `held_out`, at NCC 0.9; accuracy: on held-out
    images, in [0, 1]; epsilon: of differential privacy, None where there is none; message: why there are no figures.
    """

    name: str
    what: str
    recovered: int = 0
    images: int = 0
    null: int = 0
    held_out: int = 0
    accuracy: float = 0.0
    epsilon: float | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class AuditView:
    """What the page shows of an audit. A section is drawn only if its part is given.

        exhume.draw(run, AuditView(next_steps=["Do not publish these weights."]))

    next_steps: what the owner should do, a sentence each; leaked: the images that came out; defences: what variants of
    a training leak.
    """

    judgement: Judgement | None = None
    next_steps: Sequence[str] = ()
    leaked: Sequence[LeakedImage] = ()
    owner: OwnersView | None = None
    membership: Membership | None = None
    defences: Sequence[MeasuredDefence] = ()
