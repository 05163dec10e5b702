"""What an audit adds to the page: the verdict, what to do, and what only the owner of the images can see."""

from collections.abc import Sequence
from dataclasses import dataclass

from exhume.audit.membership import Membership as Measured
from exhume.audit.readability import Fate
from exhume.audit.verdict import Judgement
from exhume.runs.audit_record import AuditedImage, AuditRecord, LayerResidual
from exhume.runs.audit_record import OwnersView as Owners
from exhume.runs.defences import DefenceRow


@dataclass(frozen=True, kw_only=True)
class LeakedImage:
    """A training image that came out.

    row: its place among the scored images (`ImageScore.index`), by which the page finds its pictures; name: its file,
    or where it stands in one; ncc: of its one-to-one candidate; confidence: of that candidate, None if it is not
    available; share: of the weights' squared norm that the image itself accounts for, None if unknown.
    """

    row: int
    name: str
    label: float | None
    ncc: float
    confidence: float | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class ImageFate:
    """What became of one training image.

    reachable: NCC of the image and its projection onto the subspace that is searched, which no search exceeds; stays:
    NCC of the image and where a search that began at it ended. None: not computed.
    """

    name: str
    label: float | None
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
    defences: Sequence[DefenceRow] = ()


def view_of(record: AuditRecord) -> AuditView:
    """What the page shows of audit.json."""
    return AuditView(
        judgement=record.judgement,
        next_steps=record.next_steps,
        leaked=[
            LeakedImage(
                row=image.index,
                name=image.name,
                label=image.label,
                ncc=image.ncc,
                confidence=image.confidence,
                share=image.share,
            )
            for image in record.leaked
        ],
        owner=None if record.owner is None else _owner(record.owner, record.images),
        membership=_membership(record.membership),
        defences=record.defences,
    )


def _owner(owner: Owners, images: Sequence[AuditedImage]) -> OwnersView:
    return OwnersView(
        residuals=owner.residuals,
        images=[
            ImageFate(name=image.name, label=image.label, fate=image.fate, reachable=image.inside, stays=image.stays)
            for image in images
            if image.fate is not None
        ],
        held_out=owner.held_out or None,
        held_out_stay=owner.held_out_stay if owner.held_out else None,
    )


def _membership(measured: Sequence[Measured]) -> Membership | None:
    if not measured:
        return None
    signals = [
        MembershipSignal(
            name=one.signal,
            auc=one.auc,
            auc_low=one.auc_interval.low,
            auc_high=one.auc_interval.high,
            tpr=one.true_positives,
        )
        for one in measured
    ]
    return Membership(training=measured[0].members, held_out=measured[0].others, signals=signals)
