"""Draws the README's picture: training images of a scored run above their reconstructions.

    exhume demo
    python -m benchmarks.picture runs/demo docs/digits.png

The images are those at even ranks from the best to the worst one that counts (NCC >= 0.9): no choice of the best.
"""

from pathlib import Path

import torch
import tyro
from tyro.conf import Positional

from exhume.records import read_tensors
from exhume.report.figures import gallery
from exhume.runs.schema import ScoresRecord, read_record


def main(run: Positional[Path], out: Positional[Path], /, columns: int = 12) -> None:
    """Draws one row of originals and one of reconstructions."""
    pairs, scores = read_tensors(run / "scores.safetensors"), read_record(run / "scores.json", ScoresRecord)
    similarity = pairs["similarity"]
    ranked = similarity.argsort(descending=True)[: scores.recovered["0.9"]]
    shown = ranked[torch.linspace(0, len(ranked) - 1, columns).round().long()]
    rows = {"trained on": pairs["images"][shown], "reconstructed": pairs["candidates"][shown].clamp(0, 1)}
    gallery(rows, [f"{value:.3f}" for value in similarity[shown].tolist()], columns).savefig(out, dpi=110)


if __name__ == "__main__":
    tyro.cli(main)
