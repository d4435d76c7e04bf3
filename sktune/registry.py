"""Things that a recipe names, each in a folder of its own: what it is configured with, and what it does."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any


class Registry:
    """Names to folders; nothing is imported before it is asked for.

    The package of an entry `package:Class` holds `config.py` with `ClassConfig`, its section of the recipe, which
    imports neither torch nor transformers, and `<module>.py` with `Class`, which may.

    Args:
        noun: what an entry is, for messages.
        module: name of the module with the implementation.
        places: name -> `package:Class`.
    """

    def __init__(self, noun: str, module: str, places: Mapping[str, str]) -> None:
        self.noun = noun
        self.module = module
        self._places = dict(places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def config(self, name: str) -> type[Any]:
        """The class of its section.

        Raises:
            ValueError: for a name that is not registered, with the nearest one that is.
        """
        package, cls = self._place(name)
        config: type[Any] = getattr(import_module(f"{package}.config"), f"{cls}Config")
        assert config.model_fields["name"].default == name, f"{cls}Config.name is not {name!r}"
        return config

    def implementation(self, name: str) -> Any:
        """The class that does it.

        Raises:
            ValueError: as `config`.
        """
        package, cls = self._place(name)
        return getattr(import_module(f"{package}.{self.module}"), cls)

    def having(self, trait: str) -> list[str]:
        """The names of entries whose section has this trait."""
        return [name for name in self if getattr(self.config(name), trait)]

    def config_called(self, name: str) -> type[Any] | None:
        """The class of a section by its own name, `LoraConfig`; None where no entry has it."""
        for entry, place in self._places.items():
            if place.rpartition(":")[2] + "Config" == name:
                return self.config(entry)
        return None

    def read(self, value: Any) -> Any:
        """For pydantic's `BeforeValidator`: a mapping becomes the section that its `name` asks for."""
        return self.config(value.get("name", "")).model_validate(value) if isinstance(value, Mapping) else value

    def add(self, name: str, place: str) -> None:
        """Registers what another package brings.

        Args:
            name: as recipes write it.
            place: `package:Class`.

        Raises:
            ValueError: for a name that something else has, or a place that is not of this form.
        """
        if self._places.get(name, place) != place:
            raise ValueError(f"{self.noun} {name!r} is already {self._places[name]}; choose another name")
        package, _, cls = place.partition(":")
        if not (package and cls.isidentifier()):
            raise ValueError(f"{self.noun} {name!r}: {place!r} is not of the form package:Class")
        self._places[name] = place

    def _place(self, name: str) -> tuple[str, str]:
        if name not in self._places:
            near = difflib.get_close_matches(str(name), self._places, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"unknown {self.noun} {name!r}; allowed: {', '.join(self._places)}{meant}")
        package, _, cls = self._places[name].partition(":")
        return package, cls
