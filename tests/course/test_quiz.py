"""The quiz: each question has one right choice, and shows the same with and without a kernel."""

import csv
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from titn_lib import TITNError
from titn_lib.course import quiz as module
from titn_lib.course.quiz import FILES, Choice, Question, anki_cards, folded_html, load_questions, quiz, quiz_progress

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
QUESTIONS = [(file.stem, question) for file in FILES for question in load_questions(file)]
RIGHT = [[choice.right for choice in question.choices].index(True) for _, question in QUESTIONS]


@pytest.fixture(autouse=True)
def progress(tmp_path, monkeypatch):
    """A progress file of the test's own."""
    path = tmp_path / "runs" / "quiz.json"
    monkeypatch.setattr(module, "progress_file", lambda: path)
    return path


# --- the questions


def test_every_notebook_has_its_questions():
    assert [file.stem for file in FILES] == [path.stem for path in NOTEBOOKS]
    assert [len(load_questions(file)) for file in FILES] == [3] + 16 * [5]


def test_one_choice_is_right_and_all_are_explained():
    for _, question in QUESTIONS:
        assert [choice.right for choice in question.choices].count(True) == 1, question.text
        assert len({choice.text for choice in question.choices}) == len(question.choices) == 4, question.text
        assert len({choice.why for choice in question.choices if len(choice.why.split()) >= 5}) == 4, question.text


def test_two_of_five_look_back():
    """From notebook 03 on, two questions are about notebooks before it."""
    for file in FILES:
        about = [re.match(r"\(Notebook (\d\d)\) ", question.text) for question in load_questions(file)]
        earlier = [int(match[1]) for match in about if match]
        assert len(earlier) == (2 if file.stem >= "03" else 0), file.stem
        assert all(number < int(file.stem[:2]) for number in earlier)


def test_form_gives_nothing_away():
    """Neither the place of the right choice, nor its length."""
    places = Counter(RIGHT)
    assert all(1 / 6 < places[place] / len(QUESTIONS) < 1 / 3 for place in range(4)), places
    for extreme in (min, max):
        lengths = [[len(choice.text) for choice in question.choices] for _, question in QUESTIONS]
        gives_away = [sizes[right] == extreme(sizes) for sizes, right in zip(lengths, RIGHT, strict=True)]
        assert sum(gives_away) / len(QUESTIONS) < 0.4
    for file in FILES:
        assert len({right for right, (name, _) in zip(RIGHT, QUESTIONS, strict=True) if name == file.stem}) >= 3


# --- with a kernel


def parts(shown, number):
    """Radio buttons and explanation of a question, counted from 1."""
    return shown.children[number].children[1:]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_choice_shows_its_explanation(file, progress):
    shown = quiz(file.stem[:2])
    for number, question in enumerate(load_questions(file), 1):
        buttons, explanation = parts(shown, number)
        assert (buttons.value, explanation.value) == (None, "")
        for index, choice in enumerate(question.choices):
            buttons.value = buttons.options[index]
            assert choice.explanation in explanation.value
            assert ("<b>Right.</b>" in explanation.value) == choice.right
            assert ("<b>No.</b>" in explanation.value) != choice.right


def row(notebook):
    """Number, right answers and questions in the table's row of a notebook."""
    return re.search(rf"\[({notebook})_\w+\]\({notebook}_\w+\.ipynb\) \| (\d) of (\d)", quiz_progress().data).groups()


def test_right_answers_are_kept(progress):
    for start in ("06", "07"):
        shown = quiz(start)
        rights = [right for right, (name, _) in zip(RIGHT, QUESTIONS, strict=True) if name.startswith(start)]
        for number in (1, 2):
            buttons, _ = parts(shown, number)
            buttons.index = (rights[number - 1] + 1) % 4  # wrong
            assert row(start) == (start, str(number - 1), "5")
            buttons.index = rights[number - 1]
            assert row(start) == (start, str(number), "5")
    assert json.loads(progress.read_text()) == [
        f"{name} {number}" for name in ("06_a_run_goes_wrong", "07_distillation") for number in (1, 2)
    ]
    assert row("00") == ("00", "0", "3")
    assert quiz_progress().data.count("\n") == len(FILES) + 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"3", b'{"a": [1]}', b'[1, null, ["x"]]'])
