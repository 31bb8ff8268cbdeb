"""Signatures by OpenSSF Model Signing: Sigstore bundles that ``model_signing verify`` reads without Bakeout.

A directory's signature lies in it, as ``model.sig``, and covers every other file, ``bakeout.json`` among them; that of
a file lies beside it. The links of a hub's cache stand for the files that they lead to; others are refused. Keys are
elliptic-curve keys in PEM.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.file_checks import links_out
from bakeout.export.artifacts.file_names import SIGNATURE
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.files.links import leads_to_blob
from bakeout.models.files.reading import read_regular
from bakeout.models.files.writing import replace_file, scratch_directory


def signature_of(path: Path) -> Path:
    """Where the signature of a directory or file lies."""
    return path / SIGNATURE if path.is_dir() else path.with_name(f"{path.name}.sig")


def sign(path: Path, key: Path, *, certificate: Path | None = None, chain: Sequence[Path] = ()) -> Path:
    """Sign a directory or file with the private key ``key``, and give the signature's path; an older one is replaced.

    ``certificate``: the signing certificate of that key, which the signature then carries, with the certificates in
    ``chain`` between it and the root. Raises ``BakeoutError`` for files that are no such keys or certificates and for
    links that lead out of the directory, and ``ModuleNotFoundError`` without the extra ``trust``.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from model_signing import hashing, signing

    if not path.exists():
        raise BakeoutError(f"{path} is not there.", "Name an artifact's directory, or a file.")
    if certificate is None and chain:
        raise BakeoutError("`chain` is for a certificate.", "Give `certificate` too, or leave it out.")
    for given in (key, *((certificate,) if certificate else ()), *chain):
        _pem(given)
    path = _placed(path)
    if links := _links_out(path):
        raise BakeoutError(
            f"{path} holds links that lead out of it: {', '.join(links)}.", "Put the files themselves there."
        )
    signature = signature_of(path)
    config = signing.Config().set_hashing_config(_hashing(hashing, path, signature))
    with scratch_directory() as scratch:
        written = scratch / SIGNATURE
        try:
            if certificate is None:
                config.use_elliptic_key_signer(private_key=key)
            else:
                # The library reads no empty chain.
                config.use_certificate_signer(
                    private_key=key, signing_certificate=certificate, certificate_chain=chain or [certificate]
                )
            config.sign(path, written)
        except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            raise BakeoutError(
                f"{path} cannot be signed with {key}: {_reason(error)}.",
                "Give an unencrypted private key of the curve P-256, P-384 or P-521 in PEM, and its own certificate.",
            ) from None
        replace_file(signature, written.read_bytes())
    return signature


def check_signature(path: Path, trusted: Path) -> tuple[bool, str]:
    """Whether a directory or file is as it was when the holder of a key signed it, and what can be said of that.

    ``trusted``: a PEM file with the public key, or with the root certificates of whoever may sign. Raises
    ``BakeoutError`` where it is neither.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from model_signing import hashing, verifying

    path = _placed(path)
    content = _pem(trusted)
    by_certificate = b"BEGIN CERTIFICATE" in content
    signature = signature_of(path)
    if not signature.is_file():
        return False, f"there is no {signature.name}"
    if links := _links_out(path):
        return False, f"links lead out of the directory: {', '.join(links)}"
    config = verifying.Config().set_hashing_config(_hashing(hashing, path, signature))
    try:
        if by_certificate:
            config.use_certificate_verifier(certificate_chain=[trusted])
        else:
            config.use_elliptic_key_verifier(public_key=trusted)
    except (ValueError, AttributeError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(trusted, _reason(error)) from None
    try:
        config.verify(path, signature)
    except InvalidSignature:
        return False, f"{signature.name} was made with another key than {trusted.name}"
    # Whatever a signature that somebody wrote makes the library raise.
    except Exception as error:  # noqa: BLE001
        return False, f"{signature.name}: {_reason(error)}"
    if path.is_dir() and (uncovered := _uncovered(path, signature)):
        return False, f"{signature.name} leaves out {', '.join(uncovered)}"
    return (
        True,
        f"{signature.name} covers all files, signed by {'a certificate' if by_certificate else 'the key'} of "
        + (trusted.name),
    )


def _placed(path: Path) -> Path:
    """``path``, absolute, since the library takes relative ones to ignore as relative to the model.

    A file of a hub's cache keeps its name in the snapshot.
    """
    if path.is_file() and leads_to_blob(path, path.parent):
        return path.parent.resolve() / path.name
    return path.resolve()


def _links_out(path: Path) -> list[str]:
    return links_out(path) if path.is_dir() else []


def _hashing(hashing: Any, path: Path, signature: Path) -> Any:
    """Every file is covered, those of git too, which the library leaves out by itself."""
    config = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    # Those that lead out were refused.
    return config.set_allow_symlinks(any(entry.is_symlink() for entry in (path, *path.rglob("*"))))


def _uncovered(directory: Path, signature: Path) -> list[str]:
    """What lies in a directory whose signature, which holds, was made without it."""
    payload = json.loads(base64.b64decode(read_json(signature)["dsseEnvelope"]["payload"]))
    left_out = payload["predicate"]["serialization"].get("ignore_paths", ())
    return sorted(name for name in left_out if name != SIGNATURE and (directory / name).exists())


def _pem(path: Path) -> bytes:
    """The content of a PEM file."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise BakeoutError(f"{path} cannot be read ({error.strerror}).", "Check the path.") from None
    if b"-----BEGIN " not in content:
        raise _no_key(path, "no PEM file")
    return content


def _no_key(path: Path, why: str) -> BakeoutError:
    return BakeoutError(f"{path} is neither a key nor a certificate ({why}).", "Give a PEM file.")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
