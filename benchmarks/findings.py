"""What each study says of the papers' findings, in sentences made from its numbers."""

from collections.abc import Callable, Sequence
from math import log
from statistics import median

from benchmarks.laws import (
    Difference,
    best,
    by_number,
    counts,
    difference,
    exponent,
    fit_law,
    grouped,
    in_number,
    in_quality,
    rank_correlation,
    share,
)
from exhume.runs.cells import Result
from exhume.runs.tables import Value

MORE, LESS = 1, -1
Finding = Callable[[Sequence[Result]], str]


def weight_decay(results: Sequence[Result]) -> str:
    def of_loss(of: Sequence[Result]) -> str:
        groups = by_number(of, "weight decay")
        base = groups.pop(0.0, [])
        if not base or not groups:
            return "nothing to compare"
        decay = best(groups)
        number, quality = (test(base, groups[decay], len(groups)) for test in (in_number, in_quality))
        return (
            f"{counts(base)} without decay, {counts(groups[decay])} with {decay:g}, of all the best, which "
            f"{agrees(number, MORE)} on the number; median NCC {_median(base)} and {_median(groups[decay])}, which "
            f"{agrees(quality, MORE)} on the quality"
        )

    return _each(of_loss, results, "loss")


def width(results: Sequence[Result]) -> str:
    def of_problem(of: Sequence[Result]) -> str:
        ratios, shares = [result.number("n / width") for result in of], [share([result]) for result in of]
        rho, p_value = rank_correlation(ratios, shares)
        return (
            f"the rank correlation of images / width and the share that comes out is {rho:.2f}, which "
            f"{agrees(difference(rho, p_value), LESS)}; {fit_law(ratios, shares) or 'no law can be fitted'}"
        )

    return _each(of_problem, results, "problem")


def classes(results: Sequence[Result]) -> str:
    def of_problem(of: Sequence[Result]) -> str:
        groups = by_number(of, "classes")
        few, many = min(groups), max(groups)
        found = agrees(in_number(groups[few], groups[many]), MORE)
        return f"{counts(groups[few])} with {few} classes, {counts(groups[many])} with {many}, which {found}"

    return _each(of_problem, results, "problem")


def losses(results: Sequence[Result]) -> str:
    groups = grouped(results, "loss")
    parts = [f"{loss}: {counts(of)}" for loss, of in groups.items()]
    for more, less in (("ce", "bce"), ("bce", "mse, decay")):
        if more in groups and less in groups:
            parts.append(f"{more} against {less} {agrees(in_number(groups[less], groups[more]), MORE)}")
    return "; ".join(parts)


def epochs(results: Sequence[Result]) -> str:
    def of_loss(of: Sequence[Result]) -> str:
        groups = by_number(of, "epochs")
        half = min(length for length, cells in groups.items() if 2 * share(cells) >= share(groups[best(groups)]))
        last = max(groups)
        longest = groups.pop(last)
        parts = [f"{counts(longest)} after {last} epochs"]
        if groups:
            earlier = best(groups)
            found = in_number(groups[earlier], longest, len(groups))
            parts.append(f"{counts(groups[earlier])} after {earlier}, the best of less, which {agrees(found, LESS)}")
        parts.append(f"half of the most came out after {half}" if share(of) else "nothing at any time")
        return "; ".join(parts)

    return _each(of_loss, results, "loss")


def init_scale(results: Sequence[Result]) -> str:
    def of_training(of: Sequence[Result]) -> str:
        groups = by_number(of, "initial scale")
        # the papers' own without decay, and PyTorch's default, theirs with it
        small, default = (min(groups, key=lambda scale: abs(log(scale / papers))) for papers in (1e-4, 0.02))
        found = in_number(groups[default], groups[small])
        verdict = ("no difference beyond chance", "more at the smaller", "fewer at the smaller")[found.sign]
        if of[0].row["training"] == "no decay":
            verdict = f"which {agrees(found, MORE)}"
        return f"{counts(groups[small])} at {small:g}, {counts(groups[default])} at {default:g}, {verdict}"

    return _each(of_training, results, "training")


def margin(results: Sequence[Result]) -> str:
    def of_network(of: Sequence[Result]) -> str:
        parts = []
        for name, expected in (("margin", LESS), ("multiplier", MORE)):
            for result in of:
                rho, p_value = result.number(f"rho {name}"), result.number(f"p {name}")
                found = agrees(difference(rho, p_value), expected)
                parts.append(f"rank correlation of NCC and {name} {rho:.2f}, which {found}")
        return "; ".join(parts)

    return _each(of_network, results, "network")


def many(results: Sequence[Result]) -> str:
    def of_start(of: Sequence[Result]) -> str:
        groups = by_number(of, "images")
        parts = [counts(cells) for cells in groups.values()]
        known = [result for result in of if result.row["peak MB"] is not None]
        if len(by_number(known, "images")) > 1:
            sizes = [result.number("images") for result in known]
            seconds, memory = ([result.number(name) for result in known] for name in ("attack cpu s", "peak MB"))
            grows = f"seconds grow as the power {exponent(sizes, seconds):.2f} of the images"
            parts.append(f"{grows}, megabytes from {min(memory):.0f} to {max(memory):.0f}")
        return "; ".join(parts)

    return _each(of_start, results, "start")


def cost(results: Sequence[Result]) -> str:
    def of_quantity(of: Sequence[Result]) -> str:
        (varied,) = grouped(of, "varied")
        values, seconds = ([result.number(column) for result in of] for column in (str(varied), "step s"))
        return f"seconds grow as its power {exponent(values, seconds):.2f} from {min(values):g} to {max(values):g}"

    return _each(of_quantity, results, "varied")


def agrees(found: Difference, expected: int) -> str:
    """Says whether a difference is the one the papers saw, by its sign."""
    if found.sign == 0:
        return f"does not decide (p = {found.p_value:.2g})"
    odds = f"= {found.p_value:.1g}" if found.p_value > 1e-20 else "< 1e-20"
    return f"{'agrees' if found.sign == expected else 'disagrees'} (p {odds})"


def _median(results: Sequence[Result]) -> str:
    return f"{median(value for result in results for value in result.ncc):.2f}"


def _each(sentence: Callable[[Sequence[Result]], str], results: Sequence[Result], column: str) -> str:
    groups: dict[Value, list[Result]] = grouped(results, column)
    return " ".join(f"*{name}*: {sentence(of)}." for name, of in groups.items())
