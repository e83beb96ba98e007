"""Registers the quantized layers of every format with the finders of weights; importing it is enough."""

from __future__ import annotations

from hf_mhe.neurons.model.weight import family
from hf_mhe.neurons.quantized import bitsandbytes, block_fp8, cast_float8, compressed, torchao

for _form in (bitsandbytes, torchao, block_fp8, compressed, cast_float8):
    family(_form.live_weight)
