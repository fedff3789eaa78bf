"""Every mistake that a check names gets its own message: no two give the same result, and none the right one."""

import importlib
import inspect
import pkgutil
import re
import sys

import pytest

from titn_lib import course
from titn_lib.course.checks import NOT_YET, Verdict, compare, number

MODULES = [
    importlib.import_module(f"{course.__name__}.{found.name}") for found in pkgutil.iter_modules(course.__path__)
]
CHECKS = [check for module in MODULES for name, check in vars(module).items() if name.startswith("check_")]


def checks_with(pattern):
    return [check for check in CHECKS if re.search(pattern, inspect.getsource(check))]


def run(check, monkeypatch, **stand_ins):
    """A check's verdict, with stand-ins for `compare` and `number`."""
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(sys.modules[check.__module__], name, stand_in, raising=False)
    return check(*[lambda first, *_: first.sum()] * len(inspect.signature(check).parameters))


@pytest.mark.parametrize("check", checks_with(r"\bcompare\("), ids=lambda check: check.__name__)
def test_mistakes_in_functions(check, monkeypatch):
    named = []

    def list_them(answer, truth, inputs, mistakes, *_, **__):
        named.extend(mistakes)
        return NOT_YET

    run(check, monkeypatch, compare=list_them)
    assert len(named) >= 3
    for name in named:

        def make_it(answer, truth, inputs, mistakes, *rest, name=name, **more):
            return compare(mistakes[name], truth, inputs, mistakes, *rest, **more)

        assert repr(run(check, monkeypatch, compare=make_it)).endswith(f"this is what comes out when {name}.")


@pytest.mark.parametrize("check", checks_with(r"(=|return )number\("), ids=lambda check: check.__name__)
def test_mistakes_in_numbers(check, monkeypatch):
    asked = []

    def list_it(answer, truth, near=None, praise="", within=None):
        asked.append((truth, near or {}, within))
        return Verdict(True, "")

    run(check, monkeypatch, compare=lambda *_, **__: Verdict(True, ""), number=list_it)
    assert asked
    for truth, near, within in asked:
        assert number(truth, truth, near, within=within).right
        rounded = (
            truth * (1 + 0.9 * within) if within else truth if float(truth).is_integer() else float(f"{truth:.4g}")
        )
        assert number(rounded, truth, near, within=within).right
        for wrong, reason in near.items():
            assert repr(number(wrong, truth, near, within=within)).endswith(f" is not it: {reason}")
