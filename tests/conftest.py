import pytest
from closed_forms import SD_CONFIG

from fewstep.diffusion.schedule import Schedule


@pytest.fixture(scope="session")
def sd_schedule() -> Schedule:
    return Schedule.from_config(SD_CONFIG)


@pytest.fixture(scope="session")
def zero_terminal_schedule() -> Schedule:
    return Schedule.from_config(SD_CONFIG | {"rescale_betas_zero_snr": True})
