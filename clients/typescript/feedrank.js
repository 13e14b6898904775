/**
 * Client of the ranking service: rankings within a deadline, and events in the background. README.md shows it, and
 * feedrank.d.ts has its types.
 */

import { encode, faultsOf, newId, parsed, secondsOf, sleep } from "./wire.js";
import { EventQueue } from "./events.js";

// Of 10 requests one may be sent again. The reserve lets what is in flight through when a connection breaks.
const REQUESTS_A_RETRY = 10;
const RESERVE = 10;
const JITTER_MS = 50;
const HEADER_ID = /^[!-~]{1,128}$/;

/** No answer within the deadline, and no fallback was given. */
export class UnavailableError extends Error {
  constructor(requestId, reason) {
    super(`no ranking of request ${requestId}: ${reason}; give \`fallback\` to have one`);
    this.name = "UnavailableError";
    this.requestId = requestId;
    this.reason = reason;
  }
}

/** A request that the service refuses as it is, such as 401, 404 or 422. `faults` are paths and rules. */
export class RefusedError extends Error {
  constructor(requestId, status, detail, faults) {
    const said = faults.map(([path, message]) => `\n  ${path}: ${message}`).join("") || ` ${detail}`;
    super(`request ${requestId} is refused (${status}):${said}`);
    this.name = "RefusedError";
    this.requestId = requestId;
    this.status = status;
    this.detail = detail;
    this.faults = faults;
  }
}

/** Rankings and events of one service. */
export class Client {
  #url;
  #headers;
  #options;
  #queue;
  #tenths = RESERVE * REQUESTS_A_RETRY;
  #counts = { answered: 0, fallbacks: 0, unavailable: 0, refused: 0, retries: 0, overBudget: 0 };
  #reasons = {};

  constructor(baseUrl, { key, timeoutMs = 500, strict = false, mostEvents = 10_000, flushMs = 1000 } = {}) {
    if (!/^https?:\/\/[^/]/.test(baseUrl)) {
      throw new TypeError(`baseUrl is '${baseUrl}'; it must look like http://ranking:8080`);
    }
    if (key !== undefined && !/^[!-~]+$/.test(key)) {
      throw new TypeError("key has characters that no header takes; give it without spaces and line breaks");
    }
    this.#url = baseUrl.replace(/\/+$/, "");
    this.#headers = {
      "Content-Type": "application/json",
      ...(key === undefined ? {} : { Authorization: `Bearer ${key}` }),
    };
    this.#options = { timeoutMs, strict };
    this.#queue = new EventQueue(`${this.#url}/v1/events`, this.#headers, mostEvents, flushMs);
  }

  async rank(request, { timeoutMs = this.#options.timeoutMs, fallback } = {}) {
    if (!(timeoutMs > 0)) throw new TypeError(`timeoutMs is ${timeoutMs}; milliseconds above 0 are needed`);
    const deadline = performance.now() + timeoutMs;
    const requestId = request.request_id ?? newId();
    const strict = this.#options.strict ? { strict: true } : {};
    const body = encode({ ...strict, ...request, request_id: requestId });
    this.#tenths = Math.min(this.#tenths + 1, RESERVE * REQUESTS_A_RETRY);
    let end = await this.#try(body, requestId, deadline);
    if (end.retryAfterMs !== undefined) {
      const leftMs = deadline - performance.now();
      // Clients that were told the same second, or that lost the same server, do not come back together.
      const jitterMs = Math.random() * Math.max(Math.min(JITTER_MS, leftMs / 4), end.retryAfterMs / 4);
      const pauseMs = end.retryAfterMs + jitterMs;
      if (pauseMs < leftMs && this.#spend()) {
        await sleep(pauseMs);
        end = await this.#try(body, requestId, deadline);
      }
    }
    return this.#result(end, requestId, fallback);
  }

  event(event) {
    return this.#queue.add(event);
  }

  counts() {
    return { ...this.#counts, reasons: { ...this.#reasons }, ...this.#queue.counts() };
  }

  async close(timeoutMs = 5000) {
    await this.#queue.close(timeoutMs);
  }

  #spend() {
    if (this.#tenths < REQUESTS_A_RETRY) {
      this.#counts.overBudget += 1;
      return false;
    }
    this.#tenths -= REQUESTS_A_RETRY;
    this.#counts.retries += 1;
    return true;
  }

  /** One try: its status and document, or the reason why there is none. `retryAfterMs` where another may follow. */
  async #try(body, requestId, deadline) {
    const leftMs = Math.max(Math.floor(deadline - performance.now()), 1);
    const headers = { ...this.#headers, "X-Request-Timeout-Ms": String(leftMs) };
    // The service logs it for what it refuses unread, too.
    if (HEADER_ID.test(requestId)) headers["X-Request-Id"] = requestId;
    const signal = AbortSignal.timeout(leftMs);
    try {
      const options = { method: "POST", body, headers, signal, redirect: "manual" };
      const response = await fetch(`${this.#url}/v1/rank`, options);
      const document = parsed(await response.text());
      const { status } = response;
      const retryAfter = secondsOf(response.headers.get("Retry-After"));
      const mayRetry = status === 503 || (status === 429 && retryAfter !== undefined);
      const reason = status === 200 ? "no answer" : `status ${status}`;
      return { status, document, reason, retryAfterMs: mayRetry ? 1000 * (retryAfter ?? 0) : undefined };
    } catch (error) {
      if (signal.aborted) return { status: 0, document: {}, reason: "timeout" };
      return { status: 0, document: {}, reason: "connection", retryAfterMs: 0 };
    }
  }

  /** The ranking, counted. */
  #result({ status, document, reason }, requestId, fallback) {
    const ids = status === 200 ? rankedIds(document) : undefined;
    if (ids !== undefined) {
      this.#counts.answered += 1;
      return { ids, requestId, answer: document, isFallback: false };
    }
    this.#reasons[reason] = (this.#reasons[reason] ?? 0) + 1;
    if (status >= 400 && status < 500 && status !== 408 && status !== 429) {
      this.#counts.refused += 1;
      throw new RefusedError(requestId, status, String(document.detail ?? ""), faultsOf(document));
    }
    if (fallback === undefined) {
      this.#counts.unavailable += 1;
      throw new UnavailableError(requestId, reason);
    }
    this.#counts.fallbacks += 1;
    return { ids: [...fallback], requestId, answer: undefined, isFallback: true, reason };
  }
}

/** The ids of an answer in its order, of either shape. Undefined where it is no answer of /v1/rank. */
function rankedIds({ candidates }) {
  const ids = Array.isArray(candidates) ? candidates.map((row) => row?.id) : candidates?.id;
  return Array.isArray(ids) && ids.every((id) => typeof id === "string") ? ids : undefined;
}
