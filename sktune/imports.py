"""Importing torch's and transformers' models without what a command that computes nothing has no use for.

Each part says what is imported in vain, and why; seen with torch 2.13 and transformers 5.23, and to be looked at again
with each new version of them.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

_COMPILER = "torch._dynamo"


@contextmanager
def importing() -> Iterator[None]:
    """Keeps the garbage collector from running while libraries are imported: they make many objects that all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def only_models() -> Iterator[None]:
    """Inside, transformers' models are imported, and run on tensors without contents, but nothing is compiled.

    What was imported before stays as it is.
    """
    with ExitStack() as stack, importing():
        if _COMPILER not in sys.modules:
            stack.enter_context(_without_compiler())
        if "transformers.modeling_utils" not in sys.modules:
            stack.enter_context(_without_scipy())
            stack.enter_context(_models_listed_once())
            import transformers.modeling_utils  # noqa: F401
        within = stack.pop_all()
    with within:
        yield


class _NoCompiler(ModuleType):
    """Stands for `torch._dynamo`, whose decorators are all that is asked for where nothing is compiled."""

    def disable(self, fn: Any = None, recursive: bool = True, **_: Any) -> Any:
        return fn if fn is not None else lambda fn: fn

    def allow_in_graph(self, fn: Any) -> Any:
        return fn

    assume_constant_result = allow_in_graph

    def __getattr__(self, name: str) -> Any:
        if name == "config":  # a module of settings, which recomputing a block reads
            return importlib.import_module(f"{_COMPILER}.config")
        raise AttributeError(name)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Cause: transformers' masks import a class from inside torch's compiler, and with it all of that (0.4 s)."""
    import torch

    found = importlib.util.find_spec(_COMPILER)
    assert found is not None and found.submodule_search_locations is not None
    module = _NoCompiler(_COMPILER)
    module.__path__, module.__spec__ = found.submodule_search_locations, found
    sys.modules[_COMPILER] = module
    with mock.patch.object(torch, "_dynamo", module, create=True):
        try:
            yield
        finally:
            del sys.modules[_COMPILER]  # whoever imports it from now on gets the real one


@contextmanager
def _without_scipy() -> Iterator[None]:
    """Cause: transformers' loss functions import the one for object detection, and with it SciPy's optimizers."""
    import transformers.utils

    with mock.patch.object(transformers.utils, "is_scipy_available", return_value=False):
        yield


@contextmanager
def _models_listed_once() -> Iterator[None]:
    """Cause: `transformers` reads each file of its models for their names, and `transformers.models` does so again.

    What was read is kept by `lru_cache`, of fewer folders than there are models.
    """
    import transformers
    from transformers.utils import import_utils

    listed: Callable[..., Any] = import_utils.define_import_structure
    models = Path(transformers.__file__).parent / "models"

    def known(module_path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(module_path) != models / "__init__.py":
            return listed(module_path, prefix=prefix)
        of_all = listed(models, prefix="models")  # as transformers itself has called it
        return {
            needed: {name.removeprefix("models."): objects for name, objects in modules.items()}
            for needed, modules in of_all.items()
        }

    with mock.patch.object(import_utils, "define_import_structure", known):
        yield
