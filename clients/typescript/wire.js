/** JSON of requests and replies, ids, and Retry-After. */

// Node 18 has no global of this name.
import { randomUUID } from "node:crypto";

// A request is less deep. What refers to itself is JSON.stringify's to name.
const DEEPEST = 20;

/**
 * JSON with a bigint as a string of its digits, which the service takes for an id. Throws RangeError for a number that
 * JSON or JavaScript does not keep as it is.
 */
export function encode(document) {
  // A function that is called for each value is half of what this client costs beside fetch.
  if (isPlain(document, 0)) return JSON.stringify(document);
  return JSON.stringify(document, (key, value) => {
    if (typeof value === "bigint") return String(value);
    if (typeof value === "number") {
      if (!Number.isFinite(value)) throw new RangeError(`${key}: ${value} is no JSON; null says that a value is missing`);
      if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
        throw new RangeError(`${key}: ${value} is beyond 2^53, where numbers are rounded; give it as a bigint`);
      }
    }
    return ArrayBuffer.isView(value) ? Array.from(value) : value;
  });
}

/** True where JSON.stringify writes every value as it is. */
function isPlain(value, depth) {
  if (typeof value === "number") return Number.isInteger(value) ? Number.isSafeInteger(value) : Number.isFinite(value);
  if (typeof value !== "object" || value === null) return typeof value !== "bigint";
  if (ArrayBuffer.isView(value) || depth > DEEPEST) return false;
  if (Array.isArray(value)) {
    for (const one of value) if (!isPlain(one, depth + 1)) return false;
  } else {
    for (const key in value) if (!isPlain(value[key], depth + 1)) return false;
  }
  return true;
}

/** A new id, of 32 characters. */
export function newId() {
  return randomUUID().replaceAll("-", "");
}

/** A JSON object, or an empty one where the text is something else, such as a page of a proxy. */
export function parsed(text) {
  try {
    const document = JSON.parse(text);
    return document !== null && typeof document === "object" ? document : {};
  } catch {
    return {};
  }
}

/** Paths and messages of a problem's faults (RFC 9457). */
export function faultsOf({ errors }) {
  const listed = Array.isArray(errors) ? errors : [];
  return listed
    .filter((one) => one !== null && typeof one === "object")
    .map(({ path, message }) => [String(path), String(message)]);
}

/** The seconds of a Retry-After, which has them or a date. Undefined where there is none that can be read. */
export function secondsOf(retryAfter) {
  if (retryAfter === null) return undefined;
  if (/^[0-9]{1,9}$/.test(retryAfter)) return Number(retryAfter);
  const until = Date.parse(retryAfter);
  return Number.isNaN(until) ? undefined : Math.max((until - Date.now()) / 1000, 0);
}

/** Wait so many milliseconds. */
export function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
