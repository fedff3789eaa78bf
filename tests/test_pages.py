"""The pages: README, results and docs/ are short, their links lead somewhere, their numbers come from records."""

import json
import re
import shlex
import statistics
import tomllib
from pathlib import Path

import nbformat
import pytest

from titn_lib import count_macs, count_parameters, create_model, list_models
from titn_lib.__main__ import make_parser
from titn_lib.experiments.report import marked_pages, render_tables
from titn_lib.experiments.settings import load_experiments
from titn_lib.experiments.statistics import load_rows, top1

TOP = Path(__file__).parent.parent
DOCS = sorted([*(TOP / "docs").glob("*.md"), *(TOP / "docs" / "results").glob("*.md")])
OTHERS = [TOP / name / "README.md" for name in ("results", "experiments", "benchmarks", "data")]
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *OTHERS, *DOCS]
IN_ONE_STEP = {"index.md", "explorer.md"}  # of the site only
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def relative(path):
    return path.relative_to(TOP).as_posix()


def read(name):
    return (TOP / name).read_text(encoding="utf-8")


def load_script(path):
    """A script that belongs to no package, as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def anchors(text):
    """What GitHub and the site make of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_links(text, folder):
    """Links of a page that lead nowhere: no such file, or no such heading in it."""
    wrong = []
    for target, anchor in LINK.findall(text):
        path = folder / target
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path.read_text("utf-8"))):
            wrong.append(f"{target}#{anchor}" if anchor else target)
    return wrong


def links_of(name):
    page = TOP / name
    return {(page.parent / target).resolve() for target, _ in LINK.findall(read(name)) if target}


# --- length, links


@pytest.mark.parametrize(("name", "limit"), [("README.md", 7_600), ("results/README.md", 12_000)])
def test_the_first_pages_are_short(name, limit):
    assert len(read(name).encode()) <= limit


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert not missing_links(text, page.parent)


def test_a_missing_link_is_noticed():
    text = "[a](README.md) [b](nowhere.md) [c](docs/glossary.md#speed) [d](docs/glossary.md#sped) [e](https://x.y/z)"
    assert missing_links(text, TOP) == ["nowhere.md", "docs/glossary.md#sped"]


def test_notebooks_find_the_sections_of_the_results():
    """Their links name a section of results/README.md."""
    sections = anchors(read("results/README.md"))
    notebooks = [path.read_text(encoding="utf-8") for path in (TOP / "notebooks").rglob("[0-9]*.ipynb")]
    named = {anchor for text in notebooks for anchor in re.findall(r"results/README\.md#([\w-]+)", text)}
    assert len(named) >= 3
    assert named <= sections


def test_every_page_can_be_reached_from_the_readme():
    from_readme, from_results = links_of("README.md"), links_of("results/README.md") | links_of("docs/results/index.md")
    assert TOP / "results" / "README.md" in from_readme
    for page in DOCS:
        if page.parent.name == "results":
            assert page in from_results
        elif page.name not in IN_ONE_STEP:
            assert page in from_readme, page
    assert TOP / "docs" / "index.md" in from_readme


@pytest.mark.parametrize("page", DOCS, ids=relative)
def test_lines_are_short(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith(("|", "![", "<!-- table"))]


def test_no_line_begins_with_a_percent_sign():
    """The site takes such a line for a comment and leaves it out."""
    texts = {relative(page): page.read_text(encoding="utf-8") for page in PAGES}
    for path in (TOP / "notebooks").rglob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        texts[relative(path)] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert [name for name, text in texts.items() if re.search(r"^\s*%", text, re.M)] == []


def test_images_have_a_description():
    for page in PAGES:
        for alt in re.findall(r"!\[([^]]*)\]\(", page.read_text(encoding="utf-8")):
            assert len(alt) > 20, page


# --- what they say


