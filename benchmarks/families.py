"""Which method suits which family of the installed transformers: tried on a tiny model of each, on a CPU.

    python benchmarks/families.py [FAMILY ...]    # tries what the result lacks, or these families again
    python benchmarks/families.py --report        # docs/families.md again, from the result

Every family that the auto classes know, whose text model reads token ids and is no encoder-decoder, is built with a few
layers of small widths and large random weights. `sktune.attach` holds each method against the plain model on it; what
it lets pass is compared once more here, through the tuned model's own forward, on rows padded on the left. The result
goes to benchmarks/results/families.json after each family, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers as tf
from families_report import METHODS, report
from launching import RESULTS, ROOT, facts, read_result, save
from torch import nn
from torch.nn import functional as F

import sktune
from sktune.backbone.architecture import is_encoder
from sktune.embedded import resolve
from sktune.errors import UserError, first_line
from sktune.methods import METHODS as REGISTRY
from sktune.methods.config import MethodConfig

RESULT = RESULTS / "families.json"
PAGE = ROOT / "docs" / "families.md"
TEXT = "is the sentence positive or negative ?"
SECONDS = 120
"""What takes longer is given up."""
LENGTHS = (20, 11, 5)
"""Rows of the comparison through the tuned model's forward."""
SAME = 1e-3
"""A difference of the head's answers, relative to the largest, that would be wrong without a word."""
LABELS = 4

