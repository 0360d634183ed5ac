"""Profiles: those that come with rumpun, mistakes in them, and the commented TOML that is written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import UserError
from launch.slurm.clusters.profile import CLUSTERS, ClusterProfile, load_profile, profile_lines, profiles


@pytest.mark.parametrize("path", profiles(), ids=lambda path: path.stem)
def test_a_profile_of_ours_loads_and_says_why(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile.name == path.stem and profile.about
    assert path.read_text().count("#") > 5
    assert load_profile(str(path)) == profile


def test_no_profile_is_the_clusters_defaults() -> None:
    profile = load_profile(None)
    assert profile.name == "default"
    unset = {name: value for name, value in profile.model_dump().items() if value}
    assert unset == {"name": "default", "container": "none", "route": "requeue"}


def write(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


MISTAKES = [
    ("partitoin = 'x'", "unknown key", "did you mean 'partition'?"),
    ("zzz = 1", "unknown key", "valid: name"),
    ("gpus_per_node = '8'", "gpus_per_node", "integer"),
    ("gpus_per_node = -1", "gpus_per_node", "greater than or equal to 0"),
    ("partition = \"a\\n#SBATCH --wrap=x\"", "partition", "line break"),
    ("modules = [\"cuda\\nrm -rf\"]", "modules", "line break"),
    ("environment = { \"A;B\" = \"1\" }", "environment", "pattern"),
    ("environment = { A = \"1\\n2\" }", "environment", "line break"),
    ("interface = \"eth0; rm\"", "interface", "pattern"),
    ("route = 'again'", "route", "'requeue', 'successor' or 'array'"),
    ("container = 'apptainer'", "container", "container_image"),
    ("name = 'a/b'", "name", "pattern"),
    ("partition = ", "not valid TOML", "mend"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "where", "what"), MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, where: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        load_profile(write(tmp_path, text))
    assert "mine.toml" in str(caught.value) and where in str(caught.value) and what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="did you mean 'testbench'") as caught:
        load_profile("testbensh")
    for path in profiles():
        assert path.stem in caught.value.fix
    with pytest.raises(UserError, match="no such profile"):
        load_profile("no/such/file.toml")


line = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=30)
some = st.one_of(st.none(), line)


@given(
    st.builds(
        ClusterProfile,
        name=st.from_regex(r"[a-z][a-z0-9._-]{0,10}", fullmatch=True),
        about=line,
        partition=some,
        account=some,
        constraint=some,
        gpus_per_node=st.integers(0, 16),
        cpus_per_node=st.one_of(st.none(), st.integers(1, 999)),
        modules=st.lists(line, max_size=3),
        environment=st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), line, max_size=3),
        scratch=some,
        grace_s=st.one_of(st.none(), st.integers(0, 999)),
        route=st.sampled_from(["requeue", "successor", "array"]),
        exclude=st.lists(line, max_size=3),
        facts=st.dictionaries(st.sampled_from(["partition", "grace_s", "route"]), line, max_size=3),
    )
)
def test_what_is_written_is_read_back(profile: ClusterProfile) -> None:
    text = "\n".join(profile_lines(profile, notes={"interface": "how to find it"}))
    assert ClusterProfile(**tomllib.loads(text)) == profile
    assert "# how to find it" in text


def test_every_field_is_explained_and_every_fact_stands_beside_its_value() -> None:
    profile = ClusterProfile(name="x", grace_s=30, facts={"grace_s": "scontrol show partition p: GraceTime=30"})
    text = "\n".join(profile_lines(profile))
    for name, field in ClusterProfile.model_fields.items():
        assert field.description, name
    above = text[: text.index("grace_s = 30")].splitlines()
    assert above[-1] == "# From scontrol show partition p: GraceTime=30"
    assert CLUSTERS.name == "clusters"
