// node transformers.mjs MODEL PROMPT...: the same through transformers.js. MODEL was baked with
// `bakeout bake --runtime transformers.js`.

import { basename, dirname, resolve } from "node:path";
import { parseArgs } from "node:util";
import { AutoTokenizer, AutoModelForCausalLM, env } from "@huggingface/transformers";

const { values, positionals } = parseArgs({ options: { json: { type: "boolean" } }, allowPositionals: true });
const [model, ...prompts] = positionals;
if (prompts.length === 0) {
  console.error("usage: node transformers.mjs [--json] MODEL PROMPT...");
  process.exit(2);
}

env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(model));
const name = basename(resolve(model));
const tokenizer = await AutoTokenizer.from_pretrained(name);
const decoder = await AutoModelForCausalLM.from_pretrained(name);

for (const prompt of prompts) {
  const inputs = tokenizer.apply_chat_template([{ role: "user", content: prompt }], {
    add_generation_prompt: true,
    return_dict: true,
  });
  const output = await decoder.generate({ ...inputs, max_new_tokens: 64, do_sample: false });
  const tokens = output.tolist()[0].slice(inputs.input_ids.dims[1]).map(Number);
  const answer = tokenizer.decode(tokens, { skip_special_tokens: true }).trimStart();
  console.log(values.json ? JSON.stringify({ prompt, tokens, answer }) : answer);
}
