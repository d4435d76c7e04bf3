"""`training.frozen_states`: the blocks below `method.layers` read once for each example, then neither run nor held."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock
from test_upper_layers import FIELDS
from tiny_models import (
    CONFIGS,
    DEPTH,
    ENCODERS,
    TEXT,
    batch,
    perturb,
    tiny_backbone,
    tiny_network,
    tiny_tokenizer,
)
from training_fixtures import (
    BITS,
    NF4_IN_BF16,
    ONE_RANK,
    TASKS,
    TWO_BY_TWO,
    Sections,
    SeveralRanks,
    Workshop,
    assert_close_run,
    assert_same_run,
    cut_back,
    merged,
    points,
    run_jobs,
)

from sktune.backbone import load_backbone
from sktune.backbone.one_by_one import OneByOne
from sktune.backbone.placement import OneProcess
from sktune.cli import main
from sktune.comparison.results import load_state
from sktune.data.state_codes import kept_form, pack, unpack
from sktune.distributed.node import node_of
from sktune.methods import METHODS
from sktune.methods.method import build_method
from sktune.methods.sk_prefix.config import SKPrefixConfig
from sktune.model.tuned_model import TunedModel
from sktune.recipe import RecipeError
from sktune.sections import ModelSection, QuantizationSection
from sktune.tasks.heads import LanguageHead, SequenceHead
from sktune.training import auto_states, filling, state_files, state_reading
from sktune.training.stopping import Stopped

UPPER: Sections = {"method": {"layers": 1}}
OFF: Sections = {"training": {"frozen_states": "off"}}
IN_MEMORY: Sections = {**UPPER, "training": {"frozen_states": "memory"}}
ON_DISK: Sections = {**UPPER, "training": {"frozen_states": "disk"}}
IN_MEMORY_ONLY: Sections = {"training": {"frozen_states": "memory"}}
HEAD_ONLY: Sections = {"method": {"name": "head_only", "text": ..., "rank": ...}}


# -- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", [*FIELDS, "head_only"])
def test_from_kept_states_a_model_gives_the_same_logits_and_gradients(family: str, name: str) -> None:
    torch.manual_seed(0)
    fields = {} if name == "head_only" else {"layers": 1, **FIELDS[name]}
    backbone = tiny_backbone(family, checkpointing=name == "sk_prefix")
    try:
        method = build_method(METHODS.config(name)(**fields), backbone, tiny_tokenizer())
        method(backbone)
    except ValueError as error:
        pytest.skip(str(error))
    model = TunedModel(backbone, method, SequenceHead(backbone.hidden_size, 2, "last")).train()
    perturb(model.method)
    perturb(model.head)
    ids, mask = batch()
    labels = torch.arange(len(ids)) % 2
    with torch.no_grad():
        states = model(ids, mask, only_frozen=True).frozen_states

    def read(**kept: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        model.zero_grad()
        output = model(ids, mask, labels=labels, **kept)
        output.loss.backward()
        return output.logits, {name: p.grad for name, p in model.trainable_parameters().items()}

    (logits, gradients), (from_states, from_them) = read(), read(frozen_states=states)
    assert torch.equal(logits, from_states)
    assert all(torch.equal(gradient, from_them[name]) for name, gradient in gradients.items() if gradient is not None)


@pytest.mark.parametrize("language_model", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_blocks_read_one_at_a_time_leave_the_same_logits(family: str, language_model: bool, tmp_path: Path) -> None:
    """The blocks below were never in the model that trains."""
    tiny_network(family, language_model=language_model).save_pretrained(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path), dtype="float32", attn_implementation="eager")
    config, ids, mask = SKPrefixConfig(text=TEXT, layers=1), *batch()
    logits = []
    for left_out in (0, DEPTH - 1):
        torch.manual_seed(0)
        backbone = load_backbone(
            section, QuantizationSection(), language_model=language_model, visible_prefix=True, left_out=left_out
        )
        method = build_method(config, backbone, tiny_tokenizer(family in ENCODERS))
        head = LanguageHead() if language_model else SequenceHead(backbone.hidden_size, 2, "last")
        model = TunedModel(backbone, method, head).eval()
        perturb(model.method)
        perturb(model.head)
        states = None
        if left_out:
            try:
                lower = OneByOne(backbone, section, QuantizationSection(), OneProcess(), sees_text=True)
            except ValueError as error:
                assert backbone.uses_cache_for_prefix
                pytest.skip(str(error))
            text = None
            for number in range(left_out):
                with lower.block(number):
                    text, seen = lower.read_text(number, model.method.text.input_ids, text)
                    states = lower.read(number, ids, mask, states, seen)
                assert all(p.is_meta for p in lower.backbone.blocks.parameters())
            backbone.blocks_give_tuples, model.text_states = lower.backbone.blocks_give_tuples, text
        with torch.no_grad():
            logits.append(model(ids, mask, labels=ids if language_model else None, frozen_states=states).logits)
    assert torch.equal(*logits)


# -- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", [IN_MEMORY, ON_DISK], ids=["memory", "disk"])
def test_a_run_is_the_same_and_holds_the_upper_blocks_alone(workshop: Workshop, task: str, mode: Sections) -> None:
    plain = workshop.train("plain", TASKS[task], UPPER, OFF)
    kept = workshop.train("kept", TASKS[task], mode)
    assert_close_run(workshop.output("plain"), workshop.output("kept"))
    assert kept["memory/frozen_bytes"] < 0.7 * plain["memory/frozen_bytes"]
    assert kept["all_parameters"] == plain["all_parameters"]
    assert not (workshop.output("kept") / "frozen_states").exists()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("changes", [HEAD_ONLY, UPPER], ids=["head_only", "sk_prefix"])
def test_packed_models_and_left_padding(workshop: Workshop, bits: str, changes: Sections) -> None:
    common: Sections = {"quantization": BITS[bits], "data": {"padding_side": "left"}}
    workshop.train("plain", changes, common, OFF)
    workshop.train("kept", changes, common, {"training": {"frozen_states": "memory"}})
    assert_close_run(workshop.output("plain"), workshop.output("kept"))


def test_a_resumed_run_is_the_uninterrupted_one(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    for name, mode in {"memory": IN_MEMORY, "disk": ON_DISK, "packed": merged(ON_DISK, PACKED)}.items():
        workshop.train(name, mode)
        cut_back(workshop.output(name), 4, workshop.output(f"{name}-resumed"))
        workshop.train(f"{name}-resumed", mode, {"training": {"resume": "auto"}})
        assert_same_run(workshop.output(name), workshop.output(f"{name}-resumed"))


STREAMED: Sections = {"training": {"stream_frozen_blocks": True}}
PACKED: Sections = {"training": {"frozen_states_in_8bit": True}}


@pytest.mark.parametrize("changes", [HEAD_ONLY, UPPER], ids=["head_only", "sk_prefix"])
@pytest.mark.parametrize("bits", BITS)
def test_blocks_held_one_at_a_time_give_the_same_run(workshop: Workshop, bits: str, changes: Sections) -> None:
    common: Sections = {"quantization": BITS[bits], "data": {"padding_side": "left"}}
    whole = workshop.train("whole", changes, common, IN_MEMORY_ONLY)
    streamed = workshop.train("streamed", changes, common, IN_MEMORY_ONLY, STREAMED)
    assert_same_run(workshop.output("whole"), workshop.output("streamed"))
    assert streamed["memory/frozen_bytes"] <= whole["memory/frozen_bytes"]
    assert streamed["all_parameters"] == whole["all_parameters"]


def test_a_streamed_run_is_resumed_and_reads_what_is_there(
    workshop: Workshop, shared: Sections, caplog: pytest.LogCaptureFixture
) -> None:
    changes = merged(shared, STREAMED)
    workshop.train("whole", UPPER, OFF)
    workshop.train("first", changes)
    assert_close_run(workshop.output("whole"), workshop.output("first"))
    assert {path.name.partition("-")[0] for path in files_of(shared)} == {"train", "validation", "test", "text"}
    cut_back(workshop.output("first"), 4, workshop.output("resumed"))
    with caplog.at_level(logging.INFO):
        workshop.train("resumed", changes, {"training": {"resume": "auto"}})
    assert caplog.text.count("read from") == 4
    assert_same_run(workshop.output("first"), workshop.output("resumed"))


@pytest.mark.parametrize("method", [name for name in FIELDS if name != "sk_prefix"])
def test_other_methods_with_blocks_held_one_at_a_time(workshop: Workshop, method: str) -> None:
    changes: Sections = {"method": {"name": method, "text": ..., "rank": ..., "layers": 1, **FIELDS[method]}}
    workshop.train("whole", changes, IN_MEMORY_ONLY)
    workshop.train("streamed", changes, IN_MEMORY_ONLY, STREAMED)
    assert_same_run(workshop.output("whole"), workshop.output("streamed"))


def test_one_at_a_time_needs_states_that_are_kept(workshop: Workshop) -> None:
    with pytest.raises(RecipeError, match=r"stream_frozen_blocks(.|\n)*would do nothing: frozen_states is off"):
        workshop.train("run", UPPER, merged(OFF, STREAMED))
    with pytest.raises(RecipeError, match=r"training\.stream_frozen_blocks(.|\n)*changes what every block reads"):
        workshop.train("run", STREAMED)


@pytest.fixture
def shared(workshop: Workshop, tmp_path: Path) -> Sections:
    """States on disk for whoever can use them."""
    return merged(ON_DISK, {"training": {"frozen_states_dir": str(tmp_path / "shared")}})


def files_of(shared: Sections) -> set[Path]:
    return set(Path(shared["training"]["frozen_states_dir"]).glob("*.states"))


def test_other_runs_read_what_is_there(workshop: Workshop, shared: Sections, caplog: pytest.LogCaptureFixture) -> None:
    workshop.train("first", shared)
    made = files_of(shared)
    assert len(made) == 3
    with caplog.at_level(logging.INFO):
        workshop.train("second", shared, {"training": {"learning_rate": 1e-3, "seed": 7}})
    assert caplog.text.count("read from") == 3
    assert files_of(shared) == made
    workshop.train("alone", IN_MEMORY, {"training": {"learning_rate": 1e-3, "seed": 7}})
    assert_same_run(workshop.output("alone"), workshop.output("second"))


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"method": {"text": "w1 w2 w3"}}, 3),
        ({"method": {"layers": 2}}, 3),
        ({"quantization": {"load_in_4bit": True}}, 3),
        ({"data": {"max_train_samples": 5}}, 1),
        ({"data": {"max_length": 4}}, 3),
    ],
    ids=str,
)
def test_what_is_there_is_not_used_for_another_text_depth_model_or_data(
    workshop: Workshop, shared: Sections, changes: Sections, new: int
) -> None:
    workshop.train("first", shared)
    before = files_of(shared)
    workshop.train("second", shared, changes)
    assert len(files_of(shared) - before) == new
    workshop.train("alone", IN_MEMORY, changes)
    assert_same_run(workshop.output("alone"), workshop.output("second"))


@pytest.mark.parametrize("streamed", [{}, STREAMED], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "changes", [{}, {"method": {"name": "lora", "text": ..., "rank": 2}}], ids=["sk_prefix", "lora"]
)
def test_what_is_there_of_a_lower_block_is_gone_on_from(
    workshop: Workshop, shared: Sections, caplog: pytest.LogCaptureFixture, changes: Sections, streamed: Sections
) -> None:
    workshop.train("deep", shared, changes, streamed, {"method": {"layers": 2}})
    before = files_of(shared)
    with caplog.at_level(logging.INFO):
        workshop.train("shallow", shared, changes, streamed)
    assert "go on from those after block 1" in caplog.text
    assert len(files_of(shared)) == 2 * len(before)
    workshop.train("alone", IN_MEMORY, changes)
    assert_same_run(workshop.output("alone"), workshop.output("shallow"))


@pytest.mark.parametrize("width", [48, 128, 156])
def test_states_of_8_bits_are_within_half_a_step_of_their_group(width: int) -> None:
    states = torch.randn(5, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    states[0, 3] = 5000.0  # beside which its group alone becomes coarse
    states[1] = 0.0
    kept = pack(states)
    assert (tuple(kept.shape[1:]), kept.dtype) == ((kept_form(width, states.dtype, packed=True)[0],), torch.uint8)
    read = unpack(kept, width, torch.float32)
    group = {48: 48, 128: 64, 156: 52}[width]
    steps = states.float().unflatten(1, (-1, group)).abs().amax(2) / 127
    off = (read - states.float()).unflatten(1, (-1, group)).abs().amax(2)
    assert (off <= 0.501 * steps).all()
    assert not read[1].any()
    assert torch.equal(pack(read), kept)
    assert torch.equal(unpack(kept[1:2], width, torch.float32), read[1:2])
    last = pack(torch.ones(3, 6))[2:]  # its scale lies at no multiple of 4 bytes
    assert torch.equal(unpack(last, 6, torch.float32), torch.ones(1, 6))


def test_states_of_8_bits_take_fewer_bytes_and_change_the_run_little(
    workshop: Workshop,
    shared: Sections,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workshop.train("exact", shared)
    exact = files_of(shared)
    packed = merged(shared, PACKED)
    workshop.train("packed", packed)
    others = files_of(shared) - exact
    assert len(others) == len(exact) == 3
    sizes = [sum(file.stat().st_size for file in files) for files in (others, exact)]
    assert sizes[0] / sizes[1] == pytest.approx(68 / 256)  # the model is 64 numbers wide, of 32 bits each
    notes = [" ".join(planned(workshop, capsys, sections)["assumptions"]) for sections in (packed, shared)]
    of_a_token = [int(note.partition(" bytes for each token")[0].rpartition(" ")[2]) for note in notes]
    assert sizes[0] * of_a_token[1] == sizes[1] * of_a_token[0]
    losses = [list(points(workshop.output(name), "train/loss").values()) for name in ("packed", "exact")]
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)
    assert losses[0] != losses[1]
    with caplog.at_level(logging.INFO):
        workshop.train("again", packed)
    assert caplog.text.count("read from") == 3
    assert_same_run(workshop.output("packed"), workshop.output("again"))


LORA: Sections = {"method": {"name": "lora", "layers": 1, "text": ..., "rank": 2}}
GATED: Sections = {"method": {"name": "llama_adapter", "layers": 1, "text": ..., "rank": ..., "num_virtual_tokens": 2}}
SINGLE_NF4: Sections = merged(NF4_IN_BF16, {"quantization": {"bnb_4bit_use_double_quant": False}})


@pytest.mark.parametrize("changes", [LORA, GATED], ids=["lora", "llama_adapter"])
@pytest.mark.parametrize("packed", [NF4_IN_BF16, SINGLE_NF4], ids=["scales in 8 bits", "scales in 32 bits"])
def test_a_model_without_its_lower_blocks_is_of_the_dtype_it_was(
    workshop: Workshop, shared: Sections, caplog: pytest.LogCaptureFixture, changes: Sections, packed: Sections
) -> None:
    """The first parameter that is left may be a scale or an adapter's, in fp32."""
    workshop.train("whole", shared, changes, packed)
    with caplog.at_level(logging.INFO):
        workshop.train("streamed", shared, STREAMED, changes, packed)
    assert caplog.text.count("read from") == 3
    assert_same_run(workshop.output("whole"), workshop.output("streamed"))


def test_states_of_8_bits_are_refused_where_they_would_be_rounded_again_or_not_kept(workshop: Workshop) -> None:
    with pytest.raises(RecipeError, match=r"frozen_states_in_8bit(.|\n)*would do nothing: frozen_states is off"):
        workshop.train("run", UPPER, merged(OFF, PACKED))
    with pytest.raises(RecipeError, match=r"training\.frozen_states_in_8bit(.|\n)*rounded after every block"):
        workshop.train("run", merged(IN_MEMORY, PACKED, STREAMED))
    with pytest.raises(RecipeError, match=r"frozen_states_in_8bit(.|\n)*changes what every block reads"):
        workshop.train("run", PACKED)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_reading_that_was_stopped_is_gone_on_with(
    workshop: Workshop, shared: Sections, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, resume: str
) -> None:
    """With --resume in the run's own folder, and without it in a folder of many runs."""
    few: Sections = {"training": {"per_device_eval_batch_size": 2}}
    mode = merged(ON_DISK if resume == "auto" else shared, few)
    monkeypatch.setattr(filling, "SECONDS_BETWEEN_NOTES", 0.0)
    read = []

    def agreed(ranks: Any) -> None:
        if len(read) == 3:
            raise Stopped(15, True)
        read.append(0)

    with monkeypatch.context() as stopping:
        stopping.setattr(state_reading, "agree", agreed)
        with pytest.raises(Stopped):
            workshop.train("run", mode)
    with caplog.at_level(logging.INFO):
        workshop.train("run", mode, {"training": {"resume": resume}})
    assert "frozen states of train: go on after 2 of " in caplog.text
    workshop.train("alone", IN_MEMORY, few)
    assert_same_run(workshop.output("alone"), workshop.output("run"))
    folder = shared["training"]["frozen_states_dir"] if resume == "never" else workshop.output("run") / "frozen_states"
    assert {path.suffix for path in Path(folder).glob("*")} <= {".states", ".json"}


def test_two_runs_that_read_the_same_at_once_do_not_meet(workshop: Workshop, tmp_path: Path) -> None:
    node = node_of(ONE_RANK)
    files = [state_files.StateFile(tmp_path, "train-key", 1, (4, 2), torch.float32, node) for _ in range(2)]

    def fill(array: torch.Tensor, _: filling.Filling | None) -> None:
        array[:2] = 1
        if files:
            assert torch.equal(files.pop().make(fill), torch.ones(4, 2))
        array[2:] = 1

    assert torch.equal(files.pop().make(fill), torch.ones(4, 2))
    assert {path.suffix for path in tmp_path.glob("*")} == {".states", ".json"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSYS, "no flock"), NotImplementedError()], ids=str)
def test_a_file_system_without_locks_is_trained_on_all_the_same(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    workshop.train("run", ON_DISK)
    assert "its file system has no locks" in caplog.text


def test_cells_of_a_comparison_read_the_frozen_blocks_once(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rates, seeds and methods of one depth share what was read; a deeper one goes on from it."""
    half: dict[str, Any] = {"layers": 1}
    methods = {"head_only": {}, "half": {"name": "sk_prefix", **half}, "deep": {"name": "sk_prefix", "layers": 2}}
    recipe = workshop.write("base", TASKS["sequence"], {"compare": {"methods": methods, "seeds": 2}})
    folder = tmp_path / "compared"
    with caplog.at_level(logging.INFO):
        assert main(["compare", str(recipe), "--output", str(folder)]) == 0
    assert caplog.text.count("read from") == 3 * 3  # each method's second seed, three splits
    assert not (folder / "frozen_states").exists()
    cell = load_state(folder).cell("half-seed43")
    workshop.train("alone", TASKS["sequence"], UPPER, {"training": {"seed": 43}})
    assert_same_run(workshop.output("alone"), folder / cell.folder)


@pytest.mark.parametrize("damage", ["a bit", "its end", "its seal"])
def test_a_damaged_file_is_named_and_made_again(
    workshop: Workshop, shared: Sections, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    workshop.train("first", shared)
    file = min(files_of(shared))
    good = file.read_bytes()
    if damage == "a bit":
        file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    elif damage == "its end":
        file.write_bytes(good[:-8])
    else:
        file.with_suffix(".json").write_text("[]", encoding="utf-8")
    workshop.train("second", shared)
    assert f"{file}: is damaged, and not used" in caplog.text
    assert file.read_bytes() == good
    assert_same_run(workshop.output("first"), workshop.output("second"))


def test_too_little_room_is_said_before_anything_is_read(
    workshop: Workshop, shared: Sections, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(filling.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        ValueError, match=r"training\.frozen_states: [\d,]+ bytes are needed in .*, 100 are free; choose"
    ):
        workshop.train("run", shared)
    assert not list(Path(shared["training"]["frozen_states_dir"]).iterdir())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"training": {"frozen_states": "auto"}}, "auto is off: the method changes what every block reads"),
        (UPPER, "auto is memory: "),
        (merged(UPPER, {"training": {"max_steps": 2}}), "auto is off: no example is read twice"),
        (merged(UPPER, STREAMED, {"training": {"max_steps": 2}}), "auto is memory: "),
    ],
)
def test_auto_says_what_it_chose(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, changes: Sections, reason: str
) -> None:
    with caplog.at_level(logging.INFO):
        workshop.train("run", changes)
    assert reason in caplog.text


@pytest.mark.parametrize("on_disk", [100, 10**9])
def test_auto_goes_where_there_is_room(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, on_disk: int
) -> None:
    usage, memory = shutil.disk_usage("/")._replace(free=on_disk), psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(auto_states.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(auto_states.shutil, "disk_usage", lambda _: usage)
    with caplog.at_level(logging.INFO):
        workshop.train("run", UPPER)
    assert ("auto is off: " if on_disk == 100 else "auto is disk: ") in caplog.text


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"name": "sk_prompt"},
        {"layers": 1, "semantics": "every_step"},
        {"name": "lora", "text": ..., "rank": 2},
    ],
    ids=str,
)
def test_a_method_below_which_nothing_stays_the_same_is_refused(workshop: Workshop, method: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"training\.frozen_states.*\n.*changes what every block reads"):
        workshop.train("run", {"method": method, "training": {"frozen_states": "disk"}})


def test_a_folder_without_an_effect_is_refused(workshop: Workshop) -> None:
    with pytest.raises(RecipeError, match=r"frozen_states_dir.*\n.*would do nothing: frozen_states is memory"):
        workshop.train("run", merged(IN_MEMORY, {"training": {"frozen_states_dir": "x"}}))


# -- several ranks ------------------------------------------------------------------------------------------------


SHARED_RUNS: dict[str, Sections] = {
    "zero3-memory": merged(IN_MEMORY, TWO_BY_TWO),
    "zero3-disk": merged(ON_DISK, TWO_BY_TWO),
    "zero3-nf4": merged(IN_MEMORY, TWO_BY_TWO, NF4_IN_BF16),
    "zero3-packed": merged(ON_DISK, TWO_BY_TWO, PACKED),
    "replicas-nf4": merged(IN_MEMORY, TWO_BY_TWO, NF4_IN_BF16, {"distributed": {"deepspeed": None}}),
    "zero3-streamed": merged(ON_DISK, TWO_BY_TWO, STREAMED),
    "zero3-streamed-nf4": merged(IN_MEMORY, TWO_BY_TWO, NF4_IN_BF16, STREAMED),
    "zero2-streamed": merged(IN_MEMORY, TWO_BY_TWO, STREAMED, {"distributed": {"deepspeed": "zero2"}}),
    "zero2-memory": merged(IN_MEMORY, TWO_BY_TWO, {"distributed": {"deepspeed": "zero2"}}),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, shared_workshop: Workshop) -> SeveralRanks:
    workshop = shared_workshop
    workshop.train("frozen-alone", IN_MEMORY)
    workshop.train("frozen-alone-nf4", IN_MEMORY, NF4_IN_BF16)
    workshop.train("frozen-alone-packed", IN_MEMORY, PACKED)
    jobs = [
        {"name": name, "recipe": str(workshop.write(name, sections))}
        for name, sections in ((f"frozen-{name}", sections) for name, sections in SHARED_RUNS.items())
    ]
    return run_jobs(workshop, jobs, 2)


@pytest.mark.parametrize("name", SHARED_RUNS)
def test_two_ranks_equal_one(two: SeveralRanks, name: str) -> None:
    like = next((form for form in ("-nf4", "-packed") if name.endswith(form)), "")
    alone, together = two.workshop.output(f"frozen-alone{like}"), two.output(f"frozen-{name}")
    assert_close_run(alone, together, 2e-2 if like == "-nf4" else 1e-5)
    assert not list(Path("/dev/shm").glob("train-*"))


def test_shards_of_the_lower_blocks_are_gone(two: SeveralRanks) -> None:
    of = {name: two.result(f"frozen-{name}")["memory/frozen_bytes"] for name in SHARED_RUNS}
    assert of["zero3-nf4"] < 0.6 * of["replicas-nf4"]
    assert of["zero3-streamed-nf4"] == of["zero3-nf4"]
    assert DEPTH == 3


def planned(workshop: Workshop, capsys: pytest.CaptureFixture[str], *sections: Sections) -> dict[str, Any]:
    assert main(["plan", str(workshop.write("plan", *sections)), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("changes", [HEAD_ONLY, UPPER], ids=["head_only", "sk_prefix"])
def test_a_plan_counts_the_reading_with_all_blocks_and_training_with_the_upper_ones(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], bits: str, changes: Sections
) -> None:
    sections = (changes, {"quantization": BITS[bits]})
    trained = workshop.train("run", *sections, IN_MEMORY_ONLY)
    kept, off, auto = (planned(workshop, capsys, *sections, mode) for mode in (IN_MEMORY_ONLY, OFF, {}))
    held = sum(kept[name] for name in ("packed", "scales", "rest"))
    assert held <= trained["memory/frozen_bytes"] <= held + kept["buffers"]
    assert kept["load_peak"] == off["load_peak"]
    assert kept["reading_peak"] == off["evaluation_peak"]
    assert kept["training_peak"] < off["training_peak"]
    assert off["reading_peak"] is None
    assert auto["training_peak"] == off["training_peak"]  # whether they are kept depends on the data
    assert any("frozen_states is auto" in note for note in auto["assumptions"])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("changes", [HEAD_ONLY, UPPER], ids=["head_only", "sk_prefix"])
def test_a_plan_of_streamed_blocks_counts_what_is_held(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], bits: str, changes: Sections
) -> None:
    sections = (changes, {"quantization": BITS[bits]}, IN_MEMORY_ONLY, STREAMED)
    trained = workshop.train("run", *sections)
    streamed = planned(workshop, capsys, *sections)
    held = sum(streamed[name] for name in ("packed", "scales", "rest"))
    # The plan's buffers are the head's and the method's too.
    assert held <= trained["memory/frozen_bytes"] <= held + streamed["buffers"]
    assert held < streamed["reading_peak"]
    whole = planned(workshop, capsys, *sections[:3])
    assert streamed["parameters"] == whole["parameters"]
    assert streamed["training_peak"] == whole["training_peak"]
    assert streamed["peak"] < whole["peak"]
    for ranks in ("2", "4"):
        assert (
            main(["plan", str(workshop.write("run", *sections)), "--gpus", ranks, "distributed.deepspeed=zero3"]) == 0
        )
