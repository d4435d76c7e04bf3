"""Adapters of one frozen model, by name; each is kept as what it adds to every input, and its head."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from sktune.allocator import give_back_freed_memory
from sktune.backbone import Backbone, Woven, load_backbone, load_tokenizer
from sktune.backbone.attention import GatedPrompt, LayerKeyValues
from sktune.backbone.placement import OneProcess
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.methods.method import Method
from sktune.methods.peft_layers import adapters_in, remove_peft_layers
from sktune.methods.peft_names import adapter_of
from sktune.model.adapter import adapter_folder, read_adapter, read_card, read_recipe
from sktune.model.identity import IDENTITY, MODEL, VOCABULARY
from sktune.model.saving import put_adapter
from sktune.recipe import Recipe
from sktune.training.setup import Frozen, Setup, prepare

_OF_THE_MODEL = ("name_or_path", "gguf_file", "tokenizer", "revision", "dtype")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Constant(Method):
    """Stands for a method that does not train any more: what it adds, without what that was made of."""

    def __init__(self, method: Method, woven: Woven) -> None:
        super().__init__()
        self.config, self.positions, self.peft_adapter = method.config, method.positions, method.peft_adapter
        self._woven = woven

    def forward(self, backbone: Backbone) -> Woven:
        return self._woven


@dataclass(frozen=True, eq=False)
class Served:
    """An adapter, ready to answer.

    name: as requests call it.
    folder: where it came from.
    setup: the model with its head, and how texts are read and answers shown; its method is a `Constant`.
    woven: what it adds to every input, in the model's dtype.
    size: bytes that it holds besides the frozen model's.
    """

    name: str
    folder: Path
    setup: Setup
    woven: Woven
    size: int

    @property
    def reads_pairs(self) -> bool:
        """Whether a question has a second text."""
        return self.setup.recipe.data.text_pair_column is not None


class _Found(NamedTuple):
    """An adapter's folder, read but for its weights."""

    name: str
    folder: Path
    recipe: Recipe
    belongs_to: Mapping[str, Any]

    @property
    def place(self) -> str:
        return f"--adapter {self.name}={self.folder}"


class Shelf(Mapping[str, Served]):
    """One frozen model and the adapters on it, by name.

    `add` and `remove` are for the thread that reads with the model. A tokenizer is not to be used by two threads at
    once: whoever uses it holds `encoding`.

    Args:
        adapters: name -> folder of a run, or of an adapter; one at least.
        ranks: this process, alone.
        overrides: changes of their recipes, of all of them.

    Raises:
        UserError: naming the adapter, where one has another frozen model than the first one, or cannot be with others.
    """

    def __init__(self, adapters: Mapping[str, Path], ranks: Ranks, overrides: Sequence[str] = ()) -> None:
        self.encoding = threading.Lock()
        self._ranks = ranks
        self._overrides = [*overrides, "distributed.deepspeed=null"]
        self._served: dict[str, Served] = {}
        found = [self._read(name, folder) for name, folder in adapters.items()]
        self._first = found[0]
        for other in found:
            self._refuse_other_model(other)
            self._refuse_together(other, [one for one in found if one is not other])
        recipe = self._first.recipe
        # Any of them, and one that is added later, may put a prefix in front.
        backbone = load_backbone(
            recipe.model,
            recipe.quantization,
            language_model=any(one.recipe.needs_language_model for one in found),
            visible_prefix=True,
            placement=OneProcess(ranks.device),
        )
        self._frozen = Frozen(backbone, load_tokenizer(recipe.model))
        for one in found:
            self._put(one)

    def __getitem__(self, name: str) -> Served:
        return self._served[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._served))  # another thread may add one meanwhile

    def __len__(self) -> int:
        return len(self._served)

    @property
    def model_name(self) -> str:
        """The frozen model, as the first adapter's recipe calls it."""
        return self._first.recipe.model.name_or_path

    def add(self, name: str, folder: Path) -> Served:
        """Puts one more adapter on the model.

        Raises:
            UserError: for a name that is taken, a folder without an adapter, and one that does not belong here.
        """
        if name in self._served:
            raise UserError(f"{name}: there is an adapter of this name; remove it first, or choose another name")
        found = self._read(name, folder)
        self._refuse_other_model(found)
        self._refuse_together(found, [_Found(one.name, one.folder, one.setup.recipe, {}) for one in self.values()])
        if found.recipe.method.needs_training_data:
            raise UserError(f"{found.place}: {found.recipe.method.name} reads training data; name it at the start")
        if found.recipe.needs_language_model and not self._frozen.backbone.is_language_model:
            raise UserError(
                f"{found.place}: it answers with the language model's own head, which was not loaded, since no adapter "
                "at the start of this server needed it; start the server with this adapter"
            )
        return self._put(found)

    def remove(self, name: str) -> None:
        """Takes an adapter off the model; nothing may be reading with it.

        Raises:
            UserError: where there is none of this name.
        """
        if name not in self._served:
            raise UserError(f"{name}: there is no adapter of this name; there are: {', '.join(self._served)}")
        method = self._served.pop(name).setup.model.method
        if method.peft_adapter is not None:
            remove_peft_layers(self._frozen.backbone.model, {method.peft_adapter})
        give_back_freed_memory()

    def _read(self, name: str, folder: Path) -> _Found:
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} is no name for an adapter; allowed: up to 64 letters, digits and . _ -")
        place = adapter_folder(folder)
        recipe = read_recipe(place, self._overrides, reads_data=False).recipe
        return _Found(name, place, recipe, read_card(place).get(IDENTITY) or {})

    def _refuse_other_model(self, found: _Found) -> None:
        """Refuses an adapter of another frozen model than the first one's, as recipes and fingerprints say."""
        for field, there, here in _differences(found, self._first):
            raise UserError(
                f"{found.place}: {field} is {there!r}, and {here!r} of {self._first.name}, whose model this server "
                "holds; start another server for it" + (f", or say {field}=... for both" if "." in field else "")
            )

    def _refuse_together(self, found: _Found, others: Sequence[_Found]) -> None:
        method = found.recipe.method
        if others and method.trains_backbone:
            raise UserError(
                f"{found.place}: {method.name} has trained the model's own weights, which then are no other adapter's; "
                "start a server for it alone"
            )
        for other in others:
            there = other.recipe.method
            if there.trains_backbone or (method.inside_model and there.inside_model and method.name != there.name):
                raise UserError(
                    f"{found.place}: {other.recipe.method.name} of {other.name} is inside the model's own modules, and "
                    f"{method.name} cannot be there too; start another server for it"
                )

    def _put(self, found: _Found) -> Served:
        backbone = self._frozen.backbone
        model: PreTrainedModel = backbone.model if found.recipe.needs_language_model else backbone.base
        own = Backbone(model, attn_implementation=backbone.attn_implementation)
        _, labels = read_adapter(found.folder)
        before = adapters_in(backbone.model)
        try:
            with self.encoding, torch.no_grad():
                frozen = Frozen(own, self._frozen.tokenizer)
                setup = prepare(found.recipe, self._ranks, labels=labels, read_data=False, frozen=frozen)
                put_adapter(setup.model, setup.belongs_to(), found.folder)
                setup.model.to(self._ranks.device).eval()
                woven = _copied(setup.model.woven(), backbone.dtype)
        except BaseException:
            remove_peft_layers(backbone.model, adapters_in(backbone.model) - before)
            raise
        setup.model.method = Constant(setup.model.method, woven)
        served = Served(found.name, found.folder, setup, woven, _size(setup, woven))
        self._served[found.name] = served
        # What it was made of is gone, and lay between what stays.
        give_back_freed_memory()
        return served


