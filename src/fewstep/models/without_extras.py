"""Imports diffusers and peft without their extras, for processes of our own that name modules to begin with."""

from fewstep.importing import uncollected
from fewstep.models.libraries import import_without_extras

with uncollected():
    import_without_extras()