def test_the_readme_names_the_project_as_it_is():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    torch = next(one for one in project["dependencies"] if one.startswith("torch>="))
    assert (
        f"Python {project['requires-python'].removeprefix('>=')} or newer · "
        f"PyTorch {torch.removeprefix('torch>=')} or newer · {project['license']} license"
    ) in read("README.md")


RUN_MINUTES = {
    "one minute": "1", "under a minute": "< 1", "about a minute": "1", "a minute": "1", "a minute and a half": "1.5",
    "about a minute and a half": "1.5", "two minutes": "2", "about two minutes": "2",
}  # fmt: skip
READ_MINUTES = {
    "three quarters of an hour": "45", "an hour": "60", "an hour and a quarter": "75", "an hour and a half": "90",
    "an hour and three quarters": "105", "two hours": "120", "two and a half hours": "150",
}  # fmt: skip


def opening_minutes(opening):
    """ "30", "< 1" from "**It takes** half an hour to read and work through, and under a minute to run"."""
    opening = " ".join(opening.split())
    reading = re.search(r"\*\*It takes\*\* ([\w ]+?) to read and work through, and ([\w ]+?) to run\b", opening)
    if reading:
        return READ_MINUTES[reading[1]], RUN_MINUTES[reading[2]]
    return "", RUN_MINUTES[re.search(r"\*\*It takes\*\* ([\w ]+?) on ", opening)[1]]


def test_the_course_takes_as_long_as_its_notebooks_say():
    rows = re.findall(r"^\| \[(\d\d)\]\(([^)]+)\) \| [^|]+ \| ([^|]*)\| ([^|]+) \|$", read("README.md"), re.M)
    chapters = sorted((TOP / "notebooks").glob("[0-9]*.ipynb"))
    assert [TOP / path for _, path, *_ in rows] == chapters
    for number, path, reading, running in rows:
        assert Path(path).name.startswith(number)
        opening = nbformat.read(TOP / path, as_version=4).cells[0].source
        assert (reading.strip(), running) == opening_minutes(opening), path


def test_the_table_of_models_names_what_is_there():
    rows = [line.split("|")[1] for line in read("docs/models.md").splitlines() if line.startswith("| `")]
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert {"titn_paper", "vit_paper", "vgg7_bn", "cmt_nano"} <= named <= set(list_models())


def test_the_architecture_names_every_folder():
    text = read("docs/architecture.md")
    folders = {path.parent.name for path in (TOP / "titn_lib").glob("*/__init__.py")}
    assert {"models", "kernels"} <= folders
    assert not [folder for folder in folders if folder not in text]


SIZED = [
    "titn_paper",
    "titn_paper_224",
    "titn_nano",
    "titn_mini",
    "titn_mini_conv",
    "titn_pico",
    "titn_plus",
    "tnt_paper",
]


@pytest.mark.parametrize("name", SIZED)
def test_the_table_of_models_counts_right(name):
    line = next(line for line in read("docs/models.md").splitlines() if line.startswith(f"| `{name}`"))
    model = create_model(name, num_classes=100)
    macs = count_macs(model)
    assert f"{count_parameters(model):,}" in line
    assert (f"{macs / 1e6:.1f} M" if macs < 1e9 else f"{macs / 1e9:.1f} G") in line


@pytest.mark.parametrize("name", ["README.md", "docs/models.md", "docs/distillation.md", "docs/own_images.md"])
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").symlink_to(TOP / "notebooks")
    exec("\n".join(re.findall(r"```python\n(.*?)```", read(name), re.S)), {})
    assert (tmp_path / "mine.safetensors").exists() == (name == "docs/models.md")


def commands(text):
    """The arguments of every `titn` command in a page's indented lines."""
    lines = re.findall(r"^    (?:uv run |.*-m titn_lib )titn ?(.*)$|^    uv run titn (.*)$", text, re.M)
    found = [shlex.split(first or second, comments=True) for first, second in lines]
    return [arguments for arguments in found if arguments and arguments != ["--help"]]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_exist(page):
    for arguments in commands(page.read_text(encoding="utf-8")):
        make_parser().parse_args(arguments)