def _differences(found: _Found, first: _Found) -> Iterator[tuple[str, Any, Any]]:
    """(field, its value there, the first one's) where the frozen models differ."""
    for field in _OF_THE_MODEL:
        there, here = (_place(getattr(one.recipe.model, field)) for one in (found, first))
        if there != here:
            yield f"model.{field}", there, here
    packed = [one.recipe.quantization for one in (found, first)]
    if packed[0].bits != packed[1].bits:
        there, here = (f"{one.bits} bits" if one.bits else "none" for one in packed)
        yield "quantization", there, here
    elif packed[0].bits:
        for name in type(packed[0]).model_fields:
            there, here = (getattr(one, name) for one in packed)
            if there != here:
                yield f"quantization.{name}", there, here
    for field in (MODEL, VOCABULARY):
        there, here = (one.belongs_to.get(field) for one in (found, first))
        if there and here and there != here:
            yield f"the fingerprint of the {field}", there, here


def _place(value: str | None) -> str | None:
    return str(Path(value).resolve()) if value is not None and Path(value).exists() else value


def _copied(woven: Woven, dtype: torch.dtype) -> Woven:
    """The same in the dtype that it is read in, without what else its storages hold."""

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(dtype, copy=True).contiguous()

    prefix, gated, prompt = woven.prefix, woven.gated, woven.prompt
    return woven._replace(
        prompt=None if prompt is None else copied(prompt),
        prefix=prefix and [(name, LayerKeyValues(*map(copied, pair))) for name, pair in prefix],
        gated=gated and [(name, GatedPrompt(*(part.detach().clone() for part in prompt))) for name, prompt in gated],
    )


def _size(setup: Setup, woven: Woven) -> int:
    tensors = [*setup.model.head.parameters(), *setup.model.head.buffers()]
    tensors += [] if woven.prompt is None else [woven.prompt]
    tensors += [tensor for _, parts in (*(woven.prefix or ()), *(woven.gated or ())) for tensor in parts]
    tensors += [parameter for _, module in woven.behind or () for parameter in module.parameters()]
    tensors += [p for name, p in setup.model.own_parameters().items() if adapter_of(name) is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
