"""The frozen model: reading the text up to a layer, once or always; loading; refusing what is unfit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import (
    CONFIGS,
    DECODERS,
    DEPTH,
    ENCODERS,
    HEADS,
    PAD,
    TEXT,
    VOCABULARY_SIZE,
    WIDTH,
    batch,
    kernels,
    prompt_ids,
    real_rows,
    tiny_backbone,
    tiny_method,
    tiny_network,
    tiny_tokenizer,
    tiny_tuned,
)
from torch import nn

from sktune.backbone import Backbone, load_backbone, load_tokenizer, read_hidden_states
from sktune.methods.config import MethodConfig
from sktune.methods.method import build_method
from sktune.methods.prefix_tuning.config import PrefixTuningConfig
from sktune.methods.sk_prefix.config import SKPrefixConfig
from sktune.methods.sk_prompt.config import SKPromptConfig
from sktune.sections import ModelSection
from sktune.tasks.causal_lm.config import CausalLMConfig
from sktune.tasks.task import build_task

METHODS = ("sk_prefix", "sk_prompt")
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 128,
    "pad_token_id": PAD,
}


def count_passes(module: nn.Module) -> list[None]:
    """Grows by one at every call of the module."""
    calls: list[None] = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


# -- the text up to a layer --


@pytest.mark.parametrize("cut", range(DEPTH + 1))
@pytest.mark.parametrize("family", CONFIGS)
def test_cut_layer_is_the_hidden_state_there_and_the_blocks_above_are_not_run(family: str, cut: int) -> None:
    kernel = kernels(family)[-1]
    backbone, plain = tiny_backbone(family, kernel, checkpointing=True), tiny_network(family, kernel)
    method = tiny_method("sk_prompt", backbone, adapter="identity", cut_layer=cut)
    calls = [count_passes(block) for block in backbone.blocks]
    prompt = method.weave(backbone).prompt
    assert [len(call) for call in calls] == [1] * cut + [0] * (DEPTH - cut)
    assert len(backbone.blocks) == DEPTH

    ids = prompt_ids(family)
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(output if torch.is_tensor(output) else output[0])

    Backbone(plain).blocks[-1].register_forward_hook(keep)
    with torch.no_grad():
        states = plain(input_ids=ids, output_hidden_states=True).hidden_states
    # The last entry of a decoder's hidden states has gone through its final norm; `kept` has not.
    after = {0: plain.get_input_embeddings()(ids), 1: states[1], 2: states[2], DEPTH: kept[0]}
    expected = after[cut]
    torch.testing.assert_close(prompt, expected, atol=1e-5, rtol=0)


def test_cut_layer_with_a_mixed_reading_after_it() -> None:
    # The refined hidden states are read as embeddings, by the whole model.
    backbone, plain = tiny_backbone("llama"), tiny_network("llama")
    method = tiny_method("sk_prompt", backbone, cut_layer=2)
    ids, mask = batch(lengths=(5, 5))
    with torch.no_grad():
        found = backbone.read(backbone.embed(ids), mask, method(backbone))
        state = plain(input_ids=prompt_ids("llama"), output_hidden_states=True).hidden_states[2]
        whole = torch.cat((state.expand(2, -1, -1), plain.get_input_embeddings()(ids)), 1)
        expected = plain(inputs_embeds=whole)[0][:, state.shape[1] :]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "bloom", "bert"])
def test_a_cut_above_the_model_is_refused(family: str) -> None:
    backbone = tiny_backbone(family)
    with pytest.raises(ValueError, match=r"method\.cut_layer: 4 is above the model's 3 blocks; allowed: 0 to 3"):
        tiny_method("sk_prompt", backbone, cut_layer=DEPTH + 1)
    with pytest.raises(ValueError, match=r"method\.cut_layer: 7 is above"):
        read_hidden_states(backbone, backbone.embed(prompt_ids(family)), 7)


# -- once, or at every step --


@pytest.mark.parametrize(
    ("name", "fields", "per_step"),
    [
        ("sk_prefix", {}, 0),
        ("sk_prompt", {"cut_layer": 2}, 0),
        ("sk_prompt", {"cut_layer": 0}, 0),
        ("sk_prefix", {"semantics": "every_step"}, 1),
        ("sk_prompt", {"cut_layer": 2, "semantics": "every_step"}, 1),
        ("sk_prefix", {"semantics": "every_step", "trainable_text": True}, 1),
        ("sk_prompt", {"cut_layer": 2, "semantics": "every_step", "trainable_text": True}, 1),
    ],
)
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_how_often_the_text_is_read(family: str, name: str, fields: dict[str, Any], per_step: int) -> None:
    backbone = tiny_backbone(family)
    tuned = tiny_tuned(name, backbone, **fields)
    passes = count_passes(backbone.base)
    ids, mask = batch()
    steps = 3
    for _ in range(steps):
        tuned(ids, mask, labels=ids % 4).loss.backward()
    reads_at_all = name == "sk_prefix" or fields.get("cut_layer", 0) > 0
    assert len(passes) == steps + (steps * per_step or int(reads_at_all))


@pytest.mark.parametrize("fields", [{}, {"semantics": "every_step"}])
@pytest.mark.parametrize("name", METHODS)
def test_the_semantics_are_a_constant_unless_the_text_is_trained(name: str, fields: dict[str, Any]) -> None:
    backbone = tiny_backbone("llama")
    tuned = tiny_tuned(name, backbone, adapter="linear", **fields)
    ids, mask = batch()
    tuned(ids, mask, labels=ids % 4).loss.backward()
    first = {n: p.grad.clone() for n, p in tuned.trainable_parameters().items()}
    tuned.zero_grad()
    tuned(ids, mask, labels=ids % 4).loss.backward()
    assert set(first) == {
        "method.adapter.up",
        "head.classifier.weight",
        "head.classifier.bias",
    }
    for name_, parameter in tuned.trainable_parameters().items():
        torch.testing.assert_close(parameter.grad, first[name_], atol=0, rtol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("adapter", ["bottleneck", "linear"])
@pytest.mark.parametrize(("name", "cut"), [("sk_prefix", {}), ("sk_prompt", {}), ("sk_prompt", {"cut_layer": 1})])
def test_an_evaluation_before_training_leaves_training_as_it_was(
    name: str, cut: dict[str, int], adapter: str, context: Any
) -> None:
    fields: dict[str, Any] = {"adapter": adapter, **cut}
    ids, mask = batch()
    found = []
    for evaluate_first in (False, True):
        tuned = tiny_tuned(name, tiny_backbone("llama", "sdpa", checkpointing=True), **fields)
        if evaluate_first:
            with context():
                tuned(ids, mask)
        tuned(ids, mask, labels=ids % 4).loss.backward()
        found.append([parameter.grad for parameter in tuned.trainable_parameters().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_nothing_of_the_backbone_is_in_the_methods_state() -> None:
    backbone = tiny_backbone("llama")
    tuned = tiny_tuned("sk_prefix", backbone)
    ids, mask = batch()
    before = set(tuned.method.state_dict())
    tuned(ids, mask)
    assert set(tuned.method.state_dict()) == before == {"adapter.up"}


# -- architectures that cannot be tuned, by name --


def test_an_encoder_decoder_is_refused() -> None:
    config = tf.T5Config(vocab_size=VOCABULARY_SIZE, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="t5 is an encoder-decoder"):
        Backbone(tf.AutoModel.from_config(config))


def test_a_model_that_cannot_be_told_positions_is_refused() -> None:
    config = tf.MptConfig(vocab_size=VOCABULARY_SIZE, d_model=32, n_layers=1, n_heads=2)
    with pytest.raises(ValueError, match=r"mpt gives no control over token positions \(no `position_ids` argument\)"):
        Backbone(tf.AutoModel.from_config(config))


OWN_ATTENTION = {
    "deberta-v2": lambda: tf.DebertaV2Config(**SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "deberta": lambda: tf.DebertaConfig(**SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "mpnet": lambda: tf.MPNetConfig(**SHAPE),
    "gptj": lambda: tf.GPTJConfig(
        vocab_size=VOCABULARY_SIZE, n_embd=WIDTH, n_layer=DEPTH, n_head=HEADS, rotary_dim=8, pad_token_id=PAD
    ),
    "gpt_neo": lambda: tf.GPTNeoConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=HEADS,
        attention_types=[[["global"], 2]],
    ),
}


@pytest.mark.parametrize("family", OWN_ATTENTION)
def test_attention_outside_the_interface_is_refused_by_sk_prefix_alone(family: str) -> None:
    backbone = Backbone(tf.AutoModel.from_config(OWN_ATTENTION[family](), attn_implementation="eager"))
    wanted = rf"method\.name: sk_prefix is not available for {family}: .*`sktune list methods`"
    with pytest.raises(ValueError, match=wanted):
        build_method(SKPrefixConfig(text=TEXT), backbone, tiny_tokenizer())
    build_method(SKPromptConfig(text=TEXT), backbone, tiny_tokenizer())


def build_and_read(section: MethodConfig, backbone: Backbone) -> torch.Tensor:
    method = build_method(section, backbone, tiny_tokenizer(backbone.is_encoder))
    ids, mask = batch()
    return backbone.read(backbone.embed(ids), mask, method(backbone))


def test_layers_that_share_one_attention_are_refused_by_sk_prefix() -> None:
    network = tf.AutoModel.from_config(tf.AlbertConfig(**SHAPE, embedding_size=WIDTH), attn_implementation="eager")
    backbone = Backbone(network, attn_implementation="eager")
    with pytest.raises(ValueError, match=r"sk_prefix is not available for albert.*`sktune list methods`"):
        build_and_read(SKPrefixConfig(text=TEXT), backbone)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_no_causal_language_model(family: str) -> None:
    backbone = tiny_backbone(family, language_model=True)
    with pytest.raises(ValueError, match=rf"task\.name: causal_lm needs a causal language model; {family}"):
        build_task(CausalLMConfig()).head(backbone, 0)


def test_a_decoder_loaded_without_its_head_is_no_language_model() -> None:
    with pytest.raises(ValueError, match=r"task\.name: causal_lm needs a causal language model; llama"):
        build_task(CausalLMConfig()).head(tiny_backbone("llama"), 0)


OTHER_ENCODERS = {
    "albert": lambda: tf.AlbertConfig(**SHAPE, embedding_size=WIDTH),
    "deberta": OWN_ATTENTION["deberta"],
    "deberta-v2": OWN_ATTENTION["deberta-v2"],
    "distilbert": lambda: tf.DistilBertConfig(
        vocab_size=VOCABULARY_SIZE, dim=WIDTH, n_layers=DEPTH, n_heads=HEADS, hidden_dim=128, pad_token_id=PAD
    ),
    "electra": lambda: tf.ElectraConfig(**SHAPE, embedding_size=WIDTH),
    "longformer": lambda: tf.LongformerConfig(**SHAPE, attention_window=64),
    "megatron-bert": lambda: tf.MegatronBertConfig(**SHAPE),
    "modernbert": lambda: tf.ModernBertConfig(**SHAPE, cls_token_id=0, sep_token_id=2),
    "mpnet": OWN_ATTENTION["mpnet"],
    "nystromformer": lambda: tf.NystromformerConfig(**SHAPE),
    "rembert": lambda: tf.RemBertConfig(**SHAPE, input_embedding_size=WIDTH),
    "xlm-roberta": lambda: tf.XLMRobertaConfig(**SHAPE),
}


def other_encoder(family: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    network = tf.AutoModel.from_config(OTHER_ENCODERS[family](), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return network


def unless_refused(family: str, build: Callable[[], Any]) -> Any:
    """What `build` returns; None where it refuses the family, by its name."""
    try:
        return build()
    except ValueError as error:
        message = str(error)
    assert family in message
    return None


@pytest.mark.parametrize("family", OTHER_ENCODERS)
def test_other_encoders_are_known_as_encoders_or_refused(family: str) -> None:
    backbone = unless_refused(family, lambda: Backbone(other_encoder(family), attn_implementation="eager"))
    assert backbone is None or backbone.is_encoder


@pytest.mark.parametrize("family", OTHER_ENCODERS)
def test_other_encoders_read_the_hard_prompt_or_are_refused(family: str) -> None:
    network = other_encoder(family)
    prompt, (ids, mask) = prompt_ids("bert"), batch()
    count = prompt.shape[1]
    with torch.no_grad():
        whole = torch.cat((prompt.expand(3, -1), ids), 1)
        expected = network(input_ids=whole, attention_mask=torch.cat((mask.new_ones(3, count), mask), 1))[0]
    backbone = unless_refused(family, lambda: Backbone(network, attn_implementation="eager"))
    tokenizer = tiny_tokenizer(encoder=True)
    method = backbone and unless_refused(family, lambda: build_method(SKPromptConfig(text=TEXT), backbone, tokenizer))
    if method is None:
        return
    with torch.no_grad():
        found = backbone.read(backbone.embed(ids), mask, method(backbone))
    torch.testing.assert_close(real_rows(found, mask), real_rows(expected[:, count:], mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value_width", [8, 16, 24])
@pytest.mark.parametrize("method", [SKPrefixConfig(text=TEXT), PrefixTuningConfig(init="text", text=TEXT)])
def test_keys_and_values_of_different_widths_read_the_hard_prompt(method: MethodConfig, value_width: int) -> None:
    # Multi-head latent attention: a key holds a rotary part that a value does not.
    latent: dict[str, Any] = {"num_key_value_heads": HEADS, "q_lora_rank": 16, "kv_lora_rank": 16}
    latent |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": value_width, "first_k_dense_replace": DEPTH}
    torch.manual_seed(0)
    network = tf.AutoModel.from_config(tf.DeepseekV3Config(**SHAPE, **latent), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
    backbone, (ids, mask), prompt = Backbone(network, attn_implementation="eager"), batch(), prompt_ids("llama")
    assert backbone.key_value_width == HEADS * max(16, value_width)
    found = build_and_read(method, backbone)
    with torch.no_grad():
        whole = torch.cat((prompt.expand(3, -1), ids), 1)
        seen = torch.cat((mask.new_ones(3, prompt.shape[1]), mask), 1)
        expected = network(input_ids=whole, attention_mask=seen)[0][:, prompt.shape[1] :]
        alone = network(input_ids=ids, attention_mask=mask)[0]
    torch.testing.assert_close(real_rows(found, mask), real_rows(expected, mask), atol=1e-5, rtol=0)
    assert (real_rows(expected, mask) - real_rows(alone, mask)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotary_frequencies_that_depend_on_the_length_refuse_a_prefix_beyond_their_border(kind: str) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, **factors}
    backbone = tiny_backbone("llama", max_position_embeddings=16, rope_parameters=rope)
    prefix = tiny_method("sk_prefix", backbone)
    room = 16 - prefix.positions
    ids, mask = batch(lengths=(room,))
    backbone.read(backbone.embed(ids), mask, prefix(backbone))
    ids, mask = batch(lengths=(room + 1,))
    exceeds = rf"input of {room + 1} exceeds the 16 positions .* of llama"
    wanted = rf"{exceeds} .* data.max_length to {room}, or choose a method in"
    with pytest.raises(ValueError, match=wanted):
        backbone.read(backbone.embed(ids), mask, prefix(backbone))
    backbone.read(backbone.embed(ids), mask, tiny_method("sk_prompt", backbone)(backbone))


@pytest.mark.parametrize("family", ["electra", "opt"])
def test_embeddings_narrower_than_the_model_are_read_or_refused(family: str) -> None:
    # ELECTRA-small, ALBERT and OPT-350m embed in fewer features than they compute in.
    if family == "opt":
        network = tiny_network("opt", word_embed_proj_dim=32)
    else:
        network = tf.AutoModel.from_config(tf.ElectraConfig(**SHAPE, embedding_size=32), attn_implementation="eager")
    backbone = unless_refused(family, lambda: Backbone(network, attn_implementation="eager"))
    hidden = backbone and unless_refused(family, lambda: build_and_read(SKPromptConfig(text=TEXT), backbone))
    assert hidden is None or hidden.isfinite().all()


# -- what the model is --


@pytest.mark.parametrize("family", CONFIGS)
def test_key_value_width_is_what_a_layer_really_keeps(family: str) -> None:
    backbone = tiny_backbone(family)
    method = tiny_method("sk_prefix", backbone, adapter="identity")
    ids, mask = batch()
    backbone.read(backbone.embed(ids), mask, method(backbone))
    prefix = method.weave(backbone).prefix
    assert len(prefix) == DEPTH
    for _, (key, value) in prefix:
        assert key.shape == value.shape
        assert key.shape[:3:2] == (1, prompt_ids(family).shape[1])
        assert key.shape[1] * key.shape[3] == backbone.key_value_width


def test_positions_available() -> None:
    assert tiny_backbone("llama", max_position_embeddings=40).max_positions == 40
    assert tiny_backbone("bert", max_position_embeddings=40).max_positions == 40
    assert tiny_backbone("roberta", max_position_embeddings=42).max_positions == 40  # the first two are padding's
    assert tiny_backbone("bloom").max_positions is None


@pytest.mark.parametrize("family", ["llama", "bert", "roberta"])
def test_every_available_position_can_be_read(family: str) -> None:
    backbone = tiny_backbone(family, max_position_embeddings=20)
    room = backbone.max_positions
    assert room is not None
    method = tiny_method("sk_prompt", backbone)
    ids, mask = batch(lengths=(room - method.positions,))
    assert backbone.read(backbone.embed(ids), mask, method(backbone)).isfinite().all()


def test_gradient_checkpointing_recomputes_each_block_once() -> None:
    ids, mask = batch()
    for checkpointing, expected in ((False, 1), (True, 2)):
        backbone = tiny_backbone("llama", checkpointing=checkpointing)
        tuned = tiny_tuned("sk_prefix", backbone)
        tuned(ids, mask)  # reads the text
        runs = [count_passes(block.get_submodule("mlp")) for block in backbone.blocks]
        tuned(ids, mask, labels=ids % 4).loss.backward()
        assert [len(run) for run in runs] == [expected] * DEPTH


# -- loading --


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [*DECODERS[:4], "bloom", "bert", "roberta"])
def test_a_saved_folder_loads_as_it_was(family: str, dtype: Any, tmp_path: Path) -> None:
    network = tiny_network(family)
    network.save_pretrained(tmp_path)
    backbone = load_backbone(ModelSection(name_or_path=str(tmp_path), dtype=dtype))
    assert {parameter.dtype for parameter in backbone.parameters()} == {getattr(torch, dtype)}
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.attn_implementation == kernels(family)[-1]
    ids, mask = batch()
    with torch.no_grad():
        found = backbone(backbone.embed(ids), mask)
        expected = network(input_ids=ids, attention_mask=mask)[0]
    tolerance = 1e-5 if dtype == "float32" else 0.3
    torch.testing.assert_close(real_rows(found.float(), mask), real_rows(expected, mask), atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_with_and_without_the_language_model_head(family: str, tmp_path: Path) -> None:
    network = tiny_network(family, language_model=True)
    network.save_pretrained(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path), dtype="float32")
    with_head, without = load_backbone(section, language_model=True), load_backbone(section)
    assert with_head.is_language_model
    assert not without.is_language_model
    ids, mask = batch(lengths=(6, 6))
    with torch.no_grad():
        expected = network(input_ids=ids, attention_mask=mask)
        logits = with_head(with_head.embed(ids), mask, with_lm_head=True)
        positions = torch.tensor([[1, 4], [0, 3]])
        kept = with_head(with_head.embed(ids), mask, with_lm_head=True, answer_positions=positions)
        hidden = without(without.embed(ids), mask)
        same_hidden = with_head(with_head.embed(ids), mask)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(kept, expected.logits[rows, positions], atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden, same_hidden, atol=1e-6, rtol=0)


def test_gradient_checkpointing_is_passed_on(tmp_path: Path) -> None:
    tiny_network("llama").save_pretrained(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path), dtype="float32")
    assert load_backbone(section, gradient_checkpointing=True).gradient_checkpointing
    assert not load_backbone(section).gradient_checkpointing


def test_the_choice_of_attention_is_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_network("llama").save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="sktune"):
        load_backbone(ModelSection(name_or_path=str(tmp_path)))
    assert "sdpa" in caplog.text
    assert "no CUDA GPU" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA GPU")
def test_flash_attention_without_a_gpu_is_refused(tmp_path: Path) -> None:
    tiny_network("llama").save_pretrained(tmp_path)
    wanted = r"model\.attn_implementation: flash_attention_2 cannot run: there is no CUDA GPU.*; use auto or sdpa"
    with pytest.raises(ValueError, match=wanted):
        load_backbone(ModelSection(name_or_path=str(tmp_path), attn_implementation="flash_attention_2"))


def test_a_prefix_is_refused_where_the_attention_may_hide_it(tmp_path: Path) -> None:
    tiny_network("mistral_window").save_pretrained(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path), dtype="float32")
    with pytest.raises(ValueError, match="loaded without visible_prefix"):
        build_and_read(SKPrefixConfig(text=TEXT), load_backbone(section))
    build_and_read(SKPrefixConfig(text=TEXT), load_backbone(section, visible_prefix=True))
    build_and_read(SKPromptConfig(text=TEXT), load_backbone(section))


def loading_refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"^model\.name_or_path: ") as caught:
        load_backbone(ModelSection(name_or_path=str(path), dtype="float32"), **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    network = tiny_network("llama")
    network.config.save_pretrained(tmp_path)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    message = loading_refusal(tmp_path)
    assert ".bin" in message
    assert "pickle" in message
    assert "save_pretrained" in message


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    assert "there is no folder" in loading_refusal(tmp_path / "not" / "there")
    assert "config.json and *.safetensors" in loading_refusal(tmp_path)
    tiny_network("llama").config.save_pretrained(tmp_path)  # a config alone
    assert "safetensors" in loading_refusal(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    loading_refusal(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    tiny_network("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    loading_refusal(tmp_path)


def test_weights_that_do_not_belong_to_the_model_are_refused(tmp_path: Path) -> None:
    # transformers fills what it does not find with random numbers and goes on.
    tiny_network("gpt_neox").save_pretrained(tmp_path)
    tiny_network("llama").config.save_pretrained(tmp_path)
    loading_refusal(tmp_path)


def test_a_language_model_without_its_head_is_refused(tmp_path: Path) -> None:
    tiny_network("llama").save_pretrained(tmp_path)
    loading_refusal(tmp_path, language_model=True)


@pytest.mark.parametrize("language_model", [False, True])
def test_a_folder_with_an_encoder_decoder_is_refused_by_name(language_model: bool, tmp_path: Path) -> None:
    config = tf.T5Config(vocab_size=VOCABULARY_SIZE, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    tf.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="t5 is an encoder-decoder"):
        load_backbone(ModelSection(name_or_path=str(tmp_path), dtype="float32"), language_model=language_model)


def test_a_tokenizer_gets_a_padding_token(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelSection(name_or_path=str(tmp_path)))
    assert loaded.pad_token == loaded.eos_token == "</s>"
    assert loaded(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


def test_a_missing_tokenizer_names_its_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model\.name_or_path: no tokenizer could be loaded"):
        load_tokenizer(ModelSection(name_or_path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"^model\.tokenizer: no tokenizer could be loaded"):
        load_tokenizer(ModelSection(name_or_path="x", tokenizer=str(tmp_path)))
