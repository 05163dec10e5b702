"""The verdict: leaks only by a test, nothing found only by a method that applies, and else the reason."""

from dataclasses import replace

import pytest

from exhume.audit.counts import Counts, ImageScore, Picked, Seconds, Ssim
from exhume.audit.readability import Readability
from exhume.audit.sentence import sentence
from exhume.audit.verdict import GIVING, Applicability, judge

LEVELS = ("0.7", "0.8", "0.9", "0.95")
NOTHING = Counts(
    problem="",
    measure="ncc",
    images=100,
    held_out=100,
    candidates=400,
    recovered=dict.fromkeys(LEVELS, 0),
    null=dict.fromkeys(LEVELS, 0),
    null_perfect=dict.fromkeys(LEVELS, 0),
    mean_alone=dict.fromkeys(LEVELS, 0),
    median_ncc=0.3,
    null_median_ncc=0.3,
    p_value=1.0,
    p_values=dict.fromkeys(LEVELS, 1.0),
    p_rank=0.4,
    ssim=Ssim(good=0, null_good=0, null_perfect=0, top10=None),
    per_image=[],
    seconds=Seconds(),
)
READABLE = Readability(
    verdict="readable",
    level=0.9,
    images=100,
    held_out=100,
    stay=90,
    held_out_stay=2,
    p_value=1e-30,
    residual=0.3,
    held_out_residual=0.9,
    reachable=100,
    reason="A search stays at 90 of 100 training images.",
)
UNREADABLE = replace(READABLE, verdict="not held", reason="They do not.")
READS = Applicability(method_reads=True, regime="small initialisation")


def counted(level: str, recovered: int, null: int, p_value: float, p_rank: float) -> Counts:
    p_values = {**NOTHING.p_values, level: p_value}
    return replace(
        NOTHING,
        recovered={**NOTHING.recovered, level: recovered},
        null={**NOTHING.null, level: null},
        p_value=p_values["0.9"],
        p_values=p_values,
        p_rank=p_rank,
    )


@pytest.mark.parametrize(
    ("scores", "strength", "words"),
    [
        (counted("0.9", 90, 2, 1e-30, 1e-20), "plainly", "NCC >= 0.9: 90 of 100 training images, 2 of 100 held-out"),
        (counted("0.9", 12, 0, 2e-4, 0.04), "plainly", "p = 0.0002"),
        (counted("0.9", 12, 0, 2e-4, 0.2), "not proven", ""),  # the ranks contradict the count
        (counted("0.8", 35, 9, 6e-6, 1e-5), "in part", "NCC >= 0.8: 35 of 100 training images, 9 of 100 held-out"),
        (counted("0.7", 74, 40, 1e-6, 1e-4), "in part", "NCC >= 0.7"),
        (counted("0.8", 35, 9, 6e-6, 0.02), "not proven", ""),
        (counted("0.8", 20, 9, 0.02, 5e-4), "traces", "All similarities together: p = 0.0005 (rank test)"),
        (counted("0.8", 20, 9, 0.02, 0.005), "not proven", ""),
        (counted("0.8", 20, 9, 0.02, 0.02), "none", ""),
        (counted("0.9", 3, 0, 0.12, 0.06), "none", ""),
    ],
)
def test_a_leak_has_a_strength_and_its_p_values(scores: Counts, strength: str, words: str) -> None:
    judgement = judge(scores, READS)
    assert judgement.strength == strength
    assert (judgement.verdict == "leaks") == (strength not in ("none", "not proven"))
    if words:
        assert words in " ".join(judgement.reasons) and "rank test" in " ".join(judgement.reasons)


def test_the_level_is_that_of_the_count_that_proves_the_leak() -> None:
    assert judge(counted("0.9", 90, 2, 1e-30, 1e-20), READS).level == "0.9"
    assert judge(counted("0.7", 74, 40, 1e-6, 1e-4), READS).level == "0.7"
    assert judge(counted("0.8", 20, 9, 0.02, 5e-4), READS).level == "0.9"  # no count proves the traces


