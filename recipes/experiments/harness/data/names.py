"""Names of places, languages and currencies in the languages of the CLDR, as `babel` carries them."""

from __future__ import annotations

import functools
import zlib
from collections import Counter, defaultdict

import torch

from harness.data.images import MissingDataError, Rows, Splits

AT_LEAST = 12  # strings that a language needs to take part
BUCKETS = 2**14
LENGTH = 48  # n-grams of a name that count
CHARACTERS = 2**10
SHORT = 20  # characters of a name that count


@functools.lru_cache(maxsize=3)
def language_names(languages: int | None = None, encoded: str = "ngrams", half: int | None = None) -> Splits:
    """`ngrams` (48,), hashed n-grams of 1 to 3 characters, 0 is padding; `labels`, the language.

    Strings that several languages have are left out. Of each language a fifth is for validation and a fifth for the
    test, at least two each; the split is part of the data.

    Args:
        languages: take only the first so many, for a look.
        encoded: `"ngrams"`, or `"characters"`: `input_ids` (20,), hashed characters, with their `attention_mask`.
        half: take every second language, from the first (0) or the second (1), as classes of their own.

    Raises:
        MissingDataError: babel is not installed.
    """
    strings = _strings(languages)
    if half is not None:
        strings = {name: strings[name] for name in sorted(strings)[half::2]}
    encode, columns_of = _ENCODED[encoded]
    columns: dict[str, list[tuple[list[int], int]]] = {"train": [], "validation": [], "test": []}
    generator = torch.Generator().manual_seed(0)
    for label, language in enumerate(sorted(strings)):
        names = sorted(strings[language])
        order = torch.randperm(len(names), generator=generator).tolist()
        held = max(2, len(names) // 5)
        for place, index in enumerate(order):
            part = "test" if place < held else "validation" if place < 2 * held else "train"
            columns[part].append((encode(names[index]), label))
    parts = {part: columns_of(rows) for part, rows in columns.items()}
    return Splits(**parts, classes=len(strings))


def hashed(name: str) -> list[int]:
    """Buckets of the n-grams of a name, the same in every process."""
    text = f"^{name}$"
    grams = [text[i : i + size] for size in (1, 2, 3) for i in range(len(text) - size + 1)]
    found = [1 + zlib.crc32(gram.encode()) % (BUCKETS - 1) for gram in grams[:LENGTH]]
    return found + [0] * (LENGTH - len(found))


def _strings(languages: int | None) -> dict[str, set[str]]:
    try:
        from babel import Locale, localedata
    except ImportError as error:
        raise MissingDataError("babel is not installed: pip install 'hf-mhe[recipes]'") from error
    found: dict[str, set[str]] = defaultdict(set)
    for name in sorted(n for n in localedata.locale_identifiers() if "_" not in n)[:languages]:
        locale = Locale.parse(name)
        for table in (locale.territories, locale.languages, locale.currencies):
            found[name].update(text for text in table.values())
    times = Counter(text for texts in found.values() for text in texts)
    own = {name: {text for text in texts if times[text] == 1} for name, texts in found.items()}
    return {name: texts for name, texts in own.items() if len(texts) >= AT_LEAST}


def characters(name: str) -> list[int]:
    """Buckets of the characters of a name, the same in every process."""
    found = [1 + zlib.crc32(character.encode()) % (CHARACTERS - 1) for character in f"^{name}$"[:SHORT]]
    return found + [0] * (SHORT - len(found))


def _of_ngrams(rows: list[tuple[list[int], int]]) -> Rows:
    return Rows(ngrams=torch.tensor([grams for grams, _ in rows]), labels=torch.tensor([label for _, label in rows]))


def _of_characters(rows: list[tuple[list[int], int]]) -> Rows:
    ids, labels = torch.tensor([found for found, _ in rows]), torch.tensor([label for _, label in rows])
    return Rows(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels)


_ENCODED = {"ngrams": (hashed, _of_ngrams), "characters": (characters, _of_characters)}
