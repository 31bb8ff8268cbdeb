// One model in a thread of its own, so that the page stays responsive. It is sent { load: FOLDER } once and answers
// { ready }; then { prompt }, and answers { text } as often as there is more of it, and { done, tokens, seconds }. What
// fails is { error }.

import { Template } from "./node_modules/@huggingface/jinja/dist/index.js";
import { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.mjs";
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
import { Decoder } from "./shared/decoder.mjs";

let decoder;

async function readText(url) {
  const response = await fetch(url);
  return response.ok ? response.text() : null;
}

// The graph's weights lie in a file beside it, by one of these names.
async function weights(folder) {
  for (const path of ["model.onnx.data", "model.onnx_data"]) {
    if ((await fetch(folder + path, { method: "HEAD" })).ok) return [{ path, data: folder + path }];
  }
  return [];
}

async function load(folder) {
  const session = await ort.InferenceSession.create(folder + "model.onnx", { externalData: await weights(folder) });
  decoder = await Decoder.load({ ort, Tokenizer, Template }, session, (name) => readText(folder + name));
  postMessage({ ready: true });
}

async function answer(prompt) {
  const start = performance.now();
  const tokens = [];
  for await (const token of decoder.tokens(prompt)) {
    tokens.push(token);
    postMessage({ text: decoder.decode(tokens).trimStart() });
  }
  postMessage({ done: true, tokens, seconds: (performance.now() - start) / 1000 });
}

onmessage = ({ data }) => {
  (data.load ? load(data.load) : answer(data.prompt)).catch((error) => postMessage({ error: error.message }));
};