@pytest.mark.parametrize(
    ("expected", "right", "told"), [(147.0, 0, True), (147.0, 14, True), (147.0, 15, False), (9.9, 0, False)]
)
def test_confident_candidates_of_other_images_ask_for_the_right_ones(expected: float, right: int, told: bool) -> None:
    """Whoever gives another folder must not be told that the method cannot read the network, nor be cleared."""
    picked = Picked(candidates=159, expected=expected, right=right, distinct=min(right, 9), null_right=0)
    for held_out in (100, 0):
        scores = replace(NOTHING, picked=picked, held_out=held_out)
        judgement = judge(scores, replace(READS, readability=UNREADABLE))
        assert (judgement.strength == "not proven" and "not these" in judgement.sentence) == told
    part = replace(scores, picked=replace(picked, distinct=NOTHING.images))
    assert "not these" not in judge(part, READS).sentence, "she gave a part of the training images, and all came out"
    leak = replace(counted("0.9", 90, 2, 1e-30, 1e-20), picked=picked)
    assert judge(leak, READS).verdict == "leaks", "what is proven stays proven"


def test_what_the_mean_image_gives_too_proves_no_leak() -> None:
    scores = counted("0.9", 12, 0, 2e-4, 0.2)
    assert judge(replace(scores, mean_alone=dict.fromkeys(LEVELS, 12)), READS).verdict == "nothing found"


def test_without_a_control_nothing_is_called_a_leak_or_cleared() -> None:
    alone = replace(
        counted("0.9", 99, 0, 1.0, 1.0), held_out=0, p_value=None, p_values={}, p_rank=None, null_median_ncc=None
    )
    judgement = judge(alone, READS)
    assert (judgement.verdict, judgement.strength) == ("does not apply", "not proven")
    assert judgement.sentence.startswith("Not decided: 99 of 100 training images look like a candidate of their own")
    nothing = judge(replace(alone, recovered=NOTHING.recovered), READS)
    assert (nothing.verdict, nothing.strength) == ("does not apply", "not proven")
    assert "no held-out images were given" in nothing.sentence


def test_tests_that_contradict_each_other_neither_prove_nor_clear() -> None:
    judgement = judge(counted("0.9", 12, 0, 2e-4, 0.2), READS)
    assert judgement.verdict == "does not apply" and judgement.sentence.startswith("Not decided: NCC >= 0.9: 12 of 100")
    assert "do not show it (p = 0.2, rank test)" in judgement.sentence
    assert "but not beyond doubt" in judge(counted("0.8", 20, 9, 0.02, 0.005), READS).sentence


@pytest.mark.parametrize("recovered", [0, 13, 99])
def test_a_control_of_another_kind_proves_and_clears_nothing(recovered: int) -> None:
    scores = replace(counted("0.9", recovered, 0, 1.0 if recovered == 0 else 5e-5, 1e-9), p_kind=2e-4)
    judgement = judge(scores, replace(READS, readability=READABLE))
    assert (judgement.verdict, judgement.strength) == ("does not apply", "not proven")
    assert judgement.sentence == "Not decided: the control is of another kind than the images."
    assert "chance alone" not in sentence(scores) and "are of another kind" in sentence(scores)
    if recovered:
        assert judge(replace(scores, p_kind=2e-3), READS).verdict == "leaks"


@pytest.mark.parametrize(
    ("gap", "near", "recovered", "held_out", "leaks"),
    [
        (0.08, 0.44, 38, 1, True),  # other writers, images that came out for being trained on
        (0.08, 0.44, 12, 0, False),  # too few to tell
        (0.08, 0.1, 38, 1, False),  # held-out images of their kind are as rare
        (0.13, 0.2, 40, 9, False),  # ones among fewer ones
        (0.08, None, 38, 1, False),  # an older record, which does not say
        (0.25, 0.44, 99, 0, False),  # kinds far apart
    ],
)
def test_kinds_that_are_near_to_each_other_decide_where_they_do_not_explain_the_lead(
    gap: float, near: float | None, recovered: int, held_out: int, leaks: bool
) -> None:
    known = {} if near is None else {"0.9": near}
    scores = replace(counted("0.9", recovered, held_out, 1e-9, 1e-9), p_kind=2e-4, kind_gap=gap, near=known)
    judgement = judge(scores, READS)
    assert judgement.name == ("leaks" if leaks else "not decided")
    assert any("somewhat other kind" in reason for reason in judgement.reasons) == leaks


