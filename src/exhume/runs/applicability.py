"""Whether the method can read a network, as far as the record of a reconstruction tells: no image is looked at."""

from exhume.attack.confidence import FEWEST_DIRECTIONS, limits
from exhume.attack.methods import Reference
from exhume.audit.verdict import Applicability
from exhume.runs.schema import CandidatesRecord


def read_applicability(record: CandidatesRecord) -> Applicability:
    """What the weights and the search have shown of the network, in words for its owner.

    With the owner's images more can be known: `readability` is left None, and `untrained` False.

        applies = read_applicability(exhume.load_candidates(Path("runs/demo"))[1])
        print(exhume.judge(scores, applies).sentence)
    """
    found = record.assumptions
    general = found.rank == 0 and not isinstance(record.method, Reference)
    return Applicability(
        method_reads=not general,
        reason=GENERAL if general else _against(record),
        regime=found.regime,
        start_known=record.initial is not None,
    )


GENERAL = (
    "The network is no chain of dense layers, so every pixel was searched by the general path. "
    "Nothing has ever come out of it."
)
"""What is said of networks that `pixel_space` searches."""
MIXED = (
    "There were about as many training images as the first layer has neurons or pixels, or more, so that it mixes them."
)
"""What is said where gradient descent left many directions."""
STEPWISE = (
    "What training added has many directions: it took steps element by element (Adam), or convolutions moved, "
    "or it began with other weights."
)
"""What is said of other changes that are no exact sum."""


def _against(record: CandidatesRecord) -> str:
    """What speaks against the method here; "": nothing does."""
    found, last = record.assumptions, record.history[-1] if record.history else None
    within = limits(found)
    if record.status == "diverged":
        return "The search diverged."
    if found.known_init is not None and not found.known_init.exact:
        return MIXED if found.many_images else STEPWISE
    if 0 < found.rank < FEWEST_DIRECTIONS:
        return f"Only {found.rank} directions of the first layer stand out, too few to tell images apart."
    if found.discarded is not None and found.discarded > within.discarded:
        return "The first layer shows the images through noise only, as it does with little training or none."
    if last is not None and last.residual > within.unexplained:
        return f"The candidates leave {min(last.residual, 1):.0%} of the weights unexplained."
    return ""
