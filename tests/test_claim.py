"""One command at a time works in a run folder; what a killed one left is no hindrance, and no trace."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exhume.errors import InputError
from exhume.records import PART
from exhume.runs import claim as module
from exhume.runs.claim import CLAIM, alone, began, claim

HOLD = """
import sys, time
from pathlib import Path
from exhume.runs.claim import claim
with claim(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(600)
"""


def write_claim(folder: Path, **holder: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / CLAIM).write_text(json.dumps(module._myself() | holder))


def test_a_claim_leaves_nothing(tmp_path: Path) -> None:
    with claim(tmp_path / "a" / "run"):
        assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == [CLAIM]
    assert not list(tmp_path.iterdir())  # also the folders that it had made
    (tmp_path / "run").mkdir()
    with claim(tmp_path / "run"):
        (tmp_path / "run" / "result").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


def test_a_second_claim_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(InputError) as caught, claim(tmp_path):
        pass
    holder = f"process {os.getpid()} on {platform.node()}"
    assert str(caught.value) == (
        f"Another command works in {tmp_path} ({holder}); wait until it ends, or choose another folder."
    )
    with claim(tmp_path):
        pass


def test_a_living_process_keeps_its_folder_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        with pytest.raises(InputError, match=f"process {process.pid} on"), claim(tmp_path):
            pass
        process.kill()
    assert (tmp_path / CLAIM).exists()
    (tmp_path / f"{PART}0123456789abcdef").touch()  # what it was writing
    with claim(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [CLAIM]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("holder", "refused"),
    [
        ({"pid": 2**30}, False),
        ({"pid": os.getppid()}, True),
        ({"pid": os.getppid(), "began": "long ago"}, False),  # the number was given again
        ({"boot": "an earlier one"}, False),
        ({"host": "elsewhere", "boot": "another"}, True),
        ({"pid": None}, False),
    ],
)
def test_where_a_file_system_keeps_no_locks_the_name_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: dict[str, Any], refused: bool
) -> None:
    monkeypatch.setattr(module, "_lock", lambda *_: False)
    if "pid" in holder and isinstance(holder["pid"], int):
        holder = {"began": began(holder["pid"]) or "then"} | holder
    write_claim(tmp_path, **holder)
    if not refused:
        with claim(tmp_path):
            pass
        return
    with pytest.raises(InputError, match="Another command works in") as caught, claim(tmp_path):
        pass
    assert ("If it has been killed, remove" in str(caught.value)) == ("host" in holder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff" * 9000, b'{"pid": "x", "began": 3}'])
def test_a_claim_that_says_nothing_is_taken_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CLAIM).write_bytes(content)
    with claim(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_stage_has_its_folder_to_itself(tmp_path: Path) -> None:
    @alone
    def stage(folder: Path, *, again: bool) -> str:
        if again:  # a stage of several has the folder for all of them
            return stage(folder, again=False)
        with pytest.raises(InputError, match="Another command works in"), claim(folder):
            pass
        return "done"

    assert stage(tmp_path, again=False) == "done"
    assert stage(tmp_path, again=True) == "done"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, but a run is a folder"), claim(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match="cannot be written"), claim(tmp_path / "file" / "run"):
        pass
    with pytest.raises(InputError, match="cannot be written: File name too long"), claim(tmp_path / ("x" * 300)):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only the superuser can become another user")
def test_another_users_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    code = HOLD.replace("with claim", "import os\nos.setuid(65534)\nwith claim")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"InputError: {tmp_path} cannot be written: Permission denied." in done.stderr


def test_no_process_began_that_is_not_there() -> None:
    assert began(2**30) is None
    assert began(os.getpid()) == began(os.getpid()) is not None
    assert began(os.getppid()) is not None
