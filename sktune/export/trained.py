"""A trained adapter as constants: what its method adds to every input, its head, and what they belong to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_model
from transformers import BitsAndBytesConfig, PreTrainedModel

from sktune.backbone import Woven
from sktune.backbone.model_files import find_gguf
from sktune.distributed.ranks import Ranks
from sktune.embedded import model_location
from sktune.errors import UserError
from sktune.inference import load_trained
from sktune.recipe import Recipe
from sktune.tasks.heads import TrainedHead
from sktune.training.setup import Setup


class Usage(NamedTuple):
    """How what was written is used: lines of Python, and what has to be known besides."""

    code: str
    note: str


class Trained(NamedTuple):
    """What there is to export.

    folder: the run's.
    overrides: with which its recipe was read.
    setup: the model as it was trained, on the CPU, in evaluation mode.
    woven: what its method adds to every row.
    """

    folder: Path
    overrides: Sequence[str]
    setup: Setup
    woven: Woven

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    @property
    def method(self) -> str:
        return self.setup.recipe.method.name

    def head(self) -> dict[str, torch.Tensor]:
        """Weight [outputs, d] and bias [outputs] of the head, fp32; empty where the language model answers."""
        head = self.setup.model.head
        if not isinstance(head, TrainedHead):
            return {}
        assert not head.centre.any(), "a saved adapter has its centre in the bias"
        return {"weight": head.classifier.weight.detach().clone(), "bias": head.classifier.bias.detach().clone()}

    def prefix(self) -> dict[str, torch.Tensor]:
        """Keys and values of the prefix, `layers.<i>.key` and `.value` [P, kv_heads, head_dim]; empty without one."""
        return {
            f"layers.{layer}.{kind}": tensor[0].transpose(0, 1)
            for layer, (_, pair) in enumerate(self.woven.prefix or ())
            for kind, tensor in (("key", pair.key), ("value", pair.value))
        }

    def refuse_own_weights(self) -> None:
        """Refuses what is no addition to a model.

        Raises:
            UserError: for a template, and for trained weights of the model itself.
        """
        method = self.recipe.method
        if method.answers_in_words or method.trains_backbone:
            what = "is a template on the data" if method.answers_in_words else "trains the model's own weights"
            raise UserError(
                f"{self.folder}: {method.name} {what} and has nothing that could be put on another model; `--to "
                "mlflow` takes every method"
            )

    def usage(self, code: str) -> Usage:
        """Of what reads rows of token ids."""
        opening = (
            "Rows have no special tokens (`add_special_tokens=False`): the text in front has brought the BOS."
            if self.recipe.method.opens_sequence
            else "Rows are tokenized as the tokenizer does by itself."
        )
        return Usage(
            code,
            f"{opening} Pad on the right: on the left, tools other than sktune put padding between the text and the "
            "input.",
        )

    def refuse_hidden_prefix(self) -> None:
        """Refuses a prefix that attention elsewhere would slide its window past.

        Raises:
            UserError: with the longest input that is possible.
        """
        window = getattr(self.setup.model.backbone.config, "sliding_window", None)
        longest = self.setup.model.method.positions + self.recipe.data.max_length
        if self.woven.prefix is not None and window is not None and longest > window:
            raise UserError(
                f"{self.folder}: inputs of up to {longest} positions pass the window of {window} of this "
                f"{self.setup.model.backbone.family}, behind which other tools hide the prefix; allowed: "
                f"data.max_length up to {window - self.setup.model.method.positions}"
            )


def read_trained(folder: Path, overrides: list[str], scored: str | None) -> Trained:
    """The adapter of a run's folder.

    Args:
        folder: of the run.
        overrides: changes of its recipe.
        scored: a split to read the data of, or None.

    Raises:
        UserError: where there is no adapter.
    """
    alone = Ranks(0, 0, 1, torch.device("cpu"), launched=False)
    _, setup = load_trained(folder, alone, [*overrides, "distributed.deepspeed=null"], scored=scored)
    setup.model.eval()
    with torch.no_grad():
        return Trained(folder, tuple(overrides), setup, setup.model.woven())


def plain_model(recipe: Recipe, kind: Any, *, folder: Path | None = None, **options: Any) -> PreTrainedModel:
    """The frozen model as transformers itself loads it, at the precision of the recipe; on the CPU.

    Args:
        recipe: names it.
        kind: an auto class of transformers.
        folder: of a checkpoint that is loaded in its place.
        options: of its `from_pretrained`.
    """
    place, named = place_of(recipe) if folder is None else (str(folder), dict[str, str]())
    options |= named | {"dtype": getattr(torch, recipe.model.dtype)}
    options |= {"revision": recipe.model.revision} if folder is None else {}
    quantization = recipe.quantization
    if quantization.bits is None:
        model: PreTrainedModel = kind.from_pretrained(place, **options)
        return model.eval()
    packed = BitsAndBytesConfig(
        load_in_4bit=quantization.load_in_4bit,
        load_in_8bit=quantization.load_in_8bit,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=options["dtype"],
    )
    if not named:
        return kind.from_pretrained(place, quantization_config=packed, **options).eval()
    with TemporaryDirectory() as unpacked:
        # transformers does not quantize what it reads from a GGUF file.
        save_plain(kind.from_pretrained(place, **options), Path(unpacked))
        rest = {key: value for key, value in options.items() if key not in (*named, "revision")}
        return kind.from_pretrained(unpacked, quantization_config=packed, **rest).eval()


def save_plain(model: PreTrainedModel, folder: Path) -> None:
    """Saves an unquantized model of transformers whole; also one that was read from a GGUF file."""
    if getattr(model.config, "quantization_config", None) is None:
        model.save_pretrained(str(folder))
        return
    # By its own method transformers does not save what it has read from a GGUF file.
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    config.save_pretrained(str(folder))
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    if model.can_generate():
        model.generation_config.save_pretrained(str(folder))


def loading(recipe: Recipe, kind: str, more: str = "") -> str:
    """The line of Python that loads the frozen model by transformers."""
    place, named = place_of(recipe)
    revision = {} if recipe.model.revision is None else {"revision": recipe.model.revision}
    options = "".join(f', {name}="{value}"' for name, value in {**named, **revision}.items())
    return f'base = {kind}.from_pretrained("{place}"{options}, dtype=torch.{recipe.model.dtype}{more}).eval()'


def place_of(recipe: Recipe) -> tuple[str, dict[str, str]]:
    """What `from_pretrained` is given: a folder or hub id, and a GGUF file in it."""
    model = recipe.model
    file = find_gguf(model.name_or_path, model.gguf_file, model.revision)
    if file is not None:
        return str(file.parent), {"gguf_file": file.name}
    return model_location(model.name_or_path), {}
