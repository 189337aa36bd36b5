"""The machine: processor, GPU, memory, threads and kind of hardware. Imports errors and measurement."""
