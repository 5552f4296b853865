"""The only folder that knows diffusers and transformers: networks in, networks out."""

import logging

# Where it is installed and there is no GPU, it says at its import what it could not load for one.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