@pytest.mark.parametrize("p_kind", [0.3, 0.01])
def test_where_kinds_may_differ_a_count_that_their_difference_explains_is_no_leak(p_kind: float) -> None:
    """As of ones beside a control with half as many: 20 of 100 came out, 4 held-out ones, a fifth of those near."""
    scores = replace(counted("0.9", 20, 4, 5e-4, 1e-4), p_kind=p_kind, kind_gap=0.05, near={"0.9": 0.2})
    judgement = judge(scores, READS)
    assert judgement.name == "not decided"
    assert "NCC >= 0.9: 20 of 100" in judgement.sentence and "only 20% are held-out ones" in judgement.sentence
    assert "may be their kind" in sentence(scores) and "chance alone" not in sentence(scores)
    common = {"0.9": 0.5}  # its kind is held out as often
    assert judge(replace(scores, near=common), READS).name == ("leaks" if p_kind > 0.05 else "not decided")
    assert judge(replace(counted("0.9", 38, 1, 1e-9, 1e-9), p_kind=p_kind, near=common), READS).name == "leaks"


def test_a_count_that_only_its_kind_explains_does_not_clear_either() -> None:
    """Though all similarities together say little."""
    scores = replace(counted("0.9", 20, 4, 5e-4, 0.1), p_kind=0.3, kind_gap=0.05, near={"0.9": 0.2})
    assert judge(scores, READS).name == "not decided"


def test_where_kinds_may_differ_ranks_alone_are_no_traces() -> None:
    traces = replace(counted("0.9", 0, 0, 1.0, 1e-5), p_kind=0.3)
    assert judge(traces, READS).strength == "traces"
    doubted = judge(replace(traces, p_kind=0.01), READS)
    assert doubted.name == "not decided" and "may be of a somewhat other kind" in doubted.sentence
    common = judge(replace(traces, null_median_ncc=0.95), READS)
    assert common.name == "not decided" and "most held-out images look like a candidate" in common.sentence


@pytest.mark.parametrize("reason", ["", "Its weights were drawn."])
def test_an_untrained_network_never_leaks_whatever_the_counts(reason: str) -> None:
    drawn = replace(READS, untrained=True, reason=reason)
    for scores in (NOTHING, counted("0.9", 90, 2, 1e-30, 1e-20), counted("0.7", 0, 0, 1.0, 1e-5)):
        judgement = judge(scores, drawn)
        assert (judgement.verdict, judgement.strength) == ("does not apply", "none")
        assert judgement.reasons[0] == (reason or "Its weights are those of an initialisation.")


def test_a_level_that_proves_nothing_is_no_reason_for_a_leak() -> None:
    """As noise against an untrained network once was: 0 of 100, 0 of 100 (p = 1)."""
    judgement = judge(counted("0.7", 0, 0, 1.0, 5e-4), READS)
    assert judgement.verdict == "leaks"
    assert judgement.reasons == ("All similarities together: p = 0.0005 (rank test).",)


def test_traces_name_the_images_that_came_out() -> None:
    one = ImageScore(
        index=17, label=None, candidate=0, ncc=0.93, nearest=0, nearest_ncc=0.93, ssim3=None, ssim11=None, l2=None,
        psnr=None,
    )  # fmt: skip
    images = [replace(one, index=i, ncc=0.93 if i % 5 == 2 else 0.3) for i in range(100)]
    few = replace(counted("0.9", 3, 0, 0.12, 5e-4), per_image=images[:15])
    told = judge(few, READS).sentence
    assert "3 of 100 look like a candidate of their own (number 2, 7, 12)" in told and "No single image" not in told
    many = replace(counted("0.9", 20, 10, 0.04, 5e-4), per_image=images)
    assert "32, 37, 42, 47 and 10 more" in judge(many, READS).sentence
    assert "No single image can be pointed at" in judge(counted("0.9", 0, 0, 1.0, 5e-4), READS).sentence


