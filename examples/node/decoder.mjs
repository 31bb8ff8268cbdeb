// Greedy decoding with a KV cache through ONNX Runtime's JavaScript API: the same code in Node.js and in the browser, so
// that it imports nothing: it is given the libraries. Nothing here knows of unlearning: a refusal comes out of the graph
// like any other text.

const integers = (values) => BigInt64Array.from(values, BigInt);

export class Decoder {
  // `libraries`: { ort (onnxruntime-node or onnxruntime-web), Tokenizer, Template }; `session`: the graph;
  // `readText(name)`: the text of a file of the model, or null where there is none.
  static async load({ ort, Tokenizer, Template }, session, readText) {
    const readJson = async (name) => JSON.parse((await readText(name)) ?? "{}");
    const settings = await readJson("tokenizer_config.json");
    const tokenizer = new Tokenizer(await readJson("tokenizer.json"), settings);
    const template = settings.chat_template ?? (await readText("chat_template.jinja"));
    const { eos_token_id: ends } = { ...(await readJson("config.json")), ...(await readJson("generation_config.json")) };
    return new Decoder(ort, session, tokenizer, template && new Template(template), settings, [ends].flat());
  }

  constructor(ort, session, tokenizer, template, settings, ends) {
    Object.assign(this, { ort, session, tokenizer, template, settings, ends });
  }

  // A prompt's tokens, through the tokenizer's chat template where it has one.
  encode(prompt) {
    if (!this.template) return this.tokenizer.encode(prompt).ids;
    const text = this.template.render({
      ...this.settings,
      messages: [{ role: "user", content: prompt }],
      add_generation_prompt: true,
    });
    return this.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  decode(tokens) {
    return this.tokenizer.decode(tokens, { skip_special_tokens: true });
  }

  // The tokens of an answer, one by one, the end-of-text token included.
  async *tokens(prompt, most = 64) {
    let fed = this.encode(prompt);
    let cache = this.#empty();
    for (let past = 0, said = 0; said < most; said += 1) {
      const total = past + fed.length;
      const outputs = await this.session.run({ ...this.#inputs(fed, past), ...cache });
      cache = this.#past(outputs);
      const token = await likeliest(outputs.logits);
      yield token;
      if (this.ends.includes(token)) return;
      [fed, past] = [[token], total];
    }
  }

  #inputs(fed, past) {
    const total = past + fed.length;
    const all = {
      input_ids: new this.ort.Tensor("int64", integers(fed), [1, fed.length]),
      attention_mask: new this.ort.Tensor("int64", integers(Array(total).fill(1)), [1, total]),
      position_ids: new this.ort.Tensor("int64", integers(fed.map((_, index) => past + index)), [1, fed.length]),
    };
    return Object.fromEntries(Object.entries(all).filter(([name]) => this.session.inputNames.includes(name)));
  }

  // A cache of no tokens: [1, heads, 0, head size] for each layer's keys and values.
  #empty() {
    const past = this.session.inputMetadata.filter(({ name }) => name.startsWith("past"));
    return Object.fromEntries(
      past.map(({ name, type, shape }) => {
        const nothing = type === "float16" ? new Uint16Array() : new Float32Array();
        return [name, new this.ort.Tensor(type, nothing, [1, shape[1], 0, shape[3]])];
      }),
    );
  }

  #past(outputs) {
    const present = Object.entries(outputs).filter(([name]) => name.startsWith("present"));
    return Object.fromEntries(present.map(([name, value]) => [name.replace("present", "past_key_values"), value]));
  }
}

// The token with the highest of the last position's logits, [1, positions, vocabulary].
async function likeliest(logits) {
  const last = (await logits.getData()).subarray(-logits.dims[2]);
  // Where JavaScript has no 16-bit floats, their bits come as integers, whose order is the floats' but for the sign.
  const rank = last instanceof Uint16Array ? (bits) => (bits & 0x8000 ? 0x8000 - bits : bits) : (value) => value;
  return last.reduce((best, value, token) => (rank(value) > rank(last[best]) ? token : best), 0);
}
