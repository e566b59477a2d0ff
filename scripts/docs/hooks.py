"""Pages of the documentation that MkDocs does not find in docs/: generated from the code, or copied from results/.

* reference/config.md: every key of the config, from its schema.
* reference/commands.md: every command and option, from the typer app.
* reference/modules.md: every module, from its docstring.
* results/NAME/: the READMEs and plots of results/reference/.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

import search_spaces
from nas.cli import app
from nas.config import Config

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("nas", "search_spaces")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs calls this once it has read docs/; adds the other pages."""
    pages = {"config": config_page, "commands": commands_page, "modules": modules_page}
    for name, page in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    reference = ROOT / "results" / "reference"
    for path in sorted([*reference.glob("*/README.md"), *reference.glob("*/*.svg")]):
        uri = f"results/{path.relative_to(reference).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def config_page() -> str:
    """Every key of the config, in a table per section, then the settings of each search space."""
    defaults = {key: getattr(Config(), key) for key in Config.model_fields}
    sections = {key: type(value) for key, value in defaults.items() if isinstance(value, BaseModel)}
    scalars = {key: field for key, field in Config.model_fields.items() if key not in sections}
    lines = [
        "# Config",
        "",
        "One TOML file configures everything. `nas config` prints the whole file with these explanations. Each key can "
        "also be set on the command line: `--set section.key=value`. This page is generated from the schema.",
        "",
        "## Top level",
        "",
        *_table(Config, scalars),
    ]
    for name, section in sections.items():
        lines += ["", f"## [{name}] {{#{name}}}", "", _first_paragraph(section.__doc__), "", *_table(section)]
    lines += ["", "## Settings of the search spaces", "", "These keys stand in `[space]` beside `name`."]
    for name in search_spaces.available():
        settings = search_spaces.load(name).settings_type
        lines += ["", f"### {name} {{#space-{name}}}", "", _first_paragraph(search_spaces.available()[name])]
        lines += ["", *_table(settings)]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Every command, with its arguments and options."""
    lines = [
        "# Commands",
        "",
        "`nas COMMAND --help` prints the same. Exit codes: 0 success, 1 a job failed, 2 bad input, 130 Ctrl-C. "
        "This page is generated from the program.",
    ]
    for words, command in _commands(typer.main.get_command(app), ()):
        lines += ["", f"## {' '.join(words)}", "", *_paragraphs(command.help or "")]
        rows = [_parameter(one) for one in command.params if one.name != "help"]
        if rows:
            lines += ["", "| argument or option | default | explanation |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def modules_page() -> str:
    """The first line of the docstring of each module."""
    lines = ["# Modules", "", "What each module is for: the first line of its docstring. This page is generated."]
    for package in PACKAGES:
        lines += ["", f"## {package}", "", "| module | purpose |", "|---|---|"]
        for path in sorted((ROOT / package).rglob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            lines.append(f"| `{name}` | {_cell(_first_paragraph(text))} |")
    return "\n".join(lines) + "\n"


def _table(section: type[BaseModel], keys: Mapping[str, Any] | None = None) -> list[str]:
    schema = section.model_json_schema()
    defaults = section().model_dump(mode="json")
    lines = ["| key | default | values | explanation |", "|---|---|---|---|"]
    for key, field in (section.model_fields if keys is None else keys).items():
        default = "unset" if defaults[key] is None else f"`{json.dumps(defaults[key], ensure_ascii=False)}`"
        values = _values(schema["properties"][key], schema.get("$defs", {}))
        lines.append(f"| `{key}` | {_cell(default)} | {_cell(values)} | {_cell(field.description or '')} |")
    return lines


def _values(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words: ``integer, at least 1``."""
    if "$ref" in schema:
        return _values(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        kinds = dict.fromkeys(_values(one, defs) for one in schema["anyOf"] if one.get("type") != "null")
        return ", or ".join(kinds) if len(kinds) < 3 else "see the explanation"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        parts = schema.get("prefixItems") or [schema.get("items", {})]
        many = "pair of" if len(schema.get("prefixItems", ())) == 2 else "list of"
        return f"{many} {' and '.join(dict.fromkeys(_values(one, defs) for one in parts))}"
    kind = str(schema.get("type", "any"))
    words = {"boolean": "`true`, `false`", "string": "text"}
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]:,}" for name, sign in limits.items() if name in schema]
    return " ".join([words.get(kind, kind), " and ".join(bounds)]).strip()


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands below a group, with their words; groups themselves hold nothing to describe."""
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, inner in command.commands.items():
        yield from _commands(inner, (*(words or ("nas",)), name))


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.name.upper()}`"
    else:
        name = ", ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    unset = default is None or default is False or default == ()
    shown = "required" if parameter.required else "" if unset else f"`{getattr(default, 'value', default)}`"
    return f"| {name} | {shown} | {_cell(parameter.help or '')} |"


def _paragraphs(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`").replace("<", "&lt;")
