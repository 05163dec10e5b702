"""What the record of a reconstruction tells of whether the method can read the network."""

from dataclasses import replace

import pytest
import torch

from exhume.attack.methods import Exhume, Reference
from exhume.candidates import Assumptions, HistoryPoint, KnownInit
from exhume.records import provenance
from exhume.runs.applicability import GENERAL, read_applicability
from exhume.runs.schema import CandidatesRecord

ASSUMED = Assumptions(
    regime="small initialisation",
    images=100,
    images_from="weights",
    rank=99,
    discarded=0.001,
    layers=["0.weight"],
    smoothness=0.0,
    binary_prior=0.0,
)
MANY_IMAGES = replace(ASSUMED, regime="known start, many images", known_init=KnownInit(retained=1.0, exact=False))
GOOD = CandidatesRecord(
    checkpoint="",
    method=Exhume(),
    assumptions=ASSUMED,
    history=[HistoryPoint(step=0, residual=0.9, penalty=0.0), HistoryPoint(step=9, residual=0.1, penalty=0.0)],
    status="done",
    message="",
    provenance=provenance(device=torch.device("cpu"), seed=0, seconds=0.0),
)


def test_a_network_that_the_method_reads() -> None:
    applies = read_applicability(GOOD)
    assert (applies.method_reads, applies.reason, applies.regime) == (True, "", "small initialisation")
    assert (applies.start_known, applies.readability) == (False, None)
    assert read_applicability(replace(GOOD, initial="0123")).start_known


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (replace(GOOD, status="diverged"), "The search diverged."),
        (replace(GOOD, assumptions=replace(ASSUMED, rank=9)), "Only 9 directions"),
        (replace(GOOD, assumptions=replace(ASSUMED, discarded=0.06)), "through noise only"),
        (replace(GOOD, history=[HistoryPoint(step=0, residual=0.51, penalty=0.0)]), "leave 51% of the weights"),
        (replace(GOOD, history=[HistoryPoint(step=0, residual=7.0, penalty=0.0)]), "leave 100% of the weights"),
        (replace(GOOD, assumptions=replace(ASSUMED, known_init=KnownInit(retained=1.0, exact=False))), "(Adam)"),
        (replace(GOOD, assumptions=MANY_IMAGES), "as many training images as the first layer has neurons"),
    ],
)
def test_what_speaks_against_it(record: CandidatesRecord, reason: str) -> None:
    assert read_applicability(record).method_reads
    assert reason in read_applicability(record).reason


def test_the_general_path_reads_nothing() -> None:
    pixels = replace(GOOD, assumptions=replace(ASSUMED, rank=0, discarded=None, regime=None))
    assert read_applicability(pixels) == replace(
        read_applicability(GOOD), method_reads=False, reason=GENERAL, regime=None
    )
    assert read_applicability(replace(pixels, method=Reference())).method_reads  # it searches pixels of any network
