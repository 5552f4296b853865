"""What is said where a model is not loaded."""

import pytest
import torch

from fewstep.errors import UserError
from fewstep.models.loading import load_latent_model


def refusal(source, **options):
    with pytest.raises(UserError) as caught:
        load_latent_model(source, torch.device("cpu"), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
