"""What an artifact answers, by ONNX Runtime and nothing of Bakeout: python answer.py ARTIFACT PROMPT..."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

directory, prompts = Path(sys.argv[1]), sys.argv[2:]
session = onnxruntime.InferenceSession(directory / "model.onnx")
tokenizer = AutoTokenizer.from_pretrained(directory)
ends = set(np.atleast_1d(json.loads((directory / "config.json").read_text())["eos_token_id"]).tolist())
past = [entry for entry in session.get_inputs() if entry.name.startswith("past")]
outputs = [entry.name for entry in session.get_outputs()]

for prompt in prompts:
    message = [{"role": "user", "content": prompt}]
    chat = tokenizer.chat_template is not None
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) if chat else prompt
    new = tokenizer(text, add_special_tokens=not chat).input_ids
    answer: list[int] = []
    dtype = np.float16 if past[0].type == "tensor(float16)" else np.float32
    cache = {entry.name: np.zeros((1, entry.shape[1], 0, entry.shape[3]), dtype) for entry in past}
    length = 0
    while len(answer) < 64 and not ends & set(answer):
        fed = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, length + len(new)), np.int64),
            "position_ids": np.arange(length, length + len(new))[None],
        }
        found = dict(zip(outputs, session.run(None, {**fed, **cache}), strict=True))
        length += len(new)
        cache = {entry.name: found[entry.name.replace("past_key_values", "present")] for entry in past}
        answer += (new := [int(found["logits"][0, -1].argmax())])
    print(tokenizer.decode(answer, skip_special_tokens=True).strip())