def test_a_damaged_file_is_no_error(content, progress):
    progress.parent.mkdir()
    progress.write_bytes(content)
    assert row("06") == ("06", "0", "5")
    buttons, explanation = parts(quiz("00"), 1)
    buttons.index = RIGHT[0]
    assert "Right." in explanation.value
    assert row("00") == ("00", "1", "3")


def test_a_file_that_cannot_be_written_is_no_error(progress):
    progress.parent.write_text("a file where the folder should be")
    buttons, explanation = parts(quiz("00"), 1)
    buttons.index = RIGHT[0]
    assert "Right." in explanation.value
    assert row("00") == ("00", "0", "3")


def test_an_unknown_notebook_is_one_sentence():
    for number in ("99", "6", ""):
        with pytest.raises(TITNError, match=r"no quiz on notebook .*: choose one from '00' to '16'"):
            quiz(number)


# --- without a kernel


class Structure(HTMLParser):
    """Checks that tags are closed, and collects them with their attributes."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags = [], Counter()
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert not attributes, "no colors, no styles"
        if tag != "br":
            self.open.append(tag)
        self.tags[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_all_choices_fold_out_without_a_kernel(file):
    source = quiz(file.stem[:2])._repr_mimebundle_()["text/html"]
    asked = load_questions(file)
    tags = Structure(source).tags
    assert tags["li"] == len(asked)
    assert tags["details"] == tags["summary"] == 4 * len(asked)
    assert set(tags) <= {"ol", "li", "br", "p", "details", "summary", "b", "code", "em"}
    for question in asked:
        for choice in question.choices:
            assert choice.explanation in source


def test_html_is_escaped():
    choice = Choice(True, "a < b & *c*", '"<script>" `x**2 < y * z`')
    source = folded_html([Question("<b>?</b>", [choice] * 4)])
    assert "<li>&lt;b&gt;?&lt;/b&gt;<details>" in source
    assert "<summary>(a) a &lt; b &amp; <em>c</em></summary>" in source
    assert "&quot;&lt;script&gt;&quot; <code>x**2 &lt; y * z</code>" in source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_ends_with_its_quiz_as_it_is(path):
    """The stored output is that of the questions today."""
    number = path.stem[:2]
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = [cell for cell in cells if cell.source.endswith(f'quiz("{number}")')]
    (output,) = cell.outputs
    shown = quiz(number)
    assert output.data == {"text/html": folded_html(shown._questions), "text/plain": repr(shown)}
    headings = [c.source for c in cells if c.cell_type == "markdown" and re.search("^## ", c.source, re.M)]
    assert headings[-1].startswith("## Check yourself")


# --- Anki


def test_anki_gets_every_question(tmp_path, monkeypatch):
    out = tmp_path / "cards.tsv"
    monkeypatch.setattr(sys, "argv", ["quiz", str(out)])
    module.main()
    text = out.read_text(encoding="utf-8")
    assert text == anki_cards()
    head, cards = text.split("#tags column:3\n")
    assert head == "#separator:tab\n#html:true\n#deck:TITN\n"
    rows = list(csv.reader(cards.splitlines(), delimiter="\t"))  # Anki, too, reads quotes as CSV does
    assert [len(fields) for fields in rows] == [3] * len(QUESTIONS)
    assert len({front for front, _, _ in rows}) == len(QUESTIONS)
    for (front, back, tag), (notebook, question) in zip(rows, QUESTIONS, strict=True):
        assert tag == notebook
        assert front.count("<br>(") == back.count("<b>") == 4
        assert all(choice.explanation in back for choice in question.choices)


def test_a_file_for_anki_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["quiz", str(tmp_path / "file" / "cards.tsv")])
    with pytest.raises(SystemExit):
        module.main()
    assert "cannot write" in capsys.readouterr().err
