"""The owner's images: every one counts, and none of them is ever made into a control."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exhume.cli import main
from exhume.errors import InputError
from exhume.problems import Selection, load_problem, owned
from exhume.problems.owned import load_images


def pixels(count: int, seed: int, shape: tuple[int, ...] = (6, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write(folder: Path, images: np.ndarray, first: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, start=first):
        Image.fromarray(image).save(folder / f"{i}.png")


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Classes of 12, 3 and 1 images."""
    for seed, (name, count) in enumerate({"cat": 12, "dog": 3, "fox": 1}.items()):
        write(tmp_path / "mine" / name, pixels(count, seed))
    return tmp_path / "mine"


# ---- Every image counts


def test_classes_of_any_size_are_kept_whole_and_there_is_no_control(uneven: Path) -> None:
    mine = load_images(uneven)
    assert mine.images.shape == (16, 1, 6, 5)
    assert mine.labels is not None and mine.labels.tolist() == [0] * 12 + [1] * 3 + [2]
    assert (mine.classes, mine.task) == (("cat", "dog", "fox"), "multiclass")
    assert mine.held_out.shape == (0, 1, 6, 5)
    assert mine.names[:3] == ("cat/1.png", "cat/2.png", "cat/3.png") and mine.names[9] == "cat/10.png"
    assert mine.source == "The owner's images, from mine: 16, 1 to 12 of each of 3 classes"
    assert np.array_equal((mine.images[9, 0] * 255).round(), pixels(12, 0)[9])


def test_images_without_classes(tmp_path: Path) -> None:
    write(tmp_path / "flat", pixels(7, 0, (6, 5, 3)))
    mine = load_images(tmp_path / "flat", split="half")
    assert (len(mine.images), len(mine.held_out), mine.images.shape[1]) == (4, 3, 3)
    assert (mine.labels, mine.held_out_labels, mine.classes, mine.task) == (None, None, (), None)
    assert mine.names == ("1.png", "2.png", "3.png", "4.png") and mine.held_out_names[0] == "5.png"
    assert "7 of unknown class" in load_images(tmp_path / "flat").source


@pytest.mark.parametrize("control", ["held_out", "held", "test", "val", "validation"])
def test_a_part_that_is_named_as_held_out_is_the_control(tmp_path: Path, control: str) -> None:
    for seed, (part, counts) in enumerate({"train": (3, 5), control: (2, 1)}.items()):
        for label, count in zip("ab", counts, strict=True):
            write(tmp_path / part / label, pixels(count, 10 * seed + ord(label)))
    mine = load_images(tmp_path)
    assert mine.labels is not None and mine.labels.tolist() == [0] * 3 + [1] * 5
    assert mine.held_out_labels is not None and mine.held_out_labels.tolist() == [0, 0, 1]
    assert mine.source.endswith("8, 3 to 5 of each of 2 classes; 3 held-out images, held out by the data set")
    with pytest.raises(InputError, match="no split is needed"):
        load_images(tmp_path, split="half")
    with pytest.raises(InputError, match="holds held-out images of its own"):
        load_images(tmp_path, held_out=tmp_path / control)


def test_several_parts_are_held_out_together(tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "test", "val")):
        write(tmp_path / part, pixels(4, seed))
    assert (len(load_images(tmp_path).images), len(load_images(tmp_path).held_out)) == (4, 8)


@pytest.mark.parametrize("keys", [("x_train", "y_train"), ("images", "labels"), ("X", "y"), ("X", "Y"), ("x", "y")])
def test_arrays_under_their_usual_names(tmp_path: Path, keys: tuple[str, str]) -> None:
    labels = np.array([3, 3, 9, 3, 9, 9, 9])
    np.savez(tmp_path / "own.npz", **{keys[0]: pixels(7, 0), keys[1]: labels})  # type: ignore[arg-type]
    mine = load_images(tmp_path / "own.npz")
    assert mine.labels is not None and mine.labels.tolist() == [0, 0, 1, 0, 1, 1, 1]
    assert (mine.classes, mine.task, len(mine.held_out)) == (("3", "9"), "binary", 0)
    assert mine.names[2] == f"{keys[0]}[2]"