def test_a_control_that_came_out_itself_clears_nothing() -> None:
    """Training images were given as held-out ones: all of both come out, and none resembles another."""
    scores = replace(counted("0.9", 20, 10, 1.0, 0.87), images=20, held_out=10)
    judgement = judge(scores, READS)
    assert (judgement.verdict, judgement.strength) == ("does not apply", "not proven")
    assert "10 of 10 held-out images came out" in judgement.sentence and "trained on?" in judgement.reasons[0]
    assert judgement.reasons[0] in sentence(scores)
    for explained in ("null_perfect", "mean_alone"):  # they resemble training images, or all images are much alike
        alike = replace(scores, **{explained: dict.fromkeys(LEVELS, 20 if explained == "mean_alone" else 10)})
        assert judge(alike, READS).verdict == "nothing found"
        assert "trained on?" not in sentence(alike)
    few = replace(
        scores, held_out=100, images=100, null={**scores.null, "0.9": 5}, null_perfect={**scores.null, "0.9": 2}
    )
    assert judge(few, READS).verdict == "nothing found"


@pytest.mark.parametrize(
    ("images", "held_out", "decides"), [(6, 6, False), (7, 7, True), (100, 2, True), (100, 1, False)]
)
def test_so_few_images_that_nothing_can_be_told(images: int, held_out: int, decides: bool) -> None:
    """All of one side on top is one of 924 splits of 6 and 6, and one of 3432 of 7 and 7."""
    judgement = judge(replace(NOTHING, images=images, held_out=held_out), READS)
    assert (judgement.verdict == "nothing found") == decides
    assert decides or f"with {images} training and {held_out} held-out images" in judgement.sentence
    by_class = replace(NOTHING, p_least=1e-2)  # as for seven classes of one image each
    assert judge(by_class, READS).strength == "not proven"


@pytest.mark.parametrize("regime", GIVING)
def test_nothing_found_where_images_come_out_of_such_networks(regime: str) -> None:
    judgement = judge(NOTHING, Applicability(method_reads=True, regime=regime))
    assert judgement.verdict == "nothing found"
    assert regime in judgement.reasons[0]


@pytest.mark.parametrize(
    ("applies", "words"),
    [
        (None, "was not looked at"),
        (Applicability(method_reads=False), "no equations"),
        (Applicability(method_reads=False, reason="It is a transformer."), "It is a transformer."),
        (Applicability(method_reads=False, readability=READABLE), "no equations"),
        (Applicability(method_reads=True), "does not show in the weights"),
        (Applicability(method_reads=True, regime="default initialisation"), "weights before training are not known"),
        (replace(READS, reason="The search diverged."), "The search diverged."),
        (replace(READS, readability=replace(READABLE, verdict="not held", reason="They do not.")), "They do not."),
        (replace(READS, readability=replace(READABLE, verdict="too few", reason="Too few.")), "Too few."),
        (replace(READS, readability=replace(READABLE, verdict="held but not readable", reason="Held.")), "Held."),
    ],
)
def test_the_method_does_not_apply_and_says_why(applies: Applicability | None, words: str) -> None:
    judgement = judge(NOTHING, applies)
    assert (judgement.verdict, judgement.strength) == ("does not apply", "none")
    assert words in " ".join(judgement.reasons)
    assert "does not clear the network" in judgement.sentence


def test_the_owners_view_decides_where_it_is_there() -> None:
    """A search begun at the images stays there: the method applies, whatever the regime and the residual."""
    limit = replace(READS, regime="default initialisation", reason="The candidates leave 90 % unexplained.")
    assert judge(NOTHING, limit).verdict == "does not apply"
    judgement = judge(NOTHING, replace(limit, readability=READABLE))
    assert judgement.verdict == "nothing found"
    assert judgement.reasons[0] == READABLE.reason