HEAD_WIDTHS: dict[str, Any] = {
    **dict.fromkeys(("head_dim", "global_head_dim", "attention_head_dim", "kv_channels", "d_kv"), 16),
    **dict.fromkeys(("attention_head_size", "swa_head_dim", "swa_v_head_dim"), 16),
    "rotary_dim": 8,
}
WIDTHS: dict[str, Any] = {
    **HEAD_WIDTHS,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 64),
    **dict.fromkeys(("word_embed_proj_dim", "input_embedding_size", "output_embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "hidden_dim", "d_inner"), 128),
    **dict.fromkeys(("dim_ff", "d_ff", "mlp_hidden_size", "intermediate_size_mlp", "dense_intermediate_size"), 128),
    **dict.fromkeys(("block_ff_dim", "ffn_intermediate_size", "shared_intermediate_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "attention_head_groups"), 2),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "index_n_heads", "index_topk"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "top_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 16),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_d_state"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    "qk_rope_head_dim": 8,
    "global_num_key_value_heads": 2,
    "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 2,
    "laurel_rank": 4,
    "num_kv_shared_layers": 0,
    "first_k_dense_replace": 1,
    "mlp_only_layers": [],
    "attention_window": 64,
    "axial_pos_shape": [16, 32],
    "axial_pos_embds_dim": [32, 32],
}
OF_FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "bamba": {"attn_layer_indices": [1]},
    **{key: {"head_dim": 16} for key in ("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl_text", "ministral")},
    "falcon_h1": {"mamba_d_ssm": 128},
    "granitemoehybrid": {"layers_block_type": ["mamba", "attention"] * 2, "layer_types": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mistral4": {"head_dim": 16},  # half of it is rotated
}
SECTIONS = {
    **{key: [2, 3, 3] for key in ("glm4v_text", "glm_image_text", "glm_ocr_text", "qwen2_vl_text", "qwen2_5_vl_text")},
    "glm4v_moe_text": [2, 1, 1],
}
"""Of rotary positions in three directions, where the defaults leave them to the model."""
"""What the defaults leave open, or a pattern longer than the tiny model."""
LEFT_OUT: tuple[tuple[str, ...], ...] = ((), tuple(HEAD_WIDTHS), ("num_key_value_heads", *HEAD_WIDTHS))
"""What is left as it is in one attempt after the other."""
SPECIAL = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
"""Those of the tokenizer."""


def methods() -> dict[str, MethodConfig]:
    """A section of each method, as small as the models are; those with a text start from it."""
    fields: dict[str, dict[str, Any]] = {
        "sk_prefix": {"text": TEXT, "rank": 4},
        "sk_prompt": {"text": TEXT, "rank": 4},
        "prefix_tuning": {"init": "text", "text": TEXT},
        "llama_adapter": {"layers": 1},
        "bottleneck_adapter": {"rank": 4},
    }
    return {name: REGISTRY.read({"name": name, **fields.get(name, {})}) for name in METHODS}


# -- a tiny model ---------------------------------------------------------------------------------------------


def families() -> dict[str, type[tf.PretrainedConfig]]:
    """By name, the configurations that the auto classes have a model for; those of language models first."""
    found: dict[str, type[tf.PretrainedConfig]] = {}
    for mapping in (tf.MODEL_FOR_CAUSAL_LM_MAPPING, tf.MODEL_FOR_MASKED_LM_MAPPING, tf.MODEL_MAPPING):
        for kind in sorted(mapping.keys(), key=lambda kind: kind.model_type):
            found.setdefault(kind.model_type, kind)
    return found


def tiny_config(given: tf.PretrainedConfig, vocabulary: int, left_out: Iterable[str]) -> tf.PretrainedConfig:
    """A family's configuration with small widths and few layers."""
    known = {**given.to_dict(), **{key: getattr(given, key, None) for key in given.attribute_map}}
    wanted = {"vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary, **SPECIAL, **WIDTHS}
    changed = {key: value for key, value in wanted.items() if known.get(key) is not None or key in SPECIAL}
    if known.get("kv_lora_rank") is not None:  # every head has keys of its own
        changed |= {"num_key_value_heads": WIDTHS["num_attention_heads"]}
        changed |= {"head_dim": WIDTHS["qk_rope_head_dim"]} if "head_dim" in known else {}
    if isinstance(known.get("intermediate_size"), list):
        changed["intermediate_size"] = [WIDTHS["intermediate_size"]] * WIDTHS["num_hidden_layers"]
    rope = known.get("rope_parameters")
    if "rope_parameters" in known and not any(isinstance(value, dict) for value in (rope or {}).values()):
        said = {name: value for name, value in (rope or {}).items() if value is not None}
        rope = changed["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, **said}
        if given.model_type in SECTIONS:
            rope["mrope_section"] = SECTIONS[given.model_type]
        elif "mrope_section" in rope:
            half = int(WIDTHS["head_dim"] * rope.get("partial_rotary_factor", 1) / 2)
            rope["mrope_section"] = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    for key, value in known.items():
        # One entry a layer: a pattern's first ones, with every kind in them.
        if isinstance(value, list) and len(value) > 4 and len(value) == getattr(given, "num_hidden_layers", None):
            kinds = list(dict.fromkeys(map(str, value)))
            chosen = [next(v for v in value if str(v) == kind) for kind in kinds][:4]
            changed.setdefault(key, (chosen * 4)[:4])
    changed |= OF_FAMILIES.get(given.model_type, {})
    names = {*changed, *given.attribute_map.values()}
    fixed = {key for key in names if isinstance(getattr(type(given), key, None), property)}
    mapped = {given.attribute_map.get(key, key): value for key, value in changed.items() if key not in left_out}
    return type(given)(**{key: value for key, value in mapped.items() if key not in fixed})


def tiny_model(config: tf.PretrainedConfig) -> tf.PreTrainedModel:
    """The model without its head; weights large enough that what a token attends to matters."""
    auto: Any = tf.AutoModel if type(config) in tf.MODEL_MAPPING else tf.AutoModelForCausalLM
    found = auto._model_mapping[type(config)]
    architecture = found[0] if isinstance(found, tuple) else found
    kernel = "sdpa" if architecture._supports_sdpa else "eager"
    torch.manual_seed(0)
    model: tf.PreTrainedModel = auto.from_config(copy.deepcopy(config), attn_implementation=kernel)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.08 if parameter.ndim > 1 else parameter + noise * 0.05)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    return model.float().eval()


# -- trying ---------------------------------------------------------------------------------------------------


class TooSlow(Exception):
    """The time of a try is over."""


@contextmanager
def at_most(seconds: int) -> Any:
    """Raises TooSlow inside after so many seconds."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Figures(logging.Handler):
    """Takes the figures out of what `sktune.attach` logs of its comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found += [value for value in record.args or () if isinstance(value, float)][:1]


def difference(plain: tf.PreTrainedModel, tuned: Any, text: torch.Tensor, ids: list[torch.Tensor]) -> float:
    """The answers of the tuned model's forward, rows padded on the left, against the plain model's, row by row."""
    longest = max(map(len, ids))
    rows = torch.stack([F.pad(row, (longest - len(row), 0), value=SPECIAL["pad_token_id"]) for row in ids])
    mask = torch.stack([F.pad(torch.ones_like(row), (longest - len(row), 0)) for row in ids])
    generator = torch.Generator().manual_seed(2)
    largest = 0.0
    with torch.no_grad():
        head = tuned.head.classifier
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
        answers = tuned.eval()(rows, mask).logits
        for row, kept, found in zip(ids, mask.bool(), answers, strict=True):
            whole, count = torch.cat((text, row))[None], len(text)
            visible: Any = torch.ones_like(whole)
            if tuned.method.config.visible_prefix and is_encoder(plain.config):
                of_text = torch.arange(whole.shape[1]) < count
                visible = torch.where(~of_text[:, None] | of_text, 0.0, torch.finfo(torch.float32).min)[None, None]
            settings = {"use_cache": False} if "use_cache" in inspect.signature(plain.forward).parameters else {}
            states = plain(input_ids=whole, attention_mask=visible, **settings)[0][0, count:]
            expected = states.float() @ head.weight.T
            largest = max(largest, float((found[kept] - expected).abs().max() / expected.abs().max()))
    return largest


def tried(model: tf.PreTrainedModel, tokenizer: Any, method: MethodConfig) -> dict[str, Any]:
    """What came of a method on a model: exact, refused (why), wrong (how far), or an error."""
    figures = Figures()
    logger = logging.getLogger("sktune.model.step_zero")
    logger.setLevel(logging.INFO)
    logger.addHandler(figures)
    try:
        with at_most(SECONDS):
            own = copy.deepcopy(model)
            tuned = sktune.attach(own, tokenizer, method, task="token_classification", num_labels=LABELS)
            generator = torch.Generator().manual_seed(1)
            rows = [torch.randint(10, 100, (length,), generator=generator) for length in LENGTHS]
            text = tokenizer(TEXT)["input_ids"] if method.starts_as == "text" else []
            off = difference(model, tuned, torch.tensor(text, dtype=torch.long), rows)
    except UserError as error:
        return {"status": "refused", "reason": str(error)}
    except TooSlow as error:
        return {"status": "not tried", "reason": str(error)}
    except Exception as error:  # which is what is looked for
        return {"status": "error", "reason": f"{type(error).__name__}: {first_line(error)}"}
    finally:
        logger.removeHandler(figures)
    if not off <= SAME:
        return {"status": "wrong", "difference": off if math.isfinite(off) else None}
    return {"status": "exact", "difference": max([off, *figures.found])}


def build(kind: type[tf.PretrainedConfig], vocabulary: int) -> tf.PreTrainedModel | str | None:
    """A tiny model of a family; why there is none; None where it reads no text."""
    try:
        given = kind().get_text_config()
        if not isinstance(getattr(given, "vocab_size", None), int):
            return None
        if getattr(given, "is_encoder_decoder", False):
            return "an encoder-decoder"
        if given.model_type != kind.model_type and given.model_type in families():
            return "made around a text model that is tried by itself"
    except Exception as error:
        return f"no configuration from defaults alone ({type(error).__name__})"
    problem = ""
    for left_out in LEFT_OUT:
        try:
            with at_most(SECONDS):
                model = tiny_model(tiny_config(given, vocabulary, left_out))
                ids = torch.arange(10, 22)[None]
                with torch.no_grad():
                    states = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
                if bool(torch.isfinite(states).all()):
                    return model
                problem = "the tiny model's hidden states are not finite"
        except KeyError as error:
            if type(given) in error.args:
                return "transformers has no class for its text model alone"
            problem = f"no tiny model of it was found (KeyError: {error})"
        except TooSlow as error:
            return str(error)
        except ImportError:
            return "needs a package that is not installed"
        except Exception as error:  # whatever a family needs that is not made here
            if "required positional argument" in str(error) or "You have to specify" in str(error):
                return "needs more than token ids"
            why = first_line(error).replace(f"{Path(tf.__file__).parents[1]}/", "")  # the same on every machine
            problem = problem or f"no tiny model of it was found ({type(error).__name__}: {why})"
    return problem


def try_family(kind: type[tf.PretrainedConfig], tokenizer: Any) -> dict[str, Any] | None:
    """All methods on a tiny model of a family; None where it reads no text."""
    model = build(kind, len(tokenizer) + 8)
    if model is None or isinstance(model, str):
        return None if model is None else {"not_built": model}
    return {"methods": {name: tried(model, tokenizer, method) for name, method in methods().items()}}


def run(
    path: Path, names: Iterable[str], again: Callable[[str], bool], say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Tries families, and writes the result after each."""
    result, kinds = read_result(path, {"families": {}}), families()
    tokenizer = tf.AutoTokenizer.from_pretrained(resolve("embedded:llama"))
    # Its BOS has the id that some families take for padding whatever their configuration says.
    tokenizer.backend_tokenizer.post_processor = None
    for number, name in enumerate(names, 1):
        if name in result["families"] and not again(name):
            continue
        found = try_family(kinds[name], tokenizer)
        result["families"][name] = found
        result["environment"] = {"device": "CPU", **facts()}
        result["families"] = dict(sorted(result["families"].items()))
        save(result, path)
        said = found and (found.get("not_built") or {m: c["status"] for m, c in found["methods"].items()})
        say(f"{number}: {name}: {said or 'reads no text'}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="to be tried again; none: all that the result lacks")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--report", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    tf.logging.set_verbosity(logging.CRITICAL)
    torch.set_num_threads(1)
    if not arguments.report:
        chosen = set(arguments.families)
        run(arguments.output, sorted(chosen) or families(), chosen.__contains__)
    result = read_result(arguments.output, {"families": {}})
    arguments.page.write_text(report(result), encoding="utf-8")


if __name__ == "__main__":
    main()
