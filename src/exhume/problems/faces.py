"""Faces or background, 25x25, from Labeled Faces in the Wild (default: 50 training images per class)."""

import torch

from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection
from exhume.problems.datasets import DataSet, Rows, problem_of


def load(selection: Selection) -> Problem:
    """Two hundred grey images that come with scikit-image (`skimage.data.lfw_subset`), half of them faces (class 1)."""
    from skimage.data import lfw_subset  # noqa: PLC0415

    images = torch.tensor(lfw_subset(), dtype=torch.float32)[:, None]  # type: ignore[no-untyped-call]
    labels = torch.tensor([1] * 100 + [0] * 100)
    source = "Labeled Faces in the Wild, the 200 images that come with scikit-image"
    data = DataSet(Rows(images, labels), None, ("no face", "face"), source)
    network = NetworkConfig(kind="cnn", channels=(32, 64), widths=(100,))
    return problem_of("faces", data, selection.per_class or 50, task="binary", network=network)
