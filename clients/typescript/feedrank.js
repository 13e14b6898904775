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

  async rank(request, { timeoutMs, fallback } = {}) {
    const question = this.#question(request, fallback);
    const reply = await this.#send("/v1/rank", question.requestId, question.document, timeoutMs);
    const ended = this.#end(question, reply);
    if (ended instanceof Error) throw ended;
    return ended;
  }

  async rankBatch(requests, { timeoutMs, fallbacks = requests.map(() => undefined) } = {}) {
    if (requests.length === 0) throw new TypeError("no requests; at least one is needed");
    if (fallbacks.length !== requests.length) {
      throw new TypeError(`${fallbacks.length} fallbacks for ${requests.length} requests; give one for each`);
    }
    const questions = requests.map((request, place) => this.#question(request, fallbacks[place]));
    const requestId = newId();
    const document = { requests: questions.map((question) => question.document) };
    const reply = await this.#send("/v1/rank:batch", requestId, document, timeoutMs);
    const replies = repliesOf(reply, questions.length);
    const ended = questions.map((question, place) => this.#end(question, replies?.[place] ?? reply));
    // Of the whole: the paths of its faults say which request each is about.
    if (replies === undefined && ended[0] instanceof RefusedError) {
      throw new RefusedError(requestId, ended[0].status, ended[0].detail, ended[0].faults);
    }
    return ended;
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

  #question(request, fallback) {
    const requestId = request.request_id ?? newId();
    const strict = this.#options.strict ? { strict: true } : {};
    return { requestId, fallback, document: { ...strict, ...request, request_id: requestId } };
  }

  /** The last reply: its status and document, or the reason why there is none. */
  async #send(path, requestId, document, timeoutMs = this.#options.timeoutMs) {
    if (!(timeoutMs > 0)) throw new TypeError(`timeoutMs is ${timeoutMs}; milliseconds above 0 are needed`);
    const deadline = performance.now() + timeoutMs;
    const body = encode(document);
    this.#tenths = Math.min(this.#tenths + 1, RESERVE * REQUESTS_A_RETRY);
    const reply = await this.#try(path, body, requestId, deadline);
    if (reply.retryAfterMs === undefined) return reply;
    const leftMs = deadline - performance.now();
    // Clients that were told the same second, or that lost the same server, do not come back together.
    const jitterMs = Math.random() * Math.max(Math.min(JITTER_MS, leftMs / 4), reply.retryAfterMs / 4);
    const pauseMs = reply.retryAfterMs + jitterMs;
    if (pauseMs >= leftMs || !this.#spend()) return reply;
    await sleep(pauseMs);
    return this.#try(path, body, requestId, deadline);
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

  /** One try. `retryAfterMs` where another may follow. */
  async #try(path, body, requestId, deadline) {
    const leftMs = Math.max(Math.floor(deadline - performance.now()), 1);
    const headers = { ...this.#headers, "X-Request-Timeout-Ms": String(leftMs) };
    // The service logs it for what it refuses unread, too.
    if (HEADER_ID.test(requestId)) headers["X-Request-Id"] = requestId;
    const signal = AbortSignal.timeout(leftMs);
    try {
      const options = { method: "POST", body, headers, signal, redirect: "manual" };
      const response = await fetch(this.#url + path, options);
      const document = parsed(await response.text());
      const { status } = response;
      const retryAfter = secondsOf(response.headers.get("Retry-After"));
      const mayRetry = status === 503 || (status === 429 && retryAfter !== undefined);
      return { status, document, reason: reasonOf(status), retryAfterMs: mayRetry ? 1000 * (retryAfter ?? 0) : undefined };
    } catch (error) {
      if (signal.aborted) return { status: 0, document: {}, reason: "timeout" };
      return { status: 0, document: {}, reason: "connection", retryAfterMs: 0 };
    }
  }

  /** The ranking, or the error that stands for it, counted. */
  #end({ requestId, fallback }, { status, document, reason }) {
    const ids = status === 200 ? rankedIds(document) : undefined;
    if (ids !== undefined) {
      this.#counts.answered += 1;
      return { ids, requestId, answer: document, isFallback: false };
    }
    this.#reasons[reason] = (this.#reasons[reason] ?? 0) + 1;
    if (status >= 400 && status < 500 && status !== 408 && status !== 429) {
      this.#counts.refused += 1;
      return new RefusedError(requestId, status, String(document.detail ?? ""), faultsOf(document));
    }
    if (fallback === undefined || fallback === null) {
      this.#counts.unavailable += 1;
      return new UnavailableError(requestId, reason);
    }
    this.#counts.fallbacks += 1;
    return { ids: [...fallback], requestId, answer: undefined, isFallback: true, reason };
  }
}

/** Why a reply of this status is no ranking. */
function reasonOf(status) {
  return status === 200 ? "no answer" : `status ${status}`;
}

/** Replies to so many requests of a batch. Undefined where the reply has not these. */
function repliesOf({ status, document }, number) {
  if (status !== 200 || !Array.isArray(document.answers) || document.answers.length !== number) return undefined;
  return document.answers.map((answer) => {
    const of = answer?.status ?? 200;
    return { status: of, document: answer ?? {}, reason: reasonOf(of) };
  });
}

/** The ids of an answer in its order, of either shape. Undefined where it is no answer of /v1/rank. */
function rankedIds({ candidates }) {
  const ids = Array.isArray(candidates) ? candidates.map((row) => row?.id) : candidates?.id;
  return Array.isArray(ids) && ids.every((id) => typeof id === "string") ? ids : undefined;
}
