// The page at /play: what was typed, what the service answered, and what of both is shown.
//
// The key is in this module's memory alone. A ranking is asked of the service, and made again here while weights of a
// sum or a product move, where no policy makes the order. Everything else goes back to the service.

import {
  contributionsOf, movesOf, parseJson, rankingOf, scoresOf, textOf, valueOf, weightsOf, withWeights, yamlOf,
} from "./scores.js";
import { Rows, fillInputs, fillLegend, fillOptions, make, makeField, makeSlider, makeTable, shownNumber } from "./view.js";

const WAIT_MS = 150;
const byId = (id) => document.getElementById(id);
// The same for all, so that a policy that draws draws alike.
const requestId = `play-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
const page = { key: null, models: [], hasLog: false, hasKeys: false, model: null, request: null, columns: [], selected: 0 };

class Refused extends Error {}

/** Status line: what has happened, or what is wrong. */
function say(text, isBad = false) {
  byId("status").textContent = text;
  byId("status").className = isBad ? "bad" : "";
}

/** Do something that may be refused, and say why it was. */
async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(error.message, true);
    return null;
  }
}

async function ask(path, body, options = {}) {
  const headers = { ...options.headers };
  const key = options.key || page.key;
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    const method = options.method ?? (body === undefined ? "GET" : "POST");
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused("the service does not answer");
  }
  const content = parseJson(await answer.text());
  if (answer.ok) return content;
  if (answer.status === 401 && !options.key) byId("key-form").hidden = false;
  const faults = (content.errors ?? []).map(({ path: place, message }) => `${place}: ${message}`);
  throw new Refused(faults.join("; ") || content.detail || `the service answered ${answer.status}`);
}

/** One ranking: a version, a value model that may be edited, a policy, and the answer to all of them. */
class Column {
  constructor(name) {
    this.name = name;
    this.draft = null;
    this.answer = null;
    this.base = null;
    this.asked = 0;
    this.section = byId("column").content.cloneNode(true).firstElementChild;
    const find = (selector) => this.section.querySelector(selector);
    this.parts = {
      version: find(".version"), valueModel: find(".value-model"), policy: find(".policy"), weights: find(".weights"),
      reset: find(".reset"), copy: find(".copy"), yaml: find(".yaml"), legend: find(".legend"), table: find("table"),
      body: find("tbody"), inputs: find(".inputs"), openSave: find(".open-save"), save: find(".save"),
      saveName: find(".name"), admin: find(".admin"),
    };
    // Without keys the service lets nobody change it.
    this.parts.openSave.hidden = !page.hasKeys;
    this.parts.openSave.addEventListener("click", () => this.#toggleSave(this.parts.save.hidden));
    this.parts.save.addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(() => this.#save());
    });
    find("h2").textContent = `Ranking ${name}`;
    find(".scroll").setAttribute("aria-label", `Ranking ${name}`);
    this.parts.version.addEventListener("change", () => this.#changeVersion());
    this.parts.valueModel.addEventListener("change", () => this.#changeValueModel());
    this.parts.policy.addEventListener("change", () => rankAll([this]));
    this.parts.reset.addEventListener("click", () => this.#changeValueModel());
    this.parts.copy.addEventListener("click", () => this.#copy());
    this.#fillVersions();
  }

  get version() {
    return page.model.versions.find(({ version }) => version === this.parts.version.value);
  }

  /** The value model as it is edited, or as the service has it. */
  get definition() {
    return this.draft ?? this.saved;
  }

  get saved() {
    const { version, ...definition } = this.version.value_models[this.parts.valueModel.value];
    return definition;
  }

  #fillVersions() {
    const options = page.model.versions.map(({ version, labels }) => [version, [version, ...labels].join(", ")]);
    fillOptions(this.parts.version, options, page.model.default_version);
    this.#fillChoices();
  }

  #fillChoices() {
    const { value_models: valueModels, policies } = this.version;
    const names = Object.keys(valueModels);
    const before = this.parts.valueModel.value;
    fillOptions(this.parts.valueModel, names.map((name) => [name, name]), names.includes(before) ? before : "default");
    // A model that has a default policy ranks by it wherever none is named.
    const named = policies.map((name) => [name, name]);
    if (!policies.includes("default")) named.unshift(["", "descending score"]);
    fillOptions(this.parts.policy, named, this.parts.policy.value || "default");
    this.#fillWeights();
  }

  #changeVersion() {
    this.#fillChoices();
    rankAll([this]);
  }

  #changeValueModel() {
    this.#fillWeights();
    return rankAll([this]);
  }

  /** Controls for what the value model says. */
  #fillWeights() {
    this.draft = null;
    this.parts.reset.disabled = true;
    this.parts.yaml.hidden = true;
    const { kind, floor, formula } = this.saved;
    const weights = weightsOf(this.saved);
    this.parts.weights.querySelector("legend").textContent = kind.replace("_", " ");
    const controls = weights === null ? [this.#formulaField(formula)] : this.#sliders(weights);
    if (floor !== undefined) {
      controls.push(makeField("floor", String(floor), "a number above 0", (text) => this.#edit({ ...this.definition, floor: Number(text) })));
    }
    this.parts.weights.querySelector("div").replaceChildren(...controls);
  }

  #sliders(weights) {
    return Object.entries(weights).map(([output, weight]) => {
      return makeSlider(output, weight, `weight-${this.name}-${output}`, (value) => {
        this.#edit(withWeights(this.definition, { ...weightsOf(this.definition), [output]: value }));
      });
    });
  }

  #formulaField(formula) {
    const text = make("textarea", { rows: 3, spellcheck: "false" });
    text.value = formula;
    text.addEventListener("input", () => this.#edit({ ...this.definition, formula: text.value }));
    return make("label", { class: "whole" }, "Formula ", text);
  }

  #edit(definition) {
    this.draft = definition;
    this.parts.reset.disabled = false;
    this.parts.yaml.hidden = true;
    if (this.answer === null) return;
    if (weightsOf(definition) === null || this.parts.policy.value !== "" || this.answer.policy !== undefined) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => rankAll([this]), WAIT_MS);
      return;
    }
    if (definition.floor !== undefined && !(definition.floor > 0)) {
      say("floor: a number above 0", true);
      return;
    }
    // Once a frame, however often a slider speaks.
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.#rankHere();
    });
  }

  #rankHere() {
    const { answers, ids } = this.answer;
    const contributions = contributionsOf(this.definition, answers);
    const score = scoresOf(this.definition, contributions, ids.length);
    const order = rankingOf(score, page.request.top_k ?? null);
    this.#take({ ...this.answer, contributions, score, order }, this.rows.outputs);
    showAll();
    say(told([this]));
  }

  /** Ask the service for the ranking. False where a later question has been asked meanwhile. */
  async rank() {
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
    this.frame = null;
    this.asked += 1;
    const asked = this.asked;
    const chosen = { version: this.parts.version.value, value_model: this.parts.valueModel.value };
    const request = { ...page.request, request_id: requestId, model: page.model.name, ...chosen };
    delete request.policy;
    delete request.explain;
    if (this.parts.policy.value !== "") request.policy = this.parts.policy.value;
    const answer = await ask("v1/play/rank", { request, ...(this.draft === null ? {} : { draft: this.draft }) });
    if (asked !== this.asked) return false;
    this.#take(answer, null);
    if (this.draft === null) this.base = answer.order;
    fillInputs(this.parts.inputs, { ...answer.inputs, ...this.#dropped() });
    return true;
  }

  /** Take an answer. Rows are made anew, but for those of the same candidates with the same outputs. */
  #take(answer, outputsBefore) {
    const outputs = Object.keys(answer.contributions);
    this.answer = answer;
    if (outputs.join() === outputsBefore?.join()) return;
    this.rows = new Rows(answer.ids, outputs, pick);
    fillLegend(this.parts.legend, outputs);
  }

  #dropped() {
    const stages = Object.entries(this.answer.dropped).map(([stage, rows]) => [stage, rows.length]);
    return { dropped: Object.fromEntries(stages.filter(([, count]) => count)) };
  }

  show(before) {
    if (this.answer === null) return;
    const { order, score, contributions, ids } = this.answer;
    this.moves = before === null ? null : movesOf(before, order);
    this.parts.table.hidden = false;
    const edited = this.draft === null ? "" : ", edited";
    this.parts.table.caption.textContent =
      `version ${this.answer.model_version}, ${this.parts.valueModel.value}${edited}: ${order.length} of ${ids.length} candidates`;
    this.rows.show(this.parts.body, { order, scores: score, contributions, moves: this.moves, selected: page.selected });
  }

  /** What this column ranks by, for a comparison over the log. */
  side() {
    const chosen = { version: this.parts.version.value, value_model: this.parts.valueModel.value };
    return { ...chosen, draft: this.draft, policy: this.parts.policy.value || null };
  }

  #toggleSave(isOpen) {
    this.parts.save.hidden = !isOpen;
    this.parts.openSave.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) return;
    this.parts.saveName.value = this.parts.valueModel.value;
    this.parts.saveName.focus();
  }

  /** Save the value model, where the file is still the one that this page was made of. */
  async #save() {
    const name = this.parts.saveName.value;
    const tag = page.model.value_models_sha256;
    const headers = tag === null ? { "If-None-Match": "*" } : { "If-Match": `"${tag}"` };
    const path = `v1/admin/models/${encodeURIComponent(page.model.name)}/value_models/${encodeURIComponent(name)}`;
    await ask(path, this.definition, { method: "PUT", headers, key: this.parts.admin.value.trim() });
    this.parts.admin.value = "";
    this.#toggleSave(false);
    const { models } = await ask("v1/play/models");
    page.models = models;
    page.model = models.find((model) => model.name === page.model.name) ?? page.model;
    await this.#chooseSaved(name);
    for (const column of page.columns) if (column !== this) column.refill();
    say(`saved as ${name}: in force here now, and in other workers within seconds`);
  }

  /** Show a value model that has just been saved. */
  #chooseSaved(name) {
    this.#fillChoices();
    this.parts.valueModel.value = name;
    return this.#changeValueModel();
  }

  /** Fill the choices again. A draft stays. */
  refill() {
    if (this.draft === null) this.#fillChoices();
  }

  async #copy() {
    const text = yamlOf(this.parts.valueModel.value, this.definition);
    this.parts.yaml.textContent = text;
    this.parts.yaml.hidden = false;
    try {
      await navigator.clipboard.writeText(text);
      say("copied: it goes into value_models.yaml");
    } catch {
      say("the browser does not let this page copy; the text is shown below the weights");
    }
  }
}

function told(columns) {
  const moved = columns.at(-1).moves === null ? 0 : [...columns.at(-1).moves.values()].filter((by) => by !== 0).length;
  const { order } = columns.at(-1).answer;
  return `${order.length} candidates ranked${columns.at(-1).moves === null ? "" : `, ${moved} moved`}`;
}

async function rankAll(columns = page.columns) {
  await attempt(async () => {
    const answered = await Promise.all(columns.map((column) => column.rank()));
    if (!answered.includes(true)) return;
    showAll();
    say(told(page.columns));
  });
}

/** Show every ranking: the first beside itself before its edits, the second beside the first. */
function showAll() {
  const [first, second] = page.columns;
  first.show(first.draft === null ? null : first.base);
  second?.show(first.answer === null ? null : first.answer.order);
  showDetail();
}

function pick(row) {
  page.selected = row;
  for (const { rows } of page.columns) rows?.select(row);
  fillCandidate();
  showDetail();
}

/** Answers and contributions of the candidate that is picked. */
function showDetail() {
  const shown = page.columns.filter(({ answer }) => answer !== null && page.selected < answer.ids.length);
  byId("detail").hidden = shown.length === 0;
  if (shown.length === 0) return;
  const outputs = [...new Set(shown.flatMap(({ answer }) => Object.keys(answer.answers)))];
  const heads = ["output", ...shown.flatMap(({ name }) => [`answer ${name}`, `contribution ${name}`])];
  const cell = (values) => (values === undefined ? "" : shownNumber(values[page.selected]));
  const lines = outputs.map((output) => [
    output, ...shown.flatMap(({ answer }) => [cell(answer.answers[output]), cell(answer.contributions[output])]),
  ]);
  byId("detail-title").textContent = `Candidate ${shown[0].answer.ids[page.selected]}`;
  byId("answers").replaceChildren(makeTable("what the model answers, and what that adds to the score", heads, lines));
  byId("expert-weights").replaceChildren();
}

/** Weights of the experts for the candidate that is picked, by level of the network. */
async function showExperts() {
  const [{ parts }] = page.columns;
  const request = { ...page.request, request_id: requestId, model: page.model.name, version: parts.version.value };
  delete request.policy;
  delete request.explain;
  const answer = await ask("v1/play/rank", { request, experts: true });
  const tables = answer.experts.map(({ units, experts, weights }, level) => {
    const lines = units.map((unit, at) => [unit, ...weights[page.selected][at].map(shownNumber)]);
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Level ${level + 1}` },
      makeTable(`level ${level + 1}: weight of each expert in each unit`, ["unit", ...experts], lines));
  });
  byId("expert-weights").replaceChildren(...(tables.length ? tables : ["This network mixes no experts."]));
}

