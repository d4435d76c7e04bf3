"""`sktune export`: an adapter in the forms of peft and transformers, replayed there without anything of sktune."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from test_upper_layers import FIELDS
from tiny_models import TEXT, VOCABULARY, tiny_network, tiny_tokenizer
from training_fixtures import BITS, ONE_RANK, TASKS, Sections, Workshop

from sktune.answering import predict
from sktune.cli import main
from sktune.inference import load_trained

METHODS: dict[str, Sections] = {
    name: {"method": {"text": ..., "rank": ..., "name": name, **fields}}
    for name, fields in {**FIELDS, "sk_prompt": {"text": TEXT}, "prompt_tuning": {"num_virtual_tokens": 3}}.items()
}
IN_FRONT = ("sk_prefix", "prefix_tuning", "sk_prompt", "prompt_tuning")
OF_PEFT = (*IN_FRONT, "lora", "ia3")
TASKS_OF_PEFT = ("token", "words", "generation")


def exported(workshop: Workshop, target: str, *options: str) -> tuple[Path, dict[str, Any]]:
    folder = workshop.folder / "exported"
    assert main(["export", str(workshop.output("run")), "--to", target, "--output", str(folder), *options]) == 0
    return folder, json.loads((folder / "export.json").read_text())


@pytest.mark.parametrize("method", OF_PEFT)
@pytest.mark.parametrize("task", TASKS_OF_PEFT)
def test_peft_gives_the_same_logits(workshop: Workshop, method: str, task: str) -> None:
    workshop.train("run", TASKS[task], METHODS[method])
    _, card = exported(workshop, "peft", "--check", "13", "--tolerance", "1e-5")
    assert card["replayed"]["examples"] == 13
    assert card["replayed"]["same_answers"] == 1.0


@pytest.mark.parametrize("method", IN_FRONT)
@pytest.mark.parametrize("task", TASKS)
def test_transformers_give_the_same_logits(workshop: Workshop, method: str, task: str) -> None:
    workshop.train("run", TASKS[task], METHODS[method])
    _, card = exported(workshop, "transformers", "--check", "13", "--tolerance", "1e-5")
    assert card["replayed"]["examples"] == 13


@pytest.mark.parametrize(("method", "task"), [("sk_prefix", "sequence"), ("sk_prompt", "words"), ("lora", "token")])
def test_the_lines_in_the_readme_do_what_they_say(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, method: str, task: str
) -> None:
    workshop.train("run", TASKS[task], METHODS[method])
    folder, _ = exported(workshop, "peft" if method == "lora" else "transformers")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    ids = torch.tensor([[20, 21, 22, 23], [30, 31, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    names: dict[str, Any] = {"input_ids": ids, "mask": mask, "lengths": mask.sum(1)}
    monkeypatch.chdir(folder.parent if method == "lora" else folder)
    with torch.no_grad():
        exec(code, names)
        logits = names["model"](input_ids=ids, attention_mask=mask).logits if method == "lora" else names["logits"]
        _, setup = load_trained(workshop.output("run"), ONE_RANK, ["distributed.deepspeed=null"])
        ours = setup.model.eval()(ids, mask).logits
    real = mask.bool() if ours.ndim == 3 else slice(None)
    torch.testing.assert_close(logits[:, -ours.shape[1] :][real], ours[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "task", "target", "words"),
    [
        ("sk_prefix", "sequence", "peft", "heads for sequence_classification differ"),
        ("bottleneck_adapter", "token", "peft", "peft has no place for bottleneck_adapter"),
        ("lora", "token", "transformers", "lora changes the model's own modules"),
        ("sk_prefix", "words", "vocabulary", "sk_prefix puts no embeddings in front of the input"),
        ("sk_prompt", "sequence", "vocabulary", "heads for sequence_classification differ"),
    ],
)
def test_what_a_form_cannot_say_is_refused_and_nothing_is_left(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], method: str, task: str, target: str, words: str
) -> None:
    workshop.train("run", TASKS[task], METHODS[method])
    folder = workshop.folder / "exported"
    assert main(["export", str(workshop.output("run")), "--to", target, "--output", str(folder)]) == 2
    assert words in capsys.readouterr().err
    assert not folder.exists()


def test_a_replay_that_differs_keeps_nothing(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.train("run", TASKS["words"], METHODS["sk_prefix"])
    folder = workshop.folder / "exported"
    command = ["export", str(workshop.output("run")), "--to", "peft", "--output", str(folder), "--check", "4"]
    assert main([*command, "--tolerance=-1"]) == 2
    assert "more than --tolerance -1" in capsys.readouterr().err
    assert not folder.exists()


def test_a_folder_with_something_in_it_is_refused(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.train("run")
    assert main(["export", str(workshop.output("run")), "--to", "peft", "--output", str(workshop.folder)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["sk_prompt", "prompt_tuning"])
@pytest.mark.parametrize("task", TASKS_OF_PEFT)
def test_a_vocabulary_with_the_prompt_gives_the_same_logits(
    workshop: Workshop, tmp_path: Path, method: str, task: str, tied: bool
) -> None:
    model = tmp_path / "tied"
    if tied:
        tiny_network("llama", language_model=True, tie_word_embeddings=True).save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
    base: Sections = {"model": {"name_or_path": str(model)}} if tied else {}
    workshop.train("run", TASKS[task], METHODS[method], base)
    folder, card = exported(workshop, "vocabulary", "--check", "13", "--tolerance", "1e-5")
    assert card["replayed"]["examples"] == 13
    assert card["replayed"]["same_answers"] == 1.0
    assert " MB: the prompt is the tokens 101 to " in (folder / "README.md").read_text()


def test_a_vocabulary_with_the_prompt_writes_what_sktune_writes_and_none_of_its_own_tokens(workshop: Workshop) -> None:
    workshop.train("run", TASKS["generation"], METHODS["sk_prompt"])
    folder, _ = exported(workshop, "vocabulary")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt = [token for token in tokenizer("w1 w2")["input_ids"] if token >= len(VOCABULARY)]
    assert model.generation_config.suppress_tokens == prompt
    for text in ("w1 w2", "w11", "w3 w3 w3 w4"):
        encoded = tokenizer(text, return_tensors="pt")
        written = model.generate(**encoded, max_new_tokens=3, do_sample=False)[0, encoded["input_ids"].shape[1] :]
        (ours,) = predict(workshop.output("run"), [text], None, ONE_RANK)
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == ours["generated"]
    # Rows of the output that stand for the prompt are among the likeliest here, and are not written.
    with torch.no_grad():
        model.get_output_embeddings().weight[prompt] = 100 * model.get_output_embeddings().weight.mean(0)
        model.get_output_embeddings().weight[prompt[0]] *= -1
    written = model.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=20, do_sample=False)
    assert not set(written[0, len(prompt) + 2 :].tolist()) & set(prompt)


def test_a_vocabulary_is_replayed_at_the_precision_of_the_recipe(workshop: Workshop) -> None:
    workshop.train("run", TASKS["words"], METHODS["sk_prompt"], {"quantization": BITS["nf4"]})
    folder, card = exported(workshop, "vocabulary", "--check", "13", "--tolerance", "0.03")
    assert (card["trained_in"], card["read_in"]) == ("4 bits", "4 bits")
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float32}  # noqa: SIM118
