// What /openapi.json says, for a person; without parts from the internet.
"use strict";

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function contents(title, content) {
  const box = element("details");
  box.append(element("summary", title));
  for (const [type, { schema }] of Object.entries(content || {})) {
    box.append(element("p", type, "hint"), element("pre", JSON.stringify(schema, null, 2)));
  }
  return box;
}

function operation(path, method, what) {
  const card = element("section", undefined, "card");
  card.append(element("h2", `${method.toUpperCase()} ${path}`), element("p", what.description));
  if (what.requestBody) card.append(contents("Request", what.requestBody.content));
  for (const [status, answer] of Object.entries(what.responses || {})) {
    card.append(contents(`${status}: ${answer.description}`, answer.content));
  }
  return card;
}

fetch("/openapi.json").then((response) => response.json()).then((api) => {
  document.getElementById("title").textContent = `${api.info.title} ${api.info.version}`;
  document.getElementById("about").textContent = api.info.description;
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, what] of Object.entries(methods)) {
      document.getElementById("operations").append(operation(path, method, what));
    }
  }
}).catch(() => {
  document.getElementById("about").textContent = "openapi.json could not be read.";
});
