"""The machine: processor, GPU, memory, threads, and what kind of hardware it is. Imports errors and measurement."""
