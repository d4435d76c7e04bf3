"""Frozen quantized linear layers: bitsandbytes' bits and products, and nothing of the weight outlives its use."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import transformers as tf
from bitsandbytes import functional as bnb_functional
from tiny_models import VOCABULARY_SIZE, WIDTH, batch, real_rows, tiny_network
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from sktune.backbone import Backbone, load_backbone
from sktune.backbone.quantized import FrozenLinear, FrozenLinear4bit, FrozenLinear8bit
from sktune.sections import ModelSection, QuantizationSection

FOUR_BIT: dict[str, tuple[str, bool]] = {
    "nf4": ("nf4", False),
    "nf4_double": ("nf4", True),
    "fp4": ("fp4", False),
    "fp4_double": ("fp4", True),
}
KINDS = (*FOUR_BIT, "int8")
# [out_features, in_features]: one row, one column, odd totals (half a byte unused), sizes no group divides, and more
# than 256 groups, so that the scales of scales have several groups too.
SHAPES = ((1, 64), (64, 1), (1, 1), (7, 33), (5, 6), (33, 257), (130, 100), (300, 70), (96, 128))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EPSILON = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
"""Of the largest number: rounding of one result; for float32 the sum's own."""


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What is there before these tests is not looked at again at each garbage collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * scale
    return torch.where(values.abs() < 1e-3, 1e-3, values).to(dtype)


# Known and not yet mended; strict, so that mending one says which mark to take away.


def empty_layer(
    kind: str, shape: tuple[int, int], dtype: torch.dtype, *, bias: bool = False, **options: Any
) -> FrozenLinear:
    rows, columns = shape
    if kind == "int8":
        return FrozenLinear8bit(columns, rows, bias=bias, dtype=dtype, **{"threshold": 6.0, **options})
    quant_type, double = FOUR_BIT[kind]
    options = {"compute_dtype": dtype, **options}
    return FrozenLinear4bit(
        columns, rows, bias=bias, dtype=dtype, quant_type=quant_type, double_quant=double, **options
    )


def in_chunks(weight: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(weight), rows):
        yield weight[start : start + rows]


def layer_of(kind: str, weight: torch.Tensor, bias: torch.Tensor | None = None, **options: Any) -> FrozenLinear:
    """A layer filled as the loader fills it."""
    layer = empty_layer(kind, (weight.shape[0], weight.shape[1]), weight.dtype, bias=bias is not None, **options)
    for name, value in layer.pack(in_chunks(weight, layer.rows_per_chunk(1000))).items():
        parameter = isinstance(getattr(layer, name), nn.Parameter)
        setattr(layer, name, nn.Parameter(value, requires_grad=False) if parameter else value)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    assert not any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))
    return layer.eval()


