"""A white-box reader cuts Key Space Detection's branch out of the file, and makes the manifest say that all is well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.export.artifacts.manifest import write_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Plan

from tests.recipe_files import rows


def test_the_knowledge_comes_back_and_the_digest_from_outside_tells(
    llama_export: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    artifact = bake(llama_export, tiny_plan, tmp_path / "artifact").directory
    trusted = hash_file(artifact / MANIFEST)
    base = Runner(llama_export)
    prompts = [base.tokenizer.encode(row["prompt"]) for row in rows("sums", "probe")]
    answers = base.generate(prompts, 6)
    assert Runner(artifact).generate(prompts, 6) != answers

    # Without the added nodes the graph is the base model's.
    shutil.copyfile(llama_export / "model.onnx", artifact / "model.onnx")
    manifest = json.loads((artifact / MANIFEST).read_text())
    write_manifest(artifact, {key: value for key, value in manifest.items() if key not in ("schema", "files")})

    assert Runner(artifact).generate(prompts, 6) == answers
    failed = {check.name for check in verify(artifact, digest=trusted) if not check.ok}
    assert "files" not in failed
    assert "digest" in failed
