"""What loops and tools of other packages ask of a model: transformers' Trainer, accelerate, TRL, torch itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sktune.backbone import Backbone
from sktune.errors import UserError
from sktune.methods.method import Method
from sktune.methods.peft_names import adapter_of, renamed
from sktune.model.tuned_model import TunedModel
from sktune.tasks.heads import Head, LanguageHead
from sktune.terminal import say


class TransformersModel(TunedModel):
    """A tuned model with the names and the state that models of transformers and peft have."""

    accepts_loss_kwargs = True
    """Tells `transformers.Trainer` to pass `num_items_in_batch`: accumulated batches then weigh as one would."""
    supports_gradient_checkpointing = True
    _keys_to_ignore_on_save = None

    def __init__(self, backbone: Backbone, method: Method, head: Head) -> None:
        super().__init__(backbone, method, head)
        self.register_load_state_dict_pre_hook(_as_in_modules)
        self.register_load_state_dict_post_hook(_without_frozen)

    def parameters_to_train(self) -> list[nn.Parameter]:
        """What an optimizer takes: `torch.optim.AdamW(tuned.parameters_to_train(), lr=3e-3)`; fp32, all of them."""
        return list(self.trainable_parameters().values())

    def print_trainable_parameters(self) -> None:
        """Prints how many parameters train, of how many; as peft's models do."""
        trainable, total = self.parameter_counts()
        say(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """What was trained, and the head's constants; nothing of the frozen model, which is loaded by itself."""
        found: Any = OrderedDict() if destination is None else destination
        trained = {name: p if keep_vars else p.detach() for name, p in self.trainable_parameters().items()}
        for name, part in (("method", self.method), ("head", self.head)):
            trained |= part.state_dict(prefix=f"{name}.", keep_vars=keep_vars)
        for name, tensor in trained.items():
            found[prefix + name] = tensor
        return found

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.backbone.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the frozen model computes in; what trains is fp32."""
        return self.backbone.dtype

    @property
    def generation_config(self) -> Any:
        """The model's own, which `generate` goes by; None where it writes no texts."""
        return getattr(self.backbone.model, "generation_config", None)

    def get_input_embeddings(self) -> Any:
        """The frozen model's embeddings of tokens."""
        return self.backbone.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The language model's head, where it answers; else None."""
        return self.backbone.model.get_output_embeddings() if isinstance(self.head, LanguageHead) else None

    def add_model_tags(self, tags: str | Sequence[str]) -> None:
        """Tags of a hub's model card, which an adapter's folder does not have; without effect."""

    @property
    def loss_type(self) -> str | None:
        """By this Trainer tells that a language model's first label does not count."""
        return "ForCausalLM" if isinstance(self.head, LanguageHead) else None

    def _get_name(self) -> str:
        # By this it tells that smoothed labels are those of the next token.
        return type(self.backbone.model).__name__ if isinstance(self.head, LanguageHead) else super()._get_name()

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recomputes every block in backward from now on; `transformers.Trainer` calls it.

        Raises:
            UserError: for what is not supported: `use_reentrant`, only some of the blocks, offloading.
        """
        settings = dict(activation_checkpointing_kwargs or {})
        if settings.pop("use_reentrant", False) or settings or every_n_layers != 1 or offload:
            raise UserError(
                "activation_checkpointing_kwargs: blocks are recomputed one by one, without use_reentrant, "
                "every_n_layers, offload or other settings; leave them out"
            )
        self.backbone.gradient_checkpointing = True

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        """`activation_checkpointing_enable` by the name that earlier versions of transformers call."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps the blocks' activations from now on."""
        self.backbone.gradient_checkpointing = False


def _as_in_modules(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Names of a state, which are those of a model's first adapter, become those of this one."""
    assert isinstance(module, TransformersModel)
    if module.method.peft_adapter is not None:
        for key in [key for key in state if key.startswith(prefix) and adapter_of(key) is not None]:
            state[renamed(key, module.method.peft_adapter)] = state.pop(key)


def _without_frozen(module: nn.Module, incompatible: Any) -> None:
    """Of keys that a state lacks, those of the frozen model are as they should be."""
    assert isinstance(module, TransformersModel)
    expected = {name for name in module.state_dict() if adapter_of(name) is None} | {*module.own_parameters()}
    frozen = {f"backbone.{name}" for name in module.backbone.state_dict()} - expected
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if key[max(key.find("backbone."), 0) :] not in frozen
    ]
