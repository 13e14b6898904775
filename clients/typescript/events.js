/**
 * Events that wait to be sent: bounded, sent in batches, each counted once as what became of it. A batch that was not
 * accepted is sent again with the times and ids that its events were given here, so the service counts each of them once.
 */

import { encode, faultsOf, newId, parsed, secondsOf } from "./wire.js";

const BATCH = 500;
// The service takes 1 MiB a request.
const BODY_BYTES = 1_000_000;
const SHORTEST_PAUSE_MS = 100;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 30_000;
const REQUEST_MS = 10_000;
// These refuse events as they are. 401, 403 and a 404 that names none are of the service's settings, which change.
const FINAL = [400, 404, 413, 422];
const UNNAMED = [400, 413, 422];

/** Encoded events in their order, and the task that sends them while there are any. */
export class EventQueue {
  #url;
  #headers;
  #most;
  #flushMs;
  #waiting = [];
  #sent = [];
  #limit = BATCH;
  #pauseMs = FIRST_PAUSE_MS;
  #task;
  #wake = () => {};
  #endMs;
  #isClosed = false;
  #abort = new AbortController();
  #counts = { eventsAccepted: 0, eventsDropped: 0, eventsRefused: 0 };

  constructor(url, headers, most, flushMs) {
    this.#url = url;
    this.#headers = headers;
    this.#most = most;
    this.#flushMs = flushMs;
  }

  get #size() {
    return this.#waiting.length + this.#sent.length;
  }

  counts() {
    return { ...this.#counts, eventsWaiting: this.#size };
  }

  /** Add an event. False where there is no room, and it is dropped. */
  add(event) {
    const added = { time: new Date().toISOString(), event_id: newId() };
    const encoded = encode({ ...added, ...event });
    const bytes = Buffer.byteLength(encoded);
    if (bytes > BODY_BYTES) throw new RangeError(`an event of ${bytes} bytes; the service takes ${BODY_BYTES} at most`);
    if (this.#endMs !== undefined || this.#size >= this.#most) {
      this.#counts.eventsDropped += 1;
      return false;
    }
    this.#waiting.push({ encoded, bytes });
    this.#task ??= this.#run();
    if (this.#size >= BATCH) this.#wake();
    return true;
  }

  /** Send what waits, within some milliseconds, and drop and count the rest. */
  async close(timeoutMs) {
    this.#endMs = performance.now() + timeoutMs;
    this.#wake();
    if (this.#task !== undefined) {
      let timer;
      const timedOut = new Promise((resolve) => (timer = setTimeout(resolve, timeoutMs)));
      await Promise.race([this.#task, timedOut]);
      clearTimeout(timer);
    }
    this.#isClosed = true;
    this.#abort.abort();
    const left = this.#size;
    this.#waiting = [];
    this.#sent = [];
    this.#counts.eventsDropped += left;
    if (left > 0) console.error(`feedrank: ${left} events dropped: the client was closed before they were sent`);
  }

  /** Send until nothing waits. Its timers keep the process alive for so long. */
  async #run() {
    await this.#sleep(this.#flushMs);
    while (this.#waiting.length > 0 && !this.#isClosed) {
      const pauseMs = await this.#sendBatch();
      if (pauseMs > 0) {
        const leftMs = (this.#endMs ?? Infinity) - performance.now();
        if (pauseMs >= leftMs) break;
        await this.#sleep(pauseMs, false);
      } else if (this.#waiting.length > 0 && this.#waiting.length < this.#limit) {
        await this.#sleep(this.#flushMs);
      }
    }
    this.#task = undefined;
  }

  /** Wait, until a batch is full or the client is closed where it may be woken. */
  async #sleep(ms, isWoken = true) {
    if (isWoken && this.#endMs !== undefined) return;
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        if (!isWoken && this.#endMs === undefined) return;
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = () => {};
  }

  /** Send a batch. Returns milliseconds until the next may be sent. */
  async #sendBatch() {
    let bytes = 0;
    while (this.#waiting.length > 0 && this.#sent.length < this.#limit) {
      bytes += this.#waiting[0].bytes + 1;
      if (this.#sent.length > 0 && bytes > BODY_BYTES) break;
      this.#sent.push(this.#waiting.shift());
    }
    const body = `{"events":[${this.#sent.map(({ encoded }) => encoded).join(",")}]}`;
    let [status, retryAfter, text] = [0, undefined, ""];
    try {
      const signal = AbortSignal.any([AbortSignal.timeout(REQUEST_MS), this.#abort.signal]);
      const options = { method: "POST", body, headers: this.#headers, redirect: "manual", signal };
      const response = await fetch(this.#url, options);
      retryAfter = secondsOf(response.headers.get("Retry-After"));
      text = await response.text();
      status = response.status;
    } catch {
      // Without a reply its status stays 0.
    }
    return this.#isClosed ? 0 : this.#settle(status, retryAfter, text);
  }

  #settle(status, retryAfter, text) {
    const batch = this.#sent;
    this.#sent = [];
    if (status === 202) {
      this.#limit = BATCH;
      this.#pauseMs = FIRST_PAUSE_MS;
      this.#counts.eventsAccepted += batch.length;
      return 0;
    }
    const faults = FINAL.includes(status) ? faultsOf(parsed(text)) : [];
    const named = new Set(faults.map(([path]) => Number(/^events\[(\d+)\]/.exec(path)?.[1] ?? -1)));
    let kept = batch.filter((_, place) => !named.has(place));
    if (kept.length === batch.length && UNNAMED.includes(status)) {
      // No event is named: found by halves.
      this.#limit = Math.max(Math.floor(batch.length / 2), 1);
      if (batch.length === 1) kept = [];
    }
    this.#waiting = [...kept, ...this.#waiting];
    const refused = batch.length - kept.length;
    if (refused > 0 || UNNAMED.includes(status)) {
      this.#counts.eventsRefused += refused;
      // Of the first fault the path alone: its message may quote a value.
      if (refused > 0) console.error(`feedrank: ${refused} events refused (${status}) ${faults[0]?.[0] ?? ""}`);
      return 0;
    }
    let pauseMs = 1000 * (retryAfter ?? 0);
    if (retryAfter === undefined) {
      pauseMs = this.#pauseMs;
      this.#pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
    }
    pauseMs = Math.max(pauseMs, SHORTEST_PAUSE_MS);
    console.warn(`feedrank: ${this.#waiting.length} events wait: ${status ? `status ${status}` : "no connection"}`);
    return pauseMs * (1 + Math.random() / 4);
  }
}
