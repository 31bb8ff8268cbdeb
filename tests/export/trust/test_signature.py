"""Signatures: what `model_signing` verifies by itself, and what neither it nor `bakeout verify` lets through."""

from __future__ import annotations

import base64
import datetime as dt
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from bakeout.export.artifacts.file_names import SIGNATURE
from bakeout.export.cli.main import main
from bakeout.export.trust.signature import check_signature, sign
from bakeout.export.verification.verify import verify
from bakeout.models.errors import BakeoutError


@pytest.fixture(scope="module")
def artifact() -> Path:
    """An artifact of an earlier release."""
    return Path(__file__).parents[2] / "fixtures" / "v0.1.0" / "artifacts" / "graph"


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(artifact, tmp_path / "artifact")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key pair, another one, and a certificate of the first with its root."""
    directory = tmp_path_factory.mktemp("keys")
    own, other, root = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    for name, key in (("own", own), ("other", other)):
        (directory / f"{name}.key").write_bytes(_private(key))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (directory / f"{name}.pub").write_bytes(public)
    authority = _certificate("root", root, "root", root, is_authority=True)
    for name, one in (("root", authority), ("own", _certificate("signer", own, "root", root, is_authority=False))):
        (directory / f"{name}.crt").write_bytes(one.public_bytes(serialization.Encoding.PEM))
    return directory


def _private(
    key: ec.EllipticCurvePrivateKey, encryption: serialization.KeySerializationEncryption | None = None
) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption or serialization.NoEncryption()
    )


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, *, is_authority: bool
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, issuer)]
    usage = x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(usage, critical=True)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return builder.sign(by, hashes.SHA256())


def _model_signing(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_model_signing_alone_verifies_what_a_key_signed(copy: Path, keys: Path) -> None:
    signed = CliRunner().invoke(main, ["sign", str(copy), "--key", str(keys / "own.key")])
    assert signed.exit_code == 0, signed.output
    for key, status in (("own", 0), ("other", 1)):
        verified = _model_signing(
            "verify", "key", copy, "--signature", copy / SIGNATURE, "--public_key", keys / f"{key}.pub"
        )
        assert (verified.returncode == 0) == (status == 0), verified.stdout + verified.stderr


def test_paths_may_be_relative(copy: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    relative = Path(copy.name)
    assert sign(relative, keys / "own.key") == copy / SIGNATURE
    assert check_signature(relative, keys / "own.pub")[0]
    verified = _model_signing(
        "verify", "key", relative, "--signature", relative / SIGNATURE, "--public_key", keys / "own.pub"
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_model_signing_alone_verifies_what_a_certificate_signed(copy: Path, keys: Path) -> None:
    arguments = ["sign", str(copy), "--key", str(keys / "own.key"), "--certificate", str(keys / "own.crt")]
    signed = CliRunner().invoke(main, arguments)
    assert signed.exit_code == 0, signed.output
    verified = _model_signing(
        "verify", "certificate", copy, "--signature", copy / SIGNATURE, "--certificate_chain", keys / "root.crt"
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    ok, detail = check_signature(copy, keys / "root.crt")
    assert ok, detail


def test_verify_checks_the_signature_beside_the_rest(copy: Path, keys: Path) -> None:
    sign(copy, keys / "own.key")
    checks = {check.name: check for check in verify(copy, signature=keys / "own.pub", checks=["files"])}
    assert all(check.ok for check in checks.values()), checks
    assert set(checks) == {"signature", "files"}
    arguments = ["verify", str(copy), "--signature", str(keys / "other.pub"), "--checks", "files"]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert "NOT OK  signature" in refused.output


@pytest.mark.parametrize("name", ["model.onnx", "bakeout.json", "new.txt"])
def test_no_file_changes_unnoticed(copy: Path, keys: Path, name: str) -> None:
    sign(copy, keys / "own.key")
    with (copy / name).open("ab") as file:
        file.write(b"\n")
    ok, detail = check_signature(copy, keys / "own.pub")
    assert not ok
    assert name in detail


@pytest.mark.parametrize("name", [".github/run.py", ".gitattributes"])
def test_files_of_git_are_covered_too(copy: Path, keys: Path, name: str) -> None:
    """Model Signing leaves them out by itself, and nobody would see what was added there."""
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("before")
    sign(copy, keys / "own.key")
    assert check_signature(copy, keys / "own.pub")[0]
    (copy / name).write_text("after")
    ok, detail = check_signature(copy, keys / "own.pub")
    assert not ok
    assert name in detail


def test_a_signature_that_leaves_files_out_is_not_ok(copy: Path, keys: Path) -> None:
    (copy / ".gitattributes").write_text("*.onnx filter=lfs")
    arguments = ("--signature", copy / SIGNATURE, "--private_key", keys / "own.key")
    signed = _model_signing("sign", "key", copy, *arguments)
    assert signed.returncode == 0, signed.stderr
    assert check_signature(copy, keys / "own.pub") == (False, f"{SIGNATURE} leaves out .gitattributes")
    (copy / ".gitattributes").unlink()
    assert check_signature(copy, keys / "own.pub")[0]


def test_what_is_not_signed_is_not_ok(copy: Path, keys: Path) -> None:
    assert check_signature(copy, keys / "own.pub") == (False, f"there is no {SIGNATURE}")
    (copy / SIGNATURE).write_text("{}")
    ok, _ = check_signature(copy, keys / "own.pub")
    assert not ok


def test_an_artifact_that_was_changed_is_not_signed(copy: Path, keys: Path) -> None:
    (copy / "config.json").write_text("{}")
    signed = CliRunner().invoke(main, ["sign", str(copy), "--key", str(keys / "own.key")])
    assert signed.exit_code == 1
    assert "config.json" in signed.output
    assert not (copy / SIGNATURE).exists()


def test_a_single_file_has_its_signature_beside_it(tmp_path: Path, keys: Path) -> None:
    adapter = tmp_path / "policy.onnx_adapter"
    adapter.write_bytes(b"weights")
    assert sign(adapter, keys / "own.key") == tmp_path / "policy.onnx_adapter.sig"
    verified = _model_signing(
        "verify", "key", adapter, "--signature", f"{adapter}.sig", "--public_key", keys / "own.pub"
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert check_signature(adapter, keys / "own.pub")[0]
    adapter.write_bytes(b"other weights")
    assert not check_signature(adapter, keys / "own.pub")[0]


@pytest.fixture
def snapshot(artifact: Path, tmp_path: Path) -> Path:
    """The artifact as a hub's cache holds it: links to blobs."""
    cache = tmp_path / "models--name"
    snapshot = cache / "snapshots" / "revision"
    (cache / "blobs").mkdir(parents=True)
    for path in sorted(path for path in artifact.rglob("*") if path.is_file()):
        link = snapshot / path.relative_to(artifact)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = shutil.copyfile(path, cache / "blobs" / str(len(list((cache / "blobs").iterdir()))))
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_signed_artifact_in_a_hubs_cache_is_ok(copy: Path, snapshot: Path, keys: Path, tmp_path: Path) -> None:
    signature = sign(copy, keys / "own.key")
    blob = shutil.move(signature, snapshot.parents[1] / "blobs" / "signature")
    (snapshot / SIGNATURE).symlink_to(blob)
    assert check_signature(snapshot, keys / "own.pub")[0]
    # One file of it, too: its signature lies beside its name, not beside the blob.
    assert sign(snapshot / "model.onnx", keys / "own.key") == snapshot / "model.onnx.sig"
    assert check_signature(snapshot / "model.onnx", keys / "own.pub")[0]
    (snapshot / "model.onnx.sig").unlink()
    with (snapshot / "model.onnx").open("ab") as file:
        file.write(b"more")
    ok, told = check_signature(snapshot, keys / "own.pub")
    assert not ok and "model.onnx" in told


