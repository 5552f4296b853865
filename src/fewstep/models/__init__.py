"""The only folder that knows diffusers and transformers: networks in, networks out."""
