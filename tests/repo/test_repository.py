"""What a visitor relies on: commands that exist, light commands that stay light, pinned requirements."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "mlflow", "pyarrow", "confluent_kafka", "pydantic", "numpy", "numba", "rich")
MAKE_TARGETS = ("setup", "demo", "test", "test-faults", "test-long", "ui", "lint", "bench")
COMMANDS = ("run", "demo", "broker", "replay", "backtest", "verify", "ledger", "status", "doctor", "config")


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = (ROOT / name for name in listing.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def modules_after(statement: str) -> set[str]:
    body = f"try:\n    {statement}\nexcept SystemExit:\n    pass"
    code = f"import sys\n{body}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def main_with(*argv: str) -> str:
    return f"from pipeline.cli import main; main({list(argv)!r})"


def test_help_imports_nothing_heavy() -> None:
    assert modules_after(main_with("--help")).isdisjoint(HEAVY)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_it_imports_nothing_heavy(command: str) -> None:
    assert modules_after(main_with(command, "--help")).isdisjoint(HEAVY)


def test_config_needs_neither_torch_nor_mlflow() -> None:
    loaded = modules_after(main_with("config", "validate", "-c", "deploy/job.toml"))
    assert loaded.isdisjoint({"torch", "mlflow", "confluent_kafka"})


def test_status_needs_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    loaded = modules_after(
        "from pathlib import Path; from pipeline.cli.status import read_status\n"
        f"    try: read_status(Path({str(tmp_path)!r}), 0)\n    except Exception: pass"
    )
    assert "pipeline.store" in loaded
    assert loaded.isdisjoint({"torch", "mlflow", "confluent_kafka"})


def test_every_make_target_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(MAKE_TARGETS) <= set(targets)


def test_the_readme_names_only_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    for target in re.findall(r"(?:^|[`$&]\s*)make ([a-z-]+)", code, re.MULTILINE):
        assert target in MAKE_TARGETS, f"README: make {target}"
    for command in re.findall(r"(?:^|[`$&/]\s*)evertrain ([a-z]+)", code, re.MULTILINE):
        assert command in COMMANDS, f"README: evertrain {command}"
    for flag in set(re.findall(r"evertrain [a-z]+[^`\n]*?(--[a-z-]+)", code)):
        sources = "".join(path.read_text() for path in (ROOT / "pipeline" / "cli").glob("*.py"))
        assert f'"{flag}"' in sources, f"README: {flag}"


def test_ci_runs_what_the_readme_tells_a_visitor_to_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    targets = [line.removeprefix("make ") for line in lines if line.startswith("make ")]
    assert targets == ["lint", "test", "test-faults", "demo"]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_pinned_by_hash_and_name_no_host(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    header, *entries = re.split(r"\n(?=[a-z])", text)
    assert header.startswith("#")
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


def test_requirements_hold_every_dependency_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    for name, lines in (
        ("requirements.txt", project["dependencies"]),
        ("requirements-dev.txt", project["dependencies"] + extras),
    ):
        text = (ROOT / name).read_text()
        for line in lines:
            distribution = re.split(r"[^\w.-]", line)[0]
            assert f"\n{distribution}==" in text or f"\n{distribution}[" in text, f"{name}: {distribution}"


def test_dependencies_are_explained() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    for line in project["dependencies"] + extras:
        distribution = re.split(r"[^\w.-]", line)[0]
        assert f"| {distribution} |" in text, f"docs/dependencies.md: {distribution}"


def test_no_file_names_a_machine_or_a_package_index() -> None:
    index = r"(?:index-url|find-links)\s*=?\s*(?:http|/)"
    places = rf"/(?:home|root|Users|tmp)/[a-z]|{re.escape(str(ROOT))}/|{index}"
    for path in tracked_files():
        if path.suffix in (".png", ".jpg", ".gz", ".zip") or path == Path(__file__):
            continue
        match = re.search(places, path.read_text(errors="replace"))
        assert match is None, f"{path.relative_to(ROOT)}: {match[0] if match else ''}"


def test_compose_describes_kafka_mlflow_and_a_trainer_that_is_watched() -> None:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = document["services"]
    assert set(services) == {"kafka", "topics", "mlflow", "trainer"}
    for name, service in services.items():
        assert "image" in service or "build" in service, name
        assert set(service.get("depends_on", {})) <= set(services), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (ROOT / source).exists() if source.startswith(".") else source in document["volumes"]
            assert known, f"{name}: volume {source}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: port {port} is open to the network"
    assert services["trainer"]["healthcheck"]["test"][1:3] == ["evertrain", "status"]
    assert (ROOT / services["trainer"]["build"]["dockerfile"]).exists()
    assert re.search(r"^USER (?!root)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)


def test_compose_itself_accepts_the_file() -> None:
    compose = ["docker", "compose"]
    if (
        shutil.which("docker") is None
        or subprocess.run([*compose, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker compose is not installed")
    subprocess.run([*compose, "config", "-q"], cwd=ROOT, check=True)
