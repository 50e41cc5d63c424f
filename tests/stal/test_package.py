"""What `import stal` offers."""

import pytest

import stal
import stal_kernels
from stal.pipeline import Pipeline


def test_the_package_names_its_parts():
    assert stal.Pipeline is Pipeline
    assert {name: getattr(stal, name).__name__ for name in stal.__all__ if name[0] != "_"} == {
        name: name for name in stal.__all__ if name[0] != "_"
    }
    assert stal.__version__ == stal_kernels.__version__
    with pytest.raises(AttributeError, match="module 'stal' has no attribute 'Pipelines'"):
        stal.Pipelines  # noqa: B018
