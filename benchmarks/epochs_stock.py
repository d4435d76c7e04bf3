"""What `epochs.py` measures sktune against: prefix tuning and LoRA by peft in transformers' Trainer, on SmolLM2.

python benchmarks/epochs_stock.py prefix|lora MODEL.gguf DATA RATE EPOCHS OUTPUT

Prints `trained` at the end of each epoch's steps, and then the accuracy on the test sentences.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

INSTRUCTION = "Classify the sentiment of the movie review as positive or negative.\nReview:"
WORDS = (" negative", " positive")
VIRTUAL_TOKENS = 16
MAX_LENGTH = 64
TESTED_TOGETHER = 32


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    method, file, data, rate, epochs, output = sys.argv[1:]
    model = Path(file)
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    network = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.bfloat16)
    network.is_quantized = False  # its file was, and so the Trainer would refuse it
    if method == "prefix":
        before = ""
        config: Any = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL_TOKENS)
    else:
        before = INSTRUCTION
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=8)
    tuned = peft.get_peft_model(network, config)

    def prompt(text: str) -> list[int]:
        ending = tokenizer("\nSentiment:")["input_ids"]
        ids: list[int] = tokenizer(f"{before}{text}")["input_ids"]
        return [*ids[:MAX_LENGTH], *ending]

    answers = [tokenizer(word)["input_ids"][0] for word in WORDS]
    rows = []
    for example in read(Path(data) / "train.jsonl"):
        ids = prompt(example["text"])
        answer = answers[example["label"] == "positive"]
        rows.append({"input_ids": [*ids, answer], "labels": [-100] * len(ids) + [answer]})

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)

        def padded(key: str, fill: int) -> torch.Tensor:
            return torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in batch])

        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
        return {
            "input_ids": padded("input_ids", 0),
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor(mask),
        }

    arguments = TrainingArguments(
        output, per_device_train_batch_size=16, num_train_epochs=float(epochs), learning_rate=float(rate),
        warmup_steps=3, report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True,
        seed=42,
    )  # fmt: skip
    tests = read(Path(data) / "test.jsonl")

    @torch.no_grad()
    def accuracy() -> float:
        tuned.eval()
        right = 0
        for start in range(0, len(tests), TESTED_TOGETHER):
            asked = [(prompt(example["text"]), example["label"]) for example in tests[start : start + TESTED_TOGETHER]]
            batch = collate([{"input_ids": ids, "labels": ids} for ids, _ in asked])
            logits = tuned(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for row, (ids, label) in zip(logits, asked, strict=True):
                right += (int(row[len(ids) - 1, answers].argmax()) == 1) == (label == "positive")
        tuned.train()
        return right / len(tests)

    class Score(TrainerCallback):
        """Prints when an epoch's steps are done, and what they have brought."""

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            print("trained", flush=True)
            print(f"accuracy {accuracy():.4f}", flush=True)

    Trainer(tuned, arguments, train_dataset=rows, data_collator=collate, callbacks=[Score()]).train()


if __name__ == "__main__":
    main()
