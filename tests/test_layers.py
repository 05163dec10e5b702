"""The map of the modules and the rules of importing: no module is left out, and the rules are kept."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
MODULES = {path.stem for path in (ROOT / "src" / "exhume").glob("*.py")} - {"__init__"}
MODULES |= {path.parent.name for path in (ROOT / "src" / "exhume").glob("*/__init__.py")}


def test_the_map_names_every_module() -> None:
    places = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things live")[2].partition("##")[0]
    assert set(re.findall(r"`(\w+)`", places)) == MODULES


def test_every_module_is_in_one_layer_and_a_new_one_must_be() -> None:
    layers = next(contract for contract in CONTRACTS if contract["type"] == "layers")
    named = [name for layer in layers["layers"] for name in layer.split(" | ")]
    assert layers["containers"] == ["exhume"] and layers["exhaustive"] is True
    assert sorted(named) == sorted(MODULES)


def test_the_parties_are_independent() -> None:
    apart = next(contract for contract in CONTRACTS if contract["type"] == "independence")
    assert set(apart["modules"]) == {"exhume.defence", "exhume.attack", "exhume.audit"}
    assert not any("ignore_imports" in contract for contract in CONTRACTS)


def test_the_rules_of_importing_are_kept() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout
