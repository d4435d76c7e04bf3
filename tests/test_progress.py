"""What long work says of itself, without a terminal and on one; each program is a process of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from training_fixtures import Workshop, _environment

PREAMBLE = """
import logging, sys, time
from sktune import progress as module
from sktune.progress import progress
logging.basicConfig(format="%(message)s", level=logging.INFO)
"""
LINE = re.compile(r"copying: (\d+(?:\.\d+)?) kB of 100\.0 kB \((\d+)%\), \d+\.\d kB/s, 0:00:\d\d left")


def program(body: str, preamble: str = PREAMBLE) -> list[str]:
    return [sys.executable, "-c", preamble + textwrap.dedent(body)]


def lines_of(command: list[str], **environment: str) -> list[str]:
    """Of standard error, where that is a pipe."""
    done = subprocess.run(
        command, env=_environment() | environment, stderr=subprocess.PIPE, text=True, check=False, timeout=120
    )
    return done.stderr.splitlines()


# -- without a terminal -------------------------------------------------------------------------------------------


def test_lines_say_amount_rate_and_remaining_time() -> None:
    lines = lines_of(
        program("""
            with progress("copying", 100_000, "B") as advance:
                for _ in range(100):
                    time.sleep(0.05)
                    advance(1000)
        """)
    )
    *on_the_way, last = lines
    amounts = [match[1] for match in map(LINE.fullmatch, on_the_way) if match]
    assert len(amounts) == len(on_the_way) >= 1, lines
    assert sorted(set(amounts), key=float) == amounts
    assert re.fullmatch(r"copying: 100\.0 kB in 0:00:\d\d, \d+\.\d kB/s", last)


def test_no_two_lines_about_one_tenth() -> None:
    lines = lines_of(
        program("""
            with progress("counting", 10, "steps") as advance:
                advance(3)
                time.sleep(6)
                advance(7)
        """)
    )
    assert [line.split(",")[0] for line in lines[:-1]] == ["counting: 3 of 10 steps (30%)"]
    assert lines[-1].startswith("counting: 10 steps in 0:00:0")


def test_what_is_soon_done_is_not_mentioned() -> None:
    lines = lines_of(
        program("""
            with progress("counting", 10, "steps") as advance:
                for _ in range(10):
                    advance(1)
        """)
    )
    assert lines == []


def test_one_long_call_is_not_silent() -> None:
    """Nothing is told of any progress, and still there are lines; the total may be unknown."""
    lines = lines_of(
        program("""
            module.SILENT_SECONDS = 2.0
            with progress("reading", None, "files", done=5) as advance:
                advance(2)
                time.sleep(6)
        """)
    )
    assert len(lines) >= 3
    assert all(re.fullmatch(r"reading: 7 files, [\d.]+ files/s", line) for line in lines[:-1])
    assert lines[-1].startswith("reading: 2 files in 0:00:")


def test_inside_each_other_the_innermost_speaks_and_who_logs_lines_of_its_own_only_when_silent() -> None:
    lines = lines_of(
        program("""
            module.SILENT_SECONDS = 2.0
            with progress("training", 100, "steps", tenths=False) as step:
                step(50)
                with progress("evaluating", 4, "batches") as advance:
                    for _ in range(4):
                        time.sleep(1)
                        advance(1)
                time.sleep(4)
        """)
    )
    end = next(i for i, line in enumerate(lines) if line.startswith("evaluating: 4 batches in"))
    assert all(line.startswith("evaluating: ") for line in lines[:end])
    assert lines[end + 1 :]
    assert all(line.startswith("training: 50 of 100 steps (50%), ") for line in lines[end + 1 :])


@pytest.mark.parametrize("error", ["ValueError('broken')", "KeyboardInterrupt()", "SystemExit('broken')"])
def test_work_that_fails_is_not_called_done(error: str) -> None:
    lines = lines_of(
        program(f"""
            try:
                with progress("copying", 100, "B") as advance:
                    time.sleep(2.5)
                    raise {error}
            except BaseException as error:
                logging.getLogger("sktune").info("caught %s", type(error).__name__)
            module.UNMENTIONED_SECONDS = 0
            with progress("again", 1, "texts") as advance:
                advance(1)
        """)
    )
    assert [line for line in lines if not line.startswith("copying: 0 bytes of")] == [
        f"caught {error.split('(')[0]}",
        next(line for line in lines if line.startswith("again: 1 texts in 0:00:00, ")),
    ]


def test_only_the_first_rank_speaks() -> None:
    body = """
        logging.root.handlers.clear()
        from sktune.process import prepare_process
        prepare_process()
        module.UNMENTIONED_SECONDS = 0
        with progress("copying", 1, "B") as advance:
            advance(1)
    """
    assert lines_of(program(body), RANK="1") == []
    assert len(lines_of(program(body), RANK="0")) == 1


# -- on a terminal ------------------------------------------------------------------------------------------------


def on_a_terminal(command: list[str], interrupt_at: str | None = None) -> tuple[str, list[str]]:
    """(what a program wrote, the screen after it); interrupted as by Ctrl-C when a text has appeared."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        command, env=_environment() | {"TERM": "xterm"}, stdin=terminal, stdout=terminal, stderr=terminal,
        start_new_session=True, preexec_fn=_own_the_terminal,
    )  # fmt: skip
    os.close(terminal)
    written, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([main], [], [], 1.0)[0]:
            try:
                part = os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
        if interrupt_at is not None and interrupt_at.encode() in written:
            os.write(main, b"\x03")
            interrupt_at = None
    process.kill()
    process.wait()
    os.close(main)
    text = written.decode()
    return text, screen(text)


