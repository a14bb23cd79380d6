"""The Dockerfile: its stages, what they copy, and the command that a container starts with."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from codetr_cli.cli import VERBS
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Instructions and their arguments, without comments, lines joined."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, words in instructions():
        if name == "FROM":
            image, _, stage = words.split()
            found[stage] = [(name, image)]
        elif found:
            found[stage].append((name, words))
    return found


def lineage(stage: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of those it begins with."""
    own = stages()[stage]
    parent = own[0][1]
    return [*(lineage(parent) if parent in stages() else []), *own]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target(target):
    steps = lineage(target)
    users = [words for name, words in steps if name == "USER"]
    assert users == ["10001"]
    assert steps[-1][0] == "USER"
    assert ("COPY", "--from=packages /opt/codetr /opt/codetr") in steps
    assert [words for name, words in steps if name == "ENTRYPOINT"] == ['["codetr"]']
    (health,) = [words for name, words in steps if name == "HEALTHCHECK"]
    assert "127.0.0.1:8000/healthz" in health
    assert not [words for name, words in steps if name == "RUN" and "pip" in words]  # its cache is in no layer
    labels = " ".join(words for name, words in steps if name == "LABEL")
    for label in ("title", "description", "licenses", "version"):
        assert f"org.opencontainers.image.{label}=" in labels
    environment = " ".join(words for name, words in steps if name == "ENV")
    assert ("NVIDIA_VISIBLE_DEVICES" in environment) == (target == "cuda")


def test_the_health_check_is_python():
    (health,) = [words for name, words in lineage("cpu") if name == "HEALTHCHECK"]
    program, flag, code = json.loads(health.partition("CMD ")[2])
    assert (program, flag) == ("python", "-c")
    compile(code, "Dockerfile", "exec")


def test_without_a_target_the_image_is_for_a_cpu():
    assert list(stages())[-1] == "cpu"


def test_base_images_have_a_tag():
    (default,) = [words.partition("=")[2] for name, words in instructions() if words.startswith("PYTHON_IMAGE=")]
    image, _, tag = default.partition(":")
    assert image
    assert re.fullmatch(r"\d+\.\d+.*", tag)


def test_no_address_is_named():
    assert not re.search(r"https?://(?!127\.0\.0\.1)", TEXT)
    for name, words in instructions():
        assert name != "RUN" or "pip" not in words or "--no-cache-dir" in words
        assert "apt-get install" not in words or "rm -rf /var/lib/apt/lists/*" in words


def test_what_is_copied_is_there_and_not_ignored(tmp_path):
    (ignored, kept) = ignore_rules()
    assert ignored == {"*"}
    copied = {source for name, words in stages()["wheel"] if name == "COPY" for source in shlex.split(words)[:-1]}
    assert copied == kept
    for source in copied:
        assert (REPOSITORY / source).exists(), source


def ignore_rules() -> tuple[set[str], set[str]]:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    return {rules[0]}, {rule[1:] for rule in rules if rule.startswith("!")}


def test_the_default_command_is_one(codetr):
    (command,) = [json.loads(words) for name, words in lineage("cpu") if name == "CMD"]
    verb, place, *options = command
    assert place == "/model"
    assert verb in VERBS
    help_text = codetr(verb, "--help").out
    assert all(option in help_text for option in options if option.startswith("--"))
    assert options[options.index("--host") + 1] == "0.0.0.0"


def test_the_section_of_the_page():
    text = (REPOSITORY / "docs/serving.md").read_text(encoding="utf-8").partition("## In a container\n")[2]
    arguments = {words.split("=")[0] for name, words in instructions() if name == "ARG"}
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", text, flags=re.MULTILINE)) == arguments
    (target,) = re.findall(r"docker build --target (\w+)", text)
    assert {target, "cpu"} <= set(stages())
    assert re.search(r"-v \S+:/model:ro", text)


@pytest.mark.slow
def test_the_wheel_is_built_from_what_is_copied(tmp_path: Path):
    """The steps of the stage `wheel` by hand: nothing else of the repository is needed."""
    context = tmp_path / "source"
    context.mkdir()
    for source in ignore_rules()[1]:
        path = REPOSITORY / source
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, context / source)
    words = ["pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path / "wheels"), "."]
    subprocess.run([shutil.which("python3") or "python3", "-m", *words], cwd=context, check=True, capture_output=True)
    assert len(list((tmp_path / "wheels").glob("codetr_cli-*.whl"))) == 1


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_lint():
    done = subprocess.run(["hadolint", str(REPOSITORY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
