"""The tuned model in a user's own Python: copies, the user's own model, several methods on one model, caches."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import peft
import pytest
import torch
import transformers as tf

import sktune
from sktune.embedded import resolve
from sktune.errors import UserError
from sktune.methods.config import MethodConfig
from sktune.model.tuned_model import TunedModel

PATH = resolve("embedded:llama")
TEXT = "is the sentence positive or negative ?"
PREFIX, PROMPT = sktune.SKPrefixConfig(text=TEXT), sktune.SKPromptConfig(text=TEXT)
METHODS = [
    PREFIX,
    PROMPT,
    sktune.LoraConfig(),
    sktune.IA3Config(),
    sktune.BottleneckAdapterConfig(),
    sktune.LlamaAdapterConfig(),
    sktune.PrefixTuningConfig(),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tf.AutoTokenizer.from_pretrained(PATH)


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> torch.Tensor:
    return torch.tensor([tokenizer("the people of the town", add_special_tokens=False)["input_ids"]])


def base(auto: Any = tf.AutoModel) -> Any:
    return auto.from_pretrained(PATH, dtype=torch.float32).eval()


def tuned(tokenizer: Any, method: MethodConfig, model: Any = None, **options: Any) -> TunedModel:
    settings = {"task": "sequence_classification", "num_labels": 2, **options}
    torch.manual_seed(0)
    made = sktune.attach(model or base(), tokenizer, method, **settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@each_method
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_copy_is_equal_trains_and_is_independent(tokenizer, ids, method, checkpointing) -> None:
    model = tuned(tokenizer, method, gradient_checkpointing=checkpointing)
    model.train()(ids, labels=torch.tensor([1])).loss.backward()
    model.eval()
    with torch.no_grad():
        expected = model(ids).logits
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        other.zero_grad()
        with torch.no_grad():
            assert torch.equal(other(ids).logits, expected)
        other.train()(ids, labels=torch.tensor([1])).loss.backward()
        assert [name for name, p in other.trainable_parameters().items() if p.grad is None] == []
        with torch.no_grad():
            for parameter in model.trainable_parameters().values():
                parameter.mul_(3)
            assert torch.equal(other.eval()(ids).logits, expected)
            assert not torch.equal(model(ids).logits, expected)
            for parameter in model.trainable_parameters().values():
                parameter.div_(3)


@each_method
def test_outside_a_tuned_pass_the_model_is_its_owners(tokenizer, ids, method) -> None:
    model = base(tf.AutoModelForCausalLM)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        plain, said = model(ids).logits, model.generate(ids, **options)
        made = tuned(tokenizer, method, model, task="causal_lm")
        assert not torch.equal(made(ids).logits, plain)
        assert torch.equal(model(ids).logits, plain)
        assert torch.equal(model.generate(ids, **options), said)


@pytest.mark.parametrize("second", [PREFIX, PROMPT, sktune.PrefixTuningConfig(), sktune.BottleneckAdapterConfig()])
def test_two_on_one_model_work_in_turn(tokenizer, ids, second) -> None:
    with torch.no_grad():
        alone = [tuned(tokenizer, method)(ids).logits for method in (PREFIX, second)]
        model = base()
        together = [tuned(tokenizer, method, model) for method in (PREFIX, second)]
        for _ in range(2):
            for one, expected in zip(together, alone, strict=True):
                torch.testing.assert_close(one(ids).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", [PREFIX, PROMPT])
@pytest.mark.parametrize("how", ["data", "data_in_place", "vector"])
def test_an_evaluation_sees_every_change_of_the_parameters(tokenizer, ids, method, how) -> None:
    model = tuned(tokenizer, method)
    parameters = list(model.method.parameters())
    with torch.no_grad():
        before = model(ids).logits
        if how == "vector":
            vector = 3 * torch.nn.utils.parameters_to_vector(parameters)
            torch.nn.utils.vector_to_parameters(vector, parameters)
        for parameter in parameters if how != "vector" else ():
            if how == "data":
                parameter.data = 3 * parameter.data
            else:
                parameter.data.mul_(3)
        after = model(ids).logits
        assert torch.equal(after, model.train().eval()(ids).logits)
        assert not torch.equal(after, before)


def test_what_is_kept_of_the_text_moves_with_the_model(tokenizer, ids) -> None:
    model = tuned(tokenizer, PREFIX)
    with torch.no_grad():
        model(ids)
        model.to("meta")
        assert model(ids.to("meta")).logits.is_meta


def test_threads_each_train_a_model_of_their_own(tokenizer, ids) -> None:
    models = [tuned(tokenizer, PREFIX).train() for _ in range(2)]
    losses: list[float] = []
    barrier = threading.Barrier(2)

    def train(model: TunedModel) -> None:
        barrier.wait()
        losses.append(model(ids, labels=torch.tensor([1])).loss.item())

    threads = [threading.Thread(target=train, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(losses) == 2 and losses[0] == losses[1]


@each_method
def test_disabled_and_detached_the_plain_model_answers(tokenizer, ids, method) -> None:
    model = base(tf.AutoModelForCausalLM).train()
    expected_state = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    with torch.no_grad():
        plain = model.eval()(ids).logits
        model.train()
        made = tuned(tokenizer, method, model, task="causal_lm")
        woven = made(ids).logits
        with made.disable_adapter():
            torch.testing.assert_close(made(ids).logits, plain, atol=1e-5, rtol=0)
        assert torch.equal(made(ids).logits, woven)
        assert not torch.allclose(woven, plain, atol=1e-3)
    assert sktune.detach(made) is model
    assert model.training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == {
        name: trains for name, (trains, _) in expected_state.items()
    }
    assert all(torch.equal(p, expected_state[name][1]) for name, p in model.named_parameters())
    with pytest.raises(UserError, match="detached"):
        made(ids)
    with torch.no_grad():
        again = tuned(tokenizer, method, model, task="causal_lm")
        torch.testing.assert_close(again(ids).logits, woven, atol=1e-6, rtol=0)


def test_detaching_one_of_two_leaves_the_other_as_it_was(tokenizer, ids) -> None:
    model = base()
    one, other = (tuned(tokenizer, method, model) for method in (PREFIX, PROMPT))
    with torch.no_grad():
        expected = other(ids).logits
        sktune.detach(one)
        assert torch.equal(other(ids).logits, expected)
    assert all(not name.startswith("backbone.") for name in other.trainable_parameters())
    assert not any(p.requires_grad for p in model.parameters())
    sktune.detach(other)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (sktune.IA3Config(), sktune.LoraConfig(alpha=64)),
        (sktune.TopLayersConfig(layers=1), sktune.LoraConfig(alpha=64)),
        (sktune.TopLayersConfig(layers=1), PREFIX),
    ],
)
def test_a_second_method_does_not_freeze_or_replace_what_trains_inside_the_model(tokenizer, first, second) -> None:
    model = base()
    one = tuned(tokenizer, first, model)
    names = list(one.trainable_parameters())
    with pytest.raises(UserError, match="detach"):
        sktune.attach(model, tokenizer, second, task="sequence_classification", num_labels=2)
    assert list(one.trainable_parameters()) == names
    sktune.detach(one)
    assert tuned(tokenizer, second, model).trainable_parameters()


def test_a_model_with_layers_of_peft_is_refused(tokenizer) -> None:
    model = peft.get_peft_model(base(), peft.LoraConfig(target_modules=["q_proj"])).base_model.model
    with pytest.raises(UserError, match="peft"):
        sktune.attach(model, tokenizer, PREFIX, task="sequence_classification", num_labels=2)


@pytest.mark.parametrize("method", [sktune.FullFineTuningConfig(), sktune.TopLayersConfig(layers=1)])
def test_what_trains_the_models_own_weights_cannot_be_disabled(tokenizer, method) -> None:
    with pytest.raises(UserError, match="load it again"), tuned(tokenizer, method).disable_adapter():
        pass


def one_step(tokenizer, ids, folder, batch_size: int, accumulation: int, **options: Any) -> torch.Tensor:
    """The parameters after one step of transformers.Trainer over 8 rows that count different numbers of tokens."""
    model = tuned(tokenizer, PREFIX, base(tf.AutoModelForCausalLM), task="causal_lm")
    places = torch.arange(ids.shape[1])
    rows = [{"input_ids": ids[0], "labels": torch.where(places < i % 4, -100, ids[0])} for i in range(8)]
    arguments = tf.TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        **options,
    )
    tf.Trainer(model=model, train_dataset=rows, args=arguments).train()
    return torch.cat([p.detach().flatten() for p in model.trainable_parameters().values()])


def test_in_trainer_accumulated_batches_weigh_as_one(tokenizer, ids, tmp_path) -> None:
    whole = one_step(tokenizer, ids, tmp_path, 8, 1)
    torch.testing.assert_close(one_step(tokenizer, ids, tmp_path, 2, 4), whole, atol=1e-6, rtol=0)


def test_in_trainer_checkpointing_changes_no_step(tokenizer, ids, tmp_path) -> None:
    plain = one_step(tokenizer, ids, tmp_path, 8, 1)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    torch.testing.assert_close(one_step(tokenizer, ids, tmp_path, 8, 1, **options), plain, atol=1e-6, rtol=0)
    assert not torch.equal(one_step(tokenizer, ids, tmp_path, 4, 1), plain)


@pytest.mark.parametrize(
    ("saved", "here", "named"),
    [
        (PREFIX, sktune.SKPrefixConfig(text="the weather in the town"), ["text"]),
        (PREFIX, sktune.SKPrefixConfig(text=TEXT, activation="relu"), ["activation"]),
        (PREFIX, sktune.SKPrefixConfig(text="the weather", activation="relu"), ["text", "activation"]),
        (PROMPT, sktune.SKPromptConfig(text=TEXT, cut_layer=1), ["cut_layer"]),
        (sktune.LoraConfig(), sktune.LoraConfig(alpha=64), ["alpha"]),
    ],
)
def test_an_adapter_is_not_loaded_into_what_it_was_not_trained_in(tokenizer, tmp_path, saved, here, named) -> None:
    sktune.save_adapter(tuned(tokenizer, saved), tmp_path)
    other = tuned(tokenizer, here)
    before = {name: p.clone() for name, p in other.trainable_parameters().items()}
    with pytest.raises(UserError) as refusal:
        sktune.load_adapter(other, tmp_path)
    assert all(f"method.{field} is " in str(refusal.value) for field in named)
    assert all(torch.equal(p, before[name]) for name, p in other.trainable_parameters().items())


def test_an_adapter_of_another_model_tokenizer_or_task_is_refused(tokenizer, tmp_path) -> None:
    sktune.save_adapter(tuned(tokenizer, PROMPT), tmp_path)
    config = tf.AutoConfig.from_pretrained(PATH)
    config.rms_norm_eps *= 10
    with pytest.raises(UserError, match="model's configuration"):
        sktune.load_adapter(tuned(tokenizer, PROMPT, tf.AutoModel.from_config(config)), tmp_path)
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens(["unheard"])
    with pytest.raises(UserError, match="tokenizer's vocabulary"):
        sktune.load_adapter(tuned(longer, PROMPT), tmp_path)
    with pytest.raises(UserError, match=r"task\.name"):
        sktune.load_adapter(tuned(tokenizer, PROMPT, task="token_classification"), tmp_path)


@each_method
def test_an_adapter_is_loaded_into_what_it_was_trained_in(tokenizer, ids, tmp_path, method) -> None:
    model = tuned(tokenizer, method)
    sktune.save_adapter(model, tmp_path)
    fresh = sktune.attach(base(), tokenizer, method, task="sequence_classification", num_labels=2).eval()
    with torch.no_grad():
        assert torch.equal(sktune.load_adapter(fresh, tmp_path)(ids).logits, model(ids).logits)
