"""The README's snippets, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hub_server.server import HubServer

README = Path(__file__).parents[1] / "README.md"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
IN_DEFAULT_RUN = ("In ten lines", "Train with `Trainer`", "Analyze", "The energy itself")
VECTORS = "Embeddings, codebooks, hidden states"
OUTPUTS = "Energy of outputs"
SAY_WHAT_THEY_PRINT = ("In ten lines", VECTORS, f"{VECTORS} (again)")


def snippets(language: str) -> dict[str, str]:
    """The fenced blocks of a language, by the heading that they stand under."""
    found: dict[str, str] = {}
    for section in re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading = section.splitlines()[0]
        for code in re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL):
            found[heading if heading not in found else f"{heading} (again)"] = code
    return found


@pytest.fixture(scope="module")
def home_of_minilm(_hub_server: HubServer, minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for a Hub that has MiniLM's real weights under its real name."""
    _hub_server.organizations["sentence-transformers"] = {"alice"}
    home = tmp_path_factory.mktemp("home")
    upload = (
        "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo(sys.argv[1]); "
        "api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])"
    )
    _hub_server.run(["-c", upload, MINILM, str(minilm_path)], home)
    return home


def test_the_usages_are_there() -> None:
    """If this failed, the tests below would run on nothing."""
    assert list(snippets("python")) == [
        "In ten lines",
        "Train with `Trainer`",
        "Train with your own Accelerate loop",
        "What it costs",
        "Analyze",
        VECTORS,
        f"{VECTORS} (again)",
        OUTPUTS,
        f"{OUTPUTS} (again)",
        "The energy itself",
        "Adapters",
    ]


@pytest.mark.parametrize(
    "heading",
    [
        pytest.param(heading, marks=pytest.mark.slow if heading in IN_DEFAULT_RUN else pytest.mark.story)
        for heading in snippets("python")
        if not re.search("import evaluate|sentence_transformers import", snippets("python")[heading])
    ],
)
def test_python_snippet(heading: str, hub: HubServer, home_of_minilm: Path, tmp_path: Path) -> None:
    """If this failed, the first thing that a newcomer copies would not run."""
    script = tmp_path / "snippet.py"
    script.write_text(snippets("python")[heading], encoding="utf-8")
    result = hub.run([str(script)], home_of_minilm, cwd=tmp_path)
    if heading in SAY_WHAT_THEY_PRINT:
        assert result.stdout.splitlines() == re.findall(r"^# (.*)", snippets("python")[heading], flags=re.MULTILINE)
    if heading == "Train with `Trainer`":
        assert (tmp_path / "trained" / "model.safetensors").is_file()
        assert (tmp_path / "trained" / "mhe_config.json").is_file()
        assert "mhe_loss" in result.stdout
    if heading == "What it costs":
        printed = re.findall(r"MHE budget .*", result.stderr)
        assert len(printed) == 1
        quoted = re.search(r"`(MHE budget .*?): \.\.\.`", README.read_text(encoding="utf-8"))
        assert quoted is not None
        assert printed[0].startswith(f"{quoted[1]}: ")
    if heading == "Analyze":
        assert "encoder.layer.0.intermediate.dense" in result.stdout
        assert (tmp_path / "minilm.html").is_file()


@pytest.mark.slow
@pytest.mark.integrations
def test_snippet_for_evaluate(hub: HubServer, home_of_minilm: Path, tmp_path: Path) -> None:
    """If this failed, the measurement would not load as the README says."""
    pytest.importorskip("evaluate")
    test_python_snippet(f"{VECTORS} (again)", hub, home_of_minilm, tmp_path)


@pytest.mark.story
@pytest.mark.integrations
def test_snippet_for_sentence_transformers(hub: HubServer, home_of_minilm: Path, tmp_path: Path) -> None:
    """If this failed, the energy of sentence embeddings would not train, or not be logged, as the README says."""
    pytest.importorskip("sentence_transformers")
    script = tmp_path / "snippet.py"
    script.write_text(snippets("python")[f"{OUTPUTS} (again)"], encoding="utf-8")
    printed = hub.run([str(script)], home_of_minilm, cwd=tmp_path).stdout
    assert "'energy_loss': " in printed
    assert "'base_loss': " in printed


@pytest.mark.story
def test_shell_snippet(hub: HubServer, home_of_minilm: Path, tmp_path: Path) -> None:
    """If this failed, the README's command line would be wrong."""
    command = snippets("bash")["Analyze"].split()
    assert command[0] == "hf-mhe"
    arguments = [word.strip('"') for word in command[1:]]
    result = hub.run(["-m", "hf_mhe.cli", *arguments], home_of_minilm, cwd=tmp_path)
    assert "encoder.layer.0.intermediate.dense" in result.stdout
    assert (tmp_path / "minilm.html").is_file()


def test_setup_commands_are_what_ci_runs() -> None:
    """If this failed, CI would pass on other commands than the newcomer's."""
    setup = "\n".join(snippets("bash")[heading] for heading in ("Start", "Start (again)"))
    ci = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("pip install torch==2.13.0", 'pip install -e ".[test]"', "python -m pytest -n 2"):
        assert command in setup
        assert command in ci
