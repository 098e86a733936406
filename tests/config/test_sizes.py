"""The text that names image sizes; what it refuses is in tests/config/test_resolve.py."""

from deit_jax.config.sizes import parse_sizes


def test_sizes_and_the_epochs_that_they_begin_with():
    assert parse_sizes("") == ()
    assert parse_sizes("128@0") == ((128, 0.0),)
    assert parse_sizes("128@0,8192@0.25,160@90,224@180.5") == ((128, 0.0), (8192, 0.25), (160, 90.0), (224, 180.5))
