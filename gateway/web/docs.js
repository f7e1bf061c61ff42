// The API page: what /openapi.json says, to read. Nothing is added to it here.

import { ServerError, rememberKey, request } from "./api.js";

const MAX_DEPTH = 3; // of schemas inside schemas

const find = (id) => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function load() {
  for (;;) {
    try {
      return await (await request("openapi.json")).json();
    } catch (error) {
      if (!(error instanceof ServerError) || error.status !== 401) throw error;
      await askForKey();
    }
  }
}

function askForKey() {
  const dialog = find("key-dialog");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(rememberKey(find("key").value)), { once: true });
  });
}

/** A schema without its reference. */
function resolved(schema, description) {
  const name = schema.$ref?.split("/").pop();
  return name ? { title: name, ...description.components.schemas[name] } : schema;
}

/** A schema in a few words, such as "integer, 0 to 20, or null". */
function inWords(schema, description) {
  schema = resolved(schema, description);
  const branches = schema.anyOf ?? schema.oneOf;
  if (branches) return branches.map((branch) => inWords(branch, description)).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${inWords(schema.items ?? {}, description)}`;
  const words = [schema.type === "object" && schema.title ? schema.title : schema.type ?? "anything"];
  const limits = {
    minimum: "at least", exclusiveMinimum: "above", maximum: "at most", exclusiveMaximum: "below",
    minLength: "no shorter than", maxLength: "no longer than", pattern: "matching",
  };
  for (const [limit, text] of Object.entries(limits)) {
    if (schema[limit] !== undefined) words.push(`${text} ${schema[limit]}`);
  }
  return words.join(", ");
}

/** A table of an object's fields; objects inside it have theirs below. */
function fieldsOf(schema, description, depth = 0) {
  schema = resolved(schema, description);
  const shown = document.createDocumentFragment();
  for (const branch of schema.anyOf ?? []) shown.append(fieldsOf(branch, description, depth));
  if (schema.items) shown.append(fieldsOf(schema.items, description, depth));
  if (!schema.properties || depth > MAX_DEPTH) return shown;
  const table = element("table");
  for (const [name, field] of Object.entries(schema.properties)) {
    const row = table.insertRow();
    const required = schema.required?.includes(name) ? ", required" : "";
    row.insertCell().append(element("code", name));
    const cell = row.insertCell();
    cell.append(element("span", inWords(field, description) + required));
    if (field.description) cell.append(element("p", field.description, "quiet"));
    const inner = fieldsOf(field, description, depth + 1);
    if (inner.childNodes.length) {
      const fold = element("details");
      fold.append(element("summary", "fields"), inner);
      cell.append(fold);
    }
  }
  shown.append(table);
  return shown;
}

function operation(path, method, described, description) {
  const fold = element("details");
  const summary = element("summary");
  const named = described.summary === path ? "" : described.summary;
  summary.append(element("span", method.toUpperCase(), "method"), element("code", path), element("span", named, "quiet"));
  const body = element("div", undefined, "body");
  body.append(element("p", described.security.length ? "needs the key, if the server has one" : "needs no key", "quiet"));
  const parts = [
    ["Request", described.requestBody?.content["application/json"]?.schema],
    ["Answer", described.responses["200"].content?.["application/json"]?.schema],
  ];
  for (const [title, schema] of parts) {
    if (schema) body.append(element("h3", title), fieldsOf(schema, description));
  }
  fold.append(summary, body);
  return fold;
}

try {
  const description = await load();
  const operations = Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, described]) => operation(path, method, described, description)),
  );
  find("operations").replaceChildren(...operations);
} catch (error) {
  find("operations").replaceChildren(element("p", error.message, "fault"));
}
