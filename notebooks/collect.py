"""Collect what the notebooks write by hand into by_hand/: one short file for each, to read at a glance or to import.

    uv run python notebooks/collect.py

A file has the functions and classes that are named here, as they are in the notebook, and the imports that they need.
"""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
CHAPTERS = {
    "02_inner_attention": ("attend", "layer_norm", "gelu", "mlp", "whole_layer"),
    "03_outer_attention": ("layer_norm", "project", "block_by_hand", "both_heads"),
    "04_titn": ("Block", "HandMadeTITN", "copy_weights"),
    "05_teacher": ("calibration_bins", "calibration_error"),
    "07_distillation": ("cross_entropy", "kl", "standardize", "similarity"),
    "08_ablations": ("pooled", "thresholds", "significance"),
    "09_attention": ("trace_back",),
    "10_your_images": ("wilson", "coverage", "mcnemar_test", "extract_features", "fit_heads", "WithPreprocessing"),
    "12_related_attention": ("phi", "with_matrix", "with_summary"),
    "13_related_convolutions": ("local_perception",),
    "14_related_training": ("by_hand",),
    "15_related_cost": ("my_gate",),
}


def used_names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def import_lines(statements: list[ast.stmt], used: set[str]) -> set[str]:
    """One line for each imported name that is used."""
    lines = set()
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name.split(".")[0]) in used:
                    module = f"from {statement.module} " if isinstance(statement, ast.ImportFrom) else ""
                    lines.add(f"{module}import {ast.unparse(alias)}")
    return lines


def collect(path: Path, names: tuple[str, ...]) -> str:
    """The text of a file with these functions and classes of the notebook, not yet formatted.

    Raises:
        KeyError: the notebook defines no such function.
    """
    statements, source_of = [], {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "%pip" not in cell.source:
            for statement in ast.parse(cell.source).body:
                statements.append(statement)
                if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name in names:
                    source_of.setdefault(statement.name, (ast.get_source_segment(cell.source, statement), statement))
    used = set().union(*(used_names(source_of[name][1]) for name in names))
    docstring = f'"""What notebooks/{path.name} writes by hand. Written by notebooks/collect.py."""'
    sources = [source_of[name][0] for name in names]
    return "\n\n".join([docstring, "\n".join(sorted(import_lines(statements, used))), *sources]) + "\n"


def formatted(code: str) -> str:
    own = "lint.isort.known-first-party = ['titn_lib']"
    for command in (["check", "--fix", "--select", "I", "--config", own], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "--config", "line-length = 120", "-"]
        code = subprocess.run(ruff, input=code, stdout=subprocess.PIPE, encoding="utf-8", check=True, cwd=HERE).stdout
    return code


def main() -> None:
    for chapter, names in CHAPTERS.items():
        code = formatted(collect(HERE / f"{chapter}.ipynb", names))
        (HERE / "by_hand" / f"{chapter[3:]}.py").write_text(code, encoding="utf-8")


if __name__ == "__main__":
    main()
