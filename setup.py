from setuptools import find_packages, setup

# The configs stand at the top, for people to read and copy, and in the package, for `--config=NAME`. All else is in
# pyproject.toml.
setup(packages=[*find_packages(include=["deit_jax*"]), "deit_jax.configs"], package_dir={"deit_jax.configs": "configs"})
