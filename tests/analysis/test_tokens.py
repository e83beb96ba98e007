"""Descriptions of vocabularies: resized, padded, of several models, with and without a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_mhe.analysis import open_checkpoint
from hf_mhe.analysis.report.tokens import TokenRow, TokenRows, Vocabulary
from hf_mhe.analysis.vocabulary.describe import describe_vocabulary, vocabulary_of
from hf_mhe.energy import PairStatistics, Potential, pair_statistics
from hf_mhe.errors import MHEError
from tests.hub_server import HubServer

NONE = TokenRows(0, ())


def measured(matrix: Tensor, space: str = "full", threshold: float = 0.95) -> PairStatistics:
    return pair_statistics(matrix, Potential(space=space), duplicate_cosine=threshold)


def described(matrix: Tensor, texts: list[str] | None = None, **options: Any) -> Vocabulary:
    return describe_vocabulary(matrix, texts, measured(matrix), **options)


def rows_of(found: TokenRows) -> list[int]:
    assert found.count >= len(found.first)
    return [row.row for row in found.first]


def random_rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(90, 24), (20, 48)])  # in the second the covariance has no inverse
def test_a_resized_vocabulary_shows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Else rows that transformers put at the mean, and nobody trained, would pass for tokens."""
    from transformers import BertConfig, BertModel

    n, d = shape
    torch.manual_seed(0)
    config = BertConfig(vocab_size=n, hidden_size=d, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = BertModel(config)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table += 0.02 * torch.randn(d)  # a direction that all rows share, as in trained models
    model.resize_token_embeddings(n + 13)
    found = described(model.get_input_embeddings().weight.detach().to(dtype), most=n + 13)
    new = list(range(n, n + 13))
    assert sorted(rows_of(found.at_mean) + rows_of(found.near_mean)) == new
    assert set(new) <= set(rows_of(found.clusters[0]))
    assert found.distinct <= n

    torch.manual_seed(0)
    plain = BertModel(config)
    plain.resize_token_embeddings(n + 13, mean_resizing=False)
    found = described(plain.get_input_embeddings().weight.detach().to(dtype))
    assert (found.at_mean, found.near_mean) == (NONE, NONE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_exactly_at_the_mean(dtype: torch.dtype) -> None:
    """Else the two ways of resizing could not be told apart, or ordinary rows would count."""
    matrix = (random_rows(300, 20) + 3).to(dtype)
    mean = matrix[:280].double().mean(0)
    matrix[280:] = mean.to(dtype)
    matrix[299] = (mean + 2e-4 * random_rows(1, 20)[0].double().sign()).to(dtype)
    found = described(matrix)
    if torch.equal(matrix[299], matrix[298]):  # in bfloat16
        assert rows_of(found.at_mean) == list(range(280, 300))
    else:
        assert rows_of(found.at_mean) == list(range(280, 299))
        assert rows_of(found.near_mean) == [299]


def test_a_vocabulary_of_one_row_repeated() -> None:
    """Else the degenerate table would divide by a distance of zero."""
    found = described(random_rows(1, 8).repeat(50, 1))
    assert found.at_mean.count == 50
    assert [part.count for part in found.equal] == [50]
    assert found.distinct == 1


def test_equal_rows_are_those_that_are_equal_in_every_number() -> None:
    """Else a row's multiple, or what a rounding error moved, would be called a copy of it."""
    matrix = random_rows(200, 16)
    matrix[[5, 50, 150]] = matrix[7].clone()
    matrix[60] = 2 * matrix[7]
    matrix[61] = matrix[7].nextafter(torch.tensor(torch.inf))
    matrix[70:72] = matrix[9].clone()
    matrix[70, 3], matrix[71, 3], matrix[9, 3] = 0.0, -0.0, 0.0
    matrix[100:110] = 0
    found = described(matrix, most=3)
    assert [rows_of(part) for part in found.equal] == [[5, 7, 50], [9, 70, 71]]
    assert [part.count for part in found.equal] == [4, 3]
    assert (found.zero.count, rows_of(found.zero)) == (10, [100, 101, 102])
    assert found.clusters[0].count == 6
    assert found.distinct == 190 - 5 - 2


def test_texts_go_with_their_rows() -> None:
    """Else a pair would be shown with the names of another."""
    matrix = random_rows(60, 12)
    matrix[40] = matrix[3] + 0.01 * matrix[4]
    matrix[11] = 0
    texts = [f"t{row}" for row in range(60)]
    found = described(matrix, texts)
    ((first, second, cosine),) = found.pairs
    assert (first, second) == (TokenRow(3, "t3"), TokenRow(40, "t40"))
    assert cosine == pytest.approx(float(torch.cosine_similarity(matrix[3].double(), matrix[40].double(), dim=0)))
    assert found.clusters == (TokenRows(2, (first, second)),)
    assert found.zero == TokenRows(1, (TokenRow(11, "t11"),))
    assert described(matrix).pairs[0][0] == TokenRow(3, None)
    with pytest.raises(MHEError, match="a vocabulary of 60 rows needs one text for each; got 59"):
        described(matrix, texts[:-1])


def small_tokenizer(names: list[str]) -> bytes:
    model = {"type": "WordLevel", "vocab": {name: row for row, name in enumerate(names)}, "unk_token": names[0]}
    return json.dumps({"version": "1.0", "model": model}).encode()


NAMES = ["<s>", *(f"<unused{row}>" for row in range(12)), *(f"t{row}" for row in range(70)), "\u202eevil\n"]


@pytest.fixture
def folder(bert_folder: Path, tmp_path: Path) -> Path:
    """The classifier of 90 tokens, with a tokenizer of 84."""
    copy = Path(shutil.copytree(bert_folder, tmp_path / "model"))
    (copy / "tokenizer.json").write_bytes(small_tokenizer(NAMES))
    return copy


def tables(folder: Path) -> dict[str, Tensor]:
    with open_checkpoint(folder) as reader:
        return {name: reader.get(name) for name, info in reader.tensors.items() if len(info.shape) == 2}


def test_the_embedding_of_a_folder(folder: Path) -> None:
    """Else a checkpoint's vocabulary would go without its texts, or with those of another file."""
    matrix = tables(folder)["bert.embeddings.word_embeddings.weight"]
    by_path = vocabulary_of("embedding", matrix, measured(matrix), folder)
    with open_checkpoint(folder) as reader:
        by_reader = vocabulary_of("embedding", matrix, measured(matrix), reader)
    by_file = vocabulary_of("embedding", matrix, measured(matrix), str(folder / "model.safetensors"))
    assert by_path is not None
    assert by_path == by_reader == by_file
    assert (by_path.rows, by_path.beyond, by_path.without_row, by_path.note) == (90, 6, 0, "")
    assert by_path.zero == TokenRows(1, (TokenRow(0, "<s>"),))
    assert by_path.untrained is not None
    assert (by_path.untrained.indicator, by_path.untrained.references) == ("cosine", 12)
    assert not by_path.untrained.separates  # of random weights


def test_other_groups_are_no_vocabulary(folder: Path) -> None:
    """Else positions, token types and layers would be shown as tokens."""
    found = {
        (name, role): vocabulary_of(role, matrix, measured(matrix), folder) is not None
        for name, matrix in tables(folder).items()
        for role in ("embedding", "output", "hidden")
    }
    words = "bert.embeddings.word_embeddings.weight"
    assert {key for key, is_one in found.items() if is_one} == {(words, "embedding"), (words, "output")}


def test_without_a_tokenizer_there_are_no_texts(folder: Path) -> None:
    """Else a checkpoint without a tokenizer, which is common, would have no description."""
    (folder / "tokenizer.json").unlink()
    matrix = tables(folder)["bert.embeddings.word_embeddings.weight"]
    found = vocabulary_of("embedding", matrix, measured(matrix), folder)
    assert found is not None
    assert (found.beyond, found.without_row, found.untrained, found.note) == (None, None, None, "")
    assert found.zero == TokenRows(1, (TokenRow(0, None),))


def test_a_broken_tokenizer_is_said(folder: Path) -> None:
    """Else the texts would be missing without a reason, or one bad file end the analysis of all layers."""
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    matrix = tables(folder)["bert.embeddings.word_embeddings.weight"]
    found = vocabulary_of("embedding", matrix, measured(matrix), folder)
    assert found is not None
    assert "is a Git LFS pointer" in found.note.replace("it is", "is")
    assert found.beyond is None


def test_a_tokenizer_of_another_vocabulary_is_left_alone(folder: Path) -> None:
    """Else the codes of a picture would be named after words."""
    matrix = tables(folder)["bert.embeddings.word_embeddings.weight"]
    for names in ([f"t{row}" for row in range(2000)], [f"t{row}" for row in range(30)]):
        (folder / "tokenizer.json").write_bytes(small_tokenizer(names))
        found = vocabulary_of("embedding", matrix, measured(matrix), folder)
        assert found is not None
        assert found.zero == TokenRows(1, (TokenRow(0, None),))
        assert found.beyond is None


@pytest.mark.parametrize(
    ("config", "indicator"),
    [
        ({"tie_word_embeddings": True}, "cosine"),
        ({"tie_word_embeddings": False}, "norm"),
        ({"model_type": "llama"}, "norm"),
        ({"model_type": "gpt2"}, "cosine"),
        ({"model_type": "t5"}, "cosine"),
        ({"model_type": "no such model"}, "cosine"),
        ({"model_type": ["llama"], "text_config": 3}, "cosine"),
        ({"text_config": {"vocab_size": 90, "tie_word_embeddings": False}, "tie_word_embeddings": True}, "norm"),
        (
            {
                "audio_config": {"model_type": "bert", "vocab_size": 7, "tie_word_embeddings": True},
                "text_config": {"model_type": "llama", "vocab_size": 90},
                "vocab_size": None,
            },
            "norm",
        ),
    ],
)
def test_the_indicator_goes_by_the_ties(config: dict[str, Any], indicator: str, tmp_path: Path) -> None:
    """Else an input embedding of its own would be judged by what only an output learns, or the other way round."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 90, **config}))
    (tmp_path / "tokenizer.json").write_bytes(small_tokenizer(NAMES))
    matrix = random_rows(90, 24)
    for role, expected in (("embedding", indicator), ("output", "cosine")):
        found = vocabulary_of(role, matrix, measured(matrix), tmp_path)
        assert found is not None
        assert found.untrained is not None
        assert found.untrained.indicator == expected


def test_a_nested_config_and_a_component(tmp_path: Path, folder: Path) -> None:
    """Else models of text and pictures, and pipelines, would have no vocabulary."""
    (tmp_path / "nested").mkdir()
    content = {"model_type": "llava", "text_config": {"vocab_size": 90}, "vision_config": {"hidden_size": 8}}
    (tmp_path / "nested" / "config.json").write_text(json.dumps(content))
    matrix = random_rows(90, 24)
    found = vocabulary_of("embedding", matrix, measured(matrix), tmp_path / "nested")
    assert found is not None
    assert vocabulary_of("embedding", random_rows(8, 4), measured(random_rows(8, 4)), tmp_path / "nested") is None

    pipeline = tmp_path / "pipeline"
    shutil.copytree(folder, pipeline / "text_encoder_2")
    (pipeline / "tokenizer_2").mkdir()
    (pipeline / "text_encoder_2" / "tokenizer.json").rename(pipeline / "tokenizer_2" / "tokenizer.json")
    index = {"_class_name": "SomePipeline", "text_encoder_2": ["transformers", "BertForSequenceClassification"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    with open_checkpoint(pipeline) as reader:
        found = vocabulary_of("embedding", matrix, measured(matrix), reader)
    assert found is not None
    assert found.beyond == 6


def test_a_description_is_json_and_back(folder: Path) -> None:
    """Else a saved report would lose what was found, or break the page with a token of a right-to-left mark."""
    matrix = random_rows(90, 24)
    matrix[83] = matrix[84]
    matrix[1:20] = random_rows(1, 24, seed=5) + 0.3 * random_rows(19, 24, seed=6)
    found = vocabulary_of("embedding", matrix, measured(matrix, threshold=0.8), folder)
    assert found is not None
    assert found.untrained is not None
    assert found.untrained.rows
    text = json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False)
    assert "\\\\u202eevil\\\\n" in text
    assert text.isprintable()
    assert Vocabulary.from_dict(json.loads(text)) == found
    older = {key: value for key, value in json.loads(text).items() if key not in ("untrained", "note", "beyond")}
    assert Vocabulary.from_dict({**older, "of a newer version": 1}).rows == 90


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None}, "has .* is right"),
        ({"pairs": 3}, "has .* is right"),
        ({"zero": {}}, "has no 'count'"),
        ({"equal": [1]}, "has .* is right"),
    ],
)
def test_a_malformed_description_is_one_error(change: dict[str, Any], message: str) -> None:
    """Else a damaged report would end in a traceback."""
    content = described(random_rows(30, 8)).to_dict()
    with pytest.raises(MHEError, match=message):
        Vocabulary.from_dict({**content, **change})


@pytest.mark.story
def test_the_tokenizer_of_a_repository_is_fetched(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """Else the vocabularies of the Hub's models, of which only weights and config are read, would have no texts."""
    script = """
        from huggingface_hub import HfApi
        from hf_mhe.analysis import open_checkpoint
        from hf_mhe.analysis.vocabulary.describe import vocabulary_of
        from hf_mhe.energy import Potential, pair_statistics
        api = HfApi()
        api.create_repo("alice/words")
        api.upload_folder(repo_id="alice/words", folder_path=folder)
        with open_checkpoint("alice/words") as reader:
            matrix = reader.get("bert.embeddings.word_embeddings.weight")
            out["found"] = vocabulary_of("embedding", matrix, pair_statistics(matrix, Potential()), reader).to_dict()
    """
    told = hub.call(script, tmp_path / "home", folder=str(folder))
    matrix = tables(folder)["bert.embeddings.word_embeddings.weight"]
    assert Vocabulary.from_dict(told["found"]) == vocabulary_of("embedding", matrix, measured(matrix), folder)
    assert told["found"]["zero"]["first"] == [[0, "<s>"]]
