"""The real sample media, fetched once into the cache that the environment names."""

import pytest

from data_pipelines.sample_media import SampleMedia, fetch


@pytest.fixture(scope="session")
def sample_media() -> SampleMedia:
    return fetch()
