"use strict";
// The form of the documentation page: sends an example request and shows answer and time.

const SHOWN_CHARACTERS = 20000;

const examples = JSON.parse(document.getElementById("examples").textContent);
const form = document.getElementById("try");
const choice = document.getElementById("example");
const body = document.getElementById("body");
const picture = document.getElementById("picture");
const file = document.getElementById("file");
const curl = document.getElementById("curl");
const outcome = document.getElementById("outcome");
const answer = document.getElementById("answer");

// {"fill": value} stands for as many values as the shape multiplies to.
function writtenOut(request) {
  for (const tensor of request.inputs ?? []) {
    // Own members only: every array has a method of that name.
    if (tensor.data && Object.hasOwn(tensor.data, "fill")) {
      const count = tensor.shape.reduce((product, size) => product * size, 1);
      tensor.data = new Array(count).fill(tensor.data.fill);
    }
  }
  return request;
}

function pretty(text) {
  try {
    text = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // Not JSON: shown as it came.
  }
  const rest = text.length - SHOWN_CHARACTERS;
  return rest > 0 ? text.slice(0, SHOWN_CHARACTERS) + `\n… ${rest} more characters` : text;
}

function show(text, isGood) {
  outcome.textContent = text;
  outcome.className = isGood ? "good" : "bad";
}

function updateCurl() {
  const quoted = body.value.replaceAll("'", "'\\''");
  const url = location.origin + examples[choice.value].path;
  const unfinished = /"fill"\s*:/.test(body.value) ? "# with \"fill\" written out:\n" : "";
  curl.textContent = unfinished + `curl -s '${url}' -H 'Content-Type: application/json' -d '${quoted}'`;
}

// A picture travels in JSON as the base64 of its file.
function readPicture() {
  const reader = new FileReader();
  reader.addEventListener("load", () => {
    const request = structuredClone(examples[choice.value].body);
    request.inputs[0].data = [reader.result.slice(reader.result.indexOf(",") + 1)];
    body.value = JSON.stringify(request, null, 2);
    updateCurl();
  });
  if (file.files.length > 0) {
    reader.readAsDataURL(file.files[0]);
  }
}

function choose() {
  picture.hidden = !examples[choice.value].picture;
  body.value = JSON.stringify(examples[choice.value].body, null, 2);
  outcome.textContent = "";
  answer.textContent = "";
  updateCurl();
}

async function send(event) {
  event.preventDefault();
  answer.textContent = "";
  let request;
  try {
    request = JSON.stringify(writtenOut(JSON.parse(body.value)));
  } catch (error) {
    show(`This is not JSON: ${error.message}`, false);
    return;
  }
  show("Waiting for the answer …", true);
  const started = performance.now();
  try {
    const response = await fetch(examples[choice.value].path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: request,
    });
    const text = await response.text();
    const ms = (performance.now() - started).toFixed(1);
    show(`${response.status} ${response.statusText} in ${ms} ms`, response.ok);
    answer.textContent = pretty(text);
  } catch (error) {
    show(`No answer: ${error.message}`, false);
  }
}

choice.addEventListener("change", choose);
file.addEventListener("change", readPicture);
body.addEventListener("input", updateCurl);
form.addEventListener("submit", send);
choose();
