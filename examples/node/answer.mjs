// node answer.mjs MODEL PROMPT...: what the model in a directory answers to each prompt, through onnxruntime-node.
// --json prints one object a prompt, with the tokens.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";
import { Decoder } from "./decoder.mjs";

const { values, positionals } = parseArgs({ options: { json: { type: "boolean" } }, allowPositionals: true });
const [model, ...prompts] = positionals;
if (prompts.length === 0) {
  console.error("usage: node answer.mjs [--json] MODEL PROMPT...");
  process.exit(2);
}

const session = await ort.InferenceSession.create(join(model, "model.onnx"));
const readText = (name) => readFile(join(model, name), "utf8").catch(() => null);
const decoder = await Decoder.load({ ort, Tokenizer, Template }, session, readText);

for (const prompt of prompts) {
  const tokens = [];
  let shown = "";
  for await (const token of decoder.tokens(prompt)) {
    tokens.push(token);
    const text = decoder.decode(tokens).trimStart();
    if (!values.json) process.stdout.write(text.slice(shown.length));
    shown = text;
  }
  console.log(values.json ? JSON.stringify({ prompt, tokens, answer: shown }) : "");
}
