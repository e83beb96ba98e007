"""A checkpoint as a stream: all names, shapes and dtypes at once, the tensors one at a time."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hf_mhe.analysis.checkpoint.file_names import is_pickle, pickle_refusal
from hf_mhe.analysis.checkpoint.header import TensorInfo, read_header
from hf_mhe.analysis.checkpoint.hub_files import is_repo_id, locate_repo
from hf_mhe.analysis.checkpoint.locate import locate_path
from hf_mhe.analysis.checkpoint.location import Location
from hf_mhe.errors import MHEError
from hf_mhe.text import listed

# Note [Memory of a mapped file]
# safetensors maps the file and hands out views of the map, so pages once read stay resident for as long as the handle
# is open: reading through a checkpoint with one handle grows to the size of the file (measured: 575 MB for 600 MB). A
# handle per tensor stays flat, but parses the header again each time (10 ms for MiniLM, seconds for a large mixture of
# experts). So a handle is closed after this many bytes.
_BYTES_PER_HANDLE = 64 * 2**20


class CheckpointReader:
    """The tensors of a safetensors checkpoint, read by name; peak memory is about one tensor.

    `tensors` and `metadata` are known on opening, from the files' headers; `config` is the parsed config.json, or
    None. A pipeline's `components` are readers of their own, by name; in the pipeline's reader their tensors have that
    name in front. Use it as a context manager, or call `close`.
    """

    def __init__(self, location: Location) -> None:
        """Read and check the headers of all files.

        Raises:
            MHEError: a damaged or truncated file, a tensor that the index and its shard disagree about.
        """
        self.location = location
        self.components = {name: CheckpointReader(part) for name, part in location.components.items()}
        self.tensors: dict[str, TensorInfo] = {
            f"{name}.{tensor}": info for name, part in self.components.items() for tensor, info in part.tensors.items()
        }
        self.metadata: dict[str, str] = {}
        self._finite: set[tuple[Path, str]] = set()
        for file in location.files:
            tensors, metadata = read_header(file)
            self.metadata.update(metadata)
            for name, info in tensors.items():
                if name in self.tensors and location.weight_map is None:
                    raise MHEError(
                        f"{location.source}: tensor {name!r} is in both {self.tensors[name].file.name} and {file.name}"
                    )
                self._add(name, info)
        self._check_index()
        if not self.tensors:
            raise MHEError(
                f"{location.source} holds no tensor: {listed(file.name for file in location.files)} is empty"
            )
        self._file: Path | None = None
        self._handle: Any = None
        self._bytes_read = 0

    def _add(self, name: str, info: TensorInfo) -> None:
        owner = (self.location.weight_map or {}).get(name, info.file.name)
        if Path(owner).name == info.file.name:
            self.tensors[name] = info

    def _check_index(self) -> None:
        location = self.location
        for name, shard in (location.weight_map or {}).items():
            if name not in self.tensors:
                index = location.index.name if location.index else "the index"
                raise MHEError(f"{location.source}: {index} puts tensor {name!r} in {shard}, which does not hold it")

    @property
    def config(self) -> dict[str, Any] | None:
        """The parsed config.json, None where the checkpoint has none."""
        return self.location.config

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""
        return {name: info.shape for name, info in self.tensors.items()}

    def dtypes(self) -> dict[str, str]:
        """The dtype of every tensor, as safetensors spells it, by name."""
        return {name: info.dtype for name, info in self.tensors.items()}

    def get(self, name: str) -> torch.Tensor:
        """One tensor, in its stored dtype, on the CPU.

        Raises:
            MHEError: no tensor of that name, a file that can no longer be read, a value that is NaN or infinite.
        """
        for prefix, component in self.components.items():
            if name.startswith(f"{prefix}.") and name in self.tensors:
                return component.get(name.removeprefix(f"{prefix}."))
        tensor = self.get_unchecked(name)
        self.check_finite(name, tensor)
        return tensor

    def get_unchecked(self, name: str) -> torch.Tensor:
        """One tensor whatever its values, such as a mask with -inf, or codes whose bytes are no numbers.

        Raises:
            MHEError: no tensor of that name, a file that can no longer be read.
        """
        info = self.tensors.get(name)
        if info is None:
            raise MHEError(f"{self.location.source} has no tensor {name!r}")
        for prefix, component in self.components.items():
            if name.startswith(f"{prefix}."):
                return component.get_unchecked(name.removeprefix(f"{prefix}."))
        if info.file != self._file or self._bytes_read > _BYTES_PER_HANDLE:  # Note [Memory of a mapped file]
            self.close()
        try:
            if self._handle is None:
                self._handle = safe_open(info.file, framework="pt")
                self._file = info.file
            tensor: torch.Tensor = self._handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise MHEError(f"{info.file}: tensor {name!r} cannot be read: {error}") from error
        self._bytes_read += info.nbytes
        return tensor

    def check_finite(self, name: str, tensor: torch.Tensor) -> None:
        """Refuse a tensor that was read under a name.

        Raises:
            MHEError: it has a NaN or an infinity; names the file and the tensor.
        """
        check_finite(tensor, f"{self.tensors[name].file}: tensor {name!r}")
        if tensor.is_floating_point():
            self._finite.add((self.tensors[name].file.resolve(), name))

    @property
    def finite(self) -> frozenset[tuple[Path, str]]:
        """The tensors that were read and found to be finite: each one's file, without links, and its name in it."""
        return frozenset(self._finite).union(*(component.finite for component in self.components.values()))

    def close(self) -> None:
        """Let go of the open files."""
        self._file, self._handle, self._bytes_read = None, None, 0
        for component in self.components.values():
            component.close()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_finite(tensor: torch.Tensor, what: str) -> None:
    """Refuse a tensor with a NaN or an infinity in it, before anything is computed from it.

    Raises:
        MHEError: names `what`, and how many values of which kind it has, and where the first is.
    """
    if not tensor.is_floating_point():
        return
    if tensor.element_size() == 1:  # float8, for which torch has no reductions
        tensor = tensor.float()
    if tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in torch.aminmax(tensor)):
        return
    finite = torch.isfinite(tensor)
    nans = int(torch.isnan(tensor).sum())
    infinite = tensor.numel() - int(finite.sum()) - nans
    counts = " and ".join(f"{count} {kind}" for count, kind in ((nans, "NaN"), (infinite, "infinite")) if count)
    first = torch.nonzero(~finite)[0].tolist()
    raise MHEError(f"{what} of shape {tuple(tensor.shape)} has {counts} value(s), the first at {first}")