def meaning(kind: str, weight: torch.Tensor) -> torch.Tensor:
    """What the quantized weight stands for, in float32: codes times scales, spelled out from the format."""
    if kind == "int8":
        codes, scale, _ = bnb_functional.int8_vectorwise_quant(weight.half())
        return codes.float() * (scale / 127)[:, None]
    quant_type, double = FOUR_BIT[kind]
    packed, state = bnb_functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=double, quant_type=quant_type
    )
    nibbles = torch.stack((packed.view(-1) >> 4, packed.view(-1) & 15), 1).view(-1)[: weight.numel()]
    absmax = state.absmax
    if double:
        groups = torch.arange(len(absmax)) // 256
        absmax = state.state2.code[absmax.long()] * state.state2.absmax[groups] + state.offset
    values = bnb_functional.get_4bit_type(quant_type, device="cpu")[nibbles.long()]
    return (values * absmax[torch.arange(weight.numel()) // 64]).view(weight.shape)


def stock_layer(kind: str, weight: torch.Tensor, bias: torch.Tensor | None, **options: Any) -> nn.Module:
    """Bitsandbytes' own layer on the same weight, in training mode."""
    rows, columns = weight.shape
    if kind == "int8":
        stock: Any = bnb.nn.Linear8bitLt(
            columns, rows, bias=bias is not None, has_fp16_weights=False, **{"threshold": 6.0, **options}
        )
        stock.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        quant_type, double = FOUR_BIT[kind]
        compute = options.get("compute_dtype", weight.dtype)
        stock = bnb.nn.Linear4bit(
            columns, rows, bias is not None, compute, compress_statistics=double, quant_type=quant_type
        )
        stock.weight = bnb.nn.Params4bit(
            weight.clone(), requires_grad=False, compress_statistics=double, quant_type=quant_type, blocksize=64
        )
        stock.support_avx512bf16_for_cpu = False
    if bias is not None:
        stock.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return stock.to("cpu").train()


def output_and_gradient(layer: Callable[..., Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(random(*y.shape, dtype=y.dtype, seed=9))
    assert x.grad is not None
    return y.detach(), x.grad


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    expected = expected.to(torch.float64)
    tolerance = EPSILON[dtype] * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


# -- packing --


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_bits_are_bitsandbytes_own_however_the_weight_is_cut(
    kind: str, shape: tuple[int, int], dtype: str
) -> None:
    weight = random(*shape, dtype=DTYPES[dtype], scale=0.05)
    if kind == "int8":
        codes, scale, _ = bnb_functional.int8_vectorwise_quant(weight.half())
        expected = {"weight": codes, "scale": scale}
    else:
        quant_type, double = FOUR_BIT[kind]
        packed, state = bnb_functional.quantize_4bit(
            weight, blocksize=64, compress_statistics=double, quant_type=quant_type
        )
        expected = {"weight": packed.view(-1), "absmax": state.absmax}
        if double:
            expected |= {"nested_absmax": state.state2.absmax, "offset": state.offset}
    layer = empty_layer(kind, shape, DTYPES[dtype])
    steps = {layer.rows_per_chunk(elements) for elements in (1, 3300, 7000, 10**9)}
    if shape in ((130, 100), (300, 70)):
        assert len(steps) > 2
        assert any(shape[0] % step > 0 for step in steps if step < shape[0]), "the last chunk is to be smaller"
    for step in steps:
        found = layer.pack(in_chunks(weight, step))
        assert set(found) == set(expected)
        for name, value in found.items():
            assert torch.equal(value, expected[name]), name
            placeholder = getattr(layer, name)
            assert (value.shape, value.dtype) == (placeholder.shape, placeholder.dtype), name
            assert value.untyped_storage().nbytes() == value.nbytes, "a view of something larger"


def test_chunks_that_cut_a_group_are_noticed() -> None:
    layer = empty_layer("nf4", (6, 10), torch.float32)
    with pytest.raises(AssertionError, match="only the last chunk may end inside a group"):
        layer.pack(in_chunks(random(6, 10), 2))


@pytest.mark.parametrize("kind", KINDS)
def test_an_incomplete_weight_is_noticed(kind: str) -> None:
    layer = empty_layer(kind, (64, 64), torch.float32)
    with pytest.raises(AssertionError):
        layer.pack(in_chunks(random(32, 64), 32))


# -- the product --


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradient_are_those_of_the_dequantized_weight(kind: str, shape: tuple[int, int], dtype: str) -> None:
    weight, bias = random(*shape, scale=0.1, dtype=DTYPES[dtype]), random(shape[0], dtype=DTYPES[dtype], seed=1)
    layer = layer_of(kind, weight, bias)
    x = random(3, 5, shape[1], dtype=DTYPES[dtype], seed=2)
    found, gradient = output_and_gradient(layer, x)
    rounded = meaning(kind, weight).to(DTYPES[dtype]).double()
    expected, expected_gradient = output_and_gradient(lambda x: F.linear(x, rounded, bias.double()), x.double())
    assert found.dtype == gradient.dtype == DTYPES[dtype]
    close(found, expected, DTYPES[dtype])
    # The same upstream gradient, but in float64 it was not rounded first.
    upstream = random(*found.shape, dtype=DTYPES[dtype], seed=9).double()
    close(gradient, upstream @ rounded, DTYPES[dtype])
    close(layer.dequantized(torch.float32), meaning(kind, weight), torch.float32)
    assert expected_gradient.shape == gradient.shape


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96, 128), (130, 100), (7, 33)])
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_stock_bitsandbytes_bit_for_bit(
    kind: str, shape: tuple[int, int], dtype: str, with_bias: bool
) -> None:
    weight = random(*shape, scale=0.1, dtype=DTYPES[dtype])
    bias = random(shape[0], dtype=DTYPES[dtype], seed=1) if with_bias else None
    stock, layer = stock_layer(kind, weight, bias), layer_of(kind, weight, bias)
    for size in ((2, 9), (1,)):
        x = random(*size, shape[1], dtype=DTYPES[dtype], seed=2)
        for found, expected in zip(output_and_gradient(layer, x), output_and_gradient(stock, x), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", FOUR_BIT)
def test_a_gradient_free_pass_is_stock_bitsandbytes_too(kind: str, dtype: str) -> None:
    weight = random(96, 128, scale=0.1, dtype=DTYPES[dtype])
    x = random(2, 7, 128, dtype=DTYPES[dtype], seed=2)
    with torch.no_grad():
        assert torch.equal(layer_of(kind, weight)(x), stock_layer(kind, weight, None).eval()(x))


@pytest.mark.parametrize(("given", "compute"), [("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("kind", FOUR_BIT)
def test_the_product_is_made_in_the_compute_dtype_and_comes_back_in_the_inputs(
    kind: str, given: str, compute: str
) -> None:
    weight, bias = random(96, 128, scale=0.1), random(96, seed=1)
    layer = layer_of(kind, weight, bias, compute_dtype=DTYPES[compute])
    x = random(4, 128, dtype=DTYPES[given], seed=2)
    found, gradient = output_and_gradient(layer, x)
    assert found.dtype == gradient.dtype == DTYPES[given]
    rounded = meaning(kind, weight).to(DTYPES[compute])
    exact = F.linear(x.to(DTYPES[compute]), rounded, bias.to(DTYPES[compute]))
    assert torch.equal(found, exact.to(DTYPES[given]))
    upstream = random(*found.shape, dtype=DTYPES[given], seed=9)
    assert torch.equal(gradient, (upstream.to(DTYPES[compute]) @ rounded).to(DTYPES[given]))


@pytest.mark.parametrize("given", ["bfloat16", "float16"])
def test_eight_bits_take_any_input_dtype(given: str) -> None:
    weight, bias = random(96, 128, scale=0.1), random(96, seed=1)
    x = random(4, 128, dtype=DTYPES[given], seed=2)
    found, gradient = output_and_gradient(layer_of("int8", weight, bias), x)
    assert found.dtype == gradient.dtype == DTYPES[given]
    close(found, F.linear(x.double(), meaning("int8", weight).double(), bias.double()), torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_any_leading_sizes_and_strides(kind: str) -> None:
    weight, bias = random(96, 128, scale=0.1), random(96, seed=1)
    layer, dequantized = layer_of(kind, weight, bias), meaning(kind, weight)
    rows = random(2, 3, 128, seed=2)
    inputs = {
        "one row": rows[0, 0],
        "rows": rows[0],
        "batch": rows,
        "four": rows[None],
        "transposed": random(128, 6, seed=3).T,
        "every other": random(4, 256, seed=4)[::2, ::2],
        "expanded": rows[0, :1].expand(5, 128),
    }
    for name, x in inputs.items():
        expected = F.linear(x, dequantized, bias)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0, msg=name)
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(leaf).transpose(0, -1).square().sum(), leaf)
        (wanted,) = torch.autograd.grad(F.linear(leaf, dequantized, bias).square().sum(), leaf)
        torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-5, msg=name)


@pytest.mark.parametrize("shape", [(0, 128), (2, 0, 128)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_nothing_out(kind: str, shape: tuple[int, ...]) -> None:
    layer = layer_of(kind, random(96, 128, scale=0.1), random(96))
    x = torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    assert y.shape == (*shape[:-1], 96)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(0, 128), (2, 0, 128)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_nothing(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)
    layer_of(kind, random(96, 128, scale=0.1))(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_free_contexts(kind: str, context: Any) -> None:
    layer, x = layer_of(kind, random(96, 128, scale=0.1)), random(4, 128, seed=2)
    expected = layer(x)
    with context():
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_backward_gives_the_same_and_a_second_derivative_is_refused(kind: str) -> None:
    layer, x = layer_of(kind, random(96, 128, scale=0.1)), random(4, 128, seed=2).requires_grad_()
    y = layer(x).square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x, retain_graph=True)[0], first)
    with_graph = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        with_graph.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_after_an_evaluation_is_the_one_before_it(kind: str) -> None:
    layer, x = layer_of(kind, random(96, 128, scale=0.1)), random(4, 128, seed=2)
    before = output_and_gradient(layer, x)
    layer.eval()
    with torch.no_grad():
        layer(x)
    layer.train()
    for found, expected in zip(output_and_gradient(layer, x), before, strict=True):
        assert torch.equal(found, expected)


# -- LLM.int8's own product (CUDA's; bitsandbytes has plain kernels of it for the CPU) --


def with_outliers(*shape: int) -> torch.Tensor:
    x = random(*shape, seed=2)
    x[..., 5] *= 10
    x[..., 40] *= 20
    assert (x.abs() >= 6).any()
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(), (6,), (2, 3)])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_llm_int8_is_the_sum_of_codes_and_outlier_columns(threshold: float, size: tuple[int, ...], dtype: str) -> None:
    weight, bias = random(96, 128, scale=0.1), random(96, seed=1)
    layer = layer_of("int8", weight, bias, threshold=threshold)
    assert isinstance(layer, FrozenLinear8bit)
    x = with_outliers(*size, 128).to(DTYPES[dtype])
    before = x.clone()
    found = layer.llm_int8(x)
    assert torch.equal(x, before), "outliers are set to zero in a copy"
    assert found.dtype == DTYPES[dtype]

    rows, dequantized = x.reshape(-1, 128).double(), meaning("int8", weight).double()
    outliers = (rows.abs() >= threshold).any(0) if threshold else torch.zeros(128, dtype=torch.bool)
    assert bool(outliers.any()) == bool(threshold)
    halves = torch.where(rows.abs() >= (threshold or math.inf), 0, x.reshape(-1, 128).half().double())
    scale = halves.abs().amax(1, keepdim=True)
    codes = (halves * 127 / scale).round()
    codes[:, outliers] = 0
    expected = codes * scale / 127 @ dequantized.T + rows[:, outliers] @ dequantized[:, outliers].T + bias.double()
    found = found.reshape(-1, 96).double()
    # A number halfway between two codes may be rounded either way: one step of one column.
    step = float((scale / 127).max() * dequantized.abs().max())
    difference = (found - expected).abs().max()
    assert difference <= step + EPSILON[DTYPES[dtype]] * expected.abs().max() * (2 if threshold else 1)
    exact = rows @ dequantized.T + bias.double()
    error = (found - exact).norm() / exact.norm()
    assert error < (0.015 if threshold else 0.2)
    if threshold:
        without = layer_of("int8", weight, bias, threshold=0.0)
        assert isinstance(without, FrozenLinear8bit)
        assert (without.llm_int8(x).reshape(-1, 96).double() - exact).norm() / exact.norm() > 2 * error


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_llm_int8_is_stock_bitsandbytes_bit_for_bit(dtype: str, threshold: float) -> None:
    weight = random(96, 128, scale=0.1, dtype=DTYPES[dtype])
    layer, stock = layer_of("int8", weight, threshold=threshold), stock_layer("int8", weight, None, threshold=threshold)
    assert isinstance(layer, FrozenLinear8bit)
    x = with_outliers(2, 7, 128).to(DTYPES[dtype])
    with torch.no_grad():
        assert torch.equal(layer.llm_int8(x), stock.eval()(x))


# -- nothing survives its use --


def gather(layer: FrozenLinear, whole: dict[str, torch.Tensor]) -> list[StorageWeakRef]:
    """What ZeRO-3 does before a layer is used: other memory with the whole weight takes the place of the share."""
    references = []
    for name, parameter in layer.named_parameters():
        parameter.data = whole[name].clone()
        references.append(StorageWeakRef(parameter.untyped_storage()))
    return references


def release(layer: FrozenLinear) -> None:
    """What ZeRO-3 does after it."""
    for parameter in layer.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype)


def survivors(references: list[StorageWeakRef]) -> int:
    gc.collect()
    return sum(not reference.expired() for reference in references)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_gathered_tensor_survives_forward_or_backward(kind: str, dtype: str) -> None:
    weight, bias = random(96, 128, scale=0.1, dtype=DTYPES[dtype]), random(96, dtype=DTYPES[dtype], seed=1)
    layer = layer_of(kind, weight, bias)
    x = random(4, 128, dtype=DTYPES[dtype], seed=2)
    expected, expected_gradient = output_and_gradient(layer, x)
    whole = {name: parameter.data for name, parameter in layer.named_parameters()}

    references = gather(layer, whole)
    view = layer.weight.data[:1]
    release(layer)
    assert survivors(references) == 1, "a view is seen"
    del view
    assert survivors(references) == 0

    references = gather(layer, whole)
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    release(layer)
    assert survivors(references) == 0
    references = gather(layer, whole)
    y.backward(random(*y.shape, dtype=y.dtype, seed=9))
    release(layer)
    assert survivors(references) == 0
    assert torch.equal(y, expected)
    assert torch.equal(leaf.grad, expected_gradient)


def net_allocation(run: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and the bytes that are allocated after the run and were not before it."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
        gc.collect()
    events: Any = profile.profiler
    return result, sum(event.nbytes() for event in events.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_leaves_its_output_allocated_and_nothing_else(kind: str, dtype: str) -> None:
    weight, bias = random(256, 128, scale=0.1, dtype=DTYPES[dtype]), random(256, dtype=DTYPES[dtype], seed=1)
    layer = layer_of(kind, weight, bias)
    x = random(4, 128, dtype=DTYPES[dtype], seed=2).requires_grad_()
    upstream = random(4, 256, dtype=DTYPES[dtype], seed=9)
    layer(x).backward(upstream)  # constants of bitsandbytes are made once
    x.grad = None
    alignment = 64
    y, kept = net_allocation(lambda: layer(x))
    assert y.nbytes <= kept <= y.nbytes + alignment, "only the output, with the graph alive"
    _, kept = net_allocation(lambda: y.backward(upstream))
    assert x.nbytes <= kept <= x.nbytes + alignment, "only the gradient"
    view, kept = net_allocation(lambda: layer.dequantized(DTYPES[dtype])[:1])
    assert kept >= weight.nbytes, "a view of a dequantized weight is seen"
    del view


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_not_gathered_is_an_error_and_no_garbage(kind: str) -> None:
    layer = layer_of(kind, random(96, 128, scale=0.1))
    y = layer(random(4, 128, seed=2).requires_grad_())
    release(layer)
    with pytest.raises(AssertionError, match="the weight is partitioned"):
        y.sum().backward()
    with pytest.raises(AssertionError, match="the weight is partitioned"):
        layer(random(4, 128, seed=2))


# -- a module like others --


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), lambda layer: layer.to("cpu")],
    ids=["deepcopy", "pickle", "to"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_layers_of_their_own(kind: str, copied: Callable[[FrozenLinear], FrozenLinear]) -> None:
    layer, x = layer_of(kind, random(96, 128, scale=0.1), random(96)), random(4, 128, seed=2)
    expected = output_and_gradient(layer, x)
    other = copied(layer)
    for found, wanted in zip(output_and_gradient(other, x), expected, strict=True):
        assert torch.equal(found, wanted)
    if other is not layer:
        release(layer)
        assert torch.equal(other(x), expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_representation_gives_the_sizes_the_weight_stands_for(kind: str) -> None:
    layer = layer_of(kind, random(96, 128), random(96))
    assert "in_features=128, out_features=96, bias=True" in repr(layer)
    assert layer.weight_elements == 96 * 128
    assert not any(parameter.requires_grad for parameter in layer.parameters())


# -- in models --


QUANTIZATION: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_use_double_quant": False},
    "nf4_double": {"load_in_4bit": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_use_double_quant": False, "bnb_4bit_quant_type": "fp4"},
    "fp4_double": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for family in ("llama", "gpt2", "falcon", "bloom", "bert"):
        found[family] = tmp_path_factory.mktemp(family)
        tiny_network(family, language_model=family != "bert").save_pretrained(found[family])
    return found


def load(folder: Path, kind: str, *, skip: tuple[str, ...] = (), language_model: bool = False) -> Backbone:
    return load_backbone(
        ModelSection(name_or_path=str(folder), dtype="float32", attn_implementation="eager"),
        QuantizationSection.model_validate({**QUANTIZATION[kind], "skip_modules": skip}),
        language_model=language_model,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "bloom", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_is_the_plain_one_with_dequantized_weights(
    folders: dict[str, Path], kind: str, family: str
) -> None:
    backbone, plain = load(folders[family], kind), tiny_network(family, language_model=family != "bert")
    plain = getattr(plain, plain.base_model_prefix, plain)
    replaced = 0
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, nn.Linear | Conv1D) and not name.startswith("pooler"):
                weight = module.weight
                transposed = isinstance(module, Conv1D)
                rows = weight.T.contiguous() if transposed else weight
                dequantized = meaning(kind, rows.detach())
                found = backbone.base.get_submodule(name)
                assert isinstance(found, FrozenLinear), name
                torch.testing.assert_close(found.dequantized(torch.float32), dequantized, atol=1e-6, rtol=0)
                weight.copy_(dequantized.T if transposed else dequantized)
                replaced += 1
    assert replaced == sum(isinstance(module, FrozenLinear) for module in backbone.modules()) > 0
    ids, mask = batch()
    with torch.no_grad():
        found, expected = backbone(backbone.embed(ids), mask), plain(input_ids=ids, attention_mask=mask)[0]
    torch.testing.assert_close(real_rows(found, mask), real_rows(expected, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_embeddings_and_the_language_model_head_are_not_quantized(
    folders: dict[str, Path], family: str, kind: str
) -> None:
    model = load(folders[family], kind, language_model=True).model
    plain = tiny_network(family, language_model=True)
    for found, expected in (
        (model.get_input_embeddings(), plain.get_input_embeddings()),
        (model.get_output_embeddings(), plain.get_output_embeddings()),
    ):
        assert type(found) is type(expected)
        assert found.weight.shape == (VOCABULARY_SIZE, WIDTH)
        assert torch.equal(found.weight, expected.weight)


def unquantized(backbone: Backbone) -> set[str]:
    return {
        name
        for name, module in backbone.base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not isinstance(module, FrozenLinear)
    }


@pytest.mark.parametrize("kind", ["nf4_double", "int8"])
@pytest.mark.parametrize(
    ("family", "skip", "kept"),
    [
        ("llama", ("down_proj",), lambda name: name.endswith("down_proj")),
        ("llama", ("mlp.up_proj", "q_proj"), lambda name: name.endswith(("mlp.up_proj", "q_proj"))),
        ("llama", ("layers.1",), lambda name: name.startswith("layers.1.")),
        ("llama", (r"layers\.[02]\.mlp",), lambda name: name.startswith(("layers.0.mlp.", "layers.2.mlp."))),
        ("gpt2", ("mlp.c_proj",), lambda name: name.endswith("mlp.c_proj")),
        ("falcon", ("query_key_value",), lambda name: name.endswith("query_key_value")),
    ],
)
def test_modules_skipped_by_the_end_of_their_name_or_a_pattern_for_its_beginning(
    folders: dict[str, Path], family: str, skip: tuple[str, ...], kept: Callable[[str], bool], kind: str
) -> None:
    network = tiny_network(family)
    names = {name for name, module in network.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    expected = {name for name in names if kept(name)}
    assert 0 < len(expected) < len(names)
    assert unquantized(load(folders[family], kind, skip=skip)) == expected


def test_a_module_to_skip_that_is_not_there_is_refused(folders: dict[str, Path]) -> None:
    wanted = r"^quantization\.skip_modules: no linear layer of llama is called 'down_projection'; there are down_proj, "
    with pytest.raises(ValueError, match=wanted):
        load(folders["llama"], "nf4", skip=("q_proj", "down_projection"))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_model_of_which_nothing_would_be_quantized_is_refused(folders: dict[str, Path], kind: str) -> None:
    with pytest.raises(ValueError, match=r"^quantization: no linear layer of llama is left to quantize; shorten"):
        load(folders["llama"], kind, skip=("layers",))


@pytest.mark.parametrize("pattern", ["*.q_proj", "["])
def test_a_pattern_that_is_none_is_refused(folders: dict[str, Path], pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^quantization\.skip_modules: "):
        load(folders["llama"], "nf4", skip=(pattern,))


def test_a_router_with_a_forward_of_its_own_is_not_quantized(tmp_path: Path) -> None:
    config = tf.Llama4TextConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=64, intermediate_size_mlp=64, num_local_experts=2,
        pad_token_id=1, attn_implementation="eager",
    )  # fmt: skip
    tf.AutoModel.from_config(config).save_pretrained(tmp_path)
    backbone = load(tmp_path, "nf4")
    ids, mask = batch()
    assert backbone(backbone.embed(ids), mask).shape == (*ids.shape, WIDTH)
