// node decode.mjs {onnxruntime-node,onnxruntime-web} DIRECTORY < REQUEST > ANSWERS: greedy answers to prompts of token
// ids. REQUEST: {"graphs": one file, or two of a pair, "prompts", "longest", "ends", "head": the head size where a
// graph leaves it open}. graph_runtimes.py calls it.

import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";

const [library, directory] = process.argv.slice(2);
const ort = await import(library);
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { graphs, prompts, longest, ends, head } = JSON.parse(Buffer.concat(chunks).toString());

async function open(name) {
  if (library === "onnxruntime-node") return ort.InferenceSession.create(join(directory, name));
  ort.env.wasm.numThreads = 1;
  const names = (await readdir(directory)).filter((file) => /\.(data|bin|safetensors)$/.test(file));
  const externalData = await Promise.all(
    names.map(async (path) => ({ path, data: new Uint8Array(await readFile(join(directory, path))) })),
  );
  const graph = new Uint8Array(await readFile(join(directory, name)));
  return ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData });
}

const sessions = await Promise.all(graphs.map(open));
const [first, next] = [sessions[0], sessions.at(-1)];
const isPast = (name) => /^(past|input\.cache)/.test(name);
// The input that takes what an output leaves.
const pastOf = (name) => name.replace(/^present/, "past_key_values").replace(/^(output\.)?cache\./, "input.cache.");
const integers = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);

function empty(session) {
  const past = session.inputMetadata.filter(({ name }) => isPast(name));
  return Object.fromEntries(
    past.map(({ name, type, shape }) => {
      const nothing = type === "float16" ? new Uint16Array() : new Float32Array();
      const size = typeof shape[3] === "number" ? shape[3] : head;
      return [name, new ort.Tensor(type, nothing, [1, Number(shape[1]), 0, size])];
    }),
  );
}

function likeliest(logits) {
  const last = logits.data.subarray(-logits.dims[2]);
  const rank = last instanceof Uint16Array ? (bits) => (bits & 0x8000 ? 0x8000 - bits : bits) : (value) => value;
  return last.reduce((best, value, token) => (rank(value) > rank(last[best]) ? token : best), 0);
}

async function answer(prompt) {
  const said = [];
  let [session, fed, past, cache] = [first, prompt, 0, empty(first)];
  while (said.length < longest && !ends.includes(said.at(-1))) {
    const total = past + fed.length;
    const inputs = {
      input_ids: integers(fed),
      attention_mask: integers(Array(total).fill(1)),
      position_ids: integers(fed.map((_, index) => past + index)),
    };
    const taken = Object.entries(inputs).filter(([name]) => session.inputNames.includes(name));
    const outputs = await session.run({ ...Object.fromEntries(taken), ...cache });
    cache = Object.fromEntries(
      Object.entries(outputs)
        .map(([name, value]) => [pastOf(name), value])
        .filter(([name]) => isPast(name)),
    );
    said.push(likeliest(outputs.logits));
    [session, fed, past] = [next, [said.at(-1)], total];
  }
  return said;
}

const answers = [];
for (const prompt of prompts) answers.push(await answer(prompt));
console.log(JSON.stringify(answers));
