"""Related systems from the literature, one file each, built from this library's layers.

They train on the same data with the same recipe as TITN. Every file here is imported and registers its own models.
Their training objectives, and those of papers without a network, are in `titn_lib.losses`.
"""

from importlib import import_module
from pkgutil import iter_modules

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
