// The page at /docs: lists the operations of the OpenAPI document, and tries them. Addresses are relative to the page,
// so that it works below any path. What the service answers is shown as text, never as HTML.

const BASE = new URL(".", document.baseURI);
const LONGEST_SHOWN = 200_000; // characters of an answer

/** @type {any} */
let openapi;
let count = 0;

/**
 * A new element.
 * @param {string} name
 * @param {Record<string, string>} attributes
 * @param {...(Node | string)} children
 */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The thing that a `$ref` refers to, or the thing itself. @param {any} thing */
function resolved(thing) {
  if (!thing?.$ref) return thing;
  const found = thing.$ref.slice(2).split("/").reduce((at, key) => at[key], openapi);
  return { ...found, ...thing, name: thing.$ref.split("/").pop() };
}

/** A line of text with `code` in it. @param {string} text */
function words(text) {
  return text.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

// Schemas

/** What a schema says in a line. @param {any} schema @returns {string} */
function kindOf(schema) {
  const whole = resolved(schema);
  if (whole.name && !whole.enum) return whole.name;
  if (whole.enum) return whole.enum.map((item) => JSON.stringify(item)).join(" | ");
  if ("const" in whole) return JSON.stringify(whole.const);
  if (whole.anyOf) return whole.anyOf.map(kindOf).join(" | ");
  if (whole.type === "array") return `array of ${kindOf(whole.items ?? {})}`;
  if (whole.contentMediaType || whole.format === "binary") return "bytes";
  return [whole.type ?? "anything"].flat().join(" | ");
}

/** Bounds of a schema. @param {any} schema */
function boundsOf(schema) {
  const whole = resolved(schema);
  const names = ["minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "default"];
  return names.filter((name) => name in whole).map((name) => `${name} ${JSON.stringify(whole[name])}`).join(", ");
}

/** The schemas with members of their own to which a schema leads. @param {any} schema @returns {any[]} */
function membersOf(schema) {
  const whole = resolved(schema);
  if (whole.properties) return [whole];
  const inner = [...(whole.anyOf ?? []), whole.items, whole.additionalProperties];
  return inner.filter((item) => item && typeof item === "object").flatMap(membersOf);
}

/** A list of the members of a schema; those of inner ones are made when they are opened. @param {any} schema */
function schemaList(schema) {
  const all = make("div");
  for (const whole of membersOf(schema)) {
    const list = make("ul", { class: "schema" });
    for (const [name, member] of Object.entries(whole.properties)) {
      const must = whole.required?.includes(name) ? "" : " (may be absent)";
      const line = make("li", {}, make("code", {}, name), ` ${kindOf(member)}${must} `);
      line.append(make("span", { class: "note" }, ...words(resolved(member).description ?? "")));
      if (membersOf(member).length) line.append(lazyDetails("members", () => schemaList(member)));
      list.append(line);
    }
    all.append(list);
  }
  return all;
}

/** Details whose content is made when they are opened. @param {string} title @param {() => Node} content */
function lazyDetails(title, content) {
  const details = make("details", {}, make("summary", {}, title));
  details.addEventListener("toggle", () => details.append(content()), { once: true });
  return details;
}

// Operations

/** @param {any[]} parameters */
function parameterTable(parameters) {
  const table = make("table", {}, make("caption", {}, "Parameters"));
  const head = make("tr");
  for (const title of ["Name", "In", "Type", "What"]) head.append(make("th", { scope: "col" }, title));
  table.append(head);
  for (const parameter of parameters) {
    const row = make("tr", {}, make("th", { scope: "row" }, make("code", {}, parameter.name)));
    row.append(make("td", {}, parameter.in), make("td", {}, kindOf(parameter.schema)));
    const bounds = boundsOf(parameter.schema);
    row.append(make("td", {}, ...words(parameter.description ?? ""), bounds && ` (${bounds})`));
    table.append(row);
  }
  return table;
}

/** @param {any} responses */
function answerList(responses) {
  const list = make("ul");
  for (const [status, response] of Object.entries(responses)) {
    const whole = resolved(response);
    const line = make("li", {}, make("strong", {}, status), " ", ...words(whole.description));
    for (const [kind, content] of Object.entries(whole.content ?? {})) {
      line.append(" ", make("code", {}, kind));
      if (membersOf(content.schema).length) line.append(lazyDetails("members", () => schemaList(content.schema)));
    }
    list.append(line);
  }
  return list;
}

/** An example as the text that is sent. @param {string} kind @param {any} value */
function exampleText(kind, value) {
  if (kind === "application/x-ndjson") return value.map((item) => JSON.stringify(item)).join("\n");
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

/** A labelled control. @param {string} label @param {HTMLElement} control */
function field(label, control) {
  control.id = `control-${++count}`;
  return make("div", { class: "field" }, make("label", { for: control.id }, label), control);
}

/** @param {string} method @param {string} path @param {any} operation */
function operationDetails(method, path, operation) {
  const role = operation["x-role"] ?? (operation.security ? "public" : "any token");
  const summary = make("summary", {}, make("span", { class: `method ${method}` }, method.toUpperCase()));
  summary.append(make("code", {}, path), ` ${operation.summary} `, make("span", { class: "role" }, role));
  const details = make("details", { class: "operation", id: operation.operationId }, summary);
  details.addEventListener("toggle", () => details.append(operationBody(method, path, operation)), { once: true });
  return details;
}

/** @param {string} method @param {string} path @param {any} operation */
function operationBody(method, path, operation) {
  const body = make("div", {}, make("p", { class: "text" }, ...words(operation.description)));
  if (operation.parameters.length) body.append(parameterTable(operation.parameters));
  for (const [kind, content] of Object.entries(operation.requestBody?.content ?? {})) {
    body.append(make("h4", {}, "Sends ", make("code", {}, kind)), schemaList(content.schema));
    for (const [name, example] of Object.entries(content.examples ?? {})) {
      body.append(lazyDetails(`example: ${name}`, () => make("pre", {}, exampleText(kind, example.value))));
    }
  }
  body.append(make("h4", {}, "Answers"), answerList(operation.responses), tryForm(method, path, operation));
  return body;
}

// Trying

/** @param {string} method @param {string} path @param {any} operation */
function tryForm(method, path, operation) {
  const form = make("form", { autocomplete: "off" }, make("h4", {}, "Try"));
  const inputs = operation.parameters.map((parameter) => {
    const choices = resolved(parameter.schema).enum;
    const input = make(choices ? "select" : "input", { class: "mono" });
    if (choices) input.append(make("option", { value: "" }, "—"), ...choices.map((item) => make("option", {}, item)));
    if (parameter.in === "path") input.value = parameter.example ?? "";
    input.required = Boolean(parameter.required);
    form.append(field(parameter.name, input));
    return { parameter, input };
  });
  const content = bodyControls(form, operation.requestBody?.content);
  const send = make("button", { type: "submit" }, "Send");
  const stop = make("button", { type: "button", disabled: "" }, "Stop");
  const answer = make("div", { role: "status", "aria-label": "Answer" });
  form.append(make("div", { class: "field" }, send, stop), answer);
  let abort = new AbortController();
  stop.addEventListener("click", () => abort.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    abort = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    try {
      const [url, init] = requestOf(method, path, inputs, content?.());
      await show(answer, url, { ...init, signal: abort.signal });
    } catch (error) {
      if (error.name !== "AbortError") answer.append(make("p", { class: "bad" }, String(error)));
    }
    send.disabled = false;
    stop.disabled = true;
  });
  return form;
}

/**
 * Controls for a body; returns what reads them.
 * @param {HTMLElement} form
 * @param {Record<string, any> | undefined} contents
 */
function bodyControls(form, contents) {
  if (!contents) return undefined;
  const kinds = Object.keys(contents);
  const choice = make("select", {}, ...kinds.map((kind) => make("option", {}, kind)));
  const text = make("textarea", { spellcheck: "false" });
  const file = make("input", { type: "file" });
  const query = make("input", { class: "mono" });
  const fileField = field("File", file);
  const queryField = field("Query (vars)", query);
  const fill = () => {
    const examples = Object.values(contents[choice.value].examples ?? {});
    text.value = examples.length ? exampleText(choice.value, examples[0].value) : "";
    fileField.hidden = !/multipart|octet/.test(choice.value);
    queryField.hidden = !/octet/.test(choice.value);
  };
  choice.addEventListener("change", fill);
  form.append(field("Content type", choice), field("Body", text), fileField, queryField);
  fill();
  return () => ({ kind: choice.value, text: text.value, file: file.files?.[0], query: query.value });
}

/**
 * The address and options of a request.
 * @param {string} method
 * @param {string} path
 * @param {{parameter: any, input: HTMLInputElement}[]} inputs
 * @param {{kind: string, text: string, file?: File, query: string} | undefined} content
 * @returns {[URL, RequestInit]}
 */
function requestOf(method, path, inputs, content) {
  const headers = new Headers();
  const token = document.getElementById("token").value.trim();
  if (token) headers.set("Authorization", `Bearer ${token}`);
  const query = new URLSearchParams();
  for (const { parameter, input } of inputs) {
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (input.value && parameter.in === "query") query.set(parameter.name, input.value);
    else if (input.value) headers.set(parameter.name, input.value);
  }
  const url = new URL(path.slice(1), BASE);
  url.search = query.toString();
  if (!content || (!content.text && !content.file)) return [url, { method: method.toUpperCase(), headers }];
  /** @type {BodyInit} */
  let body = content.text;
  if (content.kind === "multipart/form-data") {
    const fields = JSON.parse(content.text || "{}");
    body = new FormData();
    if (content.file) body.set("file", content.file);
    else if ("file" in fields) body.set("file", new Blob([fields.file]), "file");
    for (const [name, value] of Object.entries(fields)) if (name !== "file") body.set(name, String(value));
  } else {
    headers.set("Content-Type", content.kind);
    if (content.kind === "application/x-www-form-urlencoded") body = new URLSearchParams(JSON.parse(content.text));
    if (content.kind === "application/octet-stream") {
      url.search = content.query;
      body = content.file ?? content.text;
    }
  }
  return [url, { method: method.toUpperCase(), headers, body }];
}

/** Send a request and show its answer as it comes. @param {HTMLElement} place @param {URL} url @param {RequestInit} init */
async function show(place, url, init) {
  place.replaceChildren(make("p", { class: "mono" }, `${init.method} ${url.pathname}${url.search}`));
  const response = await fetch(url, { ...init, credentials: "same-origin", cache: "no-store" });
  const heading = make("p", { class: response.ok ? "" : "bad" }, `${response.status} ${response.statusText}`);
  const headers = ["content-type", "location", "retry-after", "idempotent-replayed"]
    .filter((name) => response.headers.has(name))
    .map((name) => `${name}: ${response.headers.get(name)}`);
  const text = make("pre", { tabindex: "0" });
  place.append(heading, make("p", { class: "mono note" }, headers.join("\n")), text);
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader?.read(); part && !part.done; part = await reader.read()) {
    text.textContent = (text.textContent + part.value).slice(-LONGEST_SHOWN);
  }
  if (/json$/.test(response.headers.get("content-type") ?? "")) {
    try {
      text.textContent = JSON.stringify(JSON.parse(text.textContent), null, 2);
    } catch {
      // It was cut: shown as it is.
    }
  }
}

// The page

function showOperations() {
  const main = document.getElementById("operations");
  const sections = openapi.tags.map((tag) => {
    const section = make("section", {}, make("h2", {}, tag.name), make("p", { class: "note" }, tag.description));
    for (const [path, methods] of Object.entries(openapi.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (operation.tags.includes(tag.name)) section.append(operationDetails(method, path, operation));
      }
    }
    return section;
  });
  main.replaceChildren(...sections);
}

/** Show only operations with this text in their names. @param {string} text */
function filterOperations(text) {
  for (const section of document.querySelectorAll("main section")) {
    let shown = 0;
    for (const item of section.querySelectorAll(".operation")) {
      item.hidden = !item.querySelector("summary").textContent.toLowerCase().includes(text.toLowerCase());
      shown += item.hidden ? 0 : 1;
    }
    section.hidden = shown === 0;
  }
}

/** Open the operation that the address names. */
function openNamed() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement) {
    named.open = true;
    named.scrollIntoView();
  }
}

async function start() {
  for (const form of document.querySelectorAll("header form")) {
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  document.getElementById("find").addEventListener("input", (event) => filterOperations(event.target.value));
  try {
    const response = await fetch(new URL("openapi.json", BASE));
    if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
    openapi = await response.json();
  } catch (error) {
    document.getElementById("state").textContent = `The OpenAPI document could not be loaded: ${error.message}`;
    return;
  }
  document.getElementById("version").textContent = openapi.info.version;
  const about = openapi.info.description.trim().split("\n\n").map((text) => make("p", {}, ...words(text)));
  document.getElementById("about").append(...about);
  showOperations();
  openNamed();
  addEventListener("hashchange", openNamed);
}

start();
