"""The method section of a recipe: one class for each `method.name`.

SK-Prefix and SK-Prompt are what sktune is for; the others are what they are compared with, at the settings their
papers and `peft` use unless the recipe says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sktune.sections import Section


class SKMethod(Section):
    """What SK-Prefix and SK-Prompt have in common: the text, and the adapter that refines its semantics."""

    text: str = Field(min_length=1, description="The prompt text whose semantics are tuned; say what the task is.")
    adapter: Literal["bottleneck", "linear", "identity"] = "bottleneck"
    rank: int = Field(32, ge=1, description="Inner width of the bottleneck.")
    train_down: bool = Field(
        False, description="Train the bottleneck's first half too; fixed, it costs nothing and disturbs nothing."
    )
    activation: Literal["gelu", "relu", "silu", "tanh"] = "tanh"
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's inner activations.")
    bias: bool = False
    semantics: Literal["cached", "every_step"] = Field(
        "cached",
        description="Read the text once and keep what was understood, or read it again at every step.",
    )
    trainable_text: bool = Field(
        False,
        description="Train a copy of the text's embeddings too, through the frozen model (needs every_step).",
    )


class SKPrefixMethod(SKMethod):
    """SK-Prefix: refined keys and values of the text, visible to every layer of the second pass."""

    name: Literal["sk_prefix"] = "sk_prefix"
    shared: bool = Field(False, description="One adapter for all layers instead of one per layer.")


class SKPromptMethod(SKMethod):
    """SK-Prompt: refined hidden states of the text in front of the input's embeddings."""

    name: Literal["sk_prompt"] = "sk_prompt"
    cut_layer: int = Field(
        0, ge=0, description="0: token embeddings; k: hidden states after k blocks, the rest not run."
    )


class HeadOnlyMethod(Section):
    """The baseline every method must beat: a head on the frozen model's features."""

    name: Literal["head_only"] = "head_only"


class PromptTuningMethod(Section):
    """Embeddings of their own in front of the input (Lester et al., arXiv 2104.08691)."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: int | None = Field(
        None, ge=1, description="null: as many as the text has tokens, 20 without a text."
    )
    init: Literal["random", "vocabulary", "text", "labels"] = Field(
        "vocabulary", description="Start from normal noise, tokens drawn at random, `text`, or the labels' names."
    )
    text: str | None = Field(None, min_length=1, description="With init: text; cut or repeated to the length.")


class PrefixTuningMethod(Section):
    """Keys and values of their own in front of every layer's (Li and Liang, arXiv 2101.00190)."""

    name: Literal["prefix_tuning"] = "prefix_tuning"
    num_virtual_tokens: int | None = Field(
        None, ge=1, description="null: as many as the text has tokens, 20 without a text."
    )
    init: Literal["random", "text"] = Field("random", description="text: the keys and values the model makes of it.")
    text: str | None = Field(None, min_length=1, description="With init: text.")
    reparametrize: bool = Field(False, description="Make them by a two-layer network from one embedding a position.")
    hidden_size: int = Field(512, ge=1, description="Of that network.")


class PTuningMethod(Section):
    """Embeddings in front of the input that a small network makes (Liu et al., arXiv 2103.10385)."""

    name: Literal["p_tuning"] = "p_tuning"
    num_virtual_tokens: int = Field(20, ge=1, description="Without a template.")
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden_size: int = Field(128, ge=1)
    num_layers: int = Field(2, ge=1, description="Of the LSTM.")
    template: str | None = Field(
        None, min_length=1, description="A text whose tokens are tuned, except the anchors' and the opening ones."
    )
    anchors: tuple[str, ...] = Field((), description="Words of the template that stay the tokens they are.")


class LoraMethod(Section):
    """Low-rank updates of linear layers (Hu et al., arXiv 2106.09685)."""

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1, description="Updates are scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = Field(
        None, description="Ends of linear layers' names; null: peft's choice for the family (query and value)."
    )


class IA3Method(Section):
    """Learned scales of keys, values and inner activations (Liu et al., arXiv 2205.05638)."""

    name: Literal["ia3"] = "ia3"
    target_modules: tuple[str, ...] | None = Field(None, description="null: peft's choice for the family.")
    feedforward_modules: tuple[str, ...] | None = Field(
        None, description="Those of target_modules whose input is scaled instead of their output."
    )


class LlamaAdapterMethod(Section):
    """Prompts in the upper layers behind gates that start at zero (Zhang et al., arXiv 2303.16199)."""

    name: Literal["llama_adapter"] = "llama_adapter"
    num_virtual_tokens: int = Field(10, ge=1)
    layers: int | None = Field(None, ge=1, description="How many of the top layers; null: all but the lowest two.")


class BottleneckAdapterMethod(Section):
    """Bottleneck networks behind the sublayers (Houlsby et al., arXiv 1902.00751; Pfeiffer et al., 2005.00247)."""

    name: Literal["bottleneck_adapter"] = "bottleneck_adapter"
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "pfeiffer", description="houlsby: behind attention and feed-forward; pfeiffer: behind feed-forward only."
    )
    rank: int = Field(16, ge=1, description="Inner width.")
    activation: Literal["gelu", "relu", "silu", "tanh"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)


class TopLayersMethod(Section):
    """The uppermost blocks are trained as they are, with the head."""

    name: Literal["top_layers"] = "top_layers"
    layers: int = Field(2, ge=1)


class FullFineTuningMethod(Section):
    """The whole model is trained."""

    name: Literal["full"] = "full"


class TemplateMethod(Section):
    """What prompt_based and in_context have in common: the language model fills the answer slot of a template."""

    template: str | None = Field(
        None,
        min_length=1,
        description="With {text}, {answer} and, of pairs, {text_pair}; a decoder's ends with {answer}. "
        "null: `{text} Answer: {answer}`, of pairs `{text} {text_pair} Answer: {answer}`.",
    )
    label_words: dict[str, str] | None = Field(
        None, description="Label -> the word that stands for it (its first token is scored); null: the label's name."
    )
    demonstrations: int = Field(0, ge=0, description="Answered training examples of each label in front of the input.")
    choose: Literal["random", "similar"] = Field(
        "random", description="Drawn once with the run's seed, or for each input the nearest by TF-IDF."
    )


class PromptBasedMethod(TemplateMethod):
    """Fine-tuning on a template that the language model completes (PET, arXiv 2001.07676; LM-BFF, 2012.15723)."""

    name: Literal["prompt_based"] = "prompt_based"
    layers: int | None = Field(
        None, ge=1, description="Train the uppermost blocks alone; null: the whole model with its head."
    )


class InContextMethod(TemplateMethod):
    """Nothing is trained: the template alone (zero-shot), or behind demonstrations (few-shot, arXiv 2005.14165)."""

    name: Literal["in_context"] = "in_context"


MethodSection = Annotated[
    SKPrefixMethod
    | SKPromptMethod
    | HeadOnlyMethod
    | PromptTuningMethod
    | PrefixTuningMethod
    | PTuningMethod
    | LoraMethod
    | IA3Method
    | LlamaAdapterMethod
    | BottleneckAdapterMethod
    | TopLayersMethod
    | FullFineTuningMethod
    | PromptBasedMethod
    | InContextMethod,
    Field(discriminator="name"),
]