def open_checkpoint(
    source: str | os.PathLike[str] | CheckpointReader,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> CheckpointReader:
    """Open a checkpoint: a folder, a .safetensors file, or a Hub repo id; a path that exists comes before a repo id.

    A checkpoint that is open already is returned as it is.

    Raises:
        MHEError: nothing there under either name, no access, no safetensors weights, a damaged file, a pickle.
    """
    if isinstance(source, CheckpointReader):
        if revision is not None:
            raise MHEError(f"revision {revision!r} was given for {source.location.source}, which is open already")
        return source
    name = os.fspath(source)
    if not name:
        raise MHEError("the checkpoint's name is empty: give a folder, a .safetensors file or a Hub repo id")
    path = Path(name).expanduser()
    if path.exists():
        if revision is not None:
            raise MHEError(
                f"revision {revision!r} was given for {path}, a local path: revisions are of Hub repositories"
            )
        return CheckpointReader(locate_path(path, name))
    looks_like_file = path.suffix == ".safetensors" or is_pickle(path.name)
    if isinstance(source, str) and is_repo_id(name) and not looks_like_file:
        return CheckpointReader(locate_repo(name, revision=revision, token=token, cache_dir=cache_dir))
    if is_pickle(path.name):
        raise MHEError(f"{name} does not exist; besides, " + pickle_refusal("such a file"))
    raise MHEError(
        f"{name!r} is neither a path that exists nor a valid Hub repo id: "
        "give a folder, a .safetensors file, or an id such as owner/name"
    )
