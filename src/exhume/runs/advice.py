"""What the owner should do, in sentences."""

from collections.abc import Sequence

from exhume.audit.membership import Membership
from exhume.audit.significance import SIGNIFICANT
from exhume.audit.verdict import PLAINLY, Judgement
from exhume.foreign import ForeignNetwork
from exhume.owner.scaling import ScalingCheck, check_scaling
from exhume.problems.owned import OwnedImages
from exhume.runs.audit_record import OwnersView
from exhume.runs.schema import CandidatesRecord, ScoresRecord

WITHOUT_STATE = "The file holds the optimiser's state beside the weights{}: publish the weights alone."
"""What to do about a momentum, and why: images came out of it, or might."""
DEFEND = "`--defend` trains variants of the network on your images and shows which of them leak less."
ASK_FOR_SCALING = (
    "Was a mean subtracted from the images, or were they scaled? Nobody has said so: give `--mean` and `--std`, or "
    "`--mean 0` if not."
)
MORE_MAY_LEAK = (
    "Nobody has said whether training subtracted a mean or scaled the images. If it did, give `--mean` and `--std`: "
    "more of them may then come out."
)
MEMBERSHIP = (
    "The weights tell which images were trained on, though not what these show. If to know that someone's image was "
    "among them harms her, treat the weights as private."
)


def scaling_of(network: ForeignNetwork, mine: OwnedImages) -> ScalingCheck | None:
    """Whether the network knows the images better if they are scaled otherwise; None where that cannot be told.

    Not asked where the network itself says how they are scaled.
    """
    if network.scaling == "the network":
        return None
    return check_scaling(network.checkpoint, mine.images, mine.labels)


def scaling_hint(check: ScalingCheck | None) -> str:
    """One sentence where the network was plainly trained on images of another scaling; else ""."""
    return _known(check) if check is not None and check.is_plain else ""


def about_scaling(
    network: ForeignNetwork, check: ScalingCheck | None, *, plain: bool, untrained: bool = False
) -> list[str]:
    """What to ask the owner of the scaling of her images: where nobody said it, or it is plainly wrong."""
    if untrained:
        return []
    if check is not None and check.is_plain:
        said = " You have said how they are scaled: was it so in training?" if network.scaling == "the user" else ""
        return [_known(check) + said]
    if network.scaling != "nobody":
        return []
    if plain:
        return [MORE_MAY_LEAK]
    return [" ".join([ASK_FOR_SCALING, *([_known(check)] if check else [])])]


def _known(check: ScalingCheck) -> str:
    """How many images the network classifies rightly, and what would let it know more."""
    now = f"As it was read, the network classifies {check.right} of {check.images} of your images rightly"
    if check.best is None or check.p_value >= SIGNIFICANT:
        return f"{now}, and under no usual scaling plainly more."
    known = f"{now}, and {check.best.right} if they are taken {check.best.words}."
    return f"{known} If it was trained on these, try {check.best.flags}."


def next_steps(
    judgement: Judgement, scores: ScoresRecord, found: CandidatesRecord, *, untrained: bool = False
) -> list[str]:
    """What the owner should do, a sentence each."""
    steps = []
    if judgement.verdict == "leaks":
        steps.append("Treat the weights as you treat the training images: do not publish them, and limit who has them.")
        if scores.recovered[judgement.level] and judgement.strength != "traces":
            steps.append(_whom_to_tell(judgement, scores))
        if found.start is not None:
            steps.append(
                "The weights before training were found in the trained ones: all seeds of PyTorch on a CPU can be "
                "tried, secret ones too. Before you train anew, draw the first weights from another source; the guide "
                'has the lines for it ("A start that nobody finds").'
            )
        steps.append(DEFEND)
    elif judgement.verdict == "nothing found":
        steps.append("Nothing was found by this method. Another may find more: this is no proof that nothing leaks.")
    elif untrained:
        steps.append("Is this the right file? With model.py:name, `--weights` names the file of the trained weights.")
    elif judgement.strength == "not proven":
        steps.append("Nothing is decided: do not take this for a proof of safety, nor of a leak.")
    else:
        steps.append("Do not take this for a proof of safety: the method cannot read this network.")
    if scores.held_out == 0:
        steps.append("Give images of the same kind that the network never saw (`--held-out`), as a control.")
    return steps


def about_membership(judgement: Judgement, membership: Sequence[Membership]) -> list[str]:
    """What to do where no image came out, and the weights tell which were trained on."""
    if not membership or judgement.verdict == "leaks":
        return []
    # of several signals the best is taken, so its chance counts as often as there are signals
    chance = len(membership) * min(one.p_value for one in membership)
    return [MEMBERSHIP] if chance < PLAINLY else []


def _whom_to_tell(judgement: Judgement, scores: ScoresRecord) -> str:
    """Which images came out, and how many of these are there by chance, as far as the control tells."""
    count, chance = scores.recovered[judgement.level], scores.null[judgement.level] / scores.held_out * scores.images
    named = f"the {count} images that came out" if count > 1 else "the one image that came out"
    by_chance = f"; by chance about {chance:.0f} of them" if chance >= 0.5 else ""
    whom = "they show" if count > 1 else "it shows"
    return f"leaked.csv names {named} (NCC >= {judgement.level}{by_chance}). If private, tell whom {whom}."


def without_state(judgement: Judgement, view: OwnersView | None) -> str:
    """What to do about a momentum in the file."""
    came = judgement.verdict == "leaks" and view is not None and view.of == "momentum"
    return WITHOUT_STATE.format(", and images come out of it" if came else ", and images can come out of it")
