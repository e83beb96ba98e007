"""FSDP2, HSDP and tensor parallel: parameters that are DTensors."""