def test_what_is_signed_in_a_hubs_cache_may_be_copied_from_there(snapshot: Path, keys: Path, tmp_path: Path) -> None:
    sign(snapshot, keys / "own.key")
    copied = shutil.copytree(snapshot, tmp_path / "copied")
    assert check_signature(copied, keys / "own.pub")[0]


@pytest.mark.parametrize("in_cache", [True, False])
def test_links_that_lead_elsewhere_are_refused(
    copy: Path, snapshot: Path, keys: Path, tmp_path: Path, in_cache: bool
) -> None:
    directory = snapshot if in_cache else copy
    sign(directory, keys / "own.key")
    outside = shutil.copyfile(directory / "model.onnx", tmp_path / "outside")
    (directory / "model.onnx").unlink()
    (directory / "model.onnx").symlink_to(outside)
    ok, told = check_signature(directory, keys / "own.pub")
    assert not ok and told == "links lead out of the directory: model.onnx"
    with pytest.raises(BakeoutError, match=r"links that lead out of it: model\.onnx"):
        sign(directory, keys / "own.key")


def test_what_is_no_key_is_refused(copy: Path, keys: Path, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        _private(ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"secret"))
    )
    text = tmp_path / "text.txt"
    text.write_text("key")
    for key in (encrypted, text, keys / "own.pub", tmp_path / "absent"):
        with pytest.raises(BakeoutError):
            sign(copy, key)
    with pytest.raises(BakeoutError, match="its own certificate"):
        sign(copy, keys / "other.key", certificate=keys / "own.crt")
    with pytest.raises(BakeoutError, match="`certificate`"):
        sign(copy, keys / "own.key", chain=[keys / "root.crt"])
    sign(copy, keys / "own.key")
    # The public key with a type that no library knows: 1.2.840.10045.2.65 in the place of .1.
    body = base64.b64decode("".join((keys / "own.pub").read_text().splitlines()[1:-1]))
    odd = tmp_path / "odd.pub"
    changed = base64.encodebytes(body.replace(b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x41"))
    odd.write_bytes(b"-----BEGIN PUBLIC KEY-----\n" + changed + b"-----END PUBLIC KEY-----\n")
    for key in (text, odd):
        with pytest.raises(BakeoutError, match="neither a key nor a certificate"):
            check_signature(copy, key)
