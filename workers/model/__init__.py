"""A model whose layers are prepared and swapped. Imports device, setup and the ``LayerBackend`` protocol."""
