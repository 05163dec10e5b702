"""Where the work is done: the choice of a device, and recorded work."""

from pathlib import Path

import pytest
import torch

from exhume.devices import choose_device, has_triton, recorded
from exhume.errors import InputError


def test_works_are_done_in_turn_at_each_call_on_a_cpu() -> None:
    done: list[str] = []
    both = recorded(torch.device("cpu"), lambda: done.append("first"), lambda: done.append("second"))
    both()
    both()
    assert done == ["first", "second"] * 2


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="no usable GPU"):
        choose_device("cuda")


@pytest.mark.parametrize("lacks", ["triton", "compiler", "header", None])
def test_triton_counts_only_with_what_it_compiles_with(
    lacks: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slim containers have the one without the other."""
    if lacks != "header":
        (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("exhume.devices.find_spec", lambda _: None if lacks == "triton" else object())
    monkeypatch.setattr("shutil.which", lambda name: "/bin/gcc" if name == "gcc" and lacks != "compiler" else None)
    monkeypatch.setattr("sysconfig.get_paths", lambda _: {"include": str(tmp_path)})
    assert has_triton.__wrapped__() == (lacks is None)


@pytest.mark.gpu
def test_recorded_works_change_their_tensors_at_each_call() -> None:
    totals = [torch.zeros(3, device="cuda"), torch.zeros(3, device="cuda")]
    both = recorded(torch.device("cuda"), lambda: totals[0].add_(1), lambda: totals[1].add_(2))
    for call in range(1, 11):
        both()
        assert totals[0].tolist() == [call] * 3 and totals[1].tolist() == [2 * call] * 3