def test_a_command_that_does_not_exist_is_noticed(capsys):
    text = "    uv run titn distill --data digits  # here\n    uv run titn distil --data digits\n"
    good, wrong = commands(text)
    assert make_parser().parse_args(good).data == "digits"
    with pytest.raises(SystemExit):
        make_parser().parse_args(wrong)


# --- numbers


def test_tables_come_from_their_records():
    rows = load_rows(load_experiments(TOP / "experiments"), TOP / "results")
    pages = marked_pages(TOP / "results")
    assert {"README.md", "results/README.md", "docs/models.md", "docs/results/ablations.md"} <= set(
        map(relative, pages)
    )
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert render_tables(text, rows) == text, f"{relative(page)}: run `titn report --write`"


def test_every_settings_file_that_has_run_is_in_a_table():
    rows = load_rows(load_experiments(TOP / "experiments"), TOP / "results")
    markers = re.findall(r"<!-- table (.+?) -->", "\n".join(page.read_text("utf-8") for page in DOCS))
    shown = {name for names in markers for name in names.split()}
    measured = {(row.experiment.file, row.experiment.name) for row in rows.values() if row.records}
    left_out = {file for file, name in measured if not {file, name} & shown}
    assert left_out == {"cifar10-contrastive-laptop", "cifar10-titn_nano-half-laptop"}  # first stages of the related


def test_the_speed_table_comes_from_its_record():
    speed = load_script(TOP / "benchmarks" / "speed.py")
    record = json.loads(read("benchmarks/speed-cpu.json"))
    shown = re.search(r"<!-- speed -->\n(.*?)\n<!-- /speed -->", read("docs/performance.md"), re.S)[1]
    assert shown == speed.table(record)


def test_what_a_gpu_did_comes_from_its_record():
    """The other figures of that section have no record, and it says so."""
    record = json.loads(read("benchmarks/gpu-2026-11-27.json"))
    section = read("docs/performance.md").split("## On a GPU")[1]
    graph, single = record["step"]["whole step"], record["step"]["step without augmentation, launched one by one"]
    layer, gaps = record["inner layer in Triton, ms"], record["largest difference"]
    rate = round(1024 / graph["ms"] * 1000, -2)
    row = f"| {graph['ms']:.1f} ms | {rate:,.0f} | {graph['kernel_ms']:.1f} ms | 1, of {graph['launches']:,} kernels |"
    assert row in section
    text = " ".join(section.split())
    assert f"the same step takes {single['ms']:.0f} ms" in text
    assert f"takes {layer['forward']} ms forward and {layer['backward']} ms backward for 1,024 images" in text
    assert f"{layer['twelve layers']} ms for twelve layers" in text
    for name in ("logits, GPU - CPU, float32", "gradients, GPU - CPU, float32, relative"):
        assert f"differ by {gaps[name]:.0e}".replace("e-0", "e-") in text
    for name in ("kernel", "plain PyTorch"):
        assert f"{gaps[f'gradients, {name} in bfloat16 - float32, relative']:.1%}".replace("%", " %") in text
    assert "without a record here" in text


@pytest.mark.parametrize("student", ["mini", "nano"])
def test_the_table_of_faithful_maps_is_the_records(student):
    file = f"faithfulness-cifar10-titn_{student}.json"
    record = json.loads(read(f"results/{file}"))
    text = read("docs/results/faithfulness.md").split(file)[1].split("\n\n")[1]
    there = sorted(re.findall(r"\d\.\d{3}", text))
    areas = [row for blank in record["areas"].values() for row in blank["maps"].values()]
    assert there == sorted(f"{row[kind]['mean']:.3f}" for row in areas for kind in ("deletion", "insertion"))


