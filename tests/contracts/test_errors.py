"""The error tree: what its page shows is what the classes are, and every leaf says whose fault it is and what to do."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import TypeVar

import pytest

import contracts
from contracts import errors, limits
from contracts.errors import FareboxError, LocalError, MalformedMessage, PaymentRefused, RemoteError

T = TypeVar("T")

# Names for a type expression, of use inside their module only.
ALIASES = {"Call", "Work"}
EXIT_CODES = {1, 2, 3, 4, 5, 6}
BRANCH = re.compile(r"(?P<indent>(?:│   |    )*)(?:├── |└── )(?P<name>\w+) +(?P<meaning>\S.*)")


def all_classes(root: type[T]) -> list[type[T]]:
    return [root] + [found for child in root.__subclasses__() for found in all_classes(child)]


def contracts_modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(contracts.__path__, "contracts.")
    return [importlib.import_module(module.name) for module in found]


MODULES = contracts_modules()
CLASSES = [kind for kind in all_classes(FareboxError) if kind.__module__.startswith("contracts")]

LEAVES = [kind for kind in CLASSES if not any(issubclass(other, kind) for other in CLASSES if other is not kind)]


def tree_of_the_page() -> dict[str, str]:
    """Return child -> parent as the module's docstring draws it."""
    assert errors.__doc__ is not None
    path, drawn = ["FareboxError"], {}
    for line in errors.__doc__.splitlines():
        if branch := BRANCH.fullmatch(line):
            depth = len(branch["indent"]) // 4 + 1
            del path[depth:]
            drawn[branch["name"]] = path[-1]
            path.append(branch["name"])
    return drawn


def test_the_drawn_tree_is_the_class_tree() -> None:
    real = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, FareboxError) and kind is not FareboxError
    }
    assert tree_of_the_page() == real


def test_every_error_of_the_page_has_one_parent() -> None:
    assert all(len(kind.__bases__) == 1 for kind in CLASSES)


def test_no_two_errors_share_a_code() -> None:
    # A finer kind that names none is its parent to everybody but its caller.
    codes = [kind.code for kind in CLASSES if "code" in vars(kind)]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_has_a_stable_code_a_status_an_exit_code_and_advice(kind: type[FareboxError]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.code)
    assert 400 <= kind.http_status <= 599
    assert kind.exit_code in EXIT_CODES
    assert kind.remedy
    assert not kind.remedy.endswith(".")
    assert kind.__doc__


@pytest.mark.parametrize(
    "kind", [kind for kind in CLASSES if not kind.__subclasses__()], ids=lambda kind: kind.__name__
)
def test_a_leaf_says_what_to_do_in_its_own_words(kind: type[FareboxError]) -> None:
    assert kind.remedy != FareboxError.remedy


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_what_may_pass_by_waiting_says_how_long(kind: type[FareboxError]) -> None:
    if kind.http_status in (429, 503) and kind.code != "signer_failed":
        assert kind.retry_after_s is not None
        assert 0 < kind.retry_after_s <= 60


def test_our_own_failures_are_never_answered_with_402() -> None:
    refusals = all_classes(errors.LocalRefusal)
    for kind in all_classes(LocalError):
        assert kind.http_status != 402 or kind in refusals


@pytest.mark.parametrize("kind", [*all_classes(PaymentRefused), MalformedMessage], ids=lambda kind: kind.__name__)
def test_a_refused_payment_carries_the_reason_other_implementations_use(kind: type[PaymentRefused]) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", kind.x402_reason)
    assert kind.exit_code == 3


def test_a_refused_payment_is_the_clients_to_mend() -> None:
    for kind in all_classes(PaymentRefused):
        assert 400 <= kind.http_status < 500
        assert issubclass(kind, RemoteError)


def test_an_error_keeps_its_message_and_may_carry_better_advice() -> None:
    plain = errors.NameUnknown("no purchase named qwen")
    assert (str(plain), plain.message, plain.advice) == (
        "no purchase named qwen",
        "no purchase named qwen",
        "run `farebox list`",
    )
    assert errors.NameUnknown("no file", remedy="create it").advice == "create it"


def public_names(module: ModuleType) -> set[str]:
    """Return what a module defines itself at its top level and does not mark private."""
    names: set[str] = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_") and not isinstance(getattr(module, name), TypeVar)}


@pytest.mark.parametrize(
    "module", [module for module in MODULES if module is not limits], ids=lambda module: module.__name__
)
def test_a_module_lists_exactly_what_it_offers(module: ModuleType) -> None:
    offered = public_names(module)
    listed = list(getattr(module, "__all__", []))
    assert len(listed) == len(set(listed))
    assert all(hasattr(module, name) for name in listed)
    assert offered - ALIASES <= set(listed)
