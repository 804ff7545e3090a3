// The endpoints of the API, from its OpenAPI document.

import { $, element } from "./dom.js";

const response = await fetch("/openapi.json");
if (!response.ok) {
  $("description").textContent = (await response.json()).error.message;
} else {
  const api = await response.json();
  $("title").textContent = `${api.info.title} ${api.info.version}: API`;
  $("description").textContent = api.info.description;
  const resolve = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema);
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [verb, operation] of Object.entries(methods)) $("endpoints").append(section(path, verb, operation, resolve));
  }
}

function section(path, verb, operation, resolve) {
  const schema = resolve(operation.requestBody?.content["application/json"]?.schema);
  const made = element("section", {}, element("h2", {}, element("span", { className: "verb" }, verb.toUpperCase()), element("code", {}, path)),
    element("p", {}, operation.description ?? ""));
  for (const example of schema?.examples ?? []) {
    made.append(element("pre", { tabIndex: 0 }, `curl -X ${verb.toUpperCase()} ${location.origin}${path} -H 'Content-Type: application/json' -d '${JSON.stringify(example)}'`));
  }
  const fields = Object.entries(schema?.properties ?? {}).filter(([, field]) => field.description);
  if (fields.length) made.append(element("table", { id: "" }, element("tbody", {}, ...fields.map(([name, field]) =>
    element("tr", {}, element("th", { scope: "row" }, element("code", {}, name)), element("td", {}, field.description))))));
  return made;
}