CLAIMS = [  # the difference of two experiments' mean test top-1, and whether it is significant
    ("cifar10-students-laptop-titn", "cifar10-students-laptop-vit", "no"),
    ("cifar10-students-laptop-titn", "cifar10-ablations-laptop-no_inner_stream", "no"),
    ("cifar10-nano-laptop-titn", "cifar10-nano-laptop-vit", "corrected"),
    ("cifar10-students-laptop-titn", "cifar10-students-laptop-tnt", "single"),
    ("cifar10-nano-laptop-titn", "cifar10-nano-laptop-tnt", "no"),
    ("cifar10-students-laptop-titn", "cifar10-students-laptop-distilled_vit", "no"),
    ("cifar10-students-laptop-titn", "cifar10-distillation-laptop-none", "no"),
    ("cifar10-augmentation-laptop-cutmix", "cifar10-augmentation-laptop-cutmix_none", "no"),
    ("cifar10-distillation-laptop-none", "cifar10-students-laptop-tnt", "single"),
    ("cifar10-nano-laptop-titn", "cifar10-nano-laptop-tnt", "no"),
    ("cifar10-students-laptop-distilled_vit", "cifar10-students-laptop-vit", "no"),
    ("cifar10-distillation-laptop-feature", "cifar10-students-laptop-titn", "corrected"),
    ("cifar10-ablations-laptop-patch_4", "cifar10-students-laptop-titn", "corrected"),
    ("cifar10-ablations-laptop-stem", "cifar10-students-laptop-titn", "corrected"),
]


def test_claims_come_from_their_records():
    """In the order of the page. Thresholds: docs/results/methods.md."""
    rows = load_rows(load_experiments(TOP / "experiments"), TOP / "results")
    section = read("results/README.md").split("## Claims and evidence")[1].split("## Caveats")[0]
    evidence = [line.split("|")[2:4] for line in section.splitlines() if "± 0.6" in line]
    differences = re.findall(r"([−+]\d+\.\d) ± 0\.6", " ".join(cell for cell, _ in evidence))
    assert len(differences) == len(CLAIMS)
    for shown, (first, second, verdict) in zip(differences, CLAIMS, strict=True):
        gap = statistics.mean(rows[first].values(top1)) - statistics.mean(rows[second].values(top1))
        assert shown == f"{gap:+.1f}".replace("-", "−"), (first, second)
        corrected = 1.75 if "nano" in first else 1.86
        assert verdict == ("no" if abs(gap) < 1.2 else "single" if abs(gap) < corrected else "corrected"), first
    verdicts = [word for cell, column in evidence for word in re.findall(r"no|single|corrected", column)]
    assert " ".join(verdicts) == "no no corrected single no no no single no no corrected corrected"


def test_the_cost_comes_from_the_records():
    rows = load_rows(load_experiments(TOP / "experiments"), TOP / "results")
    records = [record for row in rows.values() for record in row.records]
    on_gpu = [record for record in records if "NVIDIA" in record.hardware["device"]]
    laptop = [record for record in records if record not in on_gpu]
    text = " ".join(read("results/README.md").split())
    hours = sum(record.seconds for record in laptop) / 3600
    assert f"{len(laptop)} recorded runs and {hours:.0f} hours of training" in text
    minutes = sum(record.seconds for record in on_gpu) / 60
    assert (len(on_gpu), f"{minutes:.0f}") == (3, "7")
    assert "three runs of seven minutes in all on a GPU" in text


TERMS = (
    "overfitting", "generalization", "hyperparameter", "throughput", "latency", "inductive bias", "receptive field",
    "baseline", "ablation", "memory-bound", "pretrained", "calibration", "initialization", "data augmentation",
    "regularization",
)  # fmt: skip


@pytest.mark.parametrize("term", TERMS)
def test_the_course_teaches_the_term(term):
    """In bold, once or more, somewhere in the course, and in the glossary."""
    notebooks = [nbformat.read(path, as_version=4) for path in sorted((TOP / "notebooks").glob("[0-9]*.ipynb"))]
    text = "\n".join(cell.source for notebook in notebooks for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.search(rf"\*\*[^*\n]*{term}[^*\n]*\*\*", text, re.IGNORECASE)
    assert term in read("docs/glossary.md").lower()
