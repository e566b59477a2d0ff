"""The config is typed and closed, says in one line what is wrong with it, and can be written down and read again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from nas.config import Config, SpaceConfig, TowersConfig, assign, explained, make, read, resume
from nas.errors import ConfigError

SECTIONS = {
    key: kind
    for key, field in Config.model_fields.items()
    if isinstance(kind := field.annotation, type) and issubclass(kind, BaseModel)
}
CLOSED = {key: kind for key, kind in SECTIONS.items() if kind is not SpaceConfig}


def refused(table: dict[str, Any]) -> str:
    """The one line with which a config is refused."""
    with pytest.raises(ConfigError) as caught:
        make(table)
    return one_line(caught.value)


def refused_file(path: Path | None, *assignments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, assignments)
    return one_line(caught.value)


def one_line(error: Exception) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------- closed


@pytest.mark.parametrize("section", CLOSED)
def test_an_unknown_key_of_a_section_is_refused_and_the_valid_ones_are_named(section: str) -> None:
    message = refused({section: {"epocks": 3}})
    assert f"unknown key '{section}.epocks'" in message
    for key in CLOSED[section].model_fields:
        assert key in message.partition("(valid: ")[2]


def test_an_unknown_section_is_refused_and_the_valid_ones_are_named() -> None:
    message = refused({"serch": {"trials": 3}})
    assert "'serch'" in message
    for key in SECTIONS:
        assert key in message.partition("(valid: ")[2]


def test_keys_of_the_space_are_left_to_the_space() -> None:
    assert make({"space": {"name": "mine", "depth": 3}}).space.settings == {"depth": 3}


IMPOSSIBLE: list[tuple[dict[str, Any], str, str]] = [
    ({"seed": -1}, "seed", "-1"),
    ({"seed": 2**31}, "seed", str(2**31)),
    ({"seed": "now"}, "seed", "now"),
    ({"space": {"name": 3}}, "space.name", "3"),
    ({"space": "inception"}, "space", "inception"),
    ({"data": {"validation": 1.0}}, "data.validation", "1.0"),
    ({"data": {"validation": 0}}, "data.validation", "0"),
    ({"data": {"max_validation": 0}}, "data.max_validation", "0"),
    ({"towers": {"placement": "midle"}}, "towers.placement", "midle"),
    ({"towers": {"placement": [-1]}}, "towers.placement", "-1"),
    ({"towers": {"placement": "every:0"}}, "towers.placement", "every:0"),
    ({"towers": {"kind": "heavy"}}, "towers.kind", "heavy"),
    ({"towers": {"weight": [0.3, -0.3]}}, "towers.weight", "-0.3"),
    ({"towers": {"schedule": "off:1.5"}}, "towers.schedule", "off:1.5"),
    ({"towers": {"reach": "relay:0"}}, "towers.reach", "relay:0"),
    ({"towers": {"reach": "relay"}}, "towers.reach", "relay"),
    ({"towers": {"labels": "nowhere.json"}}, "towers.labels", "nowhere.json"),
    ({"towers": {"placement": [1, "two"]}}, "towers.placement", "two"),
    ({"towers": {"kind": "heavy"}}, "towers.kind", "heavy"),
    ({"towers": {"weight": -0.3}}, "towers.weight", "-0.3"),
    ({"towers": {"weight": float("nan")}}, "towers.weight", "nan"),
    ({"towers": {"schedule": "step"}}, "towers.schedule", "step"),
    ({"proxy": {"epochs": 0}}, "proxy.epochs", "0"),
    ({"proxy": {"epochs": 1.5}}, "proxy.epochs", "1.5"),
    ({"proxy": {"learning_rate": float("inf")}}, "proxy.learning_rate", "inf"),
    ({"proxy": {"optimizer": "adam"}}, "proxy.optimizer", "adam"),
    ({"proxy": {"augment": ["flop"]}}, "proxy.augment", "flop"),
    ({"proxy": {"momentum": 1.0}}, "proxy.momentum", "1.0"),
    ({"proxy": {"precision": "float16"}}, "proxy.precision", "float16"),
    ({"retrain": {"seeds": 0}}, "retrain.seeds", "0"),
    ({"retrain": {"ema": 1}}, "retrain.ema", "1"),
    ({"search": {"trials": 0}}, "search.trials", "0"),
    ({"search": {"time": -1}}, "search.time", "-1"),
    ({"search": {"time": "soon"}}, "search.time", "soon"),
    ({"search": {"sampler": "cma"}}, "search.sampler", "cma"),
    ({"search": {"objectives": []}}, "search.objectives", "[]"),
    ({"search": {"objectives": ["loss", "speed"]}}, "search.objectives", "speed"),
    ({"search": {"objectives": ["loss", "loss"]}}, "search.objectives", "loss, loss"),
    ({"search": {"objectives": ["params", "loss"]}}, "search.objectives", "params"),
    ({"search": {"max_params": -5}}, "search.max_params", "-5"),
    ({"search": {"share": 1}}, "search.share", "1"),
    ({"executor": {"kind": "dask"}}, "executor.kind", "dask"),
    ({"executor": {"gpus": -0.5}}, "executor.gpus", "-0.5"),
    ({"export": {"opset": 9}}, "export.opset", "9"),
]


@pytest.mark.parametrize(("table", "key", "value"), IMPOSSIBLE, ids=lambda part: part if isinstance(part, str) else "")
def test_an_impossible_value_is_refused_with_its_key_and_what_came(table: dict[str, Any], key: str, value: str) -> None:
    message = refused(table)
    assert message.startswith(key)
    assert value in message.removeprefix(key)


@pytest.mark.parametrize(
    ("table", "valid"),
    [
        (
            {"towers": {"placement": "midle"}},
            ("auto", "middle", "thirds", "two-thirds", "stages", "every:k", "none", "cell numbers"),
        ),
        ({"search": {"objectives": ["speed"]}}, ("loss", "accuracy", "params", "flops", "latency")),
        ({"search": {"time": "soon"}}, ("90s", "30m", "1.5h")),
        ({"seed": 2**31}, ("less than 2147483648",)),
    ],
)
def test_the_message_says_what_would_be_valid(table: dict[str, Any], valid: tuple[str, ...]) -> None:
    message = refused(table)
    assert all(word in message for word in valid)


def test_a_config_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.towers.weight = 1.0  # type: ignore[misc]


# ------------------------------------------------------------------------------------ durations and names


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [(90, 90), (0.5, 0.5), ("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 2 h ", 7200), ("0.5s", 0.5)],
)
def test_durations(given_: object, seconds: float) -> None:
    assert make({"search": {"time": given_}}).search.time == seconds


@pytest.mark.parametrize("given_", ["", "h", "1.5 days", "-3m", "1h30m", "0", "0m", "1e3", "inf", "m30", 0, [90]])
def test_what_is_no_duration_is_refused(given_: object) -> None:
    assert refused({"search": {"time": given_}}).startswith("search.time")


@pytest.mark.parametrize("name", ["demo", "demo-2", "a.b_c", "7", "größe"])
def test_names_of_experiments(name: str) -> None:
    config = make({"name": name, "results": "out"})
    assert config.experiment == name
    assert config.folder == Path("out") / name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "../a", "a b", "a\n", "a\\b"])
def test_a_name_that_is_no_folder_of_results_is_refused(name: str) -> None:
    assert refused({"name": name}).startswith("name")


@pytest.mark.parametrize(
    ("space", "data", "name"),
    [
        ("inception", "digits", "inception-digits"),
        ("spaces/mine.py:Plain", "some/where/cats.npz", "Plain-cats"),
        ("inception", "photos/", "inception-photos"),
        ("inception", "my photos (1)/", "inception-my-photos-1-"),
    ],
)
def test_an_experiment_without_a_name_is_named_after_space_and_data(space: str, data: str, name: str) -> None:
    assert make({"space": {"name": space}, "data": {"name": data}}).experiment == name
    assert make({"name": name}).experiment == name  # as it is read again later


def test_the_database_lies_in_the_folder_unless_another_is_given(tmp_path: Path) -> None:
    config = make({"name": "demo", "results": str(tmp_path)})
    assert config.database == f"sqlite:///{tmp_path / 'demo' / 'study.db'}"
    assert make({"storage": "postgresql://host/db"}).database == "postgresql://host/db"


# ------------------------------------------------------------------------------------- file and assignments


def test_a_missing_file_is_named() -> None:
    assert "no/such.toml" in refused_file(Path("no/such.toml"))


def test_a_folder_is_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(tmp_path) in refused_file(tmp_path)
    (tmp_path / "darts").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read(Path("darts")).experiment == "darts-digits"  # a system's name, whatever folder lies beside


@pytest.mark.parametrize("content", [b"seed = ", b"[search\n", b"seed = 1\nseed = 2\n", b"name = '\xff'"])
def test_what_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    message = refused_file(file)
    assert str(file) in message
    assert "not TOML" in message


def test_assignments_override_the_file_and_sections_override_both(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("seed = 1\n[search]\ntrials = 5\nsampler = 'random'\n")
    config = read(file, ["search.trials=6", "seed=2", "search.trials=7"], **{"seed": 3, "search.sampler": None})
    assert (config.seed, config.search.trials, config.search.sampler) == (3, 7, "random")


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("search.time=30m", "time", 1800),
        ("search.time = 90", "time", 90),
        ("search.sampler=random", "sampler", "random"),
        ("search.sampler='random'", "sampler", "random"),
        ("search.objectives=['loss', 'flops']", "objectives", ("loss", "flops")),
        ("search.max_params=1_000_000", "max_params", 1_000_000),
        ("search.warm_start=[]", "warm_start", ()),
    ],
)
def test_values_of_assignments_are_toml_or_else_text(assignment: str, key: str, value: object) -> None:
    assert getattr(read(None, [assignment]).search, key) == value


@pytest.mark.parametrize("assignment", ["search.trials", "=3", " = 3", ""])
def test_an_assignment_without_key_or_value_is_refused(assignment: str) -> None:
    assert repr(assignment) in refused_file(None, assignment)


def test_an_assignment_cannot_reach_into_a_value() -> None:
    assert "'seed' is not a section" in refused_file(None, "seed=3", "seed.x=3")


def test_an_assignment_to_an_unknown_key_names_the_valid_ones() -> None:
    message = refused_file(None, "search.trails=3")
    assert "'search.trails'" in message
    assert "trials" in message


def test_assign_leaves_its_siblings() -> None:
    table: dict[str, Any] = {"a": {"b": 1}}
    assign(table, "a.c", 2)
    assert table == {"a": {"b": 1, "c": 2}}


# --------------------------------------------------------------------------------------------- explained


def test_every_key_is_explained() -> None:
    lines = explained(Config()).splitlines()
    sections: dict[str, type[BaseModel]] = {"": Config, **SECTIONS}
    for section, kind in sections.items():
        start = lines.index(next(line for line in lines if line.startswith(f"[{section}]"))) if section else -1
        own = lines[start + 1 :]
        own = own[: next((i for i, line in enumerate(own) if line.startswith("[")), None)]
        for key, field in kind.model_fields.items():
            if key not in SECTIONS:
                assert field.description, f"{section}.{key}"
                (line,) = [line for line in own if line.removeprefix("# ").startswith(f"{key} =")]
                assert line.endswith(f"  # {field.description}"), line


def test_a_key_that_may_be_unset_is_unset_by_default() -> None:
    """TOML has no null: were the default something else, nobody could ask for "unset" in a file."""
    kinds: list[type[BaseModel]] = [Config, *SECTIONS.values()]
    for kind in kinds:
        for key, field in kind.model_fields.items():
            if type(None) in getattr(field.annotation, "__args__", ()):
                assert field.default is None, f"{kind.__name__}.{key}"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,8}", fullmatch=True)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
above_zero = st.floats(0, exclude_min=True, allow_infinity=False)
counts = st.integers(1, 10**9)
recipe = {
    "epochs": counts,
    "images": counts,
    "optimizer": st.sampled_from(["sgd", "adamw"]),
    "learning_rate": above_zero,
    "augment": st.lists(st.sampled_from(["crop", "flip", "cutout"])),
    "warmup": shares,
}
setting = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
configs = st.fixed_dictionaries(
    {},
    optional={
        "name": names,
        "seed": st.integers(0, 2**31 - 1),
        "results": texts.filter(lambda text: "\0" not in text),
        "storage": texts,
        "space": st.dictionaries(texts.filter(lambda key: key != "name"), setting, max_size=3).flatmap(
            lambda extra: texts.map(lambda name: {**extra, "name": name})
        ),
        "data": st.fixed_dictionaries({}, optional={"name": texts, "validation": shares, "size": counts}),
        "towers": st.fixed_dictionaries(
            {},
            optional={
                "placement": st.sampled_from(["auto", "middle", "thirds", "none"]) | st.lists(st.integers(0, 99)),
                "weight": st.floats(0, allow_infinity=False),
            },
        ),
        "proxy": st.fixed_dictionaries({}, optional=recipe),
        "retrain": st.fixed_dictionaries({}, optional={**recipe, "towers": st.booleans(), "seeds": counts}),
        "search": st.fixed_dictionaries(
            {},
            optional={
                "trials": counts,
                "time": above_zero,
                "objectives": st.sampled_from([["loss"], ["accuracy", "flops"], ["loss", "params", "latency"]]),
                "warm_start": st.lists(texts, max_size=2),
                "max_latency": above_zero,
                "max_memory": counts,
            },
        ),
    },
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(table=configs)
def test_what_is_explained_reads_as_an_equal_config(table: dict[str, Any]) -> None:
    config = make(table)
    assert make(tomllib.loads(explained(config))) == config


def test_what_is_written_to_a_file_reads_as_an_equal_config(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    space = {"widths": [8, 16], "limit": float("inf"), "a key": {"and one": [float("-inf"), 1e-9]}}
    config = make({"data": {"name": "Fotos für 😀"}, "towers": {"placement": [2, 5]}, "space": space})
    file.write_text(explained(config), encoding="utf-8")
    assert read(file) == config
    assert config.towers == TowersConfig(placement=(2, 5))


def test_with_its_settings_a_space_is_explained_too() -> None:
    import search_spaces

    space = search_spaces.load("inception", {"widths": [16, 24], "five_kinds": ["5x5"], "tied": False})
    config = make({"space": {"name": "inception", "widths": [16, 24]}})
    text = explained(config, space.settings)
    for key, field in type(space.settings).model_fields.items():
        assert any(line.startswith(f"{key} = ") and str(field.description) in line for line in text.splitlines()), key
    again = make(tomllib.loads(text)).space
    assert search_spaces.load(again.name, again.settings).settings == space.settings


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ({"search.time": "5m"}, (None, 300)),
        ({"search.trials": 9}, (9, None)),
        ({"search.trials": 9, "search.time": "5m"}, (9, 300)),
        ({}, (30, None)),
    ],
)
def test_a_new_time_is_not_ended_by_an_earlier_number_of_trials(
    tmp_path: Path, given: dict[str, Any], ends: tuple[Any, Any]
) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "config.toml").write_text('name = "again"\n[search]\ntrials = 30\n')
    search = resume(None, name="again", results=str(tmp_path), **given).search
    assert (search.trials, search.time) == ends
    by_assignment = [f"{key}={value}" for key, value in given.items()]
    search = resume(None, by_assignment, name="again", results=str(tmp_path)).search
    assert (search.trials, search.time) == ends
