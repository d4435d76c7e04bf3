"""Tags that are no entities, such as parts of speech: `task.scheme: plain`, and CoNLL-U files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import Workshop, summary_of

from sktune.cli import main
from sktune.data.conll import read_conll, read_words
from sktune.errors import UserError
from sktune.tasks.metrics import tag_metrics

CONLL_U = """# sent_id = 1
# text = w1 w2w3
1\tw1\tw1\tDET\tDT\t_\t2\tdet\t_\t_
2-3\tw2w3\t_\t_\t_\t_\t_\t_\t_\t_
2\tw2\tw2\tNOUN\tNN\t_\t0\troot\t_\t_
3\tw3\tw3\tPUNCT\t.\t_\t2\tpunct\t_\t_
3.1\tgone\t_\tVERB\t_\t_\t_\t_\t_\t_

1\tw4\tw4\tNOUN\tNN\t_\t0\troot\t_\t_
2\t1.5\t1.5\tNUM\tCD\t_\t1\tnummod\t_\t_
"""


def test_a_conllu_file_gives_words_and_parts_of_speech(tmp_path: Path) -> None:
    file = tmp_path / "a.conllu"
    file.write_text(CONLL_U)
    sentences = read_conll(file, entities=False)
    assert [(one.words, one.tags) for one in sentences] == [
        (("w1", "w2", "w3"), ("DET", "NOUN", "PUNCT")),
        (("w4", "1.5"), ("NOUN", "NUM")),
    ]
    assert read_conll(file, tag_column=4, entities=False)[0].tags == ("DT", "NN", ".")
    assert list(read_words(file)) == [(3, ("w1", "w2", "w3")), (9, ("w4", "1.5"))]
    with pytest.raises(UserError, match=r"a\.conllu:3: 'DET' is no tag .*task\.scheme: plain"):
        read_conll(file)


def test_tags_are_scored_one_by_one() -> None:
    found, per_tag = tag_metrics([["A", "B", "B"], ["A"]], [["A", "B", "A"], [None]])
    assert found["accuracy"] == 0.5
    # A: precision 1/2, recall 1/2; B: precision 1, recall 1/2.
    assert per_tag["A"] == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "support": 2}
    assert per_tag["B"] == {"f1": pytest.approx(2 / 3), "precision": 1.0, "recall": 0.5, "support": 2}
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_run_on_parts_of_speech(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("DET", "NOUN", "VERB")

    def file(name: str, start: int) -> str:
        path = workshop.folder / name
        sentences = ([(f"w{(start + i * 7 + j) % 30}") for j in range(1 + i % 4)] for i in range(24))
        path.write_text(
            "\n".join("".join(f"{w}\t{kinds[int(w[1:]) // 10]}\n" for w in words) + "" for words in sentences)
        )
        return str(path)

    plain: dict[str, Any] = {
        "task": {"scheme": "plain"},
        "data": {name: file(f"{name}.conll", start) for start, name in enumerate(("train", "validation", "test"))},
        "training": {"max_steps": 40, "eval_steps": 20},
    }
    workshop.train("run", plain)
    summary = summary_of(workshop.output("run"))
    assert {name for name in summary if name.startswith("test/")} == {"test/accuracy", "test/macro_f1", "test/loss"}
    assert summary["test/accuracy"] > 0.8  # each word has its tag
    card = json.loads((workshop.output("run") / "adapter" / "adapter.json").read_text())
    assert card["labels"] == list(kinds)
    capsys.readouterr()
    assert main(["predict", str(workshop.output("run")), "--text", "w3 w13 w23", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"text", "words", "tags"}
    assert set(answer["tags"]) <= set(kinds)
    assert main(["evaluate", str(workshop.output("run"))]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == summary["test/accuracy"]
    with pytest.raises(UserError, match=r"task\.scheme: plain"):
        workshop.train("entities", plain, {"task": {"scheme": "iob2"}})
