"use strict";
// Shows openapi.json: the addresses, what they take and what they give.

function made(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

function listed(pairs) {
  return made("dl", "", ...pairs.flatMap(([name, text]) => [made("dt", "", made("code", name)), made("dd", text)]));
}

function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.oneOf) return schema.oneOf.map(kind).join(" or ");
  if (schema.type === "object") return `{${Object.entries(schema.properties ?? {}).map(([name, of]) => `${name}: ${kind(of)}`).join(", ")}}`;
  if (schema.type === "array") return `[${kind(schema.items)}, …]`;
  if (schema.contentMediaType) return "an image";
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const range = "minimum" in schema && "maximum" in schema ? ` from ${schema.minimum} to ${schema.maximum}` : "";
  return [schema.type].flat().join(" or ") + range;
}

function example(method, path) {
  const base = location.href.replace(/docs$/, "").replace(/\/$/, "");
  if (path === "/query") return `curl '${base}/query?k=5' -H 'Content-Type: image/jpeg' --data-binary @photo.jpg\ncurl '${base}/query?k=5' -H 'Content-Type: application/json' -d '{"id": 17}'`;
  return `curl '${base}${path.replace("{id}", "17")}'`;
}

function operation(method, path, of) {
  const section = made("section", "", made("h2", "", made("code", `${method.toUpperCase()} ${path}`)), made("p", of.summary));
  if (of.description) section.append(made("p", of.description));
  if (of.parameters) section.append(made("h3", "Parameters"), listed(of.parameters.map((each) => [each.name, `${kind(each.schema)}. ${each.description ?? ""}`])));
  if (of.requestBody) section.append(made("h3", "Body"), listed(Object.entries(of.requestBody.content).map(([type, { schema }]) => [type, kind(schema)])));
  section.append(made("h3", "Answers"), listed(Object.entries(of.responses).map(([status, each]) => [status, each.description])));
  section.append(made("pre", example(method, path)));
  return section;
}

async function start() {
  const content = await (await fetch("openapi.json")).json();
  const shown = Object.entries(content.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, of]) => operation(method, path, of)));
  const token = made("p", "If the server has a token, each request brings it: Authorization: Bearer TOKEN.");
  const schemas = made("section", "", made("h2", "What comes back"), listed(Object.entries(content.components.schemas).map(([name, schema]) => [name, kind(schema)])));
  document.getElementById("paths").replaceChildren(token, ...shown, schemas);
}

start().catch(() => { document.getElementById("paths").textContent = "The server does not answer."; });
