from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.tenants.tenancy import Tenancy, running_tenancy


@pytest.fixture(scope="package")
def tenancy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenancy]:
    """The tiny model behind two API server processes, for several tenants."""
    with running_tenancy(tiny_model, tmp_path_factory.mktemp("tenancy")) as tenancy:
        yield tenancy