/** The two columns over the last logged requests. */
async function compareLogged() {
  byId("compare-logged").disabled = true;
  say("comparing over the log");
  try {
    const [first, second] = page.columns.map((column) => column.side());
    const found = await ask("v1/play/logged", { model: page.model.name, first, second });
    const names = { 1: "the first", 5: "any of the first 5", 10: "any of the first 10" };
    const share = (count) => (found.requests ? `${(100 * count / found.requests).toFixed(1)} %` : "");
    const lines = Object.entries(found.changed).map(([k, count]) => [names[k], count, share(count)]);
    const span = found.since === null ? "" : `, ${found.since} to ${found.until}`;
    const caption = `${found.requests} requests of ${page.model.name}${span}`;
    byId("logged-result").replaceChildren(makeTable(caption, ["what changes", "requests", "share"], lines));
    const left = Object.entries(found.left_out).map(([why, count]) => make("li", {}, `left out: ${why}: ${count}`));
    byId("logged-left").replaceChildren(...left);
    say(`${found.requests} logged requests compared`);
  } finally {
    byId("compare-logged").disabled = false;
  }
}

/** Candidates as ids and a way to read and write one's feature, in either shape of a request. */
function candidatesOf(request) {
  const { candidates } = request;
  if (Array.isArray(candidates)) {
    return {
      ids: candidates.map(({ id }) => id),
      read: (row, name) => candidates[row].features?.[name],
      write: (row, name, value) => { candidates[row].features = { ...candidates[row].features, [name]: value }; },
    };
  }
  return {
    ids: candidates?.id ?? [],
    read: (row, name) => candidates.features?.[name]?.[row],
    write: (row, name, value) => {
      candidates.features ??= {};
      candidates.features[name] ??= candidates.id.map(() => null);
      candidates.features[name][row] = value;
    },
  };
}

