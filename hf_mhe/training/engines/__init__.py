"""Engines: who holds which part of a parameter, and so who computes what of the penalty.

`engine_of` (`engine_of.py`) finds the engine of a model, an `Engine` (`protocol.py`), once for a step:

- `OneProcess` (`one_process.py`): parameters are whole, and this process computes everything.
- `DDP` (`ddp.py`): parameters are whole in every process; each computes some of the groups, and the reduction of the
  gradients adds that up.
- `DTensors` (`dtensor/`): FSDP2, HSDP and tensor parallel; the ranks of a mesh divide the weights (`plan.py`), and
  send back the gradients.
- `DeepSpeed` (`deepspeed/`): ZeRO 0 to 3; each rank walks some neurons of every group.

Stacks of whole modules (`MHEConfig(across=...)`) each rank computes for itself where parameters are whole; where they
are DTensors each rank walks some coordinates of all members (`dtensor/sharded_across.py`); ZeRO 3 is refused.

An engine that is not supported is refused by name (`refuse.py`).
"""
