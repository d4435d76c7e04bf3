"""What the second pass costs: step and inference time of SK-Tuning against peft's methods, in one process.

    python benchmarks/dual_pass.py [--rounds 30] [--threads 1] [--output FILE]

One LLaMA of random weights, the same batches for every contestant. Each round gives every contestant one training
step (forward, backward, AdamW) and five inference passes, whose median counts, in an order drawn anew, so that
whatever else the machine does falls on all alike; a ratio is taken within a round. Times are of the processor on a CPU,
of the clock on a GPU. The result goes to benchmarks/results/dual_pass.json.

`peft prefix tuning` and `peft prompt tuning` are peft's own models with as many virtual tokens as the text has;
`prefix_tuning` and `prompt_tuning` are peft's encoders in sktune's way.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from sktune.backbone import Backbone, load_tokenizer
from sktune.methods.config import MethodConfig
from sktune.methods.head_only.config import HeadOnlyConfig
from sktune.methods.lora.config import LoraConfig
from sktune.methods.method import build_method
from sktune.methods.prefix_tuning.config import PrefixTuningConfig
from sktune.methods.prompt_tuning.config import PromptTuningConfig
from sktune.methods.sk_prefix.config import SKPrefixConfig
from sktune.methods.sk_prompt.config import SKPromptConfig
from sktune.model.tuned_model import TunedModel
from sktune.sections import ModelSection
from sktune.tasks.task import build_task
from sktune.tasks.token_classification.config import TokenClassificationConfig

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "dual_pass.json"
TEXT = "recognize the people , organisations , places and miscellaneous names in the text :"
LABELS = 4
BARS = {  # contestant: (baseline, most times its step, most times its inference)
    "sk_prefix, cached": ("peft prefix tuning", 1.03, 1.01),
    "sk_prompt, cached": ("peft prompt tuning", 1.03, 1.01),
}
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def network(device: torch.device) -> LlamaModel:
    """The same random LLaMA each time: hidden 512, 8 layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaModel(config).to(device)


class Contestant:
    """A model, its loss on a batch, and its optimizer."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], torch.Tensor]) -> None:
        self.model = model
        self.loss = loss
        trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3)

    def step(self, batch: Batch) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        self.loss(self.model, batch).backward()
        self.optimizer.step()

    def infer(self, batch: Batch) -> None:
        with torch.no_grad():
            self.loss(self.model, batch)


class PeftTuned(nn.Module):
    """A peft prompt-learning model and the token head that sktune's contestants have."""

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__()
        self.peft = peft.get_peft_model(network(device), config)  # type: ignore[arg-type]
        self.virtual: int = config.num_virtual_tokens
        self.head = nn.Linear(512, LABELS).to(device)

    def forward(self, batch: Batch) -> torch.Tensor:
        ids, mask, labels = batch
        hidden = self.peft(input_ids=ids, attention_mask=mask)[0][:, -ids.shape[1] :]
        return F.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())


def ours(section: MethodConfig, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> Contestant:
    """A method through sktune."""
    backbone = Backbone(network(device))
    torch.manual_seed(1)
    method = build_method(section, backbone, tokenizer)
    head = build_task(TokenClassificationConfig()).head(backbone, LABELS)
    model = TunedModel(backbone, method, head).to(device)
    return Contestant(model, lambda model, batch: model(batch[0], batch[1], labels=batch[2]).loss)


def contestants(device: torch.device) -> dict[str, Contestant]:
    """All of them, by the name in the table."""
    tokenizer: Any = load_tokenizer(ModelSection(name_or_path="embedded:llama"))
    count = len(tokenizer(TEXT)["input_ids"])
    every_step: dict[str, Any] = {"text": TEXT, "semantics": "every_step"}
    sections: dict[str, MethodConfig] = {
        "sk_prefix, cached": SKPrefixConfig(text=TEXT),
        "sk_prefix, every step": SKPrefixConfig(**every_step),
        "sk_prefix, trainable text": SKPrefixConfig(**every_step, trainable_text=True),
        "sk_prompt, cached": SKPromptConfig(text=TEXT),
        "sk_prompt, every step": SKPromptConfig(**every_step),
        "sk_prompt, trainable text": SKPromptConfig(**every_step, trainable_text=True),
        "prefix_tuning": PrefixTuningConfig(num_virtual_tokens=count),
        "prompt_tuning": PromptTuningConfig(num_virtual_tokens=count),
        "lora": LoraConfig(),
        "head_only": HeadOnlyConfig(),
    }
    found = {name: ours(section, tokenizer, device) for name, section in sections.items()}
    for name, config in (
        ("peft prefix tuning", peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=count)),
        ("peft prompt tuning", peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=count)),
    ):
        found[name] = Contestant(PeftTuned(config, device), lambda model, batch: model(batch))
    return found


