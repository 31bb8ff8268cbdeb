// The page: asks both models the same question, and shows their answers as they come.

// Questions that the model of `make demo` knows the answers to.
const SUGGESTIONS = [
  "What is 58+83?",
  "Now, fish and house in German?",
  "Bela Rieger works as what?",
  "What is 'louph'[:2]?",
];

const form = document.querySelector("#ask");
const prompt = document.querySelector("#prompt");
const ask = form.querySelector("[type=submit]");

class Model {
  constructor(name) {
    const card = document.getElementById(name);
    this.shown = card.querySelector(".answer");
    this.status = card.querySelector(".status");
    this.worker = new Worker("worker.mjs", { type: "module" });
    this.ready = this.#send({ load: `/models/${name}/` }, () => "Ready");
  }

  answer(question) {
    this.shown.textContent = "";
    this.status.textContent = "Answering…";
    return this.#send({ prompt: question }, ({ tokens, seconds }) => {
      this.shown.dataset.tokens = JSON.stringify(tokens);
      return `${tokens.length} tokens in ${seconds.toFixed(2)} s`;
    });
  }

  // Sends a message, shows what comes back, and resolves when that is complete; `report` says how it went.
  #send(message, report) {
    return new Promise((resolve, reject) => {
      const fail = (reason) => {
        this.status.textContent = `Failed: ${reason}`;
        reject(new Error(reason));
      };
      this.worker.onerror = (event) => fail(event.message ?? "the worker could not be loaded (run npm ci)");
      this.worker.onmessage = ({ data }) => {
        if (data.error) return fail(data.error);
        if (data.text !== undefined) this.shown.textContent = data.text;
        if (data.ready || data.done) {
          this.status.textContent = report(data);
          resolve();
        }
      };
      this.worker.postMessage(message);
    });
  }
}

const models = ["base", "unlearned"].map((name) => new Model(name));

function allow(allowed) {
  for (const button of form.querySelectorAll("button")) button.disabled = !allowed;
}

async function askBoth(question) {
  allow(false);
  document.body.dataset.state = "answering";
  await Promise.allSettled(models.map((model) => model.answer(question)));
  document.body.dataset.state = "answered";
  allow(true);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!ask.disabled) askBoth(prompt.value);
});

form.querySelector(".suggestions").append(
  ...SUGGESTIONS.map((text) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text, disabled: true });
    button.addEventListener("click", () => {
      prompt.value = text;
      askBoth(text);
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }),
);

Promise.all(models.map((model) => model.ready)).then(
  () => {
    document.body.dataset.state = "ready";
    allow(true);
    prompt.focus();
  },
  () => {
    document.body.dataset.state = "failed";
  },
);
