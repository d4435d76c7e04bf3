"""An adapter as tensors for transformers: a prefix as the start of a KV cache, a prompt as embeddings; and the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

from sktune.errors import UserError
from sktune.export.replaying import replay_logits
from sktune.export.trained import Trained, Usage, loading, plain_model
from sktune.tasks.heads import SequenceHead, pool

WEIGHTS = "woven.safetensors"

_PREFIX = """
woven = load_file("{file}")
cache = DynamicCache()
for layer in range(base.config.num_hidden_layers):  # [P, heads, width] -> [rows, heads, P, width]
    key, value = (woven[f"layers.{{layer}}.{{kind}}"].to(base.dtype).transpose(0, 1)[None] for kind in ("key", "value"))
    cache.update(key.expand(rows, -1, -1, -1).contiguous(), value.expand(rows, -1, -1, -1).contiguous(), layer)
mask = torch.cat((mask.new_ones(rows, {length}), mask), dim=1)  # rows are padded on the right
output = base(input_ids=input_ids, attention_mask=mask, past_key_values=cache)"""
_PROMPT = """
woven = load_file("{file}")
prompt = woven["prompt"].to(base.dtype)[None].expand(rows, -1, -1)
embeds = torch.cat((prompt, base.get_input_embeddings()(input_ids)), dim=1)
mask = torch.cat((mask.new_ones(rows, {length}), mask), dim=1)  # rows are padded on the right
output = base(inputs_embeds=embeds, attention_mask=mask)"""
_NOTHING = """
output = base(input_ids=input_ids, attention_mask=mask)"""


def write(trained: Trained, folder: Path) -> Usage:
    """Writes the tensors; returns how they are used.

    Raises:
        UserError: for a method that is a part of the model's modules.
    """
    woven = trained.woven
    trained.refuse_own_weights()
    trained.refuse_hidden_prefix()
    if woven.layers is not None or woven.gated is not None or woven.behind is not None:
        raise UserError(
            f"{trained.folder}: {trained.method} changes the model's own modules, which no cache or embedding can say; "
            "allowed: what puts a prompt or a prefix in front of the input. Layers of peft: `--to peft`"
        )
    tensors = {f"head.{name}": tensor for name, tensor in trained.head().items()}
    code, length = _NOTHING, 0
    if woven.prefix is not None:
        code, length = _PREFIX, woven.prefix[0][1].key.shape[2]
        tensors |= trained.prefix()
    elif woven.prompt is not None:
        code, length = _PROMPT, woven.prompt.shape[1]
        tensors["prompt"] = woven.prompt[0]
    elif not tensors:
        raise UserError(f"{trained.folder}: {trained.method} trains nothing that could be exported")
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    kind = "AutoModel" if trained.head() else "AutoModelForCausalLM"
    code = code.format(file=WEIGHTS, length=length)
    return trained.usage(
        "import torch\nfrom safetensors.torch import load_file\n"
        f"from transformers import {kind}{', DynamicCache' if 'DynamicCache' in code else ''}\n\n"
        f"{loading(trained.recipe, kind)}\n"
        f"rows = len(input_ids){code}{_head_code(trained)}"
    )


def _head_code(trained: Trained) -> str:
    if not trained.head():
        return "\nlogits = output.logits"
    head = trained.setup.model.head
    how = head.pooling if isinstance(head, SequenceHead) else None
    features = {
        None: "states",
        "last": "states[torch.arange(rows), lengths - 1]  # the last real token of each row",
        "first": "states[:, 0]",
        "mean": "(states * real).sum(1) / real.sum(1)  # real: [rows, length, 1], 1 for the input's own tokens",
    }[how]
    return (
        "\nstates = output.last_hidden_state[:, -input_ids.shape[1]:].float()"
        f"\nfeatures = {features}"
        '\nlogits = features @ woven["head.weight"].T + woven["head.bias"]'
    )


def replay(trained: Trained, folder: Path, count: int) -> dict[str, Any]:
    """Logits of test examples here and there."""
    return replay_logits(trained, Plain(trained, folder), count)


class Plain:
    """The tensors as the lines above use them, on transformers' own model."""

    def __init__(self, trained: Trained, folder: Path) -> None:
        head = trained.setup.model.head
        self.pooling = head.pooling if isinstance(head, SequenceHead) else None
        self.has_head = bool(trained.head())
        self.model = plain_model(trained.recipe, AutoModel if self.has_head else AutoModelForCausalLM)
        self.woven = load_file(folder / WEIGHTS)

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, L] right-padded -> logits: of a language model and of tokens [B, L, outputs], of texts [B, outputs]."""
        rows, length, base, woven = len(input_ids), input_ids.shape[1], self.model, self.woven
        if "prompt" in woven:
            prompt = woven["prompt"].to(base.dtype)[None].expand(rows, -1, -1)
            embeds = torch.cat((prompt, base.get_input_embeddings()(input_ids)), dim=1)
            output = base(inputs_embeds=embeds, attention_mask=F.pad(attention_mask, (prompt.shape[1], 0), value=1))
        elif "layers.0.key" in woven:
            cache = DynamicCache()
            for layer in range(base.config.num_hidden_layers):
                key, value = (
                    woven[f"layers.{layer}.{kind}"].to(base.dtype).transpose(0, 1).expand(rows, -1, -1, -1)
                    for kind in ("key", "value")
                )
                cache.update(key.contiguous(), value.contiguous(), layer)
            mask = F.pad(attention_mask, (cache.get_seq_length(), 0), value=1)
            output = base(input_ids=input_ids, attention_mask=mask, past_key_values=cache)
        else:
            output = base(input_ids=input_ids, attention_mask=attention_mask)
        if not self.has_head:
            return output.logits[:, -length:].float()
        states = output.last_hidden_state[:, -length:].float()
        features = states if self.pooling is None else pool(states, attention_mask, self.pooling)
        return features @ woven["head.weight"].T + woven["head.bias"]