function fillRequest() {
  const { features } = page.columns[0].version;
  const fields = Object.entries(features).filter(([, { block }]) => block === "request").map(([name, { description }]) =>
    makeField(name, textOf(page.request.user?.[name]), description, (text) => change(() => { page.request.user[name] = valueOf(text); })));
  byId("user").replaceChildren(...fields);
  const { ids } = candidatesOf(page.request);
  page.selected = Math.min(page.selected, Math.max(0, ids.length - 1));
  fillOptions(byId("candidate"), ids.map((id, row) => [String(row), id]), String(page.selected));
  fillCandidate();
}

function fillCandidate() {
  const { features } = page.columns[0].version;
  const { ids, read, write } = candidatesOf(page.request);
  byId("candidate").value = String(page.selected);
  const row = page.selected;
  const fields = Object.entries(features).filter(([, { block }]) => block === "candidate").map(([name, { description }]) =>
    makeField(name, textOf(read(row, name)), description, (text) => change(() => write(row, name, valueOf(text)))));
  byId("features").replaceChildren(...(ids.length ? fields : []));
}

function change(edit) {
  edit();
  byId("json").value = JSON.stringify(page.request, null, 1);
  say("the request has changed: rank again");
}

function takeJson() {
  try {
    const request = parseJson(byId("json").value);
    if (typeof request?.user !== "object" || typeof request?.candidates !== "object") throw new Error("needs user and candidates");
    page.request = request;
  } catch (error) {
    say(`the request is not taken: ${error.message}`, true);
    return;
  }
  fillRequest();
  say("the request has changed: rank again");
}

