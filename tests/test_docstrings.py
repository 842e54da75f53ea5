"""Examples in docstrings are run: what they show is what happens."""

import doctest
import importlib
import pkgutil

import pytest

ROOMS = ("client", "common", "server", "simulations")


def modules() -> list[str]:
    """All modules of the four rooms."""
    names = []
    for room in ROOMS:
        package = importlib.import_module(room)
        names += [info.name for info in pkgutil.walk_packages(package.__path__, f"{room}.") if not info.ispkg]
    return names


@pytest.mark.parametrize("name", modules())
def test_every_example_in_a_docstring_gives_what_it_shows(name):
    """Each `>>>` of a module runs and prints what stands under it."""
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_examples_are_found_at_all():
    """The search above finds examples: it would not pass on an empty list."""
    found = doctest.DocTestFinder().find(importlib.import_module("common.privacy.accounting"))
    assert sum(len(test.examples) for test in found) >= 3