def _own_the_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C comes as a signal


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after all that was written, for the few controls that are used."""
    lines, row, column = [""], 0, 0
    for control, count, kind, character in re.findall(r"(\x1b\[([\d;?]*)([A-Za-z]))|(.)", written, re.DOTALL):
        if control:
            if kind == "A":
                row -= int(count or 1)
                assert row >= 0
            elif kind == "K":
                lines[row] = ""
            else:
                assert kind == "m", control  # colours; the cursor is never hidden
        elif character == "\r":
            column = 0
        elif character == "\n":
            row += 1
            lines += [""] * (row - len(lines) + 1)
        else:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


LONG = "x" * 200
BODY = """
    log = logging.getLogger("sktune")
    log.info("begin")
    with progress("training", 100, "steps", tenths=False) as step:
        for i in range(4):
            with progress("evaluating", 3, "batches") as advance:
                for _ in range(3):
                    time.sleep(0.15)
                    advance(1)
                log.info(f"log [b]{i}[/b] {'x' * 200}")
            print(f"printed {i} :smile:")
            logging.getLogger("other").warning(f"warned {i}")
            step(25)
"""


def test_bars_and_lines_do_not_tear_each_other() -> None:
    written, shown = on_a_terminal(program(BODY + "\n    log.info('end')"))
    for what in ("training", "evaluating", "25 of 100 steps (25%)", "1 of 3 batches (33%)", "━"):
        assert what in written
    lines = [
        line for i in range(4) for line in (f"log [b]{i}[/b] {LONG}", f"printed {i} :smile:", f"warned {i}")
    ]  # fmt: skip
    assert shown == ["begin", *lines, "end", ""]


def test_answers_go_to_a_file_and_the_bar_to_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "answers.txt"
    quoted = " ".join(f"'{part}'" if "\n" not in part else '"$PROGRAM"' for part in program(BODY)[:2])
    command = ["sh", "-c", f'{quoted} "$0" > {file}', program(BODY)[2]]
    _, shown = on_a_terminal(command)
    assert file.read_text(encoding="utf-8").splitlines() == [f"printed {i} :smile:" for i in range(4)]
    assert not any(line.startswith("printed") for line in shown)


def test_an_interrupted_bar_leaves_a_clean_terminal() -> None:
    body = """
        try:
            with progress("training", 100, "steps") as step:
                step(1)
                time.sleep(60)
        except KeyboardInterrupt:
            logging.getLogger("sktune").info("interrupted")
            print("bye")
    """
    written, shown = on_a_terminal(program(body), interrupt_at="1 of 100 steps (1%)")
    assert "training" in written
    assert shown == ["^Cinterrupted", "bye", ""] or shown == ["interrupted", "bye", ""]


def test_a_dumb_terminal_gets_lines() -> None:
    body = """
        module.UNMENTIONED_SECONDS = 0
        with progress("copying", 100, "B") as advance:
            advance(100)
    """
    written, shown = on_a_terminal(["env", "TERM=dumb", *program(body)])
    assert "\x1b" not in written
    assert shown == [f"copying: 100 bytes in 0:00:00, {shown[0].rsplit(', ', 1)[1]}", ""]


# -- in the commands ----------------------------------------------------------------------------------------------

MENTION_ALL = "from sktune import cli, progress\nprogress.UNMENTIONED_SECONDS = 0\nimport sys\n"


def command(*arguments: str) -> list[str]:
    return [*program("raise SystemExit(cli.main(sys.argv[1:]))", MENTION_ALL), *arguments]


def test_commands_say_what_they_are_at(workshop: Workshop, model_folder: Path, data_folder: Path) -> None:
    """Loading, tokenizing and evaluating in `train`, and `predict`'s own line."""
    more = workshop.folder / "more.conll"
    sentence = (data_folder / "train.conll").read_text(encoding="utf-8").split("\n\n")[0]
    more.write_text(f"{sentence}\n\n" * 1001, encoding="utf-8")
    lines = lines_of(command("train", str(workshop.write("run", {"data": {"train": str(more)}}))))
    said = [line.split(" in 0:00:0")[0] for line in lines if " in 0:00:0" in line]
    stored = (model_folder / "model.safetensors").stat().st_size
    amount = float(said[0].removeprefix("loading weights: ").removesuffix(" kB"))
    assert 0.9 * stored < 1000 * amount <= stored
    assert said[1] == "tokenizing: 1,001 texts"
    # 17 rows twice and 13 once, 16 in a batch.
    assert said[2:] == ["evaluating: 2 batches"] * 2 + ["evaluating: 1 batches"]
    predicting = lines_of(command("predict", str(workshop.output("run")), "--text", "w1 w2", "--text", "w3"))
    assert [line for line in predicting if line.startswith("predicting: 2 texts in 0:00:")]
