import pytest
from small_trainer import SmallRun


@pytest.fixture(scope="session")
def small_run(finished_run):
    return SmallRun(finished_run)
