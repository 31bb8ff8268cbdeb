// node serve.mjs BASE UNLEARNED [--port 8000]: serves the page, its libraries, and two models for it to run.
// Nothing is computed here: both models run in the browser.

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values, positionals } = parseArgs({
  options: { port: { type: "string", default: "8000" } },
  allowPositionals: true,
});
if (positionals.length !== 2) {
  console.error("usage: node serve.mjs [--port 8000] BASE UNLEARNED");
  process.exit(2);
}

const here = fileURLToPath(new URL(".", import.meta.url));
// The decoding loop is the Node.js example's.
const folders = {
  "/models/base/": positionals[0],
  "/models/unlearned/": positionals[1],
  "/shared/": join(here, "../node"),
  "/": here,
};
for (const folder of positionals) {
  if (!(await stat(folder).catch(() => null))?.isDirectory()) {
    console.error(`${folder} is no directory`);
    process.exit(2);
  }
}
const types = {
  ".css": "text/css",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".json": "application/json",
  ".mjs": "text/javascript",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};

// The file that a request asks for, or null where it leaves its folder or cannot be read.
function fileOf(url) {
  let path;
  try {
    path = decodeURIComponent(new URL(url, "http://localhost").pathname);
  } catch {
    return null;
  }
  const [prefix, folder] = Object.entries(folders).find(([start]) => path.startsWith(start));
  const root = resolve(folder);
  const file = normalize(join(root, path.slice(prefix.length) || "index.html"));
  return file.startsWith(root + sep) ? file : null;
}

const headers = {
  // The page and its threads load from here alone.
  "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:",
  // Together these two let WebAssembly use threads.
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

const server = createServer(async (request, response) => {
  const file = fileOf(request.url);
  const status = file && (await stat(file).catch(() => null));
  if (!status?.isFile()) return response.writeHead(404).end();
  response.writeHead(200, {
    "Content-Type": types[extname(file)] ?? "application/octet-stream",
    "Content-Length": status.size,
    ...headers,
  });
  if (request.method === "HEAD") return response.end();
  return createReadStream(file).pipe(response);
});

server.listen(Number(values.port), "127.0.0.1", () => {
  console.log(`http://localhost:${server.address().port}`);
});
