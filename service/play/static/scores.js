// Scores of a value model, the ranking that they make, and its YAML. The service computes the same in float64
// (model/value_models/value_model.py), and a test compares both.
//
// Shapes: N candidates. `answers` are by output, N numbers each, float32 as the service wrote them.

const PLAIN_KEY = /^[A-Za-z_][\w.-]*$/;
// Words that YAML 1.1 reads as no text.
const WORDS = new Set(["y", "n", "yes", "no", "on", "off", "true", "false", "null"]);

/** Weights or exponents by output, null of an expression, whose formula the service alone computes. */
export function weightsOf(definition) {
  return definition.weights ?? definition.exponents ?? null;
}

/** A definition with other weights. */
export function withWeights(definition, weights) {
  return { ...definition, [definition.weights ? "weights" : "exponents"]: weights };
}

/** Contribution of each output to each candidate, by output: weight x answer, or exponent x log of the floored answer. */
export function contributionsOf(definition, answers) {
  const term = definition.kind === "weighted_sum"
    ? (weight, answer) => weight * answer
    : (exponent, answer) => exponent * Math.log(Math.max(answer, definition.floor));
  return Object.fromEntries(
    Object.entries(weightsOf(definition)).map(([output, weight]) => [
      output,
      Float64Array.from(answers[output], (answer) => term(weight, Math.fround(answer))),
    ]),
  );
}

/** Scores of N candidates, of contributions: their sum, of a weighted product the exponential of that. */
export function scoresOf(definition, contributions, count) {
  const scores = new Float64Array(count);
  for (const given of Object.values(contributions)) {
    for (let row = 0; row < count; row += 1) scores[row] += given[row];
  }
  return definition.kind === "weighted_sum" ? scores : scores.map(Math.exp);
}

/** Rows in the order answered: descending score, ties by request order, at most `topK` (null: all). */
export function rankingOf(scores, topK = null) {
  const rows = Array.from(scores, (_, row) => row);
  // Sorting is stable.
  rows.sort((one, other) => scores[other] - scores[one]);
  return topK === null ? rows : rows.slice(0, topK);
}

/** Places by which each row of `now` has moved up since `before`, by row. Null of one that was not answered then. */
export function movesOf(before, now) {
  const places = new Map(before.map((row, place) => [row, place]));
  return new Map(now.map((row, place) => [row, places.has(row) ? places.get(row) - place : null]));
}

/** A value model as an entry of value_models.yaml. */
export function yamlOf(name, definition) {
  const parts = Object.entries(definition).map(([key, value]) => `${key}: ${yamlValue(value)}`);
  return `${yamlKey(name)}: {${parts.join(", ")}}\n`;
}

function yamlKey(name) {
  return PLAIN_KEY.test(name) && !WORDS.has(name.toLowerCase()) ? name : JSON.stringify(name);
}

function yamlValue(value) {
  if (typeof value === "number") return yamlNumber(value);
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, inner]) => `${yamlKey(key)}: ${yamlValue(inner)}`).join(", ")}}`;
  }
  return PLAIN_KEY.test(value) ? value : JSON.stringify(value);
}

/** A number that YAML 1.1 reads as one: with a dot before an exponent. */
function yamlNumber(value) {
  const [digits, exponent] = String(value).split("e");
  const dotted = digits.includes(".") ? digits : `${digits}.0`;
  return exponent === undefined ? dotted : `${dotted}e${exponent}`;
}

/** A document of JSON whose integers beyond 2^53 are strings of their digits, which the service reads as well. */
export function parseJson(text) {
  return JSON.parse(text.replace(/"(?:\\.|[^"\\])*"|-?\d[\d.eE+-]*/g, (found) =>
    /^-?\d+$/.test(found) && !Number.isSafeInteger(Number(found)) ? `"${found}"` : found));
}

/** The value of a feature as typed: JSON, or else a text. Nothing is null. */
export function valueOf(text) {
  if (text.trim() === "") return null;
  try {
    return parseJson(text);
  } catch {
    return text.trim();
  }
}

/** A feature's value as text that `valueOf` reads back. */
export function textOf(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "string") return JSON.stringify(value);
  return valueOf(value) === value && value !== "" ? value : JSON.stringify(value);
}
