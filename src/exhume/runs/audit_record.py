"""audit.json: the verdict on a network, what it rests on, and what only the owner of the images can see."""

from dataclasses import dataclass, field

from exhume.audit.counts import HEADLINE
from exhume.audit.membership import Membership
from exhume.audit.readability import Fate
from exhume.audit.verdict import Applicability, Judgement
from exhume.owner.examine import Explained
from exhume.owner.scaling import ScalingCheck
from exhume.records import Provenance
from exhume.runs.defences import DefenceRow
from exhume.runs.schema import ProblemRecord

EXPLAINED: dict[Explained, str] = {
    "weights": "the weights",
    "change": "what training added to the start",
    "momentum": "the momentum of the optimiser",
}
"""What images have to explain, in words."""


@dataclass(frozen=True, kw_only=True)
class AuditedImage:
    """What is known of one training image.

    index: its place among the scored images; name: its file, or its row of an array; label: None if unknown; fate: None
    if it did not come out and nothing more is known; ncc: of its one-to-one candidate, whose confidence is given where
    it is available; share: of the squared norm of what was explained (`OwnersView.of`) that the image itself accounts
    for; multiplier, margin: of the image; reachable: similarity of the image and its projection onto the subspace that
    is searched, the most that a search can reach; stays: similarity of the image and where a search that began at it
    ended. None: not computed.
    """

    index: int
    name: str
    label: float | None
    fate: Fate | None
    ncc: float
    confidence: float | None = None
    share: float | None = None
    multiplier: float | None = None
    margin: float | None = None
    reachable: float | None = None
    stays: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerResidual:
    """How much of a layer is left unexplained by the best sum over given images, relative to the layer.

    training: by the training images; held_out: by as many held-out ones; candidates: by what the search found. None:
    not computed.
    """

    layer: str
    training: float
    held_out: float | None = None
    candidates: float | None = None


@dataclass(frozen=True, kw_only=True)
class OwnersView:
    """What the owner of the training images can see and no attacker can.

    of: what the images had to explain; of weights and momentum the one where they stay the more plainly;
    residuals: the method's own, "all that is believed", first, then by layer; stay: of how many of the `training`
    images a search that begins there stays; held_out, held_out_stay: the same for held-out images, the control.
    """

    of: Explained = "weights"
    residuals: list[LayerResidual]
    training: int
    stay: int
    held_out: int = 0
    held_out_stay: int = 0


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """audit.json.

    truth: which images were audited; checkpoint: fingerprint of the network; notes: what was assumed when it was read;
    judgement: the verdict with its reasons; applies: what it rests on besides the counts in scores.json; next_steps:
    what to do, a sentence each; images: all training images; owner: None if the condition was not evaluated at them,
    for the reason in `not_examined`; membership: the best signal first, [] without held-out images, or where these are
    no control, for the reason in `no_membership`; defences: [] if they were not asked for; scaling: whether the network
    knows the images better if they are scaled otherwise, None where that was not looked at; start: whether the weights
    before training were known, "" where nobody looked.
    """

    truth: ProblemRecord
    checkpoint: str
    notes: list[str]
    judgement: Judgement
    applies: Applicability
    next_steps: list[str]
    images: list[AuditedImage]
    owner: OwnersView | None
    not_examined: str = ""
    membership: list[Membership] = field(default_factory=list)
    no_membership: str = ""
    defences: list[DefenceRow] = field(default_factory=list)
    scaling: ScalingCheck | None = None
    start: str = ""
    provenance: Provenance

    @property
    def leaked(self) -> list[AuditedImage]:
        """The images that came out, from the judgement's level on, the most alike first."""
        level = float(self.judgement.level)
        found = [image for image in self.images if image.fate == "found" or level <= image.ncc < float(HEADLINE)]
        return sorted(found, key=lambda image: -image.ncc)
