"""Imports diffusers and peft without bitsandbytes, for processes of our own that name modules to begin with."""

from fewstep.models.libraries import import_without_bitsandbytes

import_without_bitsandbytes()
