"""A model in one GGUF file (llama.cpp's format): its configuration, tokenizer and weights, as transformers reads them.

transformers reads such a file whole, in 32 bits; here it is a source of weights like any other, dequantized in chunks
of rows. Names and blocks are the package gguf's (llama.cpp's own).
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, dequantize, get_tensor_name_map
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations import GGUF_CONFIG_MAPPING

from sktune.backbone.gguf_header import Header, StoredTensor, read_header
from sktune.errors import UserError

ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}
"""What is understood, by `general.architecture`: here transformers derives the whole configuration from the header
(of others it leaves out scales, windows or rotary settings), and nothing but rows has to be moved. Mistral is a llama.
"""
_NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
"""What a configuration class would otherwise take from the first model of its family."""
CHUNK_ELEMENTS = 2**20
"""Numbers dequantized at once where a whole tensor is asked for."""


def read_gguf_config(path: Path) -> PretrainedConfig:
    """The configuration in a file's header, by transformers' own table; its own reader takes seconds for it.

    Raises:
        UserError: for a damaged file, and for a model that is not understood.
    """
    header = _understood_header(path)
    architecture = header.fields["general.architecture"]
    found: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in header.tensors}
    table: Any = GGUF_CONFIG_MAPPING  # section -> key of the file -> field of the configuration, or None
    for section in (architecture, "tokenizer"):
        for key, name in table[section].items():
            if name is not None and f"{section}.{key}" in header.fields:
                found[name] = header.fields[f"{section}.{key}"]
    found.setdefault("vocab_size", header.fields.get("tokenizer.ggml.tokens"))
    missing = [key for key, name in table[architecture].items() if name in _NEEDED and name not in found]
    if missing or found["vocab_size"] is None:
        raise UserError(
            f"model.name_or_path: {path} does not say its {', '.join(missing) or 'vocabulary'}; give the folder of "
            "safetensors it was made from"
        )
    try:
        return AutoConfig.for_model(architecture, **found)
    except Exception as error:  # transformers' checks of types and ranges raise several kinds
        reason = " ".join(str(error).split())
        raise UserError(f"model.name_or_path: {path} describes an impossible model ({reason})") from error


def load_gguf_tokenizer(path: Path, field: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a file's header, with its chat template.

    Args:
        path: the file.
        field: of the recipe, for messages.

    Raises:
        UserError: for a damaged file, a model that is not understood, and a tokenizer that is missing or unknown.
    """
    _understood_header(path, field)
    try:
        # In a folder of its own: transformers would take a tokenizer.json that happens to lie beside the file instead.
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / path.name).symlink_to(path.resolve())
            tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=path.name)
    except Exception as error:
        raise UserError(
            f"{field}: no tokenizer could be loaded from {path} ({error!r}); name a folder that has one in "
            "model.tokenizer"
        ) from error
    tokenizer.name_or_path = str(path)
    return tokenizer


def _understood_header(path: Path, field: str = "model.name_or_path") -> Header:
    """The header of a whole file with a model that can be read.

    Raises:
        UserError: for any other.
    """
    try:
        header = read_header(path)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    fields = header.fields
    architecture, kind = fields.get("general.architecture"), fields.get("general.type", "model")
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    if scaling == "none" and any(name.startswith("rope_") for name in header.tensors):
        scaling = "by factors of its own"
    if fields.get("split.count", 1) not in (0, 1):
        why = (
            f"is one of {fields['split.count']} parts of a split GGUF file; put them together first "
            "(`llama-gguf-split --merge FIRST_PART WHOLE_FILE` of llama.cpp)"
        )
    elif architecture not in ARCHITECTURES or kind != "model":
        why = (
            f"is of the type {kind!r} and the architecture {architecture!r}, which is not understood as GGUF; 'model' "
            f"and {', '.join(ARCHITECTURES)} are. Give the folder of safetensors it was made from"
        )
    elif fields.get(f"{architecture}.expert_count", 0):
        why = "holds a mixture of experts, which is not understood; give a dense model"
    elif scaling != "none":
        why = (
            f"scales its rotary frequencies ({scaling}), which transformers does not read from GGUF: it would be "
            "another model. Give the folder of safetensors it was made from"
        )
    else:
        return header
    raise UserError(f"{field}: {path} {why}")


