"""MHEArguments: the config's fields as command line arguments of a script, `--mhe_s 1 --mhe_space full ...`."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from hf_mhe.training.config import MHEConfig

PREFIX = "mhe_"


class _MHEArguments:
    """The fields of `MHEConfig` with the prefix `mhe_`, for `HfArgumentParser` beside other arguments.

    Example::

        parser = HfArgumentParser((TrainingArguments, MHEArguments))
        training_args, mhe_args = parser.parse_args_into_dataclasses()
        trainer = MHETrainer(model, training_args, ..., mhe_config=mhe_args.to_config())
    """

    if TYPE_CHECKING:  # the fields are made from the config's

        def __init__(self, **values: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    def to_config(self) -> MHEConfig:
        """The config of these values.

        Raises:
            MHEError: a value is not allowed.
        """
        return MHEConfig(**{item.name: getattr(self, PREFIX + item.name) for item in fields(MHEConfig)})


def _arguments() -> type[_MHEArguments]:
    types = get_type_hints(MHEConfig)
    prefixed = [
        (PREFIX + item.name, types[item.name], field(default=item.default, metadata=item.metadata))
        for item in fields(MHEConfig)
    ]
    return make_dataclass(
        "MHEArguments", prefixed, bases=(_MHEArguments,), namespace={"__doc__": _MHEArguments.__doc__}
    )


MHEArguments = _arguments()
MHEArguments.__module__ = __name__  # or it could not be pickled
