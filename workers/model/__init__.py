"""A model's layers, prepared and swapped. Imports device, setup and the seam of a layer's backend."""
