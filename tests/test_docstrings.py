"""Every public name says by an example how it is used, and the examples are true."""

import ast
import doctest
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import exhume

STUB = (Path(__file__).parents[1] / "src" / "exhume" / "__init__.pyi").read_text()
PUBLIC = {name: getattr(exhume, name) for name in re.findall(r" as (\w+)$", STUB, re.MULTILINE)}
CALLABLE = {name: value for name, value in PUBLIC.items() if inspect.isroutine(value) or inspect.isclass(value)}
FUNCTIONS = [name for name in CALLABLE if not inspect.isclass(CALLABLE[name])]
GIVEN_BY = {
    "Candidates": "reconstruct",
    "Checkpoint": "load_checkpoint",
    "Examination": "examine",
    "ForeignNetwork": "read_network",
    "InputError": "load_problem",
    "Judgement": "judge",
    "Membership": "membership",
    "OwnedImages": "load_images",
    "Readability": "readability",
    "SearchOutcome": "find_start",
    "Start": "find_start",
}
"""What users are given and do not make: the example shows the call that gives it."""


def code(text: str) -> list[ast.stmt]:
    """The statements of a docstring's examples: of indented blocks that are Python; the Args and Raises are not."""
    statements: list[ast.stmt] = []
    for block in re.findall(r"(?:^ {4}.*\n?)+", text, re.MULTILINE):
        lines = textwrap.dedent(block).splitlines()
        prompted = [line[4:] for line in lines if line.startswith((">>> ", "... "))]
        try:
            statements += ast.parse("\n".join(prompted or lines)).body
        except SyntaxError:
            continue
    return statements


def calls(statements: list[ast.stmt]) -> list[tuple[str, ast.Call]]:
    """The calls of public names, as `exhume.name(...)` or `name(...)`."""
    found = [
        (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""), node)
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    ]
    return [(name, call) for name, call in found if name in CALLABLE]


def documentation(name: str) -> str:
    return inspect.getdoc(CALLABLE[name]) or ""


def parameters(text: str) -> list[str]:
    """The names that the section Args explains."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", text, re.MULTILINE)
    names = re.findall(r"^ {4}(\w+(?:, \w+)*): ", section.group(1), re.MULTILINE) if section else []
    return [name for group in names for name in group.split(", ")]


def test_the_stub_lists_functions_classes_and_tables_only() -> None:
    assert len(FUNCTIONS) > 15 and len(CALLABLE) > 25
    assert all(isinstance(value, dict) for name, value in PUBLIC.items() if name not in CALLABLE)


@pytest.mark.parametrize("name", CALLABLE)
def test_a_public_name_has_an_example_that_calls_it(name: str) -> None:
    assert GIVEN_BY.get(name, name) in [called for called, _ in calls(code(documentation(name)))]


@pytest.mark.parametrize("name", CALLABLE)
def test_an_example_calls_with_arguments_that_there_are(name: str) -> None:
    for called, call in calls(code(documentation(name))):
        keywords = {word.arg: word.value for word in call.keywords if word.arg is not None}
        inspect.signature(CALLABLE[called]).bind(*call.args, **keywords)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_explains_parameters_that_there_are(name: str) -> None:
    assert set(parameters(documentation(name))) <= set(inspect.signature(CALLABLE[name]).parameters)


def test_the_parameters_of_a_docstring_are_read() -> None:
    assert parameters("One.\n\nArgs:\n    a, b: two\n        more: no.\n    c: one\n\nRaises:\n    Error: x") == list(
        "abc"
    )


PROMPTED = [name for name in CALLABLE if ">>> " in documentation(name)]


@pytest.mark.parametrize("name", PROMPTED)
def test_an_example_with_output_gives_this_output(name: str) -> None:
    value: Callable[..., Any] = CALLABLE[name]
    words = dict(vars(sys.modules[value.__module__]))
    test = doctest.DocTestParser().get_doctest(documentation(name), words, name, None, None)
    result = doctest.DocTestRunner().run(test)
    assert result.failed == 0 and result.attempted > 0
