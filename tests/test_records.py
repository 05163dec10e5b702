"""Records are strict: what is not exactly what was written is refused in one sentence, and nothing is half-written."""

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch

import by_hand
from exhume.errors import InputError
from exhume.records import (
    FORMAT,
    READ,
    Provenance,
    Upgrade,
    provenance,
    read,
    read_about,
    read_tensors,
    replace_file,
    write,
    write_tensors,
    write_together,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A record within a record."""

    scale: float | None = 0.5
    widths: tuple[int, ...] = (3, 4)

    def __post_init__(self) -> None:
        if self.scale is not None and self.scale < 0:
            raise InputError(f"scale must not be negative, and {self.scale} is.")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Every kind of value that the package's records hold."""

    name: str
    count: int
    share: float
    flag: bool
    kind: Literal["one", "two"]
    inner: Inner
    many: list[Inner]
    counts: dict[str, int]
    maybe: int | None = None


FULL = Record(
    name="ü \N{SNOWMAN}",
    count=3,
    share=0.1 + 0.2,
    flag=True,
    kind="two",
    inner=Inner(scale=None),
    many=[Inner(widths=()), Inner(scale=1e-300)],
    counts={"0.9": 5},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "record.json", FULL)
    return tmp_path / "record.json"


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    by_hand.change(path, edit)


def refusal(path: Path, kind: type = Record, upgrade: Upgrade = dict) -> str:
    """The sentence with which the file is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        read(path, kind, upgrade)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


# ---- JSON


def test_what_was_written_is_read_back(path: Path) -> None:
    assert read(path, Record) == FULL
    assert json.loads(path.read_text())["format"] == FORMAT


def test_whole_numbers_are_real_numbers_too(tmp_path: Path) -> None:
    path = tmp_path / "inner.json"
    write(path, Inner(scale=2))
    assert read(path, Inner) == Inner(scale=2.0)


def test_writing_again_replaces(path: Path) -> None:
    write(path, Inner())
    assert read(path, Inner) == Inner()


@pytest.mark.parametrize(
    ("edit", "hint"),
    [
        (lambda c: c.update(extra=1), "extra fields found (extra)"),
        (lambda c: c["inner"].update(width=[3]), "extra fields found (width) @ $.inner"),
        (lambda c: c["many"][1].update(width=[3]), "extra fields found (width)"),
        (lambda c: c.pop("count"), "required field missing @ $.count"),
        (lambda c: c.pop("maybe"), "$.maybe"),
        (lambda c: c["inner"].pop("scale"), "$.inner"),
    ],
)
def test_an_unknown_or_missing_key_is_refused(path: Path, edit: Callable[[dict[str, Any]], object], hint: str) -> None:
    change(path, edit)
    assert hint in refusal(path)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("name", [3, None, ["a"]]),
        ("count", ["3", 3.5, True, None, "three"]),
        ("share", ["0.5", False]),
        ("flag", [1, "true"]),
        ("kind", ["three", 1]),
        ("inner", [None, [], "inner", {"scale": "0.5", "widths": []}]),
        ("inner", [{"scale": 0.5, "widths": widths} for widths in (["3"], [3.0001], "34", 3, {"3": 4})]),
        ("many", [{}, [3], None]),
        ("counts", [{"0.9": "5"}, []]),
        ("maybe", ["1", 1.5]),
    ],
)
def test_a_mistyped_value_is_refused(path: Path, key: str, values: list[object]) -> None:
    for value in values:
        change(path, lambda content, value=value: content.update({key: value}))
        assert f"$.{key}" in refusal(path), value


def test_a_value_that_makes_no_sense_is_refused_with_its_own_sentence(path: Path) -> None:
    change(path, lambda content: content["inner"].update(scale=-1.0))
    assert "scale must not be negative, and -1.0 is @ $.inner" in refusal(path)


@pytest.mark.parametrize("number", [number for number in READ if number != FORMAT])
def test_an_older_record_is_upgraded_and_then_as_strict(path: Path, number: int) -> None:
    def upgrade(content: dict[str, Any]) -> dict[str, Any]:
        count = content.pop("amount")
        return {**content, "count": count}

    change(path, lambda content: content.update(format=number, amount=content.pop("count")))
    assert read(path, Record, upgrade) == FULL
    change(path, lambda content: content.update(more=1))
    assert "extra fields found (more)" in refusal(path, upgrade=upgrade)
    change(path, lambda content: (content.pop("more"), content.pop("maybe")))
    assert "$.maybe" in refusal(path, upgrade=upgrade)
    change(path, lambda content: content.pop("amount"))
    assert "'amount'" in refusal(path, upgrade=upgrade)


def test_a_record_of_today_is_not_upgraded(path: Path) -> None:
    assert read(path, Record, lambda content: {}) == FULL


@pytest.mark.parametrize("number", [None, 0, READ[0] - 1, FORMAT + 1, str(FORMAT)])
def test_another_format_is_refused(path: Path, number: object) -> None:
    change(path, lambda content: content.update(format=number))
    assert "has none of the formats that this version of exhume reads (2, 3, 4, 5, 6, 7)" in refusal(path)
    change(path, lambda content: content.pop("format"))
    assert "has none of the formats" in refusal(path)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_neither_written_nor_read(path: Path, constant: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(path, Inner(scale=math.nan if constant == "NaN" else math.inf))
    assert path.read_bytes() == before
    path.write_text(f'{{"format": {FORMAT}, "scale": {constant}, "widths": []}}')
    assert "is damaged" in refusal(path, Inner)


@pytest.mark.parametrize(
    "content",
    [b"", b" ", b"none", b"[]", b"3", b'"text"', b"\xff\xfe\x00", b"[" * 100_000, b'{"format": 1' + b"0" * 5000 + b"}"],
    ids=["empty", "blank", "word", "list", "number", "string", "no text", "deep", "huge number"],
)
def test_what_is_no_record_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refusal(path)


def test_half_a_file_is_refused_wherever_it_ends(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole) - 2):  # all but the last bracket and the end of its line
        path.write_bytes(whole[:length])
        assert "is damaged" in refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.json") == f"There is no {tmp_path / 'none.json'}."
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file" / "record.json").startswith("There is no ")


# ---- Tensors


def test_tensors_are_read_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = {
        "single": torch.tensor([0.1, -0.0, math.inf, 1e-45]),
        "double": torch.tensor([[0.1], [1e-320]], dtype=torch.float64),
        "whole": torch.tensor(2**62),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "some.safetensors", tensors)
    read_back = read_tensors(tmp_path / "some.safetensors")
    assert read_back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read_back[name].dtype, read_back[name].shape) == (tensor.dtype, tensor.shape)
        assert read_back[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_tensors_may_share_their_memory_and_need_no_order(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4).requires_grad_()
    tensors = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "wide": whole[:1].expand(5, 4)}
    write_tensors(tmp_path / "some.safetensors", tensors)
    read_back = read_tensors(tmp_path / "some.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(read_back[name], tensor)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, b"\x10" + b"\x00" * 7 + b"{" * 16])
def test_what_holds_no_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        read_tensors(path)


def test_half_a_file_of_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    whole = safetensors.torch.save({"values": torch.rand(30)})
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="is damaged"):
            read_tensors(path)


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no"):
        read_tensors(tmp_path / "none.safetensors")


# ---- All or nothing


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failed_writing_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    before = path.read_bytes()

    write_some = os.write

    def full(file: int, content: bytes = b"") -> int:
        if failing == "write" and len(content) > 4:
            return write_some(file, content[:4])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path if failing == "replace" else os, failing, full)
    with pytest.raises(InputError, match=r"record\.json cannot be written: No space left on device\."):
        write(path, Inner())
    with pytest.raises(InputError, match=r"other\.safetensors cannot be written: No space left on device\."):
        write_tensors(path.with_name("other.safetensors"), {"values": torch.zeros(3)})
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    assert path.read_bytes() == before


def test_several_files_are_replaced_together_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, sync = path.with_name("run"), os.fsync
    write_together(run, FULL, {"values": torch.zeros(3)})
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    syncs: list[int] = []

    def full_at_the_second(file: int) -> None:
        syncs.append(file)
        if len(syncs) == 2:
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(InputError, match=r"run\.json cannot be written: No space left on device\."):
        write_together(run, replace(FULL, count=4), {"values": torch.ones(3)})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_record_is_read_with_its_own_tensors_only(tmp_path: Path) -> None:
    for name, value in (("one", 0.0), ("two", 1.0)):
        write_together(tmp_path / name, FULL, {"values": torch.full((3,), value)})
    assert read(tmp_path / "one.json", Record) == FULL
    (tmp_path / "two.safetensors").replace(tmp_path / "one.safetensors")
    with pytest.raises(InputError, match=r"one\.safetensors is damaged, or does not belong to the one\.json beside it"):
        read(tmp_path / "one.json", Record)
    with pytest.raises(InputError, match=r"There is no .*two\.safetensors"):
        read(tmp_path / "two.json", Record)


@pytest.mark.parametrize("name", ["run.json", "run.safetensors"])
def test_every_changed_byte_is_an_error(tmp_path: Path, name: str) -> None:
    write_together(tmp_path / "run", Inner(), {"values": torch.arange(5.0)})
    path = tmp_path / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (1, 2, 4, 32, 128, 255):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with pytest.raises(InputError):
                read(path, Inner) if name == "run.json" else read_tensors(path)


def test_a_text_stands_beside_tensors_and_files_of_others_need_no_digest(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"values": torch.zeros(3)}, about="of what they are")
    assert read_about(tmp_path / "a.safetensors")[0] == "of what they are"
    for beside in (None, {"format": "pt"}):
        (tmp_path / "b.safetensors").write_bytes(safetensors.torch.save({"values": torch.zeros(3)}, beside))
        assert read_tensors(tmp_path / "b.safetensors").keys() == {"values"}


def test_many_writers_of_one_file_leave_one_of_their_files_whole(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    texts = [str(number) * 20_000 for number in range(4)]

    def write_often(text: str) -> None:
        for _ in range(50):
            replace_file(path, text.encode())
            assert path.read_text() in texts

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_often, texts))
    assert [file.name for file in tmp_path.iterdir()] == ["shared.json"]


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="is no file: a pipe or a device is not read"):
        read(tmp_path / "pipe.json", Record)


def test_an_interrupted_writing_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, Inner())
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    assert read(path, Record) == FULL


def test_a_folder_that_cannot_be_is_a_sentence(path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write(path / "within" / "a.json", Inner())


# ---- Provenance


def test_provenance_says_what_is_running_here() -> None:
    here = provenance(device=torch.device("cpu"), seed=7, seconds=1.23456)
    assert (here.torch, here.seed, here.seconds) == (torch.__version__, 7, 1.23)
    assert here.device.startswith("cpu ") and here.threads == torch.get_num_threads()
    assert here.date.endswith("+00:00")


def test_provenance_is_a_record(tmp_path: Path) -> None:
    here = provenance(device=torch.device("cpu"), seed=7, seconds=0.5)
    write(tmp_path / "here.json", here)
    assert read(tmp_path / "here.json", Provenance) == here
