"""A comparison with other tools on published checkpoints, measured in turns."""
