"""What ``autotune`` itself offers."""

import pytest

import autotune
from workers.measurement import Split
from workers.tasks import register


def test_every_name_is_there_and_leads_to_the_one_thing_of_that_name() -> None:
    assert dir(autotune) == sorted(autotune.__all__)
    for name in autotune.__all__:
        assert getattr(autotune, name) is not None
    assert autotune.Split is Split
    assert autotune.register is register
    assert autotune.tune.__name__ == "tune"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'autotune' has no attribute 'tuner'"):
        getattr(autotune, "tuner")  # noqa: B009 - what a reader of the module would write
