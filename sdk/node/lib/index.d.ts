/** An app: the methods that the daemon serves, and what belongs to them. */
export class App {
  constructor(options?: AppOptions);

  /**
   * Adds a method. Its replies are named NAME + `_r`.
   *
   * The value that `fn` returns, or to which its promise resolves, is the result; `undefined` becomes `null`. A thrown
   * {@link Fault} is the error that the client gets. Anything else that it throws is `crashed` with the name of its
   * class; its stack is written to the log.
   *
   * @throws on an invalid or duplicate name
   */
  method<P = any, R = unknown>(name: string, fn: Method<P, R>): this;
  method<P = any, R = unknown>(name: string, options: MethodOptions, fn: Method<P, R>): this;

  /** Adds a function that runs before the app serves. If it throws, the app does not start. */
  start(fn: () => unknown): this;

  /** Adds a function that runs after the last answer. The process ends when it and its promise are done. */
  stop(fn: () => unknown): this;

  /**
   * Adds a function that runs when a client has left. It gets the number of the client, for clients that have called a
   * method of this app only.
   */
  onClose(fn: (client: number) => unknown): this;

  /** Adds a counter to the metrics of the daemon. */
  counter(name: string, help?: string): Counter;

  /** Adds a histogram to the metrics of the daemon. `buckets` are ascending upper bounds; the default suits seconds. */
  histogram(name: string, help?: string, buckets?: readonly number[]): Histogram;

  /**
   * Calls a function at the start and then after each interval in milliseconds, 10,000 by default. It returns the reason
   * why the app is unhealthy, or undefined or null if it is healthy. An exception is a reason, too.
   */
  health(fn: () => unknown, options?: { every?: number }): this;

  /** Reports that the app can work. It is healthy at first. */
  healthy(): void;

  /**
   * Reports that the app cannot work, and why, for the operator. An unhealthy app gets clients only if no healthy one has
   * capacity; if all are unhealthy, `/readyz` is 503.
   */
  unhealthy(reason: string): void;

  /**
   * Starts to serve. The process ends when the worker closes descriptor 3. If fdpassd has not started this process, a
   * line on standard error explains how to start it, and the process exits with 64.
   */
  run(): void;
}

export interface AppOptions {
  /** How many requests the app may have at a time, from 1 to 4096. The default is 64. */
  concurrency?: number;
  /** Shown to operators. */
  name?: string;
  /** Shown to operators. */
  version?: string;
}

export interface MethodOptions {
  /** Whether the method may run twice for one request, because the first process died. The default is false. */
  idempotent?: boolean;
  /** The name of the replies. The default is the method's name + `_r`. */
  reply?: string;
}

export type Method<P = any, R = unknown> = (params: P, call: Call) => R | Promise<R>;

/** The properties of a call, for its method. */
export interface Call {
  /** The name of the method. */
  readonly method: string;
  /** The number of the client. Two connections never have the same number. */
  readonly client: number;
  /** The address of a TCP client; may be empty for a client of a Unix socket. */
  readonly peer: string;
  /** The load balancer that has reported `peer` by the PROXY protocol; empty if it uses a Unix socket. */
  readonly via?: string;
  /** The process of a client of a Unix socket. */
  readonly pid?: number;
  /** The user of a client of a Unix socket. */
  readonly uid?: number;
  /** The group of a client of a Unix socket. */
  readonly gid?: number;
  /** 1; or 2 if a process died in an idempotent method. */
  readonly attempt: number;
  /** When the client gets `timeout`, in milliseconds as `Date.now()`; undefined without a limit. */
  readonly deadline?: number;
  /** Milliseconds until the client gets `timeout`; Infinity without a limit. */
  readonly remaining: number;
  /** Aborted when the client has left (AbortError) or time is up (TimeoutError). The answer is then discarded. */
  readonly signal: AbortSignal;
  /** Whether the signal is aborted. Cheaper than the signal. */
  readonly isCancelled: boolean;
  /** The params as the client wrote them, or undefined if it sent none. Exact for numbers of any size. */
  readonly rawParams: string | undefined;
}

/** An error that a method sends to its client. The connection stays open. */
export class Fault extends Error {
  /**
   * @param code for programs: `[a-z][a-z0-9_]{0,63}`, and no code of the daemon except `bad_params`, `internal` and
   *   `crashed`
   * @param message a sentence for people
   * @throws RangeError on another code
   */
  constructor(code: string, message?: string);
  readonly code: string;
}

/** A result that is sent byte for byte. */
export class Raw {
  /**
   * @param text one JSON value; with anything else, the client gets `internal`
   */
  constructor(text: string);
  toString(): string;
}

export interface Counter {
  /**
   * Adds a whole number from 0 to 2^53; 1 by default.
   *
   * @throws RangeError on anything else, such as a string with a number
   */
  add(count?: number): void;
}

export interface Histogram {
  /** @throws RangeError on anything but a finite number */
  observe(value: number): void;
}
