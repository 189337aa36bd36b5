"""What may be chosen for each layer: precision, activation mode, and the map of choices.

Import the module that owns the noun, for example ``search_spaces.choice``. Only
``search_spaces.discovery`` imports torch, so that readers of maps stay light.
"""