function chooseModel(name) {
  page.model = page.models.find((model) => model.name === name);
  page.request = structuredClone(page.model.request);
  page.selected = 0;
  page.columns = [new Column("A"), ...(byId("compare").checked ? [new Column("B")] : [])];
  byId("columns").replaceChildren(...page.columns.map(({ section }) => section));
  byId("json").value = JSON.stringify(page.request, null, 1);
  byId("detail").hidden = true;
  byId("logged").hidden = !(page.hasLog && byId("compare").checked);
  fillRequest();
}

function toggleSecond() {
  const [first, second] = page.columns;
  byId("logged").hidden = !(page.hasLog && byId("compare").checked);
  if (byId("compare").checked) {
    page.columns = [first, new Column("B")];
    byId("columns").append(page.columns[1].section);
    if (first.answer !== null) rankAll([page.columns[1]]);
  } else {
    second.section.remove();
    page.columns = [first];
    showDetail();
  }
}

async function open() {
  await attempt(async () => {
    const { models, has_log: hasLog, has_keys: hasKeys } = await ask("v1/play/models");
    Object.assign(page, { models, hasLog, hasKeys });
    byId("key-form").hidden = true;
    if (models.length === 0) throw new Refused("no model is served yet; reload the page later");
    fillOptions(byId("model"), models.map(({ name }) => [name, name]), models[0].name);
    chooseModel(models[0].name);
    byId("desk").hidden = false;
    say("the form has a golden request of the model: rank it");
  });
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  page.key = byId("key").value.trim();
  byId("key").value = "";
  open();
});
byId("request").addEventListener("submit", (event) => {
  event.preventDefault();
  rankAll();
});
byId("model").addEventListener("change", () => chooseModel(byId("model").value));
byId("candidate").addEventListener("change", () => pick(Number(byId("candidate").value)));
byId("json").addEventListener("change", takeJson);
byId("compare").addEventListener("change", toggleSecond);
byId("compare-logged").addEventListener("click", () => attempt(compareLogged));
byId("experts").addEventListener("click", () => attempt(showExperts));
open();
