"""That a model's weights are numbers: no NaN anywhere in what is published, and no infinity in a weight.

Note [Infinities that are meant]
A mask of attention holds -inf where nothing may look, and a model with one is a good model; a weight with an infinity
is a broken one. A parameter is a weight and a buffer is not, other than the running statistics of a normalization,
which are as learnt as its weights are. In memory and for a class that an installed library knows, that decides. For
custom code, whose classes are not built here, see Note [A mask by its values]. Rejected: -inf allowed wherever it is
not in a neuron group, since that lets a broken bias or LayerNorm through.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mhe.analysis.checkpoint.header import read_header
from hf_mhe.analysis.checkpoint.location import Location
from hf_mhe.analysis.checkpoint.masks import is_mask
from hf_mhe.analysis.checkpoint.reader import CheckpointReader, open_checkpoint
from hf_mhe.errors import MHEError
from hf_mhe.hub.loader_files import weight_paths

if TYPE_CHECKING:
    from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")


def check_finite(model: Any) -> None:
    """Make sure that what a model in memory would save has no NaN, and its weights no infinity.

    Weights that accelerate keeps on the CPU or on disk are read from there, one module at a time.

    Raises:
        MHEError: one has, or has no values yet (meta device); names it.
    """
    for module_name, module in model.named_modules():
        with _brought_back(module):
            for name, tensor, is_weight in _saved_tensors(module):
                full_name = f"{module_name}.{name}" if module_name else name
                if tensor.is_meta:
                    raise MHEError(
                        f"{full_name} is on the meta device and has no values to publish; load the weights first"
                    )
                fault = _fault(tensor)
                if fault == "NaN" or (fault and is_weight):
                    raise MHEError(f"{full_name} is not finite; a model with NaN or inf is not published")


def _saved_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """A module's own parameters and persistent buffers, and whether each is a weight."""
    for name, parameter in module._parameters.items():
        # bitsandbytes may keep its codes under any dtype (bnb_4bit_quant_storage), where the bytes are no numbers.
        if parameter is not None and getattr(parameter, "quant_state", None) is None:
            yield name, parameter, True
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer, name in _STATISTICS


def _brought_back(module: nn.Module) -> AbstractContextManager[None]:
    """The module's own weights on the CPU while inside, where accelerate's offloading keeps them elsewhere."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    import torch
    from accelerate.utils import align_module_device, has_offloaded_params  # type: ignore[import-untyped]

    if not has_offloaded_params(module):
        return nullcontext()
    context: AbstractContextManager[None] = align_module_device(module, torch.device("cpu"))
    return context


def check_values(folder: Path, *, known: Collection[tuple[Path, str]] = ()) -> None:
    """Make sure that the published weights of a folder have no NaN, and no infinity where that is a fault.

    Args:
        folder: a folder whose files of weights are whole.
        known: tensors that have been found finite, as `CheckpointReader.finite` has them; they are not read again.

    Raises:
        MHEError: a tensor is not finite; names it and its file.
    """
    models: dict[Path, _StoredModel] = {}
    for path in weight_paths(folder):
        file, model = path.resolve(), models.setdefault(path.parent, _StoredModel(path.parent))
        names = [name for name in read_header(path)[0] if (file, name) not in known]
        if not names:
            continue
        with CheckpointReader(Location(str(path), (path,))) as reader:
            for name in names:
                model.check(path, name, reader.get_unchecked(name))


class _StoredModel:
    """What is known of the tensors in one folder's files: which are masks, and which are no numbers at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, file: Path, name: str, tensor: Tensor) -> None:
        """Make sure that a stored tensor has no NaN, and no infinity if it is a weight.

        Raises:
            MHEError: it has; names file and tensor.
        """
        fault = _fault(tensor)
        if fault is None or name in self._codes or (fault == "infinity" and not self._is_weight(name, tensor)):
            return
        raise MHEError(f"{file.name}: {name} is not finite; a model with NaN or inf is not published")

    def _is_weight(self, name: str, tensor: Tensor) -> bool:
        if self._model is None:
            return not is_mask(name, tensor)
        from hf_mhe.neurons.checkpoint.loading import loaded_as

        target = loaded_as(self._model)(name)
        buffer = target in dict(self._model.named_buffers(remove_duplicate=False))
        parameter = target in dict(self._model.named_parameters(remove_duplicate=False))
        return parameter or (buffer and target.rpartition(".")[2] in _STATISTICS)

    @cached_property
    def _model(self) -> nn.Module | None:
        from hf_mhe.analysis.checkpoint.location import read_config
        from hf_mhe.neurons.checkpoint.skeleton import build_skeleton

        found = build_skeleton(read_config(self._folder / "config.json"))
        return None if isinstance(found, str) else found

    @cached_property
    def _codes(self) -> frozenset[str]:
        """Tensors of a quantized checkpoint whose bytes are no numbers."""
        from hf_mhe.neurons import checkpoint_groups

        if (self._folder / "adapter_config.json").is_file():
            return frozenset()
        with open_checkpoint(self._folder) as reader:
            if reader.components:
                return frozenset()
            return checkpoint_groups(
                reader.shapes(), reader.config, dtypes=reader.dtypes(), metadata=reader.metadata, get=reader.get
            ).codes


def _fault(tensor: Tensor) -> str | None:
    """ "NaN" or "infinity" if the tensor has one, NaN first; None if all of it is finite."""
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    tensor = tensor.detach()
    if is_traceable_wrapper_subclass(tensor):  # torchao's quantized weights, shards of DTensor
        inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        faults = {_fault(part) for part in inner}
        return "NaN" if "NaN" in faults else "infinity" if "infinity" in faults else None
    if tensor.layout in (torch.sparse_coo,):
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.dtype in _always_finite():
        return None
    if tensor.element_size() == 1:  # float8, for which torch has no reductions
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)
    if torch.isnan(low) or torch.isnan(high):
        return "NaN"
    return "infinity" if torch.isinf(low) or torch.isinf(high) else None


def _always_finite() -> tuple[Any, ...]:
    import torch

    return tuple(getattr(torch, name) for name in ("float4_e2m1fn_x2",) if hasattr(torch, name))
