"""Print Colab's versions of this project's dependencies, as constraints for an installation.

python .github/colab_constraints.py pip-freeze.gpu.txt > colab.txt

The list of Colab's packages is pip-freeze.gpu.txt of github.com/googlecolab/backend-info. A package that is too old for
this project is left out, since an installation in Colab replaces it; so is one that Colab doesn't have.
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def numbers(version: str) -> list[int]:
    """The release of a version: "2.11.0+cu128" becomes [2, 11, 0]."""
    return [int(part) for part in re.match(r"[\d.]+", version)[0].strip(".").split(".")]  # type: ignore[index]


def installed(listing: str) -> dict[str, str]:
    """Names and versions of a list by `pip freeze`, also of packages that came from a file's address."""
    versions = {}
    for line in listing.splitlines():
        if found := re.match(r"([\w.-]+)==([\w.+!]+)$", line) or re.match(r"([\w.-]+) @ .*/[\w.]+-(\d[\w.]*)", line):
            versions[re.sub(r"[-_.]+", "-", found[1]).lower()] = found[2].split("+")[0]
    return versions


def constraints(listing: str, requirements: list[str]) -> tuple[list[str], list[str]]:
    """The lines to install with, and a sentence for each requirement that has none."""
    versions, lines, left_out = installed(listing), [], []
    for requirement in requirements:
        name, floor = requirement.split(">=")
        version = versions.get(re.sub(r"[-_.]+", "-", name).lower())
        if version is None:
            left_out.append(f"{name}: not in Colab, will be installed")
        elif numbers(version) < numbers(floor):
            left_out.append(f"{name}: Colab has {version}, this project needs {floor} and replaces it")
        else:
            lines.append(f"{name}=={version}")
    return lines, left_out


def main() -> None:
    listing = Path(sys.argv[1]).read_text(encoding="utf-8")
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    lines, left_out = constraints(listing, project["dependencies"])
    print("\n".join(lines))
    print("\n".join(left_out), file=sys.stderr)


if __name__ == "__main__":
    main()
