"""The registry: every method by name, plug-ins among them, and one line for what cannot be loaded."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.method import load
from bakeout.models.methods.options import MethodOptions
from bakeout.models.methods.registry import GROUP, method, methods, registered


def _registered(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> dict[str, object]:
    module = ModuleType("a_plug_in")
    module.METHOD = value  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_plug_in", module)
    return dict(registered([EntryPoint(name, "a_plug_in:METHOD", GROUP)], methods()))


@pytest.mark.parametrize("name", methods())
def test_a_method_is_whole(name: str) -> None:
    found = method(name)
    assert found.name == name
    assert issubclass(found.options, MethodOptions)
    assert "arXiv" in found.paper
    assert found.summary.endswith(".")
    assert all(field.description for field in found.options.model_fields.values())
    assert set(found.options.roles) <= found.options.model_fields.keys()
    for function in (found.fit, found.fitter, found.chosen, found.figures):
        assert function is None or callable(load(function))
    assert set(found.chooses) <= found.options.model_fields.keys()


@pytest.mark.parametrize("name", [name for name, found in methods().items() if found.search])
def test_what_is_searched_are_options_that_take_the_values(name: str) -> None:
    found = method(name)
    assert found.search is not None
    fields = found.options.model_fields
    assert found.search.strength in found.search.axes.keys() <= fields.keys()
    required = {key: "x" for key, field in fields.items() if field.is_required()}
    for start in found.search.starts:
        assert found.needed_search(found.options(**required, **start)) is None
    assert found.needed_search(found.options(**required, **{found.search.strength: "auto"})) is found.search


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(BakeoutError, match=r"called 'lunr'.*'lunar'"):
        method("lunr")


def test_other_packages_register_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(method("lunar"), name="other", title="Other")
    assert _registered(monkeypatch, "other", other) == {"other": other}


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("lunar", method("lunar"), "'lunar' of a_plug_in:METHOD is registered by Bakeout itself already"),
        ("other", method("lunar"), "a_plug_in:METHOD of a_plug_in:METHOD is no method called 'other'"),
        ("other", "a string", "is no method called 'other'"),
    ],
)
def test_what_is_no_new_method_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, cause: str
) -> None:
    with pytest.raises(BakeoutError, match=cause):
        _registered(monkeypatch, name, value)


def test_a_plug_in_that_cannot_be_loaded_is_named_in_one_line() -> None:
    with pytest.raises(
        BakeoutError, match=r"'other' of not_there:METHOD cannot be loaded: ModuleNotFoundError"
    ) as told:
        registered([EntryPoint("other", "not_there:METHOD", GROUP)], methods())
    assert "\n" not in str(told.value)
    twice = [EntryPoint("other", f"{value}:METHOD", GROUP) for value in ("bakeout.models.methods.lunar",) * 2]
    with pytest.raises(BakeoutError, match="is no method called 'other'"):
        registered(twice, methods())
