// Shows openapi.json. Written for this service because the usual viewers are a hundred times its size.

const PROBLEM = "application/problem+json";
const DEEPEST = 4; // levels of nested objects that are written out

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

/** Text with `code` in it. */
const prose = (text = "") =>
  text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part)).filter((part) => part !== "");

function show(api) {
  document.getElementById("title").textContent = `${api.info.title}, version ${api.info.version}`;
  document.getElementById("about").replaceChildren(...prose(api.info.description));
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, one]) => ({ path, method, ...one })));
  document.getElementById("contents").replaceChildren(element("ul", {}, operations.map((one) =>
    element("li", {}, element("a", { href: `#${anchor(one)}` }, `${one.method.toUpperCase()} ${one.path}`)))));
  document.getElementById("operations").replaceChildren(
    ...operations.map((one) => operation(one, api)), problems(api));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

const anchor = ({ method, path }) => `${method}${path.replaceAll(/[^\w]+/g, "-")}`;

function operation(one, api) {
  const heading = [element("span", { className: "method" }, one.method.toUpperCase()), element("code", {}, one.path)];
  return section(anchor(one), heading,
    element("p", {}, prose(one.summary)),
    one.description ? element("p", { className: "quiet" }, prose(one.description)) : null,
    one.parameters?.length ? parameters(one.parameters, api) : null,
    one.requestBody ? body(one.requestBody, api) : null,
    responses(one.responses, api));
}

function section(id, heading, ...children) {
  const made = element("section", { id, className: "operation" },
    element("h2", { id: `${id}-heading` }, heading), ...children);
  made.setAttribute("aria-labelledby", `${id}-heading`);
  return made;
}

function parameters(list, api) {
  const terms = list.flatMap((one) =>
    term(one.name, one.schema, one.description, api, 1, one.required ? `${one.in}, required` : one.in));
  return element("div", {}, element("h3", {}, "Parameters"), element("dl", {}, terms));
}

function body(request, api) {
  return element("div", {}, element("h3", {}, "Body"), element("p", {}, prose(request.description)),
    element("dl", {}, contents(request.content, api)));
}

function responses(all, api) {
  const terms = Object.entries(all).flatMap(([status, one]) =>
    [element("dt", {}, status), element("dd", {}, prose(one.description), answerContents(one.content, api))]);
  return element("div", {}, element("h3", {}, "Answers"), element("dl", {}, terms));
}

/** Every refusal has the same form, which is written out once, at the end. */
function answerContents(content = {}, api) {
  return PROBLEM in content
    ? element("span", {}, ". ", element("a", { href: "#problem" }, "Problem document"))
    : element("dl", {}, contents(content, api));
}

function problems(api) {
  return section("problem", "Problem document", element("p", {}, element("code", {}, PROBLEM)),
    element("div", {}, described({ $ref: "#/components/schemas/Problem" }, api, 1)));
}

function contents(content = {}, api) {
  return Object.entries(content).flatMap(([type, { schema }]) =>
    [element("dt", {}, element("code", {}, type)), element("dd", {}, described(schema, api, 1))]);
}

/** @returns {Node[]} What a schema allows: its kind, and the members of an object. */
function described(schema, api, depth) {
  const real = resolved(schema, api);
  const inner = real.type === "array" ? resolved(real.items, api) : real;
  const members = Object.entries(inner.properties ?? {});
  const list = members.length && depth < DEEPEST
    ? element("dl", {}, members.flatMap(([name, member]) =>
      term(name, member, member.description, api, depth + 1)))
    : null;
  return [kind(schema, api), inner.description && inner !== schema ? element("span", {}, ". ", prose(inner.description)) : null, list]
    .filter((node) => node !== null);
}

function term(name, schema, description, api, depth, notes = "") {
  return [
    element("dt", {}, element("code", {}, name), notes ? element("span", { className: "quiet" }, ` ${notes}`) : ""),
    element("dd", {}, description ? element("div", {}, prose(description)) : null, described(schema, api, depth)),
  ];
}

function kind(schema, api) {
  const alternatives = schema.anyOf ?? schema.oneOf;
  if (alternatives) return alternatives.map((one) => kind(one, api)).join(" or ");
  const real = resolved(schema, api);
  if (real.type === "array") return `list of ${kind(real.items ?? real.prefixItems?.[0] ?? {}, api)}`;
  if (real.const !== undefined || real.enum) return (real.enum ?? [real.const]).map((one) => JSON.stringify(one)).join(" or ");
  const bounds = [
    real.minimum !== undefined ? `from ${real.minimum}` : "", real.exclusiveMinimum !== undefined ? `above ${real.exclusiveMinimum}` : "",
    real.maximum !== undefined ? `to ${real.maximum}` : "", real.default !== undefined ? `default ${JSON.stringify(real.default)}` : "",
  ].filter(Boolean).join(" ");
  const name = { binary: "bytes" }[real.format] ?? (real.type === "object" && real.title ? real.title : real.type ?? "anything");
  return bounds ? `${name}, ${bounds}` : name;
}

function resolved(schema, api) {
  const reference = schema?.$ref?.split("/").at(-1);
  return reference ? { type: "object", title: reference, ...api.components.schemas[reference] } : schema ?? {};
}

const operations = document.getElementById("operations");
try {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(`status ${response.status}`);
  show(await response.json());
} catch (error) {
  operations.replaceChildren(element("p", { className: "notice", role: "alert" },
    `The API's description cannot be shown (${error.message}): check that the service is running, and load the page again.`));
}
