// The API's description, for people: every operation with its fields, its answers, and a line for curl.

const make = (name, text = "", parent = null) => {
  const node = document.createElement(name);
  node.textContent = text;
  parent?.append(node);
  return node;
};

const type = (schema) => schema.type === "array" ? `list of ${schema.items.type}` : schema.enum?.join(" | ") ?? schema.type;

function curl(method, path, content) {
  const url = `${location.origin}${path.replace("{id}", "ID")}`;
  if (method === "get") return `curl ${url}`;
  if (method === "delete") return `curl -X DELETE ${url}`;
  if (content?.["multipart/form-data"]) {
    const prompt = content["multipart/form-data"].schema.properties.prompt ? ` -F "prompt=the red mug"` : "";
    return `curl ${url} -F image=@photo.jpg${prompt}`;
  }
  return `curl ${url} -H "Content-Type: application/json" -d '{"prompts": ["the red mug"]}'`;
}

const description = await (await fetch("openapi.json")).json();
for (const [path, methods] of Object.entries(description.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const section = make("section", "", document.getElementById("operations"));
    make("h2", `${method.toUpperCase()} ${path}`, section);
    make("p", `${operation.summary}.`, section);
    const content = operation.requestBody?.content;
    for (const [kind, { schema }] of Object.entries(content ?? {})) {
      make("p", kind, section);
      const list = make("ul", "", section);
      for (const [name, field] of Object.entries(schema.properties)) {
        const needed = schema.required.includes(name) ? "required" : "optional";
        make("li", `${name} (${type(field)}, ${needed}) ${field.description ?? ""}`, list);
      }
    }
    make("pre", curl(method, path, content), section);
    for (const [status, response] of Object.entries(operation.responses)) {
      make("p", `${status}: ${response.description}`, section);
      const example = Object.values(response.content ?? {})[0]?.example;
      if (example) make("pre", JSON.stringify(example, null, 2), section);
    }
  }
}
