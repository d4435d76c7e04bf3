"""Recipe files as YAML: read with line numbers and without YAML 1.1's surprises, and written back.

The loader is PyYAML's safe one with YAML 1.2's plain scalars: `1e-3` is a number, while `no`, `off`,
`1:30` and `2024-01-01` are texts (a field that takes true or false accepts `no` and `off` all the same).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from sktune.errors import Problem
from sktune.recipe.errors import RecipeError

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+$|0o[0-7]+$|0x[0-9a-fA-F]+$")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_NUMBER_STARTS = list("-+.0123456789")

# No recipe comes near: the longest that comes with sktune has 90 lines.
LARGEST_FILE = 2**20
"""Bytes of a recipe file."""
_MOST_VALUES = 20_000
"""Values of a recipe, each counted as often as an alias repeats it."""
_DEEPEST = 20
_LONGEST_NUMBER = 40


class RecipeLoader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 scalars, within bounds: of depth, of values with their aliases, of numbers.

    Whatever is refused is a `yaml.YAMLError` with its place.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own shape)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}
        """Values in each node that is complete, by the node's id; the nodes all live until the loader is done."""
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            _refuse(f"more than {_DEEPEST} levels inside each other", self.peek_event().start_mark)
        event = self.peek_event()
        node = super().compose_node(parent, index)
        assert node is not None  # there is an event to make it of
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                _refuse("an anchor that contains itself", node.start_mark)
            return node
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", _TAG + "str", _TAG + "seq", _TAG + "map"):
            _refuse(f"the tag {tag}, which means nothing in a recipe", event.start_mark)
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        self._sizes[id(node)] = size = 1 + sum(self._sizes[id(part)] for part in inner)
        if size > _MOST_VALUES:
            _refuse(f"more than {_MOST_VALUES:,} values, counted as often as an alias repeats them", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """With every key as its text; that one is none is noted with its place, see `_collect_keys`."""
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = _TAG + "str"
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        return content

    def read_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > _LONGEST_NUMBER:
            _refuse(f"a number of more than {_LONGEST_NUMBER} characters", node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def read_float(self, node: yaml.ScalarNode) -> float:
        text = self.construct_scalar(node).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _refuse(what: str, mark: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=what, problem_mark=mark)


for _name, _pattern, _starts in (
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", _INT, _NUMBER_STARTS),
    ("float", _FLOAT, _NUMBER_STARTS),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<$"), ["<"]),
):
    RecipeLoader.add_implicit_resolver(_TAG + _name, _pattern, _starts)
RecipeLoader.add_constructor(_TAG + "int", RecipeLoader.read_int)
RecipeLoader.add_constructor(_TAG + "float", RecipeLoader.read_float)


class RecipeDumper(yaml.SafeDumper):
    """The safe dumper; it also quotes texts that `RecipeLoader` alone would read as numbers."""


RecipeDumper.add_implicit_resolver(_TAG + "int", _INT, _NUMBER_STARTS)
RecipeDumper.add_implicit_resolver(_TAG + "float", _FLOAT, _NUMBER_STARTS)


FORMAT_KEY = "recipe_format"
FORMAT = 1
"""Of recipes that a run writes with every field in them, so that later defaults do not change what they mean."""


@dataclass
class Document:
    """A YAML file's mapping, the place (`file:line`) of every dotted key, and what is wrong with the keys."""

    mapping: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    written_whole: bool = False
    """Whether a run has written it, with every field: that one is given does not mean that somebody wanted it."""


def parse_value(text: str) -> Any:
    """One YAML value, as on the right of an override. Raises yaml.YAMLError."""
    return yaml.load(text, RecipeLoader)


def to_yaml(mapping: dict[str, Any]) -> str:
    """YAML text in the mapping's own order."""
    return yaml.dump(mapping, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=100)


def read_document(path: Path) -> Document:
    """Read one recipe file; duplicate and non-text keys are collected in `problems`.

    Raises:
        RecipeError: The file is missing or unreadable, is not YAML, or is not a mapping.
    """
    loader = None
    try:
        loader = RecipeLoader(_text_of(path))
        node = loader.get_single_node()
        document = Document({})
        if node is not None:
            _collect_keys(node, "", document, str(path))
            content = loader.construct_document(node)
            if isinstance(content, dict):
                document.mapping = content
                _take_format(document)
                return document
    except OSError as error:
        raise RecipeError(str(path), [_unreadable(path, error)]) from None
    except UnicodeDecodeError as error:
        problem = Problem("", f"is not UTF-8 text: {error.reason}", cure="save it as UTF-8.", place=str(path))
        raise RecipeError(str(path), [problem]) from None
    except yaml.YAMLError as error:
        raise RecipeError(str(path), [_not_yaml(path, error)]) from None
    finally:
        if loader is not None:
            loader.dispose()
    problem = Problem(
        "",
        "is empty" if node is None else "is not a mapping of sections",
        allowed="the sections model, method, task, data, output and others, each with its fields below it",
        cure="start from a copy of recipes/quickstart.yaml.",
        place=str(path),
    )
    raise RecipeError(str(path), [problem])


def _take_format(document: Document) -> None:
    if FORMAT_KEY not in document.mapping:
        return
    version = document.mapping.pop(FORMAT_KEY)
    document.written_whole = True
    if version != FORMAT or isinstance(version, bool):
        later = isinstance(version, int) and version > FORMAT
        document.problems.append(
            Problem(
                FORMAT_KEY,
                "is of a later sktune" if later else "is no format of a recipe that sktune writes",
                str(FORMAT),
                "install the sktune that has written it." if later else "leave it out of a recipe of your own.",
                value=f"= {version!r}"[:80],
                place=document.places[FORMAT_KEY],
            )
        )


def _text_of(path: Path) -> str:
    """The text of a recipe file; no more of it is read than a recipe may have."""
    with path.open("rb") as file:
        raw = file.read(LARGEST_FILE + 1)
    if len(raw) > LARGEST_FILE:
        problem = Problem("", f"is larger than {LARGEST_FILE:,} bytes", "a recipe", "name a recipe.", place=str(path))
        raise RecipeError(str(path), [problem])
    return raw.decode("utf-8-sig")


def _collect_keys(node: yaml.Node, prefix: str, document: Document, source: str) -> None:
    """Note every key's place; find keys given twice, and keys that are not text."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect_keys(item, f"{prefix}.{index}", document, source)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        name = f"{prefix}.{key.value}" if prefix else str(key.value)
        line = key.start_mark.line + 1
        if key.tag not in (_TAG + "str", _TAG + "merge"):
            document.problems.append(Problem(name, "a key must be text", "text", "put the key in quotes."))
        elif name in first:
            message = f"is given twice: on line {first[name]} and again on line {line}"
            document.problems.append(Problem(name, message, "each key once", "keep one of the two."))
        first.setdefault(name, line)
        document.places[name] = f"{source}:{line}"
        _collect_keys(value, name, document, source)


def _unreadable(path: Path, error: OSError) -> Problem:
    if path.is_dir():
        own = path / "recipe.yaml"
        message, cure = "is a folder", f"name {own}" if own.is_file() else f"name its files: {path}/*.yaml"
    elif not path.exists():
        beside = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        message = "does not exist"
        cure = f"did you mean {path.parent / near[0]}?" if near else "check the path."
    else:
        message, cure = f"cannot be read: {error.strerror}", "check the file's permissions."
    return Problem("", message, "a YAML file", cure, place=str(path))


def _not_yaml(path: Path, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if "mapping values" in what:
        cure = "check the indentation; a text that contains `: ` needs quotes."
    elif "\\t" in what:
        cure = "indent with spaces, not tabs."
    else:
        cure = "check indentation, brackets and quotes up to this place."
    return Problem("", f"is not valid YAML: {what}", cure=cure, place=place)
