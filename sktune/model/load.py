"""A trained adapter's folder -> the model, ready to answer; from Python, on one process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sktune.backbone import load_backbone, load_tokenizer
from sktune.backbone.placement import OneProcess
from sktune.errors import UserError
from sktune.files import RECIPE_FILE
from sktune.model.adapter import adapter_folder, read_card, refuse_other_files
from sktune.model.attach import attach, put_on
from sktune.model.attached import AttachedModel
from sktune.model.given_model import Source
from sktune.model.hub import download_adapter, is_repository
from sktune.model.identity import IDENTITY
from sktune.model.saving import load_adapter
from sktune.recipe import load_sections

logger = logging.getLogger(__name__)


def load(
    folder: str | Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> AttachedModel:
    """The tuned model of a folder, in evaluation mode, with the frozen model it was trained on.

    Args:
        folder: of a recipe's run (its output.dir, or `adapter` in it), or of `save_adapter`; or `user/name` on a hub,
            where there is no such folder.
        model: the frozen model; None loads the one that the folder names, with its revision, dtype and quantization.
        tokenizer: the model's; None loads the one that the folder names.
        device: where the frozen model is loaded to; a given `model` stays where it is.
        trust_remote_code: whether code of the model's own repository may run; what the folder says of it is not heard.
        revision: of an adapter on a hub: branch, tag or commit.

    Raises:
        UserError: where the folder holds no adapter; where model, tokenizer, method or task are not those that the
            adapter was trained with, each by name; and for prompt_based and in_context, whose template belongs to the
            data.
    """
    on_hub = is_repository(folder)
    if revision is not None and not on_hub:
        raise UserError(f"revision: {folder} is a folder, and has none; leave it out")
    place = download_adapter(str(folder), revision) if on_hub else adapter_folder(Path(folder))
    card = read_card(place)
    file = place / RECIPE_FILE
    refuse_other_files(file)
    given: Any = load_sections(file, ("method", "task"))
    # The data themselves are not needed: their folder may be one of another machine.
    given |= load_sections(file, ("data",), lenient=True)
    method, task = given["method"], given["task"]
    if method.answers_in_words:
        raise UserError(
            f"{folder}: {method.name} is a template on the data more than a part of the model; use `sktune predict` or "
            "`sktune evaluate`"
        )
    source: Any = {}
    if model is None or tokenizer is None:
        if not card.get("model"):
            raise UserError(
                f"{folder}: it does not say which model it was trained on, which had no name; give it: "
                "sktune.load(folder, model=..., tokenizer=...)"
            )
        source = load_sections(file, ("model", "quantization"))
        source["model"] = source["model"].model_copy(update={"trust_remote_code": trust_remote_code})
    tokenizer = tokenizer or load_tokenizer(source["model"])
    saved = card.get(IDENTITY) or {}
    labels, count = card.get("labels"), saved.get("num_labels")
    if count is None and labels is not None and task.has_head:
        count = len(labels)
    names = labels if "labels" in saved or not saved else None  # else they are numbers in words
    if model is None:
        backbone = load_backbone(
            source["model"],
            source["quantization"],
            language_model=saved.get("language model", task.needs_language_model),
            visible_prefix=method.visible_prefix,
            placement=OneProcess(device),
        )
        untrusting = source["model"].model_copy(update={"trust_remote_code": False})
        tuned = put_on(backbone, tokenizer, method, task, count, names, Source(untrusting, source["quantization"]))
    else:
        wanted = saved.get("language model", task.needs_language_model)
        base = getattr(model, model.base_model_prefix, model)
        here, there = model.config.name_or_path, card.get("model")
        if here and there and here != there:
            logger.warning("%s was trained on %s, and is put on %s: they must be one model", folder, there, here)
        tuned = attach(
            model if wanted else base,
            tokenizer,
            method,
            task=task,
            num_labels=count,
            labels=names if task.has_head else None,
        )
    tuned.data = given["data"]
    return load_adapter(tuned, place).eval()
