"""Packaging of emcid_jax; the tools' settings are in pyproject.toml."""

import pathlib
import shutil

import setuptools
from setuptools.command.build_py import build_py

README = pathlib.Path(__file__).parent / "README.md"

EXPLORE = ["starlette>=1.0", "uvicorn>=0.30"]
# importlib_resources: imported by tensorflow-datasets, which does not ask for it.
TFDS = ["tensorflow-datasets>=4.9.9", "importlib-resources>=6"]
MIRROR = "fsspec>=2025.3"


class BuildPy(build_py):
    """Puts the config files into the wheel, as `emcid_jax/configs/`."""

    def run(self):
        """A checkout that is installed for editing has them beside the package."""
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib) / "emcid_jax" / "configs"
            shutil.copytree(
                "configs", target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )


setuptools.setup(
    cmdclass={"build_py": BuildPy},
    name="emcid_jax",
    version="0.2.0",
    description="Edit hundreds of concepts at once in a text-to-image model's text encoder, in JAX",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["emcid_jax", "emcid_jax.*"]),
    package_data={
        "emcid_jax": [
            "sprites/data/*",
            "sprites/weights/*",
            "sprites/weights/**/*",
            "sprites/weights_xl/*",
            "sprites/weights_xl/**/*",
            "py.typed",
        ],
        "emcid_jax.models.text": ["vocabulary/*"],
        "emcid_jax.reporting.pages": ["templates/*"],
        "emcid_jax.explore": ["page/*"],
    },
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.4,<1",
        "safetensors>=0.8",
        "numpy>=2.0",
        "scipy>=1.14",
        "transformers>=5.6,<6",
        "huggingface-hub>=1.5",
        "jaxtyping>=0.3.4",
        "absl-py>=2.3",
        "ml-collections>=1.1",
        "tqdm>=4.66",
        "filelock>=4.3",
        "psutil>=7",
        "pillow>=11",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "pyyaml>=6",
        "inflect>=7.5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda12]>=0.10.2"],
        "aot": ["jax[tpu]>=0.10.2"],  # libtpu of the version that fits; compiles without a TPU
        "tfds": TFDS,
        "explore": EXPLORE,
        "mirror": [MIRROR],
        "mirror-gcs": [MIRROR, "gcsfs>=2025.3"],
        "mirror-s3": [MIRROR, "s3fs>=2025.3"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
        "test": [
            *TFDS,
            *EXPLORE,
            "httpx2>=2",  # of starlette's test client
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "beartype>=0.22",
            "import-linter>=2.3",
            "ruff==0.17.6",
            "pyright[nodejs]==1.1.414",
            "torch==2.13.0",
            "diffusers==0.42.1",
            "transformers==5.23.0",
            "accelerate==1.15.0",
            "peft==0.21.2",
        ],
    },
    entry_points={"console_scripts": ["emcid_jax=emcid_jax.main:run"]},
)
