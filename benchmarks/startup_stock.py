"""What `startup.py` measures sktune against: LoRA by peft in transformers' Trainer, up to the first step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import peft
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

EMBEDDED = Path(__file__).resolve().parents[1] / "sktune" / "embedded"


class FirstStep(TrainerCallback):
    """Says when the first optimizer step is done."""

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        print("step 1", flush=True)


def main() -> None:
    model = EMBEDDED / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = (EMBEDDED / "data" / "sentiment" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in lines]
    labels = sorted({example["label"] for example in examples})
    rows = [
        {**tokenizer(example["text"], truncation=True, max_length=64), "labels": labels.index(example["label"])}
        for example in examples
    ]
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(labels))
    network.config.pad_token_id = tokenizer.pad_token_id
    tuned = peft.get_peft_model(network, peft.LoraConfig(task_type="SEQ_CLS"))
    arguments = TrainingArguments(
        sys.argv[1], per_device_train_batch_size=16, max_steps=1, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    Trainer(tuned, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[FirstStep()]).train()


if __name__ == "__main__":
    main()
