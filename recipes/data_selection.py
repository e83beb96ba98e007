# Choose which examples to label: those whose embeddings have minimum hyperspherical energy (as in MHEAL), beside a
# random choice and k-center, in rounds of active learning. As it stands: names of places, languages and currencies,
# embedded by MiniLM; a linear classifier on what was chosen says how good the choice is.
#
#   python recipes/data_selection.py                       # in an environment with pip install -e ".[recipes]"
#   python recipes/data_selection.py --dataset_name stanfordnlp/imdb --model_name_or_path BAAI/bge-small-en-v1.5
#   python recipes/data_selection.py --dataset_name my_texts.csv --per_round 100 --rounds 5
#
# The rows chosen by energy are saved to --output_dir, for datasets.load_from_disk, in the order in which they were
# chosen. --quick tries whether all of it runs.
from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import evaluate
import torch
from datasets import ClassLabel, DatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase, set_seed

import hf_mhe

QUICK = {"max_samples": 200, "max_eval_samples": 100, "per_round": 20, "rounds": 2}


@dataclass
class SelectionArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "What embeds. Default: MiniLM."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set of the Hub, a folder or a file. Default: names."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "The part to choose from."})
    test_split: str = field(default="test", metadata={"help": "The part to evaluate on; made where there is none."})
    text_column: str = field(default="text", metadata={"help": "The column with the texts."})
    label_column: str = field(default="label", metadata={"help": "The column with the classes."})
    per_round: int = field(default=200, metadata={"help": "Examples that each round chooses."})
    rounds: int = field(default=4, metadata={"help": "Rounds."})
    max_samples: int | None = field(default=None, metadata={"help": "Choose among so many, drawn once."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many, drawn once."})
    metric: str = field(
        default=str(Path(__file__).parent / "metrics" / "accuracy"),
        metadata={"help": "A metric of evaluate: a folder, or a name on the Hub, such as accuracy."},
    )
    seed: int = field(default=0, metadata={"help": "Of the random choice, and of every first example."})
    output_dir: str = field(default="data_selection", metadata={"help": "Where the chosen rows go."})
    push_to_hub: str | None = field(default=None, metadata={"help": "The data set to publish the rows as."})
    quick: bool = field(default=False, metadata={"help": "A few examples, to see whether it runs."})


def by_energy(vectors: Tensor, chosen: list[int], count: int) -> list[int]:
    """Each next example is the one on which those chosen so far have the lowest potential (s = 2)."""
    potential = sum((1 / distances(vectors, index) for index in chosen), torch.zeros(len(vectors)))
    for _ in range(count):
        potential[chosen] = torch.inf
        chosen = [*chosen, int(potential.argmin())]
        potential = potential + 1 / distances(vectors, chosen[-1])
    return chosen


def by_k_center(vectors: Tensor, chosen: list[int], count: int) -> list[int]:
    """Each next example is the one that is farthest from those chosen so far."""
    nearest = torch.stack([distances(vectors, index) for index in chosen]).amin(0)
    for _ in range(count):
        chosen = [*chosen, int(nearest.argmax())]
        nearest = torch.minimum(nearest, distances(vectors, chosen[-1]))
    return chosen


def by_chance(vectors: Tensor, chosen: list[int], count: int) -> list[int]:
    rest = sorted(set(range(len(vectors))) - set(chosen))
    return chosen + [rest[i] for i in torch.randperm(len(rest))[:count].tolist()]


def distances(vectors: Tensor, index: int) -> Tensor:
    """The squared chords from one vector to all."""
    return (2 - 2 * vectors @ vectors[index]).clamp_min(1e-6)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Where its files are missing, transformers makes one without words, or fails."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # of the kind that each class of tokenizers has
        raise ValueError(f"{model} has no tokenizer that can be loaded: {error}") from error
    if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, "▁"}:
        raise ValueError(f"{model} has no tokenizer with words: its files are missing, such as tokenizer.json")
    return tokenizer


@torch.no_grad()
def embed(texts: list[str], checkpoint: str, batch_size: int = 256) -> Tensor:
    """Unit vectors, the mean over tokens."""
    tokenizer, model = load_tokenizer(checkpoint), AutoModel.from_pretrained(checkpoint)
    longest = getattr(model.config, "max_position_embeddings", None) or 0
    if 0 < longest < tokenizer.model_max_length:  # which the tokenizer does not know
        tokenizer.model_max_length = longest - 2  # RoBERTa counts positions from 2
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # many decoders have none
    means = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(texts[start : start + batch_size], padding=True, truncation=True, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        means.append((model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1).clamp_min(1))
    return torch.nn.functional.normalize(torch.cat(means))


def as_classes(dataset: DatasetDict, column: str) -> DatasetDict:
    """Class labels in place of words or whole numbers, in the order of these."""
    feature = dataset["train"].features[column]
    if not isinstance(feature, ClassLabel):
        if not isinstance(feature, Value) or "float" in feature.dtype:
            raise ValueError(f"the column {column!r} has no classes: it is {feature}")
        words = dataset.cast_column(column, Value("string"))
        values = dict(zip(words["train"].unique(column), dataset["train"].unique(column), strict=True))
        for part, rows in words.items():
            if unseen := set(rows.unique(column)) - {"-1", *values}:
                raise ValueError(f"the {part} data has a {column!r} that train lacks: {', '.join(sorted(unseen))}")
        dataset = words.cast_column(column, ClassLabel(names=sorted(values, key=values.get)))
    for part, rows in dataset.items():
        if -1 in rows.unique(column):  # as data sets of the Hub mark labels that they keep secret
            raise ValueError(f"the {part} data has rows without a {column!r} (--train_split, --test_split)")
    if len(dataset["train"].unique(column)) < 2:
        raise ValueError(f"the train data has only one {column!r}: there is nothing to tell apart")
    return dataset


def load_data(args: SelectionArguments) -> DatasetDict:
    """The splits `train`, to choose from, and `test`."""
    if args.dataset_name is None:
        from offline import place_names

        dataset = place_names()
    elif (file := Path(args.dataset_name).resolve()).is_file():
        dataset = load_dataset(str(file.parent), data_files=file.name)
    else:
        dataset = load_dataset(args.dataset_name, args.dataset_config)
    for split in (args.train_split, args.test_split):
        if split not in dataset and (split == args.train_split or split != "test"):
            raise ValueError(f"the data has no split {split!r}; it has {', '.join(dataset)}")
    parts = {"train": args.train_split, "test": args.test_split}
    dataset = DatasetDict({part: dataset[split] for part, split in parts.items() if split in dataset})
    for part, rows in dataset.items():
        for column in (args.text_column, args.label_column):
            if column not in rows.column_names:
                raise ValueError(f"the {part} data has no column {column!r}; it has {', '.join(rows.column_names)}")
            if rows.data.column(column).null_count:
                raise ValueError(f"the {part} data has rows without a {column!r} (--train_split, --test_split)")
    if dataset["train"].features[args.text_column] not in (Value("string"), Value("large_string")):
        feature = dataset["train"].features[args.text_column]
        raise ValueError(f"the column {args.text_column!r} has no texts: it is {feature}")
    dataset = as_classes(dataset, args.label_column)
    if "test" not in dataset:
        dataset = dataset["train"].train_test_split(0.2, seed=0)
    limits = {"train": args.max_samples, "test": args.max_eval_samples}
    for name, limit in limits.items():
        if limit:  # drawn, and not the first: many data sets are sorted by class
            dataset[name] = dataset[name].shuffle(seed=0).take(min(limit, len(dataset[name])))
    if args.rounds < 1 or args.per_round < 2:
        raise ValueError(f"a round at least, of two rows at least; got {args.rounds} of {args.per_round}")
    if args.rounds * args.per_round > len(dataset["train"]):
        raise ValueError(
            f"{args.rounds} rounds of {args.per_round} cannot be chosen among {len(dataset['train'])} rows"
        )
    return dataset


def main() -> None:
    parser = HfArgumentParser(SelectionArguments)
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    try:
        (args,) = parser.parse_args_into_dataclasses()
        if args.model_name_or_path is None:
            from offline import minilm

            args.model_name_or_path = minilm()
        dataset, metric = load_data(args), evaluate.load(args.metric)
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.output_dir).close()  # can it be written?
        vectors = {
            name: embed(list(rows[args.text_column]), args.model_name_or_path) for name, rows in dataset.items()
        }
    except (hf_mhe.MHEError, DatasetsError, ImportError, OSError, RuntimeError, ValueError) as error:
        reason = f"{error}: {error.__cause__}" if isinstance(error, DatasetGenerationError) else error
        parser.exit(2, f"{parser.prog}: error: {' '.join(f'{reason} (arguments: {sys.argv[1:]})'.split())}\n")

    labels = {name: torch.tensor(rows[args.label_column]) for name, rows in dataset.items()}
    print("examples  choice    accuracy  energy  spread")
    for name, choose in {"energy": by_energy, "k-center": by_k_center, "random": by_chance}.items():
        set_seed(args.seed)
        chosen = [int(torch.randint(len(vectors["train"]), ()))]
        for round_ in range(1, args.rounds + 1):
            chosen = choose(vectors["train"], chosen, round_ * args.per_round - len(chosen))
            known = labels["train"][chosen]
            predictions = known[:1].expand(len(labels["test"]))
            if len(known.unique()) > 1:  # else there is nothing to tell apart
                classifier = LogisticRegression(C=10, max_iter=1000).fit(vectors["train"][chosen], known)
                predictions = classifier.predict(vectors["test"])
            found = metric.compute(predictions=predictions, references=labels["test"])
            energy = hf_mhe.measure(vectors["train"][chosen])
            score = next(iter(found.values()))
            print(f"{len(chosen):8}  {name:8}  {score:8.4f}  {energy.energy:6.4f}  {energy.spread:6.3f}")
        if name == "energy":
            rows: datasets.Dataset = dataset["train"].select(chosen)
            rows.save_to_disk(args.output_dir)
            if args.push_to_hub:
                rows.push_to_hub(args.push_to_hub)


if __name__ == "__main__":
    main()