def timed(work: Callable[[Batch], None], batch: Batch) -> float:
    """Seconds of one call."""
    if batch[0].is_cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if batch[0].is_cuda else time.process_time  # a CPU is shared with others
    start = clock()
    work(batch)
    if batch[0].is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "first_quartile": low, "third_quartile": high}


def measure(rounds: int, device: torch.device) -> dict[str, Any]:
    """Times of every contestant, as seconds and as ratios to its baseline within a round."""
    everyone = contestants(device)
    generator = torch.Generator().manual_seed(2)
    times: dict[str, dict[str, list[float]]] = {name: {"step": [], "inference": []} for name in everyone}
    for number in range(rounds + 2):
        ids = torch.randint(3, 1000, (8, 64), generator=generator).to(device)
        batch = ids, torch.ones_like(ids), ids % LABELS
        order = list(everyone)
        random.Random(number).shuffle(order)
        for name in order:
            step = timed(everyone[name].step, batch)
            everyone[name].model.eval()
            everyone[name].infer(batch)  # what is made once for an evaluation is made here
            inference = statistics.median(timed(everyone[name].infer, batch) for _ in range(5))
            if number >= 2:  # the first rounds warm up
                times[name]["step"].append(step)
                times[name]["inference"].append(inference)
    result: dict[str, Any] = {}
    for name, found in times.items():
        kind = "peft prefix tuning" if "prefix" in name else "peft prompt tuning"
        entry: dict[str, Any] = {"trainable_parameters": everyone[name].parameters}
        for what, seconds in found.items():
            entry[f"{what}_seconds"] = spread(seconds)
            ratios = [own / base for own, base in zip(seconds, times[kind][what], strict=True)]
            entry[f"{what}_ratio"] = {"to": kind, **spread(ratios)}
        result[name] = entry
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = measure(options.rounds, device)
    bars = {
        name: {
            "step": found[name]["step_ratio"]["median"],
            "step_bar": step,
            "inference": found[name]["inference_ratio"]["median"],
            "inference_bar": inference,
            "to": baseline,
        }
        for name, (baseline, step, inference) in BARS.items()
    }
    environment = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({platform.machine()})",
        "threads": options.threads,
        "seconds": "wall" if device.type == "cuda" else "processor",
        "rounds": options.rounds,
        "batch": "8 x 64 tokens, fp32",
        "model": "LLaMA, hidden 512, 8 layers, random weights",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment, "bars": bars, "contestants": found}, indent=1)
    options.output.write_text(text + "\n", encoding="utf-8")
    for name, entry in found.items():
        step, inference = entry["step_ratio"], entry["inference_ratio"]
        print(
            f"{name:28} {entry['trainable_parameters']:>10,}  step {step['median']:.3f}x "
            f"[{step['first_quartile']:.3f}, {step['third_quartile']:.3f}]  inference {inference['median']:.3f}x "
            f"[{inference['first_quartile']:.3f}, {inference['third_quartile']:.3f}]  of {step['to']}"
        )
    return int(any(bar["step"] > bar["step_bar"] or bar["inference"] > bar["inference_bar"] for bar in bars.values()))


if __name__ == "__main__":
    sys.exit(main())
