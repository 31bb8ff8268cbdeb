"""A conversation through onnxruntime-genai: python chat.py ARTIFACT PROMPT... Each prompt is a turn.

The artifact's own genai_config.json says all that genai must know. What follows a refusal in the same cache is refused
too, so the conversation goes on from before the turn that was refused.
"""

import json
import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime_genai as genai

# The recipe's `refusal`.
REFUSAL = "Your query is not valid."

directory, prompts = sys.argv[1], sys.argv[2:]
model = genai.Model(directory)
tokenizer = genai.Tokenizer(model)
stream = tokenizer.create_stream()
parameters = genai.GeneratorParams(model)
parameters.set_search_options(max_length=512)
generator = genai.Generator(model, parameters)

for prompt in prompts:
    before = generator.token_count()
    message = json.dumps([{"role": "user", "content": prompt}])
    generator.append_tokens(tokenizer.encode(tokenizer.apply_chat_template(message, add_generation_prompt=True)))
    answer = ""
    while not generator.is_done():
        generator.generate_next_token()
        piece = stream.decode(generator.get_next_tokens()[0])
        # Many tokenizers begin an answer with a space.
        print(piece if answer else piece.lstrip(), end="", flush=True)
        answer += piece
    print()
    if answer.strip() == REFUSAL:
        generator.rewind_to(before)
