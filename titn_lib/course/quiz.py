"""Five questions on each notebook, with an explanation for every choice.

    quiz("07")         in a notebook; without a kernel, its choices fold out
    quiz_progress()    how many questions have been answered right

    python -m titn_lib.course.quiz cards.tsv    all questions as flash cards, for Anki

The questions are in questions/, one file for each notebook. ✓ marks the right choice, ✗ the others. `about` names the
notebook of a question that looks back.
"""

import argparse
import html
import json
import re
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from titn_lib.errors import TITNError
from titn_lib.io import markdown_table, repo_root, write_atomically

if TYPE_CHECKING:
    from IPython.display import Markdown

FILES = sorted(Path(__file__).with_name("questions").glob("*.toml"))  # named like the notebooks
CSS = """<style>
.titn-quiz, .titn-quiz > .widget-vbox { overflow: hidden; padding: 0 0.5em 0.8em 0; }
.titn-quiz .widget-radio, .titn-quiz .widget-radio-box, .titn-quiz .widget-html-content { width: auto; height: auto; }
.titn-quiz .widget-radio-box { margin-bottom: 0 !important; }
.titn-quiz .widget-radio-box label { display: flex; width: auto; height: auto; line-height: 1.4; white-space: normal; }
.titn-quiz .widget-radio-box input { order: -1; flex: none; }
.titn-quiz .widget-html-content p { margin: 0; line-height: 1.4; white-space: normal; }
</style>"""


@dataclass(frozen=True)
class Choice:
    """One of a question's choices, and why it is right or wrong."""

    right: bool
    text: str
    why: str

    @property
    def explanation(self) -> str:
        """The verdict and the reason, as HTML."""
        return f"<b>{'Right' if self.right else 'No'}.</b> {to_html(self.why)}"


@dataclass(frozen=True)
class Question:
    """A question with four choices, one of them right."""

    text: str
    choices: list[Choice]


def load_questions(file: Path) -> list[Question]:
    """The questions of a file in questions/."""
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["questions"]
    return [
        Question(
            (f"(Notebook {entry['about']}) " if "about" in entry else "") + one_line(entry["text"]),
            [Choice(mark == "✓", one_line(text), one_line(why)) for mark, text, why in entry["choices"]],
        )
        for entry in entries
    ]


def one_line(text: str) -> str:
    return " ".join(text.split())


def to_html(text: str) -> str:
    """Text as HTML, with `code` and *emphasis* as in Markdown."""
    marked = re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"<code>.+?</code>|\*(.+?)\*", lambda m: f"<em>{m[1]}</em>" if m[1] else m[0], marked)


def lettered(choices: list[Choice]) -> list[str]:
    """The choices' texts with their letters: (a), (b), …"""
    return [f"({letter}) {choice.text}" for letter, choice in zip("abcd", choices, strict=True)]


def folded_html(questions: list[Question]) -> str:
    """The questions as a list; a choice folds out to its explanation. Without colors, for light and dark pages."""
    items = []
    for question in questions:
        folds = "".join(
            f"<details><summary>{to_html(text)}</summary><p>{choice.explanation}</p></details>"
            for text, choice in zip(lettered(question.choices), question.choices, strict=True)
        )
        items.append(f"<li>{to_html(question.text)}{folds}<br></li>")
    return f"<ol>{''.join(items)}</ol>"


class Quiz(ipywidgets.VBox):
    """A notebook's questions with radio buttons. Each choice shows its explanation; right ones are kept in a file."""

    def __init__(self, file: Path):
        self._name, self._questions = file.stem, load_questions(file)
        asked = [self._ask(number, question) for number, question in enumerate(self._questions, 1)]
        super().__init__([ipywidgets.HTML(CSS), *asked])
        self.add_class("titn-quiz")

    def _ask(self, number: int, question: Question) -> ipywidgets.VBox:
        text = ipywidgets.HTML(f"<p><b>{number}.</b> {to_html(question.text)}</p>")
        labels = [re.sub("[`*]", "", label) for label in lettered(question.choices)]  # they are no HTML
        buttons = ipywidgets.RadioButtons(options=labels, value=None)
        explanation = ipywidgets.HTML()

        def explain(change: dict[str, Any]) -> None:
            choice = question.choices[change["new"]]
            explanation.value = f'<p role="alert">{choice.explanation}</p>'  # read out by a screen reader
            if choice.right:
                keep(f"{self._name} {number}")

        buttons.observe(explain, names="index")
        return ipywidgets.VBox([text, buttons, explanation])

    def __repr__(self) -> str:
        return f"Quiz on {self._name}: {len(self._questions)} questions"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The live widget, and the list for where no kernel runs."""
        return {**super()._repr_mimebundle_(**options), "text/html": folded_html(self._questions)}


def quiz(notebook: str) -> Quiz:
    """The questions on a notebook.

    Args:
        notebook: its number, such as "06".

    Raises:
        TITNError: there are no questions on it.
    """
    for file in FILES:
        if file.stem.startswith(f"{notebook}_"):
            return Quiz(file)
    raise TITNError(
        f"there is no quiz on notebook {notebook!r}: choose one from {FILES[0].stem[:2]!r} to {FILES[-1].stem[:2]!r}"
    )


def progress_file() -> Path:
    """Where the questions that were answered right are kept: with the runs of the notebooks."""
    return (repo_root() or Path.cwd()) / "runs" / "quiz.json"


def read_progress() -> set[str]:
    """The questions that were answered right, each as notebook and number; none if the file is missing or damaged."""
    with suppress(OSError, ValueError, TypeError):
        return {name for name in json.loads(progress_file().read_text(encoding="utf-8")) if isinstance(name, str)}
    return set()


def keep(name: str) -> None:
    """Add a question to those that were answered right. Where the file can't be written, nothing is kept."""
    with suppress(TITNError, OSError):
        write_atomically(progress_file(), json.dumps(sorted({*read_progress(), name}), indent=1).encode())


def quiz_progress() -> "Markdown":
    """A table: of each notebook's questions, how many have been answered right."""
    from IPython.display import Markdown

    right, rows = read_progress(), []
    for file in FILES:
        asked = range(1, 1 + len(load_questions(file)))
        count = sum(f"{file.stem} {number}" in right for number in asked)
        rows.append([f"[{file.stem}]({file.stem}.ipynb)", f"{count} of {len(asked)}"])
    return Markdown(markdown_table(["quiz", "answered right"], rows))


def anki_cards() -> str:
    """All questions in Anki's text format: the front of a card, its back, its tag."""
    lines = ["#separator:tab", "#html:true", "#deck:TITN", "#tags column:3"]
    for file in FILES:
        for question in load_questions(file):
            labels = [to_html(label) for label in lettered(question.choices)]
            front = "<br>".join([to_html(question.text), *labels])
            explanations = [
                f"{label} {choice.explanation}" for label, choice in zip(labels, question.choices, strict=True)
            ]
            lines.append("\t".join([front, "<br>".join(explanations), file.stem]))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m titn_lib.course.quiz", description="Write the quiz for Anki.")
    parser.add_argument("out", type=Path, help="a new text file, such as cards.tsv; in Anki: File, Import")
    out = parser.parse_args().out
    try:
        write_atomically(out, anki_cards().encode())
    except TITNError as problem:
        parser.error(str(problem))


if __name__ == "__main__":
    main()
