"""`sktune predict`: texts a second in batches and one at a time, and tokens a second against transformers' generate.

    python benchmarks/predict.py [--rounds 5] [--small]     # `sktune fetch minilm smollm2 film_reviews` first

Texts: the encoder MiniLM with SK-Prefix reads sentences of film reviews, 32 at once and one at a time; of the command
run in this process the seconds of so many texts more, so that loading does not count. Beside it, what batches of the
same rows do for the plain encoder alone: the most that this machine gives. Tokens: SmolLM2-135M with
SK-Prefix writes, greedily; against transformers' own `generate` of the same model in this process, given the same
prefix as `past_key_values`, for one text and for eight at once; both write the same tokens. By turns, a round each.
`--small` takes what comes with sktune. Goes to benchmarks/results/predict.json; exits with 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from launching import PACKAGES, RESULTS, facts, save
from transformers import DynamicCache, GenerationConfig

BATCH, TIMES_AS_FAST, OF_TRANSFORMERS = 32, 5.0, 0.95
TOGETHER, NEW_TOKENS = (1, 8), 48
RECIPE = """
model: {{name_or_path: "embedded:{model}", dtype: float32}}
method: {{name: sk_prefix, text: "Classify the sentiment of the movie review as positive or negative. Review:"}}
task: {task}
data: {{path: "embedded:{data}", validation: null, test: null, max_length: 64, max_train_samples: 16{columns}}}
training: {{max_steps: 1, per_device_train_batch_size: 8}}
distributed: {{deepspeed: null}}
tracking: {{enabled: false}}
output: {{dir: "{output}", overwrite: true}}
"""


def train(scratch: Path, name: str, **fields: str) -> Path:
    """The output folder of one step."""
    from sktune.distributed.ranks import Ranks
    from sktune.recipe import load_recipe_document
    from sktune.training.run import train as run

    recipe, output = scratch / f"{name}.yaml", scratch / name
    recipe.write_text(RECIPE.format(output=output, **fields), encoding="utf-8")
    run(load_recipe_document(recipe), Ranks(0, 0, 1, torch.device("cpu"), launched=False))
    return output


def sentences(data: str, count: int) -> list[str]:
    from sktune.embedded import resolve

    lines = [line for line in (resolve(f"embedded:{data}", "data") / "train.jsonl").open(encoding="utf-8")]
    texts = [json.loads(line)["text"] for line in lines]
    return (texts * (count // len(texts) + 1))[:count]


def measure_texts(run: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Texts a second at each size of batch, and how many times as fast the larger is, of each round."""
    from sktune.cli import main

    def seconds(count: int, size: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            asked, answered = Path(folder) / "texts.txt", Path(folder) / "answers.jsonl"
            asked.write_text("\n".join(texts[:count]) + "\n", encoding="utf-8")
            start = time.perf_counter()
            arguments = [str(run), str(asked), "--output", str(answered), "--batch-size", str(size), "--quiet"]
            with contextlib.redirect_stderr(io.StringIO()):
                assert main(["predict", *arguments]) == 0
            return time.perf_counter() - start

    few, many = len(texts) // 4, len(texts)
    seconds(few, BATCH)
    plain = [one / together for together, one in (plain_seconds(run, texts[few:]) for _ in range(rounds))]
    found: dict[int, list[float]] = {1: [], BATCH: []}
    for _ in range(rounds):
        for size, speeds in found.items():
            speeds.append((many - few) / (seconds(many, size) - seconds(few, size)))
    ratios = [batched / alone for alone, batched in zip(found[1], found[BATCH], strict=True)]
    return {
        "texts": many,
        "texts_per_second": {str(size): speeds for size, speeds in found.items()},
        "times_as_fast": {"median": statistics.median(ratios), "rounds": ratios},
        "times_as_fast_of_the_plain_encoder": {"median": statistics.median(plain), "rounds": plain},
    }


@torch.no_grad()
def plain_seconds(run: Path, texts: list[str]) -> tuple[float, float]:
    """Seconds of the frozen encoder's passes over texts sorted by length, batched and one at a time."""
    from sktune.distributed.ranks import Ranks
    from sktune.inference import load_trained

    _, setup = load_trained(run, Ranks(0, 0, 1, torch.device("cpu"), launched=False))
    model = setup.model.eval().backbone.base
    rows = [row for text in texts for row in setup.encode([setup.task.example(text, None)], "", scoring=True).rows]
    rows.sort(key=lambda row: -row.length)

    def seconds(size: int) -> float:
        start = time.perf_counter()
        for first in range(0, len(rows), size):
            batch = setup.collator(rows[first : first + size])
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return time.perf_counter() - start

    return seconds(BATCH), seconds(1)


def measure_tokens(run: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Tokens a second of `sktune predict`'s writing, over those of transformers' generate, of each round."""
    import sktune
    from sktune.data.collate import padded
    from sktune.distributed.ranks import Ranks
    from sktune.inference import load_trained
    from sktune.writing import Writing, write

    _, setup = load_trained(run, Ranks(0, 0, 1, torch.device("cpu"), launched=False))
    setup.model.eval()
    prefix = setup.model.woven().prefix
    assert prefix is not None
    plain: Any = sktune.load(run).backbone.model
    pad = setup.collator.pad_token_id
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=pad)

    def ours(prompts: list[list[int]]) -> list[str]:
        return write(setup, prompts, Writing(max_new_tokens=NEW_TOKENS))

    @torch.no_grad()
    def stock(prompts: list[list[int]]) -> list[str]:
        width = max(map(len, prompts))
        cache = DynamicCache()
        for number, (_, (key, value)) in enumerate(prefix):
            shape = (len(prompts), -1, -1, -1)
            cache.update(key.expand(shape).clone(), value.expand(shape).clone(), number)
        front = torch.ones(len(prompts), prefix[0][1].key.shape[2], dtype=torch.long)
        mask = torch.cat((front, padded([[1] * len(one) for one in prompts], 0, width, "left")), dim=1)
        ids = padded(prompts, pad, width, "left")
        # As generate counts what is in the cache, placeholders stand for the prefix.
        placed = torch.cat((torch.full_like(front, pad), ids), dim=1)
        written = plain.generate(placed, attention_mask=mask, past_key_values=cache, generation_config=config)
        return [setup.tokenizer.decode(row[placed.shape[1] :], skip_special_tokens=True).strip() for row in written]

    def seconds(of: Callable[[list[list[int]]], list[str]], prompts: list[list[int]]) -> float:
        start = time.perf_counter()
        of(prompts)
        return time.perf_counter() - start

    setup.tokenizer.eos_token_id = None  # all write as many tokens
    for model in (setup.model.backbone.model, plain):
        model.generation_config.eos_token_id = None
    found: dict[str, Any] = {}
    for count in TOGETHER:
        prompts = [setup.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts[:count]]
        assert ours(prompts) == stock(prompts)
        times = [(seconds(stock, prompts), seconds(ours, prompts)) for _ in range(rounds)]
        ratios = [theirs / own for theirs, own in times]
        found[str(count)] = {
            "tokens_per_second": [count * NEW_TOKENS / own for _, own in times],
            "of_transformers": {"median": statistics.median(ratios), "rounds": ratios},
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a short run on what comes with sktune; keeps nothing")
    options = parser.parse_args()
    small = options.small
    rounds = 1 if small else options.rounds
    data = "sentiment" if small else "film_reviews"
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        classifying = {"data": data, "task": "{name: sequence_classification}", "columns": ""}
        classifier = train(scratch, "texts", model="llama" if small else "minilm", **classifying)
        texts = measure_texts(classifier, sentences(data, 128 if small else 1024), rounds)
        writer = train(
            scratch,
            "tokens",
            model="llama" if small else "smollm2",
            data=data,
            task="{name: causal_lm, max_new_tokens: 64}",
            columns=", target_column: label",
        )
        tokens = measure_tokens(writer, sentences(data, max(TOGETHER)), rounds)
    bars = [
        {
            "what": f"texts a second, {BATCH} at once, times those one at a time",
            "measured": texts["times_as_fast"]["median"],
            "at_least": TIMES_AS_FAST,
        }
    ]
    bars += [
        {
            "what": f"tokens a second of {count} texts at once, of transformers' generate",
            "measured": tokens[str(count)]["of_transformers"]["median"],
            "at_least": OF_TRANSFORMERS,
        }
        for count in TOGETHER
    ]
    for bar in bars:
        bar["holds"] = bar["measured"] >= bar["at_least"]
        print(f"{bar['what']}: {bar['measured']:.2f}  {'holds' if bar['holds'] else 'DOES NOT HOLD'}")
    if small:
        return 0
    save({"bars": bars, "texts": texts, "tokens": tokens, "environment": facts(PACKAGES)}, RESULTS / "predict.json")
    return int(not all(bar["holds"] for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
