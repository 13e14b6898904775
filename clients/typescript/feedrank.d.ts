/** Types of feedrank.js. Of a model's own features `openapi-typescript` makes types (docs/types.md), which fit here. */

/** A value of a feature. An int64 id is a bigint, or a number up to 2^53. It is sent as a string of its digits. */
export type Value = bigint | number | string | null | readonly (bigint | number | string)[];

export interface Columns {
  id: readonly string[];
  features?: { readonly [feature: string]: readonly Value[] | BigInt64Array | Float32Array | Float64Array };
}

export interface Row {
  id: string;
  features?: { readonly [feature: string]: Value };
}

/** Body of POST /v1/rank. The client adds `request_id`, and `strict` where it is strict. */
export interface RankRequest {
  user: { readonly [feature: string]: Value };
  /** Columns cost less than rows. */
  candidates: Columns | readonly Row[];
  request_id?: string;
  model?: string;
  version?: string;
  value_model?: string;
  policy?: string;
  top_k?: number;
  explain?: boolean;
  strict?: boolean;
}

/** The service's answer. It may have more fields. */
export interface RankAnswer {
  request_id: string;
  model: string;
  model_version: string;
  value_model: string;
  value_model_version: string;
  candidates:
    | { id: string[]; score: number[]; tasks: { [output: string]: number[] } }
    | { id: string; score: number; tasks: { [output: string]: number } }[];
  [field: string]: unknown;
}

/** Candidate ids, best first. A fallback has no answer, and the reason why. */
export type Ranking =
  | { ids: string[]; requestId: string; answer: RankAnswer; isFallback: false; reason?: undefined }
  | { ids: string[]; requestId: string; answer: undefined; isFallback: true; reason: string };

/** One action of a user. The client adds `time` and `event_id`. */
export interface Event {
  request_id: string;
  type: string;
  id: string;
  position?: number;
  value?: number;
  user?: bigint | number | string;
  time?: string;
  event_id?: string;
  model?: string;
  [feature: string]: Value | undefined;
}

/** Every request and every event is in one of the counts. */
export interface Counts {
  answered: number;
  fallbacks: number;
  /** Requests that ended in UnavailableError. */
  unavailable: number;
  /** Requests that ended in RefusedError. */
  refused: number;
  retries: number;
  /** Retries that were left out, as there had been too many for the requests made. */
  overBudget: number;
  /** Why requests were not answered: `timeout`, `connection`, `status 503` and the like, or `no answer`. */
  reasons: { [reason: string]: number };
  eventsAccepted: number;
  /** There was no room, or the client was closed before they were sent. */
  eventsDropped: number;
  /** The service refuses them as they are. */
  eventsRefused: number;
  eventsWaiting: number;
}

export interface Options {
  /** An API key. */
  key?: string;
  /** Milliseconds for a ranking with its retry, 500. */
  timeoutMs?: number;
  /** True refuses requests that leave out a feature: for development. */
  strict?: boolean;
  /** Events that may wait, 10,000. */
  mostEvents?: number;
  /** Milliseconds between two batches of events, 1,000. */
  flushMs?: number;
}

export class UnavailableError extends Error {
  readonly requestId: string;
  readonly reason: string;
}

export class RefusedError extends Error {
  readonly requestId: string;
  readonly status: number;
  readonly detail: string;
  /** Paths and rules. */
  readonly faults: readonly (readonly [string, string])[];
}

/** Rankings and events of one service. */
export class Client {
  constructor(baseUrl: string, options?: Options);
  /**
   * The service's ranking, or `fallback` where it gives none in time. Throws RefusedError for a request that is wrong,
   * UnavailableError without a fallback, RangeError for a number that JavaScript or JSON does not keep.
   */
  rank(request: RankRequest, options?: { timeoutMs?: number; fallback?: readonly string[] | null }): Promise<Ranking>;
  /**
   * Rankings of several users by one call, in the order of `requests`. A request that has none has its error in that
   * place. Throws RefusedError where all of them are refused, RangeError as `rank` does.
   */
  rankBatch(
    requests: readonly RankRequest[],
    options?: { timeoutMs?: number; fallbacks?: readonly (readonly string[] | null | undefined)[] },
  ): Promise<(Ranking | RefusedError | UnavailableError)[]>;
  /** Send an event soon, in the background. False where too many wait, and it is dropped and counted. */
  event(event: Event): boolean;
  /** What became of all requests and events so far. */
  counts(): Counts;
  /** Send what waits, within `timeoutMs` (5,000), and drop and count the rest. */
  close(timeoutMs?: number): Promise<void>;
}
