// Every route of openapi.json with its fields, for people.

const token = new URLSearchParams(location.search).get("token");
const api = await (await fetch(`openapi.json${token ? `?token=${encodeURIComponent(token)}` : ""}`)).json();

const made = (name, text, ...inside) => {
  const element = document.createElement(name);
  if (text) element.textContent = text;
  element.append(...inside);
  return element;
};
const found = (schema) => (schema?.$ref ? schema.$ref.split("/").slice(1).reduce((at, key) => at[key], api) : schema);
const kind = (schema) => {
  const at = found(schema);
  if (at.anyOf) return at.anyOf.map(kind).join(" or ");
  if (at.enum) return at.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (at.const !== undefined) return JSON.stringify(at.const);
  const [low, high] = [at.minimum ?? at.minLength, at.maximum ?? at.maxLength];
  const letters = at.type === "string" ? " letters" : "";
  const bounds = low === undefined && high === undefined || Math.abs(low) > 2 ** 60 ? "" : `, ${low ?? 0} to ${high ?? "…"}${letters}`;
  return at.type === "array" ? `list of ${kind(at.items)}` : `${at.type ?? "anything"}${bounds}`;
};
const plain = (text) => (text ?? "").replaceAll("`", "");

for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const section = made("section", "", made("h2", `${method.toUpperCase()} ${path}`));
    const body = Object.entries(route.requestBody?.content ?? {});
    for (const [type, { schema }] of body) {
      const rows = Object.entries(found(schema).properties ?? {}).map(([name, field]) =>
        made("tr", "", made("td", name), made("td", kind(field)), made("td", field.default === undefined ? (found(schema).required?.includes(name) ? "required" : "") : JSON.stringify(field.default)), made("td", plain(field.description))));
      section.append(made("p", `${type}${found(schema).description ? `: ${plain(found(schema).description)}` : ""}`));
      section.append(made("table", "", made("thead", "", made("tr", "", made("th", "field"), made("th", "kind"), made("th", "default"), made("th", "meaning"))), made("tbody", "", ...rows)));
    }
    document.getElementById("routes").append(section);
  }
}
