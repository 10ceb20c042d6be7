"""The project as a newcomer meets it: what README and docs say is there, and promises about the whole source hold."""

import ast
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import typer

import cifarlab
from cifarlab.cli import app
from cifarlab.cli.figure import FIGURES
from cifarlab.recipe import override, parse_assignments
from cifarlab.recipes import (
    brownlee,
    classification_notebook,
    deep_learning_lab,
    get_recipe,
    six_convolutions,
    trading,
)
from cifarlab.study import load_study

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), flags=re.M | re.S)


def spans(page: Path) -> list[str]:
    """Code within lines of text."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def command_lines(page: Path) -> list[str]:
    """Every `cifarlab ...` in shell blocks, indented blocks and code spans, without comments."""
    shell = [line for block in blocks(page, "sh") for line in block.splitlines()]
    indented = re.findall(r"^    (cifarlab .*)$", page.read_text("utf-8"), flags=re.M)
    found = [
        re.search(r"(?:^|do |nohup )(cifarlab .*)", line.strip()) for line in shell + indented + spans(page)
    ]
    return [re.split(r" +#|;| > ", match[1])[0] for match in found if match]


def options(command: str) -> set[str]:
    named = {
        name for parameter in COMMANDS[command].params for name in parameter.opts if name.startswith("-")
    }
    return named | {"--help"}


@every_page
def test_commands_in_the_text_exist(page):
    for line in command_lines(page):
        command = line.split()[1]
        if command.startswith("-"):
            assert command in ("--help", "--version"), line
            continue
        assert command in COMMANDS, line
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)) <= options(command), line


@every_page
def test_recipes_and_settings_in_the_text_are_accepted(page):
    for line in command_lines(page):
        words = shlex.split(line)
        if words[1] != "train" or len(words) < 3 or not words[2].islower():
            continue
        settings = [value for option, value in pairwise(words) if option == "--set"]
        if not any("field=value" in setting for setting in settings):
            override(get_recipe(words[2]), parse_assignments(settings))


@every_page
def test_whole_commands_are_understood(page):
    """Every command of a shell block, parsed as the command line does it, with the names and settings in it."""
    shell = [line for line in command_lines(page) if any(line in block for block in blocks(page, "sh"))]
    for line in shell:
        name, *arguments = shlex.split(line)[1:]
        if name.startswith("-"):
            continue
        with COMMANDS[name].make_context(name, arguments) as context:
            given = context.params
        recipes = [given["recipe"]] if given.get("recipe") else given.get("recipes") or []
        for recipe in recipes:
            override(get_recipe(recipe), parse_assignments(given.get("settings") or []))
        if name == "figure":
            assert given["name"] in FIGURES, line
        if name == "study" and not given["name"].endswith(".toml"):
            load_study(given["name"])


@every_page
def test_targets_of_make_in_the_text_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()] + spans(page)
    named = {match[1] for line in lines if (match := re.match(r"make ([a-z]+)\b", line))}
    assert named <= targets


@every_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text("utf-8")):
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), flags=re.M)
            assert heading in {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}, (
                target
            )


@every_page
def test_python_in_the_text_uses_public_names_and_arguments(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.Attribute) or getattr(node.value, "id", "") != "cifarlab":
                continue
            assert node.attr in cifarlab.__all__, node.attr
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "cifarlab":
                allowed = inspect.signature(getattr(cifarlab, call.func.attr)).parameters
                assert {keyword.arg for keyword in call.keywords} <= set(allowed)


def test_the_reference_names_every_command_and_option():
    text = (ROOT / "docs" / "reference" / "commands.md").read_text("utf-8")
    sections = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S))
    assert list(sections) == list(COMMANDS)
    for command, section in sections.items():
        missing = {name for name in options(command) - {"--help", "-h"} if name not in section}
        assert not missing, f"{command}: {missing}"


def test_the_reference_of_recipe_fields_is_what_the_types_say():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import recipe_fields
    finally:
        sys.path.pop(0)
    assert recipe_fields.PAGE.read_text("utf-8") == recipe_fields.reference(), "run make format"
    missing = {
        name for name in recipe_fields.recipe.ALL_FIELDS if f"`{name}`" not in recipe_fields.reference()
    }
    assert not missing


@pytest.mark.parametrize(
    ("page", "source", "n"),
    [
        ("t1", brownlee, 9),
        ("t2", six_convolutions, 1),
        ("t3", deep_learning_lab, 1),
        ("t4", trading, 4),
        ("t5", classification_notebook, 6),
    ],
)
def test_a_write_up_is_documented_as_its_recipes_are(page, source, n):
    text = (ROOT / "docs" / "systems" / f"{page}.md").read_text("utf-8")
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| `(.+?)` \| .+? \| (.+?) \| (.+?) \| (.+?) \|$", text, flags=re.M)
    }
    published = {recipe.name: recipe for recipe in source.RECIPES}
    assert set(rows) == set(published) and len(rows) == n
    for name, recipe in published.items():
        reported = f"{100 * recipe.published.accuracy:.3f}" if recipe.published else "–"
        figures = f"{recipe.epochs}", reported, f"{recipe.parameters:,}"
        assert rows[name] == figures, name


def test_the_architecture_lists_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    package = ROOT / "src" / "cifarlab"
    expected = [path.name for path in [*package.glob("*.py"), *package.glob("data/*.py")]]
    expected += [f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()]
    assert not [name for name in expected if name not in text]
    named = re.findall(r"\b([a-z_]+\.py)\b", text)
    assert not [name for name in named if not list(package.rglob(name))]


@pytest.mark.parametrize("module", ["cifarlab", "cifarlab.recipes", "cifarlab.errors", "cifarlab.cli"])
def test_import_is_cheap(module):
    heavy = ("torch", "matplotlib", "scipy", "sklearn", "tensorboard")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_a_mistyped_recipe_waits_for_nothing_heavy():
    code = (
        "import sys; from cifarlab.cli import main; code = main(['train', 'vgg33', '--data', 'nowhere']);"
        " print(code, [name for name in ('numpy', 'torch') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout == "2 []\n" and "unknown recipe 'vgg33'" in answer.stderr


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_nothing_runs_code_from_files(path):
    for name, call in calls(path):
        assert name not in ("pickle.load", "pickle.loads", "eval", "exec", "os.system"), ast.unparse(call)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load":
            assert given.get("weights_only") == "True", ast.unparse(call)
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", ast.unparse(call)


def test_only_the_data_module_may_unpickle_and_then_restricted():
    users = [
        path.name
        for path in SOURCES
        if re.search(r"^\s*(import|from) pickle", path.read_text("utf-8"), flags=re.M)
    ]
    assert users == ["cifar.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_only_the_command_line_prints_prompts_and_exits(path):
    if "cli" in path.parts or path.name == "progress.py":  # a notebook keeps what is printed
        return
    named = {name for name, _ in calls(path)}
    assert not named & {"print", "input", "sys.exit", "exit", "quit", "os._exit"}


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == cifarlab.__version__
    assert f"[{cifarlab.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [
        name for extra in project["optional-dependencies"].values() for name in extra
    ]
    pinned = re.findall(r"^([\w.-]+)==[\w.]+$", (ROOT / "constraints.txt").read_text(), flags=re.M)
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in asked}
    assert names - {project["name"]} <= {name.replace("_", "-") for name in pinned}


def test_the_licence_is_there():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS" in text


def test_the_tables_of_results_are_what_the_records_say():
    command = [sys.executable, str(ROOT / "scripts" / "results_table.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
