"""The catalogue: which file serves an id, what is refused, and what breaks without harm to the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from valetkey.config import Paths
from valetkey.errors import BuiltInProvider, ConfigError, InvalidProvider, UnknownProvider
from valetkey.providers import Catalogue, catalogue

DECLARATION = """\
id = "{id}"
name = "Acme"
aliases = ["{id}-alias"]
{more}

[api]
base_url = "https://api.acme.example/v1"
dialect = "openai-chat"
hosts = ["api.acme.example"]
probe = {{ get = "/models" }}

[[auth]]
id = "api-key"
kind = "api-key"
inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
"""


@pytest.fixture
def paths(home: Path) -> Paths:
    (home / "providers").mkdir()
    return Paths(home=home)


def put(folder: Path, name: str, more: str = "", text: str | None = None) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(DECLARATION.format(id=name, more=more) if text is None else text)
    return path


def plugin(site: Path, monkeypatch: pytest.MonkeyPatch, target: str, code: str = "") -> Path:
    """Install a package that ships declarations; gives its folder."""
    package = site / "acme_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    about = site / "acme_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[valetkey.providers]\nacme = {target}\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(__import__("sys").modules, "acme_plugin", raising=False)
    return package


def test_a_user_s_file_serves_its_id_and_its_alias(paths: Paths) -> None:
    put(paths.providers, "acme")
    found = catalogue(paths)
    assert found.get("acme").origin == "user"
    assert found.get("acme-alias") == found.get("acme")
    assert [p.id for p in found.custom()] == ["acme"]
    assert "acme" in found.ids()
    assert found.problems == []


def test_an_alias_of_a_built_in_provider_serves(paths: Paths) -> None:
    assert catalogue(paths).get("gemini").id == "google"


def test_an_alias_of_a_built_in_provider_is_not_given_away(paths: Paths) -> None:
    text = DECLARATION.format(id="aaa", more="").replace("aaa-alias", "gemini")
    put(paths.providers, "aaa", text=text)
    found = catalogue(paths)
    assert found.get("gemini").id == "google"
    assert found.get("aaa").id == "aaa"
    (problem,) = found.problems
    assert "gemini" in problem.error.message
    assert "google" in problem.error.message


def test_a_plugin_whose_id_takes_an_alias_is_named(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(plugin(tmp_path / "site", monkeypatch, "acme_plugin"), "gemini")
    (problem,) = catalogue(paths).problems
    assert "which leads to gemini" in problem.error.message


def test_an_id_of_the_user_s_own_may_be_an_alias_of_a_built_in_provider(paths: Paths) -> None:
    put(paths.providers, "gemini")
    found = catalogue(paths)
    assert found.get("gemini").origin == "user"
    assert found.problems == []


def test_reading_one_provider_reads_one_file(paths: Paths) -> None:
    put(paths.providers, "broken", text="id =")
    assert catalogue(paths).get("anthropic").id == "anthropic"


def test_an_unknown_name_is_answered_with_the_nearest(paths: Paths) -> None:
    with pytest.raises(UnknownProvider) as caught:
        catalogue(paths).get("antropic")
    assert "anthropic" in caught.value.hint
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["", "..", "../anthropic", "a/b", "a\0b", "x" * 10_000, "Anthropic\n"])
def test_a_name_that_is_no_id_is_unknown(paths: Paths, name: str) -> None:
    with pytest.raises(UnknownProvider) as caught:
        catalogue(paths).get(name)
    assert len(str(caught.value)) < 400


def test_a_broken_file_disables_only_itself(paths: Paths) -> None:
    path = put(paths.providers, "broken", text="id =")
    put(paths.providers, "acme")
    found = catalogue(paths)
    assert [p.id for p in found.custom()] == ["acme"]
    assert "anthropic" in [p.id for p in found.all()]
    with pytest.raises(InvalidProvider):
        found.get("broken")
    assert [(p.path, type(p.error)) for p in found.problems] == [(str(path), InvalidProvider)]


def test_a_built_in_id_is_not_given_away(paths: Paths) -> None:
    path = put(paths.providers, "openai")
    found = catalogue(paths)
    assert found.get("openai").origin == "built-in"
    assert [(p.path, type(p.error)) for p in found.problems] == [(str(path), BuiltInProvider)]
    assert found.custom() == []


def test_a_built_in_id_is_given_away_where_the_file_says_so(paths: Paths) -> None:
    put(paths.providers, "openai", "override = true")
    found = catalogue(paths)
    assert found.get("openai").override
    assert found.get("openai").origin == "user"
    assert [p.id for p in found.custom()] == ["openai"]
    assert found.problems == []


def test_a_broken_override_does_not_fall_back_to_the_provider_s_own_hosts(paths: Paths) -> None:
    put(paths.providers, "openai", "override = true\nnonsense = 1")
    with pytest.raises(InvalidProvider):
        catalogue(paths).get("openai")


def test_files_that_are_no_toml_are_not_looked_at(paths: Paths) -> None:
    (paths.providers / "README.md").write_text("hello")
    (paths.providers / ".acme.toml.1a2b").write_text("half")
    assert catalogue(paths).problems == []


def test_without_a_home_there_are_the_built_in_ones(tmp_path: Path) -> None:
    found = catalogue(Paths(home=tmp_path / "nowhere"))
    assert found.ids() == found.built_in()


def test_a_home_that_is_a_file_holds_no_providers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert catalogue(Paths(home=tmp_path / "file")).ids()


def test_a_client_id_of_one_s_own_takes_the_place_of_the_declared_one(paths: Paths) -> None:
    paths.config.write_text('[providers.github]\nclient_id = "Iv1.mine"\n')
    other = catalogue(paths).get("xai").method("device")
    assert other is not None
    assert other.client_id
    assert other.client_id != "Iv1.mine"
    device = catalogue(paths).get("github").method("device")
    token = catalogue(paths).get("github").method("token")
    assert device is not None
    assert token is not None
    assert (device.client_id, token.client_id) == ("Iv1.mine", None)


def test_a_broken_config_is_named_and_not_passed_over(paths: Paths) -> None:
    paths.config.write_text("[providers")
    with pytest.raises(ConfigError):
        catalogue(paths).get("github")


TARGETS = [
    ("acme_plugin", ""),
    ("acme_plugin:FOLDER", "from pathlib import Path\nFOLDER = Path(__file__).parent\n"),
    ("acme_plugin:FILES", "from pathlib import Path\nFILES = [str(Path(__file__).parent / 'acme.toml')]\n"),
    ("acme_plugin:files", "from pathlib import Path\ndef files():\n    return Path(__file__).parent\n"),
]


@pytest.mark.parametrize(("target", "code"), TARGETS)
def test_a_plugin_ships_declarations(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, code: str
) -> None:
    put(plugin(tmp_path / "site", monkeypatch, target, code), "acme")
    found = catalogue(paths)
    assert found.get("acme").origin == "plugin"
    assert "acme" in found.ids()
    assert found.custom() == []


@pytest.mark.parametrize("code", ["raise RuntimeError('no')", "import nothing_there", "FILES = 3"])
def test_a_plugin_that_fails_disables_only_itself(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    plugin(tmp_path / "site", monkeypatch, "acme_plugin:FILES", code)
    found = catalogue(paths)
    assert found.get("anthropic")
    assert [p.path for p in found.problems] == ["acme_plugin:FILES"]
    assert "acme" in str(found.problems[0].error)


def test_a_plugin_may_not_take_a_built_in_id(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(plugin(tmp_path / "site", monkeypatch, "acme_plugin"), "openai")
    found = catalogue(paths)
    assert found.get("openai").origin == "built-in"
    assert [p.path for p in found.problems] == [str(path)]


def test_the_user_s_file_goes_before_a_plugin_s(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = put(plugin(tmp_path / "site", monkeypatch, "acme_plugin"), "acme")
    put(paths.providers, "acme")
    found = catalogue(paths)
    assert found.get("acme").origin == "user"
    assert [p.path for p in found.problems] == [str(shipped)]


def test_what_was_read_is_kept_until_it_is_forgotten(paths: Paths) -> None:
    found: Catalogue = catalogue(paths)
    path = put(paths.providers, "acme")
    first = found.get("acme")
    path.write_text(path.read_text().replace('"Acme"', '"Other"'))
    assert found.get("acme") is first
    found.forget("acme")
    assert found.get("acme").name == "Other"