class GgufWeights:
    """The tensors of a GGUF file, under the names that the parameters of a model have.

    Args:
        path: the file.
        network: the skeleton they are for.

    Raises:
        UserError: for a damaged file, and one with tensors that such a model has no place for.
    """

    def __init__(self, path: Path, network: PreTrainedModel) -> None:
        self._path = path
        header = _understood_header(path)
        architecture = header.fields["general.architecture"]
        config = network.config
        spelled = get_tensor_name_map(ARCHITECTURES[architecture], config.num_hidden_layers)
        self._tensors: dict[str, StoredTensor] = {}
        self._order: dict[str, np.ndarray] = {}
        unplaced = set(header.tensors) - {"output.weight"}  # the language model's head is not always used
        for name in network.state_dict():
            module, _, kind = name.rpartition(".")
            stored = f"{spelled.get_name(module)}.{kind}"
            if stored not in header.tensors:
                continue
            unplaced.discard(stored)
            tensor = self._tensors[name] = header.tensors[stored]
            if architecture == "llama" and (".attn_q." in stored or ".attn_k." in stored):
                heads = config.num_attention_heads if ".attn_q." in stored else config.num_key_value_heads
                if tensor.shape[0] % (2 * heads) == 0:  # else its shape is refused later
                    self._order[name] = _rotary_order(tensor.shape[0], heads)
        if unplaced:
            raise UserError(
                f"model.name_or_path: {path} holds {len(unplaced)} tensors ({min(unplaced)}, say) that transformers' "
                f"{config.model_type} has no place for; give the folder of safetensors it was made from"
            )

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes

    def file(self, name: str) -> Path:
        return self._path

    def check_is_float(self, name: str) -> None:
        kind = self._tensors[name].kind
        if not _can_dequantize(kind):
            known = ", ".join(other.name for other in GGMLQuantizationType if _can_dequantize(other))
            raise UserError(
                f"model.name_or_path: {self._path}: tensor {name} is stored as {kind.name}, which cannot be read; "
                f"give a file of {known}"
            )

    def tensor(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        shape = self.shape(name)
        whole = torch.empty(shape, dtype=dtype, device=device)
        matrix = whole.view(-1, shape[-1])
        step = max(1, CHUNK_ELEMENTS // shape[-1])
        for start in range(0, len(matrix), step):
            stop = min(start + step, len(matrix))
            matrix[start:stop] = self._dequantized(name, start, stop)
        return whole

    def rows(
        self, name: str, start: int, stop: int, *, transposed: bool, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        assert not transposed  # in none of ARCHITECTURES
        return self._dequantized(name, start, stop).to(device=device, dtype=dtype)

    def _dequantized(self, name: str, start: int, stop: int) -> torch.Tensor:
        """[stop - start, columns] fp32. The file is mapped for this call alone, so that its pages do not pile up."""
        tensor = self._tensors[name]
        columns = tensor.shape[-1]
        count = int(np.prod(tensor.shape[:-1], dtype=np.int64))
        packed = np.memmap(self._path, np.uint8, "r", tensor.start, (count, tensor.nbytes // count))
        order = self._order.get(name)
        taken = np.array(packed[start:stop] if order is None else packed[order[start:stop]])
        return torch.from_numpy(dequantize(taken, tensor.kind)).view(stop - start, columns)


def _rotary_order(rows: int, heads: int) -> np.ndarray:
    """[rows]: the stored row of each of transformers' rows of a query or key matrix.

    Rotary embeddings turn pairs of features: of a head's 2n, llama.cpp pairs (0, 1), (2, 3), ... and transformers
    (0, n), (1, n + 1), ...; llama.cpp's converter moves the rows of its architecture llama accordingly.
    """
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


@functools.cache
def _can_dequantize(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