def test_arrays_without_labels_and_with_a_control(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", images=pixels(5, 0), held_out=pixels(3, 1))
    mine = load_images(tmp_path / "own.npz")
    assert (mine.labels, len(mine.images), len(mine.held_out)) == (None, 5, 3)


def test_labels_of_the_control_follow_the_names_of_the_classes(tmp_path: Path, uneven: Path) -> None:
    write(tmp_path / "new" / "fox", pixels(2, 50))
    write(tmp_path / "new" / "dog", pixels(1, 51))
    mine = load_images(uneven, held_out=tmp_path / "new")
    assert mine.held_out_labels is not None and mine.held_out_labels.tolist() == [1, 2, 2]
    write(tmp_path / "new" / "owl", pixels(1, 52))
    assert load_images(uneven, held_out=tmp_path / "new").held_out_labels is None


def test_grey_images_beside_coloured_ones_become_coloured(tmp_path: Path, uneven: Path) -> None:
    write(tmp_path / "new", pixels(4, 50, (6, 5, 3)))
    mine = load_images(uneven, held_out=tmp_path / "new")
    assert mine.images.shape == (16, 3, 6, 5) and mine.held_out.shape == (4, 3, 6, 5)
    write(tmp_path / "large", pixels(4, 50, (7, 5)))
    with pytest.raises(InputError, match="must have one size, and there are 1x6x5 and 1x7x5"):
        load_images(uneven, held_out=tmp_path / "large")


def test_what_is_trained_on_can_be_said(uneven: Path) -> None:
    with pytest.raises(InputError, match="Class fox has 1 images, fewer than the 2"):
        load_images(uneven, selection=Selection(per_class=2))
    first = load_images(uneven, selection=Selection(per_class=2, classes=2))
    assert first.names == ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png") and len(first.held_out) == 0
    rest = load_images(uneven, selection=Selection(per_class=1), split="rest")
    assert (len(rest.images), len(rest.held_out)) == (3, 13)
    half = load_images(uneven, split="half")
    assert (len(half.images), len(half.held_out)) == (6 + 2 + 1, 6 + 1)
    assert "which the owner says was not trained on" in half.source
    with pytest.raises(InputError, match="--per-class"):
        load_images(uneven, split="rest")
    with pytest.raises(InputError, match='say "rest"'):
        load_images(uneven, split="half", selection=Selection(per_class=1))


def test_a_problem_says_itself_what_is_held_out(tmp_path: Path) -> None:
    problem = load_problem("mnist-digits", Selection(per_class=2, data_dir="installed"))
    mine = load_images("mnist-digits", selection=Selection(per_class=2, data_dir="installed"))
    assert torch.equal(mine.images, problem.images) and torch.equal(mine.held_out, problem.held_out)
    write(tmp_path / "new", pixels(3, 0, (28, 28)))
    other = load_images(
        "mnist-digits", held_out=tmp_path / "new", selection=Selection(per_class=2, data_dir="installed")
    )
    assert len(other.held_out) == 3
    with pytest.raises(InputError, match="says itself what is held out"):
        load_images("mnist-digits", split="half")


# ---- The control


def save_anew(image: Image.Image) -> Image.Image:
    """With rounding of another range of brightness, as another program may write it."""
    return Image.fromarray((np.asarray(image).astype(float) * 0.9 + 10).round().astype(np.uint8))


@pytest.mark.parametrize("change", [lambda image: image, save_anew])
def test_a_held_out_image_that_is_a_training_image_is_refused_by_name(
    tmp_path: Path, uneven: Path, change: Callable[[Image.Image], Image.Image]
) -> None:
    write(tmp_path / "new", pixels(6, 50))
    with Image.open(uneven / "cat" / "10.png") as image:
        change(image).save(tmp_path / "new" / "again.png")
    with pytest.raises(InputError, match=r"1 of the 7 held-out images .* \(again.png = cat/10.png\)"):
        load_images(uneven, held_out=tmp_path / "new")


def test_the_training_images_cannot_be_their_own_control(uneven: Path) -> None:
    with pytest.raises(InputError, match=r"16 of the 16 held-out images .* \(cat/1.png = cat/1.png, .*, ...\)"):
        load_images(uneven, held_out=uneven)


def test_black_images_are_compared_by_their_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", images=np.zeros((2, 6, 5)), held_out=np.full((2, 6, 5), 0.5))
    assert len(load_images(tmp_path / "own.npz").held_out) == 2
    np.savez(tmp_path / "own.npz", images=np.zeros((2, 6, 5)), held_out=np.zeros((1, 6, 5)))
    with pytest.raises(InputError, match="1 of the 1 held-out images"):
        load_images(tmp_path / "own.npz")


def test_real_digits_are_no_copies_of_each_other() -> None:
    mine = load_images("mnist-digits", selection=Selection(per_class=200, data_dir="installed"))
    assert (len(mine.images), len(mine.held_out)) == (2000, 2000)


def test_images_that_a_published_data_set_holds_twice_are_left_out_of_the_control(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selection = Selection(per_class=2, data_dir="installed")
    problem = load_problem("mnist-digits", selection)
    twice = replace(problem, held_out=torch.cat([0.9 * problem.images[3:4] + 0.05, problem.held_out[1:]]))
    monkeypatch.setattr(owned, "load_problem", lambda *_: twice)
    mine = load_images("mnist-digits", selection=selection)
    assert torch.equal(mine.held_out, problem.held_out[1:])
    assert (len(mine.held_out_names), mine.held_out_names[0]) == (19, "held-out image 1")
    assert mine.notes == ("1 held-out image that is a training image too was left out.",)


def test_a_change_of_the_images_or_of_the_control_shows(tmp_path: Path, uneven: Path) -> None:
    before = load_images(uneven).fingerprint
    write(tmp_path / "new", pixels(6, 50))
    beside = load_images(uneven, held_out=tmp_path / "new").fingerprint
    (uneven / "cat" / "3.png").unlink()
    assert len({before, beside, load_images(uneven).fingerprint}) == 3


# ---- What is said of them


def test_folders_that_are_not_read_are_named(uneven: Path, tmp_path: Path) -> None:
    for part, seed in (("train", 60), ("held", 61), ("never", 62)):
        write(tmp_path / "letters" / part / "a", pixels(4, seed))
    mine = load_images(tmp_path / "letters")
    assert (len(mine.images), len(mine.held_out)) == (4, 4)
    assert mine.notes == ("letters holds never too, which is not read: only train and held are.",)
    assert mine.source.endswith("; 4 held-out images, held out by the data set. " + mine.notes[0].removesuffix("."))
    assert load_images(uneven).notes == ()


def test_arrays_that_are_not_read_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", images=pixels(5, 0), targets=np.arange(5), x_val=pixels(2, 1))
    note = "own.npz holds targets, x_val too, which are not read: only images is."
    assert load_images(tmp_path / "own.npz").notes == (note,)


def test_repeats_are_counted(tmp_path: Path) -> None:
    images = pixels(5, 0)
    np.savez(tmp_path / "own.npz", images=images[[0, 1, 2, 0, 0, 3, 4]])
    mine = load_images(tmp_path / "own.npz")
    assert mine.notes == ("2 of your 7 images are repeats of another one, and counted all the same.",)


# ---- What cannot be used


def no_images(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()
    for path in folder.iterdir():
        path.rmdir()


def empty_class(folder: Path) -> None:
    (folder / "owl").mkdir()


def loose(folder: Path) -> None:
    write(folder, pixels(1, 9))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_images, "mine holds no image files"),
        (empty_class, "owl holds no image file, but every folder in .* is taken for a class"),
        (loose, r"holds images \(1.png\) beside folders \(cat\)"),
    ],
)
def test_a_folder_that_cannot_be_used(uneven: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    spoil(uneven)
    with pytest.raises(InputError, match=sentence):
        load_images(uneven)


def test_what_is_no_set_of_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(InputError, match=r"is no folder of images, no .npz and no .py file"):
        load_images(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"There is no .*nowhere"):
        load_images(tmp_path / "nowhere")
    np.savez(tmp_path / "own.npz", pictures=pixels(5, 0), answers=np.arange(5))
    with pytest.raises(InputError, match=r"holds pictures, answers; the images are .* images, x_train, X or x, and"):
        load_images(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", images=pixels(5, 0), labels=np.arange(4))
    with pytest.raises(InputError, match="images holds 5 images and labels 4 labels"):
        load_images(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", images=pixels(5, 0), labels=np.arange(5), held_out=pixels(2, 1, (3, 3)))
    with pytest.raises(InputError, match="must have one size"):
        load_images(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", images=pixels(0, 0))
    with pytest.raises(InputError, match="holds no images"):
        load_images(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", images=pixels(1, 0))
    with pytest.raises(InputError, match="No image is left"):
        load_images(tmp_path / "own.npz", split="half")
    with pytest.raises(InputError, match="have no classes"):
        load_images(tmp_path / "own.npz", selection=Selection(per_class=1))


# ---- Training on a user's own data keeps every image too


def test_training_on_a_folder_trims_no_class(uneven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = load_problem(str(uneven))
    assert torch.bincount(problem.labels).tolist() == [6, 2, 1]
    assert torch.bincount(problem.held_out_labels).tolist() == [6, 1]
    assert problem.source.endswith("of each class trained on and held out: 6 and 6, 2 and 1, 1 and 0")
    main(["train", str(uneven), str(tmp_path / "run"), "--epochs", "1", "--widths", "5", "--device", "cpu"])
    assert "Trained on 9, held out 7." in " ".join(capsys.readouterr().out.split())


def test_training_on_arrays_trims_no_class(tmp_path: Path) -> None:
    labels = np.array([0, 0, 0, 0, 0, 1])
    np.savez(tmp_path / "own.npz", x_train=pixels(6, 0), y_train=labels, x_test=pixels(9, 1), y_test=np.arange(9) % 2)
    problem = load_problem(str(tmp_path / "own.npz"))
    assert torch.bincount(problem.labels).tolist() == [5, 1]
    assert torch.bincount(problem.held_out_labels).tolist() == [5, 1]  # no more than are trained on


@pytest.mark.parametrize("control", ["inside", "beside", "none"])
def test_real_targets_are_kept_as_they_are(control: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    images, others = torch.rand(2, 6, 1, 8, 8, generator=generator).numpy()
    targets = np.linspace(-1.5, 2, 6)
    part = {"held_out": others, "held_out_labels": -targets}
    np.savez(tmp_path / "mine.npz", images=images, labels=targets, **(part if control == "inside" else {}))
    np.savez(tmp_path / "others.npz", images=others, labels=-targets)
    mine = load_images(tmp_path / "mine.npz", held_out=tmp_path / "others.npz" if control == "beside" else None)
    assert mine.labels is not None
    assert mine.labels.tolist() == pytest.approx(targets.tolist())
    assert (mine.classes, mine.task) == ((), None)
    assert "6, with real targets" in mine.source
    if control != "none":
        assert mine.held_out_labels is not None
        assert mine.held_out_labels.tolist() == pytest.approx((-targets).tolist())
    halves = load_images(tmp_path / "others.npz", split="half")
    assert (len(halves.images), len(halves.held_out)) == (3, 3)
    with pytest.raises(InputError, match="no classes"):
        load_images(tmp_path / "others.npz", split="rest", selection=Selection(per_class=2))


@pytest.mark.parametrize("targets", [[0.5, float("nan")], [[0.5, 1.5], [0.1, 0.2]]])
def test_targets_must_be_one_finite_number_an_image(targets: list[float], tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=np.zeros((2, 1, 8, 8), "float32"), labels=np.array(targets))
    with pytest.raises(InputError, match="finite numbers, one per image"):
        load_images(tmp_path / "mine.npz")
