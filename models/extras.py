"""The extras of the installation, which bring the libraries that the base install does without."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from bakeout.models.errors import BakeoutError

# Each is the name of a package as it is imported, and the extra that brings it.
EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "OpenSSL": "trust",
        "cryptography": "trust",
        "cyclonedx": "trust",
        "gguf": "gguf",
        "jsonschema": "trust",
        "lm_eval": "harness",
        "matplotlib": "report",
        "model_signing": "trust",
        "onnxruntime_genai": "genai",
        "onnxscript": "fit",
        "optimum": "optimum",
        "optuna": "tune",
        "peft": "fit",
        "pyarrow": "parquet",
        "rouge_score": "rouge",
        "scipy": "fit",
        "torch": "fit",
        "transformers": "fit",
    }
)


def missing_extra(error: ModuleNotFoundError, what: str) -> BakeoutError | None:
    """The error for users where ``what`` needs a library of an extra; None where the library is of none.

    >>> print(missing_extra(ModuleNotFoundError(name="torch"), "`bakeout fit`"))
    `bakeout fit` needs torch. Install it: pip install 'bakeout[fit]'.
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return BakeoutError(f"{what} needs {package}.", f"Install it: {installing(package)}.")


def installing(package: str) -> str:
    """The command that installs ``package`` with its extra."""
    return f"pip install 'bakeout[{EXTRAS[package]}]'"


def is_installed(package: str) -> bool:
    """Whether ``package`` can be imported. Does not import it."""
    return find_spec(package) is not None
